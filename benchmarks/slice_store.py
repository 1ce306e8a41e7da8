"""Eight random slices of a volume: from the slice store against reading the NIfTI file each time.

    python benchmarks/slice_store.py

Target: at least 50 times faster. The volume is synthetic, 512×512×120 int16 in .nii.gz; its slices are only read, not
resized or windowed.
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ct_multilabel")]

import nibabel as nib
import numpy as np
from results import CPU, Result, show
from slice_extraction import SPACING, draw

from ct.store import read_slices, write_slices
from ct.volumes import load_volume, slice_stack

TARGET, SLICES, ROUNDS = 50, 8, 5


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    ratios, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        volume, store = Path(folder) / "volume.nii.gz", Path(folder) / "volume.h5"
        nib.save(nib.Nifti1Image(draw(0), np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])), volume)
        pixels, _ = slice_stack(load_volume(volume))
        write_slices(store, pixels, {})
        for _ in range(ROUNDS):
            which = rng.choice(len(pixels), SLICES, replace=False)
            start = time.perf_counter()
            for _ in range(20):
                read_slices(store, which)
            middle = time.perf_counter()
            np.asarray(nib.load(volume).dataobj)[..., which]
            ours.append((middle - start) / 20)
            ratios.append((time.perf_counter() - middle) / ours[-1])
    details = {"milliseconds": round(1000 * float(np.median(ours)), 2), "slices": SLICES}
    details["machine"] = f"{CPU}, file in cache"
    ratio = round(float(np.median(ratios)), 1)
    return [Result("slices from the store against NIfTI", ratio, f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
