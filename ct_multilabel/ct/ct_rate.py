"""Folder tree and tables of CT-RATE (Hamamci et al. 2024): names, labels, metadata, files.

CT-RATE/dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz     volumes in HU
        …/{train,valid}/…                                                  version 1: not in HU, see RescaleSlope
        …/multi_abnormality_labels/{train,valid}_predicted_labels.csv      VolumeName and one column per label
        …/metadata/{train,validation}_metadata.csv                         VolumeName, RescaleSlope, XYSpacing …
        …/metadata/no_chest_{train,valid}.txt                              volumes of other body parts

`train_1_a_1` is patient train_1, scan a, reconstruction 1. Reconstructions of a scan share their labels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.tables import read_table
from core.validation import DataReport, find_leaks
from ct.labels import LABELS, UNKNOWN, in_order, nearest, with_labels
from ct.store import COLUMNS, SPLITS

VERSIONS = ("fixed", "v1")  # in order of preference
NAME = re.compile(r"(?P<patient>(?P<split>train|valid)_\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)")
FETCH = "check the path, or fetch the table with the download script"
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd")


@dataclass
class Volume:
    """A volume on disk: a file, or the folder of a DICOM series."""

    name: str  # without suffix, e.g. train_1_a_1
    patient: str
    split: str
    path: Path
    labels: np.ndarray  # (labels of the tree,) int8: 1, 0, or -1 for unknown
    metadata: dict[str, str] | None = None  # the volume's row of the metadata table


def stem(name: str) -> str:
    """Name of a volume without folder and suffix: `train_1_a_1.nii.gz` -> `train_1_a_1`."""
    name = Path(name).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def patient_of(name: str) -> str | None:
    """`train_1` for `train_1_a_1`; None for names of another form."""
    match = NAME.fullmatch(stem(name))
    return match["patient"] if match else None


def labels_file(root: Path, split: str) -> Path:
    """Label table of a split."""
    return Path(root) / "dataset" / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"


def metadata_file(root: Path, split: str) -> Path:
    """Metadata table of a split."""
    name = {"train": "train", "valid": "validation"}[split]
    return Path(root) / "dataset" / "metadata" / f"{name}_metadata.csv"


def no_chest_file(root: Path, split: str) -> Path:
    """List of the volumes of a split without a chest."""
    return Path(root) / "dataset" / "metadata" / f"no_chest_{split}.txt"


def split_folder(root: Path, split: str, version: str = "fixed") -> Path:
    """Folder of a split's volumes."""
    return Path(root) / "dataset" / (f"{split}_fixed" if version == "fixed" else split)


def volume_file(root: Path, name: str, version: str = "fixed") -> Path:
    """Path of the volume `train_1_a_1`. Raises ValueError for names of another form."""
    match = NAME.fullmatch(stem(name))
    if not match:
        raise ValueError(f"{name!r} is no CT-RATE name such as train_1_a_1")
    patient, scan = match["patient"], f"{match['patient']}_{match['scan']}"
    return split_folder(root, match["split"], version) / patient / scan / f"{stem(name)}.nii.gz"


