"""Lists of ears: a .npy, a CSV, a folder of pictures or iBUG's folder of .pts files, checked before the first step.

Points and boxes are in px of the picture as shown (EXIF orientation applied), x before y, pixel centres at integers: a
picture spans [-0.5, width - 0.5]. A box is (x0, y0, x1, y1).
"""

import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.args import UserError, first_line
from core.images import SUFFIXES, ImageError, picture_size
from core.splits import position, refuse_shared_patients
from core.tables import read_table
from core.validation import DataReport, find_leaks
from ear_landmarks import SCHEMAS, column_name
from npy_manifest import read_npy

BOX_COLUMNS = {"xyxy": ("x0", "y0", "x1", "y1"), "xywh": ("x", "y", "width", "height"),
               "cxcywh": ("cx", "cy", "width", "height")}  # fmt: skip
BOX_FORMATS = tuple(BOX_COLUMNS)
SMALLEST_PICTURE, SMALLEST_BOX = 8, 2  # px a side
MANY = 0.1  # of the boxes
FAR = 0.25  # of the picture's longer side: a landmark further outside is a mistake, not a cut ear
# Folders that sort pictures, and name no subject; collectionA and collectionB are iBUG's.
LEVELS = {"train", "training", "val", "valid", "validation", "test", "testing", "image", "images", "left", "right",
          "collectiona", "collectionb"}  # fmt: skip
SIDES = {"l": "left", "left": "left", "r": "right", "right": "right", "": ""}
LEFT_OUT = "ear left out"
NO_PICTURE, NO_POINTS, NO_BOX = "no such picture", "no landmarks", "box is not four numbers"
SMALL_BOX = f"box smaller than {SMALLEST_BOX} px"
WAYS_OUT = {
    NO_PICTURE: "paths are relative to the manifest, or to the folder that --data_root names",
    NO_POINTS: "give a manifest with landmarks, or .pts files beside the pictures",
    SMALL_BOX: "give boxes in px, and their format with --box_format; without any, the whole pictures are used",
}
WAY_OUT = "it needs the column image, and may have x0, y0, x1, y1, subject, side and landmarks as NAME_x, NAME_y"


@dataclass(frozen=True)
class Ear:
    """One ear in a picture."""

    id: str  # the picture's path below the manifest's folder, without its suffix
    image: Path
    box: tuple[float, float, float, float] | None  # None: the whole picture
    landmarks: np.ndarray | None  # (K, 2) float32, NaN = unknown
    subject: str
    side: str  # "left", "right" or "" = unknown
    subject_known: bool = True  # False: guessed from the path


@dataclass(frozen=True)
class Entry:
    """One line of a manifest, as it stands there."""

    where: str
    image: str
    box: object = None  # four numbers in `box_format`
    landmarks: object = None  # (K, 2)
    subject: str = ""
    side: str = ""
    box_format: str = "xyxy"

    def numbers(self) -> np.ndarray | None:
        """(x0, y0, x1, y1) float64; None without a box. Raises Fault."""
        if self.box is None:
            return None
        try:
            a, b, c, d = numbers = [float(number) for number in self.box]
        except (ValueError, TypeError, OverflowError):
            raise Fault(NO_BOX, reprlib.repr(self.box)) from None
        if not np.isfinite(numbers).all():
            raise Fault(NO_BOX, reprlib.repr(numbers))
        if self.box_format == "xywh":
            return np.array([a, b, a + c, b + d])
        if self.box_format == "cxcywh":
            return np.array([a - c / 2, b - d / 2, a + c / 2, b + d / 2])
        return np.array(numbers)

    def points(self) -> np.ndarray | None:
        """(K, 2) float64; None without landmarks. Raises Fault."""
        if self.landmarks is None:
            return None
        if isinstance(self.landmarks, Path):
            return read_pts(self.landmarks)
        pairs = self.landmarks.tolist() if isinstance(self.landmarks, np.ndarray) else self.landmarks
        try:
            return np.array([(float(x), float(y)) for x, y in pairs]).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError):
            raise Fault("landmarks are not pairs of numbers", reprlib.repr(pairs)) from None


