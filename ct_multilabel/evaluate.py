"""Evaluates one model or an ensemble on held-out volumes: the official VLM3D metrics with intervals and baselines.

    python ct_multilabel/evaluate.py --checkpoints runs/ct_multilabel/best --slices_path slices
    python ct_multilabel/evaluate.py --checkpoints runs/a/best runs/b/best runs/c/best       # their average

Thresholds, calibration and pooling come with the models; they were tuned on training patients that were held out.
Writes metrics.json, predictions.csv (one row a volume), results.json (the challenge's submission), figures/ and
report.html to --output.
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
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from core import figures
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.cases import Cases
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.losses.classification import UNKNOWN
from core.report import Report
from core.results import evaluation_folder, plain
from core.uncertainty import reliability
from ct.ensemble import Member, Predictions, average, calibrated, load_members, predict_logits, settings_text
from ct.evaluation import MACRO, Evaluation
from ct.slices import VolumeDataset, divide
from ct.store import check_files, read_manifest, read_settings
from ct.vlm3d import write_results
from ct.volumes import LABELS


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="best/ of training runs")
    parser.add_argument("--slices_path", type=Path, default=Path("slices"), help="what extract_slices.py wrote")
    parser.add_argument("--split", choices=("valid", "tune"), default="valid", help="tune = tuned on: too good")
    parser.add_argument(
        "--mc_dropout", type=non_negative_int, default=0, metavar="N", help="passes with dropout, for uncertainty"
    )
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<split> beside best/)")
    parser.add_argument("--batch_size", type=positive_int, default=4, help="volumes a process and step")
    parser.add_argument("--num_workers", type=non_negative_int, default=2, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the bootstrap and the dropout masks")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    members = load_members(args.checkpoints, accelerator.device)
    config = members[0].config
    if (settings := read_settings(args.slices_path)) != config["slices"]:
        ours, theirs = settings_text(settings), settings_text(config["slices"])
        raise UserError(f"{args.slices_path} was cut with {ours}; the model was trained on {theirs}")
    args.output = args.output or evaluation_folder(args.checkpoints[0], f"evaluation_{args.split}")

    volumes = divide(read_manifest(args.slices_path), config["tune_fraction"], needed=(args.split,))[args.split]
    check_files(volumes)
    dataset = VolumeDataset(volumes)
    predictions = predict_all(accelerator, console, members, dataset, args)
    if accelerator.is_main_process:
        prevalence = np.array([config["prevalence"][label] for label in LABELS])
        singles = [Evaluation(volumes, p, prevalence, args.bootstrap, args.seed) for p in predictions]
        ensemble = Evaluation(volumes, average(predictions), prevalence, args.bootstrap, args.seed)
        metrics = write_results_folder(ensemble, singles, members, args, environment(accelerator))
        print_summary(metrics, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def predict_all(
    accelerator: Accelerator, console: Console, members: list[Member], dataset: VolumeDataset, args
) -> list[Predictions]:
    """The predictions of each member for every volume."""
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.num_workers)
    loader = accelerator.prepare(loader)
    cases = Cases(accelerator, len(dataset))
    torch.manual_seed(args.seed)
    with progress(console, "volumes", len(loader)) as advance:
        for batch in loader:
            logits = {
                f"{i}": predict_logits(member, batch["slices"], args.mc_dropout).movedim(0, 1)  # volumes first
                for i, member in enumerate(members)
            }
            cases.add(batch["index"], **logits)
            advance()
    table = cases.table()
    return [calibrated(member, table[f"{i}"].movedim(1, 0).numpy()) for i, member in enumerate(members)]


def write_results_folder(
    ensemble: Evaluation, singles: list[Evaluation], members: list[Member], args, machine: dict
) -> dict:
    """metrics.json, predictions.csv, results.json, figures/ and report.html in `args.output`; returns the metrics."""
    args.output.mkdir(parents=True, exist_ok=True)
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
        "official": ensemble.official,
        "intervals": intervals,
        "baselines": {
            "training prevalence": ensemble.prevalence_baseline["macro"] | {"crg": ensemble.prevalence_baseline["crg"]},
            "always positive": ensemble.always_baseline["macro"] | {"crg": ensemble.always_baseline["crg"]},
        },
        "by_label": ensemble.by_label(by_label),
        "calibration_error": ensemble.calibration_errors(),
        "members": [
            {
                "name": member.name,
                "model": member.config["model"],
                "calibration": member.calibration.to_json(),
                "macro": single.official["macro"] | {"crg": single.official["crg"]},
            }
            for member, single in zip(members, singles, strict=True)
        ],
        "error_by_spread": ensemble.error_by_spread(),
        "checkpoints": args.checkpoints,
        "environment": machine,
    }
    (args.output / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")
    ensemble.write_predictions(args.output / "predictions.csv")
    write_results(args.output / "results.json", [v.name for v in volumes], ensemble.predictions.scores)
    write_report(ensemble, metrics, args)
    return metrics


def write_report(evaluation: Evaluation, metrics: dict, args) -> None:
    """The page that a person reads: headline, labels, curves, calibration, members."""
    data, intervals, baselines = metrics["data"], metrics["intervals"], metrics["baselines"]
    folder = args.output / "figures"
    names = ", ".join(str(checkpoint) for checkpoint in args.checkpoints)
    report = Report("Abnormalities on chest CT", f"{names} on {args.slices_path}, {args.split} split")
    always, constant = baselines["always positive"], baselines["training prevalence"]
    f1 = f"“always positive” {always['f1']:.3f}, training prevalence {constant['f1']:.3f}"
    cards = [
        ("AUROC, macro", "auroc", "chance 0.5"),
        ("F1, macro", "f1", f1),
        ("CRG", "crg", "all positive or all negative 0.333"),
    ]
    numbers = [
        (title, f"{intervals[key].estimate:.3f}", f"95 % interval {_span(intervals[key])}; {note}")
        for title, key, note in cards
    ]
    report.cards([*numbers, ("Volumes", str(data["volumes"]), f"{data['scans']} scans, {data['patients']} patients")])
    report.text(
        f"{data['unknown_labels']} unknown labels are left out. Positive where the score is at least 0.5, as in the "
        "challenge; the tuned thresholds are built into the scores. Intervals: bootstrap over patients, "
        f"{args.bootstrap} resamples.",
        note=True,
    )
    if args.split == "tune":
        report.text("These patients chose the epoch, the thresholds and the calibration: the numbers are too good.")

    report.section("Labels")
    header = ["label", "positive", "known", "AUROC", "95 % interval", "F1", "95 % interval", "precision", "recall"]
    rows = [
        [row["label"], row["positives"], row["cases"], *_cells(row["auroc"]), *_cells(row["f1"])]
        + [f"{row[name]:.2f}" for name in ("precision", "recall", "average_precision", "baseline_f1")]
        for row in metrics["by_label"]
    ]
    macro = metrics["official"]["macro"]
    rows.append(
        ["macro mean", "", "", *_cells(intervals["auroc"]), *_cells(intervals["f1"])]
        + [f"{macro['precision']:.2f}", f"{macro['recall']:.2f}", "", f"{always['f1']:.2f}"]
    )
    report.table([*header, "average precision", "F1 always positive"], rows)
    ordered = sorted(metrics["by_label"], key=lambda row: -row["auroc"].estimate)
    bars = {row["label"]: row["auroc"] for row in ordered if np.isfinite(row["auroc"].estimate)}
    report.figures(
        [
            (
                figures.save(figures.interval_bars(bars, "AUROC with 95 % interval"), folder / "auroc.png"),
                "AUROC by label",
            )
        ]
    )
    report.section("Curves")
    for curves in draw_curves(evaluation, metrics["by_label"], folder):
        report.figures([curves])

    error = metrics["calibration_error"]
    report.section(
        "Calibration",
        f"Expected calibration error {error['before']:.3f} as pooled over the slices, {error['after']:.3f} after Platt "
        "scaling on the tuning patients.",
    )
    values = {"before": evaluation.predictions.raw, "after": evaluation.predictions.probabilities}
    diagram = figures.reliability_diagram({name: reliability(p, evaluation.labels) for name, p in values.items()})
    report.figures([(figures.save(diagram, folder / "reliability.png"), "Predicted probability against frequency")])

    if len(metrics["members"]) > 1:
        report.section("Members of the ensemble")
        rows = [[m["name"], m["model"]["backbone"], m["model"]["attention"], m["calibration"]["aggregate"]]
                + [f"{m['macro'][name]:.3f}" for name in (*MACRO, "crg")] for m in metrics["members"]]  # fmt: skip
        rows.append(
            ["ensemble", "", "", "", *[f"{macro[name]:.3f}" for name in MACRO], f"{intervals['crg'].estimate:.3f}"]
        )
        report.table(
            ["", "backbone", "attention", "pooling", "AUROC", "F1", "precision", "recall", "accuracy", "CRG"], rows
        )
    if spread := metrics["error_by_spread"]:
        kind = "between members" if len(metrics["members"]) > 1 else f"over {args.mc_dropout} dropout masks"
        report.section("Uncertainty", f"Wrong decisions by the SD {kind} of the probability, in three equal parts.")
        rows = [[f"{row['spread']:.3f}", row["cells"], f"{100 * row['wrong']:.1f}"] for row in spread]
        report.table(["mean SD", "decisions", "wrong [%]"], rows)

    report.section("Machine")
    report.details("Software and machine", json.dumps(metrics["environment"], indent=1))
    report.text("For research. Not a medical device.", note=True)
    report.write(args.output / "report.html")


def draw_curves(evaluation: Evaluation, by_label: list[dict], folder: Path) -> list[tuple[Path, str]]:
    """ROC and precision-recall curves, a panel for each label that has both classes: (file, caption)."""
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
        # torchmetrics ends every curve at (0, 1), which no threshold gives.
        recall[title] = [(sensitivity[:-1].numpy(), precision[:-1].numpy())]
        prevalence[title] = row["positives"] / row["cases"]
    grids = [
        (figures.curve_grid(roc, "false positive rate", "true positive rate"), "roc", "ROC curves, with AUROC"),
        (
            figures.curve_grid(recall, "recall", "precision", prevalence),
            "precision_recall",
            "Precision over recall, with average precision; dotted: the prevalence",
        ),
    ]
    return [(figures.save(grid, folder / f"{name}.png"), caption) for grid, name, caption in grids]


def print_summary(metrics: dict, console: Console) -> None:
    """The headline on the terminal."""
    intervals = metrics["intervals"]
    table = Table("", "AUROC (95 % interval)", "F1 (95 % interval)", "CRG", box=None)
    name = "model" if len(metrics["members"]) == 1 else f"ensemble of {len(metrics['members'])}"
    headline = [f"{intervals[key].estimate:.3f} ({_span(intervals[key])})" for key in ("auroc", "f1")]
    table.add_row(name, *headline, f"{intervals['crg'].estimate:.3f}")
    for name, row in metrics["baselines"].items():
        table.add_row(name, *[f"{row[key]:.3f}" for key in ("auroc", "f1", "crg")])
    console.print(table, crop=False)


def _span(interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _cells(interval) -> list[str]:
    return [f"{interval.estimate:.2f}", f"{interval.low:.2f} to {interval.high:.2f}"]


if __name__ == "__main__":
    script(main)
