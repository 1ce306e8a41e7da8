"""The store of slices: small files that a training run can read at random, instead of volumes.

STORE/settings.json                 how slices were taken: the arguments of ct_volumes.slice_stack
STORE/manifest.csv                  file, volume, patient, scan, split, slices, and the 18 labels (1, 0, -1 = unknown)
STORE/{train,valid}/<volume>.h5     dataset `slices` uint8 (S, 3, H, W), not compressed; attributes say what they are
"""

import csv
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np

from core.errors import UserError, first_line
from core.files import must_hold, read_json, require_file, whole_file
from core.tables import read_table
from ct.volumes import LABELS, WINDOWS, VolumeError, load_volume, slice_stack

SPLITS = ("train", "valid")
MANIFEST, SETTINGS = "manifest.csv", "settings.json"
COLUMNS = ("file", "volume", "patient", "scan", "split", "slices", *LABELS)


@dataclass
class StoredVolume:
    """One volume of a store."""

    file: Path
    name: str  # train_1_a_1
    patient: str
    scan: str
    split: str
    slices: int
    labels: np.ndarray  # (18,) int8: 1, 0, or -1 for unknown


# -------------------------------------------------------------------------------------------------------------- slices


def write_slices(file: Path, pixels: np.ndarray, attributes: dict) -> None:
    """Writes uint8 (S, 3, H, W) with `attributes` to `file`, which is whole or not there at all."""
    with whole_file(file) as unfinished, h5py.File(unfinished, "w") as store:
        store.create_dataset("slices", data=pixels)
        store.attrs.update(attributes)


def _open(file: Path) -> h5py.File:
    require_file(file)  # HDF5 would wait at a pipe
    return h5py.File(file)