class Fault(Exception):
    """What is wrong with an entry: reason and detail of a `core.validation.Problem`."""

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_manifest(
    path: Path,
    data_root: Path | None = None,
    box_format: str = "xyxy",
    report: DataReport | None = None,
    landmarks: bool = False,
) -> list[Ear]:
    """The usable ears of a manifest, in its order; what is wrong with it is added to `report`.

    `path` is one of
    - .npy: a dict of image_paths and, if known, bboxes, landmarks (N, K, 2), subjects, sides, one a picture;
    - .csv: column image, four box columns (x0,y0,x1,y1 or x,y,width,height or cx,cy,width,height: their names say
      which), subject, side, landmarks as NAME_x and NAME_y: in the order of a known scheme where the names are its own,
      else in the order of the table;
    - a folder: every picture below it, with the landmarks of a .pts file of the same name.
    Paths are relative to `data_root`, or else to the manifest. `box_format` (of .npy): xyxy, xywh with the top-left
    corner, or cxcywh with the centre.

    An ear without a box gets the extent of its landmarks, or without these the whole picture. Its subject, where none
    is named, is the folder that the picture lies in (a folder by which they are sorted, as train, does not count), or
    where all lie in one, the file's name up to _L or _R, which is the side. With `landmarks`, an ear whose landmarks
    are missing or wrong is left out; else it is kept without them. Only headers of pictures are read. Raises UserError
    for a file that cannot be meant so, and if no ear is usable.
    """
    path = Path(path)
    if data_root and not Path(data_root).is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    root = path if path.is_dir() else Path(data_root or path.parent)
    entries = list(_entries(path, box_format))
    if not entries:
        contents = f"no picture ({', '.join(SUFFIXES)})" if path.is_dir() else "no ear"
        raise UserError(f"{path} holds {contents}; give a .npy, a .csv or a folder that does")
    found = DataReport()
    boxes = [_or_fault(entry.numbers) for entry in entries]
    _refuse_misread_boxes(path, boxes, entries[0].box_format)
    ears = _usable(entries, boxes, root, found, landmarks)
    if report is not None:
        report.problems += found.problems
    if not ears:
        reasons = Counter(problem.reason for problem in found.problems if problem.action == LEFT_OUT)
        reason, count = reasons.most_common(1)[0]
        example = next(problem for problem in found.problems if problem.reason == reason)
        example = ": ".join(filter(None, (example.where, example.detail)))
        way_out = WAYS_OUT.get(reason, "mend the manifest")
        raise UserError(f"{path}: none of its {len(entries)} ears is usable; {count} × {reason} ({example}); {way_out}")
    return ears


# ------------------------------------------------------------------------------------------------- what the files say


def _entries(path: Path, box_format: str) -> Iterable[Entry]:
    if path.is_dir():
        return _folder_entries(path)
    if path.suffix.lower() == ".npy":
        return _npy_entries(path, box_format)
    if path.suffix.lower() == ".csv":
        return _csv_entries(path)
    kind = "not one of them" if path.exists() else "no such file"
    raise UserError(f"{path}: {kind}; a manifest is a .npy, a .csv or a folder of pictures")


def _npy_entries(path: Path, box_format: str) -> Iterator[Entry]:
    content = read_npy(path)
    names = ("image_paths", "bboxes", "landmarks", "subjects", "sides")
    columns = {name: content[name] for name in names if content.get(name) is not None}
    if "image_paths" not in columns:
        keys = ", ".join(reprlib.repr(key) for key in list(content)[:8]) or "nothing"
        raise UserError(f"{path} holds no image_paths, but {keys}; save {{'image_paths': […], 'bboxes': […]}}")
    for name, column in columns.items():
        if not isinstance(column, list | tuple) and not (isinstance(column, np.ndarray) and column.ndim):
            raise UserError(f"{path}: {name} is no list; save one entry a picture")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise UserError(f"{path}: its lists differ in length: {lengths}; save one entry a picture in each")
    for i, image in enumerate(columns["image_paths"]):
        box, points, subject, side = (columns[name][i] if name in columns else None for name in names[1:])
        where = f"{path}, entry {i}, {_text(image)}"
        yield Entry(where, _text(image), box, points, _text(subject), _text(side), box_format)


