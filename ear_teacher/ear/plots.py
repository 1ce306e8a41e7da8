"""Figures: grids of pictures, statistics of the codes, detections."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from core.figures import BLUE, GREY, RED, figure
from core.landmarks import Schema
from core.windows import cut, square_window, to_window
from ear.latent_space import ACTIVE, BRIGHTNESS, STRUCTURE
from ear.manifest import Ear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 320  # of a drawn window, px
TRUTH, FOUND = "#06d6a0", "#ff4d5e"
Shown = tuple[np.ndarray, Ear, np.ndarray, np.ndarray, str]  # picture, ear, box (4,), landmarks (K, 2), title


def picture_grid(
    rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str] = (), inches: float = 1.15, heading: str = ""
) -> "Figure":
    """Grid of pictures, row name -> (N, H, W, 3) uint8, or (N, H, W) in [0, 1] as heat maps, or a list of both, with
    column `titles` and a `heading`; `inches`: side of a picture. Names may have several lines."""
    columns = max(len(pictures) for pictures in rows.values())
    margin = 0.15 + 0.075 * max(len(line) for name in rows for line in name.split("\n"))  # 0.075 inches per letter
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
) -> "Figure":
    """Pictures (N, H, W, 3) uint8, their reconstructions, four times the mean absolute difference, and reconstructions
    by other methods, name -> (N, H, W, 3) uint8."""
    difference = np.abs(originals.astype(float) - reconstructions).mean(axis=-1) / 255
    rows = {"original": originals, "reconstruction": reconstructions, "difference × 4": np.clip(4 * difference, 0, 1)}
    return picture_grid({**rows, **(others or {})}, titles)


def kl_bars(kl: np.ndarray, mu: np.ndarray) -> "Figure":
    """KL divergence of each dimension (D,), sorted; inactive dimensions of mu (N, D) are grey."""
    order = np.argsort(-kl)
    active = mu.var(axis=0)[order] > ACTIVE
    fig = figure(7.0, 3.0)
    ax = fig.add_subplot(xlabel="dimension of the code, sorted", ylabel="KL [nats]", xlim=(-0.5, len(kl) - 0.5))
    ax.bar(range(len(kl)), kl[order], width=1.0, color=np.where(active, BLUE, GREY))
    ax.set_title(f"{active.sum()} of {len(kl)} dimensions are active (variance of mu above {ACTIVE})")
    return fig


class Eigenear(NamedTuple):
    """A decoded principal component: pictures (S, H, W, 3) uint8 at `sigmas` (S,) from -kσ to kσ; `change` (H, W) from
    first to last, in grey levels of 255, mean over the channels."""

    name: str
    pictures: np.ndarray
    sigmas: np.ndarray
    change: np.ndarray
    explained: float
    brightness_share: float
    verdict: str


def eigenear_strip(ear: Eigenear) -> "Figure":
    """One component from -kσ to kσ and a map of the change, with the verdict in the heading."""
    heading = (
        f"{ear.name}: {100 * ear.explained:.3g} % of the variance; changes {ear.verdict}\n"
        f"{100 * ear.brightness_share:.0f} % of the change is brightness or colour of the whole picture"
    )
    titles = [*map(_sigma, ear.sigmas), f"change, up to {ear.change.max():.0f}"]
    return picture_grid({"": [*ear.pictures, _heat(ear)]}, titles, heading=heading)


def eigenear_grid(ears: Sequence[Eigenear]) -> "Figure":
    """One row per component: both ends, the mean, and a map of the change, scaled to its maximum."""
    rows = {}
    places = [0, len(ears[0].sigmas) // 2, -1]
    for ear in ears:
        name = (
            f"{ear.name}: {100 * ear.explained:.3g} %\n{ear.verdict}\n"
            f"brightness share {100 * ear.brightness_share:.0f} %\nchange up to {ear.change.max():.0f}"
        )
        rows[name] = [*ear.pictures[places], _heat(ear)]
    return picture_grid(rows, [*map(_sigma, ears[0].sigmas[places]), "change"])


def explained_variance(ears: Sequence[Eigenear]) -> "Figure":
    """Explained variance of each component, coloured by verdict, and its cumulative sum."""
    shares = 100 * np.array([ear.explained for ear in ears])
    places = np.arange(1, len(ears) + 1)
    fig = figure(7.0, 3.4)
    ax = fig.add_subplot(xlabel="principal component", ylabel="variance of the codes [%]", ylim=(0, 104))
    for verdict, colour in ((STRUCTURE, BLUE), (BRIGHTNESS, GREY)):
        of_it = np.array([ear.verdict == verdict for ear in ears])
        ax.bar(places[of_it], shares[of_it], color=colour, label=verdict)
    ax.plot(places, shares.cumsum(), color=RED, marker=".", label="cumulative")
    first = min(5, len(ears))
    total = shares[:first].sum()
    ax.annotate(f"first {first}: {total:.0f} %", (first, total), (8, -16), textcoords="offset points")
    ax.set_xticks(places)
    ax.legend(loc="center right")
    return fig


def overlays(shown: Sequence[Shown], schema: Schema) -> "Figure":
    """Windows with ground truth (green) and detected (red) box, landmarks and contours, side by side."""
    from matplotlib.patches import Rectangle

    fig = figure(3.2 * len(shown), 3.75)
    for column, (pixels, ear, box, points, title) in enumerate(shown):
        corners = np.array([ear.box, box])
        both = (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0))
        window = square_window(both, 0.25)
        ax = fig.add_subplot(1, len(shown), column + 1)
        ax.imshow(cut(pixels, window, SIDE))
        for colour, style, landmarks, frame in ((TRUTH, "-", ear.landmarks, ear.box), (FOUND, "--", points, box)):
            places = to_window(landmarks, window, SIDE)
            x0, y0, x1, y1 = to_window(np.reshape(frame, (2, 2)), window, SIDE).ravel()
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, ls=style, lw=1.2))
            for indices in schema.strips.values():
                ax.plot(*places[list(indices)].T, color=colour, lw=1.0, alpha=0.8)
            ax.scatter(*places.T, s=9, color=colour, zorder=3)
        ax.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
        ax.set_axis_off()
        ax.set_title(title, fontsize=9, loc="left")
    handles = [Rectangle((0, 0), 1, 1, fill=False, ec=TRUTH), Rectangle((0, 0), 1, 1, fill=False, ec=FOUND, ls="--")]
    fig.legend(handles, ["ground truth", "detection"], loc="outside lower center", ncols=2, fontsize=9)
    return fig


def _heat(ear: Eigenear) -> np.ndarray:
    return ear.change / max(float(ear.change.max()), 1e-12)


def _sigma(sigma: float) -> str:
    return f"{sigma:+.3g}σ".replace("-", "−") if abs(sigma) > 1e-9 else "mean"
