"""Training step of the masked autoencoder with `--decoder cross` against the full decoder: mae_medium.

    python benchmarks/mae_decoder.py

A step is forward, loss, backward and AdamW update on cubes of 500×500 px and 30 bands. The full decoder has
self-attention among all 2400 tokens; the cross decoder decodes a quarter of the columns, whose tokens attend to the
visible ones. Its loss covers these columns only: part of the saving, and fewer tokens to learn from per step. Steps of
both alternate, on a CPU in one thread, so that other load on the machine affects both alike. Target: at least 1.8 times
faster.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, PRECISION, now, one_thread
from results import Result, show
from torch import Tensor, nn

from core.schedules import parameter_groups
from hsi.loss import MAESpectralLoss
from hsi.mae_spectral import VARIANTS, MAESpectral

TARGET, VARIANT = 1.8, "mae_medium"
BATCH, ROUNDS = (6, 20) if GPU else (1, 3)
one_thread()


class Training:
    """A model with its optimizer; each `step` is an update on the same cubes."""

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


def sample(batch: int) -> tuple[Tensor, Tensor]:
    """Fixed random cubes (batch, 30, 500, 500) and noise (batch, 2800) for the masks."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 30, 500, 500, generator=generator), torch.rand(batch, 2800, generator=generator)


def make_model(variant: str = VARIANT, **arguments) -> MAESpectral:
    torch.manual_seed(0)
    model = MAESpectral(**VARIANTS[variant], **arguments)
    model.set_statistics([0.5] * 30, [0.3] * 30)
    return model


def measure() -> list[Result]:
    cross, full = (Training(make_model(decoder=decoder)) for decoder in ("cross", "full"))
    for training in (cross, full):
        training.step()  # warm-up, initialises AdamW
    seconds = np.array([(cross.step(), full.step()) for _ in range(ROUNDS)])
    ratio = float(np.median(seconds[:, 1] / seconds[:, 0]))
    milliseconds = np.median(1000 * seconds, axis=0).round(1).tolist()
    details = {"model": VARIANT, "milliseconds_a_step": dict(zip(("cross", "full"), milliseconds, strict=True))}
    details |= {"decode_ratio": cross.model.arguments["decode_ratio"], "batch": BATCH, "steps": ROUNDS}
    details |= {"precision": PRECISION, "machine": MACHINE, "threads": torch.get_num_threads()}
    return [Result("decoder cross against full", round(ratio, 2), f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
