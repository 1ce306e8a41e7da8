"""Figures of reconstructed cubes: colour pictures, error maps, errors by wavelength, spectra of pixels."""

import gc
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from core import figures
from core.figures import BLUE, GREEN, GREY, RED
from core.files import distinct_names
from core.images import ImageError, read_image
from hsi.files import Cube
from hsi.wavelengths import CONTRAST, colours, to_rgb, white_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

HIDDEN = "#d9dde3"  # colour of hidden bands and of pixels without values
WHITE = np.full((1, 1, 3), 255, np.uint8)


class Shown(NamedTuple):
    """A cube and its reconstruction, float (C, H, W), with `hidden` bool (C, H, W) and `foreground` bool (H, W)."""

    name: str
    cube: np.ndarray
    result: np.ndarray
    hidden: np.ndarray
    foreground: np.ndarray
    photo: Path | None = None


def shown_of(
    cubes: Sequence[Cube], batch: dict, result: "Tensor", hidden: "Tensor", count: int, photos: bool = True
) -> list[Shown]:
    """The first `count` cubes of a batch from the data set of `cubes`, with reconstructions and masks (B, C, H, W)."""
    arrays = [x[:count].cpu().numpy() for x in (batch["cube"], result, hidden, batch["foreground"])]
    chosen = [cubes[index] for index in batch["index"][:count]]
    return [Shown(c.id, *one, c.rgb_file if photos else None) for c, *one in zip(chosen, *arrays, strict=True)]


def write_figures(
    folder: Path, shown: Sequence[Shown], curves: Mapping[str, np.ndarray], wavelengths: Sequence[float], unit: str,
    suffix: str = "png", dpi: int = 130,
) -> list[tuple[Path, str]]:  # fmt: skip
    """Writes figures of some cubes and of the errors (C,) by band of the whole set; returns (file, caption) of each."""
    gc.collect()  # figures are reference cycles that hold large arrays
    text = f"Cubes ({colours(wavelengths)}), visible voxels, reconstructions and errors"
    pictures = {"reconstructions": (reconstructions(shown, wavelengths, unit), text)}
    text = "Mean squared error of hidden voxels at each wavelength"
    pictures["error_by_wavelength"] = error_by_wavelength(curves, wavelengths, unit), text
    for case, name in zip(shown[:2], distinct_names(case.name for case in shown), strict=False):
        points = typical_points(case.cube, case.foreground, wavelengths)
        text = f"Measured and reconstructed spectra of {case.name} at four pixels"
        pictures[f"spectra_{name}"] = spectra(case, wavelengths, points, unit), text
    return [(figures.save(fig, folder / f"{name}.{suffix}", dpi), text) for name, (fig, text) in pictures.items()]


def _photo(file: Path | None) -> np.ndarray:
    """RGB picture of a cube; white if it is missing or unreadable, as it is for display only."""
    try:
        return read_image(file, "RGB").pixels if file else WHITE
    except ImageError:
        return WHITE


def reconstructions(shown: Sequence[Shown], wavelengths: Sequence[float], unit: str) -> "Figure":
    """One row per cube: photo (if any), cube, masked input and reconstruction in colour, and an error map.

    The masked input shows the light of visible bands only: red if only red ones are visible, black if only infrared
    ones, grey if all are hidden. Error: root mean square over the hidden bands of a pixel, on one scale for all rows.
    """
    cubes, results, hidden = (
        np.stack([getattr(case, name) for case in shown]) for name in ("cube", "result", "hidden")
    )
    photos = [_photo(case.photo) for case in shown] if any(case.photo for case in shown) else None
    share, coloured = 100 * (1 - hidden.mean()), colours(wavelengths).partition(",")[0]
    titles = [
        f"Cube {coloured}",
        f"Input: {share:.0f} % of voxels (grey: none)",
        "Reconstruction",
        "RMSE, hidden bands",
    ]
    titles = ["Photo", *titles] if photos is not None else titles
    counts = hidden.sum(axis=1)
    squares = (np.where(hidden, results - cubes, 0) ** 2).sum(axis=1)
    errors = np.ma.masked_array(np.sqrt(squares / np.maximum(1, counts)), counts == 0)  # (K, H, W)
    top = np.percentile(errors.compressed(), 99.5) if errors.count() else 1.0

    aspect = cubes.shape[2] / cubes.shape[3]
    fig = figures.figure(2.5 * len(titles) + 0.9, 2.45 * aspect * len(cubes) + 0.4)
    axes = fig.subplots(len(cubes), len(titles), squeeze=False)
    for k, row in enumerate(axes):
        white = white_level(cubes[k], wavelengths)
        masked = np.where(hidden[k], 0, cubes[k])
        pictures = [to_rgb(cube, wavelengths, white) for cube in (cubes[k], masked, results[k])]
        pictures[1][hidden[k].all(axis=0)] = list(bytes.fromhex(HIDDEN[1:]))
        for ax, picture in zip(row, [photos[k], *pictures] if photos is not None else pictures, strict=False):
            ax.imshow(picture)
        image = row[-1].imshow(errors[k], cmap="magma", vmin=0, vmax=top)
        for ax in row:
            ax.set(xticks=(), yticks=(), facecolor=HIDDEN)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(shown[k].name, fontsize=9)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    shape = {"shrink": 0.9, "aspect": 22 * len(cubes), "pad": 0.03, "extend": "max", "extendfrac": 0.03}
    fig.colorbar(image, ax=axes[:, -1], label=unit, **shape)
    return fig


