"""Reader of the Aariz data set (Khalid et al. 2022, "CEPHA29"), forgiving to folders and strict to numbers.

Aariz/{train,valid,test}/Cephalograms/<id>.png|jpg|jpeg|bmp
      …/Annotations/Cephalometric Landmarks/{Junior Orthodontists,Senior Orthodontists}/<id>.json
      …/Annotations/CVM Stages/<id>.json
Aariz/cephalogram_machine_mappings.csv      cephalogram_id, machine, pixel_size (mm/px), image_format, mode
"""

import csv
import json
import math
from pathlib import Path

import numpy as np

from ceph_landmarks import LANDMARKS
from cephalograms import PIXEL_SIZES, Cephalogram
from core.args import UserError
from core.images import SUFFIXES, ImageError, picture_size
from core.validation import DataReport, content_keys, find_leaks

SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
GROUND_TRUTHS = ("mean", "senior", "junior", "official_ceil")


def read_aariz(
    root: Path, ground_truth: str = "mean", splits: tuple[str, ...] = tuple(SPLITS)
) -> tuple[dict[str, list[Cephalogram]], DataReport]:
    """The cases of `splits`, {split: [Cephalogram, …] sorted by id}, and a report of all that is wrong with the tree.

    `ground_truth`: the un-rounded mean of both readers, one of them, or `official_ceil` (the mean rounded up, as in
    the data set's own loader: half a pixel off on average). Names of folders may differ in case. A bad case is left
    out, a bad landmark becomes NaN; each is reported. A picture that stands in two splits stays in the later one of
    train, valid, test only. Raises UserError if there is no such tree, or no usable case in one of `splits`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --dataset_path takes the Aariz folder, with train/, valid/ and test/")
    report, folders = DataReport(), _split_folders(root)
    if not folders:
        raise UserError(f"{root} holds none of train/, valid/, test/; --dataset_path takes the Aariz folder")
    machines = _read_machines(root, report)
    cases = {split: _read_split(folder, machines, ground_truth, report) for split, folder in folders.items()}
    _leave_out_leaks(cases, report)
    cases = {split: cases.get(split, []) for split in splits}
    report.cases = {split: len(found) for split, found in cases.items()}
    for split in splits:
        if not cases[split]:
            reasons = "; ".join(f"{count} × {reason}" for (reason, _), count in report.counts().items())
            raise UserError(f"{root}: no usable case in {split}/" + (f" ({reasons})" if reasons else ""))
    return cases, report


def _child(folder: Path | None, *names: str) -> Path | None:
    """The child of `folder` with one of these names, whatever its case."""
    if folder is None or not folder.is_dir():
        return None
    wanted = {name.casefold() for name in names}
    return next((child for child in sorted(folder.iterdir()) if child.name.casefold() in wanted), None)


def _split_folders(root: Path) -> dict[str, Path]:
    return {split: child for split, names in SPLITS.items() if (child := _child(root, *names))}


def _read_machines(root: Path, report: DataReport) -> dict[str, tuple[str, float | None]]:
    """Case id -> (device, mm per px or None)."""
    file = _child(root, "cephalogram_machine_mappings.csv")
    if file is None:
        report.add("no machine table", root / "cephalogram_machine_mappings.csv", "all cases uncalibrated, px only")
        return {}
    machines: dict[str, tuple[str, float | None]] = {}
    with open(file, encoding="utf-8-sig", newline="") as table:
        for row in csv.DictReader(table):
            row = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if key}
            identity, text = row.get("cephalogram_id", ""), row.get("pixel_size", "")
            where = f"{file}, {identity}"
            try:
                pixel_size = float(text)
            except ValueError:
                pixel_size = math.nan
            if not PIXEL_SIZES[0] <= pixel_size <= PIXEL_SIZES[1]:
                report.add("no plausible pixel size", where, "kept, uncalibrated, px only", f"pixel_size {text!r}")
                pixel_size = None
            if identity in machines and machines[identity][1] != pixel_size:
                report.add("two pixel sizes", where, "kept, uncalibrated, px only", f"{machines[identity][1]}, {text}")
                pixel_size = None
            machines[identity] = (row.get("machine") or "unknown", pixel_size)
    return machines


def _files(folder: Path | None, suffixes: tuple[str, ...], report: DataReport) -> dict[str, Path]:
    """Stem -> file, sorted. Of two files with one stem the first counts."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder and folder.is_dir() else ():
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            report.add("duplicate id", file, "file left out", f"{found[file.stem].name} is used")
            continue
        found[file.stem] = file
    return found


