"""probe.py as users run it, and its report. Data are synthetic."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.numpy import load_file

from conftest import load_script, loads_nothing
from core import figures
from core.checkpoints import load_model_folder, save_model
from core.errors import UserError
from core.validation import DataReport
from files import logged, read_csv, read_json, write_csv, write_cube
from hsi.files import H5_KEY, Cube, read_cube, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.probe import IGNORED, LinearProbe, ProbeModel, read_mask
from hsi.probe_report import Picture, Results, auroc, segmentations, write_classification, write_segmentation
from launch import run

PROBE = "hyperspectral/probe.py"
QUICK = ("--num_workers", 0, "--log_with", "none", "--bootstrap", 40, "--batch_size", 4, "--warmup_epochs", 0)


def encoder_of(folder):
    """The weights of the encoder, by their names in it, of a probe's best/ or of a training run's."""
    state = load_file(folder / "best" / "model.safetensors")
    return {name.partition("encoder.")[2]: values for name, values in state.items() if "encoder." in name}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def predict(probe, features):
    with torch.no_grad():
        return probe(torch.from_numpy(features).double()).softmax(dim=1).numpy()


# ------------------------------------------------------------------------------------------------ report


def area(scores, positive):
    """The share of pairs of a positive and a negative in which the positive has the higher score; ties count half."""
    pairs = scores[positive][:, None] - scores[~positive][None]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_is_the_share_of_ordered_pairs(classes):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), 40).round(1)  # with ties
    targets = rng.integers(classes, size=40)
    expected = np.mean([area(probabilities[:, k], targets == k) for k in range(classes)])
    assert auroc(probabilities, targets) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(auroc(probabilities[targets != 1], targets[targets != 1]))
    assert auroc(np.full((40, classes), 1 / classes), targets) == pytest.approx(0.5)


@pytest.fixture
def unpainted(monkeypatch):
    """No pictures, which take longer than all else."""
    monkeypatch.setattr("core.figures.save", lambda *_: None)
    monkeypatch.setattr("core.report.Report.figures", lambda *_: None)


def test_a_test_split_of_one_label_has_no_auroc(unpainted, tmp_path):
    args = load_script(PROBE).parse_args(["--csv_file", "a.csv", "--checkpoint", "b", "--bootstrap", "20"])
    cubes = [Cube(f"C{i}", Path(f"C{i}.h5"), "a", f"C{i}", "test") for i in range(4)]
    results = {name: np.tile([0.7, 0.3], (4, 1)) for name in ("frozen", "mean spectrum", "frequency alone")}
    write_classification(Results(tmp_path, cubes, args, DataReport(), {}), results, ["a", "b"])
    methods = read_json(tmp_path / "metrics.json")["methods"]
    assert methods["frozen"]["auroc"]["estimate"] is None
    assert methods["frozen"]["accuracy"]["estimate"] == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<td>–</td><td class="interval">1.000 <span>(1.000 to 1.000)</span></td>' in page
    assert "nan" not in page


def test_a_class_without_training_cases_is_left_out(unpainted, tmp_path):
    """Class 1, here, between the background and class 2; the mean is over class 2 alone."""
    args = load_script(PROBE).parse_args(["--csv_file", "a.csv", "--checkpoint", "b", "--bootstrap", "20"])
    cubes = [Cube(f"C{i}", Path(f"C{i}.h5"), "", f"C{i}", "test") for i in range(3)]
    scores = {"frozen": np.array([[0.9, 0.5], [0.7, 0.1], [0.8, np.nan]]), "spectrum of the pixel": np.ones((3, 2))}
    values, picture = np.ones((3, 8, 8), np.float32), np.full((8, 8), 2, np.uint8)
    pictures, to = [Picture("C0", values, picture, picture)], Results(tmp_path, cubes, args, DataReport(), {"cpus": 1})
    methods = write_segmentation(to, scores, {0: "out", 2: "spot"}, pictures, [450, 550, 650])
    assert {name: x.estimate for name, x in methods["frozen"].items()} == pytest.approx(
        {"mean": 0.3, "out": 0.8, "spot": 0.3}
    )
    assert read_json(tmp_path / "metrics.json")["classes"] == ["out", "spot"]
    table = read_csv(tmp_path / "predictions.csv")
    assert [list(row.values()) for row in table] == [
        ["C0", "C0", "0.9", "0.5"], ["C1", "C1", "0.7", "0.1"], ["C2", "C2", "0.8", ""],
    ]  # fmt: skip
    assert list(table[0])[2:] == ["dice_out", "dice_spot"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mean without out" in page
    assert "No problems found." in page


def test_labels_that_cannot_be_learnt_leave_the_report_that_explains_it(probe, demo, tmp_path):
    shutil.copytree(demo.parent, tmp_path / "data")
    table = tmp_path / "data" / demo.name
    write_csv(table, [row | {"label": ""} for row in read_csv(table)])
    with pytest.raises(UserError, match="a classification needs two labels among the train cubes, there is none"):
        probe(tmp_path / "run", "--csv_file", table)
    (counted,) = read_json(tmp_path / "run" / "data_report.json")["counts"]
    assert counted == {"reason": "no label", "action": "case skipped", "count": 24}


def test_unknown_pixels_are_shown_as_such():
    rng = np.random.default_rng(0)
    mask = rng.integers(3, size=(20, 20))
    values = rng.random((3, 20, 20)).astype(np.float32)

    def draw(mask):
        """(legend, mask as it is shown)"""
        fig = segmentations(
            [Picture("C", values, mask, mask % 3)] * 2, {0: "out", 1: "in", 2: "vessel"}, [450, 550, 650]
        )
        assert [ax.get_title(loc="left") for ax in fig.axes[:3]] == ["cube", "mask", "predicted"]
        return [text.get_text() for text in fig.legends[0].get_texts()], fig.axes[1].images[0].get_array()

    names, shown = draw(mask)
    assert names == ["out", "in", "vessel"]
    mask[4, 4] = IGNORED
    names, changed = draw(mask)
    assert names == ["out", "in", "vessel", "unknown"]
    assert bytes(changed[4, 4].tolist()).hex() == figures.GREY.lstrip("#")
    changed[4, 4] = shown[4, 4]
    np.testing.assert_array_equal(changed, shown)


# ------------------------------------------------------------------------------------------------ script


@pytest.fixture(scope="module")
def probe(trained, demo):
    """Runs the script in this process, without pictures: `probe(folder, *flags)` gives the folder."""
    script = load_script(PROBE)

    def probe_quickly(folder, *flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.figures.save", lambda *_: None)
            patch.setattr("core.report.Report.figures", lambda *_: None)
            patch.setattr(script, "PIXELS", 1000)
            common = ("--checkpoint", trained, "--csv_file", demo, "--save_dir", folder, *QUICK)
            try:
                script.main([str(flag) for flag in (*common, *flags)])
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
        return folder

    return probe_quickly


@pytest.fixture(scope="module")
def classified(trained, demo, tmp_path_factory):
    """A frozen classification, as a user would run it. Not to be written to."""
    folder = tmp_path_factory.mktemp("classified") / "run"
    done = run(PROBE, "--checkpoint", trained / "best", "--csv_file", demo, "--save_dir", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def segmented(trained, demo, tmp_path_factory):
    """A segmentation on the frozen encoder, as a user would run it. Not to be written to."""
    folder = tmp_path_factory.mktemp("segmented") / "run"
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", folder, *QUICK, "--task", "segment",
               "--epochs", 2, "--lr", 1e-2, "--class_names", "outside", "retina", "vessel", "disc", "lesion",
               "--nb_to_plot", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


# Six updates with small rates: with large ones, rounding differs visibly after a few.
FINETUNE = ("--finetune", "--epochs", 2, "--lr", 1e-3)


@pytest.fixture(scope="module")
def finetuned(probe, tmp_path_factory):
    """Not to be written to."""
    return probe(tmp_path_factory.mktemp("finetuned") / "run", *FINETUNE)


def test_a_classification_leaves_its_results(classified, demo):
    assert {path.name for path in classified.iterdir()} == {
        "args.json", "environment.json", "metrics.json", "metrics.jsonl", "predictions.csv", "report.html",
        "data_report.json", "best", "figures",
    }  # fmt: skip
    assert read_json(classified / "data_report.json") == {
        "cases": {"train": 15, "valid": 3, "test": 6}, "counts": [], "problems": [],
    }  # fmt: skip
    assert read_json(classified / "args.json")["finetune"] is False
    config = read_json(classified / "best" / "config.json")
    assert (config["kind"], config["task"]) == ("spectral probe", "classify")
    assert config["classes"] == ["lesion", "normal"]
    labels = [cube.label for split in ("train", "valid") for cube in read_cubes(demo)[split]]
    assert config["taught"] == {"classes": {name: labels.count(name) for name in config["classes"]}}
    assert (config["h5_key"], config["unit"], len(config["wavelengths"])) == (H5_KEY, "reflectance", 30)
    assert logged(classified) == [{"penalty": config["penalty"]}]


def test_the_numbers_are_those_of_the_predictions(classified, demo):
    table, metrics = read_csv(classified / "predictions.csv"), read_json(classified / "metrics.json")
    cubes = read_cubes(demo)["test"]
    for name in ("ID", "patient", "label"):
        assert [row[name] for row in table] == [getattr(c, name.lower()) for c in cubes]
    assert metrics["data"] == {"csv_file": str(demo), "split": "test", "cubes": 6, "patients": 4}
    assert list(metrics["methods"]) == ["frozen", "mean spectrum", "frequency alone"]
    lesion = np.array([row["label"] == "lesion" for row in table])
    p = np.array([[float(row[f"p_{name}"]) for name in ("lesion", "normal")] for row in table])
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    guess = p[:, 0] > p[:, 1]
    assert [row["predicted"] for row in table] == ["lesion" if is_lesion else "normal" for is_lesion in guess]
    found = metrics["methods"]["frozen"]
    assert found["auroc"]["estimate"] == pytest.approx(area(p[:, 0], lesion), rel=1e-6)
    assert found["accuracy"]["estimate"] == pytest.approx((guess == lesion).mean())
    assert metrics["confusion"] == [[int((a & b).sum()) for b in (guess, ~guess)] for a in (lesion, ~lesion)]
    assert metrics["methods"]["frequency alone"]["auroc"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    for values in metrics["methods"].values():
        for interval in values.values():
            assert interval["low"] <= interval["estimate"] <= interval["high"]


def pooled_features(mae, cubes):
    """(N, D), from the files on."""
    with torch.no_grad():
        return mae.encode(torch.stack([torch.from_numpy(read_cube(c.file)) for c in cubes])).pooled.numpy()


def fit_to(mae, cubes):
    """The linear probe and its penalty, for the demo's labels: 0 is lesion, 1 normal."""
    labels = np.array([c.label == "normal" for c in cubes], int)
    return LinearProbe.fit(pooled_features(mae, cubes), labels, [c.patient for c in cubes])


