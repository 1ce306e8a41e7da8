"""Figures of a hyperparameter search. Trials are rows {"name", "status", "parameters", "value"} as from
`sagemaker_launcher.tuning_results`; `status` is "complete", "pruned" or another, `value` None if unknown."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core.figures import BLUE, GREY, RED, figure
from implants.search_spaces import SPACES

SHADES = colormaps["Blues"]


def is_log(values: Sequence) -> bool:
    """Whether numbers span more than a power of ten, for a logarithmic axis."""
    return np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values)


def is_number(values: Sequence) -> bool:
    """Whether the values of a parameter are continuous (floats); integers and strings are choices."""
    return all(isinstance(value, float) for value in values)


def history(trials: Sequence[Mapping], metric: str, mode: str) -> Figure:
    """Value of each trial in the order of the search, and the best so far."""
    fig = figure(7.0, 3.6)
    ax = fig.add_subplot(xlabel="trial, in the order of the search", ylabel=metric)
    complete = [(i, trial) for i, trial in enumerate(trials) if _is_complete(trial)]
    x, y = [i for i, _ in complete], np.array([trial["value"] for _, trial in complete])
    so_far = (np.maximum if mode == "max" else np.minimum).accumulate(y)
    best = int(y.argmax() if mode == "max" else y.argmin())
    ax.step([*x, len(trials) - 1], [*so_far, so_far[-1]], where="post", color=RED, lw=1.4, label="best so far")
    ax.scatter(x, y, s=26, color=BLUE, label="complete", zorder=3)
    # Trials that ended early: at the edge, without influence on the axis limits.
    for status, marker in (("pruned", "x"), ("failed", "v")):
        where = [i for i, trial in enumerate(trials) if trial["status"] == status]
        edge = 0.03 if mode == "max" else 0.97
        if where:
            style = {"transform": ax.get_xaxis_transform(), "color": GREY, "marker": marker, "lw": 1.2}
            ax.scatter(where, [edge] * len(where), s=24, label=f"{status} (no value)", **style)
    ax.scatter(x[best], y[best], s=170, color=RED, marker="*", zorder=4, label=f"best: {complete[best][1]['name']}")
    room = 0.12 * (np.ptp(y) or abs(y[0]) or 1)  # for the markers at the edge
    ax.set_ylim(y.min() - room, y.max() + room)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5)
    return fig


def importances(shares: Mapping[str, float]) -> Figure:
    """Bars of the importance of each parameter, most important on top."""
    fig = figure(7.0, 0.9 + 0.35 * len(shares))
    ax = fig.add_subplot(xlabel="share of the importance [%]")
    percent = [100 * share for share in shares.values()]
    ax.barh(range(len(shares)), percent, color=BLUE, alpha=0.85, height=0.65)
    for row, value in enumerate(percent):
        ax.text(value + 0.8, row, f"{value:.0f}", va="center", fontsize=9)
    ax.set_yticks(range(len(shares)), shares)
    ax.set(ylim=(len(shares) - 0.4, -0.6), xlim=(0, max(percent) * 1.1))
    ax.grid(visible=False, axis="y")
    return fig


def parallel_coordinates(trials: Sequence[Mapping], metric: str, mode: str) -> Figure:
    """Parallel coordinates: one line per trial, one axis per parameter (logarithmic over powers of ten), and one of the
    metric with the better end up. Better trials are darker, the best is red, pruned ones are dotted."""
    complete = sorted(filter(_is_complete, trials), key=lambda trial: trial["value"], reverse=mode == "min")
    names = list(complete[-1]["parameters"])
    pruned = [trial for trial in trials if trial["status"] == "pruned"]
    shown = [trial for trial in (*pruned, *complete) if set(names) <= set(trial["parameters"])]  # best last, on top
    fig = figure(1.55 * (len(names) + 1) + 0.6, 4.4)
    ax = fig.add_subplot(xlim=(-0.15, len(names) + 0.35), ylim=(-0.04, 1.04))
    heights = [_axis(ax, x, [trial["parameters"][name] for trial in shown], name) for x, name in enumerate(names)]
    values = [float(trial["value"]) if _is_complete(trial) else np.nan for trial in shown]
    heights.append(_axis(ax, len(names), values, downwards=mode == "min"))
    rng = np.random.default_rng(0)
    for row, (trial, line) in enumerate(zip(shown, np.transpose(heights), strict=True)):
        rank = (row + 1 - len(shown) + len(complete)) / len(complete)  # 1 = best
        style = {"color": SHADES(0.25 + 0.7 * max(0, rank)), "lw": 1.3}
        if trial["status"] == "pruned":
            style = {"color": GREY, "lw": 0.8, "ls": ":"}
        if rank == 1:
            style = {"color": RED, "lw": 2.6, "zorder": 4}
        ax.plot(range(len(line)), line + (rank < 1) * rng.uniform(-0.012, 0.012, len(line)), **style)
    ax.set_xticks(range(len(names) + 1), [*(name.replace("_", "\n", 1) for name in names), metric])
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    handles = [
        *ax.plot([], [], color=RED, lw=2.6, label=f"best: {complete[-1]['name']}"),
        *ax.plot([], [], color=SHADES(0.8), lw=1.3, label="complete, darker = better"),
        *(ax.plot([], [], color=GREY, lw=0.8, ls=":", label="pruned") if pruned else ()),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _axis(ax, x: float, values: Sequence, name: str = "", downwards: bool = False) -> np.ndarray:
    """Draws one vertical axis with labels; returns the height in [0, 1] of each value, NaN for NaN."""
    ax.axvline(x, color="#444444", lw=0.8, zorder=0)
    if is_number(values):
        transform = np.log10 if is_log(values) else np.asarray
        low, high = np.nanmin(values), np.nanmax(values)
        marks = _log_marks(low, high) if is_log(values) else MaxNLocator(6).tick_values(low, high)
        foot, span = transform(low), (transform(high) - transform(low)) or 1.0
        heights = (transform(values) - foot) / span
        ticks = [((transform(mark) - foot) / span, _text(mark)) for mark in marks if low <= mark <= high]
    else:
        choices = _in_order(name, values)
        heights = (np.array([choices.index(value) for value in values]) + 0.5) / len(choices)
        ticks = [((i + 0.5) / len(choices), str(choice)) for i, choice in enumerate(choices)]
    for height, label in ticks:
        height = 1 - height if downwards else height
        ax.plot((x, x + 0.03), (height, height), color="#444444", lw=0.8, zorder=0)
        ax.text(x + 0.05, height, label, fontsize=8, va="center", zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8})  # fmt: skip
    return 1 - heights if downwards else heights


def _in_order(name: str, values: Sequence) -> list:
    """Distinct choices among `values`, in the order of the search spaces if listed there."""
    known = [choice for space in SPACES.values() for choice in getattr(space.get(name), "choices", ())]
    return sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), isinstance(v, str), v))


def _log_marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten around two numbers; only the powers if those are many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [float(f"{step}e{power}") for power in powers for step in ((1, 2, 5) if len(powers) < 5 else (1,))]


def _text(mark: float) -> str:
    return np.format_float_scientific(mark, trim="-", exp_digits=1) if 0 < mark < 0.01 else f"{mark:.3g}"


def _is_complete(trial: Mapping) -> bool:
    return trial["status"] == "complete" and trial["value"] is not None
