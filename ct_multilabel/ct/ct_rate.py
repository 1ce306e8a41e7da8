"""The folder tree and the tables of CT-RATE (Hamamci et al. 2024): names, labels, metadata, and what lies on the disk.

CT-RATE/dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz     volumes in HU
        …/{train,valid}/…                                                  version 1: not HU, see RescaleSlope
        …/multi_abnormality_labels/{train,valid}_predicted_labels.csv      VolumeName and the 18 labels
        …/metadata/{train,validation}_metadata.csv                         VolumeName, RescaleSlope, XYSpacing …
        …/metadata/no_chest_{train,valid}.txt                              volumes that show another part of the body

`train_1_a_1` is patient train_1, scan a, reconstruction 1. Reconstructions of a scan share their labels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.losses.classification import UNKNOWN
from core.tables import read_table
from core.validation import DataReport, find_leaks
from ct.volumes import LABELS

SPLITS = ("train", "valid")
VERSIONS = ("fixed", "v1")  # in order of preference
NAME = re.compile(r"(?P<patient>(?P<split>train|valid)_\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)")
FETCH = "download_ct_rate.py fetches it"
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd")


@dataclass
class Volume:
    """One volume on the disk: a file, or the folder of a DICOM series."""

    name: str  # without suffix, e.g. train_1_a_1
    patient: str
    split: str
    path: Path
    labels: np.ndarray  # (18,) int8: 1, 0, or -1 for unknown
    metadata: dict[str, str] | None = None  # the volume's row of the metadata table


def stem(name: str) -> str:
    """A volume's name without folder and suffix: `train_1_a_1.nii.gz` -> `train_1_a_1`."""
    name = Path(name).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def patient_of(name: str) -> str | None:
    """`train_1` for `train_1_a_1`; None for a name of another form."""
    match = NAME.fullmatch(stem(name))
    return match["patient"] if match else None


def labels_file(root: Path, split: str) -> Path:
    return Path(root) / "dataset" / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"


def metadata_file(root: Path, split: str) -> Path:
    name = {"train": "train", "valid": "validation"}[split]
    return Path(root) / "dataset" / "metadata" / f"{name}_metadata.csv"


def no_chest_file(root: Path, split: str) -> Path:
    return Path(root) / "dataset" / "metadata" / f"no_chest_{split}.txt"


def split_folder(root: Path, split: str, version: str = "fixed") -> Path:
    return Path(root) / "dataset" / (f"{split}_fixed" if version == "fixed" else split)


def volume_file(root: Path, name: str, version: str = "fixed") -> Path:
    """Where CT-RATE keeps the volume `train_1_a_1`. Raises ValueError for a name of another form."""
    match = NAME.fullmatch(stem(name))
    if not match:
        raise ValueError(f"{name!r} is no CT-RATE name such as train_1_a_1")
    patient, scan = match["patient"], f"{match['patient']}_{match['scan']}"
    return split_folder(root, match["split"], version) / patient / scan / f"{stem(name)}.nii.gz"


def read_labels(file: Path) -> dict[str, np.ndarray]:
    """Volume name -> labels (18,) int8 in the order of LABELS: 1, 0, or -1 where the table says -1 (unknown).

    Columns are matched by name. Raises UserError, naming file and line, for a missing column and for an empty or other
    value: an absent label is never taken for a 0.
    """
    rows = read_table(file, ["VolumeName", *LABELS], FETCH)
    labels = {}
    for line, row in rows:
        values = []
        for label in LABELS:
            text = row[label].strip()
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if value not in (0, 1, UNKNOWN):
                raise UserError(
                    f"{file}, line {line}, {row['VolumeName']}: {label} is {text!r}; write 0, 1 or -1 (unknown)"
                )
            values.append(int(value))
        name = stem(row["VolumeName"].strip())
        if name in labels and list(labels[name]) != values:
            raise UserError(f"{file}, line {line}: {name} stands there twice with different labels; keep one line")
        labels[name] = np.array(values, np.int8)
    return labels


def read_metadata(file: Path) -> dict[str, dict[str, str]]:
    """Volume name -> its row, column by column, as text. Raises UserError for a table without VolumeName."""
    return {stem(row["VolumeName"].strip()): row for _, row in read_table(file, ["VolumeName"], FETCH)}


def read_names(file: Path) -> list[str]:
    """Volume names of a list, one a line, without suffixes; empty lines and lines that start with # are left out."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such list of volumes") from None
    return [stem(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def find_volumes(root: Path, splits: Sequence[str] = SPLITS) -> tuple[list[Volume], DataReport]:
    """The volumes of the tree with their labels and metadata, sorted by name, and a report of what is wrong with it.

    The `_fixed` version of a volume is preferred to version 1. Volumes in a no_chest list, without labels, or whose
    patient also stands in valid (for train) are left out and reported. Other volumes than CT-RATE's go by the tree
    alone: the folder under `train_fixed` or `valid_fixed` is the patient. Raises UserError if there is no volume.
    """
    root, report = Path(root), DataReport()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --dataset_path takes the CT-RATE folder, with dataset/ in it")
    found: dict[str, Volume] = {}
    for split in splits:
        folders = [folder for version in VERSIONS if (folder := split_folder(root, split, version)).is_dir()]
        if not folders:
            continue
        labels = read_labels(labels_file(root, split))
        metadata = read_metadata(file) if (file := metadata_file(root, split)).is_file() else {}
        no_chest = set(read_names(file)) if (file := no_chest_file(root, split)).is_file() else set()
        for folder in folders:
            for path in find_files(folder):
                name = stem(path.name)
                patient = patient_of(name) or stem(path.relative_to(folder).parts[0])
                if name in found:
                    if found[name].path.is_relative_to(folder) or found[name].split != split:
                        report.add("two volumes with one name", path, "left out", f"{found[name].path} counts")
                elif name in no_chest:
                    report.add("in the no_chest list", path, "left out")
                elif name not in labels:
                    report.add("no labels", path, "left out", f"not in {labels_file(root, split).name}")
                else:
                    found[name] = Volume(name, patient, split, path, labels[name], metadata.get(name))
    if not found:
        raise UserError(f"{root} holds no labelled volume under dataset/train_fixed, valid_fixed, train or valid")
    by_split = {split: {v.name: v.patient for v in found.values() if v.split == split} for split in splits}
    for patient, places in find_leaks(by_split).items():
        for split, name in places:
            if split == "train":
                report.add("patient also in valid", found.pop(name).path, "left out of train", patient)
    volumes = sorted(found.values(), key=lambda volume: (volume.split, _natural(volume.name)))
    report.cases = {split: sum(volume.split == split for volume in volumes) for split in splits}
    return volumes, report


def find_files(folder: Path) -> list[Path]:
    """Volume files, and folders of .dcm files (one DICOM series each), anywhere under `folder`; a file is itself."""
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
    """train_2 before train_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