def error_by_wavelength(curves: Mapping[str, np.ndarray], wavelengths: Sequence[float], unit: str) -> "Figure":
    """Mean squared errors (C,) in squared units of the cube, on a log scale over nm, interrupted at gaps between bands;
    the first curve is blue. The right axis shows the root mean square."""
    fig = figures.figure(7.4, 4.0)
    ax = fig.add_subplot(xlabel="wavelength [nm]", ylabel=f"mean squared error [{unit}²]", yscale="log")
    for (name, errors), colour in zip(curves.items(), itertools.cycle((BLUE, GREY, RED, GREEN)), strict=False):
        ax.plot(*_with_gaps(wavelengths, errors), color=colour, label=name, lw=1.6, marker="o", ms=3)
    ax.secondary_yaxis("right", functions=(np.sqrt, np.square)).set_ylabel(f"root mean square [{unit}]")
    ax.legend(loc="best")
    return fig


def spectra(case: Shown, wavelengths: Sequence[float], points: Sequence[tuple[int, int, str]], unit: str) -> "Figure":
    """Input and output spectra at `points` (row, column, title), with hidden bands shaded, and the points in the
    picture."""
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.2, foreground="#000000cc")]
    rows, columns = min(2, len(points)), -(-len(points) // 2)
    fig = figures.figure(4.2 + 3.2 * columns, 4.6)
    grid = fig.add_gridspec(rows, columns + 1, width_ratios=(1.25, *[1] * columns))
    place = fig.add_subplot(grid[:, 0], title=case.name, xticks=(), yticks=())
    place.imshow(to_rgb(case.cube, wavelengths))
    place.spines[:].set_visible(False)
    left, right = _band_edges(wavelengths)
    for i, (row, column, title) in enumerate(points):
        place.plot(column, row, "o", ms=9, mfc="none", mec="white", mew=1.4, path_effects=outline)
        style = {"color": "white", "weight": "bold", "path_effects": outline}
        place.annotate(str(i + 1), (column, row), (6, 5), textcoords="offset points", **style)
        ax = fig.add_subplot(grid[i // columns, 1 + i % columns])
        ax.set_title(f"{i + 1}  {title}", fontsize=9)
        for band in np.flatnonzero(case.hidden[:, row, column]):
            ax.axvspan(left[band], right[band], color=HIDDEN, lw=0)
        (before,) = ax.plot(*_with_gaps(wavelengths, case.cube[:, row, column]), color=GREY, lw=2.6, marker="o", ms=4)
        (after,) = ax.plot(*_with_gaps(wavelengths, case.result[:, row, column]), color=BLUE, lw=1.2, marker="o", ms=2)
        ax.set(xlim=(left[0], right[-1]), ylim=(min(0, ax.get_ylim()[0]), None))
        ax.set_xlabel("wavelength [nm]" if i + columns >= len(points) else "")
        ax.set_ylabel(unit if i % columns == 0 else "")
    names = {"input": before, "output": after, "hidden bands": Patch(color=HIDDEN)}
    place.legend(names.values(), names, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, fontsize=9, columnspacing=1.2)
    return fig


def typical_points(
    cube: np.ndarray, foreground: np.ndarray, wavelengths: Sequence[float], count: int = 4
) -> list[tuple[int, int, str]]:
    """`count` foreground pixels (row, column, title) of different brightness in a cube (C, H, W); foreground (H, W).

    In the smoothed band nearest to `CONTRAST`: the darkest pixel relative to its surroundings, then pixels at evenly
    spaced percentiles from 1 to 99, away from the rim. Deterministic.
    """
    from scipy import ndimage

    band, side = int(np.abs(np.asarray(wavelengths) - CONTRAST).argmin()), min(foreground.shape)
    size = max(3, side // 100)
    smooth = ndimage.uniform_filter(np.where(foreground, cube[band], 0).astype(np.float64), size)
    inner = ndimage.minimum_filter(foreground, 4 * size + 1, mode="constant", cval=0)
    inside = inner if inner.any() else foreground
    nm = f"{wavelengths[band]:.0f} nm"
    wanted = {f"dark against its surroundings, {nm}": -ndimage.black_tophat(smooth, max(7, side // 20))}
    for percentile in np.linspace(1, 99, count - 1):
        level = np.percentile(smooth[inside], percentile)
        wanted[f"percentile {percentile:.0f} at {nm}"] = np.abs(smooth - level)
    points, free = [], inside
    for title, values in wanted.items():  # the minimum, away from earlier points
        row, column = np.unravel_index(np.where(free, values, np.inf).argmin(), free.shape)
        points.append((int(row), int(column), title))
        rows, columns = np.ogrid[: free.shape[0], : free.shape[1]]
        clear = free & (np.hypot(rows - row, columns - column) > side / 16)
        free = clear if clear.any() else inside
    return points


def _with_gaps(wavelengths: Sequence[float], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths in nm and values (C,) with a NaN in each gap, which interrupts the line."""
    gaps = np.flatnonzero(_gaps(wavelengths)) + 1
    return np.insert(np.asarray(wavelengths, float), gaps, np.nan), np.insert(np.asarray(values, float), gaps, np.nan)


def _gaps(wavelengths: Sequence[float]) -> np.ndarray:
    """(C − 1,) bool: whether the step to the next band is more than three times the median."""
    steps = np.diff(wavelengths)
    return steps > 3 * _median(steps)


def _median(steps: np.ndarray) -> float:
    """Median step in nm; 1 for a single band, which has none."""
    return float(np.median(steps)) if len(steps) else 1.0


def _band_edges(wavelengths: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the bands in nm: midpoints between neighbours; at gaps, half a median step away."""
    steps = np.diff(wavelengths)
    typical = _median(steps)
    steps = np.concatenate([[typical], np.where(_gaps(wavelengths), typical, steps), [typical]])
    return np.asarray(wavelengths) - steps[:-1] / 2, np.asarray(wavelengths) + steps[1:] / 2
