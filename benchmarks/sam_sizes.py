"""SAM-B's encoder at smaller inputs against 1024×1024 px: pictures a second.

    python benchmarks/sam_sizes.py

Random weights, no gradients; crops of 128×128 px, which the encoder enlarges, as it gets them in ear_teacher. The sizes
are run in turn, and on a CPU in one thread, so that a machine that others use as well treats them alike. Targets: at
least 6 times more at 448 px and 25 times more at 224 px, where floating-point operations are 6.6 and 27 times fewer.
"""

import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ear_teacher")]

import numpy as np
import torch

from sam_encoder import SamEncoder

SIZES, TARGETS = (1024, 672, 448, 224), {448: 6, 224: 25}
GPU = torch.cuda.is_available()
BATCH, ROUNDS = (8, 20) if GPU else (1, 3)
DEVICE = torch.device("cuda" if GPU else "cpu")
MACHINE = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, CPU"
PRECISION = "bf16" if GPU else "fp32"
if not GPU:  # more threads wait for the one whose core another job has just taken
    torch.set_num_threads(1)


def now() -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def seconds(encoder: SamEncoder, crops: torch.Tensor) -> float:
    start = now()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
        encoder(crops)
    return now() - start


def main() -> dict:
    torch.manual_seed(0)
    encoders = [SamEncoder("base", sam_image_size=size).to(DEVICE).eval() for size in SIZES]
    crops = torch.rand(BATCH, 3, 128, 128, device=DEVICE) * 2 - 1
    for encoder in encoders:
        seconds(encoder, crops)  # warms up
    times = np.array([[seconds(encoder, crops) for encoder in encoders] for _ in range(ROUNDS)])  # (rounds, sizes)
    ratios = dict(zip(SIZES, np.median(times[:, :1] / times, axis=0).round(2).tolist(), strict=True))
    rates = dict(zip(SIZES, (BATCH / np.median(times, axis=0)).round(3).tolist(), strict=True))
    result = {"benchmark": "sam_sizes", "ratio": {size: ratios[size] for size in SIZES[1:]}}
    result |= {"target": {size: f">= {target}" for size, target in TARGETS.items()}, "pictures_a_second": rates}
    result |= {"batch": BATCH, "rounds": ROUNDS, "precision": PRECISION, "machine": MACHINE}
    result |= {"threads": torch.get_num_threads()}
    return result | {"met": all(ratios[size] >= target for size, target in TARGETS.items())}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