def _read_split(folder: Path, machines: dict, ground_truth: str, report: DataReport) -> list[Cephalogram]:
    annotations = _child(folder, "Annotations")
    landmarks = _child(annotations, "Cephalometric Landmarks")
    pictures = _files(_child(folder, "Cephalograms"), SUFFIXES, report)
    readers = {
        "junior": _files(_child(landmarks, "Junior Orthodontists"), (".json",), report),
        "senior": _files(_child(landmarks, "Senior Orthodontists"), (".json",), report),
    }
    if ground_truth in readers:
        readers = {ground_truth: readers[ground_truth]}
    stages = _files(_child(annotations, "CVM Stages"), (".json",), report)
    for identity in sorted(set().union(*readers.values()) - set(pictures)):
        file = next(files[identity] for files in readers.values() if identity in files)
        report.add("annotation without picture", file, "annotation left out")
    cases = []
    for identity, image in pictures.items():
        files = {reader: files[identity] for reader, files in readers.items() if identity in files}
        if not files:
            report.add("picture without annotation", image, "case left out")
            continue
        try:
            size = picture_size(image)
        except (ImageError, FileNotFoundError) as error:
            report.add("picture unreadable", image, "case left out", error)
            continue
        readings = {reader: _read_points(file, size, report) for reader, file in files.items()}
        readings = {reader: points for reader, points in readings.items() if points is not None}
        if not readings:
            report.add("picture without annotation", image, "case left out", "none is readable")
            continue
        for reader in sorted(set(readers) - set(readings)):
            report.add("one reader only", image, "kept", f"no {reader} annotation")
        points = np.mean(list(readings.values()), axis=0)  # NaN where either reader's point is bad
        if ground_truth == "official_ceil":
            points = np.ceil(points)
        if np.isnan(points).all():
            report.add("no landmark left", image, "case left out")
            continue
        if identity not in machines and machines:
            report.add("not in the machine table", image, "kept, uncalibrated, px only")
        device, mm_per_px = machines.get(identity, ("unknown", None))
        stage = _read_stage(stages[identity], report) if identity in stages else None
        if stage is None and identity not in stages:
            report.add("no CVM stage", image, "kept, stage unknown")
        cases.append(Cephalogram(identity, image, size, points, mm_per_px, device, stage))
    return cases


def _read_points(file: Path, size: tuple[int, int], report: DataReport) -> np.ndarray | None:
    """Points (29, 2) of one reader, NaN for what is missing, no number, or outside the picture. None: unreadable."""
    points = np.full((len(LANDMARKS), 2), np.nan)
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))["landmarks"]
        values = {_symbol(entry["symbol"]): entry["value"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        report.add("annotation unreadable", file, "annotation left out", f"{type(error).__name__}: {error}")
        return None
    for row, symbol in enumerate(LANDMARKS):
        if symbol not in values:
            report.add("landmark missing", file, "landmark left out", symbol)
            continue
        try:
            x, y = float(values[symbol]["x"]), float(values[symbol]["y"])
        except (ValueError, TypeError, KeyError):
            x = y = math.nan
        if not (math.isfinite(x) and math.isfinite(y)):
            report.add("coordinate is no number", file, "landmark left out", f"{symbol}: {values[symbol]}")
        elif not (-0.5 <= x <= size[0] - 0.5 and -0.5 <= y <= size[1] - 0.5):
            detail = f"{symbol}: {x:g}, {y:g} in a picture of {size[0]}×{size[1]}"
            report.add("landmark outside the picture", file, "landmark left out", detail)
        else:
            points[row] = x, y
    return points


def _symbol(text: str) -> str:
    """Soft-tissue points end in a backtick; other apostrophes mean the same."""
    return text.strip().translate(str.maketrans("'’´′", "````"))


def _read_stage(file: Path, report: DataReport) -> int | None:
    try:
        stage = int(json.loads(file.read_text(encoding="utf-8-sig"))["cvm_stage"]["value"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        report.add("CVM stage unreadable", file, "kept, stage unknown", f"{type(error).__name__}: {error}")
        return None
    if not 1 <= stage <= 6:
        report.add("CVM stage unreadable", file, "kept, stage unknown", f"{stage} is not 1-6")
        return None
    return stage


def _leave_out_leaks(cases: dict[str, list[Cephalogram]], report: DataReport) -> None:
    """Takes pictures out of train and valid that also stand, by id or by content, in a later split."""
    keys = content_keys(case.image for found in cases.values() for case in found)
    by_id = {split: {case.id: case.id for case in found} for split, found in cases.items()}
    by_content = {split: {case.id: keys[case.image] for case in found} for split, found in cases.items()}
    order = list(SPLITS)
    for places in [*find_leaks(by_id).values(), *find_leaks(by_content).values()]:
        last = max(places, key=lambda place: order.index(place[0]))
        for split, identity in places:
            leaking = [case for case in cases[split] if case.id == identity and split != last[0]]
            for case in leaking:
                cases[split].remove(case)
                report.add("picture in two splits", case.image, f"left out of {split}", f"also {last[0]}/{last[1]}")
