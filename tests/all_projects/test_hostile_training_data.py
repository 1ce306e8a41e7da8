"""Data of which one file is hostile: train.py refuses them in a line that names them, or lists what it leaves out."""

import os
import shutil
from pathlib import Path

import hostile
from attempts import Attempts, refusal
from projects import SmallTraining, words


def spoilt(kind: str, good: Path, folder: Path, marker: Path) -> dict[str, Path]:
    """What is wrong -> a hostile file in `folder`, for the place of the good one."""
    if kind == "table":
        return hostile.tables(good, folder)
    if kind == "json":
        return hostile.json_files(good, folder)
    if kind == "npy":
        return hostile.npys(folder, good, marker)
    if kind == "cube":
        return hostile.cubes(folder, good)
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
    number, used = 0, set()
    for pattern, kind in small.hostile["training"].items():
        place = sorted(small.data.glob(pattern))[0].relative_to(small.data)
        found = spoilt(kind, small.data / place, attempts.inputs / str(number), attempts.marker)
        reading, more = small.tests["train"], ["--epochs", "1"]
        if kind in small.hostile.get("prepared_from", ()):  # a step of the preparation reads it first
            reading, more = small.tests["prepare"][small.hostile["prepared_from"][kind]], []
        lines, places = [], []
        for file in found.values():
            data, out = (attempts.folder / name / str(number) for name in ("data", "runs"))
            shutil.copytree(small.data, data, copy_function=os.link)
            exchange(data / place, file)
            script, *arguments = words(reading, data=data, out=out)
            lines.append([*arguments, *more])
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
    assert used == set(small.hostile.get("tolerated", ()))