def read_labels(file: Path, report: DataReport) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(labels, volume name -> (labels,) int8: 1, 0, or -1 for unknown) of a label table.

    A column that holds only 0, 1 and -1 is a label. Other columns and misspelt labels of CT-RATE are added to the
    `report`. Raises UserError, with file and line, for other values (also empty ones) in a column of CT-RATE's, or in
    one that holds mostly 0, 1 and -1.
    """
    rows = read_table(file, ["VolumeName"], FETCH)
    columns = [column for column in (rows[0][1] if rows else ()) if column and column != "VolumeName"]
    values = {}
    for column in columns:
        cells, name = [_label(row[column]) for _, row in rows], column.strip()
        wrong = cells.index(None) if None in cells else None
        if wrong is not None and (name in LABELS or cells.count(None) < len(cells) / 2):
            line, row = rows[wrong]
            text = row[column].strip()
            raise UserError(f"{file}, line {line}, {row['VolumeName']}: {name} is {text!r}; write 0, 1 or -1 (unknown)")
        if name in values:
            raise UserError(f"{file} has several columns {name}; keep one of each")
        if name in COLUMNS:
            report.add("reserved column name", f"{file}, column {name!r}", "left out", "rename it if it is a label")
        elif wrong is not None or not name:
            found = f"holds {rows[wrong or 0][1][column][:40]!r}"
            report.add("column that is no label of 0, 1, -1", f"{file}, column {name!r}", "left out", found)
        else:
            values[name] = cells
        if near := nearest(name, LABELS):
            report.add("label name misspelt?", f"{file}, column {name!r}", "not renamed", f"expected {near!r}")
    labels = in_order(values)
    table = np.array([values[label] for label in labels], np.int8).reshape(len(labels), len(rows)).T
    found = {}
    for (line, row), known in zip(rows, table, strict=True):
        name = stem(row["VolumeName"].strip())
        if name in found and (found[name] != known).any():
            raise UserError(f"{file}, line {line}: {name} has two lines with different labels; keep one")
        found[name] = known
    return labels, found


def _label(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value in (0, 1, UNKNOWN) else None


def read_metadata(file: Path) -> dict[str, dict[str, str]]:
    """Volume name -> its row, as text by column. Raises UserError for a table without VolumeName."""
    return {stem(row["VolumeName"].strip()): row for _, row in read_table(file, ["VolumeName"], FETCH)}


def read_names(file: Path) -> list[str]:
    """Volume names of a list, one per line, without suffixes; comment lines start with #. Raises UserError for a
    missing file."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such list of volumes") from None
    return [stem(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def find_volumes(
    root: Path, report: DataReport, splits: Sequence[str] = SPLITS
) -> tuple[tuple[str, ...], list[Volume]]:
    """(labels, volumes sorted by name) of a tree; problems are added to the `report`.

    The `_fixed` version of a volume is preferred to version 1. Volumes in a no_chest list, without labels, or in train
    with a patient of valid are left out. Patients of volumes with other names are given by their folder below
    `train_fixed` or `valid_fixed`. Labels of one split only are unknown in the other. Raises UserError if there is no
    volume.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --dataset_path takes the CT-RATE folder, with dataset/ in it")
    folders = {split: [split_folder(root, split, version) for version in VERSIONS] for split in splits}
    folders = {split: found for split, all_ in folders.items() if (found := [f for f in all_ if f.is_dir()])}
    tables = {split: read_labels(labels_file(root, split), report) for split in folders}
    labels = in_order(label for names, _ in tables.values() for label in names)
    found: dict[str, Volume] = {}
    for split, (names, known) in tables.items():
        for label in [label for label in labels if label not in names]:
            where = f"{labels_file(root, split)}, column {label!r}"
            near = f"it has {near!r}" if (near := nearest(label, names)) else ""
            report.add("label without a column", where, "unknown in this split", near)
        metadata = read_metadata(file) if (file := metadata_file(root, split)).is_file() else {}
        no_chest = set(read_names(file)) if (file := no_chest_file(root, split)).is_file() else set()
        for folder in folders[split]:
            for path in find_files(folder):
                name = stem(path.name)
                patient = patient_of(name) or stem(path.relative_to(folder).parts[0])
                if name in found:
                    if found[name].path.is_relative_to(folder) or found[name].split != split:
                        report.add("two volumes with one name", path, "left out", f"{found[name].path} counts")
                elif name in no_chest:
                    report.add("in the no_chest list", path, "left out")
                elif name not in known:
                    report.add("no labels", path, "left out", f"not in {labels_file(root, split).name}")
                else:
                    found[name] = Volume(name, patient, split, path, known[name], metadata.get(name))
    if not found:
        raise UserError(f"{root} holds no labelled volume under dataset/train_fixed, valid_fixed, train or valid")
    if not labels:
        raise UserError(f"{root}: no column of the label tables holds 0, 1 and -1 alone, as a label does")
    by_split = {split: {v.name: v.patient for v in found.values() if v.split == split} for split in splits}
    for patient, places in find_leaks(by_split).items():
        for split, name in places:
            if split == "train":
                report.add("patient also in valid", found.pop(name).path, "left out of train", patient)
    parts = {split: [volume for volume in found.values() if volume.split == split] for split in tables}
    volumes = [volume for split, part in parts.items() for volume in with_labels(part, tables[split][0], labels)]
    volumes.sort(key=lambda volume: (volume.split, _natural(volume.name)))
    report.cases = {split: sum(volume.split == split for volume in volumes) for split in splits}
    return labels, volumes


def find_files(folder: Path) -> list[Path]:
    """Volume files, and folders of .dcm files (one DICOM series each), below `folder`; a file gives itself."""
    if not folder.is_dir():
        return [folder]
    found = set()
    for path in folder.rglob("*"):
        if path.suffix.lower() == ".dcm":
            found.add(path.parent)
        elif path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file():
            found.add(path)
    return sorted(found)


def _natural(name: str) -> list:
    """Sort key with train_2 before train_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
