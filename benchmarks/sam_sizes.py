"""Images per second of SAM-B's encoder with smaller inputs than 1024×1024 px.

    python benchmarks/sam_sizes.py

Random weights, no gradients; crops of 128×128 px, which the encoder enlarges as in ear_teacher. The sizes alternate, on
a CPU in one thread, so that other load on the machine affects all alike. Targets: at least 6 times more at 448 px and
25 times more at 224 px, with 6.6 and 27 times fewer floating-point operations.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ear_teacher")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, PRECISION, now, one_thread
from results import Result, show

from ear.sam_encoder import SamEncoder

SIZES, TARGETS = (1024, 672, 448, 224), {448: 6, 224: 25}
BATCH, ROUNDS = (8, 20) if GPU else (1, 3)
one_thread()


@torch.no_grad()
def seconds(encoder: SamEncoder, crops: torch.Tensor) -> float:
    start = now()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
        encoder(crops)
    return now() - start


def measure() -> list[Result]:
    torch.manual_seed(0)
    encoders = [SamEncoder("base", sam_image_size=size).to(DEVICE).eval() for size in SIZES]
    crops = torch.rand(BATCH, 3, 128, 128, device=DEVICE) * 2 - 1
    for encoder in encoders:
        seconds(encoder, crops)  # warm-up
    times = np.array([[seconds(encoder, crops) for encoder in encoders] for _ in range(ROUNDS)])  # (rounds, sizes)
    ratios = dict(zip(SIZES, np.median(times[:, :1] / times, axis=0).round(2).tolist(), strict=True))
    rates = dict(zip(SIZES, (BATCH / np.median(times, axis=0)).round(3).tolist(), strict=True))
    details = {"ratios": ratios, "pictures_a_second": rates, "batch": BATCH, "rounds": ROUNDS}
    details |= {"precision": PRECISION, "machine": MACHINE, "threads": torch.get_num_threads()}
    return [
        Result(f"SAM-B at {size} px against 1024", ratios[size], f">= {target}", "times more pictures", details)
        for size, target in TARGETS.items()
    ]


if __name__ == "__main__":
    show(measure())
