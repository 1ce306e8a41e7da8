"""Ten cephalometric vertical measurements from the 29 landmarks.

Lengths need a pixel size; without one they are NaN, and tables call them uncalibrated. Angles between planes are
signed, positive where the lower plane falls away to the front; the head may face either way.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ceph.landmarks import LANDMARKS
from core.errors import UserError, first_line
from core.files import read_json


@dataclass(frozen=True)
class Measurement:
    """One measurement, with the norm (mean, standard deviation) where one holds for both sexes and all ages."""

    name: str
    unit: str  # mm, °, %
    title: str
    norm: tuple[float, float] | None = None
    source: str = ""


NO_NORM = "depends on sex, age and population: give --norms"
MEASUREMENTS = (
    Measurement("N-Me", "mm", "total anterior face height", None, NO_NORM),
    Measurement("N-ANS", "mm", "upper anterior face height", None, NO_NORM),
    Measurement("ANS-Me", "mm", "lower anterior face height", None, NO_NORM),
    Measurement("ANS-Me/N-Me", "%", "lower to total anterior face height", (55, 2), "Eastman standard"),
    Measurement("S-Go", "mm", "posterior face height", None, NO_NORM),
    Measurement("S-Go/N-Me", "%", "Jarabak ratio", (63.5, 1.5), "Jarabak & Fizzell 1972, 62-65 %"),
    Measurement("SN-MP", "°", "mandibular plane to anterior skull base", (32, 5), "Steiner 1953; SD as in common use"),
    Measurement("FH-MP", "°", "FMA, mandibular plane to Frankfort plane", (25, 3), "Tweed 1954"),
    Measurement("PP-MP", "°", "mandibular plane to palatal plane", (27, 4), "Eastman standard"),
    Measurement("Ar-Go-Me", "°", "gonial angle", (130, 7), "Jarabak & Fizzell 1972"),
)
NAMES = tuple(measurement.name for measurement in MEASUREMENTS)
IS_LENGTH = np.array([measurement.unit == "mm" for measurement in MEASUREMENTS])
_INDEX = {symbol: i for i, symbol in enumerate(LANDMARKS)}


def measure(points: np.ndarray) -> np.ndarray:
    """The ten measurements (..., 10) of points (..., 29, 2): lengths in the points' unit, ratios in %, angles in °.

    NaN where a landmark is NaN.
    """

    def at(symbol: str) -> np.ndarray:
        return points[..., _INDEX[symbol], :]

    def length(a: str, b: str) -> np.ndarray:
        return np.linalg.norm(at(b) - at(a), axis=-1)

    facing = np.where(at("N")[..., 0] >= at("S")[..., 0], 1.0, -1.0)  # +1: the face looks to larger x

    def slope(back: str, front: str) -> np.ndarray:
        """Angle of a plane in degrees, positive where it falls to the front (y points down)."""
        run, fall = np.moveaxis(at(front) - at(back), -1, 0)
        return np.degrees(np.arctan2(fall, run * facing))

    def between(steeper: np.ndarray, plane: np.ndarray) -> np.ndarray:
        return (steeper - plane + 180) % 360 - 180

    up, along = at("Ar") - at("Go"), at("Me") - at("Go")
    cross = up[..., 0] * along[..., 1] - up[..., 1] * along[..., 0]
    gonial = np.degrees(np.arctan2(np.abs(cross), (up * along).sum(-1)))
    mandibular = slope("Go", "Me")
    total, lower, posterior = length("N", "Me"), length("ANS", "Me"), length("S", "Go")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [
            total,
            length("N", "ANS"),
            lower,
            100 * lower / total,
            posterior,
            100 * posterior / total,
            between(mandibular, slope("S", "N")),
            between(mandibular, slope("Po", "Or")),
            between(mandibular, slope("PNS", "ANS")),
            gonial,
        ]
    return np.stack(values, axis=-1)


def vertical_measurements(points: np.ndarray, mm_per_px: float | None) -> dict[str, float]:
    """Name -> value for points (29, 2) in native px. Lengths are in mm, or NaN without a pixel size."""
    values = measure(np.asarray(points, dtype=float))
    scale = np.where(IS_LENGTH, np.nan if mm_per_px is None else mm_per_px, 1.0)
    return dict(zip(NAMES, (values * scale).tolist(), strict=True))


def read_norms(file: Path | None = None) -> dict[str, tuple[float, float] | None]:
    """Name -> (mean, SD). A JSON file {"N-Me": [118, 6], …} overrides the built-in ones, or adds to them."""
    norms = {measurement.name: measurement.norm for measurement in MEASUREMENTS}
    if file is None:
        return norms
    try:
        given = read_json(file)
        given = {name: (float(mean), float(sd)) for name, (mean, sd) in given.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f'{file}: {first_line(error)}; norms look like {{"N-Me": [118, 6]}}') from error
    if unknown := set(given) - set(norms):
        raise UserError(f"{file}: no measurement is called {', '.join(sorted(unknown))}; they are {', '.join(NAMES)}")
    return norms | given


def assess(value: float, norm: tuple[float, float] | None) -> tuple[float, str]:
    """z-score and status: "normal" within one SD, else "low" or "high"; "uncalibrated" for an unknown length."""
    if np.isnan(value):
        return np.nan, "uncalibrated"
    if norm is None:
        return np.nan, "no norm"
    z = (value - norm[0]) / norm[1]
    return z, "normal" if abs(z) <= 1 else ("high" if z > 0 else "low")
