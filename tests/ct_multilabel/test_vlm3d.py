import itertools
import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multilabel_accuracy,
    multilabel_auroc,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from core.errors import UserError
from core.metrics import crg_score
from ct.labels import LABELS
from ct.vlm3d import (
    AGGREGATES,
    Calibration,
    best_thresholds,
    official_metrics,
    pool,
    prevalence,
    remap,
    write_results,
)

SCORES = ("precision", "recall", "f1", "accuracy", "auroc")


def random_cases(n=60, seed=0, unknown=0.0):
    """Labels (n, 18) of very different prevalence, and informative probabilities (n, 18) with many ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 18)) < np.linspace(0.03, 0.6, 18)).astype(int)
    labels[0], labels[1] = 1, 0  # both classes for each label
    probabilities = np.round(np.clip(0.25 + 0.3 * labels + rng.normal(0, 0.25, labels.shape), 0, 1), 1)
    return np.where(rng.random(labels.shape) < unknown, -1, labels), probabilities


def slow_metrics(labels, probabilities):
    """One label from its definition: counting cells, and all pairs of a positive and a negative."""
    cells = [(t, p) for t, p in zip(labels, probabilities, strict=True) if t != -1]
    said = [(t, p >= 0.5) for t, p in cells]
    tp, fp, fn = said.count((1, True)), said.count((0, True)), said.count((1, False))
    pairs = [(a > b) + (a == b) / 2 for s, a in cells for t, b in cells if (s, t) == (1, 0)]
    precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn) if tp + fn else 0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if tp else 0,
        "accuracy": sum(t == s for t, s in said) / len(said),
        "auroc": sum(pairs) / len(pairs) if pairs else math.nan,
        "positives": tp + fn,
        "cases": len(cells),
    }


@pytest.mark.parametrize("unknown", [0, 0.3])
def test_official_metrics_against_their_definition(unknown):
    labels, probabilities = random_cases(unknown=unknown)
    found = official_metrics(labels, probabilities)
    expected = {label: slow_metrics(labels[:, i], probabilities[:, i]) for i, label in enumerate(LABELS)}
    assert list(found["per_label"]) == list(LABELS)
    for label in LABELS:
        assert found["per_label"][label] == pytest.approx(expected[label], abs=1e-12), label
    for score in SCORES:
        assert found["macro"][score] == pytest.approx(np.mean([expected[label][score] for label in LABELS]), abs=1e-12)
    assert found["crg"] == crg_score(labels, probabilities >= 0.5)


def test_official_metrics_against_torchmetrics():
    labels, probabilities = random_cases(200)
    functions = (multilabel_precision, multilabel_recall, multilabel_f1_score, multilabel_accuracy, multilabel_auroc)
    p, t = torch.from_numpy(probabilities), torch.from_numpy(labels)
    found = official_metrics(labels, probabilities)
    for score, function in zip(SCORES, functions, strict=True):
        # torchmetrics calls p > 0.5 positive; the challenge, p >= 0.5
        given = p if score == "auroc" else (p >= 0.5).double()
        theirs = function(given, t, 18, average="none").tolist()
        assert [row[score] for row in found["per_label"].values()] == pytest.approx(theirs, abs=1e-6)


def test_half_is_positive():
    labels = np.ones((1, 18), int)
    assert official_metrics(labels, np.full((1, 18), 0.5))["macro"]["recall"] == 1
    assert official_metrics(labels, np.full((1, 18), np.nextafter(0.5, 0)))["macro"]["recall"] == 0


def test_labels_with_one_class_or_none():
    labels, probabilities = random_cases()
    labels[:, 2], labels[:, 5], labels[:, 7] = 0, 1, -1
    found = official_metrics(labels, probabilities)
    rows = list(found["per_label"].values())
    assert [i for i, row in enumerate(rows) if math.isnan(row["auroc"])] == [2, 5, 7]
    assert [i for i, row in enumerate(rows) if math.isnan(row["f1"])] == [7]
    assert (rows[2]["f1"], rows[2]["recall"], rows[5]["precision"]) == (0, 0, 1)
    assert (rows[7]["cases"], rows[7]["positives"]) == (0, 0)
    assert found["macro"]["auroc"] == pytest.approx(
        np.mean([rows[i]["auroc"] for i in range(18) if i not in (2, 5, 7)])
    )
    assert found["macro"]["f1"] == pytest.approx(np.mean([rows[i]["f1"] for i in range(18) if i != 7]))
    assert math.isnan(official_metrics(np.zeros((3, 18)), np.zeros((3, 18)))["macro"]["auroc"])


def test_unknown_cells_and_the_order_of_cases_change_nothing():
    labels, probabilities = random_cases(unknown=0.2)
    found = official_metrics(labels, probabilities)
    order = np.random.default_rng(3).permutation(len(labels))
    assert official_metrics(labels[order], probabilities[order]) == found
    assert official_metrics(labels, np.where(labels == -1, 1, probabilities)) == found
    more = np.concatenate([labels, np.full((9, 18), -1)]), np.concatenate([probabilities, np.full((9, 18), 0.7)])
    assert official_metrics(*more) == found


def test_what_is_refused():
    labels, probabilities = random_cases()
    for wrong in (np.nan, np.inf, -0.01, 1.01):
        bad = probabilities.copy()
        bad[3, 4] = wrong
        with pytest.raises(ValueError, match="probabilities"):
            official_metrics(labels, bad)
    for pair in ((labels[:-1], probabilities), (labels[:, :17], probabilities[:, :17]), (labels[0], probabilities[0])):
        with pytest.raises(ValueError, match="shape"):
            official_metrics(*pair)
    with pytest.raises(ValueError, match="shape"):
        official_metrics(labels[:0], probabilities[:0])
    with pytest.raises(ValueError, match="labels"):
        official_metrics(labels + 1, probabilities)


def test_prevalence_is_the_baseline():
    labels, _ = random_cases(200)
    shares = prevalence(labels)
    np.testing.assert_allclose(shares, labels.mean(axis=0))
    constant = official_metrics(labels, np.broadcast_to(shares, labels.shape))
    assert constant["macro"]["auroc"] == 0.5
    assert constant["per_label"][LABELS[0]]["f1"] == 0
    always = official_metrics(labels, np.ones(labels.shape))
    np.testing.assert_allclose([row["f1"] for row in always["per_label"].values()], 2 * shares / (1 + shares))
    labels[:, 0], labels[5:, 1] = -1, -1
    assert math.isnan(prevalence(labels)[0])
    assert prevalence(labels)[1] == labels[:5, 1].mean()


def f1(labels, positive):
    hits = np.sum(positive & (labels == 1))
    return 2 * hits / max(1, np.sum(positive & (labels != -1)) + np.sum(labels == 1))


def brute_force(labels, probabilities):
    """The largest F1 of all thresholds, and the thresholds midway between cases that reach it."""
    values = sorted({0.0, *probabilities[labels != -1]})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    scores = [f1(labels, probabilities >= t) for t in middles]
    return max(scores), [t for t, score in zip(middles, scores, strict=True) if score == max(scores)]


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_against_brute_force(seed):
    labels, probabilities = random_cases(80, seed, unknown=0.1)
    probabilities = np.clip(probabilities + 0.02, 0.02, 0.98)
    thresholds = best_thresholds(labels, probabilities, min_positives=5)
    few = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)) < 5
    assert few.any()
    assert not few.all()
    _, together = brute_force(labels.ravel(), probabilities.ravel())
    for i, threshold in enumerate(thresholds):
        best, good = brute_force(labels[:, i], probabilities[:, i])
        good = together if few[i] else good
        assert threshold == min(good, key=lambda t: abs(t - 0.5))
        if not few[i]:
            assert f1(labels[:, i], probabilities[:, i] >= threshold) == best


def test_thresholds_at_the_edges():
    labels, probabilities = random_cases()
    assert (best_thresholds(np.zeros_like(labels), probabilities) == 0.5).all()  # nothing to find
    assert (best_thresholds(labels, np.zeros_like(probabilities)) == 0.5).all()  # nothing to divide
    assert (best_thresholds(labels, np.ones_like(probabilities)) == 0.5).all()
    assert (best_thresholds(labels, np.full_like(probabilities, 0.2)) == 0.1).all()
    for low in (0.3, np.nextafter(0.3, 1)):  # no number between low and high; their middle is rounded up or down
        high = np.nextafter(low, 1)
        thresholds = best_thresholds(labels, np.where(labels == 1, high, low))
        assert (thresholds == high).all()
        assert official_metrics(labels, remap(np.where(labels == 1, high, low), thresholds))["macro"]["f1"] == 1
    assert (best_thresholds(labels, np.where(labels == 1, 0.9, 0.2)) == 0.2 + (0.9 - 0.2) / 2).all()


@pytest.mark.parametrize(
    ("values", "expected"), [((0.1, 0.2, 0.3, 0.6), 0.45), ((0.9, 0.91, 0.92, 0.99), 0.45)], ids=["upper", "lower"]
)
def test_of_equally_good_thresholds_the_one_nearest_half_is_taken(values, expected):
    labels = np.array([[1], [0], [0], [1]]).repeat(18, axis=1)  # F1 is 2/3 for all positive, and for the last alone
    probabilities = np.array(values)[:, None].repeat(18, axis=1)
    assert best_thresholds(labels, probabilities, min_positives=1) == pytest.approx(np.full(18, expected))


def test_remap_moves_thresholds_to_half_bit_for_bit():
    rng = np.random.default_rng(0)
    t = np.concatenate([rng.random(20000), 10 ** rng.uniform(-6, 0, 20000), 1 - 10 ** rng.uniform(-6, 0, 20000)])
    t = np.concatenate([t[(t > 0) & (t < 1)], [1e-6, 1 - 1e-6, 5e-324, np.nextafter(1, 0), 0.5]])
    for p in (rng.random(t.size), t, np.nextafter(t, 0), np.nextafter(t, 1), t * (1 - 1e-15), np.zeros(t.size)):
        moved = remap(p, t)
        assert np.array_equal(moved >= 0.5, p >= t)
        assert ((moved >= 0) & (moved <= 1)).all()
    assert (remap(t, t) == 0.5).all()
    assert (remap(np.zeros(t.size), t) == 0).all()
    assert (remap(np.ones(t.size), t) == 1).all()


def test_remap_keeps_the_order():
    rng = np.random.default_rng(1)
    p = np.unique(np.concatenate([10 ** rng.uniform(-9, 0, 5000), rng.random(5000)]).astype(np.float32))
    for t in (1e-6, 0.01, 0.3, 0.5, 0.99, 1 - 1e-6):
        assert (np.diff(remap(p, t)) > 0).all()  # strictly, for all that float32 tells apart
        close = t + np.arange(-500, 500) * np.spacing(t)
        assert (np.diff(remap(close, t)) >= 0).all()  # never turned around
        odds = p.astype(float)[1:-1] / (1 - p.astype(float)[1:-1])
        moved = remap(p, t)[1:-1]
        np.testing.assert_allclose(moved, 1 / (1 + t / (1 - t) / odds), rtol=1e-9)
    np.testing.assert_array_equal(remap(p, 0.5)[p >= 0.5] >= 0.5, True)


def test_remap_leaves_auroc_and_refuses_what_is_out_of_range():
    labels, probabilities = random_cases()
    thresholds = best_thresholds(labels, probabilities)
    before, after = official_metrics(labels, probabilities), official_metrics(labels, remap(probabilities, thresholds))
    for label in LABELS:
        assert after["per_label"][label]["auroc"] == pytest.approx(before["per_label"][label]["auroc"], abs=1e-12)
    assert after["macro"]["f1"] > before["macro"]["f1"]
    for p, t in ((0.5, 0), (0.5, 1), (0.5, np.nan), (np.nan, 0.5), (1.1, 0.5)):
        with pytest.raises(ValueError, match="must lie"):
            remap(p, t)


def test_aggregates_against_loops():
    p = np.random.default_rng(0).random((3, 13, 18))
    for n in range(3):
        for label in range(18):
            column = sorted(p[n, :, label])
            assert AGGREGATES["mean"](p)[n, label] == pytest.approx(sum(column) / 13)
            assert AGGREGATES["max"](p)[n, label] == column[-1]
            assert AGGREGATES["topk"](p)[n, label] == pytest.approx(sum(column[-3:]) / 3)  # 13 · 0.2 = 2.6
            assert AGGREGATES["noisy-or"](p)[n, label] == pytest.approx(1 - math.prod(1 - x for x in column), abs=1e-14)


def test_aggregates_at_the_edges():
    ends = np.array([[0.0, 1.0, 1e-20], [0.0, 0.5, 1e-20]])
    assert AGGREGATES["noisy-or"](ends).tolist() == [0, 1, 2e-20]  # the naive product gives 0 for the last
    one = np.random.default_rng(0).random((1, 18))
    for name, aggregate in AGGREGATES.items():
        np.testing.assert_allclose(aggregate(one), one[0], rtol=1e-12, err_msg=name)
        many = aggregate(np.full((400, 18), 0.5))
        assert ((many >= 0.5) & (many <= 1)).all()
    np.testing.assert_array_equal(pool([one, one[0]], "attention"), [one[0], one[0]])
    for stack in (one[:0], one[0], np.full((2, 18), np.nan)):
        with pytest.raises(ValueError, match="probabilities"):
            pool([stack], "mean")
    with pytest.raises(ValueError, match="reshape"):
        pool([np.zeros((2, 18))], "attention")


def stacks(labels, kind, seed=0):
    """Slice probabilities of volumes of 5 to 19 slices: findings raise one slice, or all of them a little."""
    rng = np.random.default_rng(seed)
    volumes = []
    for row in labels:
        z = rng.normal(-2, 1, (rng.integers(5, 20), 18))
        if kind == "one":
            z[0] += 4 * row
        else:
            z += 0.7 * row
        volumes.append((1 / (1 + np.exp(-3 * z))).astype(np.float32))
    return volumes


def likelihood_loss(probabilities, labels):
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return -np.mean(np.where(labels == 1, np.log(p), np.log(1 - p)))


def test_calibration_chooses_fits_and_survives_json():
    labels, _ = random_cases(150)
    chosen = {kind: Calibration.fit(stacks(labels, kind), labels) for kind in ("one", "all")}
    assert chosen["one"].aggregate != "mean"
    assert chosen["all"].aggregate == "mean"
    for kind, calibration in chosen.items():
        slices = stacks(labels, kind)
        best = max(official_metrics(labels, pool(slices, name))["macro"]["auroc"] for name in AGGREGATES)
        raw, calibrated = pool(slices, calibration.aggregate), calibration.probabilities(slices)
        assert official_metrics(labels, raw)["macro"]["auroc"] == best
        assert likelihood_loss(calibrated, labels) < likelihood_loss(raw, labels)
        assert calibration.thresholds == tuple(best_thresholds(labels, calibrated))
        scores = calibration.scores(slices)
        np.testing.assert_array_equal(scores >= 0.5, calibrated >= np.array(calibration.thresholds))
        assert official_metrics(labels, scores)["macro"]["auroc"] == pytest.approx(best, abs=1e-12)
        assert official_metrics(labels, scores)["macro"]["f1"] > official_metrics(labels, raw)["macro"]["f1"]

        again = Calibration.from_json(json.loads(json.dumps(calibration.to_json(LABELS))), LABELS)
        assert again == calibration == Calibration.fit(slices, labels)
        new = stacks(labels, kind, seed=1)
        np.testing.assert_array_equal(again.scores(new), calibration.scores(new))


def test_calibration_of_pooled_and_of_certain_probabilities():
    labels, probabilities = random_cases(150)
    assert {0.0, 1.0} <= set(probabilities.ravel())
    calibration = Calibration.fit(list(probabilities), labels, "attention", patients=np.arange(150) // 3)
    assert (calibration.aggregate, calibration.n_patients) == ("attention", 50)
    calibrated = calibration.probabilities(list(probabilities))
    np.testing.assert_array_equal(calibrated[probabilities == 0], 0)
    np.testing.assert_array_equal(calibrated[probabilities == 1], 1)
    assert np.isfinite(calibration.scores(list(probabilities))).all()
    named = Calibration.fit([p[None] for p in probabilities], labels, "max")
    assert (named.aggregate, named.thresholds, named.n_patients) == ("max", calibration.thresholds, 150)
    unknown = Calibration.fit(list(probabilities), np.full_like(labels, -1), "attention")
    assert (unknown.temperature, set(unknown.thresholds)) == (1, {0.5})


def follows_the_format(content):
    """The official results.json: exactly these keys and types, all 18 labels in order."""
    assert list(content) == ["name", "type", "version", "predictions"]
    assert content["name"] == "Generated probabilities"
    assert content["type"] == "Abnormality Classification"
    assert content["version"] == {"major": 1, "minor": 0}
    for prediction in content["predictions"]:
        assert list(prediction) == ["input_image_name", "probabilities"]
        assert isinstance(prediction["input_image_name"], str)
        assert list(prediction["probabilities"]) == list(LABELS)
        assert all(type(p) is float and 0 <= p <= 1 for p in prediction["probabilities"].values())


def test_results_file(tmp_path):
    probabilities = np.random.default_rng(0).random((3, 18))
    probabilities[0, :3] = 0, 1, np.nextafter(0.5, 0)
    file = tmp_path / "new" / "results.json"
    write_results(file, ["valid_1_a_1.nii.gz", "valid_1_a_2", "1.2.840.mha"], probabilities)
    content = json.loads(file.read_text())
    follows_the_format(content)
    assert [prediction["input_image_name"] for prediction in content["predictions"]] == [
        "valid_1_a_1", "valid_1_a_2", "1.2.840",
    ]  # fmt: skip
    assert [
        list(prediction["probabilities"].values()) for prediction in content["predictions"]
    ] == probabilities.tolist()
    write_results(file, ["a"], np.ones((1, 18), np.float32))
    follows_the_format(json.loads(file.read_text()))

    for wrong in (np.nan, 1.5):
        with pytest.raises(ValueError, match="probabilities"):
            write_results(tmp_path / "bad.json", ["a"], np.full((1, 18), wrong))
    with pytest.raises(ValueError, match="zip"):
        write_results(tmp_path / "bad.json", ["a", "b"], np.ones((1, 18)))
    with pytest.raises(UserError, match="two volumes called a"):
        write_results(tmp_path / "bad.json", ["a.nii.gz", "a.mha"], np.ones((2, 18)))
    assert not (tmp_path / "bad.json").exists()
