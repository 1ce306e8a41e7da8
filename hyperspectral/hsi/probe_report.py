"""What a probe came to on held-out cubes: metrics.json, predictions.csv, figures and a page."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import to_rgb as rgb_of_name
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc, binary_roc

from core import figures
from core.report import Report
from core.results import plain
from core.uncertainty import Interval, bootstrap
from hsi.files import Cube
from hsi.probe import IGNORED
from hsi.wavelengths import to_rgb, white_level

COLOURS = ("#000000", "#e9c46a", "#d1495b", "#4cc9f0", "#70e000", "#9d4edd", "#f77f00", "#ffffff")  # of classes


class Picture(NamedTuple):
    """A segmented cube (C, H, W), its mask and the predicted one, uint8 (H, W)."""

    name: str
    cube: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray


def write_classification(
    folder: Path, results: Mapping[str, np.ndarray], cubes: Sequence[Cube], classes: Sequence[str], args
) -> dict[str, dict[str, Interval]]:
    """Method -> AUROC and accuracy. `results`: probabilities (N, K) by the probe, then by mean spectra and by
    frequency."""
    targets, patients = np.array([classes.index(cube.label) for cube in cubes]), [cube.patient for cube in cubes]

    def intervals(probabilities: np.ndarray) -> dict[str, Interval]:
        right = probabilities.argmax(axis=1) == targets
        statistics = {
            "auroc": lambda rows: auroc(probabilities[rows], targets[rows]),
            "accuracy": lambda rows: right[rows].mean(),
        }
        return {
            n: bootstrap(statistic, patients, args.bootstrap, seed=args.seed) for n, statistic in statistics.items()
        }

    methods = {method: intervals(probabilities) for method, probabilities in results.items()}
    ours, *others = methods
    probabilities = results[ours]
    predicted = probabilities.argmax(axis=1)
    counts = np.zeros((len(classes),) * 2, int)
    np.add.at(counts, (targets, predicted), 1)
    metrics = _metrics(cubes, classes, methods, args) | {"confusion": counts}
    _write_json(folder, metrics)
    rows = ([cube.label, classes[k], *(f"{p:.6g}" for p in row)] for cube, k, row in
            zip(cubes, predicted, probabilities, strict=True))  # fmt: skip
    _write_csv(folder, cubes, ["label", "predicted", *(f"p_{name}" for name in classes)], rows)

    report = Report("What the features know of the labels", f"{args.checkpoint} on {args.csv_file}, test")
    spectrum = others[0]
    cards = [
        (f"{title}, {ours}", _number(methods[ours][name].estimate), f"95 % interval {_span(methods[ours][name])}")
        for name, title in (("auroc", "AUROC"), ("accuracy", "Accuracy"))
    ]
    cards.insert(1, (f"AUROC, {spectrum}", _number(methods[spectrum]["auroc"].estimate), "the same classifier on it"))
    report.cards([*cards, ("Cubes", str(len(cubes)), f"{len(set(patients))} patients")])
    report.text(_note(metrics, args) + " AUROC: one class against the others, mean over the classes.", note=True)
    report.section("Methods", "The mean spectrum is that of a cube's foreground: what is there, wherever it may be.")
    cells = {method: [_cell(values[name]) for name in ("auroc", "accuracy")] for method, values in methods.items()}
    report.table(["", "AUROC (95 % interval)", "accuracy (95 % interval)"], [[m, *row] for m, row in cells.items()])
    report.section("Curves and counts")
    curves = {}
    for k, name in enumerate(classes):
        if 0 < (targets == k).sum() < len(targets):
            truth = torch.from_numpy(targets == k).long()
            lines = [binary_roc(torch.from_numpy(p[:, k]), truth)[:2] for m, p in results.items() if m != others[-1]]
            curves[name] = [(false.numpy(), true.numpy()) for false, true in lines]
    drawn = {}
    if curves:  # none where all test cubes have one label
        roc = figures.curve_grid(curves, "false positive rate", "true positive rate", columns=min(4, len(curves)))
        drawn["roc"] = (roc, f"ROC curves; blue: {ours}, grey: {spectrum}, dotted: chance")
    drawn["confusion"] = (figures.confusion_matrix(counts, classes, f"Test cubes, {ours}"), "Cubes by label")
    pictures = {folder / "figures" / f"{name}.png": picture for name, picture in drawn.items()}
    report.figures([(figures.save(fig, file), text) for file, (fig, text) in pictures.items()])
    _close(report, folder)
    return methods


def write_segmentation(
    folder: Path,
    results: Mapping[str, np.ndarray],
    cubes: Sequence[Cube],
    classes: Sequence[str],
    pictures: Sequence[Picture],
    wavelengths: Sequence[float],
    args,
) -> dict[str, dict[str, Interval]]:
    """Method -> mean Dice without the first class, and that of each class. `results`: Dice (N, K) of the classes, NaN
    where a cube lacks one, by the probe and by single spectra."""
    patients = [cube.patient for cube in cubes]

    def interval(values: np.ndarray) -> Interval:
        return bootstrap(lambda rows: _mean(values[rows]), patients, args.bootstrap, seed=args.seed)

    methods = {
        method: {"mean": interval(scores[:, 1:])} | {name: interval(scores[:, k : k + 1]) for k, name in
                                                     enumerate(classes)}
        for method, scores in results.items()
    }  # fmt: skip
    metrics = _metrics(cubes, classes, methods, args)
    _write_json(folder, metrics)
    ours, other = methods
    rows = (["" if np.isnan(score) else f"{score:.6g}" for score in scores] for scores in results[ours])
    _write_csv(folder, cubes, [f"dice_{name}" for name in classes], rows)

    report = Report("Segmentation from spectral features", f"{args.checkpoint} on {args.csv_file}, test")
    mean = methods[ours]["mean"]
    report.cards(
        [
            (f"Dice, {ours}", _number(mean.estimate), f"95 % interval {_span(mean)}; without class {classes[0]}"),
            (f"Dice, {other}", _number(methods[other]["mean"].estimate), "a linear classifier of single pixels"),
            ("Cubes", str(len(cubes)), f"{len(set(patients))} patients"),
        ]
    )
    report.text(_note(metrics, args) + " Dice: of each cube, then the mean over cubes that have the class.", note=True)
    report.section("Classes")
    names = ["mean", *classes]
    header = [f"mean without {classes[0]}", *classes]
    table = [[title, *(_cell(methods[m][n]) for m in methods)] for title, n in zip(header, names, strict=True)]
    report.table(["Dice (95 % interval)", *methods], table)
    report.section("Pictures", "The first cubes of the split; all predicted masks are in masks/.")
    drawn = figures.save(segmentations(pictures, classes, wavelengths), folder / "figures" / "segmentations.png")
    report.figures([(drawn, "Cubes, their masks, and the predicted ones")])
    _close(report, folder)
    return methods


def print_summary(methods: Mapping[str, Mapping[str, Interval]], console: Console) -> None:
    """What `write_classification` or `write_segmentation` returned, on the terminal: measures that are few with their
    intervals."""
    names = list(next(iter(methods.values())))
    table = Table("test cubes", *names, box=None)
    for method, measures in methods.items():
        table.add_row(method, *[_cell(x) if len(names) < 4 else _number(x.estimate) for x in measures.values()])
    console.print(table, crop=False)


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve of each class against the others, mean over the classes; NaN if one is missing."""
    areas = []
    for k in range(probabilities.shape[1]):
        truth = torch.from_numpy(targets == k).long()
        if truth.min() == truth.max():
            return np.nan
        areas.append(float(binary_auroc(torch.from_numpy(probabilities[:, k].copy()), truth)))
    return float(np.mean(areas))


