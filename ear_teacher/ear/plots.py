"""Pictures of ears in rows and columns, and what the codes look like as curves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from core.figures import BLUE, GREY, RED, figure
from ear.latent_space import ACTIVE, BRIGHTNESS, STRUCTURE


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str] = (), inches: float = 1.15, heading: str = ""
) -> Figure:
    """Rows of pictures, name -> (N, H, W, 3) uint8 or (N, H, W) in [0, 1] as heat maps, or a list of both, with a title
    above each column and a `heading` above all; `inches` is the side of one. Names may have several lines."""
    columns = max(len(pictures) for pictures in rows.values())
    margin = 0.15 + 0.075 * max(len(line) for name in rows for line in name.split("\n"))  # 0.075 inches a letter
    lines = len(heading.splitlines())
    top = 0.04 + 0.24 * bool(titles) + 0.2 * lines
    width, height = margin + columns * inches, top + len(rows) * inches
    fig = figure(width, height)
    fig.set_layout_engine("none")
    fig.text(margin / width, 1 - 0.05 / height, heading, va="top", fontsize=10, linespacing=1.3)
    for row, (name, pictures) in enumerate(rows.items()):
        bottom = 1 - (top + (row + 1) * inches) / height
        fig.text((margin - 0.08) / width, bottom + inches / height / 2, name, ha="right", va="center", fontsize=9)
        for column, picture in enumerate(pictures):
            place = ((margin + column * inches) / width, bottom, 0.96 * inches / width, 0.96 * inches / height)
            ax = fig.add_axes(place)
            ax.imshow(picture, cmap="magma", vmin=0, vmax=1)
            ax.set_axis_off()
            if row == 0 and titles:
                ax.set_title(titles[column], fontsize=9, loc="center", pad=3)
    return fig


def reconstruction_grid(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    titles: Sequence[str] = (),
    others: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Pictures (N, H, W, 3) uint8, what the model makes of them, and four times the mean absolute difference; below
    them what `others` make of them, by name."""
    difference = np.abs(originals.astype(float) - reconstructions).mean(axis=-1) / 255
    rows = {"original": originals, "reconstruction": reconstructions, "difference × 4": np.clip(4 * difference, 0, 1)}
    return picture_grid({**rows, **(others or {})}, titles)


def kl_bars(kl: np.ndarray, mu: np.ndarray) -> Figure:
    """KL divergence of each dimension (D,), sorted; dimensions of mu (N, D) that hardly vary are grey."""
    order = np.argsort(-kl)
    active = mu.var(axis=0)[order] > ACTIVE
    fig = figure(7.0, 3.0)
    ax = fig.add_subplot(xlabel="dimension of the code, sorted", ylabel="KL [nats]", xlim=(-0.5, len(kl) - 0.5))
    ax.bar(range(len(kl)), kl[order], width=1.0, color=np.where(active, BLUE, GREY))
    ax.set_title(f"{active.sum()} of {len(kl)} dimensions are in use (variance of mu above {ACTIVE})")
    return fig


class Eigenear(NamedTuple):
    """A principal component, as it is shown: pictures (S, H, W, 3) uint8 at `sigmas` (S,), from -kσ to kσ with the mean
    in the middle; `change` (H, W) from the first to the last, grey levels of 255, mean over the channels."""

    name: str
    pictures: np.ndarray
    sigmas: np.ndarray
    change: np.ndarray
    explained: float
    brightness_share: float
    verdict: str


def eigenear_strip(ear: Eigenear) -> Figure:
    """One component from -kσ to kσ, and where the pixels change; the heading says what that is."""
    heading = (
        f"{ear.name}: {100 * ear.explained:.3g} % of the variance; changes {ear.verdict}\n"
        f"{100 * ear.brightness_share:.0f} % of the change is brightness or colour of the whole picture"
    )
    titles = [*map(_sigma, ear.sigmas), f"change, up to {ear.change.max():.0f}"]
    return picture_grid({"": [*ear.pictures, _heat(ear)]}, titles, heading=heading)


def eigenear_grid(ears: Sequence[Eigenear]) -> Figure:
    """A row a component: both ends, the mean between them, and where the pixels change, each map to its own maximum."""
    rows = {}
    places = [0, len(ears[0].sigmas) // 2, -1]
    for ear in ears:
        name = (
            f"{ear.name}: {100 * ear.explained:.3g} %\n{ear.verdict}\n"
            f"brightness share {100 * ear.brightness_share:.0f} %\nchange up to {ear.change.max():.0f}"
        )
        rows[name] = [*ear.pictures[places], _heat(ear)]
    return picture_grid(rows, [*map(_sigma, ears[0].sigmas[places]), "where it changes"])


def explained_variance(ears: Sequence[Eigenear]) -> Figure:
    """Share of the variance of each component, coloured by its verdict, and the sum up to it."""
    shares = 100 * np.array([ear.explained for ear in ears])
    places = np.arange(1, len(ears) + 1)
    fig = figure(7.0, 3.4)
    ax = fig.add_subplot(xlabel="principal component", ylabel="variance of the codes [%]", ylim=(0, 104))
    for verdict, colour in ((STRUCTURE, BLUE), (BRIGHTNESS, GREY)):
        of_it = np.array([ear.verdict == verdict for ear in ears])
        ax.bar(places[of_it], shares[of_it], color=colour, label=verdict)
    ax.plot(places, shares.cumsum(), color=RED, marker=".", label="sum so far")
    first = min(5, len(ears))
    total = shares[:first].sum()
    ax.annotate(f"first {first}: {total:.0f} %", (first, total), (8, -16), textcoords="offset points")
    ax.set_xticks(places)
    ax.legend(loc="center right")
    return fig


def _heat(ear: Eigenear) -> np.ndarray:
    return ear.change / max(float(ear.change.max()), 1e-12)


def _sigma(sigma: float) -> str:
    return f"{sigma:+.3g}σ".replace("-", "−") if abs(sigma) > 1e-9 else "mean"
