"""Reading and checking of implant records: a JSON list of pictures with company, model, length and diameter.

Lengths and diameters are in mm. Boxes are xy in px after EXIF orientation, with pixel centres at integers: a picture
spans [-0.5, width - 0.5].
"""

import json
import math
import os
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.errors import UserError, first_line
from core.files import distinct, read_bytes
from core.images import ImageError, is_dicom, picture_size, without_suffix
from core.processes import in_threads
from core.results import plain
from core.splits import refuse_shared_patients
from core.validation import DataReport, Problem, content_keys, find_leaks

convert_to_serializable = plain  # name in the reference

TARGETS = ("length", "diameter")
LIMITS = {"length": (4.0, 25.0), "diameter": (1.5, 8.0)}  # mm
SPACING_LIMITS = (0.005, 1.0)  # mm per px
SMALLEST_SIDE = 4  # of a picture and of a box, px
MANY = 0.1  # share of the boxes
SOURCES = ("source_image", "original_image", "augmented_from")
LONGEST_PATH = 4096  # characters; limit of operating systems, and keeps regular expressions fast
EXPECTED = ("image", "company", "model", *TARGETS, "patient_id", "bbox", "pixel_spacing", "modality", *SOURCES)
NO_NAME = ("", "nan", "none", "null")  # as exported from tables
# _aug, _aug3, -aug-1, _augmented_2_7 at the end of a name, also repeated
COPY = re.compile(r"([_-]aug(ment(ed|ation)?)?([_-]?\d+([_-]\d+)*)?)+$", re.IGNORECASE)
SKIPPED = "record skipped"
NO_PICTURE, NO_BOX = "no such picture", "bbox is not four numbers"
SMALL_BOX, SWAPPED_BOX = f"bbox smaller than {SMALLEST_SIDE} px", "bbox ends before it begins"
OUTSIDE_BOX = "bbox outside the picture"
WAY_OUT = "a record is {image, company, model, length, diameter}, with length and diameter in mm"
WAYS_OUT = {
    NO_PICTURE: "paths are relative to the JSON file, or to the folder that --data_root names",
    **dict.fromkeys((NO_BOX, SMALL_BOX, OUTSIDE_BOX), "bbox is [x0, y0, x1, y1] in px of the picture"),
}


@dataclass(frozen=True)
class Record:
    """One implant in a picture."""

    id: str  # relative path of the picture without suffix; _2, _3 … for further boxes in it
    image: Path
    company: str  # "" = unknown
    model: str
    length: float  # mm; NaN = unknown
    diameter: float
    patient: str | None
    bbox: tuple[float, float, float, float] | None  # (x0, y0, x1, y1); None: the whole picture
    mm_per_px: tuple[float, float] | None  # (x, y)
    modality: str
    origin: str  # original of an augmented copy, otherwise the picture; path as in `id`
    fields: dict[str, str]  # other fields of the record


