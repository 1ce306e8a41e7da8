"""Output of an evaluation: metrics.json, predictions.csv, figures, report.html."""

from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from core import figures
from core.report import Report
from core.results import card, cells, close, number, write_json
from core.uncertainty import reliability
from ct.ensemble import Member
from ct.evaluation import Evaluation
from ct.labels import UNKNOWN, official
from ct.vlm3d import headline


def write_results_folder(
    ensemble: Evaluation,
    singles: list[Evaluation],
    members: list[Member],
    args,
    machine: dict,
    problems: dict[tuple[str, str], int],
) -> dict:
    """Writes metrics.json, predictions.csv, figures/ and report.html to `args.output`; returns the metrics.

    `singles`: evaluations of the `members`. `problems`: (reason, action) -> number, of the data report.
    """
    intervals = ensemble.intervals()
    by_label = intervals.pop("by_label")
    volumes = ensemble.volumes
    metrics = {
        "data": {
            "slices": args.slices_path,
            "split": args.split,
            "volumes": len(volumes),
            "scans": len({(volume.patient, volume.scan) for volume in volumes}),
            "patients": len(set(ensemble.patients)),
            "unknown_labels": int((ensemble.labels == UNKNOWN).sum()),
        },
        "official" if official(ensemble.names) else "metrics": ensemble.official,
        "intervals": intervals,
        "baselines": {
            "training prevalence": headline(ensemble.prevalence_baseline),
            "always positive": headline(ensemble.always_baseline),
        },
        "by_label": ensemble.by_label(by_label),
        "calibration_error": ensemble.calibration_errors(),
        "members": [
            {
                "name": member.name,
                "model": member.config["model"],
                "calibration": member.calibration.to_json(ensemble.names),
                "macro": headline(single.official),
            }
            for member, single in zip(members, singles, strict=True)
        ],
        "error_by_spread": ensemble.error_by_spread(),
        "checkpoints": args.checkpoint,
        "environment": machine,
    }
    write_json(args.output / "metrics.json", metrics)
    ensemble.write_predictions(args.output / "predictions.csv")
    write_report(ensemble, metrics, args, problems)
    return metrics


