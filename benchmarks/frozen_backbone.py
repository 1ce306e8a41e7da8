"""A training step of the CT classifier with its backbone frozen against one that trains it all: time and memory.

    python benchmarks/frozen_backbone.py

A step is forward, loss, backward and AdamW update of ResNet-50 with SE attention on slices of 224×224 px. Steps of
both are made in turn, so that a machine that others use as well treats both alike. Targets: at least 2 times faster,
at most 0.6 of the memory. On a GPU the memory is the peak that torch allocates, in steps of its own; on the CPU, where
torch keeps no such record, it is counted: weights, gradients, state of AdamW, and the tensors kept for the backward
pass, each storage once.
"""

import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ct_multilabel")]

import numpy as np
import torch

from core.losses.classification import AsymmetricLoss
from core.schedules import parameter_groups
from core.unfreezing import set_frozen
from slice_classifier import SliceClassifier

FASTER, MEMORY = 2, 0.6  # targets
GPU = torch.cuda.is_available()
BATCH, ROUNDS = (64, 30) if GPU else (8, 8)
DEVICE = torch.device("cuda" if GPU else "cpu")


class Training:
    """A model with its optimizer; every `step` is one update on the same batch."""

    def __init__(self, frozen: bool):
        torch.manual_seed(0)
        self.model = SliceClassifier("resnet50", "se").to(DEVICE).train()
        set_frozen([self.model.backbone], frozen)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 2e-4, 1e-4))
        self.slices = torch.randint(0, 256, (BATCH, 1, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
        self.labels = torch.randint(0, 2, (BATCH, 18), device=DEVICE).float()
        self.criterion = AsymmetricLoss()

    def loss(self) -> torch.Tensor:
        return self.criterion(self.model(self.slices)["slices"][:, 0], self.labels)

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def counted_bytes(self) -> int:
        """Weights, gradients, state of AdamW, and what the backward pass keeps; after at least one step."""
        kept: dict[int, int] = {}

        def keep(*tensors: torch.Tensor) -> None:
            kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors})

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            keep(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()  # holds them alive: no address is used twice
        keep(*self.model.parameters(), *self.model.buffers())
        keep(*(value for state in self.optimizer.state.values() for value in state.values()))
        loss.backward()
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        self.optimizer.zero_grad()
        return sum(kept.values()) + gradients


def peak_bytes(frozen: bool) -> int:
    """The most that torch allocates on the GPU while nothing but this training is there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training = Training(frozen)
    for _ in range(3):
        training.step()
    return torch.cuda.max_memory_allocated() - before


def main() -> dict:
    frozen, full = Training(True), Training(False)
    for training in (frozen, full):
        training.step()  # warms up, and gives AdamW its state
    seconds = np.array([(frozen.step(), full.step()) for _ in range(ROUNDS)])
    if GPU:
        small, large = peak_bytes(True), peak_bytes(False)
    else:
        small, large = frozen.counted_bytes(), full.counted_bytes()
    faster, memory = float(np.median(seconds[:, 1] / seconds[:, 0])), small / large
    result = {"benchmark": "frozen_backbone", "ratio": {"time": round(faster, 2), "memory": round(memory, 3)}}
    result |= {"target": {"time": f">= {FASTER}", "memory": f"<= {MEMORY}"}}
    milliseconds = np.median(1000 * seconds, axis=0).round(1)
    result["milliseconds_a_step"] = {"frozen": milliseconds[0], "full": milliseconds[1]}
    result["megabytes"] = {"frozen": round(small / 1e6), "full": round(large / 1e6)}
    result["memory_is"] = "peak allocated by torch" if GPU else "weights, gradients, AdamW, kept for backward; counted"
    result |= {"batch": BATCH, "steps": ROUNDS, "threads": torch.get_num_threads()}
    machine = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, CPU"
    return result | {"machine": machine, "met": faster >= FASTER and memory <= MEMORY}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
