"""Matplotlib figures in one style, made without pyplot: no global state, no display."""

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from core.uncertainty import Interval

BLUE, GREY, RED, GREEN = "#1f5fa8", "#8a8f98", "#d1495b", "#2e8b57"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # names of labels may hold dollars
}


def figure(width: float = 7.0, height: float = 4.0) -> "Figure":
    """Empty figure of `width` × `height` inches."""
    import matplotlib as mpl  # imported on use: scripts without figures start faster
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams.update(STYLE)
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def save(fig: "Figure", file: Path, dpi: int = 130) -> Path:
    """Writes a PNG or JPEG file, depending on its suffix, and returns its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=dpi)
    return file


def cumulative_errors(errors: Mapping[str, np.ndarray], unit: str, marks: Sequence[float]) -> "Figure":
    """Cumulative distributions of `errors` (name -> (N,) in `unit`, NaN = unknown), with dotted lines at `marks`.

    The x axis ends at twice the last mark or, if larger, 1.1 times the largest error of the first curve.
    """
    fig = figure()
    ax = fig.add_subplot(xlabel=f"error [{unit}]", ylabel="share of landmarks [%]")
    known = {name: np.sort(values[np.isfinite(values)]) for name, values in errors.items()}
    end = max(2 * marks[-1], 1.1 * next(iter(known.values()))[-1])
    for (name, values), colour in zip(known.items(), (BLUE, GREY, RED, GREEN), strict=False):
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        x, y = [0, *values, max(end, values[-1])], [0, *share, 100]
        ax.step(x, y, where="post", color=colour, label=name, lw=1.8)
    for mark in marks:
        ax.axvline(mark, color="#444444", lw=0.8, ls=":")
        ax.text(mark, 101, f"{mark:g} {unit}", fontsize=8, ha="center")
    ax.set(xlim=(0, end), ylim=(0, 100))
    ax.legend(loc="lower right")
    return fig


def interval_bars(intervals: "Mapping[str, Interval]", xlabel: str) -> "Figure":
    """Horizontal bars with confidence intervals as whiskers, the first on top."""
    estimates, low, high = np.array(list(intervals.values())).T
    fig = figure(7.0, 0.9 + 0.23 * len(intervals))
    ax = fig.add_subplot(xlabel=xlabel)
    ax.barh(range(len(intervals)), estimates, color=BLUE, alpha=0.85, height=0.7)
    whiskers = np.maximum(0, [estimates - low, high - estimates])
    ax.errorbar(estimates, range(len(intervals)), xerr=whiskers, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    ax.set_yticks(range(len(intervals)), intervals)
    ax.set_ylim(len(intervals) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    return fig


def confusion_matrix(counts: np.ndarray, names: Sequence, title: str) -> "Figure":
    """Confusion matrix: `counts` (C, C) by ground truth and prediction, coloured by the share of the true class."""
    many, longest = len(names), max(len(str(name)) for name in names)
    slanted, side = longest > 3, max(3.4, 0.36 * many)
    fig = figure(side + 0.9 + 0.075 * longest, side + 0.8 + (0.06 * longest if slanted else 0))
    ax = fig.add_subplot(xlabel="predicted", ylabel="true", title=title)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else "#222222"
        if count or many <= 8:
            ax.text(column, row, int(count), ha="center", va="center", color=colour, fontsize=10 if many <= 8 else 8)
    ax.set_xticks(range(many), names, **({"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}))
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    return fig


def training_curves(metrics_file: Path, monitor: str) -> "Figure":
    """Training and validation loss and the monitored metric by epoch, from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]

    def draw(ax, name: str, colour: str) -> None:
        there = [(row["epoch"], row[name]) for row in rows if name in row]  # not every epoch is validated
        if there:
            ax.plot(*zip(*there, strict=True), color=colour, label=name, lw=1.6, marker="." if len(there) < 20 else "")

    fig = figure(9.0, 3.4)
    left = fig.add_subplot(1, 2, 1, xlabel="epoch", title="Loss")
    draw(left, "train/loss", BLUE)
    draw(left, "val/loss", RED)
    left.legend()
    right = fig.add_subplot(1, 2, 2, xlabel="epoch", title=f"Validation: {monitor}")
    draw(right, f"val/{monitor}", RED)
    right.set_ylim(bottom=0)
    return fig


def curve_grid(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    columns: int = 6,
) -> "Figure":
    """Grid of panels. `curves`: title -> curves (x, y), each (n,) in [0, 1]; the first curve is blue.

    The dotted line is the chance level: the diagonal of ROC curves, or the title's value in `levels` (the prevalence,
    for precision-recall curves).
    """
    rows = -(-len(curves) // columns)
    fig = figure(2.05 * columns + 0.4, 2.4 * rows + 0.4)
    fig.get_layout_engine().set(h_pad=0.08)
    for i, (title, lines) in enumerate(curves.items()):
        ax = fig.add_subplot(rows, columns, i + 1, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        chance = (levels[title],) * 2 if levels else (0, 1)
        ax.plot((0, 1), chance, color="#444444", lw=0.8, ls=":")
        for (x, y), colour in reversed(list(zip(lines, (BLUE, *[GREY] * (len(lines) - 1)), strict=True))):
            ax.plot(x, y, color=colour, lw=1.6 if colour == BLUE else 0.8, clip_on=False)
        ax.set_title(textwrap.fill(title, 30), fontsize=9)
        ax.set_xticks((0, 0.5, 1), ("0", "0.5", "1") if i + columns >= len(curves) else ("",) * 3, fontsize=8)
        ax.set_yticks((0, 0.5, 1), ("0", "0.5", "1") if i % columns == 0 else ("",) * 3, fontsize=8)
    fig.supxlabel(xlabel, fontsize=10)
    fig.supylabel(ylabel, fontsize=10)
    return fig


def reliability_diagram(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "Figure":
    """Reliability diagram, and below it the number of cells per bin.

    `curves`: name -> (mean probability, frequency, count), each (bins,), from `core.uncertainty.reliability`.
    """
    fig = figure(5.2, 6.2)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="#444444", lw=0.8, ls=":", label="perfectly calibrated")
    colours = itertools.cycle((BLUE, RED, GREEN, GREY))
    for i, ((name, (mean, frequency, count)), colour) in enumerate(zip(curves.items(), colours, strict=False)):
        filled, bins = count > 0, len(count)
        style = {"color": colour, "lw": 1.6, "marker": "o", "ms": 4, "clip_on": False}
        upper.plot(mean[filled], frequency[filled], label=name, **style)
        width = 0.9 / bins / len(curves)
        lower.bar((np.arange(bins) + 0.05) / bins + i * width, count, width, align="edge", color=colour)
    upper.set(ylabel="frequency of the label", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="best")
    lower.set(xlabel="predicted probability", ylabel="cells", yscale="log")
    lower.set_ylim(bottom=0.7)  # shows bins with a single cell
    return fig
