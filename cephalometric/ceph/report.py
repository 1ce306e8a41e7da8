"""The report of an evaluation: metrics.json, predictions.csv, figures/ and the page that a person reads."""

import json
from pathlib import Path

import numpy as np

from ceph.comparison import signed
from ceph.evaluation import THRESHOLDS, Evaluation
from ceph.hrnet import CVM_STAGES
from ceph.tracing import comparison
from core import figures
from core.images import read_image
from core.report import Report
from core.results import plain
from core.uncertainty import Interval
from core.validation import DataReport


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
        "stage_1": evaluation.stage_1() if args.refiner else None,
        "seconds_per_picture": dict(zip(("stage 1", "stage 2"), evaluation.seconds, strict=True)),
        "by_landmark": evaluation.by_landmark(),
        "by_device": evaluation.by_device(),
        "by_measurement": evaluation.by_measurement(),
        "cvm_stage": evaluation.by_stage(),
        "checkpoint": args.checkpoint,
        "refiner": args.refiner,
        "refine_crops": args.refine_crops if args.refiner else None,
        "tta": args.tta,
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
    errors = {"model": evaluation.errors}
    if coarse := metrics["stage_1"]:
        errors["stage 1 alone"] = evaluation.coarse_errors
        write_stages(report, metrics, coarse, unit)
    errors["mean shape"] = evaluation.baseline_errors
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
        [
            row["landmark"],
            *interval_cells(row["mre"]),
            f"{row['sd']:.2f}",
            f"{row['median']:.2f}",
            *rate_cells(row["sdr"]),
        ]
        + [f"{row['baseline']:.2f}", row["cases"]]
        for row in by_landmark
    ]
    report.table(header, rows)

    report.section("Devices")
    rows = [[r["device"], r["cases"], *interval_cells(r["mre"]), *rate_cells(r["sdr"])] for r in metrics["by_device"]]
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


def write_stages(report: Report, metrics: dict, coarse: dict, unit: str) -> None:
    """What stage 2 adds to stage 1."""
    first, second = (metrics["seconds_per_picture"][stage] for stage in ("stage 1", "stage 2"))
    report.text(
        f"Stage 2 looks at {metrics['refine_crops']} native crops of each landmark. Time a picture on this machine: "
        f"stage 1 {first:.2f} s, stage 2 {second:.2f} s more. Intervals of the differences: paired bootstrap."
    )
    names = ["MRE", *(f"SDR {t:g}" for t in THRESHOLDS)]
    alone = [coarse["mre"], *coarse["sdr"].values()]
    both = [metrics["mre"], *metrics["sdr"].values()]
    rows = [
        [f"{name} [{unit if name == 'MRE' else '%'}]", *(f"{found.estimate:.2f}" for found in (before, after)),
         signed(coarse["difference"][name])]
        for name, before, after in zip(names, alone, both, strict=True)
    ]  # fmt: skip
    report.table(["", "stage 1 alone", "with stage 2", "difference"], rows)


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


def interval_cells(interval: Interval) -> list[str]:
    return [f"{interval.estimate:.2f}", f"{interval.low:.2f} to {interval.high:.2f}"]


def rate_cells(sdr: dict[float, float]) -> list[str]:
    return [f"{rate:.1f}" for rate in sdr.values()]


def _difference(row: dict | None) -> str:
    return f"{row['bias']:+.2f} ± {row['sd']:.2f} ({row['mae']:.2f})" if row else "uncalibrated"
