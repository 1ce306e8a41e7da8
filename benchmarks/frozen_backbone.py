"""Training step of the CT classifier with a frozen backbone against full training: time and memory.

    python benchmarks/frozen_backbone.py

A step is forward, loss, backward and AdamW update of ResNet-50 with SE attention on slices of 224×224 px. Steps of both
alternate, so that other load on the machine affects both alike. Targets: at least 2 times faster, at most 0.6 of the
memory. Memory: peak allocated by torch on a GPU, in separate steps; on a CPU, for which torch has no record, the sum of
weights, gradients, AdamW state, and tensors kept for the backward pass, each storage once.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ct_multilabel")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, now
from results import Result, show

from core.losses.classification import AsymmetricLoss
from core.schedules import parameter_groups
from core.unfreezing import set_frozen
from ct.slice_classifier import SliceClassifier

FASTER, MEMORY = 2, 0.6  # targets
BATCH, ROUNDS = (64, 30) if GPU else (8, 8)


class Training:
    """A model with its optimizer; each `step` is an update on the same batch."""

    def __init__(self, frozen: bool):
        torch.manual_seed(0)
        self.model = SliceClassifier(18, "resnet50", "se").to(DEVICE).train()
        set_frozen([self.model.backbone], frozen)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 2e-4, 1e-4))
        self.slices = torch.randint(0, 256, (BATCH, 1, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
        self.labels = torch.randint(0, 2, (BATCH, 18), device=DEVICE).float()
        self.criterion = AsymmetricLoss()

    def loss(self) -> torch.Tensor:
        return self.criterion(self.model(self.slices)["slices"][:, 0], self.labels)

    def step(self) -> float:
        """Seconds of one step."""
        start = now()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now() - start

    def counted_bytes(self) -> int:
        """Bytes of weights, gradients, AdamW state, and tensors kept for the backward pass; after at least one step."""
        kept: dict[int, int] = {}

        def keep(*tensors: torch.Tensor) -> None:
            kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors})

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            keep(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()  # keeps them alive: addresses are not reused
        keep(*self.model.parameters(), *self.model.buffers())
        keep(*(value for state in self.optimizer.state.values() for value in state.values()))
        loss.backward()
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        self.optimizer.zero_grad()
        return sum(kept.values()) + gradients


def peak_bytes(frozen: bool) -> int:
    """Peak memory in bytes that torch allocates on the GPU for this training."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training = Training(frozen)
    for _ in range(3):
        training.step()
    return torch.cuda.max_memory_allocated() - before


def measure() -> list[Result]:
    frozen, full = Training(True), Training(False)
    for training in (frozen, full):
        training.step()  # warm-up, initialises AdamW
    seconds = np.array([(frozen.step(), full.step()) for _ in range(ROUNDS)])
    if GPU:
        small, large = peak_bytes(True), peak_bytes(False)
    else:
        small, large = frozen.counted_bytes(), full.counted_bytes()
    faster, memory = float(np.median(seconds[:, 1] / seconds[:, 0])), small / large
    milliseconds = np.median(1000 * seconds, axis=0).round(1).tolist()
    details = {"milliseconds_a_step": dict(zip(("frozen", "full"), milliseconds, strict=True))}
    details["megabytes"] = {"frozen": round(small / 1e6), "full": round(large / 1e6)}
    details["memory_is"] = "peak allocated by torch" if GPU else "weights, gradients, AdamW, kept for backward; counted"
    details |= {"batch": BATCH, "steps": ROUNDS, "machine": MACHINE, "threads": torch.get_num_threads()}
    return [
        Result("step, frozen against whole", round(faster, 2), f">= {FASTER}", "times faster", details),
        Result("memory, frozen against whole", round(memory, 3), f"<= {MEMORY}", "of the memory", details),
    ]


if __name__ == "__main__":
    show(measure())
