"""Montage of a prediction: the slices with the highest logits of each label found, plain and with Grad-CAM."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from core import figures
from ct.labels import WINDOW_OF
from ct.volumes import WINDOWS

# Transparent for low activations, so that the slice stays visible.
HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0, (0.9, 0.2, 0.1, 0)), (0.2, (0.9, 0.2, 0.1, 0)), (0.6, (1, 0.4, 0.1, 0.5)), (1, (1, 0.9, 0.2, 0.75))]
)


def picture_of(pixels: np.ndarray, window: str, channels: str) -> np.ndarray:
    """Channel (H, W) uint8 of a slice (3, H, W) with the given display window."""
    if channels == "adjacent":
        return pixels[1]  # the slice itself, between its neighbours
    return pixels[list(WINDOWS).index(window)]


def montage(
    pixels: np.ndarray,
    positions: np.ndarray,
    findings: list[tuple[str, float, np.ndarray, np.ndarray]],
    channels: str,
    title: str,
) -> Figure:
    """Figure of slices (S, 3, H, W) uint8 at `positions` (S,) mm, with a row for each finding (label, score, slice
    numbers, heat maps in [0, 1]); all findings have the same number of slices. Without findings: evenly spaced slices.
    """
    if not findings:
        return _strip(pixels, positions, channels, title)
    shown = len(findings[0][2])
    fig = figures.figure(1.75 * 2 * shown, 0.5 + 2.0 * len(findings))
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = fig.subplots(len(findings), 2 * shown, squeeze=False)
    for row, (label, score, numbers, heat) in zip(axes, findings, strict=True):
        for i, number in enumerate(numbers):
            for ax in row[2 * i : 2 * i + 2]:
                _show(ax, picture_of(pixels[number], WINDOW_OF.get(label, "lung"), channels))
            row[2 * i + 1].imshow(heat[i], cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear")
            row[2 * i].set_title(f"{label}  {score:.2f}" if i == 0 else "", fontsize=9)
            row[2 * i].text(3, 3, f"z {positions[number]:.0f} mm", color="white", fontsize=7, va="top")
    return fig


def _strip(pixels: np.ndarray, positions: np.ndarray, channels: str, title: str) -> Figure:
    numbers = np.linspace(0, len(pixels) - 1, min(6, len(pixels))).round().astype(int)
    fig = figures.figure(10.5, 4.2)
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = fig.subplots(2, len(numbers), squeeze=False)
    for row, window in zip(axes, ("lung", "mediastinum"), strict=True):
        for ax, number in zip(row, numbers, strict=True):
            _show(ax, picture_of(pixels[number], window, channels))
            ax.text(3, 3, f"z {positions[number]:.0f} mm", color="white", fontsize=7, va="top")
    return fig


def _show(ax, picture: np.ndarray) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set_axis_off()
