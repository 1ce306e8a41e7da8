"""Evaluates a model on held-out cephalograms: MRE and SDR in mm with intervals, beside the mean-shape baseline.

    python cephalometric/evaluate.py --checkpoint runs/cephalometric/best --dataset_path Aariz --split test

Writes metrics.json, predictions.csv (one row a case), data_report.json, figures/ and report.html to --output.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from aariz import GROUND_TRUTHS, SPLITS, read_aariz
from cephalograms import CephalogramDataset, FrameCache, leave_out_unreadable
from core import figures
from core.args import ArgumentParser, positive_int, script
from core.cases import Cases
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.images import read_image
from core.metrics import success_detection_rate
from core.report import Report, plain
from core.run_folder import evaluation_folder
from core.validation import DataReport
from hrnet_landmarks import CVM_STAGES, HRNetLandmarks, decode
from landmark_evaluation import THRESHOLDS, Evaluation
from measurements import IS_LENGTH
from tracing import comparison


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best/ of a training run")
    parser.add_argument("--dataset_path", type=Path, default=Path("Aariz"), help="folder with train/, valid/, test/")
    parser.add_argument("--split", choices=tuple(SPLITS), default="test", help="which cases")
    parser.add_argument("--ground_truth", choices=GROUND_TRUTHS, help="default: as in training")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<split> beside best/)")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="letterboxed pictures, kept")
    parser.add_argument("--batch_size", type=positive_int, default=6, help="pictures a process and step")
    parser.add_argument("--num_workers", type=int, default=2, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    model, config = HRNetLandmarks.from_folder(args.checkpoint)
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.split}")
    args.ground_truth = args.ground_truth or config["ground_truth"]

    cache = FrameCache(args.cache_dir, config["model"]["image_size"])
    with accelerator.main_process_first():
        cases, data_report = read_aariz(args.dataset_path, args.ground_truth, splits=(args.split,))
        leave_out_unreadable(cases, cache, data_report)
    dataset = CephalogramDataset(cases[args.split], cache)
    predictions = predict_all(accelerator, model, config, dataset, args)
    if accelerator.is_main_process:
        evaluation = Evaluation(dataset, predictions, np.array(config["mean_shape"], float), args.bootstrap, args.seed)
        write_results(evaluation, args, data_report, environment(accelerator))
        data_report.print(console, args.output / "data_report.json")
        print_summary(evaluation, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


@torch.no_grad()
def predict_all(accelerator: Accelerator, model: HRNetLandmarks, config: dict, dataset, args) -> dict[str, np.ndarray]:
    """points (N, 29, 2) native px, measurements (N, 10) of the CVM branch with lengths in native px, stage (N, 6)."""
    stride, mean, std = model.stride, model.measurement_mean.numpy(), model.measurement_std.numpy()
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    model, loader = accelerator.prepare(model, loader)
    cases = Cases(accelerator, len(dataset))
    for batch in loader:
        prediction = model(batch["image"])
        points, _ = decode(prediction, stride, config["sigma"])
        stage = prediction["cvm_stage"].softmax(dim=1)
        cases.add(batch["index"], points=points, measurements=prediction["measurements"], stage=stage)
    table = {name: column.float().numpy() for name, column in cases.table().items()}
    native_per_frame = 1 / np.array([box.scale for box in dataset.letterboxes])[:, None]
    measurements = (table["measurements"] * std + mean) * np.where(IS_LENGTH, native_per_frame, 1.0)
    return {"points": dataset.to_native(table["points"]), "measurements": measurements, "stage": table["stage"]}


def write_results(evaluation: Evaluation, args, data_report: DataReport, machine: dict) -> None:
    """metrics.json, predictions.csv, data_report.json, figures/ and report.html in `args.output`."""
    args.output.mkdir(parents=True, exist_ok=True)
    metrics = {
        "data": {
            "dataset": args.dataset_path,
            "split": args.split,
            "ground_truth": args.ground_truth,
            "cases": len(evaluation.cases),
            "patients": len(evaluation.cases),
            "uncalibrated": int((~evaluation.calibrated).sum()),
        },
        "unit": evaluation.unit,
        "mre": evaluation.mre(),
        "baseline_mre": evaluation.baseline_mre(),
        "sdr": evaluation.sdr(),
        "by_landmark": evaluation.by_landmark(),
        "by_device": evaluation.by_device(),
        "by_measurement": evaluation.by_measurement(),
        "cvm_stage": evaluation.by_stage(),
        "checkpoint": args.checkpoint,
        "environment": machine,
    }
    (args.output / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")
    evaluation.write_predictions(args.output / "predictions.csv")
    data_report.write(args.output / "data_report.json")
    write_report(evaluation, metrics, args, data_report)


def write_report(evaluation: Evaluation, metrics: dict, args, data_report: DataReport) -> None:
    """The page that a person reads: headline, curves, pictures, tables."""
    unit, mre, baseline, sdr = evaluation.unit, metrics["mre"], metrics["baseline_mre"], metrics["sdr"]
    by_landmark, stage = metrics["by_landmark"], metrics["cvm_stage"]
    figure_folder = args.output / "figures"
    report = Report("Cephalometric landmarks", f"{args.checkpoint} on {args.dataset_path}/{args.split}")
    uncalibrated = metrics["data"]["uncalibrated"]
    calibration = f"{uncalibrated} uncalibrated" if uncalibrated else "all calibrated"
    times = f"{baseline.estimate / mre.estimate:.1f} × the model's"
    report.cards(
        [
            ("Mean radial error", f"{mre.estimate:.2f} {unit}", f"95 % interval {mre.low:.2f} to {mre.high:.2f}"),
            ("Mean-shape baseline", f"{baseline.estimate:.2f} {unit}", times),
            (
                f"SDR at 2 {unit}",
                f"{sdr[2.0].estimate:.1f} %",
                f"95 % interval {sdr[2.0].low:.1f} to {sdr[2.0].high:.1f}",
            ),
            ("Cases", str(len(evaluation.cases)), f"one a patient; {len(by_landmark)} landmarks; {calibration}"),
        ]
    )
    report.text(
        f"Ground truth: {args.ground_truth} of the readers. Errors are native pixels times mm per pixel. Intervals: "
        f"bootstrap over patients, {args.bootstrap} resamples. Baseline: the training split's mean shape, aligned by "
        "the letterbox.",
        note=True,
    )

    report.section("Errors")
    rows = [[f"{t:g}", f"{rate.estimate:.1f}", f"{rate.low:.1f} to {rate.high:.1f}"] for t, rate in sdr.items()]
    report.table([f"threshold [{unit}]", "SDR [%]", "95 % interval"], rows)
    errors = {"model": evaluation.errors, "mean shape": evaluation.baseline_errors}
    curves = figures.cumulative_errors(errors, unit, marks=THRESHOLDS[::3])
    ordered = sorted(by_landmark, key=lambda row: row["mre"].estimate)
    intervals = {row["landmark"]: row["mre"] for row in ordered}
    bars = figures.interval_bars(intervals, f"mean radial error [{unit}] with 95 % interval")
    report.figures(
        [
            (figures.save(curves, figure_folder / "cumulative_error.png"), "Share of landmarks within each error"),
            (figures.save(bars, figure_folder / "by_landmark.png"), "Mean radial error of each landmark"),
        ]
    )

    report.section("Worst, median and best cases")
    report.figures(draw_cases(evaluation, figure_folder))

    report.section("Landmarks")
    rates = [f"SDR {t:g}" for t in THRESHOLDS]
    header = ["landmark", f"MRE [{unit}]", "95 % interval", "SD", "median", *rates, "baseline", "cases"]
    rows = [
        [row["landmark"], *_interval(row["mre"]), f"{row['sd']:.2f}", f"{row['median']:.2f}", *_rates(row["sdr"])]
        + [f"{row['baseline']:.2f}", row["cases"]]
        for row in by_landmark
    ]
    report.table(header, rows)

    report.section("Devices")
    rows = [[r["device"], r["cases"], *_interval(r["mre"]), *_rates(r["sdr"])] for r in metrics["by_device"]]
    report.table(["device", "cases", f"MRE [{unit}]", "95 % interval", *rates], rows)

    report.section("Vertical measurements", "Mean difference from the ground truth ± SD (mean absolute difference).")
    rows = [
        [row["measurement"], row["title"], row["unit"], "–" if np.isnan(row["spread"]) else f"{row['spread']:.1f}"]
        + [_difference(row[source]) for source in evaluation.measured]
        for row in metrics["by_measurement"]
    ]
    report.table(["measurement", "", "unit", "SD between heads", *[f"from {s}" for s in evaluation.measured]], rows)

    if stage:
        scores = f"Accuracy {stage['accuracy']:.2f}, macro-F1 {stage['macro_f1']:.2f}; always the most frequent stage: "
        report.section("Maturation stage (CVM)", f"{scores}accuracy {stage['baseline']:.2f}.")
        matrix = figures.confusion_matrix(stage["counts"], range(1, CVM_STAGES + 1), "CVM stage")
        report.figures([(figures.save(matrix, figure_folder / "cvm_stage.png"), "Cases by true and predicted stage")])

    report.section("Data and machine")
    for (reason, action), count in data_report.counts().items():
        report.text(f"{count} × {reason}: {action}.")
    report.text("Every problem is listed in data_report.json." if data_report.problems else "No problems in the data.")
    report.details("Software and machine", json.dumps(metrics["environment"], indent=1))
    report.text("For research. Not a medical device.", note=True)
    report.write(args.output / "report.html")


def draw_cases(evaluation: Evaluation, folder: Path) -> list[tuple[Path, str]]:
    """Overlays of the three worst, the median and the best case, each once: (file, caption)."""
    errors = evaluation.case_errors()
    order = [int(i) for i in np.argsort(-errors) if np.isfinite(errors[i])]  # the worst first
    kinds = {}
    for kind, chosen in (("worst", order[:3]), ("median", [order[len(order) // 2]]), ("best", order[-1:])):
        for i in chosen:
            kinds.setdefault(i, kind)
    pictures = []
    for i, kind in kinds.items():
        case, title = evaluation.cases[i], f"{evaluation.cases[i].id}   {kind}, {errors[i]:.2f} {evaluation.unit}"
        fig = comparison(read_image(case.image).pixels, evaluation.truth[i], evaluation.points[i], title)
        file = figures.save(fig, folder / f"{kind}_{case.id}.jpg", dpi=100)
        pictures.append((file, f"{kind}: {case.id}, {case.device}, mean error {errors[i]:.2f} {evaluation.unit}"))
    return pictures


def print_summary(evaluation: Evaluation, console: Console) -> None:
    """The headline on the terminal."""
    unit = evaluation.unit
    table = Table("", f"MRE [{unit}]", "95 % interval", *[f"SDR {t:g} {unit}" for t in THRESHOLDS], box=None)
    model_rates = {t: rate.estimate for t, rate in evaluation.sdr().items()}
    baseline_rates = success_detection_rate(evaluation.baseline_errors, THRESHOLDS)
    table.add_row("model", *_interval(evaluation.mre()), *_rates(model_rates))
    table.add_row("mean shape", *_interval(evaluation.baseline_mre()), *_rates(baseline_rates))
    console.print(table, crop=False)


def _interval(interval) -> list[str]:
    return [f"{interval.estimate:.2f}", f"{interval.low:.2f} to {interval.high:.2f}"]


def _rates(sdr: dict[float, float]) -> list[str]:
    return [f"{rate:.1f}" for rate in sdr.values()]


def _difference(row: dict | None) -> str:
    return f"{row['bias']:+.2f} ± {row['sd']:.2f} ({row['mae']:.2f})" if row else "uncalibrated"


if __name__ == "__main__":
    script(main)
