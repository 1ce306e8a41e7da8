"""CSV table and HDF5 files of hyperspectral cubes: reading and checks.

A cube is an array (C, H, W), bands first, in the file's own units: one HDF5 file, data set /Cube/Images. The CSV has
the columns ID and hs_file, and optionally label, rgb_file, mask_file, patient and split (train, valid, test), with
paths relative to itself.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from core.errors import UserError, first_line
from core.files import require_file
from core.splits import position, refuse_shared_patients
from core.tables import read_table
from core.validation import DataReport
from hsi.wavelengths import DEFAULT, parse_wavelengths

# No imports of torch: every worker process of cubes.py loads the imports of this file.

H5_KEY = "/Cube/Images"
COLUMNS = ("ID", "label", "hs_file", "rgb_file", "mask_file", "patient", "split")
SPLITS = ("train", "valid", "test")
SPELLINGS = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}
PATIENT_CHARACTERS = 5  # of the file name are the patient if the CSV has none
LARGEST = 1  # GiB: size limit of a cube; the header of a small file may claim any shape
FOREGROUND = 0.1  # threshold as a share of the brightness of bright pixels
WAY_OUT = "it needs the columns ID and hs_file"
Splits = Mapping[str, Sequence["Cube"]]


class BadCube(UserError):
    """An unusable file of a cube; `reason` is `kind of problem: details and remedy`."""

    def __init__(self, file: object, reason: str = ""):
        super().__init__(f"{file}: {reason}" if reason else str(file))  # torch re-raises it with one text
        self.reason = reason


@dataclass(frozen=True)
class Cube:
    """One row of the CSV."""

    id: str
    file: Path
    label: str  # "" = none
    patient: str
    split: str
    rgb_file: Path | None = None
    mask_file: Path | None = None


# ---------------------------------------------------------------------------------------------------------- the table


def read_cubes(
    csv_file: Path, report: DataReport | None = None, valid_fraction: float = 0.1, test_fraction: float = 0.2
) -> dict[str, list[Cube]]:
    """train, valid and test cubes of a CSV whose files exist. Problems and unknown columns are added to the `report`.

    Without a patient column, the first five characters of the file name are the patient. Patients without a split
    follow their other rows, or are assigned by name. Raises UserError for missing columns, duplicate IDs, unknown
    splits, patients in two splits, invalid fractions, and if no file exists.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        shares = f"--valid_fraction {valid_fraction:g} and --test_fraction {test_fraction:g}"
        raise UserError(f"{shares} leave nothing to train on; they are shares from 0, below 1 together")
    csv_file, report = Path(csv_file), report or DataReport()
    lines, files, cubes = {}, {}, []
    rows = read_table(csv_file, ("ID", "hs_file"), WAY_OUT)
    for column in rows[0][1] if rows else ():
        if column and column not in COLUMNS:
            report.add("unknown column", csv_file, "not read", f"{column}; known are {', '.join(COLUMNS)}")
    for line, row in rows:
        cells = {column: row.get(column, "").strip() for column in COLUMNS}
        name, where = cells["ID"], f"{csv_file}, line {line}"
        if not name:
            raise UserError(f"{where}: ID is empty")
        if lines.setdefault(name, line) != line:
            raise UserError(f"{where}: ID {name} stands in line {lines[name]}, too; give each row its own")
        split = SPELLINGS.get(cells["split"].lower(), cells["split"].lower())
        if split not in (*SPLITS, ""):
            raise UserError(f"{where}: split is {cells['split']!r}; write {', '.join(SPLITS)}, or nothing")
        file = absolute(csv_file, cells["hs_file"])
        if problem := _missing(file) if cells["hs_file"] else "hs_file is empty":
            report.add(problem, f"{where}, {name}", "case skipped", cells["hs_file"] and file)
            continue
        if (first := files.setdefault(os.path.realpath(file), name)) != name:
            report.add("the same file twice", f"{where}, {name}", "case skipped", f"{file} is {first}'s")
            continue
        others = {column: absolute(csv_file, cells[column]) for column in ("rgb_file", "mask_file") if cells[column]}
        for column, other in others.items():
            if problem := _missing(other):
                report.add(f"{column}: {problem}", f"{where}, {name}", "kept without it", other)
                others[column] = None
        patient = cells["patient"] or file.name[:PATIENT_CHARACTERS]
        cubes.append(Cube(name, file, cells["label"], patient, split, **others))
    if not cubes:
        example = next((f" ({p.where}: {p.reason})" for p in report.problems if p.action == "case skipped"), "")
        raise UserError(f"{csv_file} names no file that exists{example}; paths are relative to the CSV")

    named = {cube.patient: cube.split for cube in cubes if cube.split}
    splits = {split: [] for split in SPLITS}
    for cube in cubes:
        split = cube.split or named.get(cube.patient) or _drawn_split(cube.patient, valid_fraction, test_fraction)
        splits[split].append(replace(cube, split=split))
    refuse_shared_patients({split: {cube.id: cube.patient for cube in part} for split, part in splits.items()})
    report.cases = {split: len(part) for split, part in splits.items()}
    return splits