def test_a_frozen_classification_is_the_linear_probe_on_the_encoders_features(classified, trained, demo):
    """And the stored encoder is the one that was given."""
    mae, _ = MAESpectral.from_folder(trained)
    splits = read_cubes(demo)
    expected, penalty = fit_to(mae, splits["train"] + splits["valid"])
    table, p = read_csv(classified / "predictions.csv"), predict(expected, pooled_features(mae, splits["test"]))
    np.testing.assert_allclose([float(row["p_normal"]) for row in table], p[:, 1], atol=1e-4)
    assert read_json(classified / "best" / "config.json")["penalty"] == penalty
    model, _ = ProbeModel.from_folder(classified)
    with torch.no_grad():
        loaded = model(torch.from_numpy(read_cube(splits["test"][2].file))[None]).softmax(dim=1)
    assert float(loaded[0, 1]) == pytest.approx(float(table[2]["p_normal"]), abs=1e-5)
    weights = encoder_of(trained)
    assert_same(encoder_of(classified), weights)
    assert len(weights) > 20


def assert_report(folder, pictures, texts):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert loads_nothing(page)
    assert page.count("data:image/") == len(pictures)
    for text in (*texts, "95 % interval", "Not a medical device"):
        assert text in page
    for name in pictures:
        with Image.open(folder / "figures" / f"{name}.png") as figure:
            assert np.asarray(figure.convert("L")).std() > 10


