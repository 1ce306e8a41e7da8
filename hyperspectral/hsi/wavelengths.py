"""Wavelengths of the bands in nm: command-line syntax and conversion of spectra to sRGB."""

import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError

# Bands of the reference's camera; others with --wavelengths.
DEFAULT = "450:730:10,850"  # as on a command line
DEFAULT_WAVELENGTHS: tuple[float, ...] = (*(float(nm) for nm in range(450, 731, 10)), 850.0)
CONTRAST = 570.0  # nm; pixels for plots of spectra are chosen in the nearest band
SHORTEST, LONGEST = 200.0, 20_000.0  # nm, range of optical sensors

# ------------------------------------------------------------------------------------------------------ command line


def parse_wavelengths(text: str) -> tuple[float, ...]:
    """argparse type: `450,460,470`, ranges with both ends `450:730:10,850`, or a file with either, or with a JSON list.

    Returns nm, strictly increasing. Raises UserError for other texts, other orders, and values outside 200-20000 nm.
    """
    source = "--wavelengths"
    if os.path.isfile(text):
        source += f" {text}"
        try:
            content = Path(text).read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
            entries = json.loads(content) if text.endswith(".json") else content.replace(",", " ").split()
        except ValueError as error:
            raise UserError(f"{source}: cannot be read as text or JSON ({error})") from None
        if not isinstance(entries, list):
            raise UserError(f"{source}: a JSON file must hold a list of numbers")
    elif set(text) <= set("0123456789.,:+-eE \t\n"):
        entries = text.replace(",", " ").split()
    else:
        raise UserError(f"{source} {text}: no such file, nor numbers such as 450,460,470 or 450:730:10,850")
    values = tuple(nm for entry in entries for nm in _numbers(entry, source))
    _check(values, source)
    return values


def _numbers(entry: object, source: str) -> tuple[float, ...]:
    """Number or range of numbers of `entry`."""
    try:
        parts = [float(part) for part in str(entry).split(":")]
    except ValueError:
        raise UserError(f"{source}: {entry!r} is not a number of nanometres") from None
    if len(parts) == 1:
        return (parts[0],)
    if len(parts) != 3 or not all(map(math.isfinite, parts)) or parts[2] <= 0 or parts[1] < parts[0]:
        raise UserError(f"{source}: write the range {entry} as first:last:step, such as 450:730:10")
    first, last, step = parts
    steps = round((last - first) / step)
    if abs(first + steps * step - last) > 1e-6 * last:
        raise UserError(f"{source}: steps of {step:g} from {first:g} do not end at {last:g}")
    return tuple(np.linspace(first, last, steps + 1).round(6).tolist())


def _check(values: tuple[float, ...], source: str) -> None:
    if not values:
        raise UserError(f"{source}: holds no wavelength")
    for nm in values:
        if 0 < nm < 20:
            raise UserError(f"{source}: {nm:g} looks like micrometres; give nanometres ({1000 * nm:g})")
        if not SHORTEST <= nm <= LONGEST:
            raise UserError(f"{source}: {nm:g} nm is outside {SHORTEST:g}-{LONGEST:g} nm")
    for before, after in itertools.pairwise(values):
        if after <= before:
            raise UserError(f"{source}: {after:g} follows {before:g}; give each band once, in increasing order")


# ------------------------------------------------------------------------------------------------------------- colour

VISIBLE = (380.0, 730.0)  # nm
PRIMARIES = (610.0, 550.0, 460.0)  # nm of red, green and blue if the bands do not cover the visible range
XYZ_TO_SRGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
D65 = np.array([0.9505, 1.0, 1.0890])  # white point of sRGB (IEC 61966-2-1)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear sRGB