def absolute(csv_file: Path, path: str) -> Path:
    """Absolute path of a path in the CSV, which is relative to the CSV."""
    return Path(os.path.abspath(csv_file.parent / path))


def _missing(file: Path) -> str | None:
    if os.path.isdir(file):  # os.path does not raise for invalid names, unlike pathlib
        return "a folder, not a file"
    return None if os.path.isfile(file) else "no such file"


def _drawn_split(patient: str, valid_fraction: float, test_fraction: float) -> str:
    place = position(patient)
    return "test" if place < test_fraction else "valid" if place < test_fraction + valid_fraction else "train"


def add_data_arguments(group) -> None:
    """Adds the data arguments of `read_cubes`, `inspect` and `read_cube` to a parser or argument group."""
    group.add_argument("--csv_file", type=Path, required=True, help="table of the cubes; paths relative to it")
    group.add_argument("--h5_key", default=H5_KEY, help="data set with the cube in the HDF5 files")
    text = "wavelengths of the bands in nm: a list, ranges, or a file of them"
    group.add_argument("--wavelengths", type=parse_wavelengths, default=DEFAULT, metavar="LIST", help=text)
    for split, share in (("valid", 0.1), ("test", 0.2)):
        text = f"share of the patients in {split}, where the CSV names no split"
        group.add_argument(f"--{split}_fraction", type=float, default=share, help=text)


# -------------------------------------------------------------------------------------------------------------- files


def read_cube(file: Path, key: str = H5_KEY, bands: int | None = None) -> np.ndarray:
    """Cube (C, H, W) float32 of a file, in its own units; integers are converted, not scaled.

    Raises BadCube for a damaged file, a missing data set `key`, another shape or number of `bands`, NaN or infinite
    values, and a constant cube.
    """
    with open_dataset(file, key) as dataset:
        check_header(file, dataset, bands, None)
        cube = dataset[...]
    with np.errstate(over="ignore"):  # values too large become infinite and are refused below
        cube = cube.astype(np.float32, copy=False)
    low, high = cube.min(), cube.max()  # both are NaN if any value is
    if not np.isfinite(low) or not np.isfinite(high):
        number = int((~np.isfinite(cube)).sum())
        raise BadCube(file, f"NaN or infinite values: {number} of {cube.size}; repair it, or remove it from the CSV")
    if low == high:
        raise BadCube(file, f"constant: every value is {low:g}; remove it from the CSV")
    return cube


@contextmanager
def open_dataset(file: Path, key: str) -> Iterator[h5py.Dataset]:
    """Opens a data set for reading. Errors of HDF5, also inside the block, are raised as BadCube."""
    try:
        require_file(file)
        # No locks, which some network and read-only file systems refuse.
        with h5py.File(file, "r", locking=False) as store:
            dataset = store.get(key)
            if not isinstance(dataset, h5py.Dataset):
                raise BadCube(file, f"no data set {key}: it holds {_contents(store)}; name the cube with --h5_key")
            yield dataset
    except FileNotFoundError:
        raise BadCube(file, "no such file") from None
    except (OSError, RuntimeError) as error:
        raise BadCube(file, f"no HDF5 file, or a damaged one: {first_line(error)}; copy it again") from error


def _contents(store: h5py.File) -> str:
    found = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(f"/{name} {item.shape}")

    store.visititems(visit)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} others" if len(found) > 5 else "") if found else "none"


