"""Data of which one file is hostile: train.py refuses them in a line that names them, or lists what it leaves out."""

import os
import shutil
from pathlib import Path

import hostile
from attempts import Attempts, refusal
from hsi.files import H5_KEY
from small_trainings import COMMANDS, SmallTraining

ANNOTATIONS = "Aariz/train/Annotations"
FILES = {  # of a project's data -> the kind of what can be wrong with it
    "cephalometric": {
        "Aariz/cephalogram_machine_mappings.csv": "table",
        f"{ANNOTATIONS}/Cephalometric Landmarks/Senior Orthodontists/*0001.json": "json",
        f"{ANNOTATIONS}/CVM Stages/*0001.json": "json",
        "Aariz/train/Cephalograms/*0001.*": "any",
    },
    "ct_multilabel": {"slices/manifest.csv": "table", "slices/settings.json": "json", "slices/train/*.h5": "any"},
    "ear_teacher": {"train_teacher.npy": "npy", "images/*": "any"},
    "hyperspectral": {"dataset.csv": "table", "dataset_stats.json": "json", "cubes/*_R.h5": "cube"},
    "implant": {"train.json": "json", "images/*": "any"},
}
USED = {
    "cephalometric": {"tenth", "NUL"},  # a table that lacks cases: it is they who are listed
    "hyperspectral": {"cube, one pixel"},  # a cube all the same
}
MEASURING = 1  # place of hyperspectral's statistics in its preparation: they read the cubes first


def spoilt(kind: str, good: Path, folder: Path, marker: Path) -> dict[str, Path]:
    """What is wrong -> a hostile file in `folder`, for the place of the good one."""
    if kind == "table":
        return hostile.tables(good, folder)
    if kind == "json":
        return hostile.json_files(good, folder)
    if kind == "npy":
        return hostile.npys(folder, good, marker)
    if kind == "cube":
        return hostile.cubes(folder, good, H5_KEY)
    folder.mkdir(parents=True)
    return hostile.spoil(good, folder)


def exchange(file: Path, other: Path) -> None:
    """Puts the other one, whatever it is, in place of the file."""
    file.unlink()
    if other.is_symlink():
        file.symlink_to(file.name if os.readlink(other) == other.name else "gone")
    elif other.is_fifo():
        os.mkfifo(file)
    elif other.is_dir():
        file.mkdir()
    else:
        os.link(other, file)


def test_training_on_hostile_data(small: SmallTraining, attempts: Attempts):
    """Each time a copy of the data, with one file exchanged, and an epoch if it comes to that."""
    commands, number, used = COMMANDS[small.project], 0, set()
    for pattern, kind in FILES[small.project].items():
        place = sorted(small.data.glob(pattern))[0].relative_to(small.data)
        found = spoilt(kind, small.data / place, attempts.inputs / str(number), attempts.marker)
        line = commands.prepare[MEASURING] if kind == "cube" else f"{commands.train} --epochs 1"
        lines, places = [], []
        for file in found.values():
            data, out = (attempts.folder / name / str(number) for name in ("data", "runs"))
            shutil.copytree(small.data, data, copy_function=os.link)
            exchange(data / place, file)
            script, *arguments = line.format(data=data, out=out).split()
            lines.append(arguments)
            places.append((data, out / "data_report.json"))
            number += 1
        outcomes = attempts(f"{small.project}/{script}", lines)
        for name, (data, report), outcome in zip(found, places, outcomes, strict=True):
            if refused := refusal(outcome):
                assert str(data) in refused, (place.name, name)
                continue
            told = outcome["stdout"] + (report.read_text() if report.exists() else "")
            if place.stem not in told:
                used.add(name)
    print(f"{small.project}: {number} times one hostile file")
    assert used == USED.get(small.project, set())
