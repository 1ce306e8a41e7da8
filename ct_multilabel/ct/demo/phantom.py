"""One synthetic chest CT with known findings, as an array or a NIfTI file: drawn by formulas, there is no patient."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter1d

from ct.demo.anatomy import FAT, LEFT, MUSCLE, RIGHT, Canvas, paint_anatomy, paint_lung_vessels, sample_chest
from ct.demo.findings import BEFORE_VESSELS, BEHIND_VESSELS
from ct.labels import LABELS


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


@dataclass(frozen=True)
class Phantom:
    """One volume: what it shows, and how its file holds it."""

    findings: tuple[str, ...] | None  # names of LABELS; None: no chest, but two thighs
    stream: tuple[int, ...]  # seed of anatomy and findings
    scan: Scan = Scan()
    orientation: str = "LPS"  # where the axes of the file point to
    intercept: int | None = None  # RescaleIntercept of a volume in version 1; None: the file holds HU


def draw(
    findings: Collection[str], rng: np.random.Generator, scan: Scan = Scan()
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """HU int16 (Z, Y, X) of a chest with these findings (names of LABELS), and mm per voxel (z, y, x).

    Slices run from feet to head, rows from front to back, columns from the patient's right to the left: LPS, so that a
    slice looks as on a reading screen. Anatomy and each finding take their random numbers from streams of their own:
    the same `rng` state draws the same patient with and without a finding, and on whatever grid.
    """
    if unknown := set(findings) - set(LABELS):
        raise ValueError(f"{sorted(unknown)} are no findings; the names are those of ct.labels.LABELS")
    anatomy, texture, *streams = rng.integers(2**63, size=2 + len(LABELS))
    chest = sample_chest(np.random.default_rng(anatomy), findings)
    canvas = Canvas(scan.shape, scan.spacing, scan.centre, scan.turn)
    paint_anatomy(canvas, chest, np.random.default_rng(texture))

    def paint(painters: dict[str, Callable]) -> None:
        for label in painters:
            if label in findings:
                painters[label](canvas, chest, np.random.default_rng(streams[LABELS.index(label)]))

    paint(BEHIND_VESSELS)
    paint_lung_vessels(canvas, chest)
    paint(BEFORE_VESSELS)
    return measured(canvas, scan), scan.spacing


def draw_thighs(rng: np.random.Generator, scan: Scan = Scan()) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Another part of the body, for the lists of volumes that show no chest: two thighs; as `draw`."""
    canvas = Canvas(scan.shape, scan.spacing, scan.centre, scan.turn)
    radius, length = rng.uniform(70, 78), 1e3
    for side in (RIGHT, LEFT):
        centre = np.array([side * 74, 10, 0])
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


def write_phantom(path: Path, phantom: Phantom) -> None:
    """Draws a phantom and writes it as NIfTI."""
    rng = np.random.default_rng(phantom.stream)
    if phantom.findings is None:
        hu, _ = draw_thighs(rng, phantom.scan)
    else:
        hu, _ = draw(phantom.findings, rng, phantom.scan)
    image = nifti(hu, phantom.scan, phantom.orientation)
    if phantom.intercept is not None:
        image = stored_without_hu(image, phantom.intercept)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def nifti(hu: np.ndarray, scan: Scan, orientation: str) -> nib.Nifti1Image:
    """HU (Z, Y, X) in LPS as an image whose axes point to `orientation` (LPS, RAS …); its affine, from voxels to mm in
    RAS as NIfTI has it, puts the origin into the middle of the body."""
    spacing, centre = np.array(scan.spacing[::-1]), np.array(scan.centre[::-1])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = centre - (np.array(hu.shape[::-1]) - 1) / 2 * spacing
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine)
    axes = nib.orientations.axcodes2ornt(orientation)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes))


def stored_without_hu(image: nib.Nifti1Image, intercept: int) -> nib.Nifti1Image:
    """The image as version 1 of CT-RATE has it: values are HU - RescaleIntercept, and the header has a slope and an
    intercept that mean nothing."""
    image = nib.Nifti1Image((np.asarray(image.dataobj) - intercept).astype(np.int16), image.affine)
    image.header.set_slope_inter(2.0, -512.0)
    return image
