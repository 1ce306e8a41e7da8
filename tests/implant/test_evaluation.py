"""Measures of predicted dimensions, on cases whose numbers can be counted by hand or that torchmetrics counts, too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from core.errors import UserError
from core.results import plain
from files import read_csv
from implants.evaluation import (
    MEASURES,
    Evaluation,
    Predictions,
    calibrate,
    catalogue_of,
    combinations,
    groups,
    model_median,
    nearest_sizes,
    on_sale,
    patients,
    read_catalogue,
    sizes,
    steps,
    training_median,
    with_intervals,
    write_predictions,
)
from implants.records import Record

CATALOGUE = {
    ("Alfa", "Bone"): {"length": [8.0, 10.0, 12.0], "diameter": [3.3, 4.1]},
    ("Alfa", "Tissue"): {"length": [6.0, 10.0], "diameter": [4.8]},
    ("Beta", "Two"): {"length": [8.5, 11.5], "diameter": [3.75, 4.2]},
}


def make_record(name, length, diameter, company="Alfa", model="Bone", patient=None, **changes):
    values = {"bbox": None, "mm_per_px": None, "modality": "", "origin": name, "fields": {}} | changes
    return Record(name, Path(f"{name}.png"), company, model, length, diameter, patient, **values)


def predict(mean, company="", model="", sigma=np.nan):
    """Without intervals; names and σ the same for all, or one a case."""
    mean = np.array(mean, float)
    unknown = np.full_like(mean, np.nan)
    company, model = (np.broadcast_to(np.array(names), len(mean)) for names in (company, model))
    return Predictions(mean, np.broadcast_to(sigma, mean.shape), unknown, unknown, company, model)


def evaluate(records, predictions, catalogue=CATALOGUE, resamples=200):
    return Evaluation(records, predictions, catalogue, resamples)


@pytest.fixture
def many():
    """(records, predictions): 60 cases of 20 patients with errors drawn at random."""
    rng = np.random.default_rng(0)
    records = [
        make_record(f"r{i}", rng.choice([8.0, 10, 12]), rng.choice([3.3, 4.1]), patient=f"p{i // 3}") for i in range(60)
    ]
    mean = sizes(records) + rng.normal(0.1, (1.0, 0.3), (60, 2))
    return records, predict(mean, "Alfa", "Bone", rng.uniform(0.3, 1.2, (60, 2)))


# ---------------------------------------------------------------------------------------------------------- catalogues


def test_sizes_on_sale_fall_back_to_the_company_and_then_to_all():
    assert on_sale(CATALOGUE, "length", "Alfa", "Tissue").tolist() == [6, 10]
    assert on_sale(CATALOGUE, "length", "Alfa", "Two").tolist() == [6, 8, 10, 12]
    assert on_sale(CATALOGUE, "diameter", "Alfa").tolist() == [3.3, 4.1, 4.8]
    for company, model in (("Gamma", "Bone"), ("", "Three"), ("", "")):
        assert on_sale(CATALOGUE, "diameter", company, model).tolist() == [3.3, 3.75, 4.1, 4.2, 4.8]


def test_sizes_on_sale_of_a_model_whose_company_is_not_predicted():
    catalogue = {**CATALOGUE, ("Beta", "Bone"): {"length": [9.0, 10.0], "diameter": [5.0]}}
    assert on_sale(catalogue, "length", model="Bone").tolist() == [8, 9, 10, 12]
    assert on_sale(catalogue, "diameter", model="Two").tolist() == [3.75, 4.2]


def test_catalogue_of_records():
    records = [
        make_record("a", 10.0, 4.1),
        make_record("b", 8.0, 4.1),
        make_record("c", 10.0, 3.3),
        make_record("d", 11.5, 4.2, "Beta", "Two"),
    ]
    catalogue = catalogue_of(records)
    assert catalogue == {
        ("Alfa", "Bone"): {"length": [8, 10], "diameter": [3.3, 4.1]},
        ("Beta", "Two"): {"length": [11.5], "diameter": [4.2]},
    }
    assert set(catalogue) == combinations(records)


def test_catalogue_files(tmp_path):
    file = tmp_path / "sizes.json"
    file.write_text('{"Alfa": {"Bone": {"length": [12, 8, 10, 8], "diameter": [4.1, 3.3]}}}')
    assert read_catalogue(file) == {("Alfa", "Bone"): CATALOGUE["Alfa", "Bone"]}
    for content, says in (
        ("{", "no JSON"),
        ("[1]", "no catalogue"),
        ("{}", "no catalogue"),
        ('{"Alfa": {}}', "no catalogue"),
        ('{"Alfa": {"Bone": [8]}}', "Alfa, Bone has no list of length"),
        ('{"Alfa": {"Bone": {"length": [8]}}}', "Alfa, Bone has no list of diameter"),
        ('{"Alfa": {"Bone": {"length": [], "diameter": [4]}}}', "no list of length"),
        ('{"Alfa": {"Bone": {"length": [8], "diameter": ["4"]}}}', "no list of diameter"),
        ('{"Alfa": {"Bone": {"length": [8], "diameter": [NaN]}}}', "no list of diameter"),
        ('{"Alfa": {"Bone": {"length": [-8], "diameter": [4]}}}', "no list of length"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=says) as error:
            read_catalogue(file)
        assert str(file) in str(error.value)
    with pytest.raises(UserError, match="no such file; leave out --catalogue"):
        read_catalogue(tmp_path / "none.json")


def test_the_nearest_size_is_of_the_predicted_company_and_model():
    found = predict(
        [[9.1, 3.9]] * 4 + [[9.0, 3.7]], ["Alfa", "Alfa", "Beta", "", "Alfa"], ["Bone", "Tissue", "", "", "Bone"]
    )
    assert nearest_sizes(found, CATALOGUE).tolist() == [[10, 4.1], [10, 4.8], [8.5, 3.75], [8.5, 3.75], [8, 3.3]]


def test_steps():
    listed = np.array([8.0, 10.0, 11.5, 13.0])
    assert [steps(8.0, truth, listed) for truth in listed] == [0, 1, 2, 3]
    assert [steps(13.0, truth, listed) for truth in listed] == [3, 2, 1, 0]
    assert steps(10.0, 10.0 + 1e-6, listed) == 0
    assert [steps(10.0, truth, listed) for truth in (9.0, 10.5, 12.0, 20.0)] == [1, 1, 2, 3]  # not on sale


# ------------------------------------------------------------------------------------------------------------ measures


def test_measures_by_hand():
    records = [
        make_record("a", 8.0, 3.3),
        make_record("b", 10.0, 4.1),
        make_record("c", 12.0, 4.1),
        make_record("d", 10.0, 3.75),  # a diameter that Alfa does not sell
    ]
    found = predict([[8.5, 3.3], [8.8, 4.0], [8.2, 3.4], [10.0, 4.0]], "Alfa", "Bone")
    found = found._replace(low=found.mean - (1, 0.2), high=found.mean + (1.3, 0.2))
    summary = evaluate(records, found).summary()
    length, diameter, mean, both = (
        {measure: interval.estimate for measure, interval in summary[name].items()}
        for name in ("length", "diameter", "mean", "both")
    )
    # Errors: 0.5, -1.2, -3.8, 0 and 0, -0.1, -0.7, 0.25. Nearest: 8, 8, 8, 10 and 3.3, 4.1, 3.3, 4.1.
    assert length == pytest.approx(
        {"mae": 5.5 / 4, "rmse": (16.13 / 4) ** 0.5, "r2": 1 - 16.13 / 8, "close": 0.5, "exact": 0.5, "one_step": 0.75,
         "coverage": 0.75, "width": 2.3}
    )  # fmt: skip
    assert diameter == pytest.approx(
        {"mae": 1.05 / 4, "rmse": (0.5625 / 4) ** 0.5, "r2": 1 - 0.5625 / 0.431875, "close": 0.75, "exact": 0.5,
         "one_step": 1, "coverage": 0.5, "width": 0.4}
    )  # fmt: skip
    assert mean == pytest.approx({name: (length[name] + diameter[name]) / 2 for name in MEASURES})
    assert both == pytest.approx({"close": 0.5, "exact": 0.25, "one_step": 0.75, "coverage": 0.5})


def test_measures_against_torchmetrics(many):
    records, found = many
    summary = evaluate(records, found).summary()
    for i, target in enumerate(("length", "diameter")):
        pair = torch.from_numpy(found.mean[:, i]), torch.from_numpy(sizes(records)[:, i])
        assert summary[target]["mae"].estimate == pytest.approx(mean_absolute_error(*pair).item())
        assert summary[target]["rmse"].estimate == pytest.approx(mean_squared_error(*pair, squared=False).item())
        assert summary[target]["r2"].estimate == pytest.approx(r2_score(*pair).item())
        assert summary[target]["mae"].low < summary[target]["mae"].estimate < summary[target]["mae"].high
    assert np.isnan([summary["length"][name].estimate for name in ("coverage", "width")]).all()
    json.dumps(plain(summary), allow_nan=False)


def test_intervals_are_over_patients():
    rng = np.random.default_rng(0)
    shift = np.repeat(rng.normal(size=10), 30)
    alone = [make_record(f"r{i}", 8.0, 3.3) for i in range(300)]
    together = [make_record(f"r{i}", 8.0, 3.3, patient=f"p{i // 30}") for i in range(300)]
    copies = [make_record(f"r{i}", 8.0, 3.3, origin=f"o{i // 30}") for i in range(300)]
    found = predict(np.stack([8 + shift, 3.3 + shift], axis=1))
    widths = []
    for records in (alone, together, copies):
        mae = evaluate(records, found).summary()["length"]["mae"]
        widths.append(mae.high - mae.low)
    assert widths[1] == widths[2] > 3 * widths[0]
    same_name = [make_record("x", 8.0, 3.3, origin="a"), make_record("y", 8.0, 3.3, patient="a")]
    assert len(set(patients(same_name))) == 2


def test_one_patient_has_no_interval_and_one_size_no_r2():
    records = [make_record(f"r{i}", 8.0, 3.3, patient="p") for i in range(12)]
    summary = evaluate(records, predict([[8.1, 3.2]] * 12)).summary()
    mae, r2 = summary["length"]["mae"], summary["length"]["r2"]
    assert mae.estimate == pytest.approx(0.1)
    assert np.isnan([mae.low, mae.high, r2.estimate]).all()


def test_differences_are_paired(many):
    records, found = many
    worse = found._replace(mean=found.mean + np.sign(found.mean - sizes(records)) * (0.2, 0))
    first, second = evaluate(records, found), evaluate(records, worse)
    difference = first.differences(second)
    assert difference["length"]["mae"] == pytest.approx((-0.2, -0.2, -0.2))  # of every case, so in every resample
    assert difference["diameter"]["mae"] == (0, 0, 0)
    assert difference["mean"]["mae"] == pytest.approx((-0.1, -0.1, -0.1))
    rmse = (evaluation.summary()["length"]["rmse"].estimate for evaluation in (first, second))
    assert difference["length"]["rmse"].estimate == pytest.approx(next(rmse) - next(rmse))
    assert second.differences(first)["both"]["close"].estimate == -difference["both"]["close"].estimate < 0
    with pytest.raises(ValueError, match="different cases"):
        first.differences(evaluate(records[::-1], found))


def test_a_record_without_a_size_is_refused():
    with pytest.raises(ValueError, match="no diameter"):
        evaluate([make_record("a", 8.0, np.nan)], predict([[8.0, 3.3]]))


# ----------------------------------------------------------------------------------------------------------- baselines


def test_baselines():
    train = [
        make_record("a", 8.0, 3.3),
        make_record("b", 10.0, 4.1),
        make_record("c", 10.0, 3.3),
        make_record("d", 11.5, 4.2, "Beta", "Two"),
        make_record("e", 8.5, 4.2, "Beta", ""),
    ]
    constant = training_median(train, 2)
    assert constant.mean.tolist() == [[10, 4.1]] * 2
    assert constant.model.tolist() == ["", ""]
    found = predict([[0, 0]] * 4, ["Alfa", "Beta", "Beta", ""], ["Bone", "Two", "Three", ""])
    by_model = model_median(train, found)
    assert by_model.mean.tolist() == [[10, 3.3], [11.5, 4.2], [10, 4.1], [10, 4.1]]
    assert by_model.company.tolist() == found.company.tolist()
    assert np.isnan(by_model.low).all()
    assert np.isnan(by_model.sigma).all()


# ----------------------------------------------------------------------------------------------------------- intervals


def test_conformal_intervals_of_each_target(many):
    records, found = many
    factors = calibrate(records, found, 0.8)
    scores = np.abs(sizes(records) - found.mean) / found.sigma
    # 20 patients of three cases: 0.8 of 21 weights are 16.8 patients, reached by the 51st of 60 cases.
    np.testing.assert_array_equal(factors, np.sort(scores, axis=0)[50])
    found = with_intervals(found, factors)
    np.testing.assert_allclose(found.high - found.low, 2 * factors * found.sigma)
    np.testing.assert_allclose((found.high + found.low) / 2, found.mean)
    assert evaluate(records, found).summary()["length"]["coverage"].estimate == 51 / 60
    assert np.isinf(calibrate(records, found, 0.96)).all()


def test_without_sigma_intervals_are_of_one_width(many):
    records, found = many
    found = found._replace(sigma=np.full((60, 2), np.nan))
    factors = calibrate(records, found, 0.8)
    np.testing.assert_array_equal(factors, np.sort(np.abs(sizes(records) - found.mean), axis=0)[50])
    found = with_intervals(found, factors)
    np.testing.assert_allclose(found.high - found.mean, np.tile(factors, (60, 1)))


@pytest.mark.filterwarnings("error")
def test_infinite_intervals_cover_and_models_that_always_agree_have_some(many):
    records, found = many
    none = found._replace(sigma=np.zeros((60, 2)))
    assert np.isfinite(calibrate(records, none, 0.8)).all()
    evaluation = evaluate(records, with_intervals(none, np.array([np.inf, np.inf])))
    summary = evaluation.summary()
    assert summary["both"]["coverage"] == (1, 1, 1)
    assert np.isinf(summary["length"]["width"].estimate)
    assert np.isnan(evaluation.differences(evaluation)["length"]["width"].estimate)


# -------------------------------------------------------------------------------------------------------------- groups


def test_groups():
    records = [
        make_record("a", 8.0, 3.3, modality="periapical", mm_per_px=(0.1, 0.1)),
        make_record("b", 8.0, 3.3, "Beta", "Bone"),
        make_record("c", 8.0, 3.3, "Beta", ""),
    ]
    assert groups(records, {("Alfa", "Bone"), ("Beta", "Two")}) == {
        "company": ["Alfa", "Beta", "Beta"],
        "model": ["Alfa Bone", "Beta Bone", "Beta"],
        "modality": ["periapical", "unknown", "unknown"],
        "combination": ["seen", "unseen", "unseen"],
        "spacing": ["known", "unknown", "unknown"],
    }


def test_a_group_has_the_measures_of_its_cases(many):
    records, found = many
    labels = ["large" if i >= 9 else "small" for i in range(60)]
    by = evaluate(records, found).by(labels)
    assert list(by) == ["large", "small"]
    assert [(group.n, group.patients, group.few) for group in by.values()] == [(51, 17, False), (9, 3, True)]
    alone = evaluate(records[:9], Predictions(*(column[:9] for column in found)))
    np.testing.assert_equal(by["small"].summary, alone.summary())


def test_predictions_file(tmp_path):
    records = [make_record("folder/a", 8.0, 3.3, patient="7"), make_record("b", 12.0, 4.1)]
    found = predict([[9.25, 3.4], [12.0, 4.0]], ["Alfa", ""], ["Bone", ""], [[0.5, 0.1], [np.nan, np.nan]])
    found = found._replace(low=found.mean - 1, high=found.mean + 1)
    write_predictions(tmp_path / "predictions.csv", evaluate(records, found))
    first, second = read_csv(tmp_path / "predictions.csv")
    assert list(first.values())[:6] == ["folder/a", "7", "Alfa", "Bone", "Alfa", "Bone"]
    assert list(second.values())[:6] == ["b", "", "Alfa", "Bone", "", ""]
    length = ["length_mm", *(f"length_{part}_mm" for part in ("predicted", "sigma", "low", "high", "nearest", "error"))]
    assert [first[name] for name in length] == ["8.000", "9.250", "0.500", "8.250", "10.250", "10.000", "1.250"]
    assert [first[f"diameter_{part}_mm"] for part in ("nearest", "error")] == ["3.300", "0.100"]
    assert second["length_sigma_mm"] == second["diameter_sigma_mm"] == ""
    assert len(first) == 20
