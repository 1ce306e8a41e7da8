"""Probabilities of 18 abnormalities for your own chest CT, with a picture of where the model looked.

    python ct_multilabel/predict.py --input VOLUME_OR_FOLDER --checkpoints runs/ct_multilabel/best

Reads NIfTI, MetaImage and DICOM series. In --output: results.json (the VLM3D submission), predictions.csv, and for
each volume <name>.png: the most telling slices of each label found, with Grad-CAM. Several checkpoints are averaged.
Research use only: not a medical device.
"""

import csv
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
from ct.ct_rate import find_files, read_metadata, stem
from ct.ensemble import Member, Predictions, average, calibrated, load_members, predict_logits
from ct.montage import montage
from ct.vlm3d import write_results
from ct.volumes import LABELS, VolumeError, load_volume, slice_stack

MOST = 6  # labels in a picture
SLICES = 3  # a label


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="volumes, or folders of them")
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="best/ of training runs")
    parser.add_argument("--output", type=Path, default=Path("runs/ct_predictions"), help="folder of results")
    parser.add_argument("--metadata", type=Path, help="CT-RATE's metadata CSV, for volumes that are not in HU")
    parser.add_argument(
        "--mc_dropout", type=non_negative_int, default=0, metavar="N", help="passes with dropout, for uncertainty"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the dropout masks")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console = make_console()
    device = make_accelerator().device
    members = load_members(args.checkpoints, device)
    settings = members[0].config["slices"]
    metadata = read_metadata(args.metadata) if args.metadata else {}
    files = [file for path in args.input for file in find_files(path)]
    if not files:
        raise UserError(f"no volume (.nii.gz, .nii, .mha, .mhd, DICOM) in {', '.join(map(str, args.input))}")
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    names, rows, failures = [], [], []
    for file in files:
        try:
            volume = load_volume(file, metadata.get(stem(file.name)))
        except VolumeError as error:
            failures.append(str(error))
            continue
        name = stem(file.name) if stem(file.name) not in names else f"{stem(file.name)}_{len(names) + 1}"
        for warning in volume.warnings:
            console.print(f"warning: {file}: {warning}", style="bold")
        pixels, positions = slice_stack(volume, **settings)
        prediction, found = predict(members, torch.from_numpy(pixels).to(device), args.mc_dropout)
        title = f"{name}   {', '.join(m.name for m in members)}   research use only"
        picture = montage(pixels, positions, found, settings["channels"], title)
        figures.save(picture, args.output / f"{name}.png", dpi=110)
        print_labels(console, name, prediction)
        names.append(name)
        rows.append((file, volume.warnings, prediction))

    for failure in failures:
        console.print(f"left out: {failure}", style="bold")
    if not rows:
        raise UserError(f"none of {len(files)} volumes could be used: {failures[0]}")
    scores = np.concatenate([prediction.scores for _, _, prediction in rows])
    write_results(args.output / "results.json", names, scores)
    write_table(args.output / "predictions.csv", names, rows)
    console.print(f"{len(rows)} of {len(files)} volumes done, results in {args.output}. Research use only.")


@torch.no_grad()
def predict(members: list[Member], slices: torch.Tensor, dropout_samples: int) -> tuple[Predictions, list[tuple]]:
    """The prediction for the slices (S, 3, H, W) uint8 of one volume, and what `montage` shows of the labels found:
    (label, score, numbers of the slices that speak most for it, heat maps), as the first member sees it."""
    logits = [predict_logits(member, slices[None], dropout_samples) for member in members]
    prediction = average([calibrated(m, x.cpu().numpy()) for m, x in zip(members, logits, strict=True)])
    scores, model = prediction.scores[0], members[0].model
    found = [int(k) for k in np.argsort(-scores) if scores[k] >= 0.5][:MOST]
    evidence = model(slices[None])["slices"][0] if found else None  # (S, 18)
    shown = []
    for k in found:
        numbers = evidence[:, k].topk(min(SLICES, len(slices))).indices.sort().values
        heat = model.grad_cam(slices[numbers], k).cpu().numpy()
        shown.append((LABELS[k], float(scores[k]), numbers.cpu().numpy(), heat))
    return prediction, shown


def print_labels(console: Console, name: str, prediction: Predictions) -> None:
    """The labels found, and the next three."""
    table = Table(name, "score", "probability", "", box=None)
    scores, probabilities = prediction.scores[0], prediction.probabilities[0]
    order = np.argsort(-scores)
    for k in order[: (scores >= 0.5).sum() + 3]:
        table.add_row(LABELS[k], f"{scores[k]:.2f}", f"{probabilities[k]:.2f}", "found" if scores[k] >= 0.5 else "–")
    console.print(table)


def write_table(file: Path, names: list[str], rows: list[tuple[Path, list[str], Predictions]]) -> None:
    """One row a volume and label: calibrated probability, score (0.5 = threshold), spread where there is one."""
    with open(file, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["volume", "file", "label", "probability", "score", "found", "sd", "warnings"])
        for name, (path, warnings, prediction) in zip(names, rows, strict=True):
            for k, label in enumerate(LABELS):
                probability, score = prediction.probabilities[0, k], prediction.scores[0, k]
                sd = "" if prediction.spread is None else f"{prediction.spread[0, k]:.4f}"
                cells = [f"{probability:.6g}", f"{score:.6g}", int(score >= 0.5), sd, "; ".join(warnings)]
                writer.writerow([name, path, label, *cells])


if __name__ == "__main__":
    script(main)