def check_header(file: Path, dataset: h5py.Dataset, bands: int | None, size: tuple[int, int] | None) -> None:
    """Raises BadCube unless a data set is numeric with the shape (`bands`, *`size`), as far as these are given."""
    shape = dataset.shape
    if dataset.dtype.kind not in "iuf":
        raise BadCube(file, f"no numbers: {dataset.name} is of type {dataset.dtype}; name the cube with --h5_key")
    if shape is None or len(shape) != 3 or 0 in shape:
        raise BadCube(file, f"no cube of bands, rows and columns: {dataset.name} has the shape {shape}; see --h5_key")
    if (gib := math.prod(shape) * max(dataset.dtype.itemsize, 4) / 2**30) > LARGEST:
        raise BadCube(file, f"too large: {gib:.1f} GiB of {shape}, over {LARGEST}; cut it into smaller ones")
    if bands is not None and shape[0] != bands:
        if shape[2] == bands:
            raise BadCube(
                file, f"bands last: the shape {shape} is rows, columns, bands; store it transposed, bands first"
            )
        raise BadCube(file, f"other number of bands: {shape[0]}, not {bands}; name those of the cubes by --wavelengths")
    if size is not None and shape[1:] != tuple(size):
        (height, width), wanted = shape[1:], "x".join(map(str, size))
        way_out = f"--img_size {height}" if height == width else f"cut or pad it to {wanted}"
        raise BadCube(file, f"other size: {height}x{width} px, the model wants {wanted}: {way_out}")


def inspect(
    splits: Splits, key: str, bands: int | None, size: tuple[int, int] | None, report: DataReport
) -> dict[str, list[Cube]]:
    """Cubes with a valid header: data set `key` of `bands` bands and `size` (H, W) in px; None = any. Reads no values.
    The others, and files that are slow to read, are added to the `report`.

    Raises UserError, with the most frequent reason and the remedy, if no cube of a split remains.
    """
    bad = {}
    for cube in (cube for cubes in splits.values() for cube in cubes):
        try:
            with open_dataset(cube.file, key) as dataset:
                check_header(cube.file, dataset, bands, size)
                slow = dataset.chunks and (dataset.compression or "in chunks")
            if slow:
                report.add("slow to read", cube.file, "kept", f"{slow}; cubes.py repack makes fast copies")
        except BadCube as error:
            bad[cube.id] = error.reason
    usable = leave_out(splits, bad, report)
    for split, cubes in splits.items():
        if cubes and not usable[split]:
            kinds = [bad[cube.id].partition(": ")[0] for cube in cubes]
            kind, number = Counter(kinds).most_common(1)[0]
            first = cubes[kinds.index(kind)]
            why = f"{number} of {len(cubes)} for this: {first.file}: {bad[first.id]}"
            raise UserError(f"no {split} cube can be used, {why}")
    return usable


def leave_out(
    splits: Splits, unusable: Mapping[str, str], report: DataReport, needed: Sequence[str] = ()
) -> dict[str, list[Cube]]:
    """Cubes by split without the `unusable` ones (ID -> problem), which are added to the `report`.

    Raises UserError for a `needed` split without cubes.
    """
    usable = {split: [cube for cube in cubes if cube.id not in unusable] for split, cubes in splits.items()}
    for cube in (cube for cubes in splits.values() for cube in cubes if cube.id in unusable):
        report_bad(report, cube, unusable[cube.id])
    report.cases = {split: len(part) for split, part in usable.items()}
    for split in needed:
        if not usable.get(split):
            counts = ", ".join(f"{number} {name}" for name, number in report.cases.items())
            raise UserError(f"no {split} cube that can be used ({counts}): see the column split, or add patients")
    return usable


def report_bad(report: DataReport, cube: Cube, reason: str) -> None:
    """Adds an unusable cube to the report; `reason` as of `BadCube` and `Statistics.unusable`."""
    kind, _, particulars = reason.partition(": ")
    report.add(kind, f"{cube.id}, {cube.file}", "case skipped", particulars)


def foreground(cube: np.ndarray) -> np.ndarray:
    """Field of view without its dark border, bool (H, W), of a cube (C, H, W) of reflectances or counts with black = 0.

    Pixels whose mean over the bands exceeds 10 % of the 99th percentile of this mean over the pixels.
    """
    brightness = cube.mean(axis=0)
    return brightness > FOREGROUND * np.percentile(brightness, 99)