class Fault(Exception):
    """Error in a record: reason and detail of a `core.validation.Problem`."""

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def load_records(
    path: Path, data_root: Path | None = None, needs: Sequence[str] = ("company", "model", *TARGETS),
    limits: Mapping[str, tuple[float, float]] = LIMITS, fields: Sequence[str] = (), report: DataReport | None = None,
    drop_absent: bool = False,
) -> tuple[list[Record], list[Problem]]:  # fmt: skip
    """(usable records of a JSON file in order, data problems); the problems are also added to `report`.

    The file is a list of objects, or an object with one under "records", "data" or "annotations":
    {image, company, model, length, diameter, patient_id?, bbox?, pixel_spacing?, modality?, source_image?, …}. Paths
    are relative to `data_root` (default: the file). `pixel_spacing`: mm per px, one number or [row, column] as in
    DICOM. Numbers may be strings, with or without mm. Augmented copies have `source_image`, `original_image` or
    `augmented_from`, or a file name ending in _aug or similar.

    Records are skipped if a value in `needs` is missing, no number, or outside `limits` (name -> minimum and maximum,
    mm), if picture or box is unusable, and if they are duplicates. Other values may be "" or NaN; with `drop_absent`
    so may values that no record has, unless no record has any. Unknown keys that are not in `fields` are reported. Only
    the headers of the pictures are read; boxes in DICOM files are not checked against the picture size. Raises
    UserError for an invalid file, and without usable record.
    """
    path, found = Path(path), DataReport() if report is None else report
    earlier = len(found.problems)
    if data_root and not Path(data_root).is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    limits = {**LIMITS, **limits}
    readers = {"company": (_label, ""), "model": (_label, "")}
    readers |= {name: (partial(_dimension, limits=limits[name]), math.nan) for name in TARGETS}
    entries = _read_entries(path)
    _tell_unknown_keys(path, entries, fields, found)
    if drop_absent:
        given = [name for name in needs if any(_is_given(entry, name, readers[name][0]) for entry in entries)] or needs
        for name in (name for name in needs if name not in given):
            found.add(f"no usable {name} in any record", path, f"{name} left out")
        needs = given
    if entries and not any(isinstance(entry, dict) for entry in entries):  # not a line in the report for each
        raise UserError(f"{path}: none of its {len(entries)} records is an object; {WAY_OUT}")
    root = Path(os.path.abspath(data_root or path.parent))
    names = [_image_name(entry) for entry in entries]
    images = {name: Path(os.path.abspath(root / name)) for name in set(names)}
    pictures = list(dict.fromkeys(images.values()))
    sizes = dict(zip(pictures, in_threads(_size, pictures), strict=True))
    stems = {name: _below(without_suffix(image), root) for name, image in images.items()}

    records, seen = [], {}
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        where = f"{path}, entry {i}" + (f", {' '.join(name.split())}" if name else "")
        try:
            if not isinstance(entry, dict):
                raise Fault("record is not an object", reprlib.repr(entry))
            if not name:
                raise Fault("no image named", reprlib.repr(entry.get("image")))
            record, kept = _record(entry, stems[name], images[name], sizes[images[name]], root, needs, readers)
            if (first := seen.setdefault((record.image, record.bbox), i)) != i:
                raise Fault("the same picture and box twice", f"as entry {first}")
        except Fault as fault:
            found.add(fault.reason, where, SKIPPED, fault.detail)
            continue
        records.append(record)
        for reason, action, detail in kept:
            found.add(reason, where, action, detail)

    problems = found.problems[earlier:]
    _refuse_misread_boxes(path, entries, problems)
    if not records:
        skipped = [problem for problem in problems if problem.action == SKIPPED]
        reason, count = Counter(problem.reason for problem in skipped).most_common(1)[0]
        example = next(problem for problem in skipped if problem.reason == reason)
        example = " ".join(": ".join(filter(None, (example.where, example.detail))).split())  # one line for any path
        way_out = WAYS_OUT.get(reason, WAY_OUT)
        raise UserError(
            f"{path}: none of its {len(entries)} records is usable; {count} × {reason} ({example}); {way_out}"
        )
    _tell_spellings(path, records, found)
    ids = distinct(record.id for record in records)
    records = [replace(record, id=name) for record, name in zip(records, ids, strict=True)]
    return records, found.problems[earlier:]


def refuse_leaks(splits: Mapping[str, Sequence[Record]], report: DataReport | None = None) -> None:
    """Raises UserError if two of `splits` (split -> records of `load_records`) share a picture (same file or content),
    an original of augmented copies, or a patient; adds all of them to `report`."""
    report = report or DataReport()
    contents = content_keys({record.image: None for records in splits.values() for record in records})
    pictures = {
        split: {record.image: contents[record.image] or record.image for record in records}
        for split, records in splits.items()
    }
    same = find_leaks(pictures)
    told = {image for places in same.values() for _, image in places}
    originals = _originals([record for records in splits.values() for record in records])
    made = find_leaks(
        {split: {image: originals[image] for image in pictures[split] if image not in told} for split in splits}
    )
    leaks = [(places, "the same picture") for places in same.values()]
    leaks += [(places, "made of one picture") for places in made.values()]
    patients = {split: {str(r.image): r.patient for r in records if r.patient} for split, records in splits.items()}
    leaks += [(places, f"patient {patient}") for patient, places in find_leaks(patients).items()]
    examples = []
    for places, kind in leaks:
        first = dict(places)  # one per split
        where = " and ".join(f"{first[split]} in {split}" for split in splits if split in first)
        report.add("in two splits", where, "refused", kind)
        examples += [f"{where} ({kind})"] if not kind.startswith("patient ") else []
    if examples:
        shown = "; ".join(examples[:4]) + ("; …" if len(examples) > 4 else "")
        raise UserError(
            f"{len(examples)} pictures stand in two splits, themselves or as augmented copies: {shown}; keep each "
            "picture and all of its copies in one"
        )
    refuse_shared_patients(patients)


