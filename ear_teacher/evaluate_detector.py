"""Evaluates detectors on held-out ears: landmarks, contours and boxes with intervals, beside the mean ear.

    python ear_teacher/evaluate_detector.py --checkpoint runs/taught/best --compare runs/scratch/best \
        --manifest DATA/test_detector.npy

Every picture is looked at twice, as in use. Writes metrics.json, predictions.csv (one row an ear and detector),
data_report.json, figures/ and report.html to --output.
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, positive_int, script
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.images import picture_size, read_image
from core.landmarks import Schema, make_schema
from core.report import Report
from core.results import evaluation_folder, plain
from core.uncertainty import Interval
from core.validation import DataReport, leave_out_unreadable
from ear.detector import EarDetector
from ear.detector_plots import overlays
from ear.detector_windows import read_labelled
from ear.entries import BOX_FORMATS
from ear.evaluation import (
    FAILURE,
    MEAN_IN_BOX,
    MEAN_IN_PICTURE,
    Evaluation,
    Predictions,
    mean_boxes,
    place_mean_ear,
    write_predictions,
)
from ear.manifest import Ear
from ear.splits import split_by_subject

COLUMNS = {  # measure -> title, digits
    "nme": ("NME [%]", "{:.2f}"),
    "failures": (f"> {FAILURE:g} % [%]", "{:.1f}"),
    "iou": ("IoU", "{:.3f}"),
    "ap50": ("AP@0.5", "{:.3f}"),
}


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best/ of a run of train_detector.py")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="FOLDER", help="further ones, beside it")
    parser.add_argument("--manifest", type=Path, required=True, help="ears with landmarks")
    parser.add_argument("--split", choices=("all", "test"), default="all",
                        help="test: those that training with --data kept for the test")  # fmt: skip
    parser.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their manifest)")
    parser.add_argument("--box_format", choices=BOX_FORMATS, default="xyxy", help="of a .npy's boxes, in px")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<manifest> beside best/)")
    parser.add_argument("--nb_to_plot", type=positive_int, default=4, help="best, typical and worst ears, each")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    detectors = load(args)
    config = next(iter(detectors.values()))[1]
    schema = make_schema(config["schema"], f"{args.checkpoint}: ")
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.manifest.stem}")
    ears, data_report = read_data(args, schema, config)
    sizes = [picture_size(ear.image) for ear in ears]
    predictions = {name: predict_all(accelerator, console, name, model, ears) for name, (model, _) in detectors.items()}
    if accelerator.is_main_process:
        evaluations = {
            name: Evaluation(ears, found, schema, args.bootstrap, args.seed)
            for name, found in (
                predictions | baselines(ears, sizes, next(iter(predictions.values())), config, schema)
            ).items()
        }
        write_results(evaluations, list(detectors), args, data_report, environment(accelerator))
        data_report.print(console, args.output / "data_report.json")
        print_summary(evaluations, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def load(args) -> dict[str, tuple[EarDetector, dict]]:
    """Name -> (model, config), the names as short as they can differ. Raises UserError where the landmarks do."""
    folders = [args.checkpoint, *args.compare]
    runs = [(folder.parent if folder.name == "best" else folder).name for folder in folders]
    names = runs if len(set(runs)) == len(runs) else [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError("--compare names a checkpoint twice; name each once")
    detectors = {name: EarDetector.from_folder(folder) for name, folder in zip(names, folders, strict=True)}
    first, *others = (config["schema"] for _, config in detectors.values())
    for folder, other in zip(args.compare, others, strict=True):
        if other["names"] != first["names"]:
            raise UserError(f"{folder} finds landmarks of {other['name']}, {args.checkpoint} those of {first['name']}")
    return detectors


def read_data(args, schema: Schema, config: dict) -> tuple[list[Ear], DataReport]:
    """The ears to measure on, and what was wrong with the manifest."""
    report = DataReport()
    ears = read_labelled(args.manifest, args.data_root, args.box_format, report)
    if args.split == "test":
        ears = split_by_subject(ears, *config["split_fractions"])["test"]
    ears = leave_out_unreadable({"test": ears}, report)["test"]
    count = len(ears[0].landmarks)
    if count != len(schema.names):
        raise UserError(
            f"{args.manifest} has {count} landmarks an ear, the detector finds {len(schema.names)} ({schema.name})"
        )
    pictures = Counter(ear.image for ear in ears)
    for ear in ears:
        if pictures[ear.image] > 1:
            report.add("several ears in one picture", ear.id, "kept; all but the one that is found count as missed")
    return ears, report


def predict_all(
    accelerator: Accelerator, console: Console, name: str, model: EarDetector, ears: list[Ear]
) -> Predictions:
    """What a detector finds in the pictures of `ears`; the processes share them."""
    model.to(accelerator.device)
    with accelerator.split_between_processes(ears) as share, progress(console, name, len(share)) as advance:
        found = []
        for ear in share:
            found.append(model.predict(read_image(ear.image, "RGB").pixels))
            advance()
    found = gather_object(found)
    return Predictions(
        *(np.array(column) for column in zip(*((d.box, d.score, d.landmarks, d.side) for d in found), strict=True))
    )


def baselines(ears: list[Ear], sizes, first: Predictions, config: dict, schema: Schema) -> dict[str, Predictions]:
    """What the mean ear of the training split gives: without a network, and in the boxes of the first detector."""
    box, shape = np.array(config["mean_ear"]["box"]), np.array(config["mean_ear"]["shape"], float)
    boxes, scores, sides = mean_boxes(ears, sizes, box), np.ones(len(ears)), np.array([ear.side for ear in ears])
    return {
        MEAN_IN_PICTURE: Predictions(boxes, scores, place_mean_ear(ears, boxes, shape, schema), sides),
        MEAN_IN_BOX: Predictions(first.boxes, first.scores, place_mean_ear(ears, first.boxes, shape, schema), sides),
    }


# ------------------------------------------------------------------------------------------------------------ results


def write_results(
    evaluations: dict[str, Evaluation], detectors: list[str], args, data_report: DataReport, machine: dict
) -> None:
    """metrics.json, predictions.csv, data_report.json, figures/ and report.html in `args.output`."""
    args.output.mkdir(parents=True, exist_ok=True)
    first = evaluations[detectors[0]]
    metrics = {
        "data": {"manifest": args.manifest, "split": args.split, "ears": len(first.ears),
                 "subjects": len(set(first.subjects)), "schema": first.schema.name},
        "unit": "% of the true box's diagonal",
        "methods": {name: evaluation.summary() for name, evaluation in evaluations.items()},
        "differences": {name: first.differences(evaluation) for name, evaluation in evaluations.items()
                        if evaluation is not first},
        "sides_right": {name: evaluations[name].sides_right() for name in detectors},
        "by_landmark": {name: evaluations[name].by_landmark() for name in detectors},
        "by_contour": {name: evaluations[name].by_contour() for name in detectors},
        "checkpoints": dict(zip(detectors, [args.checkpoint, *args.compare], strict=True)),
        "environment": machine,
    }  # fmt: skip
    (args.output / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")
    write_predictions(args.output / "predictions.csv", {name: evaluations[name] for name in detectors})
    data_report.write(args.output / "data_report.json")
    write_report(metrics, evaluations, args, data_report)


def write_report(metrics: dict, evaluations: dict[str, Evaluation], args, data_report: DataReport) -> None:
    """The page that a person reads: headline, table of methods, curves, pictures, landmarks."""
    methods, data = metrics["methods"], metrics["data"]
    name, first = next(iter(evaluations.items()))
    ours, folder = methods[name], args.output / "figures"
    report = Report("Detector of ears", f"{args.checkpoint} on {args.manifest}")
    report.cards(
        [
            ("NME", f"{ours['nme'].estimate:.2f} %", f"95 % interval {ours['nme'].low:.2f} to {ours['nme'].high:.2f}"),
            (MEAN_IN_BOX.capitalize(), f"{methods[MEAN_IN_BOX]['nme'].estimate:.2f} %", "NME"),
            ("Boxes, AP@0.5", f"{ours['ap50'].estimate:.3f}", f"mean IoU {ours['iou'].estimate:.3f}"),
            ("Ears", str(data["ears"]), f"{data['subjects']} subjects; {len(first.schema.names)} landmarks"),
        ]
    )
    report.text(
        "NME: mean distance of the landmarks over the diagonal of the true box. Each picture was looked at twice: as a "
        "whole, and in the window around the box found there. Intervals: bootstrap over subjects, "
        f"{args.bootstrap} resamples. The mean ear is that of the training split, and is told which side it is; its "
        f"boxes are the mean box of the training pictures, or those of {name}.",
        note=True,
    )
    report.section("Methods", "With 95 % intervals.")
    titles = [title for title, _ in COLUMNS.values()]
    rows = [
        [method, *(_interval(values[key], form) for key, (_, form) in COLUMNS.items())]
        for method, values in methods.items()
    ]
    report.table(["", *titles], rows)
    told = {name: share for name, share in metrics["sides_right"].items() if np.isfinite(share.estimate)}
    if told:
        shares = ", ".join(f"{100 * share.estimate:.1f} % by {name}" for name, share in told.items())
        report.text(f"Sides, left or right, found in the first look: {shares}.", note=True)
    report.section("Differences", f"{name} minus the other, on the same ears. An interval without 0 is a difference.")
    rows = [
        [other, *(_interval(values[key], COLUMNS[key][1].replace(":", ":+")) for key in values)]
        for other, values in metrics["differences"].items()
    ]
    report.table(["", *titles[:3]], rows)
    curves = figures.cumulative_errors(
        {method: evaluation.errors for method, evaluation in evaluations.items() if method != MEAN_IN_PICTURE},
        "%", (FAILURE / 2, FAILURE),
    )  # fmt: skip
    curves.axes[0].set_xlim(0, 3 * FAILURE)  # a single ear that was missed has errors of 100 %
    bars = figures.interval_bars(
        dict(sorted(metrics["by_landmark"][name].items(), key=lambda row: row[1].estimate)),
        "NME [%] with 95 % interval",
    )
    report.figures(
        [
            (figures.save(curves, folder / "cumulative_error.png"), "Share of landmarks within each error"),
            (figures.save(bars, folder / "by_landmark.png"), f"Error of each landmark, {name}"),
        ]
    )
    report.section("Pictures", f"Truth and what {name} finds: box, landmarks, contours.")
    for picture in draw_cases(first, folder, args.nb_to_plot):
        report.figures([picture])
    if first.schema.strips:
        report.section("Contours", "Mean distance of a contour's landmarks to the true line [%].")
        rows = [
            [strip, *(_interval(values[strip], "{:.2f}") for values in metrics["by_contour"].values())]
            for strip in first.schema.strips
        ]
        report.table(["", *metrics["by_contour"]], rows)
    report.section("Landmarks", "NME [%].")
    rows = [
        [landmark, *(_interval(values[landmark], "{:.2f}") for values in metrics["by_landmark"].values())]
        for landmark in first.schema.names
    ]
    report.table(["", *metrics["by_landmark"]], rows)
    report.section("Data and machine")
    for (reason, action), count in data_report.counts().items():
        report.text(f"{count} × {reason}: {action}.")
    report.text("Every problem is listed in data_report.json." if data_report.problems else "No problems in the data.")
    report.details("Software and machine", json.dumps(metrics["environment"], indent=1))
    report.write(args.output / "report.html")


def draw_cases(evaluation: Evaluation, folder: Path, number: int) -> list[tuple[Path, str]]:
    """Rows of the best, the middle and the worst ears: (file, caption)."""
    order = np.argsort(evaluation.nme)
    number = min(number, len(order))
    middle = (len(order) - number) // 2
    pictures = []
    for kind, rows in (
        ("typical", order[middle : middle + number]),
        ("worst", order[::-1][:number]),
        ("best", order[:number]),
    ):
        shown = []
        for row in rows:
            ear, (boxes, _, points, _) = evaluation.ears[row], evaluation.predictions
            title = f"{Path(ear.id).name}   NME {evaluation.nme[row]:.1f} %"
            shown.append((read_image(ear.image, "RGB").pixels, ear, boxes[row], points[row], title))
        file = figures.save(overlays(shown, evaluation.schema), folder / f"{kind}.png")
        pictures.append((file, f"{kind.capitalize()} ears"))
    return pictures


def print_summary(evaluations: dict[str, Evaluation], console: Console) -> None:
    """The headline on the terminal."""
    titles = [title for title, _ in COLUMNS.values()]
    table = Table("", titles[0], "95 % interval", *titles[1:], box=None)
    for name, evaluation in evaluations.items():
        summary = evaluation.summary()
        nme, *others = (form.format(summary[key].estimate) for key, (_, form) in COLUMNS.items())
        table.add_row(name, nme, f"{summary['nme'].low:.2f} to {summary['nme'].high:.2f}", *others)
    console.print(table, crop=False)


def _interval(interval: Interval, form: str) -> str:
    return f"{form.format(interval.estimate)} ({form.format(interval.low)} to {form.format(interval.high)})"


if __name__ == "__main__":
    script(main)