def read_slices(file: Path, which: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Slices uint8 (S, 3, H, W) of a file; those with the numbers `which`, in that order, or all.

    Raises VolumeError, naming the file, if it is missing or damaged.
    """
    try:
        with _open(file) as store:
            slices = store["slices"]
            if which is None:
                return slices[:]
            pixels = np.empty((len(which), *slices.shape[1:]), slices.dtype)
            for row, number in enumerate(which):  # one by one: h5py is slow with lists of numbers
                slices.read_direct(pixels, np.s_[int(number)], np.s_[row])
            return pixels
    except FileNotFoundError:
        raise VolumeError(f"{file}: no such file; extract_slices.py makes it") from None
    except (OSError, KeyError) as error:
        reason = f"damaged ({first_line(error)}); delete it and run extract_slices.py again"
        raise VolumeError(f"{file}: {reason}") from error


def read_attributes(file: Path) -> dict | None:
    """The attributes of a file of slices; None if there is no such file, or a damaged one."""
    try:
        with _open(file) as store:
            return dict(store.attrs) if "slices" in store else None
    except OSError:
        return None


def holds_slices(file: Path) -> bool:
    """Whether there is such a file of slices, and not a damaged one. Reads no attribute, which takes twice as long."""
    try:
        with _open(file) as store:
            return "slices" in store
    except OSError:
        return False


def check_files(volumes: Iterable[StoredVolume]) -> None:
    """Raises UserError, naming the first, if a file of slices is missing or damaged: before the first step."""
    broken = [volume.file for volume in volumes if not holds_slices(volume.file)]
    if broken:
        others = f", and {len(broken) - 1} others," if len(broken) > 1 else ""
        raise UserError(f"{broken[0]}{others}: missing or damaged; run extract_slices.py again")


@dataclass
class Extraction:
    """What became of one volume."""

    slices: int
    kept: bool  # from an earlier run: nothing was read or written
    warnings: list[str]  # "reason: detail"


def extract(
    path: Path, metadata: dict | None, file: Path, attributes: dict, settings: dict, overwrite: bool = False
) -> Extraction:
    """Reads the volume at `path` and writes its slices to `file`, unless they are there: of the same source (size and
    time of change) with the same `settings`. Raises VolumeError, and takes away what lay at `file`, if it cannot.
    """
    try:
        size, mtime_ns = _fingerprint(path)
        attributes = attributes | settings | {"source_size": size, "source_mtime_ns": mtime_ns}
        attributes |= {"windows": json.dumps(WINDOWS), "orientation": "LPS"}
        found = None if overwrite else read_attributes(file)
        if found and all(found.get(name) == value for name, value in attributes.items()):
            return Extraction(len(found["positions_mm"]), True, json.loads(found["warnings"]))
        volume = load_volume(path, metadata)
        pixels, positions = slice_stack(volume, **settings)
    except VolumeError:
        file.unlink(missing_ok=True)
        raise
    described = {"spacing_zyx_mm": volume.spacing, "hu_source": volume.hu_source, "positions_mm": positions}
    described |= {"lung_ml": volume.chest.lung_ml, "warnings": json.dumps(volume.warnings)}
    write_slices(file, pixels, attributes | described)
    return Extraction(len(pixels), False, volume.warnings)


def start_worker() -> None:
    """Makes a process of a pool a worker: one thread, no say in Ctrl-C, and no life after its parent's."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets it finish its volume

    def end_with_parent() -> None:  # a parent that is killed tells nobody
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file, or of all files of a folder. Raises VolumeError."""
    try:
        found = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}") from error
    return sum(state.st_size for state in found), max((state.st_mtime_ns for state in found), default=0)


def has_settings(file: Path, settings: dict) -> bool:
    """Whether `file` holds slices that were taken with `settings`."""
    found = read_attributes(file)
    return found is not None and all(found.get(name) == value for name, value in settings.items())


# ------------------------------------------------------------------------------------------------------------ settings


def write_settings(store: Path, settings: dict) -> None:
    store.mkdir(parents=True, exist_ok=True)
    (store / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_settings(store: Path) -> dict:
    """The arguments of `ct_volumes.slice_stack` that made a store. Raises UserError if there is none."""
    file = Path(store) / SETTINGS
    try:
        settings = read_json(file)
        must_hold(settings, slices=int, size=int, field_mm=int | float, channels=str)
        return settings
    except FileNotFoundError:
        raise UserError(f"{store} is no store of slices: it has no {SETTINGS}; extract_slices.py makes one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} holds no settings ({first_line(error)}); run extract_slices.py --overwrite") from error


# ------------------------------------------------------------------------------------------------------------ manifest


def write_manifest(store: Path, volumes: Iterable[StoredVolume]) -> None:
    """Writes the list of volumes, files relative to the store."""
    with whole_file(store / MANIFEST) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for volume in volumes:
            place = volume.file.relative_to(store).as_posix()
            described = (place, volume.name, volume.patient, volume.scan, volume.split, volume.slices)
            writer.writerow([*described, *map(int, volume.labels)])


def read_manifest(store: Path) -> list[StoredVolume]:
    """The volumes of a store, as listed. Raises UserError, with the line, for what a manifest cannot hold."""
    store = Path(store)
    manifest = store / MANIFEST
    rows = read_table(manifest, COLUMNS, f"extract_slices.py --output {store} makes it")
    volumes = [_stored_volume(store, row, f"{manifest}, line {line}") for line, row in rows]
    if not volumes:
        raise UserError(f"{manifest} lists no volume; run extract_slices.py")
    return volumes


def _stored_volume(store: Path, row: dict[str, str], where: str) -> StoredVolume:
    for column in ("file", "volume", "patient", "scan"):
        if not row[column]:
            raise UserError(f"{where}: {column} is empty")
    if row["split"] not in SPLITS:
        raise UserError(f"{where}: split is {row['split']!r}; write {' or '.join(SPLITS)}")
    if not row["slices"].isdecimal() or int(row["slices"]) < 1:
        raise UserError(f"{where}: slices is {row['slices']!r}, no number of slices")
    for label in LABELS:
        if row[label] not in ("1", "0", "-1"):
            raise UserError(f"{where}: {label} is {row[label]!r}; write 0, 1 or -1 (unknown)")
    labels = np.array([int(row[label]) for label in LABELS], np.int8)
    names = row["volume"], row["patient"], row["scan"], row["split"]
    return StoredVolume(store / row["file"], *names, int(row["slices"]), labels)
