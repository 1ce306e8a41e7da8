"""Length and diameter of implants in your own pictures, with intervals if there are records to size them by.

    python implant/predict.py --checkpoints runs/implant/best --input crops/ --output predictions
    python implant/predict.py --checkpoints runs/implant/best --input records.json --output predictions \
        --calibration_json val.json

Input are pictures (with --pixel_spacing if it is known; DICOM files bring their own), folders, or a JSON of records,
whose sizes need not be known. Writes predictions.csv, one row a case, data_report.json and overview.png to --output.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import contextlib
import csv

import numpy as np
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct, whole_file
from core.images import DICOM_SUFFIXES, SUFFIXES, ImageError, is_dicom, read_image, without_suffix
from core.validation import DataReport, leave_out_unreadable
from implants.crops import ImplantCrops
from implants.evaluation import Predictions, calibrate, catalogue_of, nearest_sizes, read_catalogue, with_intervals
from implants.plots import overview
from implants.predictor import Answer, load_models, predict_all
from implants.records import TARGETS, Record, load_records
from implants.splits import records_of

SHOWN = 24  # cases in overview.png and on the terminal


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="best/ of runs of train.py; several are an ensemble")  # fmt: skip
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH",
                        help="pictures, folders of pictures, or JSON files of records")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--pixel_spacing", type=float, metavar="MM", help="mm a pixel, of pictures that do not say it")
    parser.add_argument("--calibration_json", type=Path, help="records of known sizes, which size the intervals")
    parser.add_argument("--level", type=float, default=0.9, help="share of cases that the intervals shall cover")
    parser.add_argument(
        "--mc_dropout", type=non_negative_int, default=0, help="passes with dropout, whose spread sizes intervals"
    )
    parser.add_argument("--catalogue", type=Path, help="JSON of sizes on sale (default: those of the training split)")
    parser.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their JSON)")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="crops a step")
    parser.add_argument("--num_workers", type=non_negative_int, default=0, help="loader processes")
    args = parser.parse_args(argv)
    if not 0 < args.level < 1:
        parser.error("--level lies between 0 and 1")
    if args.pixel_spacing is not None and not 0 < args.pixel_spacing < 5:
        parser.error("--pixel_spacing is in mm a pixel, 0.1 for example")
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    report = DataReport()
    catalogue = read_catalogue(args.catalogue) if args.catalogue else None
    records = leave_out_unreadable({"input": find_records(args, report)}, report)["input"]
    models = load_models(args.checkpoints)
    config = models[0][1]
    how = {"batch_size": args.batch_size, "num_workers": args.num_workers, "mc_dropout": args.mc_dropout}
    answer = predict_all(accelerator, console, "predicting", models, records, **how)
    if args.calibration_json:
        known, problems = load_records(args.calibration_json, args.data_root)
        report.problems += problems
        known = leave_out_unreadable({"calibration": known}, report)["calibration"]
        found = predict_all(accelerator, console, "calibrating", models, known, **how).predictions
        answer = answer._replace(predictions=with_intervals(answer.predictions, calibrate(known, found, args.level)))
    if accelerator.is_main_process:
        nearest = nearest_sizes(answer.predictions, catalogue or catalogue_of(records_of(config["train_sizes"])))
        args.output.mkdir(parents=True, exist_ok=True)
        write_table(args.output / "predictions.csv", records, answer, nearest)
        crops = ImplantCrops(records[:SHOWN], config["image_size"], config["margin"])
        pictures = [crops[row]["image"][0].numpy() for row in range(len(crops))]
        titles = [_title(answer.predictions, nearest, row) for row in range(len(crops))]
        figures.save(overview(pictures, titles), args.output / "overview.png")
        report.write(args.output / "data_report.json")
        report.print(console, args.output / "data_report.json")
        print_table(console, records, answer.predictions, nearest)
        console.print(f"results in {args.output}", style="bold")
    accelerator.end_training()


def find_records(args, report: DataReport) -> list[Record]:
    """The cases of pictures, folders and JSON files; what is named twice counts once. Raises UserError for none."""
    found: dict[tuple, Record] = {}
    for path in args.input:
        if path.suffix.lower() == ".json":
            records, problems = load_records(path, args.data_root, needs=())
            report.problems += problems
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
    """A case of a picture alone."""
    spacing = (args.pixel_spacing,) * 2 if args.pixel_spacing else None
    if is_dicom(path):
        with contextlib.suppress(ImageError):  # a broken picture is told and left out later
            spacing = read_image(path).mm_per_px or spacing
    return Record(name, path, "", "", np.nan, np.nan, None, None, spacing, "", name, {})


def write_table(file: Path, records: list[Record], answer: Answer, nearest: np.ndarray) -> None:
    """One row a case: names, and length and diameter in mm with σ, interval and nearest size on sale."""
    predictions = answer.predictions
    parts = ("", "_sigma", "_low", "_high", "_nearest")
    columns = np.stack([*predictions[:4], nearest], axis=2)  # (N, 2, parts)
    with whole_file(file) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["id", "image", "company", "model", *(f"{t}{part}_mm" for t in TARGETS for part in parts),
                         *answer.auxiliary])  # fmt: skip
        for row, record in enumerate(records):
            cells = ["" if np.isnan(number) else f"{number:.3f}" for number in columns[row].ravel()]
            names = [predictions.company[row], predictions.model[row]]
            others = [values[row] for values in answer.auxiliary.values()]
            writer.writerow([record.id, record.image, *names, *cells, *others])


def print_table(console: Console, records: list[Record], predictions: Predictions, nearest: np.ndarray) -> None:
    table = Table("", "company", "model", *(f"{target} [mm]" for target in TARGETS), "nearest on sale", box=None)
    for row, record in enumerate(records[:SHOWN]):
        sizes = [_size(predictions, row, t) for t in range(len(TARGETS))]
        on_sale = " × ".join(f"{size:g}" for size in nearest[row])
        table.add_row(Path(record.id).name, predictions.company[row], predictions.model[row], *sizes, on_sale)
    console.print(table, crop=False)
    if len(records) > SHOWN:
        console.print(f"… and {len(records) - SHOWN} more")


def _size(predictions: Predictions, row: int, target: int) -> str:
    low, high = predictions.low[row, target], predictions.high[row, target]
    interval = f" ({low:.1f} to {high:.1f})" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{predictions.mean[row, target]:.1f}{interval}"


def _title(predictions: Predictions, nearest: np.ndarray, row: int) -> str:
    names = " ".join(filter(None, (predictions.company[row], predictions.model[row])))
    sizes = " × ".join(f"{size:.1f}" for size in predictions.mean[row])
    on_sale = " × ".join(f"{size:g}" for size in nearest[row])
    return "\n".join(filter(None, (names, f"{sizes} mm", f"nearest {on_sale}")))


if __name__ == "__main__":
    script(main)
