"""Reader of the Aariz data set (Khalid et al. 2022, "CEPHA29") and of data sets in the same folder layout.

ROOT/{train,valid,test}/Cephalograms/<id>.png|jpg|jpeg|bmp                                         or Images/
     …/Annotations/Cephalometric Landmarks/{Junior Orthodontists,Senior Orthodontists}/<id>.json   or Landmarks/,
                          with Junior/ and Senior/, or with the files of one reader
     …/Annotations/CVM Stages/<id>.json
ROOT/cephalogram_machine_mappings.csv      cephalogram_id, machine, pixel_size (mm/px), …      or machines.csv: id, …
"""

import math
from functools import lru_cache
from pathlib import Path

from ceph.anatomy import Anatomy
from ceph.dataset import PIXEL_SIZES, Cephalogram
from ceph.reading import Places, Reading, child, files_by_id, files_in
from core.errors import UserError
from core.files import read_json
from core.images import SUFFIXES
from core.tables import read_table
from core.validation import DataReport

APOSTROPHES = str.maketrans("'’´′", "````")
FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
MACHINES = ("cephalogram_machine_mappings.csv", "machines.csv")


def is_aariz(root: Path) -> bool:
    """Whether a folder has the layout of Aariz."""
    return bool(_split_folders(root))


def read_aariz(root: Path, reading: Reading, splits: tuple[str, ...]) -> dict[str, list[Cephalogram]]:
    """Cases of `splits`, {split: [Cephalogram, …] sorted by id}.

    Ground truth `official_ceil` is the mean rounded up, as in the official loader: half a px off on average. Folder
    names are case-insensitive. Bad cases are left out, bad landmarks become NaN; both are reported. A picture in two
    splits stays only in the later one of train, valid, test. Raises UserError if `root` has another layout, or no
    usable case in one of `splits`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --dataset_path takes the folder that holds train/, valid/ and test/")
    if not (folders := _split_folders(root)):
        raise UserError(f"{root} holds none of train/, valid/, test/; --dataset_path takes the folder that does")
    machines = _read_machines(root, reading.anatomy, reading.report)
    cases = {split: _read_split(folder, machines, reading) for split, folder in folders.items()}
    return reading.usable(cases, splits, root)


def _split_folders(root: Path) -> dict[str, Path]:
    return {split: found for split, names in FOLDERS.items() if (found := child(root, *names))}


def _read_machines(root: Path, anatomy: Anatomy, report: DataReport) -> dict[str, tuple[str, float | None]]:
    """Case id -> (device, mm per px or None)."""
    file = child(root, *MACHINES)
    if file is None:
        missing = root / MACHINES[0 if anatomy.is_built_in else 1]
        report.add("no machine table", missing, "all cases uncalibrated, px only")
        return {}
    machines: dict[str, tuple[str, float | None]] = {}
    for _, row in read_table(file, (), "without the table, errors are in px alone"):
        row = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items() if key}
        identity, text = row.get("cephalogram_id") or row.get("id", ""), row.get("pixel_size", "")
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


def _read_split(folder: Path, machines: dict, reading: Reading) -> list[Cephalogram]:
    report, known_stages = reading.report, reading.anatomy.stages
    annotations = child(folder, "Annotations")
    landmarks = child(annotations, "Cephalometric Landmarks", "Landmarks")
    pictures = files_by_id(files_in(child(folder, "Cephalograms", "Images")), SUFFIXES, report)
    places = {reader: child(landmarks, f"{reader} Orthodontists", reader) for reader in ("junior", "senior")}
    if not any(places.values()):
        places = {"senior": landmarks}  # one unnamed reader
    readers = {reader: files_by_id(files_in(place), (".json",), report) for reader, place in places.items()}
    stages = files_by_id(files_in(child(annotations, "CVM Stages")) if known_stages else (), (".json",), report)
    cases = []
    for identity, image, size, points in reading.annotated(pictures, readers, _read_places):
        if identity not in machines and machines:
            report.add("not in the machine table", image, "kept, uncalibrated, px only")
        device, mm_per_px = machines.get(identity, ("unknown", None))
        stage = _read_stage(stages[identity], reading) if identity in stages else None
        if known_stages and identity not in stages:
            report.add("no CVM stage", image, "kept, stage unknown")
        cases.append(Cephalogram(identity, image, size, points, mm_per_px, device, stage))
    return cases


def _read_places(file: Path, reading: Reading) -> Places | None:
    """Landmark -> (x, y) of one annotation file; None if it is unreadable. Missing landmarks are reported."""
    try:
        entries = read_json(file)["landmarks"]
        own = _own_names(reading.anatomy.names)
        found = {_symbol(entry["symbol"]): entry for entry in entries}
        values = {own.get(symbol, entry["symbol"]): entry["value"] for symbol, entry in found.items()}
        places = {s: (xy.get("x"), xy.get("y")) if isinstance(xy, dict) else (xy, None) for s, xy in values.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reading.report.add("annotation unreadable", file, "annotation left out", f"{type(error).__name__}: {error}")
        return None
    missing = [name for name in reading.anatomy.names if name not in places]
    for name in missing if len(missing) < len(reading.anatomy.names) else ("all",):
        reading.report.add("landmark missing", file, "landmark left out", name)
    return places


@lru_cache(4)
def _own_names(names: tuple[str, ...]) -> dict[str, str]:
    """Symbol -> name of a scheme."""
    return {_symbol(name): name for name in names}


@lru_cache(1000)
def _symbol(text: str) -> str:
    """Symbol with a backtick for any apostrophe (soft-tissue landmarks)."""
    return text.strip().translate(APOSTROPHES)


def _read_stage(file: Path, reading: Reading) -> int | None:
    try:
        stage = int(read_json(file)["cvm_stage"]["value"])
        if stage not in reading.anatomy.stages:
            raise ValueError(f"{stage} is none of {', '.join(map(str, reading.anatomy.stages))}")
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        reading.report.add("CVM stage unreadable", file, "kept, stage unknown", f"{type(error).__name__}: {error}")
        return None
    return stage