def write_report(evaluation: Evaluation, metrics: dict, args, problems: dict[tuple[str, str], int]) -> None:
    """Writes report.html: headline metrics, labels, curves, calibration, members, data."""
    data, intervals, baselines = metrics["data"], metrics["intervals"], metrics["baselines"]
    folder, macro = args.output / "figures", headline(evaluation.official)
    names = ", ".join(str(checkpoint) for checkpoint in args.checkpoint)
    report = Report("Abnormalities on CT", f"{names} on {args.slices_path}, {args.split} split")
    always, constant = baselines["always positive"], baselines["training prevalence"]
    f1 = f"“always positive” {always['f1']:.3f}, training prevalence {constant['f1']:.3f}"
    cards = [("AUROC, macro", "auroc", "chance 0.5"), ("F1, macro", "f1", f1)]
    if "crg" in intervals:
        cards.append(("CRG", "crg", "all positive or all negative 0.333"))
    numbers = [card(title, intervals[key], "{:.3f}", note=note) for title, key, note in cards]
    report.cards([*numbers, ("Volumes", str(data["volumes"]), f"{data['scans']} scans, {data['patients']} patients")])
    challenge = ", as in the challenge" if official(evaluation.names) else ""
    report.text(
        f"{data['unknown_labels']} unknown labels are left out. Positive where the score is at least 0.5{challenge}; "
        f"the tuned thresholds are built into the scores. Intervals: bootstrap over patients, {args.bootstrap} "
        "resamples.",
        note=True,
    )
    if args.split == "tune":
        report.text("Epoch, thresholds and calibration were chosen on these patients: the results are too good.")

    report.section("Labels")
    header = ["label", "positive", "known", "AUROC", "95 % interval", "F1", "95 % interval", "precision", "recall"]
    rows = [
        [row["label"], row["positives"], row["cases"], *cells(row["auroc"]), *cells(row["f1"])]
        + [number(row[name]) for name in ("precision", "recall", "average_precision", "baseline_f1")]
        for row in metrics["by_label"]
    ]
    rows.append(
        ["macro mean", "", "", *cells(intervals["auroc"]), *cells(intervals["f1"])]
        + [number(macro["precision"]), number(macro["recall"]), "", number(always["f1"])]
    )
    report.table([*header, "average precision", "F1 always positive"], rows)
    ordered = sorted(metrics["by_label"], key=lambda row: -row["auroc"].estimate)
    bars = {row["label"]: row["auroc"] for row in ordered if np.isfinite(row["auroc"].estimate)}
    if bars:
        chart = figures.save(figures.interval_bars(bars, "AUROC with 95 % interval"), folder / "auroc.png")
        report.figures([(chart, "AUROC by label")])
        report.section("Curves")
        for curves in draw_curves(evaluation, metrics["by_label"], folder):
            report.figures([curves])

    error = metrics["calibration_error"]
    report.section(
        "Calibration",
        f"Expected calibration error {error['before']:.3f} after pooling over the slices, {error['after']:.3f} after "
        "Platt scaling on the tuning patients.",
    )
    values = {"before": evaluation.predictions.raw, "after": evaluation.predictions.probabilities}
    diagram = figures.reliability_diagram({name: reliability(p, evaluation.labels) for name, p in values.items()})
    report.figures([(figures.save(diagram, folder / "reliability.png"), "Predicted probability against frequency")])

    if len(metrics["members"]) > 1:
        report.section("Members of the ensemble")
        rows = [
            [m["name"], m["model"]["backbone"], m["model"]["attention"], m["calibration"]["aggregate"], m["macro"]]
            for m in metrics["members"]
        ]
        rows.append(["ensemble", "", "", "", macro])
        rows = [[*row[:-1], *(number(row[-1][name], "{:.3f}") for name in evaluation.headlines)] for row in rows]
        titles = ["AUROC", "F1", "precision", "recall", "accuracy", "CRG"][: len(evaluation.headlines)]
        report.table(["", "backbone", "attention", "pooling", *titles], rows)
    if spread := metrics["error_by_spread"]:
        kind = "between members" if len(metrics["members"]) > 1 else f"over {args.mc_dropout} dropout masks"
        report.section("Uncertainty", f"Wrong decisions by the SD of the probability {kind}, in three equal groups.")
        rows = [[f"{row['spread']:.3f}", row["cells"], f"{100 * row['wrong']:.1f}"] for row in spread]
        report.table(["mean SD", "decisions", "wrong [%]"], rows)
    close(report, args.output / "report.html", metrics["environment"], problems)


def draw_curves(evaluation: Evaluation, by_label: list[dict], folder: Path) -> list[tuple[Path, str]]:
    """ROC and precision-recall curves as (file, caption), with one panel per label with both classes."""
    roc, recall, prevalence = {}, {}, {}
    for i, row in enumerate(by_label):
        known = evaluation.labels[:, i] != UNKNOWN
        truth = torch.from_numpy(evaluation.labels[known, i]).long()
        if len(truth.unique()) < 2:
            continue
        scores = torch.from_numpy(evaluation.predictions.scores[known, i])
        false_rate, true_rate, _ = binary_roc(scores, truth)
        precision, sensitivity, _ = binary_precision_recall_curve(scores, truth)
        roc[f"{row['label']}  {row['auroc'].estimate:.2f}"] = [(false_rate.numpy(), true_rate.numpy())]
        title = f"{row['label']}  {row['average_precision']:.2f}"
        # torchmetrics appends the point (0, 1), which belongs to no threshold.
        recall[title] = [(sensitivity[:-1].numpy(), precision[:-1].numpy())]
        prevalence[title] = row["positives"] / row["cases"]
    grids = [
        (figures.curve_grid(roc, "false positive rate", "true positive rate"), "roc", "ROC curves, with AUROC"),
        (
            figures.curve_grid(recall, "recall", "precision", prevalence),
            "precision_recall",
            "Precision-recall curves, with average precision; dotted: prevalence",
        ),
    ]
    return [(figures.save(grid, folder / f"{name}.png"), caption) for grid, name, caption in grids]
