"""Slice store: small files with random access to the slices of each volume.

STORE/settings.json                 settings of the extraction: arguments of ct.volumes.slice_stack
STORE/manifest.csv                  file, volume, patient, scan, split, slices, and one column per label (1, 0, -1)
STORE/{train,valid}/<volume>.h5     dataset `slices` uint8 (S, 3, H, W), not compressed, with attributes
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from core.errors import UserError, first_line
from core.files import must_hold, read_json, require_file, whole_file
from core.processes import shared
from core.results import write_csv, write_json
from core.tables import read_table
from core.validation import DataReport
from ct.labels import in_order

if TYPE_CHECKING:
    from accelerate import Accelerator

SPLITS = ("train", "valid")
MANIFEST, SETTINGS = "manifest.csv", "settings.json"
COLUMNS = ("file", "volume", "patient", "scan", "split", "slices")  # then the labels


@dataclass
class StoredVolume:
    """A volume of a store."""

    file: Path
    name: str  # train_1_a_1
    patient: str
    scan: str
    split: str
    slices: int
    labels: np.ndarray  # (labels of the store,) int8: 1, 0, or -1 for unknown


def write_slices(file: Path, pixels: np.ndarray, attributes: dict) -> None:
    """Writes slices uint8 (S, 3, H, W) with `attributes` to `file`, atomically."""
    with whole_file(file) as unfinished, h5py.File(unfinished, "w") as store:
        store.create_dataset("slices", data=pixels)
        store.attrs.update(attributes)


def _open(file: Path) -> h5py.File:
    require_file(file)  # HDF5 would block at a pipe
    return h5py.File(file)


def read_slices(file: Path, which: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Slices uint8 (S, 3, H, W) of a file: all, or the numbers `which` in this order. Raises UserError for a missing or
    damaged file."""
    try:
        with _open(file) as store:
            slices = store["slices"]
            if which is None:
                return slices[:]
            pixels = np.empty((len(which), *slices.shape[1:]), slices.dtype)
            for row, number in enumerate(which):  # one by one: h5py is slow with index lists
                slices.read_direct(pixels, np.s_[int(number)], np.s_[row])
            return pixels
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; extract_slices.py makes it") from None
    except (OSError, KeyError) as error:
        reason = f"damaged ({first_line(error)}); delete it and run extract_slices.py again"
        raise UserError(f"{file}: {reason}") from error


def read_attributes(file: Path) -> dict | None:
    """Attributes of a slice file; None if it is missing or damaged."""
    try:
        with _open(file) as store:
            return dict(store.attrs) if "slices" in store else None
    except OSError:
        return None


def holds_slices(file: Path) -> bool:
    """Whether a slice file exists and is intact. Attributes are not read, which would take twice as long."""
    try:
        with _open(file) as store:
            return "slices" in store
    except OSError:
        return False


def check_files(volumes: Sequence[StoredVolume], report: DataReport, accelerator: "Accelerator") -> None:
    """Opens each volume's file once; the ranks share the files. Adds missing and damaged ones to the `report`, and
    raises UserError with the first of them."""
    files = [volume.file for volume in volumes]
    broken = [file for file, whole in zip(files, shared(accelerator, holds_slices, files), strict=True) if not whole]
    for file in broken:
        report.add("slices missing or damaged", file, "refused")
    if broken:
        others = f", and {len(broken) - 1} others," if len(broken) > 1 else ""
        raise UserError(f"{broken[0]}{others}: missing or damaged; run extract_slices.py again")


def has_settings(file: Path, settings: dict) -> bool:
    """Whether `file` holds slices extracted with `settings`."""
    found = read_attributes(file)
    return found is not None and all(found.get(name) == value for name, value in settings.items())


def write_settings(store: Path, settings: dict) -> None:
    """Writes the arguments of `ct.volumes.slice_stack` for a store."""
    write_json(store / SETTINGS, settings)


def read_settings(store: Path) -> dict:
    """Arguments of `ct.volumes.slice_stack` of a store. Raises UserError if they are missing or invalid."""
    file = Path(store) / SETTINGS
    try:
        settings = read_json(file)
        must_hold(settings, slices=int, size=int, field_mm=int | float, channels=str)
        return settings
    except FileNotFoundError:
        raise UserError(f"{store} is no store of slices: it has no {SETTINGS}; extract_slices.py makes one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} holds no settings ({first_line(error)}); run extract_slices.py --overwrite") from error


def write_manifest(store: Path, labels: Sequence[str], volumes: Iterable[StoredVolume]) -> None:
    """Writes the list of volumes, with files relative to the store and one column per label."""
    rows = (
        [v.file.relative_to(store).as_posix(), v.name, v.patient, v.scan, v.split, v.slices, *v.labels.tolist()]
        for v in volumes
    )
    write_csv(store / MANIFEST, [*COLUMNS, *labels], rows)


def read_manifest(store: Path) -> tuple[tuple[str, ...], list[StoredVolume]]:
    """(labels, volumes) of a store. Raises UserError, with the line, for an invalid manifest."""
    manifest = Path(store) / MANIFEST
    rows = read_table(manifest, COLUMNS, f"extract_slices.py --output {store} makes it")
    if not rows:
        raise UserError(f"{manifest} lists no volume; run extract_slices.py")
    labels = in_order(column for column in rows[0][1] if column and column not in COLUMNS)
    if not labels:
        raise UserError(f"{manifest} has no column of a label; run extract_slices.py again")
    return labels, [_stored_volume(Path(store), row, labels, f"{manifest}, line {line}") for line, row in rows]


def _stored_volume(store: Path, row: dict[str, str], labels: Sequence[str], where: str) -> StoredVolume:
    for column in ("file", "volume", "patient", "scan"):
        if not row[column]:
            raise UserError(f"{where}: {column} is empty")
    if row["split"] not in SPLITS:
        raise UserError(f"{where}: split is {row['split']!r}; write {' or '.join(SPLITS)}")
    if not row["slices"].isdecimal() or int(row["slices"]) < 1:
        raise UserError(f"{where}: slices is {row['slices']!r}, not a number of slices")
    for label in labels:
        if row[label] not in ("1", "0", "-1"):
            raise UserError(f"{where}: {label} is {row[label]!r}; write 0, 1 or -1 (unknown)")
    values = np.array([int(row[label]) for label in labels], np.int8)
    names = row["volume"], row["patient"], row["scan"], row["split"]
    return StoredVolume(store / row["file"], *names, int(row["slices"]), values)


def label_table(volumes: Sequence[StoredVolume]) -> np.ndarray:
    """Labels (N, labels) int8 of N volumes: 1, 0, or -1 for unknown."""
    return np.stack([volume.labels for volume in volumes])
