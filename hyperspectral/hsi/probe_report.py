"""Output of a spectral probe on held-out cubes: metrics.json, predictions.csv, figures and report.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core import figures
from core.report import Report
from core.results import card, cells, close, number, with_span, write_csv, write_json
from core.uncertainty import Interval, bootstrap
from core.validation import DataReport
from hsi.files import Cube
from hsi.probe import IGNORED, palette
from hsi.wavelengths import colours, to_rgb, white_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORM = "{:.3f}"


class Picture(NamedTuple):
    """A segmented cube (C, H, W) with its ground truth and predicted masks, uint8 (H, W)."""

    name: str
    cube: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray


class Results(NamedTuple):
    """Output folder and context of the results."""

    folder: Path
    cubes: Sequence[Cube]  # of the test split
    args: object  # of probe.py
    data_report: DataReport
    machine: dict

    def interval(self, statistic) -> Interval:
        """Estimate and 95 % confidence interval of `statistic(rows)`, by bootstrap over patients."""
        patients = [cube.patient for cube in self.cubes]
        return bootstrap(statistic, patients, self.args.bootstrap, seed=self.args.seed)

    def report(self, title: str, classes, methods: dict, header: list[str], rows, cards, text: str, **more) -> Report:
        """Writes metrics.json, including `more`, and predictions.csv, with `rows` of cells below `header`; returns a
        report with `cards` and a note that ends with `text`."""
        args, patients = self.args, len({cube.patient for cube in self.cubes})
        metrics = {
            "task": args.task,
            "data": {"csv_file": args.csv_file, "split": "test", "cubes": len(self.cubes), "patients": patients},
            "classes": classes,
            "methods": methods,
            "finetune": args.finetune,
            "random_init": args.random_init,
            "checkpoint": args.checkpoint,
        }
        write_json(self.folder / "metrics.json", metrics | more)
        table = ([cube.id, cube.patient, *row] for cube, row in zip(self.cubes, rows, strict=True))
        write_csv(self.folder / "predictions.csv", ["ID", "patient", *header], table)
        report = Report(title, f"{args.checkpoint} on {args.csv_file}, test")
        report.cards([*cards, ("Cubes", str(len(self.cubes)), f"{patients} patients")])
        encoder = "The encoder has random weights, and " if args.random_init else "The encoder "
        state = "was fine-tuned." if args.finetune else "was frozen."
        intervals = f"Intervals: bootstrap over patients, {args.bootstrap} resamples."
        report.text(f"{encoder}{state} {intervals} {text}", note=True)
        return report


def write_classification(to: Results, results: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, dict]:
    """Writes the results; returns method -> AUROC and accuracy. `results`: probabilities (N, K) of the probe, of mean
    spectra, and of class frequencies."""
    targets = np.array([classes.index(cube.label) for cube in to.cubes])
    methods = {
        method: {
            "auroc": to.interval(lambda rows, p=p: auroc(p[rows], targets[rows])),
            "accuracy": to.interval(lambda rows, p=p: (p[rows].argmax(axis=1) == targets[rows]).mean()),
        }
        for method, p in results.items()
    }
    ours, *others = methods
    probabilities = results[ours]
    predicted = probabilities.argmax(axis=1)
    counts = np.zeros((len(classes),) * 2, int)
    np.add.at(counts, (targets, predicted), 1)
    header = ["label", "predicted", *(f"p_{name}" for name in classes)]
    rows = ([cube.label, classes[k], *(f"{p:.6g}" for p in row)] for cube, k, row in
            zip(to.cubes, predicted, probabilities, strict=True))  # fmt: skip
    spectrum, own = others[0], methods[ours]
    by_spectrum = number(methods[spectrum]["auroc"].estimate, FORM)
    cards = [
        card(f"AUROC, {ours}", own["auroc"], FORM),
        (f"AUROC, {spectrum}", by_spectrum, "same classifier on mean spectra"),
        card(f"Accuracy, {ours}", own["accuracy"], FORM),
    ]
    title, text = "Spectral probe: classification", "AUROC: one class against the others, mean over the classes."
    report = to.report(title, classes, methods, header, rows, cards, text, confusion=counts)
    report.section("Methods", "Mean spectra: over the foreground of a cube, without spatial information.")
    table = [[method, *(with_span(value, FORM) for value in values.values())] for method, values in methods.items()]
    report.table(["", "AUROC (95 % interval)", "accuracy (95 % interval)"], table)
    report.section("Curves and counts")
    drawn = {"confusion": (figures.confusion_matrix(counts, classes, f"Test cubes, {ours}"), "Cubes by label")}
    if curves := roc_curves({m: p for m, p in results.items() if m != others[-1]}, targets, classes):
        roc = figures.curve_grid(curves, "false positive rate", "true positive rate", columns=min(4, len(curves)))
        drawn = {"roc": (roc, f"ROC curves; blue: {ours}, grey: {spectrum}, dotted: chance")} | drawn
    pictures = {to.folder / "figures" / f"{name}.png": picture for name, picture in drawn.items()}
    report.figures([(figures.save(fig, file), text) for file, (fig, text) in pictures.items()])
    close(report, to.folder / "report.html", to.machine, to.data_report.counts())
    return methods


def write_segmentation(
    to: Results, results: Mapping[str, np.ndarray], classes: Mapping[int, str],
    pictures: Sequence[Picture], wavelengths: Sequence[float],
) -> dict[str, dict[str, Interval]]:  # fmt: skip
    """Writes the results; returns method -> mean Dice without class 0, and Dice of each class. `classes`: number ->
    name, of those with training cases; `results`: Dice (N, K) of these, NaN where absent, of the probe and of single
    spectra."""
    inside = [place for place, k in enumerate(classes) if k]
    columns = {"mean": inside} | {name: [place] for place, name in enumerate(classes.values())}
    methods = {
        method: {
            name: to.interval(lambda rows, values=scores[:, places]: _mean(values[rows]))
            for name, places in columns.items()
        }
        for method, scores in results.items()
    }
    ours, other = methods
    rows = (["" if np.isnan(score) else f"{score:.6g}" for score in scores] for scores in results[ours])
    names = list(classes.values())
    header = [f"dice_{name}" for name in names]
    mean, without = methods[ours]["mean"], f"without {classes[0]}" if 0 in classes else "of all classes"
    by_spectrum = number(methods[other]["mean"].estimate, FORM)
    cards = [
        card(f"Dice, {ours}", mean, FORM, note=f"mean {without}"),
        (f"Dice, {other}", by_spectrum, "linear classifier of single pixels"),
    ]
    title, text = "Spectral probe: segmentation", "Dice: mean over the cubes that have the class."
    report = to.report(title, names, methods, header, rows, cards, text)
    report.section("Classes")
    titles = [f"mean {without}", *names]
    table = [[t, *(with_span(methods[m][n], FORM) for m in methods)] for t, n in zip(titles, columns, strict=True)]
    report.table(["Dice (95 % interval)", *methods], table)
    report.section("Pictures", "The first cubes of the split; all predicted masks are in masks/.")
    drawn = figures.save(segmentations(pictures, classes, wavelengths), to.folder / "figures" / "segmentations.png")
    report.figures([(drawn, f"Cubes ({colours(wavelengths)}), masks, and predicted masks")])
    close(report, to.folder / "report.html", to.machine, to.data_report.counts())
    return methods


def print_summary(methods: Mapping[str, Mapping[str, Interval]], console: Console) -> None:
    """Prints the results of `write_classification` or `write_segmentation`, with intervals if there are few metrics."""
    names = list(next(iter(methods.values())))
    table = Table("test cubes", *names, box=None)
    for method, measures in methods.items():
        few = len(names) < 4
        table.add_row(method, *[with_span(x, FORM) if few else cells(x, FORM)[0] for x in measures.values()])
    console.print(table, crop=False)


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """One-vs-rest area under the ROC curve, mean over classes; NaN if a class is missing or alone.

    `probabilities` (N, K), `targets` (N,) class numbers.
    """
    from torchmetrics.functional.classification import binary_auroc

    areas = []
    for k in range(probabilities.shape[1]):
        truth = torch.from_numpy(targets == k).long()
        if truth.min() == truth.max():
            return np.nan
        areas.append(float(binary_auroc(torch.from_numpy(probabilities[:, k].copy()), truth)))
    return float(np.mean(areas))


def roc_curves(results: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]) -> dict[str, list]:
    """Class -> (false positive rates, true positive rates) of each method, for classes with positive and negative
    cubes. `results`: probabilities (N, K); `targets` (N,) class numbers."""
    from torchmetrics.functional.classification import binary_roc

    curves = {}
    for k, name in enumerate(classes):
        if 0 < (targets == k).sum() < len(targets):
            truth = torch.from_numpy(targets == k).long()
            lines = [binary_roc(torch.from_numpy(p[:, k]), truth)[:2] for p in results.values()]
            curves[name] = [(false.numpy(), true.numpy()) for false, true in lines]
    return curves


def segmentations(pictures: Sequence[Picture], classes: Mapping[int, str], wavelengths: Sequence[float]) -> "Figure":
    """Figure with rows of cube, mask and prediction, and a legend of `classes`: number -> name."""
    from matplotlib.patches import Patch

    fig = figures.figure(7.5, 2.55 * len(pictures) + 0.5)
    shades = np.array(palette(256), np.uint8).reshape(-1, 3)
    shades[IGNORED] = list(bytes.fromhex(figures.GREY[1:]))
    axes = fig.subplots(len(pictures), 3, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        shown = to_rgb(picture.cube, wavelengths, high=white_level(picture.cube, wavelengths))
        for ax, image in zip(row, (shown, shades[picture.mask], shades[picture.predicted]), strict=True):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=(), yticks=())
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(picture.name, fontsize=8)
    for ax, title in zip(axes[0], ("cube", "mask", "predicted"), strict=True):
        ax.set_title(title)
    names = dict(classes) | ({IGNORED: "unknown"} if any(IGNORED in p.mask for p in pictures) else {})
    patches = [Patch(facecolor=shades[k] / 255, edgecolor=figures.GREY, label=name) for k, name in names.items()]
    fig.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    return fig


def _mean(scores: np.ndarray) -> float:
    """Mean over cubes, then over classes, of (N, K); classes without cubes are left out."""
    known = np.isfinite(scores).any(axis=0)
    return float(np.nanmean(scores[:, known], axis=0).mean()) if known.any() else np.nan
