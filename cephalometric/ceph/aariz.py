"""Reader of the Aariz data set (Khalid et al. 2022, "CEPHA29"), forgiving to folders and strict to numbers.

Aariz/{train,valid,test}/Cephalograms/<id>.png|jpg|jpeg|bmp
      …/Annotations/Cephalometric Landmarks/{Junior Orthodontists,Senior Orthodontists}/<id>.json
      …/Annotations/CVM Stages/<id>.json
Aariz/cephalogram_machine_mappings.csv      cephalogram_id, machine, pixel_size (mm/px), image_format, mode
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from ceph.dataset import PIXEL_SIZES, Cephalogram
from ceph.landmarks import LANDMARKS
from ceph.reading import SPLITS, annotated, checked_points, child, files_by_id, files_in, usable
from core.errors import UserError
from core.files import read_json
from core.images import SUFFIXES
from core.tables import read_table
from core.validation import DataReport

APOSTROPHES = str.maketrans("'’´′", "````")
FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def is_aariz(root: Path) -> bool:
    """Whether the folder looks like an Aariz tree."""
    return bool(_split_folders(root))


def read_aariz(
    root: Path, ground_truth: str = "mean", splits: tuple[str, ...] = SPLITS
) -> tuple[dict[str, list[Cephalogram]], DataReport]:
    """The cases of `splits`, {split: [Cephalogram, …] sorted by id}, and a report of all that is wrong with the tree.

    `ground_truth`: the un-rounded mean of both readers, one of them, or `official_ceil` (the mean rounded up, as in
    the data set's own loader: half a pixel off on average). Names of folders may differ in case. A bad case is left
    out, a bad landmark becomes NaN; each is reported. A picture that stands in two splits stays in the later one of
    train, valid, test only. Raises UserError if there is no such tree, or no usable case in one of `splits`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --dataset_path takes the Aariz folder, with train/, valid/ and test/")
    report, folders = DataReport(), _split_folders(root)
    if not folders:
        raise UserError(f"{root} holds none of train/, valid/, test/; --dataset_path takes the Aariz folder")
    machines = _read_machines(root, report)
    cases = {split: _read_split(folder, machines, ground_truth, report) for split, folder in folders.items()}
    return usable(cases, splits, root, report), report


def _split_folders(root: Path) -> dict[str, Path]:
    return {split: found for split, names in FOLDERS.items() if (found := child(root, *names))}


def _read_machines(root: Path, report: DataReport) -> dict[str, tuple[str, float | None]]:
    """Case id -> (device, mm per px or None)."""
    file = child(root, "cephalogram_machine_mappings.csv")
    if file is None:
        report.add("no machine table", root / "cephalogram_machine_mappings.csv", "all cases uncalibrated, px only")
        return {}
    machines: dict[str, tuple[str, float | None]] = {}
    for _, row in read_table(file, (), "without the table, errors are in px alone"):
        row = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if key}
        identity, text = row.get("cephalogram_id", ""), row.get("pixel_size", "")
        where = f"{file}, {identity}"
        try:
            pixel_size = float(text)
        except ValueError:
            pixel_size = math.nan
        if not PIXEL_SIZES[0] <= pixel_size <= PIXEL_SIZES[1]:
            report.add("no plausible pixel size", where, "kept, uncalibrated, px only", f"pixel_size {text!r}")
            pixel_size = None
        if identity in machines and machines[identity][1] != pixel_size:
            report.add("two pixel sizes", where, "kept, uncalibrated, px only", f"{machines[identity][1]}, {text}")
            pixel_size = None
        machines[identity] = (row.get("machine") or "unknown", pixel_size)
    if not any(machines):
        report.add("machine table names no case", file, "all cases uncalibrated, px only")
        return {}
    return machines


def _read_split(folder: Path, machines: dict, ground_truth: str, report: DataReport) -> list[Cephalogram]:
    annotations = child(folder, "Annotations")
    landmarks = child(annotations, "Cephalometric Landmarks")
    pictures = files_by_id(files_in(child(folder, "Cephalograms")), SUFFIXES, report)
    readers = {
        reader: files_by_id(files_in(child(landmarks, f"{reader} Orthodontists")), (".json",), report)
        for reader in ("junior", "senior")
    }
    stages = files_by_id(files_in(child(annotations, "CVM Stages")), (".json",), report)
    cases = []
    for identity, image, size, points in annotated(pictures, readers, ground_truth, _read_points, report):
        if identity not in machines and machines:
            report.add("not in the machine table", image, "kept, uncalibrated, px only")
        device, mm_per_px = machines.get(identity, ("unknown", None))
        stage = _read_stage(stages[identity], report) if identity in stages else None
        if stage is None and identity not in stages:
            report.add("no CVM stage", image, "kept, stage unknown")
        cases.append(Cephalogram(identity, image, size, points, mm_per_px, device, stage))
    return cases


def _read_points(file: Path, size: tuple[int, int], report: DataReport) -> np.ndarray | None:
    """Points (29, 2) of one reader, NaN for what is missing, no number, or outside the picture. None: unreadable."""
    try:
        entries = read_json(file)["landmarks"]
        places = {_symbol(entry["symbol"]): entry["value"] for entry in entries}
        values = {s: (xy.get("x"), xy.get("y")) if isinstance(xy, dict) else (xy, None) for s, xy in places.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        report.add("annotation unreadable", file, "annotation left out", f"{type(error).__name__}: {error}")
        return None
    for symbol in LANDMARKS:
        if symbol not in values:
            report.add("landmark missing", file, "landmark left out", symbol)
    return checked_points(values, file, size, report)


@lru_cache(1000)  # 29 texts, again and again
def _symbol(text: str) -> str:
    """Soft-tissue points end in a backtick; other apostrophes mean the same."""
    return text.strip().translate(APOSTROPHES)


def _read_stage(file: Path, report: DataReport) -> int | None:
    try:
        stage = int(read_json(file)["cvm_stage"]["value"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        report.add("CVM stage unreadable", file, "kept, stage unknown", f"{type(error).__name__}: {error}")
        return None
    if not 1 <= stage <= 6:
        report.add("CVM stage unreadable", file, "kept, stage unknown", f"{stage} is not 1-6")
        return None
    return stage
