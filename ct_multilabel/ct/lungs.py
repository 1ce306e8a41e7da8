"""Location of the lungs in a CT volume, by thresholds and connected components."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

GRID_MM = 4.0  # resolution of the coarse copy
AIR_HU = -400  # upper limit of lungs and air; tissue is above
VOID_HU = -950  # upper limit of air around the body; means of lungs, also with emphysema, are above
MIN_LUNG_ML = 700
MARGIN_MM = 10.0  # above and below the lungs


@dataclass
class Chest:
    """Location of the lungs in a volume."""

    first: int  # first and last slice, both included
    last: int
    centre: tuple[float, float]  # of the body, mm (y, x) from the corner of the slice
    lung_ml: float


def find_chest(hu: np.ndarray, spacing: tuple[float, float, float], warnings: list[str]) -> Chest:
    """Finds the lungs in `hu` (Z, Y, X), with `spacing` in mm (z, y, x), and the slices around them with MARGIN_MM.

    Lungs are air inside the body or, in cropped volumes, air of lung density at the border. With less than MIN_LUNG_ML,
    the whole volume is used and a warning is added to `warnings`.
    """
    coarse, grid = _coarse(hu, spacing)
    body, lungs, cut = _body_and_lungs(coarse, grid)
    lung_ml, levels = _millilitres(lungs, grid), np.arange(len(coarse))
    if lung_ml < MIN_LUNG_ML:
        warnings.append(f"hardly any lung: {lung_ml:.0f} ml; is this a chest CT?")
    else:
        area = lungs.sum(axis=(1, 2))
        levels = np.flatnonzero(area > 0.05 * area.max())  # excludes the trachea above the lungs
    sides = body[levels, 0], body[levels, -1], body[levels, :, 0], body[levels, :, -1]
    if cut or sum(side.mean() > 0.5 for side in sides) > 2:
        warnings.append(f"no whole chest: the picture's border cuts the {'lungs' if cut else 'body'}")

    first = max(0, int((levels[0] * grid[0] - MARGIN_MM) / spacing[0]))
    last = min(len(hu) - 1, int(np.ceil((levels[-1] * grid[0] + MARGIN_MM) / spacing[0])))
    silhouette = body[levels].any(axis=0)
    if not silhouette.any():
        silhouette[:] = True
    centre = _middle(silhouette.sum(axis=1), grid[1]), _middle(silhouette.sum(axis=0), grid[2])
    return Chest(first, last, centre, lung_ml)


def _millilitres(mask: np.ndarray, grid: tuple[float, float, float]) -> float:
    return float(mask.sum() * np.prod(grid) / 1000)


def _middle(profile: np.ndarray, side: float) -> float:
    """Midpoint in mm between the 2nd and 98th percentiles of a profile (N,) with pixels of `side` mm."""
    share = np.cumsum(profile) / profile.sum()
    low, high = np.searchsorted(share, (0.02, 0.98))
    return float((low + high + 1) / 2 * side)


def _coarse(hu: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Every n-th slice, averaged to pixels of about GRID_MM, and the spacing of this grid in mm (z, y, x)."""
    step = max(1, round(GRID_MM / spacing[0]))
    sides = [number * side for number, side in zip(hu.shape[1:], spacing[1:], strict=True)]  # of a slice, mm
    rows, columns = (min(n, max(1, round(mm / GRID_MM))) for n, mm in zip(hu.shape[1:], sides, strict=True))
    coarse = np.stack([cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA) for picture in hu[::step]])
    return coarse, (step * spacing[0], sides[0] / rows, sides[1] / columns)


def _body_and_lungs(coarse: np.ndarray, grid: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Masks (Z, Y, X) of the body including its lungs, and of the lungs; whether the border cuts the lungs."""
    parts, number = ndimage.label(coarse > AIR_HU)
    body = parts == np.bincount(parts.ravel())[1:].argmax() + 1 if number else np.zeros(coarse.shape, bool)
    within_slice = ndimage.generate_binary_structure(3, 1)
    within_slice[[0, 2]] = False
    inside = ~body & ~_reaching_border(~body, within_slice)
    lungs = _lung_parts(inside & (coarse < AIR_HU), coarse)
    if _millilitres(lungs, grid) > MIN_LUNG_ML:
        return body | inside, lungs, False
    void = _reaching_border(coarse < VOID_HU)
    if _border(void).mean() > 0.25:  # air around the body: lung densities outside are padding of the couch
        return body | inside, lungs, False
    open_air = ndimage.binary_opening((coarse < AIR_HU) & ~void)  # without the blurred edge of the void
    lungs |= _lung_parts(_reaching_border(open_air), coarse)
    return body | inside | lungs, lungs, _millilitres(lungs, grid) > MIN_LUNG_ML


def _border(volume: np.ndarray) -> np.ndarray:
    """Voxels (N,) at the four edges of the slices of a volume (Z, Y, X)."""
    sides = volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1]
    return np.concatenate([side.ravel() for side in sides])


def _reaching_border(mask: np.ndarray, structure: np.ndarray | None = None) -> np.ndarray:
    """Connected components of `mask` (Z, Y, X) that touch the edges of the slices."""
    parts, number = ndimage.label(mask, structure)
    reaching = np.zeros(number + 1, bool)
    reaching[_border(parts)] = True
    reaching[0] = False
    return reaching[parts]


def _lung_parts(air: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Components of `air` (Z, Y, X) as dense as lungs (gas in bowels is not), without small ones."""
    parts, number = ndimage.label(air)
    if not number:
        return air
    numbers = np.arange(number + 1)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)
    lungs = ndimage.mean(coarse, parts, numbers) > VOID_HU
    lungs[0] = False
    return (lungs & (sizes >= 0.15 * sizes[lungs].max(initial=1)))[parts]