def palette(classes: int) -> list[int]:
    """Red, green and blue (0 to 255) of each class, one after the other, as PNG palettes have them."""
    colours = [rgb_of_name(COLOURS[k % len(COLOURS)]) for k in range(classes)]
    return [round(255 * part) for colour in colours for part in colour]


def mask_picture(mask: np.ndarray, classes: int) -> Image.Image:
    """Class numbers (H, W) as a picture that viewers show in the classes' colours, and readers as the numbers."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette(classes))
    return image


def segmentations(pictures: Sequence[Picture], classes: Sequence[str], wavelengths: Sequence[float]) -> Figure:
    """Rows of cube, mask and prediction."""
    fig = figures.figure(7.5, 2.55 * len(pictures) + 0.5)
    colours = np.array(palette(256), np.uint8).reshape(-1, 3)
    colours[IGNORED] = 255 * np.array(rgb_of_name(figures.GREY))
    titles = ("cube", "mask", "predicted")
    axes = fig.subplots(len(pictures), 3, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        shown = to_rgb(picture.cube, wavelengths, high=white_level(picture.cube, wavelengths))
        for ax, image in zip(row, (shown, colours[picture.mask], colours[picture.predicted]), strict=True):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=(), yticks=())
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(picture.name, fontsize=8)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    names = dict(enumerate(classes)) | ({IGNORED: "unknown"} if any(IGNORED in p.mask for p in pictures) else {})
    patches = [Patch(facecolor=colours[k] / 255, edgecolor=figures.GREY, label=name) for k, name in names.items()]
    fig.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    return fig


# ---------------------------------------------------------------------------------------------------------- parts


def _metrics(cubes: Sequence[Cube], classes: Sequence[str], methods: Mapping, args) -> dict:
    return {
        "task": args.task,
        "data": {"csv_file": args.csv_file, "split": "test", "cubes": len(cubes),
                 "patients": len({cube.patient for cube in cubes})},
        "classes": classes,
        "methods": methods,
        "finetune": args.finetune,
        "random_init": args.random_init,
        "checkpoint": args.checkpoint,
    }  # fmt: skip


def _write_json(folder: Path, metrics: dict) -> None:
    (folder / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")


def _write_csv(folder: Path, cubes: Sequence[Cube], columns: Sequence[str], rows) -> None:
    with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["ID", "patient", *columns])
        writer.writerows([cube.id, cube.patient, *row] for cube, row in zip(cubes, rows, strict=True))


def _note(metrics: dict, args) -> str:
    encoder = "The encoder has random weights, and " if args.random_init else "The encoder "
    state = "was fine-tuned." if args.finetune else "was frozen."
    return f"{encoder}{state} Intervals: bootstrap over patients, {args.bootstrap} resamples."


def _close(report: Report, folder: Path) -> None:
    """Adds what the run has written before: problems of the data, the machine."""
    counts = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))["counts"]
    if counts:
        report.section("Data")
        report.table(["problem", "what was done", "count"], [list(row.values()) for row in counts])
    machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    report.section("Machine")
    report.details("Software and machine", json.dumps(machine, indent=1))
    report.text("For research. Not a medical device.", note=True)
    report.write(folder / "report.html")


def _mean(scores: np.ndarray) -> float:
    """Mean over cubes, then over classes, of (N, K); classes that no cube has are left out."""
    known = np.isfinite(scores).any(axis=0)
    return float(np.nanmean(scores[:, known], axis=0).mean()) if known.any() else np.nan


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _span(interval: Interval) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}"


def _cell(interval: Interval) -> str:
    return "–" if np.isnan(interval.estimate) else f"{_number(interval.estimate)} ({_span(interval)})"
