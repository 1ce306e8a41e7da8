"""Reading and checking of manifests (.npy, CSV, or folder of pictures with .pts files as of iBUG), and splits.

Points and boxes are xy in px after EXIF orientation, with pixel centres at integers: a picture spans
[-0.5, width - 0.5]. A box is (x0, y0, x1, y1).
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.args import ArgumentParser
from core.errors import UserError
from core.files import distinct
from core.images import SUFFIXES, ImageError, picture_size
from core.landmarks import Schema
from core.processes import in_threads
from core.splits import position, refuse_shared_patients
from core.validation import DataReport, find_leaks
from ear.entries import BOX_COLUMNS, BOX_FORMATS, Entry, Fault, read_entries, subject_folders

SMALLEST_PICTURE, SMALLEST_BOX = 8, 2  # side, px
MANY = 0.1  # share of the boxes
FAR = 0.25  # share of the longer side of the picture; landmarks further outside are errors
SIDES = {"l": "left", "left": "left", "r": "right", "right": "right", "": ""}
LEFT_OUT = "left out"
NO_PICTURE, NO_POINTS, NO_POINT_KNOWN = "no such picture", "no landmarks", "no landmark known"
SMALL_BOX = f"box smaller than {SMALLEST_BOX} px"
WAYS_OUT = {
    NO_PICTURE: "paths are relative to the manifest, or to the folder that --data_root names",
    NO_POINTS: "give a manifest with landmarks, or .pts files beside the pictures",
    SMALL_BOX: "give boxes in px, and their format with --box_format; without any, the whole pictures are used",
}


@dataclass(frozen=True)
class Ear:
    """One ear in a picture."""

    id: str  # relative path of the picture without suffix; _2, _3 … for further ears in it
    image: Path
    box: tuple[float, float, float, float] | None  # None: the whole picture
    landmarks: np.ndarray | None  # (K, 2) float32, NaN = unknown
    subject: str
    side: str  # "left", "right" or "" = unknown
    subject_known: bool = True  # False: guessed from the path


def add_reading_arguments(parser: ArgumentParser, box_format: str | None = "xyxy") -> None:
    """Adds the arguments of `read_manifest`. `box_format`: default; None = that of the training."""
    of_training = "" if box_format else " (default: that of the training)"
    parser.add_argument("--data_root", type=Path, help="base folder of relative image paths (default: the manifest's)")
    parser.add_argument(
        "--box_format", choices=BOX_FORMATS, default=box_format, help=f"box format of .npy manifests, px{of_training}"
    )


def read_manifest(
    path: Path, data_root: Path | None = None, box_format: str = "xyxy", report: DataReport | None = None,
    landmarks: bool = False, schema: Schema | None = None,
) -> list[Ear]:  # fmt: skip
    """Usable ears of a manifest, in order; data problems are added to `report`.

    `path` is one of
    - .npy: a dict of image_paths and optionally bboxes, landmarks (N, K, 2), subjects and sides, one entry per ear;
    - .csv: column image; optionally box columns (x0,y0,x1,y1 or x,y,width,height or cx,cy,width,height), subject, side,
      and landmarks as NAME_x and NAME_y, returned in the order of `schema` (default: `named_schema`); landmarks of
      other names are reported and ignored;
    - a folder: all pictures below it, with landmarks of a .pts file of the same name.
    Paths are relative to `data_root` (default: the manifest). `box_format` (of .npy): xyxy, xywh with the top-left
    corner, or cxcywh with the centre.

    Default box: extent of the landmarks, or without them the whole picture. Default subject: folder of the picture,
    except those that sort pictures, as train; if all have the same, the file name up to _L or _R, the side. With
    `landmarks`, ears with missing or invalid landmarks are left out, otherwise kept without them. Only the headers of
    the pictures are read. Raises UserError for an invalid file, and without usable ear.
    """
    path = Path(path)
    if data_root and not Path(data_root).is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    root = path if path.is_dir() else Path(data_root or path.parent)
    report = DataReport() if report is None else report
    listed = len(report.problems)
    entries = list(read_entries(path, box_format, schema, report))
    if not entries:
        contents = f"no picture ({', '.join(SUFFIXES)})" if path.is_dir() else "no ear"
        raise UserError(f"{path} holds {contents}; give a .npy, a .csv or a folder that does")
    boxes = [_or_fault(entry.numbers) for entry in entries]
    _refuse_misread_boxes(path, boxes, entries[0].box_format)
    ears = _usable(entries, boxes, root, report, landmarks)
    if not ears:
        left_out = [problem for problem in report.problems[listed:] if problem.action == LEFT_OUT]
        reason, count = Counter(problem.reason for problem in left_out).most_common(1)[0]
        example = next(problem for problem in left_out if problem.reason == reason)
        example = ": ".join(filter(None, (example.where, example.detail)))
        way_out = WAYS_OUT.get(reason, "correct the manifest")
        raise UserError(f"{path}: none of its {len(entries)} ears is usable; {count} × {reason} ({example}); {way_out}")
    return ears


# --------------------------------------------------------------------------------------------------------- usable ears


def _usable(
    entries: list[Entry], boxes: list[np.ndarray | Fault | None], root: Path, report: DataReport, landmarks: bool
) -> list[Ear]:
    root = Path(os.path.abspath(root))
    images = [Path(os.path.abspath(root / entry.image.replace("\\", "/"))) for entry in entries]
    sizes, folders = _sizes(images), subject_folders(images, root)
    all_points = [_or_fault(entry.points) for entry in entries]
    counts = Counter(len(points) for points in all_points if isinstance(points, np.ndarray))
    count = max(counts, key=counts.get, default=0)  # most frequent number of landmarks
    ears, seen = [], {}
    for entry, image, box, points in zip(entries, images, boxes, all_points, strict=True):
        try:
            size = _or_raise(sizes[image] if entry.image else Fault(NO_PICTURE, "no path"))
            box, cut = _box_inside(_or_raise(box), size)
            try:
                points = _checked_points(_or_raise(points), count, size, entry.where, report)
            except Fault as fault:
                if landmarks:
                    raise
                if entry.landmarks is not None:
                    report.add(fault.reason, entry.where, "kept without landmarks", fault.detail)
                points = None
            if box is None and points is not None:
                box = _extent(points, size)
            if (first := seen.setdefault((image, box), entry.where)) != entry.where:
                raise Fault("the same picture and box twice", f"as {first}")
        except Fault as fault:
            report.add(fault.reason, entry.where, LEFT_OUT, fault.detail)
            continue
        if cut:
            report.add("box partly outside the picture", entry.where, "kept, box cut", cut)
        side, stem = _side_and_stem(entry, image, report)
        subject = entry.subject or folders[image] or stem
        below = image.with_suffix("").relative_to(root if image.is_relative_to(root) else image.anchor)
        ears.append(Ear(below.as_posix(), image, box, points, subject, side, bool(entry.subject)))
    return [replace(ear, id=name) for ear, name in zip(ears, distinct(ear.id for ear in ears), strict=True)]


def _or_fault(read: Callable[[], np.ndarray | None]) -> np.ndarray | Fault | None:
    """Result of `read`, or the Fault that it raises, for `_or_raise`."""
    try:
        return read()
    except Fault as fault:
        return fault


def _or_raise(value):
    if isinstance(value, Fault):
        raise value
    return value


def _sizes(images: list[Path]) -> dict[Path, tuple[int, int] | Fault]:
    """(width, height) in px of each picture after EXIF orientation, from its header; or its Fault."""
    distinct = list(dict.fromkeys(images))
    return dict(zip(distinct, in_threads(lambda image: _or_fault(lambda: _size(image)), distinct), strict=True))


def _size(image: Path) -> tuple[int, int]:
    try:
        width, height = picture_size(image)
    except FileNotFoundError:
        raise Fault(NO_PICTURE, image) from None
    except ImageError as error:
        raise Fault("picture unreadable", error) from error
    if min(width, height) < SMALLEST_PICTURE:
        raise Fault(f"picture smaller than {SMALLEST_PICTURE} px", f"{image}: {width}×{height}")
    return width, height


def _refuse_misread_boxes(path: Path, boxes: list[np.ndarray | Fault | None], box_format: str) -> None:
    """Raises UserError if the boxes are evidently not in px, or in another format."""
    numbers = np.array([box for box in boxes if isinstance(box, np.ndarray)]).reshape(-1, 4)
    if numbers.any() and np.abs(numbers).max() <= SMALLEST_BOX:  # boxes given by their centre may exceed 1 slightly
        raise UserError(
            f"{path}: all boxes lie between 0 and 1, as shares of the picture; multiply them by its width and height"
        )
    swapped = int((numbers[:, 2:] < numbers[:, :2]).any(axis=1).sum())
    if swapped > MANY * len(numbers):
        raise UserError(
            f"{path}: {swapped} of {len(numbers)} boxes end before they begin, read as {box_format}; "
            f"say what they are with --box_format {' or '.join(BOX_COLUMNS)}"
        )


def _box_inside(box: np.ndarray | None, size: tuple[int, int]) -> tuple[tuple[float, ...] | None, str]:
    """Box clipped to a picture of `size` (width, height), None without one; and details if over 1 px was cut. Raises
    Fault for boxes that are empty, small or outside."""
    if box is None:
        return None, ""
    detail = f"{', '.join(f'{number:g}' for number in box)} in a picture of {size[0]}×{size[1]}"
    if (box[2:] - box[:2] < SMALLEST_BOX).any():
        raise Fault(SMALL_BOX, detail)
    inside = _clipped(box, size)
    if (inside[2:] - inside[:2] < SMALLEST_BOX).any():
        raise Fault("box outside the picture", detail)
    if np.abs(inside - box).max() <= 1:  # accepts boxes from 0 to width
        return tuple(box.tolist()), ""
    return tuple(inside.tolist()), detail


def _clipped(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.clip(box, -0.5, np.array([*size, *size]) - 0.5)


def _checked_points(
    points: np.ndarray | None, count: int, size: tuple[int, int], where: str, report: DataReport
) -> np.ndarray:
    """Landmarks (`count`, 2) float32 px; NaN, and reported, if not finite or far outside. Raises Fault."""
    if points is None:
        raise Fault(NO_POINTS)
    if len(points) != count:
        raise Fault("another number of landmarks", f"{len(points)}, most others have {count}")
    points, unknown = points.copy(), ~np.isfinite(points).all(axis=1)
    margin = FAR * max(size)
    with np.errstate(invalid="ignore"):
        far = ~unknown & ((points < -margin) | (points > np.array(size) + margin)).any(axis=1)
    points[unknown | far] = np.nan
    if (unknown | far).all():
        raise Fault(NO_POINT_KNOWN)
    if unknown.any():
        report.add("landmarks not finite", where, "kept, these unknown", _listed(unknown))
    if far.any():
        report.add("landmarks far outside the picture", where, "kept, these unknown", _listed(far))
    return points.astype(np.float32)


def _listed(mask: np.ndarray) -> str:
    return f"index {', '.join(map(str, np.flatnonzero(mask)))} of {len(mask)}"


def _extent(points: np.ndarray, size: tuple[int, int]) -> tuple[float, ...] | None:
    """Bounding box of the known landmarks, clipped to the picture; None if it is too small."""
    box = _clipped(np.concatenate([np.nanmin(points, axis=0), np.nanmax(points, axis=0)]).astype(np.float64), size)
    return tuple(box.tolist()) if (box[2:] - box[:2] >= SMALLEST_BOX).all() else None


# ------------------------------------------------------------------------------------------------------------- sides


def _side_and_stem(entry: Entry, image: Path, report: DataReport) -> tuple[str, str]:
    """(side: left, right or "" = unknown; file name without side and suffix)."""
    side, stem = side_in_name(image)
    if entry.side.lower() not in SIDES:
        report.add("side is neither left nor right", entry.where, "kept, side unknown", entry.side)
        return "", stem
    return SIDES[entry.side.lower()] or side, stem


def side_in_name(image: Path) -> tuple[str, str]:
    """(side, rest of the stem), as ("left", "ear") for ear_L.png; ("", stem) without side."""
    named = re.fullmatch(r"(.+)[_-](l|r|left|right)", image.stem, re.IGNORECASE)
    return (SIDES[named[2].lower()], named[1]) if named else ("", image.stem)


# -------------------------------------------------------------------------------------------------------------- splits


def split_by_subject(ears: Sequence[Ear], val_fraction: float, test_fraction: float) -> dict[str, list[Ear]]:
    """Split into train, val and test by a hash of the subject's name; all ears of a subject are in one split. The
    fractions are of the subjects. Raises UserError for invalid fractions, and a split without ears."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        fractions = f"{val_fraction:g} for validation and {test_fraction:g} for the test"
        raise UserError(f"{fractions} leave nothing to train on; they are shares from 0, below 1 together")
    splits = {"train": [], "val": [], "test": []}
    for ear in ears:
        place = position(ear.subject)
        split = "test" if place < test_fraction else "val" if place < test_fraction + val_fraction else "train"
        splits[split].append(ear)
    for split, fraction in (("train", 1), ("val", val_fraction), ("test", test_fraction)):
        if fraction and not splits[split]:
            subjects = len({ear.subject for ear in ears})
            raise UserError(
                f"{subjects} subjects are too few for {split}, whose share is drawn from their names; "
                "name the subjects in the manifest, or give each part one of its own"
            )
    return splits


def refuse_shared_subjects(splits: Mapping[str, Sequence[Ear]]) -> None:
    """Raises UserError if an ear or a subject is in two splits; subjects guessed from file names are not compared."""
    leaks = find_leaks({split: {ear.id: (ear.image, ear.box) for ear in ears} for split, ears in splits.items()})
    if leaks:
        (image, _), places = next(iter(leaks.items()))
        names = " and ".join(sorted({split for split, _ in places}))
        raise UserError(f"{len(leaks)} ears stand in two splits, {image} for example ({names}): keep each in one")
    refuse_shared_patients(
        {split: {ear.id: ear.subject if ear.subject_known else None for ear in ears} for split, ears in splits.items()}
    )
