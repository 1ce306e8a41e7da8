"""Shared parts of the data set readers: folders, annotations of several readers, leakage between splits."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ceph.anatomy import Anatomy
from ceph.dataset import Cephalogram
from core.errors import UserError
from core.images import ImageError, picture_size
from core.validation import DataReport, content_keys, find_leaks

SPLITS = ("train", "valid", "test")
GROUND_TRUTHS = ("mean", "senior", "junior", "official_ceil")
SHOWN = 40  # maximum number of names in a message, and of characters in a name

Places = dict[str, tuple[object, object]]  # landmark -> unparsed x, y of a file


def child(folder: Path | None, *names: str) -> Path | None:
    """Entry of `folder` with one of these names, case-insensitive; None without one."""
    if folder is None or not folder.is_dir():
        return None
    wanted = {name.casefold() for name in names}
    return next((found for found in sorted(folder.iterdir()) if found.name.casefold() in wanted), None)


def files_in(folder: Path | None) -> list[Path]:
    """Entries of a folder; none without folder."""
    return list(folder.iterdir()) if folder and folder.is_dir() else []


def files_by_id(
    files: Iterable[Path],
    suffixes: tuple[str, ...],
    report: DataReport,
    id_of: Callable[[Path], str | None] = lambda file: file.stem,
) -> dict[str, Path]:
    """Id -> file, sorted. Duplicate ids (first file kept) and files with id None are left out and reported."""
    found: dict[str, Path] = {}
    for file in sorted(files, key=str):  # ten times faster than pathlib's comparison
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


@dataclass
class Reading:
    """State of reading a data set: anatomy, ground truth, unknown landmarks; data problems are added to `report`."""

    anatomy: Anatomy
    ground_truth: str  # one of GROUND_TRUTHS
    report: DataReport
    strangers: dict[str, list[Path]] = field(default_factory=dict)  # unknown landmark -> files
    fits: bool = False  # whether any file has a landmark of the anatomy

    def annotated(
        self,
        pictures: dict[str, Path],
        readers: dict[str, dict[str, Path]],
        read_places: Callable[[Path, "Reading"], Places | None],
    ) -> Iterator[tuple[str, Path, tuple[int, int], np.ndarray]]:
        """(id, picture, (width, height) in px, points (K, 2) native px) of each case with a landmark.

        `readers`: junior, senior -> {id: file}; `read_places(file, self)`: content of one file, None if unreadable.
        Points by ground truth: unrounded mean of both readers, one reader, or `official_ceil`, the mean rounded up; NaN
        if either reader's point is bad.
        """
        report = self.report
        if self.ground_truth in readers:
            readers = {self.ground_truth: readers[self.ground_truth]}
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
                report.add("picture unreadable", image, "left out", error)
                continue
            places = {reader: read_places(file, self) for reader, file in files.items()}
            places = {reader: found for reader, found in places.items() if found is not None}
            readings = {reader: self._points(found, files[reader], size) for reader, found in places.items()}
            if not readings:
                report.add("picture without annotation", image, "case left out", "none is readable")
                continue
            for reader in sorted(set(readers) - set(readings)):
                report.add("one reader only", image, "kept", f"no {reader} annotation")
            points = np.mean(list(readings.values()), axis=0)
            if self.ground_truth == "official_ceil":
                points = np.ceil(points)
            if np.isnan(points).all():
                report.add("no landmark left", image, "case left out")
                continue
            yield identity, image, size, points

    def _points(self, places: Places, file: Path, size: tuple[int, int]) -> np.ndarray:
        """Points (K, 2) native px; NaN for coordinates that are no number or outside the picture."""
        names, add = self.anatomy.names, self.report.add
        for name in places.keys() - names:
            self.strangers.setdefault(name, []).append(file)
        self.fits = self.fits or not places.keys().isdisjoint(names)
        with suppress(LookupError, ValueError, TypeError):  # fast path for files without problem
            points = np.array([places[name] for name in names], float)
            if points.shape == (len(names), 2) and ((points >= -0.5) & (points <= np.array(size) - 0.5)).all():
                return points
        points = np.full((len(names), 2), np.nan)
        for row, name in enumerate(names):
            if name not in places:
                continue
            try:
                x, y = map(float, places[name])
            except (ValueError, TypeError):
                x = y = math.nan
            if not (math.isfinite(x) and math.isfinite(y)):
                detail = f"{name}: {', '.join(map(str, places[name]))}"
                add("coordinate is no number", file, "landmark left out", detail)
            elif not (-0.5 <= x <= size[0] - 0.5 and -0.5 <= y <= size[1] - 0.5):
                detail = f"{name}: {x:g}, {y:g} in a picture of {size[0]}×{size[1]}"
                add("landmark outside the picture", file, "landmark left out", detail)
            else:
                points[row] = x, y
        return points

    def usable(
        self, cases: dict[str, list[Cephalogram]], splits: tuple[str, ...], root: Path
    ) -> dict[str, list[Cephalogram]]:
        """Cases of `splits` without leakage; counts and unknown landmarks are added to the report. Raises UserError if
        no landmark is known or a split has no case."""
        schema, report = self.anatomy.schema, self.report
        expected = f"expected are those of {schema.name}: {_listed(schema.names)}"
        for name, files in sorted(self.strangers.items()):
            detail = f"{_listed([name])}, in {len(files)} files; {expected}"
            report.add("unknown landmark", files[0], "not used", detail)
        if self.strangers and not self.fits:
            raise UserError(
                f"{root}: no landmark in its files is known: found {_listed(sorted(self.strangers))}; {expected}; to "
                "train on others, give train.py --landmarks FILE.json"
            )
        _leave_out_leaks(cases, report)
        cases = {split: cases.get(split, []) for split in splits}
        report.cases = {split: len(found) for split, found in cases.items()}
        for split in splits:
            if not cases[split]:
                reasons = "; ".join(f"{count} × {reason}" for (reason, _), count in report.counts().items())
                raise UserError(f"{root}: no usable case in {split}/" + (f" ({reasons})" if reasons else ""))
        return cases


def _listed(names: Sequence[str]) -> str:
    """Names in one line, shortened."""
    shown = ", ".join(repr(name)[1:-1][:SHOWN] for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _leave_out_leaks(cases: dict[str, list[Cephalogram]], report: DataReport) -> None:
    """Removes pictures from train and valid that also occur, by id or content, in a later split."""
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
