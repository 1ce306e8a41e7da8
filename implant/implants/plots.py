"""Figures of predicted lengths and diameters: scatter plots, residuals, intervals, attention."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from core.figures import BLUE, GREEN, GREY, RED, figure
from core.uncertainty import Interval
from implants.evaluation import CLOSE, Evaluation, on_sale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
BRANCHES = (BLUE, "#e09f3e", GREEN, RED, GREY)


def predicted_against_true(evaluation: Evaluation, seen: set[tuple[str, str]]) -> "Figure":
    """One panel per target: predicted over true size, with grid lines at the sizes on sale, the identity line and a
    band of ± 0.5 mm. Dots are cases, triangles are company–model combinations not in `seen`. Horizontal jitter: unseen
    combinations to the right of the true size, others to the left."""
    fig, unseen, panels = _wide(5.4), _unseen(evaluation, seen), len(evaluation.targets)
    for t, target in enumerate(evaluation.targets):
        x, y = evaluation.truth[:, t], evaluation.predictions.mean[:, t]
        ends = np.array(_limits(np.concatenate([x, y])))
        ax = fig.add_subplot(1, panels, t + 1, xlabel="true [mm]", ylabel="predicted [mm]", aspect="equal")
        ax.set(xlim=ends, ylim=ends, title=f"{target.capitalize()}: MAE {np.abs(y - x).mean():.2f} mm")
        ax.grid(visible=False)
        for size in on_sale(evaluation.catalogue, target):
            ax.axvline(size, color="#e6e8eb", lw=0.8, zorder=0)
            ax.axhline(size, color="#e6e8eb", lw=0.8, zorder=0)
        ax.fill_between(ends, ends - CLOSE, ends + CLOSE, color=GREEN, alpha=0.13, lw=0, label=f"± {CLOSE:g} mm")
        ax.plot(ends, ends, color=INK, lw=0.9)
        _dots(ax, x, y, unseen, ends)
        ax.locator_params(nbins=7)  # equal on both axes
    _legend(fig, ax)
    return fig


def residuals(evaluation: Evaluation, seen: set[tuple[str, str]]) -> "Figure":
    """One panel per target: error over truth, with bias and 95 % limits of agreement, bias ± 1.96 SD (Bland & Altman
    1986, but over the known truth instead of the mean)."""
    fig, unseen = _wide(4.2), _unseen(evaluation, seen)
    for t, target in enumerate(evaluation.targets):
        truth, error = evaluation.truth[:, t], evaluation.errors[:, t]
        bias, spread = error.mean(), 1.96 * error.std()
        low, high = bias - spread, bias + spread
        ends = _limits(truth)
        reach = 1.12 * max(np.abs(error).max(), abs(bias) + spread, CLOSE)
        ax = fig.add_subplot(1, len(evaluation.targets), t + 1, xlabel="true [mm]", ylabel="predicted − true [mm]")
        ax.set(xlim=ends, ylim=(-reach, reach))
        title = f"{target.capitalize()}: bias {bias:+.2f}, limits {low:+.2f} to {high:+.2f} mm"
        ax.set_title(title.replace("-", "−"))
        ax.axhline(0, color=GREY, lw=0.9)
        ax.axhline(bias, color=INK, lw=1.4, label="bias")
        ax.axhline(low, color=INK, lw=1, ls="--", label="95 % limits of agreement")
        ax.axhline(high, color=INK, lw=1, ls="--")
        _dots(ax, truth, error, unseen, ends)
    _legend(fig, ax)
    return fig


def interval_plot(evaluation: Evaluation, level: float, most: int = 60) -> "Figure":
    """One panel per target: interval and prediction of each case relative to the truth, sorted by width; red if the
    truth is outside. At most `most` cases, evenly over the widths. Infinite intervals are not drawn."""
    fig, panels = figure(9.6, 3.2 * len(evaluation.targets)), len(evaluation.targets)
    for t, target in enumerate(evaluation.targets):
        low, high, middle = (
            values[:, t] - evaluation.truth[:, t]
            for values in (evaluation.predictions.low, evaluation.predictions.high, evaluation.predictions.mean)
        )
        count, covered = len(low), evaluation.covered[:, t] == 1
        order = np.argsort(high - low, kind="stable")
        if count > most:
            order = order[np.linspace(0, count - 1, most).round().astype(int)]
        ax = fig.add_subplot(panels, 1, t + 1, ylabel="distance from truth [mm]", xlim=(-1, len(order)))
        shown = f"; {most} of {count} cases shown" if count > most else ""
        ax.set_title(f"{target.capitalize()}: {100 * covered.mean():.0f} % covered, {100 * level:g} % aimed at{shown}")
        for holds, colour, label in ((True, BLUE, "covers the truth"), (False, RED, "misses it")):
            place = np.flatnonzero(covered[order] == holds)
            rows = order[place]
            ax.vlines(place, low[rows], high[rows], color=colour, lw=3, alpha=0.55, label=label)
            ax.plot(place, middle[rows], "o", color=colour, ms=3.5, mec="white", mew=0.4)
        ax.axhline(0, color=INK, lw=0.9)
        ax.set_xticks([])
    ax.set_xlabel("cases, by width of the interval")
    _legend(fig, ax)
    return fig


def attention_bars(attention: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Stacked bar of the mean weights of the branches for each company. `attention`: company -> branch -> weight, with
    sum 1 per company."""
    from matplotlib.colors import to_rgb

    fig = figure(8.0, 1.5 + 0.34 * len(attention))
    ax = fig.add_subplot(xlabel="mean attention weight", xlim=(0, 1), ylim=(len(attention) - 0.4, -0.6))
    branches = list(next(iter(attention.values())))
    start = np.zeros(len(attention))
    for branch, colour in zip(branches, BRANCHES, strict=False):
        weights = np.array([of_company[branch] for of_company in attention.values()])
        ax.barh(range(len(attention)), weights, left=start, height=0.74, color=colour, label=branch)
        ink = "white" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.6 else INK
        for i, weight in enumerate(weights):
            if weight > 0.06:  # room for the number
                ax.text(start[i] + weight / 2, i, f"{weight:.2f}", ha="center", va="center", color=ink, fontsize=9)
        start += weights
    ax.set_yticks(range(len(attention)), attention)
    ax.grid(visible=False)
    fig.legend(loc="outside upper center", ncols=len(branches))
    return fig


