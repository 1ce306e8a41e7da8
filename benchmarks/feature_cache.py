"""Frozen training of the implant regressor with cached features against features computed in every step.

    python benchmarks/feature_cache.py

Steps of both alternate on the same 224-px crops: forward, loss, backward and AdamW update of the head, with or without
the features of three frozen ViTs (small on a CPU, base on a GPU). Target: at least 10 times faster. Reading and
cropping of pictures, which the cache also saves, is not counted.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "implant")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, now
from results import Result, show

from core.schedules import parameter_groups
from implants.dual_embedding import DualEmbeddingRegressor
from implants.loss import DimensionLoss

FASTER = 10  # target
SIZE, BATCH, ROUNDS = ("base", 64, 30) if GPU else ("small", 8, 8)


def step(model: DualEmbeddingRegressor, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """Seconds of one update."""
    start = now()
    DimensionLoss()(model(batch), batch, model)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    return now() - start


def measure() -> list[Result]:
    torch.manual_seed(0)
    classes = [str(number) for number in range(20)]
    classifier = {"size": SIZE, "classes": classes}
    model = DualEmbeddingRegressor({"size": SIZE}, classifier, classifier, "cross", scale_features=6).to(DEVICE).train()
    model.unfreezing(1, 2).apply(0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-6, 0.01))
    pictures = {
        "image": torch.rand(BATCH, 1, 224, 224, device=DEVICE),
        "scale": torch.randn(BATCH, 6, device=DEVICE),
        "target": torch.rand(BATCH, 2, device=DEVICE),
    }
    features = {**pictures, "features": model.encode(pictures["image"])}
    for batch in (pictures, features):
        step(model, optimizer, batch)
    seconds = np.array([[step(model, optimizer, batch) for batch in (pictures, features)] for _ in range(ROUNDS)])
    ratio = float(np.median(seconds[:, 0] / seconds[:, 1]))
    details = {
        "seconds_a_step": dict(zip(("computed", "cached"), np.median(seconds, axis=0).round(4).tolist(), strict=True)),
        "vit": SIZE,
        "batch": BATCH,
        "machine": MACHINE,
        "threads": torch.get_num_threads(),
    }
    return [Result("cached against computed features", round(ratio, 1), f">= {FASTER}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
