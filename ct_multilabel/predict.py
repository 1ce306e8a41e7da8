"""Predicts the labels of chest CT volumes, with Grad-CAM pictures.

    python ct_multilabel/predict.py --input VOLUME_OR_FOLDER --checkpoint runs/ct_multilabel/best

Reads NIfTI, MetaImage and DICOM series. Writes predictions.csv, data_report.json and <name>.png per volume (the slices
with the highest logits of each label found, with Grad-CAM) to --output; for CT-RATE's labels also results.json, the
submission to VLM3D. Several checkpoints are averaged. For research. Not a medical device.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, non_negative_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct
from core.results import write_csv
from core.validation import DataReport
from ct.ct_rate import find_files, read_metadata, stem
from ct.ensemble import Member, Predictions, average, calibrated, load_members, predict_logits
from ct.montage import montage
from ct.vlm3d import write_submission
from ct.volumes import VolumeError, load_volume, slice_stack

MOST = 6  # labels per picture
SLICES = 3  # slices per label


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, help="input volumes: files or folders")
    several = "model folder: best/ of a training run; several are averaged"
    add("--checkpoint", "--checkpoints", type=Path, nargs="+", required=True, help=several)
    add(
        "--output",
        type=Path,
        default=Path("runs", f"{Path(__file__).resolve().parent.name}_predictions"),
        help="output folder",
    )
    add("--metadata", type=Path, help="metadata CSV of CT-RATE, for volumes that are not in HU")
    add("--mc_dropout", type=non_negative_int, default=0, metavar="N", help="Monte Carlo dropout passes; 0 = none")
    add("--seed", type=non_negative_int, default=0, help="random seed of the dropout masks")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console = make_console()
    device = make_accelerator().device
    members = load_members(args.checkpoint, device)
    config = members[0].config
    torch.manual_seed(args.seed)
    rows, report = [], DataReport()
    with report.written_to(args.output / "data_report.json"):
        metadata = read_metadata(args.metadata) if args.metadata else {}
        files = [file for path in args.input for file in find_files(path)]
        if not files:
            raise UserError(f"no volume (.nii.gz, .nii, .mha, .mhd, DICOM) in {', '.join(map(str, args.input))}")
        for file, name in zip(files, distinct(stem(file.name) for file in files), strict=True):
            try:
                volume = load_volume(file, metadata.get(stem(file.name)))
            except VolumeError as error:
                note(report, file, "left out", str(error).removeprefix(f"{file}: "), console)
                continue
            for warning in volume.warnings:
                note(report, file, "warning", warning, console)
            pixels, positions = slice_stack(volume, **config["slices"])
            prediction, found = predict(members, torch.from_numpy(pixels).to(device), args.mc_dropout)
            title = f"{name}   {', '.join(m.name for m in members)}   research use only"
            picture = montage(pixels, positions, found, config["slices"]["channels"], title)
            figures.save(picture, args.output / f"{name}.png", dpi=110)
            print_labels(console, name, prediction, config["labels"])
            rows.append((name, file, volume.warnings, prediction))
        report.cases = {"volumes": len(rows)}
        if not rows:
            first = report.problems[0]
            raise UserError(f"none of {len(files)} volumes could be used: {first.where}: {first.detail}")
    write_table(args.output / "predictions.csv", rows, config["labels"])
    scores = np.concatenate([prediction.scores for *_, prediction in rows])
    write_submission(args.output, [name for name, *_ in rows], scores, config, console)
    console.print(f"{len(rows)} of {len(files)} volumes done, results in {args.output}. Research use only.")


def note(report: DataReport, file: Path, action: str, problem: str, console: Console) -> None:
    """Reports and prints a problem of a volume."""
    report.add(problem.partition(": ")[0], file, action, problem)
    console.print(f"{action}: {file}: {problem}", style="bold")


@torch.no_grad()
def predict(members: list[Member], slices: torch.Tensor, dropout_samples: int) -> tuple[Predictions, list[tuple]]:
    """Prediction for the slices (S, 3, H, W) uint8 of a volume, and the findings for `montage`: (label, score, numbers
    of the slices with the highest logits, heat maps), by the first member."""
    logits = [predict_logits(member, slices[None], dropout_samples) for member in members]
    prediction = average([calibrated(m, x.cpu().numpy()) for m, x in zip(members, logits, strict=True)])
    scores, model = prediction.scores[0], members[0].model
    found = [int(k) for k in np.argsort(-scores) if scores[k] >= 0.5][:MOST]
    evidence = model(slices[None])["slices"][0] if found else None  # (S, labels)
    shown = []
    for k in found:
        numbers = evidence[:, k].topk(min(SLICES, len(slices))).indices.sort().values
        heat = model.grad_cam(slices[numbers], k).cpu().numpy()
        shown.append((members[0].config["labels"][k], float(scores[k]), numbers.cpu().numpy(), heat))
    return prediction, shown


def print_labels(console: Console, name: str, prediction: Predictions, labels: list[str]) -> None:
    """Prints the labels found and the next three."""
    table = Table(name, "score", "probability", "", box=None)
    scores, probabilities = prediction.scores[0], prediction.probabilities[0]
    order = np.argsort(-scores)
    for k in order[: (scores >= 0.5).sum() + 3]:
        table.add_row(labels[k], f"{scores[k]:.2f}", f"{probabilities[k]:.2f}", "found" if scores[k] >= 0.5 else "–")
    console.print(table)


def write_table(file: Path, rows: list[tuple[str, Path, list[str], Predictions]], labels: list[str]) -> None:
    """Writes one row per volume and label: calibrated probability, score (0.5 = threshold), SD if any."""
    lines = []
    for name, path, warnings, prediction in rows:
        for k, label in enumerate(labels):
            probability, score = prediction.probabilities[0, k], prediction.scores[0, k]
            sd = "" if prediction.spread is None else f"{prediction.spread[0, k]:.4f}"
            cells = [f"{probability:.6g}", f"{score:.6g}", int(score >= 0.5), sd, "; ".join(warnings)]
            lines.append([name, path, label, *cells])
    write_csv(file, ["volume", "file", "label", "probability", "score", "found", "sd", "warnings"], lines)


if __name__ == "__main__":
    script(main)
