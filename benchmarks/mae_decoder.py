"""A training step of the masked autoencoder with `--decoder cross` against one with the full decoder: mae_medium.

    python benchmarks/mae_decoder.py

A step is forward, loss, backward and AdamW update on cubes of 500×500 px and 30 bands. The full decoder lets all 2400
tokens attend to each other; the other decodes a quarter of the columns, whose tokens attend to the visible ones. Its
loss is of these columns alone: a part of what it saves, and it learns from fewer tokens a step. Steps of both are made
in turn, and on a CPU in one thread, so that a machine that others use as well treats both alike. Target: at least 1.8
times faster.
"""

import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import numpy as np
import torch
from torch import Tensor, nn

from core.schedules import parameter_groups
from mae_spectral import VARIANTS, MAESpectral
from mae_spectral_loss import MAESpectralLoss

TARGET, VARIANT = 1.8, "mae_medium"
GPU = torch.cuda.is_available()
BATCH, ROUNDS = (6, 20) if GPU else (1, 3)
DEVICE = torch.device("cuda" if GPU else "cpu")
MACHINE = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, CPU"
PRECISION = "bf16" if GPU else "fp32"
if not GPU:  # more threads wait for the one whose core another job has just taken: steps of 4 s took 19 s
    torch.set_num_threads(1)


class Training:
    """A model with its optimizer; every `step` is one update on the same cubes."""

    def __init__(self, model: nn.Module):
        self.model = model.to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 1e-6, 0.05))
        self.criterion = MAESpectralLoss([0.5] * 30, [0.3] * 30, 0, 1).to(DEVICE)
        self.cube, self.noise = (x.to(DEVICE) for x in sample(BATCH))
        self.foreground = torch.ones(BATCH, 500, 500, dtype=torch.bool, device=DEVICE)

    def step(self) -> float:
        """Seconds of one step."""
        start = now()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            prediction = self.model(self.cube, self.noise)
        loss, _ = self.criterion(prediction, self.foreground)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now() - start


def now() -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def sample(batch: int) -> tuple[Tensor, Tensor]:
    """Cubes (batch, 30, 500, 500) and noise for the masks, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 30, 500, 500, generator=generator), torch.rand(batch, 2800, generator=generator)


def make_model(variant: str = VARIANT, **arguments) -> MAESpectral:
    torch.manual_seed(0)
    model = MAESpectral(**VARIANTS[variant], **arguments)
    model.set_statistics([0.5] * 30, [0.3] * 30)
    return model


def main() -> dict:
    cross, full = (Training(make_model(decoder=decoder)) for decoder in ("cross", "full"))
    for training in (cross, full):
        training.step()  # warms up, and gives AdamW its state
    seconds = np.array([(cross.step(), full.step()) for _ in range(ROUNDS)])
    ratio = float(np.median(seconds[:, 1] / seconds[:, 0]))
    milliseconds = np.median(1000 * seconds, axis=0).round(1).tolist()
    result = {"benchmark": "mae_decoder", "ratio": round(ratio, 2), "target": f">= {TARGET}", "model": VARIANT}
    result |= {"milliseconds_a_step": dict(zip(("cross", "full"), milliseconds, strict=True))}
    result |= {"decode_ratio": cross.model.arguments["decode_ratio"], "batch": BATCH, "steps": ROUNDS}
    result |= {"precision": PRECISION, "machine": MACHINE, "threads": torch.get_num_threads()}
    return result | {"met": ratio >= TARGET}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