def to_rgb(cube: np.ndarray, wavelengths: Sequence[float], high: float | None = None) -> np.ndarray:
    """sRGB picture (H, W, 3) uint8 of a cube (C, H, W) of reflectances in any unit; zero is black.

    `high`: reflectance of white (default: `white_level` of the cube).
    """
    high = white_level(cube, wavelengths) if high is None else high
    linear = np.clip(_linear_rgb(cube, rgb_weights(wavelengths)) / high, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8).transpose(1, 2, 0)


def white_level(cube: np.ndarray, wavelengths: Sequence[float]) -> float:
    """99.5th percentile of the luminance of a cube (C, H, W), in its unit; 1 for an all-black cube."""
    level = float(np.percentile(_linear_rgb(cube, LUMINANCE[None] @ rgb_weights(wavelengths)), 99.5))
    return level if level > 0 else 1.0


def _linear_rgb(cube: np.ndarray, weights: np.ndarray) -> np.ndarray:
    bands, height, width = cube.shape
    return (weights.astype(np.float32) @ cube.reshape(bands, -1)).reshape(-1, height, width)


def rgb_weights(wavelengths: Sequence[float]) -> np.ndarray:
    """Weights (3, C) from a spectrum to linear sRGB; each row sums to 1, so that flat spectra are neutral.

    With visible bands (380-730 nm) in each of blue, green and red: trapezoidal integration over the CIE 1931
    colour-matching functions, scaled so that a flat spectrum is white for any bands. Otherwise the visible bands
    nearest to `PRIMARIES`, and without visible bands the mean of all as grey. `colours` describes the result.
    """
    nm = np.asarray(wavelengths, dtype=float)
    visible = np.flatnonzero((nm >= VISIBLE[0]) & (nm <= VISIBLE[1]))
    weights = np.zeros((3, len(nm)))
    if not len(visible):
        return weights + 1 / len(nm)
    seen = nm[visible]
    if len(np.unique(np.digitize(seen, (500, 600)))) == 3:
        steps = np.diff(seen)
        widths = (np.append(steps, 0) + np.append(0, steps)) / 2
        xyz = colour_matching(seen) * widths
        weights[:, visible] = XYZ_TO_SRGB @ (D65[:, None] * xyz / xyz.sum(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)  # the matrix is rounded to 1e-4
    nearest = visible[np.abs(seen - np.array(PRIMARIES)[:, None]).argmin(axis=1)]
    weights[range(3), nearest] = 1
    return weights


def colours(wavelengths: Sequence[float]) -> str:
    """Description of the colours of `to_rgb` for these bands (nm), for captions."""
    taken = [np.flatnonzero(row) for row in rgb_weights(wavelengths)]
    if not any(VISIBLE[0] <= nm <= VISIBLE[1] for nm in wavelengths):
        return "in grey, the mean of all bands, as none is visible"
    if all(len(bands) == 1 for bands in taken):
        red, green, blue = (f"{wavelengths[bands[0]]:g}" for bands in taken)
        return f"in false colour, with the bands at {red}, {green} and {blue} nm as red, green and blue"
    return "in true colour"


def colour_matching(nm: np.ndarray) -> np.ndarray:
    """CIE 1931 2° colour-matching functions x̄, ȳ, z̄ at `nm` (N,): (3, N).

    Multi-lobe fit of Wyman, Sloan and Shirley (2013), "Simple Analytic Approximations to the CIE XYZ Color Matching
    Functions", JCGT 2(2).
    """

    def lobe(height: float, centre: float, left: float, right: float) -> np.ndarray:
        return height * np.exp(-0.5 * ((nm - centre) / np.where(nm < centre, left, right)) ** 2)

    x = lobe(1.056, 599.8, 37.9, 31.0) + lobe(0.362, 442.0, 16.0, 26.7) + lobe(-0.065, 501.1, 20.4, 26.2)
    y = lobe(0.821, 568.8, 46.9, 40.5) + lobe(0.286, 530.9, 16.3, 31.1)
    z = lobe(1.217, 437.0, 11.8, 36.0) + lobe(0.681, 459.0, 26.0, 13.8)
    return np.stack([x, y, z])
