"""Landmarks drawn on the radiograph: ground truth with prediction, and the tracing with its lines."""

import itertools
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from core import figures
from core.landmarks import Schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4cc9f0", "#f9c74f", "#90be6d", "#f78c6b")  # of the lines
LONGER_SIDE = 1400  # px of the drawn picture


def _canvas(pixels: np.ndarray, longer_side: int) -> tuple["Figure", object, float]:
    """(figure, axes in px of the drawn picture, drawn px per native px)."""
    height, width = pixels.shape[:2]
    scale = min(1.0, longer_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fig = figures.figure(size[0] / 100, size[1] / 100)
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.imshow(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), cmap="gray", vmin=0, vmax=255)
    ax.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))
    ax.axis("off")
    return fig, ax, scale


def comparison(pixels: np.ndarray, truth: np.ndarray, prediction: np.ndarray, title: str) -> "Figure":
    """Ground truth (green rings) and prediction (red dots), both (K, 2) native px, on the grey picture uint8 (H, W)."""
    fig, ax, scale = _canvas(pixels, 900)
    truth, prediction = (truth + 0.5) * scale - 0.5, (prediction + 0.5) * scale - 0.5
    for a, b in zip(truth, prediction, strict=True):
        ax.plot([a[0], b[0]], [a[1], b[1]], color="#ffd166", lw=1.2)
    ax.scatter(*truth.T, s=34, facecolors="none", edgecolors="#06d6a0", linewidths=1.4, label="ground truth")
    ax.scatter(*prediction.T, s=9, color="#ff4d5e", label="prediction")
    ax.text(0.015, 0.985, title, transform=ax.transAxes, color="white", va="top", fontsize=11, path_effects=_outline())
    ax.legend(loc="lower left", ncols=2, fontsize=9, labelcolor="white", facecolor="black", frameon=True)
    return fig


def tracing(pixels: np.ndarray, points: np.ndarray, schema: Schema, title: str) -> "Figure":
    """Landmark names and the lines of the scheme on the grey picture uint8 (H, W); `points` (K, 2) native px, NaN =
    left out."""
    fig, ax, scale = _canvas(pixels, LONGER_SIDE)
    known = np.isfinite(points).all(axis=1)
    points = (points[known] + 0.5) * scale - 0.5
    places = dict(zip(itertools.compress(schema.names, known), points, strict=True))
    taken = []
    renderer = fig.canvas.get_renderer()
    for (name, indices), colour in zip(schema.lines.items(), itertools.cycle(COLOURS), strict=False):
        back, front = (schema.names[index] for index in indices)
        if not {back, front} <= set(places):
            continue
        direction = places[front] - places[back]
        start, end = places[back] - 0.35 * direction, places[front] + 0.35 * direction
        if not (start > 40).all():  # keeps the name, drawn at the start, inside the picture
            start = places[back] + (start - places[back]) * _share_inside(places[back], start, 40)
        ax.plot(*zip(start, end, strict=True), color=colour, lw=1.5, alpha=0.9)
        label = ax.text(*start, name, color=colour, fontsize=12, weight="bold", ha="right", path_effects=_outline())
        taken.append(label.get_window_extent(renderer))
    ax.scatter(*points.T, s=16, color="#ff4d5e", edgecolors="white", linewidths=0.6, zorder=3)
    dots = ax.transData.transform(points)
    for symbol, place in places.items():
        _label(ax, symbol, place, dots, taken, renderer)
    ax.text(0.012, 0.988, title, transform=ax.transAxes, color="white", va="top", fontsize=12, path_effects=_outline())
    return fig


def _outline() -> list:
    """Dark outline of text."""
    from matplotlib import patheffects  # slow import

    return [patheffects.withStroke(linewidth=2.2, foreground="#000000cc")]


def _share_inside(inner: np.ndarray, outer: np.ndarray, margin: float) -> float:
    """Share (0-1) of the way from `inner` to `outer` (2,) on which x and y are at least `margin`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(outer < margin, (inner - margin) / (inner - outer), 1.0)
    return float(np.clip(shares.min(), 0, 1))


def _label(ax, symbol: str, place: np.ndarray, dots: np.ndarray, taken: list, renderer) -> None:
    """Draws a symbol at the nearest position around its point that covers no other label or point."""
    text = ax.text(
        *place, symbol, color="white", fontsize=10, ha="center", va="center", path_effects=_outline(), zorder=4
    )
    frame = ax.get_window_extent(renderer)
    for distance in (16, 24, 34, 46, 60, 80):
        for angle in np.radians(np.arange(0, 360, 30)):
            spot = place + distance * np.array([np.cos(angle), -np.sin(angle)])
            text.set_position(spot)
            box = text.get_window_extent(renderer).expanded(1.05, 1.0)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            on_dot = ((dots > [box.x0 - 3, box.y0 - 3]) & (dots < [box.x1 + 3, box.y1 + 3])).all(axis=1).any()
            if inside and not on_dot and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if distance > 24:
                    ax.plot(*zip(place, spot, strict=True), color="white", lw=0.6, alpha=0.7, zorder=2)
                return
    taken.append(text.get_window_extent(renderer))
