"""Extraction of a volume's slices into the slice store, in a worker process."""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2

from ct.store import read_attributes, write_slices
from ct.volumes import WINDOWS, VolumeError, load_volume, slice_stack


@dataclass
class Extraction:
    """Result of extracting one volume."""

    slices: int
    kept: bool  # unchanged from an earlier run
    warnings: list[str]  # "reason: detail"


def extract(
    path: Path, metadata: dict | None, file: Path, attributes: dict, settings: dict, overwrite: bool = False
) -> Extraction:
    """Writes the slices of the volume at `path` to `file`, unless it holds those of the same source (size and
    modification time) and `settings`. Raises VolumeError if the volume cannot be used, and deletes `file`."""
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
    """Sets up a worker process: one thread, Ctrl-C ignored, exit together with the parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the current volume is finished first

    def end_with_parent() -> None:  # a killed parent sends no signal
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _fingerprint(path: Path) -> tuple[int, int]:
    """Total size and latest modification time (ns) of a file or of the files of a folder. Raises VolumeError."""
    try:
        found = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}") from error
    return sum(state.st_size for state in found), max((state.st_mtime_ns for state in found), default=0)
