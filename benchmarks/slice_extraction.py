"""Volumes per minute: extract_slices.py on all cores against a plain implementation with nibabel and SciPy.

    python benchmarks/slice_extraction.py

Target: at least 2 times as many. The volumes are synthetic, 512×512×120 int16 in .nii.gz with noise: an ellipse of
tissue, lungs, a spine. Both read, reorient, find the lungs, and extract 32 slices of 224 px in three windows.
"""

import io
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ct_multilabel")]

import cv2
import nibabel as nib
import numpy as np
from results import CPU, Result, show
from scipy import ndimage

from ct.volumes import WINDOWS, load_volume, slice_stack, window

TARGET, VOLUMES, SHAPE, SPACING = 2, 8, (512, 512, 120), (0.75, 0.75, 2.5)
OURS = "stored int16 to one float32 copy; lungs on a 4 mm copy; 32 slices cut and area-averaged by cv2; all cores"
THEIRS = "as_closest_canonical, get_fdata; ndimage.label at full resolution; ndimage.zoom of 32 slices; one process"


def draw(seed: int) -> np.ndarray:
    """HU int16 (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(SHAPE[:2], SPACING, strict=False)), indexing="ij")
    hu = np.empty(SHAPE, np.int16)
    for k in range(SHAPE[2]):
        z = (k - SHAPE[2] / 2) * SPACING[2]
        picture = np.where((x / 165) ** 2 + (y / 110) ** 2 < 1, 40.0, -1000.0)
        for side in (-75, 75):
            picture[((x - side) / 55) ** 2 + (y / 75) ** 2 + (z / 130) ** 2 < 1] = -850
        picture[x**2 + (y - 80) ** 2 < 18**2] = 400
        hu[..., k] = picture + ndimage.gaussian_filter(rng.normal(0, 60, picture.shape), 0.7)
    return hu.clip(-1024, 3071)


def plain(file: Path, slices: int = 32, size: int = 224, field_mm: float = 360.0) -> np.ndarray:
    """The same steps with nibabel and scipy: uint8 (slices, 3, size, size)."""
    image = nib.as_closest_canonical(nib.load(file))
    hu = image.get_fdata()
    side = image.header.get_zooms()
    parts, _ = ndimage.label(hu < -400)
    border = np.unique(np.concatenate([parts[0].ravel(), parts[-1].ravel(), parts[:, 0].ravel(), parts[:, -1].ravel()]))
    sizes = np.bincount(parts.ravel())
    sizes[border] = sizes[0] = 0
    levels = np.flatnonzero(np.isin(parts, np.flatnonzero(sizes > 0.15 * sizes.max())).any(axis=(0, 1)))
    body = np.argwhere((hu[..., levels[0] : levels[-1]] > -400).any(axis=2))
    middle = body.min(axis=0) / 2 + body.max(axis=0) / 2
    result = np.empty((slices, 3, size, size), np.uint8)
    zoom = [size / (field_mm / s) for s in side[:2]]
    for row, level in enumerate(np.linspace(levels[0], levels[-1], slices).round().astype(int)):
        half = [int(field_mm / s / 2) for s in side[:2]]
        padded = np.pad(hu[..., level], [(h, h) for h in half], constant_values=-1024)
        corner = [int(m) for m in middle]
        cut = padded[corner[0] : corner[0] + 2 * half[0], corner[1] : corner[1] + 2 * half[1]]
        small = ndimage.zoom(cut, zoom, order=1)[:size, :size].T[::-1, ::-1]  # LPS order
        small = np.pad(small, [(0, size - n) for n in small.shape], mode="edge")
        result[row] = [np.rint(window(small, *limits) * 255) for limits in WINDOWS.values()]
    return result


def make_tree(root: Path) -> list[Path]:
    """Writes a CT-RATE tree of the synthetic volumes."""
    from ct.ct_rate import LABELS, labels_file, volume_file

    names = [f"train_{number}_a_1" for number in range(VOLUMES)]
    files = [volume_file(root, name) for name in names]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
        nib.save(nib.Nifti1Image(draw(number), affine), file)
    table = labels_file(root, "train")
    table.parent.mkdir(parents=True)
    rows = [["VolumeName", *LABELS], *([f"{name}.nii.gz", *"0" * 18] for name in names)]
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return files


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def ours(file: Path) -> np.ndarray:
    return slice_stack(load_volume(file))[0]


def measure() -> list[Result]:
    import extract_slices

    cores = extract_slices.parse_args([]).workers
    with tempfile.TemporaryDirectory() as folder:
        files = make_tree(Path(folder) / "CT-RATE")
        arguments = ["--dataset_path", f"{folder}/CT-RATE", "--splits", "train", "--output"]
        with redirect_stdout(io.StringIO()):  # output of the script
            script = seconds(extract_slices.main, [*arguments, f"{folder}/slices"]) / VOLUMES
        cv2.setNumThreads(1)
        pairs = [(seconds(ours, file), seconds(plain, file)) for file in files]
        difference = np.abs(ours(files[0])[16, 1].astype(int) - plain(files[0])[16, 1]).mean()
    one, theirs = np.median(pairs, axis=0)
    details = {"ratio_of_one_process": round(float(theirs / one), 2)}
    details |= {"volumes_a_minute": {"script": round(60 / script, 1), "plain": round(60 / theirs, 1)}}
    details |= {"mean_difference_of_a_slice": round(float(difference), 1), "ours": OURS, "plain": THEIRS}
    details |= {"volumes": f"{VOLUMES} of {'×'.join(map(str, SHAPE))}, start of the processes included"}
    details["machine"] = f"{CPU}, {cores} cores"
    ratio = round(float(theirs / script), 2)
    return [Result("volumes against nibabel and SciPy", ratio, f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