def _text(value: object) -> str:
    """A text, bytes or number of a .npy as a text; None and NaN are empty."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip() if isinstance(value, str | int | float | np.generic) else reprlib.repr(value)


def _csv_entries(path: Path) -> Iterator[Entry]:
    rows = read_table(path, ["image"], WAY_OUT)
    header = [column for column in rows[0][1] if column] if rows else []
    box_format = _box_format(path, header)
    points = _landmark_columns(header)
    for line, row in rows:
        cells = {column: (row[column] or "").strip() for column in header}
        box = [cells[column] for column in BOX_COLUMNS[box_format]] if box_format else []
        yield Entry(
            f"{path}, line {line}, {cells['image']}",
            cells["image"],
            box if any(box) else None,
            [[cells[x] or "nan", cells[y] or "nan"] for x, y in points] or None,
            cells.get("subject", ""),
            cells.get("side", ""),
            box_format or "xyxy",
        )


def _box_format(path: Path, header: Sequence[str]) -> str | None:
    """The format whose columns a table has; None if it has none of them."""
    for box_format, columns in BOX_COLUMNS.items():
        if set(columns) <= set(header):
            return box_format
    places = set().union(*BOX_COLUMNS.values()) - {"width", "height"}  # those alone are the picture's
    parts = [column for column in header if column in places]
    if parts:
        formats = " or ".join(",".join(columns) for columns in BOX_COLUMNS.values())
        raise UserError(f"{path} has {', '.join(parts)}, no whole box; name its columns {formats}")
    return None


def _landmark_columns(header: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs NAME_x, NAME_y of a table in the order of a known scheme, by number, or as they stand."""
    pairs = {column_name(x[:-2]): (x, f"{x[:-2]}_y") for x in header if x.endswith("_x") and f"{x[:-2]}_y" in header}
    for schema in SCHEMAS.values():
        names = [column_name(name) for name in schema.names]
        if set(names) == set(pairs):
            return [pairs[name] for name in names]
    numbers = {name: re.fullmatch(r"landmark_(\d+)", name) for name in pairs}
    if all(numbers.values()):
        return [pairs[name] for name in sorted(pairs, key=lambda name: int(numbers[name][1]))]
    return list(pairs.values())


def _folder_entries(path: Path) -> list[Entry]:
    def refuse(error: OSError):
        raise UserError(f"{error.filename}: {error.strerror}; give a folder that can be read") from error

    found = {}  # picture -> its .pts file, or None
    for folder, folders, files in os.walk(path, onerror=refuse):
        folders.sort()
        points = {Path(file).stem: file for file in files if file.lower().endswith(".pts")}
        for file in sorted(files):
            if not file.lower().endswith(SUFFIXES) or file.startswith("."):
                continue
            image = Path(folder, file)
            found[image] = Path(folder, points[image.stem]) if image.stem in points else None
    subjects = _subject_folders(list(found), path)
    return [
        Entry(str(image), str(image.relative_to(path)), landmarks=pts, subject=subjects[image])
        for image, pts in found.items()
    ]


def read_pts(file: Path) -> np.ndarray:
    """Landmarks (K, 2) of a .pts file, as iBUG's ears have. Raises Fault.

    Pixels are taken to count from 1, as in MATLAB: so does menpo, the library of the same group, which subtracts 1 from
    every .pts file (menpo/io/input/landmark.py).
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        head, _, rest = text.partition("{")
        points = np.array([line.split() for line in rest.partition("}")[0].splitlines() if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise Fault("landmarks unreadable", f"{file}: {first_line(error)}") from error
    count = re.search(r"n_points:\s*(\d+)", head)
    if points.ndim != 2 or points.shape[1] != 2 or (count and int(count[1]) != len(points)):
        raise Fault("landmarks unreadable", f"{file}: not the {count[1] if count else ''} pairs of numbers in {{ }}")
    return points - 1


# ------------------------------------------------------------------------------------------------------ what is usable


def _usable(
    entries: list[Entry], boxes: list[np.ndarray | Fault | None], root: Path, report: DataReport, landmarks: bool
) -> list[Ear]:
    root = Path(os.path.abspath(root))
    images = [Path(os.path.abspath(root / entry.image.replace("\\", "/"))) for entry in entries]
    sizes, folders = _sizes(images), _subject_folders(images, root)
    all_points = [_or_fault(entry.points) for entry in entries]
    counts = Counter(len(points) for points in all_points if isinstance(points, np.ndarray))
    count = max(counts, key=counts.get, default=0)  # of landmarks, in most of the entries
    ears, seen, ids = [], {}, set()
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
        ears.append(Ear(_id(image, root, ids), image, box, points, subject, side, bool(entry.subject)))
    return ears


def _or_fault(read: Callable[[], np.ndarray | None]) -> np.ndarray | Fault | None:
    """What `read` returns, or the Fault that it raises, for `_or_raise` to raise when the entry's turn has come."""
    try:
        return read()
    except Fault as fault:
        return fault


def _or_raise(value):
    if isinstance(value, Fault):
        raise value
    return value


