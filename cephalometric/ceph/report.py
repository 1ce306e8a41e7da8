"""Output of an evaluation (metrics.json, predictions.csv, figures/, report.html); paired comparison of two
evaluations."""

import csv
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.evaluation import STATISTICS, THRESHOLDS, Evaluation, differences
from ceph.tracing import comparison
from core import figures
from core.errors import UserError
from core.images import read_image
from core.report import Report
from core.results import card, cells, close, number, with_span, write_json
from core.validation import DataReport


def write_results(evaluation: Evaluation, args, data_report: DataReport, machine: dict) -> dict:
    """Writes metrics.json, predictions.csv, figures/ and report.html to `args.output`; returns the metrics."""
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
        "mre": evaluation.interval(evaluation.errors),
        "baseline_mre": evaluation.interval(evaluation.baseline_errors),
        "sdr": evaluation.rates(evaluation.errors),
        "stage_1": evaluation.stage_1() if args.refiner else None,
        "seconds_per_picture": dict(zip(("stage 1", "stage 2"), evaluation.seconds, strict=True)),
        "by_landmark": evaluation.by_landmark(),
        "by_device": evaluation.by_device(),
        **({"by_measurement": evaluation.by_measurement()} if evaluation.anatomy.measurements else {}),
        **({"cvm_stage": evaluation.by_stage()} if evaluation.anatomy.stages else {}),
        "checkpoint": args.checkpoint,
        "refiner": args.refiner,
        "refine_crops": args.refine_crops if args.refiner else None,
        "tta": args.tta,
        "environment": machine,
    }
    write_json(args.output / "metrics.json", metrics)
    evaluation.write_predictions(args.output / "predictions.csv")
    write_report(evaluation, metrics, args, data_report)
    return metrics


def write_report(evaluation: Evaluation, metrics: dict, args, data_report: DataReport) -> None:
    """Writes figures/ and report.html: main results, error curves, example cases, tables."""
    unit, mre, baseline, sdr = evaluation.unit, metrics["mre"], metrics["baseline_mre"], metrics["sdr"]
    by_landmark, figure_folder = metrics["by_landmark"], args.output / "figures"
    schema = evaluation.anatomy.schema
    title = "Cephalometric landmarks" if evaluation.anatomy.is_built_in else f"Landmarks: {schema.name}"
    report = Report(title, f"{args.checkpoint} on {args.dataset_path}/{args.split}")
    uncalibrated = metrics["data"]["uncalibrated"]
    calibration = f"{uncalibrated} uncalibrated" if uncalibrated else "all calibrated"
    times = f"{baseline.estimate / mre.estimate:.1f} × the model's"
    report.cards(
        [
            card("Mean radial error", mre, unit=f" {unit}"),
            ("Mean-shape baseline", f"{baseline.estimate:.2f} {unit}", times),
            card(f"SDR at 2 {unit}", sdr[2.0], "{:.1f}", " %"),
            ("Cases", str(len(evaluation.cases)), f"one per patient; {len(by_landmark)} landmarks; {calibration}"),
        ]
    )
    report.text(
        f"Ground truth: {args.ground_truth} of the readers. Errors: radial distance at native resolution. Intervals: "
        f"bootstrap over patients, {args.bootstrap} resamples. Baseline: mean shape of the training split, aligned by "
        "the letterbox.",
        note=True,
    )

    report.section("Errors")
    rows = [[f"{t:g}", *cells(rate, "{:.1f}")] for t, rate in sdr.items()]
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
        [row["landmark"], *cells(row["mre"]), number(row["sd"]), number(row["median"]), *rate_cells(row["sdr"])]
        + [number(row["baseline"]), row["cases"]]
        for row in by_landmark
    ]
    report.table(header, rows)

    report.section("Devices")
    rows = [[r["device"], r["cases"], *cells(r["mre"]), *rate_cells(r["sdr"])] for r in metrics["by_device"]]
    report.table(["device", "cases", f"MRE [{unit}]", "95 % interval", *rates], rows)

    if measurements := metrics.get("by_measurement"):
        report.section("Measurements", "Mean difference from the ground truth ± SD (mean absolute difference).")
        sources = evaluation.measured
        rows = [
            [row["measurement"], row["title"], row["unit"], number(row["spread"], "{:.1f}")]
            + [_difference(row[source]) for source in sources]
            for row in measurements
        ]
        report.table(["measurement", "", "unit", "SD between patients", *[f"from {s}" for s in sources]], rows)

    if stage := metrics.get("cvm_stage"):
        scores = f"Accuracy {stage['accuracy']:.2f}, macro-F1 {stage['macro_f1']:.2f}; baseline (most frequent stage): "
        report.section("Maturation stage (CVM)", f"{scores}accuracy {stage['baseline']:.2f}.")
        matrix = figures.confusion_matrix(stage["counts"], evaluation.anatomy.stages, "CVM stage")
        report.figures([(figures.save(matrix, figure_folder / "cvm_stage.png"), "Cases by true and predicted stage")])
    close(report, args.output / "report.html", metrics["environment"], data_report.counts())