def _originals(records: Sequence[Record]) -> dict[Path, str]:
    """Picture -> lower-case path, without suffix, of its original (itself if it is no copy).

    Originals named without folder are looked up beside the JSON file, beside the copy, and among all pictures.
    """
    own = {without_suffix(record.image).as_posix().casefold() for record in records}
    by_name = defaultdict(list)
    for stem in own:
        by_name[stem.rpartition("/")[2]].append(stem)
    originals = {}
    for record in records:
        root = Path(*record.image.parts[: -1 - record.id.count("/")])  # base of `id` and `origin`
        stem, beside = ((folder / record.origin).as_posix().casefold() for folder in (root, record.image.parent))
        if "/" not in record.origin and stem not in own:
            named = by_name[record.origin.casefold()]
            stem = beside if beside in own else named[0] if len(named) == 1 else stem
        originals[record.image] = stem
    return originals


# ------------------------------------------------------------------------------------------------------------ the file


def _read_entries(path: Path) -> list:
    """List in a JSON file, in UTF-8, or UTF-16/32 with byte-order mark. Raises UserError."""
    try:
        content = read_bytes(path)
        if not content.strip():
            raise UserError(f"{path} is empty; give a JSON list of records: {WAY_OUT}")
        entries = json.loads(content, parse_int=_whole_number)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a JSON list of records") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a JSON list of records") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); mend it there"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}); save it as such") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a list of records; {WAY_OUT}") from None
    if isinstance(entries, dict):
        lists = [name for name in ("records", "data", "annotations") if isinstance(entries.get(name), list)]
        if len(lists) != 1:
            keys = ", ".join(reprlib.repr(key) for key in list(entries)[:8]) or "nothing"
            raise UserError(f'{path} is an object with {keys}; give a list of records, or one under "records"')
        entries = entries[lists[0]]
    if not isinstance(entries, list):
        raise UserError(f"{path} is no list but {reprlib.repr(entries)}; give a JSON list of records: {WAY_OUT}")
    if not entries:
        raise UserError(f"{path} holds no record; {WAY_OUT}")
    return entries


def _whole_number(digits: str) -> int | float:
    """Integer of any length; inf beyond the range of floats, so that only its record is skipped, not the file."""
    return int(digits) if len(digits) < 300 else float(digits)


def _image_name(entry: object) -> str:
    name = entry.get("image") if isinstance(entry, dict) else None
    return _clean(name).replace("\\", "/") if isinstance(name, str) else ""


def _below(path: Path, root: Path) -> str:
    """Path relative to the root; paths elsewhere without leading "/" or drive."""
    return path.relative_to(root if path.is_relative_to(root) else path.anchor).as_posix()


def _size(image: Path) -> tuple[int, int] | Fault | None:
    """(width, height) in px of a picture after EXIF orientation, from its header; None for DICOM; or its Fault."""
    if not os.path.isfile(image):  # reading a pipe would block
        return Fault(NO_PICTURE, image)
    try:
        if is_dicom(image):
            return None
        width, height = picture_size(image)
    except (ImageError, OSError) as error:
        return Fault("picture unreadable", first_line(error))
    if min(width, height) < SMALLEST_SIDE:
        return Fault(f"picture smaller than {SMALLEST_SIDE} px", f"{image}: {width}×{height}")
    return width, height


# ---------------------------------------------------------------------------------------------------------- one record


