"""Encoder on the visible fifth of the tokens against the encoder on all 2400: mae_base, 500×500 px, 30 bands.

    python benchmarks/mae_encoder.py

Same model and cubes; both start from the raw cube, and the random selection of visible tokens is included. Two ratios:
forward pass with activations kept for backward, and forward plus backward. The two alternate, on a CPU in one thread,
so that other load on the machine affects both alike. Target: at least 4 times faster for both. More than 5 is possible,
as attention grows with the square of the number of tokens.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, PRECISION, now
from mae_decoder import make_model, sample
from mae_step import take
from results import Result, show

TARGET, VARIANT = 4, "mae_base"
BATCH, ROUNDS = (6, 20) if GPU else (1, 3)


def seconds(model, cube: torch.Tensor, noise: torch.Tensor, masked: bool) -> tuple[float, float]:
    """Seconds of the forward pass, and of forward plus backward."""
    start = now()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
        tokens = model.patchify(model.normalize(cube))
        if masked:
            visible, _ = model.draw_mask(noise[:, : model.n_tokens])
            encoded = model.encoder(take(tokens, visible), visible)
        else:
            encoded = model.encoder(tokens)
    middle = now()
    encoded.float().square().mean().backward()
    end = now()
    model.zero_grad()
    return middle - start, end - start


def measure() -> list[Result]:
    model = make_model(VARIANT).to(DEVICE)
    cube, noise = (x.to(DEVICE) for x in sample(BATCH))
    for masked in (True, False):
        seconds(model, cube, noise, masked)  # warm-up
    rounds = [[seconds(model, cube, noise, masked) for masked in (True, False)] for _ in range(ROUNDS)]
    visible, everything = np.array(rounds).swapaxes(0, 1)  # (rounds, 2)
    passes = ("forward", "forward and backward")
    ratios = np.median(everything / visible, axis=0)
    details = {"model": VARIANT}
    for name, times in (("visible", visible), ("all", everything)):
        times = np.median(1000 * times, axis=0).round(1).tolist()
        details[f"milliseconds_{name}"] = dict(zip(passes, times, strict=True))
    details |= {"batch": BATCH, "rounds": ROUNDS, "precision": PRECISION, "machine": MACHINE}
    details |= {"threads": torch.get_num_threads()}
    return [
        Result(f"visible tokens against all, {name}", ratio, f">= {TARGET}", "times faster", details)
        for name, ratio in zip(passes, ratios.round(2).tolist(), strict=True)
    ]


if __name__ == "__main__":
    show(measure())