def ablation_bars(
    results: Mapping[str, Sequence[Interval]], baseline: Sequence[float], targets: Sequence[str]
) -> "Figure":
    """MAE of each run with 95 % interval, one panel per target. `results`: name -> intervals of the targets in mm;
    `baseline`: MAE of the training median by target."""
    fig = _wide(1.6 + 0.36 * len(results))
    for t, ax in enumerate(fig.subplots(1, len(targets), sharey=True, squeeze=False)[0]):
        estimates, low, high = np.array([intervals[t] for intervals in results.values()]).T
        places = range(len(results))
        ax.barh(places, estimates, color=[BLUE, *[GREY] * (len(results) - 1)], alpha=0.85, height=0.7)
        whiskers = np.maximum(0, [estimates - low, high - estimates])
        ax.errorbar(estimates, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        ends = np.nanmax([estimates, high], axis=0)
        for place, estimate, end in zip(places, estimates, ends, strict=True):
            behind = {"fc": "white", "ec": "none", "pad": 1}  # over the line of the baseline
            ax.annotate(f"{estimate:.2f}", (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9,
                        bbox=behind)  # fmt: skip
        ax.axvline(baseline[t], color=RED, lw=1.4, ls="--", label="training median")
        ax.set(title=targets[t].capitalize(), xlabel="MAE [mm]", xlim=(0, 1.15 * max(ends.max(), baseline[t])))
        ax.set_ylim(len(results) - 0.4, -0.6)
        ax.set_yticks(places, results)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    _legend(fig, ax)
    return fig


def _wide(height: float) -> "Figure":
    """Figure for panels side by side, `height` in inches."""
    fig = figure(9.8, height)
    fig.get_layout_engine().set(w_pad=0.1)
    return fig


def _unseen(evaluation: Evaluation, seen: set[tuple[str, str]]) -> np.ndarray:
    return np.array([(record.company, record.model) not in seen for record in evaluation.records])


def _limits(values: np.ndarray) -> tuple[float, float]:
    margin = 0.04 * np.ptp(values) + 0.25  # mm, not 0 for a single size
    return values.min() - margin, values.max() + margin


def _dots(ax: "Axes", x: np.ndarray, y: np.ndarray, unseen: np.ndarray, ends: Sequence[float]) -> None:
    """Draws cases of seen combinations as dots, of unseen ones as triangles on top."""
    sideways = np.random.default_rng(0).uniform(0, 0.018, len(x)) * np.where(unseen, 1, -1)
    x = x + (sideways if unseen.any() else sideways + 0.009) * (ends[1] - ends[0])
    faint = float(np.clip(100 / len(x), 0.2, 0.7))
    ax.plot(x[~unseen], y[~unseen], "o", color=BLUE, alpha=faint, ms=5, mew=0, label="case")
    if unseen.any():
        style = {"color": RED, "alpha": min(1.0, 2 * faint), "ms": 6, "mew": 0}
        ax.plot(x[unseen], y[unseen], "^", label="case of an unseen company–model combination", **style)


def _legend(fig: "Figure", ax: "Axes") -> None:
    """Legend below the panels, with opaque dots."""
    legend = fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for handle in legend.get_lines():
        handle.set_alpha(1)


def attention_maps(crops: Sequence[np.ndarray], weights: np.ndarray, names: Sequence[str]) -> "Figure":
    """Crops (S, S) in [0, 1], and below them the attention of each of `names` over the patches: `weights`
    (N, names, tokens), from 0 (dark) to the maximum of a crop (bright)."""
    side = round(weights.shape[2] ** 0.5)
    fig = figure(1.7 * len(crops) + 0.3, 1.75 * (1 + len(names)) + 0.2)
    for column, crop in enumerate(crops):
        for row, name in enumerate(("crop", *names)):
            ax = fig.add_subplot(1 + len(names), len(crops), row * len(crops) + column + 1)
            ax.imshow(crop, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0))
            if row:
                ax.imshow(weights[column, row - 1].reshape(side, side), cmap="inferno", alpha=0.6, extent=(0, 1, 1, 0),
                          interpolation="bilinear")  # fmt: skip
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            if column == 0:
                ax.set_ylabel(name, fontsize=9)
    return fig


def overview(crops: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6) -> "Figure":
    """Grid of crops (S, S) in [0, 1] with titles."""
    columns = min(columns, len(crops))
    rows = -(-len(crops) // columns)
    fig = figure(1.9 * columns, 2.35 * rows)
    for i, (crop, title) in enumerate(zip(crops, titles, strict=True)):
        ax = fig.add_subplot(rows, columns, i + 1)
        ax.imshow(crop, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=8, loc="left")
        ax.set_axis_off()
    return fig