def _record(
    entry: dict, stem: str, image: Path, size: tuple[int, int] | Fault | None, root: Path, needs: Sequence[str],
    readers: Mapping[str, tuple[Callable[[object, str], str | float], str | float]],
) -> tuple[Record, list[tuple[str, str, str]]]:  # fmt: skip
    """(record with unnumbered id, problems (reason, action, detail) of the kept record).

    `readers`: name -> (parser of its value, value if unknown and not in `needs`). Raises Fault.
    """
    if isinstance(size, Fault):
        raise size
    kept = []

    def known(read, key: str, action: str):
        """Value of an optional field by `read`; None, with an entry in `kept`, if it is invalid."""
        try:
            return read(entry.get(key), key)
        except Fault as fault:
            kept.append((fault.reason, action, fault.detail))

    values = {}
    for name, (read, unknown) in readers.items():
        try:
            values[name] = read(entry.get(name), name)
        except Fault:
            if name in needs:
                raise
            values[name] = unknown
    bbox, cut = _box_inside(entry.get("bbox"), size)
    if cut:
        kept.append(("bbox partly outside the picture", "kept, bbox cut", cut))
    record = Record(
        id=stem, image=image, **values, patient=known(_name, "patient_id", "kept without patient") or None, bbox=bbox,
        mm_per_px=known(_mm_per_px, "pixel_spacing", "kept without spacing"),
        modality=known(_name, "modality", "kept without modality") or "", origin=_origin(entry, stem, root),
        fields=_other_fields(entry),
    )  # fmt: skip
    return record, kept


def _dimension(value: object, name: str, limits: tuple[float, float]) -> float:
    """Size in mm. Raises Fault."""
    if value is None:
        raise Fault(f"{name} is missing")
    if isinstance(value, str) and not value.strip():
        raise Fault(f"{name} is empty")
    try:
        number = _number(value)
    except ValueError:
        raise Fault(f"{name} is not a number", reprlib.repr(value)) from None
    if not math.isfinite(number):
        raise Fault(f"{name} is not finite", reprlib.repr(value))
    if number <= 0:
        raise Fault(f"{name} is {'negative' if number else 'zero'}", reprlib.repr(value))
    low, high = limits
    if not low <= number <= high:
        raise Fault(f"{name} outside {low:g}–{high:g} mm", f"{number:g}")
    return number


def _number(value: object) -> float:
    """Number, also from a string with or without mm. Raises ValueError."""
    if isinstance(value, str) and "_" not in value:  # Python reads 1_0 as 10
        return float(re.sub(r"mm\s*$", "", value, flags=re.IGNORECASE))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def _label(value: object, name: str) -> str:
    text = _name(value, name)
    if not text:
        raise Fault(f"{name} is missing or empty", "" if value is None else reprlib.repr(value))
    return text


