"""One synthetic chest CT with known findings: a phantom drawn by formulas, no patient is behind it."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from chest_anatomy import (
    AIR, BONE, FAT, LEFT, MUSCLE, RIGHT, Canvas, paint_lung_vessels, paint_lungs, paint_mediastinum, paint_torso,
    sample_chest,
)
from chest_findings import BEFORE_VESSELS, PAINTERS
from ct_volumes import LABELS


@dataclass(frozen=True)
class Scan:
    """How a body is laid down, measured and reconstructed."""

    shape: tuple[int, int, int] = (48, 128, 128)  # slices, rows, columns
    spacing: tuple[float, float, float] = (6.0, 2.8, 2.8)  # mm (z, y, x)
    centre: tuple[float, float, float] = (-12.0, 0.0, 0.0)  # of the grid, mm (z, y, x) off the body's
    turn: float = 0.0  # of the body about its long axis, degrees
    kernel: float = 1.4  # standard deviation of the point spread in the slice, mm; less is sharper
    noise: float = 16.0  # standard deviation, HU
    seed: int = 0  # of the noise


def draw(
    findings: Collection[str], rng: np.random.Generator, scan: Scan = Scan()
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """HU int16 (Z, Y, X) of a chest with these findings (names of LABELS), and mm per voxel (z, y, x).

    Slices run from feet to head, rows from front to back, columns from the patient's right to the left: LPS, so that a
    slice looks as on a reading screen. Anatomy and each finding take their random numbers from streams of their own:
    the same `rng` state draws the same patient with and without a finding, and on whatever grid.
    """
    if unknown := set(findings) - set(LABELS):
        raise ValueError(f"{sorted(unknown)} are no findings; the names are those of ct_volumes.LABELS")
    anatomy, texture, *streams = rng.integers(2**63, size=2 + len(LABELS))
    chest = sample_chest(np.random.default_rng(anatomy), findings)
    canvas = Canvas(scan.shape, scan.spacing, scan.centre, scan.turn)
    cavity = paint_torso(canvas, chest)
    paint_lungs(canvas, chest, np.random.default_rng(texture))
    paint_mediastinum(canvas, chest, cavity)
    painters = [(label, paint) for label, paint in PAINTERS.items() if label in findings]
    for label, paint in [item for item in painters if item[0] in BEFORE_VESSELS]:
        paint(canvas, chest, np.random.default_rng(streams[LABELS.index(label)]))
    paint_lung_vessels(canvas, chest)
    for label, paint in [item for item in painters if item[0] not in BEFORE_VESSELS]:
        paint(canvas, chest, np.random.default_rng(streams[LABELS.index(label)]))
    return measured(canvas, scan), scan.spacing


def draw_thighs(rng: np.random.Generator, scan: Scan = Scan()) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Another part of the body, for the lists of volumes that show no chest: two thighs on a couch; as `draw`."""
    canvas = Canvas(scan.shape, scan.spacing, scan.centre, scan.turn)
    radius, length = rng.uniform(70, 78), 1e3
    for side in (RIGHT, LEFT):
        centre = np.array([side * 84, 10, 0])
        canvas.ellipsoid(centre, (radius, radius, length), FAT)
        canvas.ellipsoid(centre, (radius - 14, radius - 14, length), MUSCLE)
        canvas.ellipsoid(centre, (14, 14, length), 1100)
        canvas.ellipsoid(centre, (8, 8, length), FAT)
    return measured(canvas, scan), scan.spacing


def measured(canvas: Canvas, scan: Scan) -> np.ndarray:
    """What the scanner makes of the canvas: noise, point spread, whole HU from -1024 to 3071."""
    sigma = scan.kernel / scan.spacing[1]
    noise = np.random.default_rng(scan.seed).standard_normal(scan.shape, np.float32)
    # Smoothing takes noise away: a Gaussian of deviation s px leaves about 1 / (2 s sqrt(pi)) of it in a plane.
    noise *= scan.noise * max(1, 2 * sigma * np.pi**0.5)
    hu = canvas.hu + noise
    for axis in (1, 2):
        hu = gaussian_filter1d(hu, sigma, axis=axis, truncate=3, mode="nearest")
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
