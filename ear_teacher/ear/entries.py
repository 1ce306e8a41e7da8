"""What a manifest says, line by line, before anything is checked: a .npy, a CSV, or a folder of pictures."""

import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError, first_line
from core.files import read_bytes
from core.images import SUFFIXES
from core.landmarks import column_name
from core.tables import read_table
from ear.anatomy import SCHEMAS
from ear.npy import read_npy

BOX_COLUMNS = {"xyxy": ("x0", "y0", "x1", "y1"), "xywh": ("x", "y", "width", "height"),
               "cxcywh": ("cx", "cy", "width", "height")}  # fmt: skip
BOX_FORMATS = tuple(BOX_COLUMNS)
# Folders that sort pictures, and name no subject; collectionA and collectionB are iBUG's.
LEVELS = {"train", "training", "val", "valid", "validation", "test", "testing", "image", "images", "left", "right",
          "collectiona", "collectionb"}  # fmt: skip
NO_BOX = "box is not four numbers"
WAY_OUT = "it needs the column image, and may have x0, y0, x1, y1, subject, side and landmarks as NAME_x, NAME_y"


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


def read_entries(path: Path, box_format: str) -> Iterable[Entry]:
    """The lines of a .npy, whose boxes are in `box_format`, or of a .csv, or the pictures of a folder. Raises UserError
    for a file that cannot be meant so."""
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
    subjects = subject_folders(list(found), path)
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
        text = read_bytes(file).decode("utf-8", errors="replace")
        head, _, rest = text.partition("{")
        points = np.array([line.split() for line in rest.partition("}")[0].splitlines() if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise Fault("landmarks unreadable", f"{file}: {first_line(error)}") from error
    count = re.search(r"n_points:\s*(\d+)", head)
    if points.ndim != 2 or points.shape[1] != 2 or (count and int(count[1]) != len(points)):
        raise Fault("landmarks unreadable", f"{file}: not the {count[1] if count else ''} pairs of numbers in {{ }}")
    return points - 1


def subject_folders(images: list[Path], root: Path) -> dict[Path, str]:
    """Picture -> the folder that stands for a subject, "" if none does: AWE and EarVN1.0 have a folder a subject."""
    folders = {}
    for image in images:
        parts = image.relative_to(root).parts if image.is_relative_to(root) else image.parts
        folders[image] = next((part for part in reversed(parts[:-1]) if part.casefold() not in LEVELS), "")
    return folders if len(set(folders.values())) > 1 else dict.fromkeys(images, "")
