"""Unchecked entries of a manifest: a .npy, a CSV, or a folder of pictures."""

import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError, first_line
from core.files import read_bytes
from core.images import SUFFIXES
from core.landmarks import Schema, column_name, make_schema
from core.tables import read_table
from core.validation import DataReport
from ear.anatomy import SCHEMAS
from ear.npy import read_npy

BOX_COLUMNS = {"xyxy": ("x0", "y0", "x1", "y1"), "xywh": ("x", "y", "width", "height"),
               "cxcywh": ("cx", "cy", "width", "height")}  # fmt: skip
BOX_FORMATS = tuple(BOX_COLUMNS)
# Folder names that are no subjects; collectionA and collectionB are of iBUG.
LEVELS = {"train", "training", "val", "valid", "validation", "test", "testing", "image", "images", "left", "right",
          "collectiona", "collectionb"}  # fmt: skip
NO_BOX = "box is not four numbers"
# Names of boxes and landmarks in other software.
OTHERS = r"[xy](_?min|_?max|\d)|[xywh]|left|top|right|bottom|box(es)?|.*(bbox|keypoint|landmark).*|.+_[xy]"
PAIRS = "landmarks as NAME_x, NAME_y"
WAY_OUT = "it needs the column image, and may have x0, y0, x1, y1, subject, side and " + PAIRS


@dataclass(frozen=True)
class Entry:
    """One unchecked entry of a manifest."""

    where: str
    image: str
    box: object = None  # four numbers in `box_format`
    landmarks: object = None  # (K, 2)
    subject: str = ""
    side: str = ""
    box_format: str = "xyxy"

    def numbers(self) -> np.ndarray | None:
        """Box (x0, y0, x1, y1) float64 in px; None without one. Raises Fault."""
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
        """Landmarks (K, 2) float64 in px; None without any. Raises Fault."""
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
    """Error in an entry: reason and detail of a `core.validation.Problem`."""

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_entries(path: Path, box_format: str, schema: Schema | None, report: DataReport) -> Iterable[Entry]:
    """Entries of a .npy (boxes in `box_format`), of a .csv (landmarks of `schema`), or of a folder of pictures. Ignored
    columns, keys and files are listed in `report`. Raises UserError for other files."""
    if path.is_dir():
        return _folder_entries(path, report)
    if path.suffix.lower() == ".npy":
        return _npy_entries(path, box_format, report)
    if path.suffix.lower() == ".csv":
        return _csv_entries(path, schema, report)
    kind = "not one of them" if path.exists() else "no such file"
    raise UserError(f"{path}: {kind}; a manifest is a .npy, a .csv or a folder of pictures")


def _list_unread(names: Iterable[object], where: str, expected: str, report: DataReport) -> None:
    """Adds ignored columns or keys to the report, with the expected names."""
    for name in names:
        like = re.fullmatch(OTHERS, str(name), re.IGNORECASE)
        reason = "boxes or landmarks under another name" if like else "column not used"
        report.add(reason, f"{where} {reprlib.repr(name)}", "ignored", f"expected: {expected}")


def _npy_entries(path: Path, box_format: str, report: DataReport) -> Iterator[Entry]:
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
    unread = [key for key, column in content.items() if key not in names and column is not None]
    _list_unread(unread, f"{path}, key", ", ".join(names), report)
    for i, image in enumerate(columns["image_paths"]):
        box, points, subject, side = (columns[name][i] if name in columns else None for name in names[1:])
        where = f"{path}, entry {i}, {_text(image)}"
        yield Entry(where, _text(image), box, points, _text(subject), _text(side), box_format)


def _text(value: object) -> str:
    """Value of a .npy as text; None and NaN are empty."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip() if isinstance(value, str | int | float | np.generic) else reprlib.repr(value)


def _csv_entries(path: Path, schema: Schema | None, report: DataReport) -> Iterator[Entry]:
    rows = read_table(path, ["image"], WAY_OUT)
    header = [column for column in rows[0][1] if column] if rows else []
    box_format = _box_format(path, header)
    points = _landmark_columns(path, header, schema, report)
    boxes = " or ".join(",".join(columns) for columns in BOX_COLUMNS.values())
    read = {"image", "subject", "side", *BOX_COLUMNS.get(box_format, ()), *sum(_pairs(header).values(), ())}
    expected = f"image, subject, side, {boxes}, {PAIRS}"
    _list_unread((name for name in header if name not in read), f"{path}, column", expected, report)
    for line, row in rows:
        cells = {column: (row[column] or "").strip() for column in header}
        box = [cells[column] for column in BOX_COLUMNS[box_format]] if box_format else []
        yield Entry(
            f"{path}, line {line}, {cells['image']}",
            cells["image"],
            box if any(box) else None,
            [[cells.get(x) or "nan", cells.get(y) or "nan"] for x, y in points] or None,
            cells.get("subject", ""),
            cells.get("side", ""),
            box_format or "xyxy",
        )


def _box_format(path: Path, header: Sequence[str]) -> str | None:
    """Box format by the columns of a table; None without box columns. Raises UserError for incomplete ones."""
    for box_format, columns in BOX_COLUMNS.items():
        if set(columns) <= set(header):
            return box_format
    places = set().union(*BOX_COLUMNS.values()) - {"width", "height"}  # alone, they are of the picture
    parts = [column for column in header if column in places]
    if parts:
        formats = " or ".join(",".join(columns) for columns in BOX_COLUMNS.values())
        raise UserError(f"{path} has {', '.join(parts)}, no whole box; name its columns {formats}")
    return None


def _pairs(header: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Landmark, as by `column_name` -> its columns (NAME_x, NAME_y)."""
    names = [x[:-2] for x in header if x.endswith("_x")]
    return {column_name(name): (f"{name}_x", f"{name}_y") for name in names if name and f"{name}_y" in header}