def _name(value: object, name: str) -> str:
    """String from a string or number; "" without value. Raises Fault."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables export 7 as 7.0 in columns with gaps
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Fault(f"{name} is not a text", reprlib.repr(value))
    text = " ".join(_clean(str(value)).split())
    return "" if text.casefold() in NO_NAME else text


def _clean(text: str) -> str:
    """Text without lone surrogates (\\ud800), which JSON allows and files do not."""
    return text.strip().encode("utf-8", "replace").decode()


def _absent(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _mm_per_px(value: object, name: str) -> tuple[float, float] | None:
    """(x, y) in mm per px, from one number or [row, column] as in DICOM (y first). Raises Fault."""
    if _absent(value):
        return None
    try:
        y, x = [_number(number) for number in value] if isinstance(value, list) else [_number(value)] * 2
    except ValueError:
        raise Fault(f"{name} is not one or two numbers", reprlib.repr(value)) from None
    low, high = SPACING_LIMITS
    if not (low <= x <= high and low <= y <= high):
        raise Fault(f"{name} outside {low:g}–{high:g} mm", reprlib.repr(value))
    return x, y


def _box_inside(value: object, size: tuple[int, int] | None) -> tuple[tuple[float, ...] | None, str]:
    """Box clipped to a picture of `size` (width, height), None without one; and details if over 1 px was cut. Raises
    Fault."""
    if _absent(value):
        return None, ""
    try:
        x0, y0, x1, y1 = box = tuple(_number(number) for number in (value if isinstance(value, list) else ()))
    except ValueError:
        raise Fault(NO_BOX, reprlib.repr(value)) from None
    if not all(map(math.isfinite, box)):
        raise Fault(NO_BOX, reprlib.repr(value))
    detail = ", ".join(f"{number:g}" for number in box)
    if x1 < x0 or y1 < y0:
        raise Fault(SWAPPED_BOX, detail)
    if min(x1 - x0, y1 - y0) < SMALLEST_SIDE:
        raise Fault(SMALL_BOX, detail)
    if size is None:
        return box, ""
    detail += f" in a picture of {size[0]}×{size[1]}"
    inside = tuple(min(max(number, -0.5), side - 0.5) for number, side in zip(box, size * 2, strict=True))
    if min(inside[2] - inside[0], inside[3] - inside[1]) < SMALLEST_SIDE:
        raise Fault(OUTSIDE_BOX, detail)
    cut = max(abs(a - b) for a, b in zip(inside, box, strict=True)) > 1  # accepts boxes from 0 to width
    return inside, detail if cut else ""


def _origin(entry: dict, stem: str, root: Path) -> str:
    """Path without suffix of the original of a copy, relative to the root or absolute; `stem` if it is no copy."""
    texts = [_clean(entry[key][:LONGEST_PATH]) for key in SOURCES if isinstance(entry.get(key), str)]
    source = next((text for text in texts if text.casefold() not in NO_NAME), "")
    if source:
        original = Path(os.path.abspath(root / source.replace("\\", "/")))
        original = without_suffix(original)
        stem = _below(original, root) if original.is_relative_to(root) else original.as_posix()
    folder, slash, name = stem.rpartition("/")
    return folder + slash + (COPY.sub("", name) or name)


def _other_fields(entry: dict) -> dict[str, str]:
    """All other fields as strings, without lists and objects."""
    given = {key: value for key, value in entry.items() if key not in EXPECTED and not _absent(value)}
    return {_clean(key): _clean(str(value)) for key, value in given.items() if not isinstance(value, list | dict)}


# --------------------------------------------------------------------------------------------------------- all records


def _is_given(entry: object, name: str, read: Callable[[object, str], object]) -> bool:
    try:
        return isinstance(entry, dict) and bool(read(entry.get(name), name))
    except Fault:
        return False


def _tell_unknown_keys(path: Path, entries: list, fields: Sequence[str], report: DataReport) -> None:
    known = {*EXPECTED, *fields}
    counts = Counter(
        _clean(key) for entry in entries if isinstance(entry, dict)
        for key, value in entry.items() if key not in known and not _absent(value)
    )  # fmt: skip
    for key, count in counts.items():
        expected = ", ".join((*EXPECTED, *fields))
        report.add("unknown key in the records", path, "not used", f"{key} ({count} records); expected: {expected}")


def _refuse_misread_boxes(path: Path, entries: list, problems: list[Problem]) -> None:
    """Raises UserError if the boxes are evidently x, y, width, height."""
    boxes = sum(isinstance(entry, dict) and not _absent(entry.get("bbox")) for entry in entries)
    swapped = sum(problem.reason == SWAPPED_BOX for problem in problems)
    if swapped > MANY * boxes:
        raise UserError(
            f"{path}: {swapped} of {boxes} boxes end before they begin; bbox is [x0, y0, x1, y1] in px, "
            "not x, y, width, height"
        )


def _tell_spellings(path: Path, records: list[Record], report: DataReport) -> None:
    for name in ("company", "model"):
        spellings = defaultdict(list)
        for spelling, count in Counter(getattr(record, name) for record in records).items():
            spellings[spelling.casefold()].append(f"{spelling} ({count})")
        for found in spellings.values():
            if len(found) > 1:
                report.add(f"{name} spelled in several ways", path, "kept as they stand", ", ".join(found))
