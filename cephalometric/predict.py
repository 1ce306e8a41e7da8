"""Landmarks, measurements and a tracing for your own cephalograms.

    python cephalometric/predict.py --image PATIENT.png --checkpoint runs/cephalometric/best --pixel_size 0.1
    python cephalometric/predict.py --image FOLDER --checkpoint … --refiner runs/cephalometric_refiner/best --tta 10

For each picture, in --output: <name>.json (the Aariz data set's schema, with mm and confidence), <name>_tracing.png,
<name>_measurements.csv; for all of them landmarks.csv. Research use only: not a medical device.
"""

import csv
import json
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.anatomy import MEASUREMENTS, assess, read_norms, vertical_measurements
from ceph.dataset import PIXEL_SIZES
from ceph.landmarks import LANDMARK_TITLES, LANDMARKS
from ceph.predictor import Predictor, add_arguments
from ceph.tracing import tracing
from core import figures
from core.args import ArgumentParser, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct_names
from core.images import SUFFIXES, ImageError, is_dicom, read_image, without_suffix


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="PNG, JPEG, BMP, TIFF, DICOM, or folders")
    add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/cephalometric_predictions"), help="folder of results")
    parser.add_argument("--pixel_size", type=float, help="mm per px; needed for mm unless a DICOM file says it")
    parser.add_argument("--norms", type=Path, help='JSON file of norms, {"N-Me": [mean, SD], …}')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.pixel_size is not None and not PIXEL_SIZES[0] <= args.pixel_size <= PIXEL_SIZES[1]:
        raise UserError(f"--pixel_size {args.pixel_size}: mm per px of a cephalogram lie between {PIXEL_SIZES}")
    console = make_console()
    norms = read_norms(args.norms)
    predictor = Predictor(args.checkpoint, args.refiner, args.refine_crops, args.tta).to(make_accelerator().device)
    args.output.mkdir(parents=True, exist_ok=True)

    images = [file for path in args.image for file in (_pictures(path) if path.is_dir() else [path])]
    rows, failures = [], []
    for image, name in zip(images, _names(images), strict=True):
        try:
            picture = read_image(image)
            mm_per_px = args.pixel_size or _isotropic(picture.mm_per_px, image)
        except ImageError as error:
            failures.append(str(error))
            continue
        found = predictor.picture(picture.pixels, mm_per_px)
        points, confidence, stage = found.points[0], found.confidence[0], int(found.stage[0].argmax()) + 1
        measurements = vertical_measurements(points, mm_per_px)
        write_json(args.output / f"{name}.json", name, points, confidence, mm_per_px, stage)
        write_measurements(args.output / f"{name}_measurements.csv", measurements, norms)
        title = f"{name}   {'uncalibrated' if mm_per_px is None else f'{mm_per_px:g} mm/px'}   research use only"
        figures.save(tracing(picture.pixels, points, title), args.output / f"{name}_tracing.png", dpi=100)
        numbers = ["" if np.isnan(x) else x for x in (*points.ravel().round(2), *confidence.round(3))]
        rows.append([name, image, mm_per_px or "", stage, *numbers])
        print_measurements(console, name, measurements, norms, stage, mm_per_px)

    with open(args.output / "landmarks.csv", "w", newline="", encoding="utf-8") as file:
        coordinates = [f"{symbol}_{axis}" for symbol in LANDMARKS for axis in "xy"]
        writer = csv.writer(file)
        writer.writerow(
            ["id", "image", "mm_per_px", "cvm_stage", *coordinates, *[f"{s}_confidence" for s in LANDMARKS]]
        )
        writer.writerows(rows)
    for failure in failures:
        console.print(f"left out: {failure}", style="bold")
    console.print(f"{len(rows)} of {len(images)} pictures done, results in {args.output}. Research use only.")
    if not rows:
        raise UserError("no picture could be read")


def write_json(file: Path, name: str, points, confidence, mm_per_px: float | None, stage: int) -> None:
    """The schema of the Aariz annotations, with `mm` (from the picture's corner) and `confidence` added. Landmarks that
    the model was not taught are left out."""
    landmarks = []
    for number, (symbol, title) in enumerate(LANDMARK_TITLES.items()):
        if np.isnan(points[number]).any():
            continue
        x, y = (round(float(value), 3) for value in points[number])
        mm = {"x": round(x * mm_per_px, 3), "y": round(y * mm_per_px, 3)} if mm_per_px else None
        entry = {"landmark_id": str(number + 1), "title": title, "symbol": symbol, "value": {"x": x, "y": y}, "mm": mm}
        landmarks.append(entry | {"confidence": round(float(confidence[number]), 4)})
    content = {"ceph_id": name, "landmarks": landmarks, "pixel_size": mm_per_px, "cvm_stage": {"value": stage}}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def write_measurements(file: Path, values: dict[str, float], norms: dict) -> None:
    with open(file, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["measurement", "title", "value", "unit", "norm", "norm_sd", "z", "status", "source"])
        for m in MEASUREMENTS:
            z, status = assess(values[m.name], norms[m.name])
            norm = norms[m.name] or ("", "")
            numbers = ["" if np.isnan(number) else f"{number:.2f}" for number in (values[m.name], z)]
            writer.writerow([m.name, m.title, numbers[0], m.unit, *norm, numbers[1], status, m.source])


def print_measurements(console: Console, name: str, values: dict, norms: dict, stage: int, mm_per_px) -> None:
    """The table of ten measurements with norm, z and status."""
    calibration = f"{mm_per_px:g} mm/px" if mm_per_px else "uncalibrated: give --pixel_size for mm"
    table = Table("measurement", "value", "norm", "z", "status", title=f"{name} ({calibration}), CVM stage {stage}")
    for m in MEASUREMENTS:
        z, status = assess(values[m.name], norms[m.name])
        value = "–" if np.isnan(values[m.name]) else f"{values[m.name]:.1f} {m.unit}"
        norm = "{:g} ± {:g}".format(*norms[m.name]) if norms[m.name] else "–"
        table.add_row(f"{m.name}  {m.title}", value, norm, "–" if np.isnan(z) else f"{z:+.1f}", status)
    console.print(table)


def _pictures(folder: Path) -> list[Path]:
    """The files of a folder that are pictures; DICOM files often have no suffix."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return [file for file in files if file.suffix.lower() in SUFFIXES or is_dicom(file)]


def _names(images: list[Path]) -> list[str]:
    """A name for the results of each picture: its own, numbered where two pictures share it."""
    return distinct_names(without_suffix(image).name for image in images)


def _isotropic(mm_per_px: tuple[float, float] | None, image: Path) -> float | None:
    """One pixel size for both axes. Raises ImageError where they differ, as angles would be wrong, and for one that
    cannot be."""
    if mm_per_px is None:
        return None
    if abs(mm_per_px[0] - mm_per_px[1]) > 1e-3 * mm_per_px[0]:
        raise ImageError(f"{image}: its pixels are {mm_per_px[0]} × {mm_per_px[1]} mm, not square: resample it first")
    if not PIXEL_SIZES[0] <= mm_per_px[0] <= PIXEL_SIZES[1]:
        raise ImageError(f"{image}: {mm_per_px[0]:g} mm per px by its header, as no cephalogram has: give --pixel_size")
    return mm_per_px[0]


if __name__ == "__main__":
    script(main)
