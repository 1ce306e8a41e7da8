"""Landmarks, measurements and a tracing for your own images.

    python cephalometric/predict.py --input PATIENT.png --checkpoint runs/cephalometric/best --pixel_size 0.1
    python cephalometric/predict.py --input FOLDER --checkpoint … --refiner runs/cephalometric_refiner/best --tta 10

Writes to --output, for each image, <name>.json (annotation format plus mm and confidence), <name>_tracing.png and
<name>_measurements.csv; for all images landmarks.csv and data_report.json. Research use only: not a medical device.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.anatomy import Anatomy, Measurement, assess, read_norms, vertical_measurements
from ceph.dataset import PIXEL_SIZES
from ceph.predictor import Predictor, add_arguments
from ceph.tracing import tracing
from core import figures
from core.args import ArgumentParser, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct_names
from core.images import SUFFIXES, ImageError, is_dicom, read_image, without_suffix
from core.results import number, write_csv, write_json
from core.validation import DataReport

NAME = Path(__file__).resolve().parent.name


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", "--image", type=Path, nargs="+", required=True,
                        help="input images: files (PNG, JPEG, BMP, TIFF, DICOM) or folders")  # fmt: skip
    add_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path(f"runs/{NAME}_predictions"), help="output folder")
    parser.add_argument("--pixel_size", "--pixel_spacing", type=float, metavar="MM",
                        help="pixel size in mm (default: DICOM header; without either, lengths in px)")  # fmt: skip
    parser.add_argument("--norms", type=Path, help='JSON file of norms, {"N-Me": [mean, SD], …}')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.pixel_size is not None and not PIXEL_SIZES[0] <= args.pixel_size <= PIXEL_SIZES[1]:
        raise UserError(f"--pixel_size {args.pixel_size}: plausible mm per px lie between {PIXEL_SIZES}")
    console, report = make_console(), DataReport()
    norms = read_norms(args.norms)
    predictor = Predictor(args.checkpoint, args.refiner, args.refine_crops, args.tta).to(make_accelerator().device)
    anatomy = predictor.anatomy
    taught = [name for name, known in zip(anatomy.names, predictor.taught, strict=True) if known]

    images = [file for path in args.input for file in (_pictures(path) if path.is_dir() else [path])]
    rows = []
    with report.written_to(args.output / "data_report.json"):
        for image, name in zip(images, _names(images), strict=True):
            try:
                picture = read_image(image)
                mm_per_px = args.pixel_size or _isotropic(picture.mm_per_px, image)
            except ImageError as error:
                report.add("picture unreadable", image, "left out", error)
                continue
            found = predictor.picture(picture.pixels, mm_per_px)
            points, confidence = found.points[0], found.confidence[0]
            stage = {"cvm_stage": anatomy.stages[found.stage[0].argmax()]} if anatomy.stages else {}
            write_landmarks(args.output / f"{name}.json", anatomy, points, confidence, mm_per_px, stage)
            title = f"{name}   {'uncalibrated' if mm_per_px is None else f'{mm_per_px:g} mm/px'}   research use only"
            drawn = tracing(picture.pixels, points, anatomy.schema, title)
            figures.save(drawn, args.output / f"{name}_tracing.png", dpi=100)
            told = points[predictor.taught].ravel().round(2), confidence[predictor.taught].round(3)
            rows.append([name, image, mm_per_px or "", *stage.values(), *told[0], *told[1]])
            if anatomy.measurements:
                values = vertical_measurements(points, mm_per_px, anatomy)
                assessed = [(m, values[m.name], norms[m.name]) for m in anatomy.measurements]
                write_measurements(args.output / f"{name}_measurements.csv", assessed)
                print_measurements(console, name, assessed, stage, mm_per_px)
        report.cases["images"] = len(rows)

    coordinates = [f"{landmark}_{axis}" for landmark in taught for axis in "xy"]
    stage = ["cvm_stage"] if anatomy.stages else []
    header = ["id", "image", "mm_per_px", *stage, *coordinates, *(f"{landmark}_confidence" for landmark in taught)]
    write_csv(args.output / "landmarks.csv", header, rows)
    for problem in report.problems:
        console.print(f"left out: {problem.detail}", style="bold")
    console.print(f"{len(rows)} of {len(images)} pictures done, results in {args.output}. Research use only.")
    if not rows:
        raise UserError("no picture could be read")


def write_landmarks(
    file: Path, anatomy: Anatomy, points: np.ndarray, confidence: np.ndarray, mm_per_px: float | None, stage: dict
) -> None:
    """Writes landmarks in the annotation format, plus `mm` (from the picture's corner) and `confidence`.

    `points` (K, 2) native px, NaN = left out; `confidence` (K,); `stage`: {"cvm_stage": stage} or {}.
    """
    landmarks = []
    for place, (symbol, title) in enumerate(zip(anatomy.names, anatomy.schema.titles or anatomy.names, strict=True)):
        if np.isnan(points[place]).any():
            continue
        x, y = (round(float(value), 3) for value in points[place])
        mm = {"x": round(x * mm_per_px, 3), "y": round(y * mm_per_px, 3)} if mm_per_px else None
        entry = {"landmark_id": str(place + 1), "title": title, "symbol": symbol, "value": {"x": x, "y": y}, "mm": mm}
        landmarks.append(entry | {"confidence": round(float(confidence[place]), 4)})
    content = {"ceph_id" if anatomy.is_built_in else "id": file.stem, "landmarks": landmarks, "pixel_size": mm_per_px}
    write_json(file, content | {key: {"value": value} for key, value in stage.items()})


def write_measurements(file: Path, assessed: list[tuple[Measurement, float, tuple | None]]) -> None:
    """Writes (measurement, value, norm) triples with z-score and status as CSV."""
    rows = []
    for m, value, norm in assessed:
        z, status = assess(value, norm)
        numbers = ["" if np.isnan(x) else f"{x:.2f}" for x in (value, z)]
        rows.append([m.name, m.title, numbers[0], m.unit, *(norm or ("", "")), numbers[1], status, m.source])
    write_csv(file, ["measurement", "title", "value", "unit", "norm", "norm_sd", "z", "status", "source"], rows)


def print_measurements(console: Console, name: str, assessed: list, stage: dict[str, int], mm_per_px) -> None:
    """Prints (measurement, value, norm) triples with z-score and status as a table."""
    calibration = f"{mm_per_px:g} mm/px" if mm_per_px else "uncalibrated: give --pixel_size for mm"
    title = f"{name} ({calibration})" + "".join(f", CVM stage {value}" for value in stage.values())
    table = Table("measurement", "value", "norm", "z", "status", title=title)
    for m, value, norm in assessed:
        z, status = assess(value, norm)
        text = number(value, f"{{:.1f}} {m.unit}")
        table.add_row(
            f"{m.name}  {m.title}", text, "{:g} ± {:g}".format(*norm) if norm else "–", number(z, "{:+.1f}"), status
        )
    console.print(table)


def _pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, DICOM files without suffix included."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return [file for file in files if file.suffix.lower() in SUFFIXES or is_dicom(file)]


def _names(images: list[Path]) -> list[str]:
    """Result name of each picture: its file name, numbered if it occurs twice."""
    return distinct_names(without_suffix(image).name for image in images)


def _isotropic(mm_per_px: tuple[float, float] | None, image: Path) -> float | None:
    """Pixel size in mm, common to both axes. Raises ImageError for anisotropic pixels and implausible sizes."""
    if mm_per_px is None:
        return None
    if abs(mm_per_px[0] - mm_per_px[1]) > 1e-3 * mm_per_px[0]:
        raise ImageError(f"{image}: its pixels are {mm_per_px[0]} × {mm_per_px[1]} mm, not square: resample it first")
    if not PIXEL_SIZES[0] <= mm_per_px[0] <= PIXEL_SIZES[1]:
        raise ImageError(f"{image}: {mm_per_px[0]:g} mm per px by its header is not plausible: give --pixel_size")
    return mm_per_px[0]


if __name__ == "__main__":
    script(main)
