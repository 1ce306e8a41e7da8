"""Both stages as users run them: the refiner trained, evaluated, used; and two evaluations compared."""

import csv
import json
import shutil

import numpy as np
import pytest

from ceph.anatomy import SCHEMA
from ceph.evaluation import differences
from ceph.predictor import Predictor
from ceph.report import compare
from conftest import ROOT, loads_nothing
from core.checkpoints import seal
from core.errors import UserError
from files import logged, read_json
from launch import AGREEING, run

REFINER = "cephalometric/train_refiner.py"
TINY = "--backbone hrnet_w18_small --no-pretrained --crop_size 64 --crop_mm_per_px 0.4 --heatmap_size 16 --sigma 1.5 "
TINY += "--batch_size 2 --crops_per_image 4 --lr 2e-3 --warmup_epochs 1 --num_workers 0 --epochs 2 --log_with none"


def refiner_flags(tree, trained, folder):
    return ["--checkpoint", trained / "best", "--dataset_path", tree, "--save_dir", folder, "--cache_dir",
            tree.parent / "cache", *TINY.split()]  # fmt: skip


@pytest.fixture(scope="module")
def refiner(demo_tree, trained, tmp_path_factory):
    """A run of train_refiner.py. Not to be written to."""
    folder = tmp_path_factory.mktemp("refiner")
    done = run(REFINER, *refiner_flags(demo_tree, trained, folder))
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(tree, trained, output, *flags, processes=1):
    done = run(
        "cephalometric/evaluate.py", "--checkpoint", trained, "--dataset_path", tree, "--output", output,
        "--cache_dir", tree.parent / "cache", "--bootstrap", 100, "--num_workers", 0, "--batch_size", 2, *flags,
        processes=processes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def evaluations(demo_tree, trained, refiner, tmp_path_factory):
    """Folders of evaluate.py: stage 1 alone, and both."""
    folder = tmp_path_factory.mktemp("evaluations")
    evaluate(demo_tree, trained, folder / "alone")
    evaluate(demo_tree, trained, folder / "both", "--refiner", refiner, "--refine_crops", 1)
    return folder


def test_training_leaves_its_results(refiner, trained):
    rows = logged(refiner)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train/loss", "train/dark", "train/wing", "val/mre_mm", "val/sdr_2mm"} <= set(rows[0])
    config = read_json(refiner / "best" / "config.json")
    assert (config["kind"], config["mm_per_px"]) == ("landmark refiner", 0.4)
    assert config["stage_1"]["checkpoint"] == str(trained / "best")


def test_validation_is_the_evaluation_with_one_crop(refiner, demo_tree, trained, tmp_path):
    """The logged error of the best epoch is what evaluate.py finds on the same split."""
    evaluate(demo_tree, trained, tmp_path, "--refiner", refiner, "--refine_crops", 1, "--split", "valid")
    best = min(row["val/mre_mm"] for row in logged(refiner))
    assert read_json(tmp_path / "metrics.json")["mre"]["estimate"] == pytest.approx(best, rel=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(refiner, demo_tree, trained, tmp_path):
    flags = refiner_flags(demo_tree, trained, tmp_path / "run")
    assert run(REFINER, *flags, "--epochs", 2, "--early_stopping_patience", 0).returncode == 0
    shutil.rmtree(tmp_path / "run" / "last")  # the epoch before is left
    done = run(REFINER, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert [row["val/mre_mm"] for row in logged(tmp_path / "run")] == [row["val/mre_mm"] for row in logged(refiner)]


def test_two_processes_agree(demo_tree, trained, refiner, evaluations, tmp_path):
    flags = refiner_flags(demo_tree, trained, tmp_path / "run")
    done = run(AGREEING, ROOT / REFINER, *flags, "--epochs", 1, processes=2)
    assert done.returncode == 0, done.stderr
    assert "weights agree: True (2)" in done.stdout
    evaluate(demo_tree, trained, tmp_path / "both", "--refiner", refiner, "--refine_crops", 1, processes=2)
    ours, theirs = (read_json(folder / "both" / "metrics.json") for folder in (tmp_path, evaluations))
    assert ours["mre"]["estimate"] == pytest.approx(theirs["mre"]["estimate"], rel=1e-4)


def test_the_report_shows_what_stage_2_adds(evaluations):
    alone, both = (read_json(evaluations / name / "metrics.json") for name in ("alone", "both"))
    assert alone["stage_1"] is None
    for measure in ("mre", "sdr"):
        assert both["stage_1"][measure] == alone[measure]
    difference = both["stage_1"]["difference"]["MRE"]["estimate"]
    assert difference == pytest.approx(both["mre"]["estimate"] - alone["mre"]["estimate"])
    assert both["seconds_per_picture"]["stage 2"] > 0
    page = (evaluations / "both" / "report.html").read_text()
    assert loads_nothing(page)
    assert "stage 1 alone" in page
    assert "stage 1 alone" not in (evaluations / "alone" / "report.html").read_text()


def test_prediction_with_everything(demo_tree, trained, refiner, tmp_path):
    image = next((demo_tree / "test" / "Cephalograms").iterdir())
    flags = ["--input", image, "--checkpoint", trained, "--refiner", refiner, "--tta", "10"]
    for folder, more in (("mm", ["--pixel_size", 0.1]), ("px", []), ("alone", [])):
        done = run("cephalometric/predict.py", *flags[: 4 if folder == "alone" else 6], *more, "--output",
                   tmp_path / folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run("cephalometric/predict.py", *flags, "--pixel_size", 0.1, "--output", tmp_path / "tta")
    assert done.returncode == 0, done.stderr
    points = {}
    for folder in ("mm", "px", "alone", "tta"):
        entries = read_json(tmp_path / folder / f"{image.stem}.json")["landmarks"]
        points[folder] = np.array([[entry["value"]["x"], entry["value"]["y"]] for entry in entries])
    assert np.array_equal(points["px"], points["alone"])  # no scale, no crops
    assert not np.allclose(points["mm"], points["alone"], atol=0.5)
    assert not np.allclose(points["mm"], points["tta"], atol=0.1)


def test_uncalibrated_cases_are_left_out_and_listed(tree, trained, tmp_path):
    for number in (0, 3):  # of train, of valid
        tree.rows[number][2] = ""
    tree.write_machines()
    folder = tmp_path / "run"
    done = run(REFINER, *refiner_flags(tree.root, trained, folder), "--epochs", 1, "--crop_mm_per_px", 0.1)
    assert done.returncode == 0, done.stderr
    problems = read_json(folder / "data_report.json")["problems"]
    assert sum(problem["action"] == "left out: crops are cut in mm" for problem in problems) == 2
    for row in tree.rows:
        row[2] = ""
    tree.write_machines()
    done = run(REFINER, *refiner_flags(tree.root, trained, folder), "--overwrite")
    assert done.returncode == 2
    assert "has a pixel size" in done.stderr


def test_one_stage_is_not_taken_for_the_other(demo_tree, trained, refiner, tmp_path):
    image = next((demo_tree / "test" / "Cephalograms").iterdir())
    common = ["--input", image, "--output", tmp_path]
    swapped = run("cephalometric/predict.py", *common, "--checkpoint", trained, "--refiner", trained)
    assert swapped.returncode == 2
    assert "holds a model of kind 'landmark model', not 'landmark refiner'" in swapped.stderr
    swapped = run("cephalometric/predict.py", *common, "--checkpoint", refiner)
    assert "holds a model of kind 'landmark refiner', not 'landmark model'" in swapped.stderr


def test_a_refiner_of_other_landmarks_is_refused(trained, refiner, tmp_path):
    """The same K under other names: the weights would fit."""
    shutil.copytree(refiner / "best", tmp_path / "best")
    config = read_json(tmp_path / "best" / "config.json")
    names = [f"P{i}" for i in range(29)]
    config["schema"] |= {"name": "other", "names": names}
    config["taught"]["landmarks"] = dict.fromkeys(names, 1)
    (tmp_path / "best" / "config.json").write_text(json.dumps(config))
    seal(tmp_path / "best")
    with pytest.raises(UserError, match=r"knows the 29 landmarks of other, .* the 29 of aariz29; train the refiner"):
        Predictor(trained, tmp_path / "best")


# -------------------------------------------------------------------------------------------------------- comparison


def test_differences_by_hand():
    a = np.array([[1.0, 3.0], [2.0, np.nan], [np.nan, np.nan]])
    b = np.array([[0.5, 2.0], [1.0, 9.0], [1.0, 1.0]])
    found = differences(a, b, resamples=50)
    assert found["MRE"].estimate == pytest.approx((0.5 + 2 + 1) / 3 - (1 + 3 + 2) / 3)
    assert found["SDR 2"].estimate == pytest.approx(100 * (3 - 2) / 3)
    assert found["MRE"].low <= found["MRE"].estimate <= found["MRE"].high


def test_pairing_narrows_the_interval():
    """Hard cases are hard for both models."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(2, 1, (60, 1)) * np.ones(29)
    a = hard + rng.uniform(0, 0.2, hard.shape)
    found = differences(a, a - 0.1, resamples=300)["MRE"]
    assert found.high < 0
    assert found.high - found.low < 1e-9


def test_two_evaluations_compared(evaluations, tmp_path):
    folders = [evaluations / name for name in ("alone", "both")]
    done = run("cephalometric/evaluate.py", "--compare", *folders, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 cases in both" in done.stdout
    result = read_json(tmp_path / "comparison.json")
    both = read_json(evaluations / "both" / "metrics.json")
    assert result["difference"]["MRE"]["estimate"] == pytest.approx(
        both["stage_1"]["difference"]["MRE"]["estimate"], abs=1e-3
    )
    assert set(result["mre_by_landmark"]) == set(SCHEMA.names)
    assert loads_nothing((tmp_path / "comparison.html").read_text())


def test_what_cannot_be_compared(evaluations, tmp_path):
    for name in ("px", "others"):
        shutil.copytree(evaluations / "alone", tmp_path / name)
    file = tmp_path / "px" / "predictions.csv"
    file.write_text(file.read_text().replace("_mm,", "_px,").replace("mre_mm", "mre_px"))
    file = tmp_path / "others" / "predictions.csv"
    with open(file) as text:
        rows = list(csv.reader(text))
    with open(file, "w", newline="") as text:
        csv.writer(text).writerows([rows[0], *([f"x{row[0]}", *row[1:]] for row in rows[1:])])
    for name, message in (("px", "is in mm"), ("others", "no case in common"), ("nothing", "no predictions.csv")):
        with pytest.raises(UserError, match=message):
            compare([evaluations / "alone", tmp_path / name], tmp_path / "out", None, {})
    done = run("cephalometric/evaluate.py", "--split", "test")
    assert done.returncode == 2
    assert "--checkpoint" in done.stderr
