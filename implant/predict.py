"""Length and diameter of implants in your own pictures, with conformal intervals if there are calibration records.

    python implant/predict.py --checkpoint runs/implant/best --input crops/ --output predictions
    python implant/predict.py --checkpoint runs/implant/best --input records.json --output predictions \
        --calibration_json val.json

Inputs are pictures (with --pixel_size if known; DICOM files contain it), folders, or JSON files of records, whose sizes
may be unknown. Writes predictions.csv (one row per case), data_report.json and overview.png to --output.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import contextlib
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct
from core.images import DICOM_SUFFIXES, SUFFIXES, ImageError, is_dicom, read_image, without_suffix
from core.results import write_csv
from core.validation import DataReport, leave_out_unreadable
from implants.arguments import add_inference_arguments
from implants.crops import ImplantCrops
from implants.evaluation import Predictions, catalogue_of, mm_cells, nearest_sizes, read_catalogue
from implants.plots import overview
from implants.predictor import Answer, load_models, predict_all
from implants.records import Record, load_records
from implants.splits import needed, read_splits, records_of

SHOWN = 24  # cases in overview.png and on the terminal


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add_inference_arguments(parser)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH",
                        help="input images: files, folders, or JSON files of records")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="output folder")
    parser.add_argument("--pixel_size", "--pixel_spacing", type=float, metavar="MM",
                        help="pixel size in mm of images without one")  # fmt: skip
    parser.add_argument("--batch_size", type=positive_int, default=16, help="batch size per process, in crops")
    parser.add_argument("--num_workers", type=non_negative_int, default=0, help="data loader workers per process")
    args = parser.parse_args(argv)
    if args.pixel_size is not None and not 0 < args.pixel_size < 5:
        parser.error("--pixel_size is in mm, 0.1 for example")
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    models = load_models(args.checkpoint)
    model, config = models[0]
    train = records_of(config["train_sizes"], model.targets)
    catalogue = read_catalogue(args.catalogue, model.targets) if args.catalogue else catalogue_of(train, model.targets)
    report, fields = DataReport(), model.arguments["auxiliary"] or ()
    with report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        records = leave_out_unreadable({"input": find_records(args, fields, report)}, report, accelerator)["input"]
        files = {"calibration": args.calibration_json}
        needs = needed(train, model.targets)
        known = read_splits(files, args.data_root, report, accelerator, needs, config["limits"], fields)
    answer = predict_all(args, accelerator, console, "prediction", models, records, known.get("calibration"))
    if accelerator.is_main_process:
        nearest = nearest_sizes(answer.predictions, catalogue)
        write_table(args.output / "predictions.csv", records, answer, nearest)
        crops = ImplantCrops(records[:SHOWN], config["image_size"], config["margin"])
        pictures = [crops[row]["image"][0].numpy() for row in range(len(crops))]
        titles = [_title(answer.predictions, nearest, row) for row in range(len(crops))]
        figures.save(overview(pictures, titles), args.output / "overview.png")
        report.print(console, args.output / "data_report.json")
        print_table(console, records, answer.predictions, nearest)
        console.print(f"results in {args.output}", style="bold")
    accelerator.end_training()


def find_records(args, fields: Sequence[str], report: DataReport) -> list[Record]:
    """Cases of pictures, folders and JSON files, without duplicates. Raises UserError for other files and without
    case."""
    found: dict[tuple, Record] = {}
    for path in args.input:
        if path.suffix.lower() == ".json":
            records, _ = load_records(path, args.data_root, needs=(), fields=fields, report=report)
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_picture(file) and not file.name.startswith("."))
            records = [_record(file, without_suffix(file.relative_to(path)).as_posix(), args) for file in files]
        elif _is_picture(path):
            records = [_record(path, without_suffix(path).name, args)]
        else:
            kind = "neither picture nor JSON" if path.exists() else "no such file"
            raise UserError(
                f"--input {path}: {kind}; give {', '.join((*SUFFIXES, *DICOM_SUFFIXES))}, a folder or .json"
            )
        for record in records:
            found.setdefault((os.path.realpath(record.image), record.bbox), record)
    if not found:
        raise UserError(f"--input {' '.join(map(str, args.input))}: no picture there")
    names = distinct(record.id for record in found.values())
    return [replace(record, id=name) for record, name in zip(found.values(), names, strict=True)]


def _is_picture(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in SUFFIXES or is_dicom(path))


def _record(path: Path, name: str, args) -> Record:
    """Case of a picture without record."""
    spacing = (args.pixel_size,) * 2 if args.pixel_size else None
    if is_dicom(path):
        with contextlib.suppress(ImageError):  # unreadable pictures are reported later
            spacing = read_image(path).mm_per_px or spacing
    return Record(name, path, "", "", np.nan, np.nan, None, None, spacing, "", name, {})


def write_table(file: Path, records: list[Record], answer: Answer, nearest: np.ndarray) -> None:
    """Writes a CSV table, one row per case: company, model, auxiliary fields; each target in mm with σ, interval and
    nearest size on sale; only trained outputs."""
    found = answer.predictions
    parts = ("", "_sigma", "_low", "_high", "_nearest")
    numbers = np.stack([*found[:4], nearest], axis=2)  # (N, T, parts)
    header = ["id", "image", *found.named, *(f"{t}{part}_mm" for t in found.targets for part in parts)]
    rows = (
        [record.id, record.image, *(getattr(found, name)[row] for name in found.named), *mm_cells(numbers[row]),
         *(values[row] for values in answer.auxiliary.values())]
        for row, record in enumerate(records)
    )  # fmt: skip
    write_csv(file, [*header, *answer.auxiliary], rows)


def print_table(console: Console, records: list[Record], found: Predictions, nearest: np.ndarray) -> None:
    """Prints the first predictions and the nearest sizes on sale."""
    table = Table("", *found.named, *(f"{target} [mm]" for target in found.targets), "nearest on sale", box=None)
    for row, record in enumerate(records[:SHOWN]):
        named = [getattr(found, name)[row] for name in found.named]
        sizes = [_size(found, row, t) for t in range(len(found.targets))]
        table.add_row(Path(record.id).name, *named, *sizes, _sizes(nearest[row]))
    console.print(table, crop=False)
    if len(records) > SHOWN:
        console.print(f"… and {len(records) - SHOWN} more")


def _size(predictions: Predictions, row: int, target: int) -> str:
    low, high = predictions.low[row, target], predictions.high[row, target]
    interval = f" ({low:.1f} to {high:.1f})" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{predictions.mean[row, target]:.1f}{interval}"


def _sizes(sizes: np.ndarray, form: str = "{:g}") -> str:
    return " × ".join(map(form.format, sizes))


def _title(found: Predictions, nearest: np.ndarray, row: int) -> str:
    names = " ".join(getattr(found, name)[row] for name in found.named)
    sizes = f"{_sizes(found.mean[row], '{:.1f}')} mm"
    return "\n".join(filter(None, (names, sizes, f"nearest {_sizes(nearest[row])}")))


if __name__ == "__main__":
    script(main)
