"""A frozen epoch of the implant regressor with cached features against one that computes them again.

    python benchmarks/feature_cache.py

Steps of both are made in turn on the same 224-px crops: forward, loss, backward and AdamW update of the head; three
frozen ViTs (small on a CPU, base on a GPU) compute features in one and not in the other. Target: at least 10 times
faster. Reading and cutting the pictures, which the cache spares too, is not counted.
"""

import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "implant")]

import numpy as np
import torch

from core.schedules import parameter_groups
from dimension_loss import DimensionLoss
from dual_embedding import DualEmbeddingRegressor

FASTER = 10  # target
GPU = torch.cuda.is_available()
SIZE, BATCH, ROUNDS = ("base", 64, 30) if GPU else ("small", 8, 8)
DEVICE = torch.device("cuda" if GPU else "cpu")


def step(model: DualEmbeddingRegressor, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """Seconds of one update."""
    start = time.perf_counter()
    DimensionLoss()(model(batch), batch, model)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> dict:
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
    return {
        "benchmark": "feature_cache",
        "ratio": round(ratio, 1),
        "target": f">= {FASTER}",
        "seconds_a_step": dict(zip(("computed", "cached"), np.median(seconds, axis=0).round(4).tolist(), strict=True)),
        "vit": SIZE,
        "batch": BATCH,
        "machine": f"{platform.machine()}, {torch.cuda.get_device_name() if GPU else 'CPU'}",
        "threads": torch.get_num_threads(),
        "met": ratio >= FASTER,
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
