"""Loading 20-megapixel pictures as 512×512 frames: decoded each time against the cache.

    python benchmarks/image_cache.py

Target: at least 5 times faster, for PNG and for JPEG.
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "cephalometric")]

import numpy as np
from PIL import Image
from results import CPU, Result, show

from ceph.dataset import FrameCache
from ceph.demo.film import draw_case
from core.images import read_image
from core.windows import Letterbox

TARGET, PICTURES = 5, 4
SIZE = (4472, 4472)  # 20 megapixels


def measure() -> list[Result]:
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("png", "jpg"):
            files = [Path(folder) / f"{number}.{suffix}" for number in range(PICTURES)]
            for number, file in enumerate(files):
                drawn = Image.fromarray(draw_case(0, number).image).convert("L")
                drawn.resize(SIZE, Image.Resampling.BICUBIC).save(file)
            cache = FrameCache(Path(folder) / "cache", (512, 512))
            for file in files:
                cache.load(file)
            rounds = []
            for _ in range(5):
                start = time.perf_counter()
                decoded = [Letterbox(SIZE, (512, 512)).draw(read_image(file).pixels) for file in files]
                middle = time.perf_counter()
                cached = [cache.load(file) for file in files]
                rounds.append((middle - start) / (time.perf_counter() - middle))
                assert all(np.array_equal(a, b) for a, b in zip(decoded, cached, strict=True))
            ratios[suffix] = round(float(np.median(rounds)), 1)
    return [
        Result(f"cached against decoded {suffix}", ratio, f">= {TARGET}", "times faster", {"machine": CPU})
        for suffix, ratio in ratios.items()
    ]


if __name__ == "__main__":
    show(measure())