def test_the_reports_are_one_file_each(classified, segmented):
    texts = ["The encoder was frozen", "mean spectrum", "frequency alone", "6", "4 patients"]
    assert_report(classified, ["roc", "confusion"], texts)
    assert_report(segmented, ["segmentations"], ["mean without outside", "vessel", "spectrum of the pixel"])
    assert (segmented / "figures" / "training.png").exists()


def test_another_run_is_not_overwritten(classified, probe):
    before = (classified / "metrics.json").read_bytes()
    with pytest.raises(UserError) as caught:
        probe(classified)
    assert str(caught.value).startswith(f"{classified} holds a run: ")
    assert "--overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (classified / "metrics.json").read_bytes() == before


def test_two_processes_classify_as_one_does(trained, demo, classified, tmp_path):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", tmp_path / "run", *QUICK, processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_json(folder / "metrics.json") for folder in (tmp_path / "run", classified))
    assert read_json(tmp_path / "run" / "environment.json")["processes"] == 2
    assert ours["methods"].keys() == theirs["methods"].keys()
    for method, values in theirs["methods"].items():
        for name, interval in values.items():
            assert ours["methods"][method][name] == pytest.approx(interval, rel=1e-5), (method, name)
    table, alone = (read_csv(folder / "predictions.csv") for folder in (tmp_path / "run", classified))
    assert [row["ID"] for row in table] == [row["ID"] for row in alone]
    np.testing.assert_allclose(*([float(row["p_normal"]) for row in t] for t in (table, alone)), atol=1e-5)


