"""Hostile input to every project: a line that names it, or a counted skip. Never a traceback, never code from a file,
never 2 GiB of memory, never without end."""

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import hostile
from attempts import refusal
from files import read_csv, read_json
from hsi.files import H5_KEY
from launch import run


class Commands(NamedTuple):
    """predict.py up to its input, and train.py up to weights from elsewhere; {model} is a best/, {out} a folder."""

    predict: str
    weights: str = ""


PREDICT = "predict.py --output {out} "
COMMANDS = {
    "cephalometric": Commands(PREDICT + "--checkpoint {model} --image", "--backbone_weights"),
    "ct_multilabel": Commands(PREDICT + "--checkpoints {model} --input", "--backbone_weights"),
    "ear_teacher": Commands(PREDICT + "--checkpoint {model} --num_workers 0 --input"),
    "hyperspectral": Commands(PREDICT + "--checkpoint {model} --input"),
    "implant": Commands(PREDICT + "--checkpoints {model} --num_workers 0 --input", "--company_checkpoint"),
}
GOOD = {
    "cephalometric": "*.png",
    "ct_multilabel": "train_fixed/*/*/*.nii.gz",
    "ear_teacher": "*.jpg",
    "hyperspectral": "*.h5",
    "implant": "*.png",
}  # input that predict.py takes

# What is odd, and can be read or used all the same. Everything else is refused.
ODD_PICTURES = {"another kind", "EXIF of noise", "zeros 10500x10500 RGBA"}
ODD_DICOM = {"dcm, frames in words", "dcm, slope nan", "dcm, negative spacing", "dcm, start overwritten"}
READABLE = {
    "cephalometric": ODD_PICTURES | ODD_DICOM,
    "ct_multilabel": {"slope nan", "slope huge", "negative spacing"},  # another scale, or the same spacing, is believed
    "ear_teacher": ODD_PICTURES,
    "hyperspectral": set(),
    "implant": ODD_PICTURES | ODD_DICOM | {"dcm, unequal spacing"},
}
NEEDED = {  # by predict.py, of a config
    "cephalometric": {"project", "kind", "model", "sigma", "landmarks", "mean_shape", "ground_truth"},
    "ct_multilabel": {"project", "model", "slices", "labels", "tune_fraction", "prevalence", "calibration"},
    "ear_teacher": {"project", "kind", "model", "data"},
    "hyperspectral": {"project", "model", "wavelengths", "h5_key", "unit", "statistics", "split_fractions"},
    "implant": {"project", "kind", "model", "image_size", "margin", "modalities", "train_sizes"},
}
USABLE = {  # arguments that say nothing, or the same
    "cephalometric": set(),
    "ct_multilabel": set(),
    "ear_teacher": set(),
    "hyperspectral": {f"config in_chans {fault}" for fault in ("..-..-..-outside", "-1", "")},  # as many as wavelengths
    "implant": set(),
}
TRIED = {"cephalometric": 50, "ct_multilabel": 50, "ear_teacher": 50, "hyperspectral": 70, "implant": 60}  # models


@pytest.fixture(scope="module")
def model(small) -> Path:
    """The best/ of a training of one epoch."""
    folder = small.data.with_name(f"{small.project}_for_hostile_inputs")
    if not folder.exists():
        training = folder.with_name(f"{folder.name}.{os.getpid()}")
        done = run(*small.training(training, "--epochs", 1))
        assert done.returncode == 0, done.stderr
        try:
            training.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(training)
    return folder / "best"


def predicting(project: str, model: Path, out: Path) -> list[str]:
    script, *arguments = COMMANDS[project].predict.format(model=model, out=out).split()
    return [f"{project}/{script}", *arguments]


def test_models(small, model, attempts):
    """A model folder that is not as it was written is refused, or is used where it lacks nothing that counts."""
    found = hostile.models(attempts.inputs, model, attempts.marker)
    picture = sorted(small.data.rglob(GOOD[small.project]))[0]
    script, *rest = predicting(small.project, "{}", attempts.folder / "out")
    lines = [[*(argument.replace("{}", str(folder)) for argument in rest), picture] for folder in found.values()]
    outcomes = dict(zip(found, attempts(script, lines), strict=True))
    unnamed = {name for name, o in outcomes.items() if (line := refusal(o)) and str(found[name]) not in line}
    assert not unnamed
    used = {name for name, outcome in outcomes.items() if outcome["returncode"] == 0}
    unneeded = {f"config without {name}" for name in read_json(model / "config.json")}
    unneeded -= {f"config without {name}" for name in NEEDED[small.project]}
    assert used == unneeded | USABLE[small.project]
    assert len(outcomes) >= TRIED[small.project]


