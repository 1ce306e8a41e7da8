"""What the readers of the data sets share: folders, points of several doctors, pictures that leak between splits."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ceph.dataset import Cephalogram
from ceph.landmarks import LANDMARKS
from core.errors import UserError
from core.images import ImageError, picture_size
from core.validation import DataReport, content_keys, find_leaks

SPLITS = ("train", "valid", "test")
GROUND_TRUTHS = ("mean", "senior", "junior", "official_ceil")


def child(folder: Path | None, *names: str) -> Path | None:
    """The child of `folder` with one of these names, whatever its case."""
    if folder is None or not folder.is_dir():
        return None
    wanted = {name.casefold() for name in names}
    return next((found for found in sorted(folder.iterdir()) if found.name.casefold() in wanted), None)


def files_in(folder: Path | None) -> list[Path]:
    return list(folder.iterdir()) if folder and folder.is_dir() else []


def files_by_id(
    files: Iterable[Path],
    suffixes: tuple[str, ...],
    report: DataReport,
    id_of: Callable[[Path], str | None] = lambda file: file.stem,
) -> dict[str, Path]:
    """Id -> file, sorted. Of two files with one id the first counts; a file whose id is None is left out."""
    found: dict[str, Path] = {}
    for file in sorted(files, key=str):  # pathlib's own order takes ten times as long
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        identity = id_of(file)
        if identity is None:
            report.add("not a name of the data set", file, "file left out")
        elif identity in found:
            report.add("duplicate id", file, "file left out", f"{found[identity].name} is used")
        else:
            found[identity] = file
    return found


def annotated(
    pictures: dict[str, Path],
    readers: dict[str, dict[str, Path]],
    ground_truth: str,
    read_points: Callable[[Path, tuple[int, int], DataReport], np.ndarray | None],
    report: DataReport,
) -> Iterator[tuple[str, Path, tuple[int, int], np.ndarray]]:
    """(id, picture, size (width, height) px, points (29, 2) native px) of each case that has a landmark.

    `readers`: junior and senior -> {id: file}; `read_points(file, size, report)` gives the points of one file, or None
    if it is unreadable. The points are what `ground_truth` names: the un-rounded mean of both readers, one of them, or
    `official_ceil`, the mean rounded up. NaN where either reader's point is bad.
    """
    if ground_truth in readers:
        readers = {ground_truth: readers[ground_truth]}
    for identity in sorted(set().union(*readers.values()) - set(pictures)):
        file = next(files[identity] for files in readers.values() if identity in files)
        report.add("annotation without picture", file, "annotation left out")
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
        readings = {reader: read_points(file, size, report) for reader, file in files.items()}
        readings = {reader: points for reader, points in readings.items() if points is not None}
        if not readings:
            report.add("picture without annotation", image, "case left out", "none is readable")
            continue
        for reader in sorted(set(readers) - set(readings)):
            report.add("one reader only", image, "kept", f"no {reader} annotation")
        points = np.mean(list(readings.values()), axis=0)
        if ground_truth == "official_ceil":
            points = np.ceil(points)
        if np.isnan(points).all():
            report.add("no landmark left", image, "case left out")
            continue
        yield identity, image, size, points


def checked_points(
    values: Mapping[str, tuple[object, object]], file: Path, size: tuple[int, int], report: DataReport
) -> np.ndarray:
    """Points (29, 2) of the x, y that a file gives for symbols; NaN for what is no number or outside the picture."""
    with suppress(LookupError, ValueError, TypeError):  # nearly always nothing is wrong, and this is fast
        points = np.array([values[symbol] for symbol in LANDMARKS], float)
        if points.shape == (len(LANDMARKS), 2) and ((points >= -0.5) & (points <= np.array(size) - 0.5)).all():
            return points
    points = np.full((len(LANDMARKS), 2), np.nan)
    for row, symbol in enumerate(LANDMARKS):
        if symbol not in values:
            continue
        try:
            x, y = map(float, values[symbol])
        except (ValueError, TypeError):
            x = y = math.nan
        if not (math.isfinite(x) and math.isfinite(y)):
            detail = f"{symbol}: {', '.join(map(str, values[symbol]))}"
            report.add("coordinate is no number", file, "landmark left out", detail)
        elif not (-0.5 <= x <= size[0] - 0.5 and -0.5 <= y <= size[1] - 0.5):
            detail = f"{symbol}: {x:g}, {y:g} in a picture of {size[0]}×{size[1]}"
            report.add("landmark outside the picture", file, "landmark left out", detail)
        else:
            points[row] = x, y
    return points


def usable(
    cases: dict[str, list[Cephalogram]], splits: tuple[str, ...], root: Path, report: DataReport
) -> dict[str, list[Cephalogram]]:
    """The cases of `splits` without leaks, counted in the report. Raises UserError if a split has none."""
    _leave_out_leaks(cases, report)
    cases = {split: cases.get(split, []) for split in splits}
    report.cases = {split: len(found) for split, found in cases.items()}
    for split in splits:
        if not cases[split]:
            reasons = "; ".join(f"{count} × {reason}" for (reason, _), count in report.counts().items())
            raise UserError(f"{root}: no usable case in {split}/" + (f" ({reasons})" if reasons else ""))
    return cases


def _leave_out_leaks(cases: dict[str, list[Cephalogram]], report: DataReport) -> None:
    """Takes pictures out of train and valid that also stand, by id or by content, in a later split."""
    keys = content_keys(case.image for found in cases.values() for case in found)
    by_id = {split: {case.id: case.id for case in found} for split, found in cases.items()}
    by_content = {split: {case.id: keys[case.image] for case in found} for split, found in cases.items()}
    kept = {(split, case.id): case.image for split, found in cases.items() for case in found}
    for places in [*find_leaks(by_id).values(), *find_leaks(by_content).values()]:
        last = max(places, key=lambda place: SPLITS.index(place[0]))
        for place in places:
            if place[0] != last[0] and (image := kept.pop(place, None)):
                report.add("picture in two splits", image, f"left out of {place[0]}", f"also {last[0]}/{last[1]}")
    for split, found in cases.items():
        cases[split] = [case for case in found if (split, case.id) in kept]