def write_stages(report: Report, metrics: dict, coarse: dict, unit: str) -> None:
    """Adds the comparison of both stages with stage 1 alone to the report."""
    first, second = (metrics["seconds_per_picture"][stage] for stage in ("stage 1", "stage 2"))
    report.text(
        f"Stage 2 averages {metrics['refine_crops']} crops per landmark. Time per picture on this machine: "
        f"stage 1 {first:.2f} s, stage 2 {second:.2f} s. Intervals of the differences: paired bootstrap."
    )
    names = ["MRE", *(f"SDR {t:g}" for t in THRESHOLDS)]
    alone = [coarse["mre"], *coarse["sdr"].values()]
    both = [metrics["mre"], *metrics["sdr"].values()]
    rows = [
        [f"{name} [{unit if name == 'MRE' else '%'}]", *(number(found.estimate) for found in (before, after))]
        + [with_span(coarse["difference"][name], "{:+.2f}")]
        for name, before, after in zip(names, alone, both, strict=True)
    ]
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


def rate_cells(sdr: dict[float, float]) -> list[str]:
    """Success detection rates in % as table cells."""
    return [number(rate, "{:.1f}") for rate in sdr.values()]


def _difference(row: dict | None) -> str:
    return f"{row['bias']:+.2f} ± {row['sd']:.2f} ({row['mae']:.2f})" if row else "uncalibrated"


# -------------------------------------------------------------------------------------------------------- comparison


def read_errors(folder: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """(unit, id -> landmark -> error) of an output folder of evaluate.py. Raises UserError for other folders."""
    try:
        with open(folder / "predictions.csv", encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        unit = "mm" if "mre_mm" in rows[0] else "px"
        end = f"_error_{unit}"
        columns = [name for name in rows[0] if name.endswith(end)]
        if not columns:
            raise ValueError("it has no errors of landmarks")
        return unit, {
            row["id"]: {name.removesuffix(end): float(row[name] or "nan") for name in columns} for row in rows
        }
    except (OSError, LookupError, ValueError) as error:
        raise UserError(f"--compare {folder}: no predictions.csv of evaluate.py there ({error})") from None


def compare(
    folders: list[Path], output: Path, console: Console, machine: dict, resamples: int = 1000, seed: int = 0
) -> None:
    """Prints the paired differences of two evaluations on common cases and landmarks, and writes comparison.json and
    comparison.html to `output`.

    Raises UserError for different units, and without common case or landmark.
    """
    (unit, first), (other_unit, second) = (read_errors(folder) for folder in folders)
    names = [str(folder) for folder in folders]
    if unit != other_unit:
        raise UserError(f"--compare: {names[0]} is in {unit}, {names[1]} in {other_unit}")
    ids = [identity for identity in first if identity in second]
    if not ids:
        raise UserError(f"--compare: {names[0]} and {names[1]} have no case in common")
    landmarks = [name for name in first[ids[0]] if name in second[ids[0]]]
    if not landmarks:
        raise UserError(f"--compare: {names[0]} and {names[1]} have no landmark in common")
    a, b = (np.array([[errors[i][name] for name in landmarks] for i in ids]) for errors in (first, second))
    found = differences(a, b, resamples, seed)
    by_landmark = {
        name: differences(a[:, [i]], b[:, [i]], resamples, seed, ["MRE"])["MRE"]
        for i, name in enumerate(landmarks)
        if (np.isfinite(a[:, i]) & np.isfinite(b[:, i])).any()
    }
    left_out = len(first) + len(second) - 2 * len(ids)
    result = {"a": names[0], "b": names[1], "unit": unit, "cases": len(ids), "left_out": left_out}
    write_json(output / "comparison.json", result | {"difference": found, "mre_by_landmark": by_landmark})
    units = {name: unit if name == "MRE" else "%" for name in found}
    rows = [
        [
            f"{name} [{units[name]}]",
            *(number(statistic(errors)) for errors in (a, b)),
            with_span(found[name], "{:+.2f}"),
        ]
        for name, statistic in STATISTICS.items()
    ]
    table = Table("", "A", "B", "B − A, 95 % interval", box=None)
    for row in rows:
        table.add_row(*row)
    console.print(f"A: {names[0]}\nB: {names[1]}\n{len(ids)} cases in both")
    console.print(table, crop=False)
    report = Report("Comparison of two evaluations", f"A: {names[0]}; B: {names[1]}")
    report.text(
        f"{len(ids)} cases in both; {left_out} in one only. Intervals: paired bootstrap over patients, {resamples} "
        "resamples. A difference is significant if its interval excludes 0.",
        note=True,
    )
    report.table(["", "A", "B", "B − A"], rows)
    report.section("Landmarks", f"Difference of mean radial error, B − A [{unit}]; most improved first.")
    ordered = sorted(by_landmark.items(), key=lambda item: item[1].estimate)
    report.table(["landmark", "B − A"], [[name, with_span(interval, "{:+.2f}")] for name, interval in ordered])
    console.print(f"report: {close(report, output / 'comparison.html', machine)}", style="bold")
