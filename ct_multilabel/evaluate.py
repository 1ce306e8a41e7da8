"""Evaluates a model or an ensemble on held-out volumes, with confidence intervals and baselines.

    python ct_multilabel/evaluate.py --checkpoint runs/ct_multilabel/best --slices_path slices
    python ct_multilabel/evaluate.py --checkpoint runs/a/best runs/b/best runs/c/best       # ensemble

Pooling, calibration and thresholds are part of the checkpoints. Writes metrics.json, predictions.csv (one row per
volume), figures/, report.html and data_report.json to --output; for CT-RATE's labels also results.json, the submission
to VLM3D, and its metrics.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from core.args import ArgumentParser, add_evaluation_arguments, non_negative_int, script
from core.cases import Cases
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.results import evaluation_folder, number, with_span
from core.validation import DataReport
from ct.ensemble import Member, Predictions, average, calibrated, load_members, predict_logits, settings_text
from ct.evaluation import Evaluation
from ct.labels import nearest, with_labels
from ct.report import write_results_folder
from ct.slices import VolumeDataset, divide
from ct.store import MANIFEST, StoredVolume, check_files, label_table, read_manifest, read_settings
from ct.vlm3d import write_submission


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    several = "model folder: best/ of a training run; several are averaged"
    add("--checkpoint", "--checkpoints", type=Path, nargs="+", required=True, help=several)
    add("--slices_path", type=Path, default=Path("slices"), help="slice store of extract_slices.py")
    add("--split", choices=("valid", "tune"), default="valid", help="evaluated split; tune = the tuning patients")
    add("--mc_dropout", type=non_negative_int, default=0, metavar="N", help="Monte Carlo dropout passes; 0 = none")
    add_evaluation_arguments(
        parser, output="evaluation_<split>", batch_size=4, per="volumes", seed="the bootstrap and the dropout masks"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    members = load_members(args.checkpoint, accelerator.device)
    config = members[0].config
    args.output = args.output or evaluation_folder(args.checkpoint[0], f"evaluation_{args.split}")
    report = DataReport()
    with report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        volumes = read_volumes(args, config, report)
        check_files(volumes, report, accelerator)
    report.print(console, args.output / "data_report.json")

    predictions = predict_all(accelerator, console, members, VolumeDataset(volumes), args)
    if accelerator.is_main_process:
        labels = config["labels"]
        prevalence = np.array([config["prevalence"][label] for label in labels])
        singles = [Evaluation(labels, volumes, p, prevalence, args.bootstrap, args.seed) for p in predictions]
        ensemble = Evaluation(labels, volumes, average(predictions), prevalence, args.bootstrap, args.seed)
        metrics = write_results_folder(ensemble, singles, members, args, environment(accelerator), report.counts())
        names = [volume.name for volume in volumes]
        write_submission(args.output, names, ensemble.predictions.scores, config, console)
        print_summary(metrics, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def read_volumes(args, config: dict, report: DataReport) -> list[StoredVolume]:
    """Volumes of --split with the labels of the model. Labels of only the store or only the model are reported.

    Raises UserError for other slice settings than in training, and if no label of the model has a known case.
    """
    if (settings := read_settings(args.slices_path)) != config["slices"]:
        ours, theirs = settings_text(settings), settings_text(config["slices"])
        raise UserError(f"{args.slices_path} was cut with {ours}; the model was trained on {theirs}")
    manifest = args.slices_path / MANIFEST
    labels, listed = read_manifest(args.slices_path)
    volumes = divide(listed, config["tune_fraction"], needed=(args.split,))[args.split]
    report.cases = {args.split: len(volumes)}
    for label in [label for label in labels if label not in config["labels"]]:
        near = f"the model knows {near!r}" if (near := nearest(label, config["labels"])) else ""
        report.add("label that the model does not know", f"{manifest}, column {label!r}", "left out", near)
    volumes = with_labels(volumes, labels, config["labels"])
    unknown = [label for label, cells in zip(config["labels"], label_table(volumes).T, strict=True) if max(cells) < 0]
    for label in unknown:
        report.add("label of the model without a known case", f"{manifest}, {label!r}", "no metrics of this label")
    if len(unknown) == len(config["labels"]):
        raise UserError(f"{manifest}: no label of the model has a known case ({', '.join(unknown)})")
    return volumes


def predict_all(
    accelerator: Accelerator, console: Console, members: list[Member], dataset: VolumeDataset, args
) -> list[Predictions]:
    """Predictions of each member for all volumes."""
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


def print_summary(metrics: dict, console: Console) -> None:
    """Prints the headline metrics."""
    intervals = metrics["intervals"]
    crg = [name for name in ("crg",) if name in intervals]
    table = Table("", "AUROC (95 % interval)", "F1 (95 % interval)", *map(str.upper, crg), box=None)
    name = "model" if len(metrics["members"]) == 1 else f"ensemble of {len(metrics['members'])}"
    headline = [with_span(intervals[key], "{:.3f}") for key in ("auroc", "f1")]
    table.add_row(name, *headline, *[number(intervals[key].estimate, "{:.3f}") for key in crg])
    for name, row in metrics["baselines"].items():
        table.add_row(name, *[number(row[key], "{:.3f}") for key in ("auroc", "f1", *crg)])
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