def test_random_weights_are_drawn_by_the_seed(probe, classified, trained, tmp_path):
    one, same = (probe(tmp_path / name, "--random_init") for name in "ab")
    assert_same(encoder_of(one), encoder_of(same))
    assert read_json(one / "metrics.json")["random_init"] is True
    assert "The encoder has random weights" in (one / "report.html").read_text(encoding="utf-8")
    ours, before = encoder_of(one), encoder_of(trained)
    assert (ours["blocks.0.attn.qkv.weight"] != before["blocks.0.attn.qkv.weight"]).all()
    state, known = (load_file(folder / "best" / "model.safetensors") for folder in (one, classified))
    for name in ("mae.mean", "mae.std"):
        np.testing.assert_array_equal(state[name], known[name])
    guesses = [[row["p_normal"] for row in read_csv(folder / "predictions.csv")] for folder in (one, classified)]
    assert guesses[0] != guesses[1]


def test_fine_tuning_starts_at_the_linear_probe(probe, trained, demo, tmp_path):
    """With a rate of 0 it stays there: fitted on train alone, as valid chooses the epoch."""
    probe(tmp_path / "run", "--finetune", "--epochs", 1, "--lr", 0)
    assert_same(encoder_of(tmp_path / "run"), encoder_of(trained))
    mae, _ = MAESpectral.from_folder(trained)
    splits = read_cubes(demo)
    expected, penalty = fit_to(mae, splits["train"])
    state = load_file(tmp_path / "run" / "best" / "model.safetensors")
    np.testing.assert_allclose(state["head.linear.weight"], expected.linear.weight.detach(), atol=1e-4)
    p = predict(expected, pooled_features(mae, splits["valid"]))
    right = [row[int(c.label == "normal")] for row, c in zip(p, splits["valid"], strict=True)]
    assert logged(tmp_path / "run")[0]["val/loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert read_json(tmp_path / "run" / "best" / "config.json")["penalty"] == penalty


def test_fine_tuning_moves_the_encoder(finetuned, trained):
    before, after = encoder_of(trained), load_file(finetuned / "last" / "model.safetensors")
    for name, values in before.items():
        assert (after[f"mae.encoder.{name}"] != values).any(), name
    assert next(iter(read_json(finetuned / "metrics.json")["methods"])) == "fine-tuned"
    rows = logged(finetuned)
    assert [row["update"] for row in rows] == [3, 6]
    best = min(rows, key=lambda row: row["val/loss"])
    assert read_json(finetuned / "best" / "config.json")["best"] == {"epoch": best["epoch"], "loss": best["val/loss"]}
    assert "was fine-tuned" in (finetuned / "report.html").read_text(encoding="utf-8")


def test_two_processes_fine_tune_as_one_with_large_batches(trained, demo, finetuned, tmp_path):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", tmp_path / "run", *QUICK, *FINETUNE,
               "--batch_size", 2, processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(logged(tmp_path / "run"), logged(finetuned), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    tables = (read_csv(folder / "predictions.csv") for folder in (tmp_path / "run", finetuned))
    np.testing.assert_allclose(*([float(row["p_normal"]) for row in table] for table in tables), atol=1e-4)


def test_resuming_a_finished_run_only_evaluates(probe, finetuned, tmp_path):
    folder = shutil.copytree(finetuned, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.csv", "metrics.jsonl")}
    for name in ("metrics.json", "predictions.csv", "report.html"):
        (folder / name).unlink()
    probe(folder, *FINETUNE, "--resume")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "report.html").exists()
    assert_same(encoder_of(folder), encoder_of(finetuned))


def test_a_segmentation_leaves_its_masks(segmented, demo, trained):
    """And the Dice of predictions.csv and metrics.json are theirs."""
    cubes, table = read_cubes(demo)["test"], read_csv(segmented / "predictions.csv")
    metrics = read_json(segmented / "metrics.json")
    names = ["outside", "retina", "vessel", "disc", "lesion"]
    assert metrics["classes"] == names
    assert {path.name for path in (segmented / "masks").iterdir()} == {f"{c.id}.png" for c in cubes}
    assert [row["ID"] for row in table] == [c.id for c in cubes]
    scores = np.full((6, 5), np.nan)
    for i, (case, row) in enumerate(zip(cubes, table, strict=True)):
        ours = read_mask(segmented / "masks" / f"{case.id}.png", (40, 40))
        truth = read_mask(case.mask_file, (40, 40))
        assert len(np.unique(ours)) > 1
        for k, name in enumerate(names):
            a, b = ours == k, truth == k
            if a.any() or b.any():
                scores[i, k] = 2 * (a & b).sum() / (a.sum() + b.sum())
                assert float(row[f"dice_{name}"]) == pytest.approx(scores[i, k], rel=1e-5)
            else:
                assert row[f"dice_{name}"] == ""
    found = metrics["methods"]["frozen"]
    known = np.isfinite(scores)
    means = [scores[known[:, k], k].mean() for k in range(5)]
    assert [found[name]["estimate"] for name in names] == pytest.approx(means, rel=1e-5)
    assert found["mean"]["estimate"] == pytest.approx(np.mean(means[1:]), rel=1e-5)
    assert found["retina"]["estimate"] > 0.7
    assert metrics["methods"]["spectrum of the pixel"]["disc"]["estimate"] > 0.6
    assert_same(encoder_of(segmented), encoder_of(trained))


def test_two_processes_segment_as_one_does(trained, demo, probe, tmp_path):
    """The encoder is frozen in both; and a cube's ID may hold a slash."""
    table = [row | {"ID": row["ID"].replace("_", "/")} for row in read_csv(demo)]
    for row in table:
        row |= {column: str(demo.parent / row[column]) for column in ("hs_file", "rgb_file", "mask_file")}
    write_csv(tmp_path / "data.csv", table)
    flags = ("--csv_file", tmp_path / "data.csv", "--task", "segment", "--epochs", 1, "--lr", 1e-3)
    alone = probe(tmp_path / "alone", *flags)
    done = run(PROBE, "--checkpoint", trained, "--save_dir", tmp_path / "both", *QUICK, *flags, "--batch_size", 2,
               "--nb_to_plot", 1, processes=2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (ours,), (theirs,) = logged(tmp_path / "both"), logged(alone)
    for name in ("update", "val/loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert_same(encoder_of(tmp_path / "both"), encoder_of(trained))
    masks = {path.relative_to(alone) for path in (alone / "masks").rglob("*.png")}
    assert len(masks) == 6
    for mask in masks:
        assert (read_mask(tmp_path / "both" / mask, (40, 40)) == read_mask(alone / mask, (40, 40))).mean() > 0.99


@pytest.fixture
def spoilt(demo, tmp_path):
    """A copy of the demo data, to be spoilt."""
    return shutil.copytree(demo.parent, tmp_path / "spoilt") / "dataset.csv"


def test_bad_cubes_are_left_out(probe, spoilt, tmp_path):
    """NaN, no label; and a label that only a spoilt cube of train has."""
    splits = read_cubes(spoilt)
    (bad, spare), (rare, missing, *_) = splits["train"][:2], splits["test"]
    values = read_cube(bad.file)
    values[3, 4, 5] = np.nan
    write_cube(bad.file, values)
    labels = {bad.id: "rare", rare.id: "rare", missing.id: ""}
    write_csv(spoilt, [row | {"label": labels.get(row["ID"], row["label"])} for row in read_csv(spoilt)])
    folder = probe(tmp_path / "run", "--csv_file", spoilt)
    report = read_json(folder / "data_report.json")
    assert report["cases"] == {"train": 14, "valid": 3, "test": 4}
    assert {p["where"].split(",")[0]: p["reason"] for p in report["problems"]} == {
        bad.id: "NaN or infinite values", rare.id: "label not in train", missing.id: "no label",
    }  # fmt: skip
    assert all(p["action"] == "case skipped" for p in report["problems"])
    assert read_json(folder / "metrics.json")["classes"] == ["lesion", "normal"]
    assert [row["ID"] for row in read_csv(folder / "predictions.csv")] == [c.id for c in splits["test"][2:]]
    assert spare.id not in json.dumps(report)


def test_splits_are_those_of_the_training(probe, trained, demo, tmp_path):
    """A table without the column is divided by the shares that the encoder's training had: no test cube was seen."""
    mae, _ = MAESpectral.from_folder(trained)
    _, config = load_model_folder(trained)
    save_model(tmp_path / "best", mae, config | {"split_fractions": (0.2, 0.5)})
    rows = [{name: cell for name, cell in row.items() if name != "split"} for row in read_csv(demo)]
    write_csv(tmp_path / "data.csv", [row | {"hs_file": str(demo.parent / row["hs_file"])} for row in rows])
    folder = probe(tmp_path / "run", "--csv_file", tmp_path / "data.csv", "--checkpoint", tmp_path / "best")
    test = [c.id for c in read_cubes(tmp_path / "data.csv", None, 0.2, 0.5)["test"]]
    assert [row["ID"] for row in read_csv(folder / "predictions.csv")] == test
    assert len(test) > len(read_cubes(tmp_path / "data.csv")["test"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ("--checkpoint nowhere", ["nowhere is not a model folder"]),
        ("--csv_file nowhere.csv", ["nowhere.csv"]),
        ("--h5_key /Other", ["no data set /Other: it holds /Cube/Images"]),
        ("--img_size 20 20", ["other size: 40x40 px, the model wants 20x20: --img_size 40"]),
        ("--img_size 44 44", ["patches of 10 px do not divide 44×44 px"]),
        ("--wavelengths 500:590:10", ["other number of bands: 30, not 10", "--wavelengths"]),
        ("--finetune --batch_size 16", ["15 training cases do not fill one update of 16", "lower --batch_size"]),
        ("--task segment --class_names a b", ["--class_names are 2, but the masks of train have the classes 0 to 4"]),
    ],
)
def test_mistakes_are_one_line(probe, tmp_path, flags, texts):
    with pytest.raises(UserError) as caught:
        probe(tmp_path / "run", *flags.split())
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in texts), caught.value


def test_missing_labels_and_splits_are_one_line(probe, spoilt, tmp_path):
    good = read_csv(spoilt)
    for change, flags, text in (
        (lambda row: row | {"label": "normal"}, (), "a classification needs two labels"),
        (lambda row: row | {"mask_file": ""}, ("--task", "segment"), "a segmentation needs masks"),
        (lambda row: row | {"label": row["label"] if row["split"] != "test" else ""}, (), "no test cube"),
        (lambda row: row | {"mask_file": row["mask_file"] if row["split"] != "valid" else ""}, ("--task", "segment"),
         "no valid cube"),
    ):  # fmt: skip
        write_csv(spoilt, [change(row) for row in good])
        with pytest.raises(UserError, match=text) as caught:
            probe(tmp_path / "run", "--csv_file", spoilt, *flags)
        assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_script_with_one_line(trained, demo, classified):
    done = run(PROBE, "--checkpoint", trained, "--csv_file", demo, "--save_dir", classified, *QUICK)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    assert "--overwrite" in done.stderr
