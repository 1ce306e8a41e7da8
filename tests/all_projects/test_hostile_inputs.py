"""Hostile input to every project: a line that names it, or a counted skip. Never a traceback, never code from a file,
never 2 GiB of memory, never without end."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import hostile
from attempts import refusal
from files import read_csv, read_json, write_csv
from launch import run


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


def test_models(small, model, attempts):
    """A model folder that is not as it was written is refused, or is used where it lacks nothing that counts."""
    found = hostile.models(attempts.inputs, model, attempts.marker)
    picture = sorted(small.data.rglob(small.hostile["good"]))[0]
    script, *rest = small.prediction("{}", attempts.folder / "out")
    lines = [[*(argument.replace("{}", str(folder)) for argument in rest), picture] for folder in found.values()]
    outcomes = dict(zip(found, attempts(script, lines), strict=True))
    unnamed = {name for name, o in outcomes.items() if (line := refusal(o)) and str(found[name]) not in line}
    assert not unnamed
    used = {name for name, outcome in outcomes.items() if outcome["returncode"] == 0}
    unneeded = {f"config without {name}" for name in read_json(model / "config.json")}
    unneeded -= {f"config without {name}" for name in small.hostile["needed"]}
    assert used == unneeded | set(small.hostile["unneeded"])  # arguments that say nothing, or the same
    assert len(outcomes) >= small.hostile["models"]


def hostile_inputs(small, attempts) -> tuple[dict[str, Path], list[Path], list]:
    """(name -> hostile input, good ones, arguments that name all of them) for predict.py."""
    folder, kind, listed = attempts.inputs, small.hostile["inputs"], small.hostile.get("listed_in")
    if kind in ("volumes", "cubes"):
        good = sorted(small.data.rglob(small.hostile["good"]))[:2]
        found = {"volumes": hostile.volumes, "cubes": hostile.cubes}[kind](folder, good[0])
    else:
        found = hostile.pictures(folder)
        good = [file for file in sorted((attempts.folder / "good_inputs").iterdir()) if file.suffix in (".png", ".tif")]
    found = {name: file for name, file in found.items() if not name.endswith("folder")}
    if kind == "pictures without DICOM":
        found = {name: file for name, file in found.items() if file.suffix != ".dcm"}
    names = [str(file) for file in (*found.values(), *good)]
    if not listed:
        return found, good, names
    manifest, strange = attempts.folder / listed["file"], list(hostile.PATHS.values())
    if manifest.suffix == ".json":
        manifest.write_text(json.dumps([{"image": name} for name in [*names, *strange]]))
    else:
        rows = [*names, *(path for path in strange if path.isprintable())]
        write_csv(manifest, [{"ID": number, "image": name, "hs_file": name} for number, name in enumerate(rows)])
    return found, good, [listed["flag"], manifest]


def test_inputs(small, model, attempts):
    """One call of predict.py on all hostile inputs and two good ones: each hostile one is listed, good ones done."""
    found, good, named = hostile_inputs(small, attempts)
    out = attempts.folder / "out"
    script, *arguments = small.prediction(model, out)
    if named[0] in ("--csv_file", "--input"):
        arguments = arguments[:-1]
    (outcome,) = attempts(script, [[*arguments, *named]])
    assert refusal(outcome) is None
    table, column = small.hostile["table"], small.hostile["column"]
    used = {os.path.realpath(row[column]) for row in read_csv(out / table)}
    assert {os.path.realpath(file) for file in good} <= used
    report = out / "data_report.json"
    told = json.dumps(read_json(report)["problems"]) if report.exists() else outcome["stdout"]
    listed = {name for name, file in found.items() if f"{file.parent.name}/{file.name}" in told}
    readable = {name for name, file in found.items() if os.path.realpath(file) in used}
    assert readable == set(small.hostile["readable"])
    assert set(found) == listed | readable
    print(f"{small.project}: {len(found)} hostile inputs, {len(listed)} listed, {len(readable)} read")


KINDS = {"json": "json", "table": "csv", "npy": "npy"}  # -> suffix


def hostile_manifests(manifest: dict, small, attempts, number: int) -> dict[str, Path]:
    """Name -> hostile file, for what a flag of predict.py reads: a file of the demo data, or `content`."""
    folder, good = attempts.inputs / str(number), attempts.folder / f"good_{number}.{KINDS[manifest['kind']]}"
    if "file" in manifest:
        good = sorted(small.data.glob(manifest["file"]))[0]
    elif manifest["kind"] == "json":
        good.write_text(json.dumps(manifest["content"]))
    else:
        good.write_text(manifest["content"])
    if manifest["kind"] == "npy":
        return hostile.npys(folder, good, attempts.marker)
    if manifest["kind"] == "json":
        return hostile.json_files(good, folder, **manifest.get("more", {}))
    return hostile.tables(good, folder)


def test_manifests(small, model, attempts):
    """A hostile table, list or setting ends predict.py with a line that names it."""
    picture, refused = sorted(small.data.rglob(small.hostile["good"]))[0], 0
    for number, manifest in enumerate(small.hostile["manifests"]):
        found = hostile_manifests(manifest, small, attempts, number)
        script, *arguments = small.prediction(model, attempts.folder / "out")
        inputs = [] if manifest["flag"] in ("--input", "--csv_file") else [arguments[-1], picture]
        lines = [[*arguments[:-1], *inputs, manifest["flag"], file] for file in found.values()]
        outcomes = dict(zip(found, attempts(script, lines), strict=True))
        used = {name for name, outcome in outcomes.items() if refusal(outcome) is None}
        assert used == set(manifest.get("harmless", ())) & set(found)  # they can be meant so
        assert not {name for name in set(found) - used if str(found[name]) not in refusal(outcomes[name])}
        refused += len(found) - len(used)
    print(f"{small.project}: {refused} manifests refused")
    assert refused >= 18


def test_weights(small, attempts):
    """Weights of other programs are refused in one line, and nothing in them is run."""
    if not (flag := small.hostile.get("weights")):
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


def test_numbers(small, attempts):
    """A number on the command line that cannot be meant is refused, by its flag."""
    script, *arguments = small.training(attempts.folder / "out")
    numbers = [
        (flag, number) for flag, values in (NUMBERS | small.hostile["numbers"]).items() for number in values.split()
    ]
    outcomes = attempts(script, [[*arguments, f"{flag}={number}"] for flag, number in numbers])
    for number, outcome in zip(numbers, outcomes, strict=True):
        assert outcome["returncode"] == 2, number
        assert re.search(rf"error: argument .*{number[0]}\b.*: ", outcome["stderr"].splitlines()[-1]), number