def _sizes(images: list[Path]) -> dict[Path, tuple[int, int] | Fault]:
    """(width, height) of each picture as shown, from its header alone."""
    distinct = list(dict.fromkeys(images))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # most of the time goes to waiting for the disk
        return dict(zip(distinct, pool.map(lambda image: _or_fault(lambda: _size(image)), distinct), strict=True))


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
    """Raises UserError if the boxes are plainly no px or not in this format: many would still lie in their pictures."""
    numbers = np.array([box for box in boxes if isinstance(box, np.ndarray)]).reshape(-1, 4)
    if numbers.any() and np.abs(numbers).max() <= SMALLEST_BOX:  # those given by their centre may pass 1 a little
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
    """The box within a picture of `size` (width, height), and what was cut off in words, if more than a pixel was."""
    if box is None:
        return None, ""
    detail = f"{', '.join(f'{number:g}' for number in box)} in a picture of {size[0]}×{size[1]}"
    if (box[2:] - box[:2] < SMALLEST_BOX).any():
        raise Fault(SMALL_BOX, detail)
    inside = _clipped(box, size)
    if (inside[2:] - inside[:2] < SMALLEST_BOX).any():
        raise Fault("box outside the picture", detail)
    if np.abs(inside - box).max() <= 1:  # 0 to width is the whole picture, too
        return tuple(box.tolist()), ""
    return tuple(inside.tolist()), detail


def _clipped(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.clip(box, -0.5, np.array([*size, *size]) - 0.5)


def _checked_points(
    points: np.ndarray | None, count: int, size: tuple[int, int], where: str, report: DataReport
) -> np.ndarray:
    """Landmarks (`count`, 2) float32, NaN for those that are not finite or far outside; these are reported."""
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
        raise Fault("no landmark known")
    if unknown.any():
        report.add("landmarks not finite", where, "kept, these unknown", _listed(unknown))
    if far.any():
        report.add("landmarks far outside the picture", where, "kept, these unknown", _listed(far))
    return points.astype(np.float32)


def _listed(mask: np.ndarray) -> str:
    return f"index {', '.join(map(str, np.flatnonzero(mask)))} of {len(mask)}"


def _extent(points: np.ndarray, size: tuple[int, int]) -> tuple[float, ...] | None:
    """The box of the known landmarks, as far as it lies in the picture; None where they make none."""
    box = _clipped(np.concatenate([np.nanmin(points, axis=0), np.nanmax(points, axis=0)]).astype(np.float64), size)
    return tuple(box.tolist()) if (box[2:] - box[:2] >= SMALLEST_BOX).all() else None


# -------------------------------------------------------------------------------------------------- whose ear it is


def _subject_folders(images: list[Path], root: Path) -> dict[Path, str]:
    """Picture -> the folder that stands for a subject, "" if none does: AWE and EarVN1.0 have a folder a subject."""
    folders = {}
    for image in images:
        parts = image.relative_to(root).parts if image.is_relative_to(root) else image.parts
        folders[image] = next((part for part in reversed(parts[:-1]) if part.casefold() not in LEVELS), "")
    return folders if len(set(folders.values())) > 1 else dict.fromkeys(images, "")


def _side_and_stem(entry: Entry, image: Path, report: DataReport) -> tuple[str, str]:
    """left, right or "", and the name of the picture without it."""
    side, stem = side_in_name(image)
    if entry.side.lower() not in SIDES:
        report.add("side is neither left nor right", entry.where, "kept, side unknown", entry.side)
        return "", stem
    return SIDES[entry.side.lower()] or side, stem


def side_in_name(image: Path) -> tuple[str, str]:
    """("left", "ear") of ear_L.png and the like; "" and the whole stem where the name says no side."""
    named = re.fullmatch(r"(.+)[_-](l|r|left|right)", image.stem, re.IGNORECASE)
    return (SIDES[named[2].lower()], named[1]) if named else ("", image.stem)


def _id(image: Path, root: Path, taken: set[str]) -> str:
    """The path below `root` without its suffix; numbered from _2 where one picture shows several ears."""
    image = image.with_suffix("")
    name = free = image.relative_to(root if image.is_relative_to(root) else image.anchor).as_posix()
    number = 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def split_by_subject(
    ears: Sequence[Ear], val_fraction: float = 0.1, test_fraction: float = 0.1
) -> dict[str, list[Ear]]:
    """train, val and test: all ears of a subject in one of them, which follows from the subject's name alone.

    The fractions are of the subjects. Raises UserError if a part that was asked for gets none.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"{val_fraction:g} for validation and {test_fraction:g} for the test leave nothing to train on; "
            "they are shares from 0, below 1 together"
        )
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
    """Raises UserError if an ear or a subject stands in two splits. Subjects that are guessed from names of files do
    not count: 001.png of two folders need not show one person."""
    leaks = find_leaks({split: {ear.id: (ear.image, ear.box) for ear in ears} for split, ears in splits.items()})
    if leaks:
        (image, _), places = next(iter(leaks.items()))
        names = " and ".join(sorted({split for split, _ in places}))
        raise UserError(f"{len(leaks)} ears stand in two splits, {image} for example ({names}): keep each in one")
    refuse_shared_patients(
        {split: {ear.id: ear.subject if ear.subject_known else None for ear in ears} for split, ears in splits.items()}
    )