def _numbers(pairs: dict[str, tuple[str, str]]) -> dict[str, int] | None:
    """Landmark -> number, if all are numbered; otherwise None."""
    found = {name: re.fullmatch(r"(?:landmark_)?(\d+)", name) for name in pairs}
    return {name: int(match[1]) for name, match in found.items()} if all(found.values()) else None


def named_schema(path: Path, header: Sequence[str] | None = None) -> Schema | None:
    """Scheme of a table with landmark names: the known scheme with most of these names, otherwise these names in the
    order of the table. None for numbered landmarks, no landmarks, and other manifests."""
    if path.suffix.lower() != ".csv" or path.is_dir():
        return None
    if header is None:
        header = [column for _, row in read_table(path, ["image"], WAY_OUT)[:1] for column in row if column]
    pairs = _pairs(header)
    if _numbers(pairs) is not None:
        return None
    for schema in SCHEMAS.values():
        if 2 * len(pairs.keys() & set(map(column_name, schema.names))) > len(pairs):
            return schema
    return make_schema({"name": path.stem, "names": [x[:-2] for x, _ in pairs.values()]}, f"{path}: ")


def _landmark_columns(
    path: Path, header: Sequence[str], schema: Schema | None, report: DataReport
) -> list[tuple[str, str]]:
    """Columns (NAME_x, NAME_y) of the landmarks in order of the scheme, or by number; "" for missing ones. Other
    landmarks are listed in `report`. Raises UserError if no landmark is in the scheme."""
    pairs, numbers = _pairs(header), _numbers(_pairs(header))
    if numbers is not None:
        return [pairs[name] for name in sorted(pairs, key=numbers.get)]
    schema = schema or named_schema(path, header)
    names, expected = [column_name(name) for name in schema.names], f"{schema.name} has {', '.join(schema.names)}"
    if not pairs.keys() & set(names):
        raise UserError(f"{path}: none of its landmarks ({', '.join(pairs)}) is of the scheme: {expected}")
    for name, columns in pairs.items():
        if name not in names:
            report.add("landmark of another name", f"{path}, columns {', '.join(columns)}", "ignored", expected)
    return [pairs.get(name, ("", "")) for name in names]


def _folder_entries(path: Path, report: DataReport) -> list[Entry]:
    def refuse(error: OSError):
        raise UserError(f"{error.filename}: {error.strerror}; give a folder that can be read") from error

    found, passed_over = {}, Counter()  # picture -> its .pts file, or None; suffix -> number of other files
    for folder, folders, files in os.walk(path, onerror=refuse):
        folders.sort()
        points = {Path(file).stem: file for file in files if file.lower().endswith(".pts")}
        for file in sorted(file for file in files if not file.startswith(".")):
            image = Path(folder, file)
            if file.lower().endswith(SUFFIXES):
                found[image] = Path(folder, points[image.stem]) if image.stem in points else None
            elif image.suffix.lower() != ".pts":
                passed_over[image.suffix.lower() or file] += 1
    for suffix, count in passed_over.items():
        report.add("files that are no pictures", path, "ignored", f"{count} × {suffix}")
    subjects = subject_folders(list(found), path)
    return [
        Entry(str(image), str(image.relative_to(path)), landmarks=pts, subject=subjects[image])
        for image, pts in found.items()
    ]


def read_pts(file: Path) -> np.ndarray:
    """Landmarks (K, 2) px of a .pts file (iBUG). Raises Fault.

    Coordinates in the file start at 1, as in MATLAB; menpo, of the same group, also subtracts 1
    (menpo/io/input/landmark.py).
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
    """Picture -> its subject folder, as in AWE and EarVN1.0; "" without one."""
    folders = {}
    for image in images:
        parts = image.relative_to(root).parts if image.is_relative_to(root) else image.parts
        folders[image] = next((part for part in reversed(parts[:-1]) if part.casefold() not in LEVELS), "")
    return folders if len(set(folders.values())) > 1 else dict.fromkeys(images, "")