def hostile_inputs(small, attempts) -> tuple[dict[str, Path], list[Path], list]:
    """(name -> hostile input, good ones, arguments that name all of them) for predict.py."""
    folder, project = attempts.inputs, small.project
    if project == "ct_multilabel":
        good = sorted(small.data.rglob(GOOD[project]))[:2]
        found = hostile.volumes(folder, good[0])
    elif project == "hyperspectral":
        good = sorted(small.data.rglob(GOOD[project]))[:2]
        found = hostile.cubes(folder, good[0], H5_KEY)
    else:
        found = hostile.pictures(folder)
        good = [file for file in sorted((attempts.folder / "good_inputs").iterdir()) if file.suffix in (".png", ".tif")]
    found = {name: file for name, file in found.items() if not name.endswith("folder")}
    if project == "ear_teacher":  # which knows no DICOM
        found = {name: file for name, file in found.items() if file.suffix != ".dcm"}
    names = [str(file) for file in (*found.values(), *good)]
    if project in ("cephalometric", "ct_multilabel"):
        return found, good, names
    manifest = attempts.folder / ("manifest.json" if project == "implant" else "manifest.csv")
    strange = list(hostile.PATHS.values())
    if project == "implant":
        manifest.write_text(json.dumps([{"image": name} for name in [*names, *strange]]))
        return found, good, [manifest]
    with open(manifest, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["ID", "image", "hs_file"])
        for number, name in enumerate([*names, *(path for path in strange if path.isprintable())]):
            writer.writerow([number, name, name])
    return found, good, ["--csv_file" if project == "hyperspectral" else "--input", manifest]


RESULTS = {"cephalometric": ("landmarks.csv", "image"), "ct_multilabel": ("predictions.csv", "file"),
           "ear_teacher": ("codes.csv", "file"), "hyperspectral": ("features.csv", "file"),
           "implant": ("predictions.csv", "image")}  # fmt: skip


def test_inputs(small, model, attempts):
    """One call of predict.py on all hostile inputs and two good ones: each hostile one is listed, good ones done."""
    found, good, named = hostile_inputs(small, attempts)
    out = attempts.folder / "out"
    script, *arguments = predicting(small.project, model, out)
    if named[0] in ("--csv_file", "--input"):
        arguments = arguments[:-1]
    (outcome,) = attempts(script, [[*arguments, *named]])
    assert refusal(outcome) is None
    table, column = RESULTS[small.project]
    used = {os.path.realpath(row[column]) for row in read_csv(out / table)}
    assert {os.path.realpath(file) for file in good} <= used
    report = out / "data_report.json"
    told = json.dumps(read_json(report)["problems"]) if report.exists() else outcome["stdout"]
    listed = {name for name, file in found.items() if f"{file.parent.name}/{file.name}" in told}
    readable = {name for name, file in found.items() if os.path.realpath(file) in used}
    assert readable == READABLE[small.project]
    assert set(found) == listed | readable
    print(f"{small.project}: {len(found)} hostile inputs, {len(listed)} listed, {len(readable)} read")


