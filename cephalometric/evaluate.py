"""Evaluates a model on held-out cephalograms: MRE and SDR in mm with intervals, beside the mean-shape baseline.

    python cephalometric/evaluate.py --checkpoint runs/cephalometric/best --dataset_path Aariz --split test

Writes metrics.json, predictions.csv (one row a case), data_report.json, figures/ and report.html to --output.
"""

import csv
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
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from aariz import GROUND_TRUTHS, SPLITS, read_aariz
from ceph_landmarks import LANDMARKS
from cephalograms import CephalogramDataset, FrameCache, leave_out_unreadable
from core import figures
from core.args import ArgumentParser, UserError, positive_int, script
from core.cases import Cases
from core.environment import environment
from core.images import read_image
from core.metrics import radial_errors, success_detection_rate
from core.report import Report
from core.uncertainty import Interval, bootstrap
from hrnet_landmarks import CVM_STAGES, HRNetLandmarks, decode
from measurements import IS_LENGTH, MEASUREMENTS, NAMES, measure
from tracing import comparison

THRESHOLDS = (2.0, 2.5, 3.0, 4.0)  # of the SDR


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best/ of a training run")
    parser.add_argument("--dataset_path", type=Path, default=Path("Aariz"), help="folder with train/, valid/, test/")
    parser.add_argument("--split", choices=tuple(SPLITS), default="test", help="which cases")
    parser.add_argument("--ground_truth", choices=GROUND_TRUTHS, help="default: as in training")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<split> beside best/)")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/cache"), help="letterboxed pictures, kept for reuse")
    parser.add_argument("--batch_size", type=positive_int, default=6, help="pictures a process and step")
    parser.add_argument("--num_workers", type=int, default=2, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = Accelerator()
    console = Console(quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)
    model, config = HRNetLandmarks.from_folder(args.checkpoint)
    output = args.output or _run_folder(args.checkpoint) / f"evaluation_{args.split}"

    cache = FrameCache(args.cache_dir, config["model"]["image_size"])
    ground_truth = args.ground_truth or config["ground_truth"]
    with accelerator.main_process_first():
        cases, data_report = read_aariz(args.dataset_path, ground_truth, splits=(args.split,))
        cases = {args.split: cases[args.split]}
        leave_out_unreadable(cases, cache, data_report)
    if not cases[args.split]:
        raise UserError(f"{args.dataset_path}: no readable picture in {args.split}/")
    dataset = CephalogramDataset(cases[args.split], cache)
    results = predict_all(accelerator, model, config, dataset, args)
    if accelerator.is_main_process:
        data_report.print(console, output / "data_report.json")
        data_report.write(output / "data_report.json")
        evaluation = Evaluation(dataset, config, results, args.bootstrap, args.seed)
        write_results(evaluation, args, ground_truth, data_report, output, environment(accelerator.device))
        print_summary(console, evaluation)
        console.print(f"report: {output / 'report.html'}", style="bold")
    accelerator.wait_for_everyone()
    accelerator.end_training()


@torch.inference_mode()
def predict_all(accelerator: Accelerator, model, config: dict, dataset, args) -> dict[str, np.ndarray]:
    """points (N, 29, 2) native px, confidence (N, 29), measurements (N, 10) of the CVM branch, stages (N, 6)."""
    stride, mean, std = model.stride, model.measurement_mean.numpy(), model.measurement_std.numpy()
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    model, loader = accelerator.prepare(model, loader)
    model.eval()
    cases = Cases(accelerator, len(dataset))
    for batch in loader:
        prediction = model(batch["image"])
        points, confidence = decode(prediction, stride, config["sigma"])
        branch, stage = prediction["measurements"], prediction["cvm_stage"].softmax(dim=1)
        cases.add(batch["index"], points=points, confidence=confidence, measurements=branch, stage=stage)
    table = {name: column.float().numpy() for name, column in cases.table().items()}
    scale = np.array([box.scale for box in dataset.letterboxes])[:, None]
    table["measurements"] = (table["measurements"] * std + mean) / np.where(IS_LENGTH, scale, 1.0)  # native px
    return {**table, "points": dataset.to_native(table["points"])}


class Evaluation:
    """All numbers of one evaluation. Errors are (N, 29), NaN where the truth or the scale is unknown."""

    def __init__(self, dataset: CephalogramDataset, config: dict, results: dict, resamples: int, seed: int):
        self.cases, self.results, self.resamples, self.seed = dataset.cases, results, resamples, seed
        self.truth, self.points, mm = dataset.truth(), results["points"], dataset.mm_per_px()
        self.calibrated = np.isfinite(mm)
        self.unit = "mm" if self.calibrated.any() else "px"
        scale = mm if self.unit == "mm" else 1.0
        mean_shape = np.broadcast_to(np.array(config["mean_shape"]), (len(dataset), len(LANDMARKS), 2))
        self.errors = radial_errors(self.points, self.truth, scale)
        self.baseline_errors = radial_errors(dataset.to_native(mean_shape), self.truth, scale)
        to_mm = np.where(IS_LENGTH, mm[:, None], 1.0)  # (N, 10)
        self.measured = {
            "truth": measure(self.truth) * to_mm,
            "from landmarks": measure(self.points) * to_mm,
            "from CVM branch": results["measurements"] * to_mm,
        }
        self.stages = np.array([-1 if case.cvm_stage is None else case.cvm_stage - 1 for case in dataset.cases])

    def interval(self, errors: np.ndarray, statistic=np.nanmean) -> Interval:
        """Of a statistic of errors (N, …), by bootstrap over patients (each has one cephalogram)."""
        patients = np.flatnonzero(np.isfinite(errors.reshape(len(errors), -1)).any(axis=1))
        known = errors[patients]
        return bootstrap(lambda rows: float(statistic(known[rows])), patients, self.resamples, seed=self.seed)

    def mre(self) -> Interval:
        return self.interval(self.errors)

    def baseline(self) -> Interval:
        return self.interval(self.baseline_errors)

    def sdr(self) -> dict[float, Interval]:
        return {t: self.interval(self.errors, lambda e, t=t: success_detection_rate(e, (t,))[t]) for t in THRESHOLDS}

    def per_landmark(self) -> list[dict]:
        """MRE with interval, SD, median, SDR at 2 and the baseline's MRE of each landmark that has a truth."""
        rows = []
        for i, symbol in enumerate(LANDMARKS):
            errors = self.errors[:, i]
            if np.isfinite(errors).any():
                rates = success_detection_rate(errors, THRESHOLDS)
                row = {"landmark": symbol, "mre": self.interval(errors), "sd": float(np.nanstd(errors))}
                row |= {"median": float(np.nanmedian(errors)), "baseline": float(np.nanmean(self.baseline_errors[:, i]))}
                rows.append(row | {"sdr": rates, "cases": int(np.isfinite(errors).sum())})
        return rows

    def per_device(self) -> list[dict]:
        rows = []
        for device in sorted({case.device for case in self.cases}):
            mine = np.array([case.device == device for case in self.cases])
            if np.isfinite(self.errors[mine]).any():
                sdr = success_detection_rate(self.errors[mine], THRESHOLDS)
                rows.append({"device": device, "cases": int(mine.sum()), "mre": self.interval(self.errors[mine]), "sdr": sdr})
        return rows

    def measurements(self) -> list[dict]:
        """Bias ± SD and mean absolute error of each measurement, from landmarks and from the branch."""
        rows = []
        for i, measurement in enumerate(MEASUREMENTS):
            row = {"name": measurement.name, "unit": measurement.unit, "title": measurement.title}
            truth = self.measured["truth"][:, i]
            row["spread"] = float(np.nanstd(truth)) if np.isfinite(truth).any() else np.nan
            for source in ("from landmarks", "from CVM branch"):
                difference = self.measured[source][:, i] - truth
                known = difference[np.isfinite(difference)]
                row[source] = (
                    {"bias": float(known.mean()), "sd": float(known.std()), "mae": float(np.abs(known).mean())}
                    if known.size
                    else None
                )
            rows.append(row)
        return rows

    def stage_results(self) -> dict | None:
        """Accuracy, macro-F1 (over the stages that occur) and confusion matrix of the maturation stage."""
        known = self.stages >= 0
        if not known.any():
            return None
        truth = torch.from_numpy(self.stages[known])
        predicted = torch.from_numpy(self.results["stage"][known].argmax(axis=1))
        counts = multiclass_confusion_matrix(predicted, truth, CVM_STAGES).numpy()
        macro_f1 = multiclass_f1_score(predicted, truth, CVM_STAGES, average="macro").item()
        most_frequent = counts.sum(axis=1).max() / counts.sum()
        accuracy = float((predicted == truth).float().mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1, "baseline": float(most_frequent), "counts": counts}


def write_results(evaluation: Evaluation, args, ground_truth: str, data_report, output: Path, machine: dict) -> None:
    """metrics.json, predictions.csv, figures and report.html."""
    output.mkdir(parents=True, exist_ok=True)
    e, unit = evaluation, evaluation.unit
    mre, baseline, sdr, stages = e.mre(), e.baseline(), e.sdr(), e.stage_results()
    landmarks, devices, measurements = e.per_landmark(), e.per_device(), e.measurements()
    data = {
        "dataset": str(args.dataset_path), "split": args.split, "ground_truth": ground_truth, "cases": len(e.cases),
        "patients": len(e.cases), "uncalibrated": int((~e.calibrated).sum()), "landmarks": len(landmarks),
    }  # fmt: skip
    metrics = {
        "data": data, "unit": unit, "mre": mre._asdict(), "baseline_mre": baseline._asdict(),
        "sdr": {f"{t:g}": rate._asdict() for t, rate in sdr.items()},
        "per_landmark": [{**row, "mre": row["mre"]._asdict()} for row in landmarks],
        "per_device": [{**row, "mre": row["mre"]._asdict()} for row in devices],
        "measurements": measurements,
        "cvm_stage": stages and {**stages, "counts": stages["counts"].tolist()},
        "checkpoint": str(args.checkpoint), "environment": machine,
    }  # fmt: skip
    (output / "metrics.json").write_text(json.dumps(_without_nan(metrics), indent=1, ensure_ascii=False), encoding="utf-8")
    _write_predictions(e, output / "predictions.csv")

    folder = output / "figures"
    curves = figures.cumulative_errors({"model": e.errors, "mean shape": e.baseline_errors}, unit, THRESHOLDS[::3])
    curves = figures.save(curves, folder / "cumulative_error.png")
    ordered = sorted(landmarks, key=lambda row: row["mre"].estimate)
    low, high = np.array([row["mre"][1:] for row in ordered]).T
    bars = figures.interval_bars(
        [row["landmark"] for row in ordered], np.array([row["mre"].estimate for row in ordered]), low, high,
        f"mean radial error [{unit}] with 95 % interval",
    )  # fmt: skip
    bars = figures.save(bars, folder / "per_landmark.png")

    report = Report("Cephalometric landmarks", f"{args.checkpoint} on {args.dataset_path}/{args.split}")
    calibration = "all calibrated" if e.calibrated.all() else f"{(~e.calibrated).sum()} uncalibrated, left out of mm"
    report.cards(
        [
            ("Mean radial error", f"{mre.estimate:.2f} {unit}", f"95 % interval {mre.low:.2f} to {mre.high:.2f}"),
            ("Mean-shape baseline", f"{baseline.estimate:.2f} {unit}", f"{baseline.estimate / mre.estimate:.1f} × the model's"),
            (f"SDR at 2 {unit}", f"{sdr[2.0].estimate:.1f} %", f"95 % interval {sdr[2.0].low:.1f} to {sdr[2.0].high:.1f}"),
            ("Cases", str(len(e.cases)), f"{len(e.cases)} patients, {len(landmarks)} landmarks, {calibration}"),
        ]
    )
    report.text(
        f"Ground truth: {ground_truth} of the readers. Errors are measured in native pixels times mm per pixel. Intervals "
        f"are a bootstrap over patients ({args.bootstrap} resamples). The baseline is the mean shape of the training "
        "split, aligned by the letterbox.",
        note=True,
    )
    report.section("Errors")
    report.table(
        [f"threshold [{unit}]", "SDR [%]", "95 % interval"],
        [[f"{t:g}", f"{rate.estimate:.1f}", f"{rate.low:.1f} to {rate.high:.1f}"] for t, rate in sdr.items()],
    )
    report.figures([(curves, "Share of landmarks within each error"), (bars, "Mean radial error of each landmark")])
    report.section("Worst, middle and best cases")
    report.figures(_draw_cases(e, folder))
    report.section("Landmarks")
    report.table(
        ["landmark", f"MRE [{unit}]", "95 % interval", "SD", "median", *[f"SDR {t:g}" for t in THRESHOLDS], "baseline", "cases"],
        [
            [row["landmark"], f"{row['mre'].estimate:.2f}", f"{row['mre'].low:.2f} to {row['mre'].high:.2f}",
             f"{row['sd']:.2f}", f"{row['median']:.2f}", *[f"{rate:.1f}" for rate in row["sdr"].values()],
             f"{row['baseline']:.2f}", row["cases"]]
            for row in landmarks
        ],
    )  # fmt: skip
    report.section("Devices")
    report.table(
        ["device", "cases", f"MRE [{unit}]", "95 % interval", *[f"SDR {t:g}" for t in THRESHOLDS]],
        [
            [row["device"], row["cases"], f"{row['mre'].estimate:.2f}", f"{row['mre'].low:.2f} to {row['mre'].high:.2f}",
             *[f"{rate:.1f}" for rate in row["sdr"].values()]]
            for row in devices
        ],
    )  # fmt: skip
    report.section("Vertical measurements", "Mean difference ± SD (mean absolute difference) to the ground truth's own.")
    report.table(
        ["measurement", "", "unit", "SD between heads", "from landmarks", "from CVM branch"],
        [
            [row["name"], row["title"], row["unit"], _number(row["spread"]), _difference(row["from landmarks"]),
             _difference(row["from CVM branch"])]
            for row in measurements
        ],
    )  # fmt: skip
    if stages:
        report.section(
            "Maturation stage (CVM)",
            f"Accuracy {stages['accuracy']:.2f} (always the most frequent stage: {stages['baseline']:.2f}), macro-F1 "
            f"{stages['macro_f1']:.2f}.",
        )
        matrix = figures.confusion_matrix(stages["counts"], range(1, CVM_STAGES + 1), "CVM stage")
        report.figures([(figures.save(matrix, folder / "cvm_stage.png"), "Cases by true and predicted stage")])
    report.section("Data and machine")
    for (reason, action), count in data_report.counts().items():
        report.text(f"{count} × {reason}: {action}.")
    report.text("Every problem is listed in data_report.json." if data_report.problems else "No problems in the data.")
    report.details("Software and machine", json.dumps(machine, indent=1))
    report.text("For research. Not a medical device.", note=True)
    report.write(output / "report.html")


def print_summary(console: Console, evaluation: Evaluation) -> None:
    """The headline on the terminal."""
    unit = evaluation.unit
    table = Table("", f"MRE [{unit}]", "95 % interval", *[f"SDR {t:g} {unit} [%]" for t in THRESHOLDS], box=None)
    rates = [f"{rate.estimate:.1f}" for rate in evaluation.sdr().values()]
    mre, baseline = evaluation.mre(), evaluation.baseline()
    table.add_row("model", f"{mre.estimate:.2f}", f"{mre.low:.2f}–{mre.high:.2f}", *rates)
    baseline_rates = success_detection_rate(evaluation.baseline_errors, THRESHOLDS).values()
    rates = [f"{rate:.1f}" for rate in baseline_rates]
    table.add_row("mean shape", f"{baseline.estimate:.2f}", f"{baseline.low:.2f}–{baseline.high:.2f}", *rates)
    console.print(table)


def _draw_cases(e: Evaluation, folder: Path) -> list[tuple[Path, str]]:
    """Overlays of the three worst, the median and the best case."""
    mean_errors = np.nanmean(radial_errors(e.points, e.truth) if e.unit == "px" else e.errors, axis=1)
    order = [int(i) for i in np.argsort(-mean_errors) if np.isfinite(mean_errors[i])]
    chosen = {**dict.fromkeys(order[-1:], "best"), order[len(order) // 2]: "median", **dict.fromkeys(order[:3], "worst")}
    pictures = []
    for i, kind in reversed(chosen.items()):
        case, title = e.cases[i], f"{e.cases[i].id}   {kind}, {mean_errors[i]:.2f} {e.unit}"
        fig = comparison(read_image(case.image).pixels, e.truth[i], e.points[i], title)
        file = figures.save(fig, folder / f"{kind}_{case.id}.jpg", dpi=100)
        pictures.append((file, f"{kind}: {case.id}, {case.device}, mean error {mean_errors[i]:.2f} {e.unit}"))
    return pictures


def _write_predictions(e: Evaluation, file: Path) -> None:
    """One row a case: points in native px, errors, measurements, stage."""
    coordinates = [f"{symbol}_{axis}" for symbol in LANDMARKS for axis in "xy"]
    errors = [f"{symbol}_error_{e.unit}" for symbol in LANDMARKS]
    with open(file, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "device", "mm_per_px", f"mre_{e.unit}", *coordinates, *errors, *NAMES, "cvm_stage"])
        for i, case in enumerate(e.cases):
            stage = int(e.results["stage"][i].argmax()) + 1
            mean = np.nanmean(e.errors[i]) if np.isfinite(e.errors[i]).any() else np.nan
            numbers = [mean, *e.points[i].ravel(), *e.errors[i], *e.measured["from landmarks"][i]]
            cells = ["" if np.isnan(number) else f"{number:.3f}" for number in numbers]
            writer.writerow([case.id, case.device, case.mm_per_px or "", *cells, stage])


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent if checkpoint.name == "best" else checkpoint


def _without_nan(value):
    """NaN is no JSON: unknown numbers become null."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1f}"


def _difference(row: dict | None) -> str:
    return f"{row['bias']:+.2f} ± {row['sd']:.2f} ({row['mae']:.2f})" if row else "uncalibrated"


if __name__ == "__main__":
    script(main)
