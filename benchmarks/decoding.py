"""Decoding 1,000 heatmaps: `decode_dark` in one call against a NumPy implementation that loops over the heatmaps.

    python benchmarks/decoding.py

Target: at least 20 times faster. Both give the same points (the largest difference is printed).
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "cephalometric")]

import numpy as np
import torch
from results import CPU, Result, show
from scipy.ndimage import gaussian_filter

from ceph.heatmaps import decode_dark, encode_heatmaps

TARGET = 20


def decode_one(heatmap: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """DARK for one heatmap (H, W): argmax, smoothing of the whole map, logarithm, Taylor step."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    smooth = gaussian_filter(heatmap, sigma, mode="constant", radius=radius)
    log = np.log(np.maximum(smooth * heatmap.max() / smooth.max(), 1e-10))
    gradient = np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
    dxx = (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2]) / 4
    dyy = (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x]) / 4
    dxy = (log[y + 1, x + 1] - log[y + 1, x - 1] - log[y - 1, x + 1] + log[y - 1, x - 1]) / 4
    return np.array([x, y]) - np.linalg.solve(np.array([[dxx, dxy], [dxy, dyy]]), gradient)


def measure() -> list[Result]:
    torch.manual_seed(0)
    heatmaps = encode_heatmaps(torch.rand(1, 1000, 2) * 96 + 16, 128, 2.0)
    maps = heatmaps[0].numpy()
    ratios, differences = [], []
    for _ in range(5):
        start = time.perf_counter()
        ours, _ = decode_dark(heatmaps, 2.0)
        middle = time.perf_counter()
        theirs = np.stack([decode_one(heatmap, 2.0, 5) for heatmap in maps])
        ratios.append((time.perf_counter() - middle) / (middle - start))
        differences.append(np.abs(ours[0].numpy() - theirs).max())
    details = {"largest_difference_px": float(max(differences)), "machine": CPU, "threads": torch.get_num_threads()}
    ratio = round(float(np.median(ratios)), 1)
    return [Result("1,000 heatmaps against NumPy", ratio, f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
