"""The scripts as users run them: trained, evaluated, on files of one's own."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from ceph.anatomy import SCHEMA
from ceph_training import SMALL, TRAIN, read_tree, train
from conftest import loads_nothing
from core.images import read_image
from files import dicom
from launch import run

ROOT = Path(__file__).resolve().parents[2]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_leaves_its_results(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"args.json", "environment.json", "metrics.jsonl", "data_report.json", "last", "best", "figures"} <= names
    logged = rows(trained)
    assert [row["epoch"] for row in logged] == [1, 2, 3]
    assert {"train/loss", "train/dark", "train/wing", "train/cvm", "val/mre_mm", "val/sdr_2mm"} <= set(logged[0])
    config = json.loads((trained / "best" / "config.json").read_text())
    assert config["schema"]["names"] == list(SCHEMA.names)
    assert config["model"]["image_size"] == [64, 64]
    assert np.shape(config["mean_shape"]) == (29, 2)
    with Image.open(trained / "figures" / "training.png") as figure:
        assert figure.width > 500


def test_the_logged_error_is_that_of_the_evaluation(demo_tree, trained, tmp_path):
    done = run(
        "cephalometric/evaluate.py", "--checkpoint", trained / "best", "--dataset_path", demo_tree, "--split", "valid",
        "--cache_dir", demo_tree.parent / "cache", "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "metrics.json").read_text())["mre"]["estimate"]
    assert min(row["val/mre_mm"] for row in rows(trained)) == pytest.approx(alone, rel=1e-4)


def test_the_references_command_line_starts_as_written(demo_tree, tmp_path):
    """All its flags; a small backbone is added, and its ImageNet weights come from a hub cache filled by hand."""
    hub = timm.get_pretrained_cfg("hrnet_w18_small").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / "hub" / f"models--{hub}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    save_file(timm.create_model("hrnet_w18_small", pretrained=False).state_dict(), snapshot / "model.safetensors")
    (tmp_path / "Aariz").symlink_to(demo_tree)
    written = """--dataset_path Aariz --batch_size 6 --epochs 200 --lr 1e-4 --warmup_epochs 10 --image_size 512 512
        --heatmap_size 128 --num_workers 6 --mixed_precision --cvm_weight 0.3
        --save_dir checkpoints_advanced_rtx3070ti --log_dir logs_advanced_rtx3070ti"""
    command = [sys.executable, str(ROOT / TRAIN), *written.split(), "--backbone", "hrnet_w18_small"]
    command += ["--expansion", "none"]  # a fifth of the time
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "checkpoints_advanced_rtx3070ti" / "metrics.jsonl"
    deadline = time.time() + 150
    while not metrics.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert metrics.exists()
    assert list((tmp_path / "logs_advanced_rtx3070ti").rglob("events.out.tfevents.*"))


def test_without_weights_the_way_out_is_one_line(demo_tree, tmp_path):
    done = run(
        TRAIN, "--dataset_path", demo_tree, "--save_dir", tmp_path / "run", "--cache_dir", demo_tree.parent / "cache",
        "--image_size", 64, 64, "--heatmap_size", 16,
    )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "--backbone_weights FILE" in errors[0]
    assert "--no-pretrained" in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dataset_path", "nowhere"], "nowhere: no such folder"),
        (["--image_size", "100", "100"], "multiples of 32"),
        (["--mixed_precision", "fp64"], "invalid choice"),
        (["--batch_size", "0"], "not at least 1"),
        (["--batch_size", "50"], "lower --batch_size"),
        (["--epoch", "3"], "unknown flag --epoch; did you mean --epochs?"),
        (["--ground_truth", "mine"], "invalid choice"),
        (["--resume", "nowhere"], "no training state there"),
    ],
)
def test_mistakes_end_in_one_line(demo_tree, tmp_path, arguments, text):
    save_dir = [] if "--resume" in arguments else ["--save_dir", tmp_path / "run"]
    data = [] if "--dataset_path" in arguments else ["--dataset_path", demo_tree]
    done = run(TRAIN, *data, *save_dir, "--cache_dir", demo_tree.parent / "cache", *SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_spoilt_tree_trains_on_the_rest_and_lists_the_losses(tree, tmp_path):
    for name in "hijk":
        tree.add("train", name)
    tree.edit("train", "a", "Senior", "S")
    tree.edit("train", "b", "Junior", "N", x="left")
    image = tree.image_file("train", "c")
    image.write_bytes(image.read_bytes()[:3000])
    done = train(tree.root, tmp_path / "run", "--epochs", 1, "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["cases"] == {"train": 6, "valid": 2}
    assert {row["reason"] for row in report["counts"]} == {
        "landmark missing", "coordinate is no number", "picture unreadable",
    }  # fmt: skip
    assert "picture unreadable" in done.stdout


def test_a_refusal_leaves_the_report_that_explains_it(tree, trained, tmp_path):
    """Of other landmarks, and of data that evaluate.py cannot use."""
    (tmp_path / "hand.json").write_text(json.dumps({"names": ["P1", "P2"]}))
    done = train(tree.root, tmp_path / "run", "--landmarks", tmp_path / "hand.json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "found A, ANS, Ar," in line
    assert "expected are those of hand: P1, P2; to train on others, give train.py --landmarks FILE.json" in line
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert {"reason": "unknown landmark", "action": "not used", "count": 29} in report["counts"]
    for identity in "fg":
        tree.image_file("test", identity).write_bytes(b"no picture")
    done = run(
        "cephalometric/evaluate.py", "--checkpoint", trained, "--dataset_path", tree.root, "--output", tmp_path / "out",
        "--cache_dir", tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 2
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert {"reason": "picture unreadable", "action": "left out", "count": 2} in report["counts"]


def test_uncalibrated_data_is_measured_in_px(tree, tmp_path):
    (tree.root / "cephalogram_machine_mappings.csv").unlink()
    done = train(tree.root, tmp_path / "run", "--epochs", 1, "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    assert "mre_mm" not in rows(tmp_path / "run")[0]
    done = run(
        "cephalometric/evaluate.py", "--checkpoint", tmp_path / "run", "--dataset_path", tree.root, "--cache_dir",
        tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "evaluation_test" / "metrics.json").read_text())
    assert metrics["unit"] == "px"
    assert metrics["data"]["uncalibrated"] == 2
    page = (tmp_path / "run" / "evaluation_test" / "report.html").read_text()
    assert "uncalibrated" in page
    assert " mm<" not in page


@pytest.fixture(scope="module")
def evaluated(demo_tree, trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    done = run(
        "cephalometric/evaluate.py", "--checkpoint", trained / "best", "--dataset_path", demo_tree, "--output", output,
        "--cache_dir", demo_tree.parent / "cache", "--bootstrap", 200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


def test_evaluation_against_its_own_predictions(demo_tree, evaluated):
    """MRE, SDR and baseline recomputed by hand from predictions.csv and the annotations."""
    metrics = json.loads((evaluated / "metrics.json").read_text())
    with open(evaluated / "predictions.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == metrics["data"]["cases"] == 3
    errors = []
    for row in table:
        readings = []
        for reader in ("Junior", "Senior"):
            path = demo_tree / f"test/Annotations/Cephalometric Landmarks/{reader} Orthodontists/{row['id']}.json"
            landmarks = {e["symbol"]: e["value"] for e in json.loads(path.read_text())["landmarks"]}
            readings.append([[landmarks[s]["x"], landmarks[s]["y"]] for s in SCHEMA.names])
        truth = np.mean(readings, axis=0)
        points = np.array([[float(row[f"{s}_x"]), float(row[f"{s}_y"])] for s in SCHEMA.names])
        errors.append(np.hypot(*(points - truth).T) * float(row["mm_per_px"]))
    assert metrics["unit"] == "mm"
    assert metrics["mre"]["estimate"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert metrics["mre"]["low"] <= metrics["mre"]["estimate"] <= metrics["mre"]["high"]
    assert metrics["sdr"]["2"]["estimate"] == pytest.approx(100 * np.mean(np.array(errors) <= 2), abs=0.1)
    assert len(metrics["by_landmark"]) == 29
    assert len(metrics["by_measurement"]) == 10
    assert metrics["baseline_mre"]["estimate"] > 0


def test_the_report_is_one_file_with_model_and_baseline(evaluated):
    page = (evaluated / "report.html").read_text()
    assert "Mean radial error" in page
    assert "Mean-shape baseline" in page
    assert "95 % interval" in page
    assert loads_nothing(page)
    assert page.count("data:image/") >= 5
    assert (evaluated / "figures" / "cumulative_error.png").exists()


def test_prediction_on_files_of_ones_own(demo_tree, trained, tmp_path):
    source = next((demo_tree / "test" / "Cephalograms").iterdir())
    for name in ("one.png", "two.tif", "other/one.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(source).convert("L").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    images = [tmp_path / n for n in ("one.png", "two.tif", "broken.png", "other/one.png")]
    output = tmp_path / "out"
    done = run(
        "cephalometric/predict.py", "--input", *images, "--checkpoint", trained / "best", "--output", output,
        "--pixel_size", "0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 of 4 pictures done" in done.stdout
    assert "broken.png" in done.stdout
    content = json.loads((output / "one.json").read_text())
    assert [entry["symbol"] for entry in content["landmarks"]] == list(SCHEMA.names)
    first = content["landmarks"][0]
    assert first["mm"]["x"] == pytest.approx(first["value"]["x"] * 0.1, abs=1e-3)
    assert 0 <= first["confidence"] <= 1.5
    assert content["landmarks"] == json.loads((output / "two.json").read_text())["landmarks"]
    assert (output / "one_2.json").exists()
    with open(output / "one_measurements.csv") as file:
        table = {row["measurement"]: row for row in csv.DictReader(file)}
    assert len(table) == 10
    assert table["FH-MP"]["status"] in ("low", "normal", "high")
    with Image.open(output / "one_tracing.png") as tracing:
        assert max(tracing.size) == 1400
    with open(output / "landmarks.csv") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["one", "two", "one_2"]


def test_prediction_on_dicom(demo_tree, trained, tmp_path):
    """Of 12 bits, dark where the rays go through, without suffix: the same picture, and its header has the scale."""
    pixels = read_image(next((demo_tree / "test" / "Cephalograms").iterdir())).pixels
    inverted = np.round((255 - pixels) * (4095 / 255)).astype(np.uint16)
    header = {"PhotometricInterpretation": "MONOCHROME1"}
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "plain.png")
    dicom(tmp_path / "in" / "1.2.840.5", inverted, **header, PixelSpacing=[0.1, 0.1])
    dicom(tmp_path / "in" / "oblong.dcm", inverted, **header, PixelSpacing=[0.1, 0.2])
    dicom(tmp_path / "in" / "wrong.dcm", inverted, **header, PixelSpacing=[100, 100])
    done = run("cephalometric/predict.py", "--input", tmp_path / "in", "--checkpoint", trained, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 pictures done" in done.stdout
    assert "not square" in done.stdout
    assert "not plausible" in " ".join(done.stdout.split())
    plain, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "1.2.840.5"))
    assert (plain["pixel_size"], ours["pixel_size"]) == (None, 0.1)
    for theirs, entry in zip(plain["landmarks"], ours["landmarks"], strict=True):
        assert entry["value"] == pytest.approx(theirs["value"], abs=0.5)  # grey levels are stretched


def test_prediction_without_a_pixel_size_is_uncalibrated(demo_tree, trained, tmp_path):
    source = next((demo_tree / "test" / "Cephalograms").iterdir())
    arguments = ("--input", source, "--checkpoint", trained / "best", "--output", tmp_path)
    done = run("cephalometric/predict.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "uncalibrated" in done.stdout
    content = json.loads((tmp_path / f"{source.stem}.json").read_text())
    assert content["pixel_size"] is None
    assert content["landmarks"][0]["mm"] is None
    for bad in (["--pixel_size", "96"], ["--norms", tmp_path / "none.json"], ["--checkpoint", tmp_path]):
        failed = run("cephalometric/predict.py", *arguments, *bad)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
    folder = run("cephalometric/predict.py", *arguments[2:], "--input", source.parent)
    assert "3 of 3 pictures done" in folder.stdout
    nothing = run("cephalometric/predict.py", *arguments, "--input", tmp_path / "missing.png")
    assert nothing.returncode == 2
    assert "missing.png" in nothing.stdout


def test_the_demo_reader_reads_predictions_as_annotations(demo_tree, trained, tmp_path):
    """predict.py writes the schema that the Aariz reader reads."""
    shutil.copytree(demo_tree, tmp_path / "Aariz")
    source = next((tmp_path / "Aariz" / "test" / "Cephalograms").iterdir())
    done = run("cephalometric/predict.py", "--input", source, "--checkpoint", trained, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "Aariz/test/Annotations/Cephalometric Landmarks"
    for reader in ("Junior", "Senior"):
        shutil.copy(tmp_path / "out" / f"{source.stem}.json", folder / f"{reader} Orthodontists")
    cases, _ = read_tree(tmp_path / "Aariz")
    case = next(case for case in cases["test"] if case.id == source.stem)
    with open(tmp_path / "out" / "landmarks.csv") as file:
        row = next(csv.DictReader(file))
    inside = np.isfinite(case.points).all(axis=1)
    points = np.array([[float(row[f"{s}_x"]), float(row[f"{s}_y"])] for s in SCHEMA.names])
    assert inside.sum() > 20
    assert np.allclose(case.points[inside], points[inside], atol=0.02)