def manifests(small, attempts) -> dict[str, tuple[dict[str, Path], set[str]]]:
    """Flag of predict.py -> (hostile files for it, which of them can be meant so)."""
    folder, good = attempts.inputs, attempts.folder / "good"
    good.mkdir()
    if small.project == "cephalometric":
        (good / "norms.json").write_text('{"N-Me": [118, 6]}')
        return {"--norms": (hostile.json_files(good / "norms.json", folder), {"no object"})}
    if small.project == "ct_multilabel":
        table = sorted((small.data / "CT-RATE" / "dataset" / "metadata").glob("*.csv"))[0]
        harmless = {
            "half",
            "tenth",
            "only a header",
            "NUL",
            "cells missing",
            "open quote",
        }  # tables without this volume
        return {"--metadata": (hostile.tables(table, folder), harmless)}
    if small.project == "hyperspectral":
        return {"--csv_file": (hostile.tables(small.data / "dataset.csv", folder), set())}
    if small.project == "implant":
        sizes = {"A": {"B": {"length": [8, 10], "diameter": [4]}}}
        (good / "catalogue.json").write_text(json.dumps(sizes))
        return {
            "--input": (
                hostile.json_files(small.data / "test.json", folder / "records", bad_sizes=[{"image": 7}]),
                set(),
            ),
            "--catalogue": (hostile.json_files(good / "catalogue.json", folder / "catalogue"), set()),
        }
    (good / "ears.csv").write_text(f"image,x0,y0,x1,y1\n{good}/a.png,1,1,9,9\n{good}/b.png,1,1,9,9\n")
    found = hostile.npys(folder / "npy", small.data / "test_teacher.npy", attempts.marker)
    return {"--input": (found | hostile.tables(good / "ears.csv", folder / "csv"), set())}


def test_manifests(small, model, attempts):
    """A hostile table, list or setting ends predict.py with a line that names it."""
    picture, refused = sorted(small.data.rglob(GOOD[small.project]))[0], 0
    for flag, (found, harmless) in manifests(small, attempts).items():
        script, *arguments = predicting(small.project, model, attempts.folder / "out")
        inputs = [] if flag in ("--input", "--csv_file") else [arguments[-1], picture]
        lines = [[*arguments[:-1], *inputs, flag, file] for file in found.values()]
        outcomes = dict(zip(found, attempts(script, lines), strict=True))
        used = {name for name, outcome in outcomes.items() if refusal(outcome) is None}
        assert used == harmless & set(found)
        assert not {name for name in set(found) - used if str(found[name]) not in refusal(outcomes[name])}
        refused += len(found) - len(used)
    print(f"{small.project}: {refused} manifests refused")
    assert refused >= 18


def test_weights(small, attempts):
    """Weights of other programs are refused in one line, and nothing in them is run."""
    if not (flag := COMMANDS[small.project].weights):
        pytest.skip("takes none")
    script, *arguments = small.training(attempts.folder / "out", "--epochs", 1, "--overwrite")
    found = hostile.weights(attempts.inputs, attempts.marker)
    outcomes = attempts(script, [[*arguments, flag, file] for file in found.values()])
    unnamed = {
        name for (name, file), o in zip(found.items(), outcomes, strict=True) if str(file) not in (refusal(o) or "")
    }
    assert not unnamed
    assert len(found) >= 60


NUMBERS = {"--lr": "nan inf -1", "--weight_decay": "nan -1", "--grad_clip": "nan -1", "--warmup_epochs": "nan inf -1",
           "--epochs": "0 -1 1e3", "--batch_size": "0 -1 nan", "--num_workers": "-1", "--seed": "-1",
           "--early_stopping_patience": "-1", "--accumulate_grad_batches": "0"}  # fmt: skip
OWN_NUMBERS = {
    "cephalometric": {"--sigma": "0 -1 nan", "--cvm_weight": "-1 nan inf"},
    "ct_multilabel": {"--tune_fraction": "-1 2 nan", "--cutmix_prob": "nan 2", "--dropout": "-1 nan 2"},
    "ear_teacher": {"--perceptual_weight": "-1 nan inf", "--margin": "nan -1 inf"},
    "hyperspectral": {"--mask_ratio": "nan -1 2", "--decode_ratio": "nan 2", "--base_lr": "nan -1"},
    "implant": {"--margin": "nan -1", "--dropout": "nan 2", "--embedding_lr_multiplier": "nan -1"},
}


def test_numbers(small, attempts):
    """A number on the command line that cannot be meant is refused, by its flag."""
    script, *arguments = small.training(attempts.folder / "out")
    numbers = [
        (flag, number) for flag, values in (NUMBERS | OWN_NUMBERS[small.project]).items() for number in values.split()
    ]
    outcomes = attempts(script, [[*arguments, f"{flag}={number}"] for flag, number in numbers])
    for number, outcome in zip(numbers, outcomes, strict=True):
        assert outcome["returncode"] == 2, number
        assert re.search(rf"error: argument .*{number[0]}\b.*: ", outcome["stderr"].splitlines()[-1]), number
