"""Evaluates detectors on held-out ears: errors of landmarks, contours and boxes, with the mean ear as baseline.

    python ear_teacher/evaluate_detector.py --checkpoint runs/taught/best --compare runs/scratch/best \
        --manifest DATA/test_detector.npy

Two-stage inference on every picture. Writes metrics.json, predictions.csv (one row per ear and detector),
data_report.json, figures/ and report.html to --output.
"""

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
from core.args import ArgumentParser, add_evaluation_arguments, positive_int, script
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.images import picture_size, read_image
from core.landmarks import Schema, make_schema
from core.report import Report
from core.results import card, close, evaluation_folder, span, with_span, write_json
from core.validation import DataReport, leave_out_unreadable
from ear.detector import EarDetector
from ear.detector_windows import read_labelled, with_landmarks
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
from ear.manifest import Ear, add_reading_arguments, split_by_subject
from ear.plots import overlays

COLUMNS = {  # metric -> title, number format
    "nme": ("NME [%]", "{:.2f}"),
    "failures": (f"> {FAILURE:g} % [%]", "{:.1f}"),
    "iou": ("IoU", "{:.3f}"),
    "ap50": ("AP@0.5", "{:.3f}"),
}


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="FOLDER", help="further model folders")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of ears with landmarks")
    parser.add_argument("--split", choices=("all", "test"), default="all",
                        help="ears to evaluate; test: the test split of training with --data")  # fmt: skip
    add_reading_arguments(parser)
    parser.add_argument("--nb_to_plot", type=positive_int, default=4, help="ears shown: best, typical, worst, each")
    add_evaluation_arguments(parser, output="evaluation_<manifest>", batch_size=None, per="ears")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    detectors = load(args)
    config = next(iter(detectors.values()))[1]
    schema = make_schema(config["schema"], f"{args.checkpoint}: ")
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.manifest.stem}")
    data_report = DataReport()
    with data_report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        ears = read_data(accelerator, args, schema, config, data_report)
    sizes = [picture_size(ear.image) for ear in ears]
    predictions = {name: predict_all(accelerator, console, name, model, ears) for name, (model, _) in detectors.items()}
    if accelerator.is_main_process:
        found = predictions | baselines(ears, sizes, next(iter(predictions.values())), config, schema)
        evaluations = {name: Evaluation(ears, x, schema, args.bootstrap, args.seed) for name, x in found.items()}
        write_results(evaluations, list(detectors), args, data_report, environment(accelerator))
        data_report.print(console, args.output / "data_report.json")
        print_summary(evaluations, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def load(args) -> dict[str, tuple[EarDetector, dict]]:
    """Shortest distinct name -> (model, config). Raises UserError for repeated folders and different landmarks."""
    folders = [args.checkpoint, *args.compare]
    runs = [(folder.parent if folder.name == "best" else folder).name for folder in folders]
    names = runs if len(set(runs)) == len(runs) else [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError("--compare names a checkpoint twice; name each once")
    detectors = {name: EarDetector.from_folder(folder) for name, folder in zip(names, folders, strict=True)}
    first, *others = (config["schema"] for _, config in detectors.values())
    for folder, other in zip(args.compare, others, strict=True):
        if other["names"] != first["names"]:
            both = f"{other['name']}, {len(other['names'])} landmarks; {first['name']}, {len(first['names'])}"
            raise UserError(f"{folder} and {args.checkpoint} find different landmarks ({both}); compare equal ones")
    return detectors


def read_data(accelerator: Accelerator, args, schema: Schema, config: dict, report: DataReport) -> list[Ear]:
    """Ears for the evaluation, with the landmarks of the detector. Raises UserError for another number of landmarks."""
    names = list(config["taught"]["landmarks"])  # all landmarks in the training files
    in_files = make_schema({"name": schema.name, "names": names}, f"{args.checkpoint}: ")
    ears = read_labelled(args.manifest, args.data_root, args.box_format, report, in_files)
    if args.split == "test":
        ears = split_by_subject(ears, *config["split_fractions"])["test"]
    ears = leave_out_unreadable({"test": ears}, report, accelerator)["test"]
    count = len(ears[0].landmarks)
    if count != len(names):
        raise UserError(f"{args.manifest} has {count} landmarks an ear, the scheme {len(names)} ({schema.name})")
    ears = with_landmarks(ears, [names.index(name) for name in schema.names], report, "test")
    pictures = Counter(ear.image for ear in ears)
    for ear in ears:
        if pictures[ear.image] > 1:
            report.add("several ears in one picture", ear.id, "kept; all but the one that is found count as missed")
    return ears


def predict_all(
    accelerator: Accelerator, console: Console, name: str, model: EarDetector, ears: list[Ear]
) -> Predictions:
    """Detections in the pictures of `ears`; the ranks share the work."""
    model.to(accelerator.device)
    with accelerator.split_between_processes(ears) as share, progress(console, name, len(share)) as advance:
        found = []
        for ear in share:
            found.append(model.predict(read_image(ear.image, "RGB").pixels))
            advance()
    found = gather_object(found)
    columns = zip(*((d.box, d.score, d.landmarks, d.side) for d in found), strict=True)
    return Predictions(*map(np.array, columns))


def baselines(ears: list[Ear], sizes, first: Predictions, config: dict, schema: Schema) -> dict[str, Predictions]:
    """Mean ear of the training split, in its mean box and in the boxes of the first detector."""
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
    """Writes metrics.json, predictions.csv, figures/ and report.html to `args.output`."""
    first = evaluations[detectors[0]]
    sides = {name: evaluations[name].sides_right() for name in detectors}
    metrics = {
        "data": {"manifest": args.manifest, "split": args.split, "ears": len(first.ears),
                 "subjects": len(set(first.subjects)), "schema": first.schema.name},
        "unit": "% of the true box's diagonal",
        "methods": {name: evaluation.summary() for name, evaluation in evaluations.items()},
        "differences": {name: first.differences(evaluation) for name, evaluation in evaluations.items()
                        if evaluation is not first},
        "sides_right": {name: share for name, share in sides.items() if np.isfinite(share.estimate)},
        "by_landmark": {name: evaluations[name].by_landmark() for name in detectors},
        "by_contour": {name: evaluations[name].by_contour() for name in detectors},
        "checkpoints": dict(zip(detectors, [args.checkpoint, *args.compare], strict=True)),
        "environment": machine,
    }  # fmt: skip
    if not metrics["sides_right"]:
        del metrics["sides_right"]
    write_json(args.output / "metrics.json", metrics)
    write_predictions(args.output / "predictions.csv", {name: evaluations[name] for name in detectors})
    write_report(metrics, evaluations, args, data_report)


def write_report(metrics: dict, evaluations: dict[str, Evaluation], args, data_report: DataReport) -> None:
    """Writes report.html: main results, table of methods, error curves, pictures, landmarks."""
    methods, data = metrics["methods"], metrics["data"]
    name, first = next(iter(evaluations.items()))
    ours, folder = methods[name], args.output / "figures"
    report = Report("Ear detector", f"{args.checkpoint} on {args.manifest}")
    report.cards(
        [
            card("NME", ours["nme"], unit=" %"),
            card(MEAN_IN_BOX.capitalize(), methods[MEAN_IN_BOX]["nme"], unit=" %", note="NME"),
            card("Boxes, AP@0.5", ours["ap50"], "{:.3f}", note=f"mean IoU {with_span(ours['iou'], '{:.3f}')}"),
            ("Ears", str(data["ears"]), f"{data['subjects']} subjects; {len(first.schema.names)} landmarks"),
        ]
    )
    report.text(
        "NME: mean distance of the landmarks over the diagonal of the true box. Two-stage inference: whole picture, "
        f"then the window around its box. Intervals: bootstrap over subjects, {args.bootstrap} resamples. The mean ear "
        "is that of the training split, placed with the true side, in the mean box of the training pictures or in the "
        f"boxes of {name}.",
        note=True,
    )
    report.section("Methods", "With 95 % intervals.")
    titles = [title for title, _ in COLUMNS.values()]
    rows = [
        [method, *(with_span(values[key], form) for key, (_, form) in COLUMNS.items())]
        for method, values in methods.items()
    ]
    report.table(["", *titles], rows)
    shares = [f"{with_span(share, '{:.3f}')} by {name}" for name, share in metrics.get("sides_right", {}).items()]
    if shares:
        report.text(f"Share of correct sides, left or right, in stage 1: {', '.join(shares)}.", note=True)
    report.section(
        "Differences", f"{name} minus the other, on the same ears. An interval without 0 is a significant difference."
    )
    rows = [
        [other, *(with_span(values[key], COLUMNS[key][1].replace(":", ":+")) for key in values)]
        for other, values in metrics["differences"].items()
    ]
    report.table(["", *titles[:3]], rows)
    curves = figures.cumulative_errors(
        {method: evaluation.errors for method, evaluation in evaluations.items() if method != MEAN_IN_PICTURE},
        "%", (FAILURE / 2, FAILURE),
    )  # fmt: skip
    curves.axes[0].set_xlim(0, 3 * FAILURE)  # a missed ear has errors around 100 %
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
    report.section("Pictures", f"Ground truth and detections of {name}: box, landmarks, contours.")
    for picture in draw_cases(first, folder, args.nb_to_plot):
        report.figures([picture])
    for title, text, table in (
        ("Contours", "Mean distance of a contour's landmarks to the true line [%].", metrics["by_contour"]),
        ("Landmarks", "NME [%].", metrics["by_landmark"]),
    ):
        if table[name]:
            report.section(title, text)
            rows = [[part, *(with_span(values[part]) for values in table.values())] for part in table[name]]
            report.table(["", *table], rows)
    close(report, args.output / "report.html", metrics["environment"], data_report.counts())


def draw_cases(evaluation: Evaluation, folder: Path, number: int) -> list[tuple[Path, str]]:
    """Figures of the best, typical and worst ears: (file, caption)."""
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
    """Prints the metrics of each method."""
    titles = [title for title, _ in COLUMNS.values()]
    table = Table("", titles[0], "95 % interval", *titles[1:], box=None)
    for name, evaluation in evaluations.items():
        summary = evaluation.summary()
        nme, *others = (form.format(summary[key].estimate) for key, (_, form) in COLUMNS.items())
        table.add_row(name, nme, span(summary["nme"]), *others)
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
