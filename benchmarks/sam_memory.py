"""Memory of a training step of the ear VAE with frozen parts and gradient checkpointing; time at 448 and 1024 px.

    python benchmarks/sam_memory.py

Memory: tensors that the forward pass of one crop keeps for the backward pass, each storage once, without parameters and
buffers; counted, and therefore equal on all machines. Targets: gradient checkpointing at most 0.5; freezing the
embeddings in addition to six blocks at most 0.75; both relative to six frozen blocks, in the whole VAE at both sizes.
Time: forward, loss without VGG16, backward and AdamW; steps of both sizes alternate, on a CPU in one thread. Target: at
448 px at least 4 times faster than at 1024 px.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ear_teacher")]

import numpy as np
import torch
from device import DEVICE, GPU, MACHINE, PRECISION, now, one_thread
from results import Result, show

from core.schedules import parameter_groups
from ear.losses import WEIGHTS, EarVAELoss
from ear.sam_vae import EarVAE

CHECKPOINTED, FROZEN, FASTER = 0.5, 0.75, 4  # targets
BATCH, ROUNDS = (4, 10) if GPU else (1, 1)
one_thread()
FREEZE = {"freeze_layers": 6}
VARIANTS = {
    "nothing frozen": {"freeze_layers": 0},
    "6 blocks frozen": FREEZE,
    "6 blocks and embeddings frozen": FREEZE | {"freeze_embeddings": True},
    "6 blocks frozen, checkpointing": FREEZE | {"gradient_checkpointing": True},
    "6 blocks and embeddings frozen, checkpointing": FREEZE
    | {"freeze_embeddings": True, "gradient_checkpointing": True},
}


class Training:
    """A VAE with its optimizer; each `step` is an update on the same crops."""

    def __init__(self, size: int, **arguments):
        torch.manual_seed(0)
        self.model = EarVAE("base", sam_image_size=size, **arguments).to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 1e-6, 1e-4))
        weights = {name: weight for name, (weight, _) in WEIGHTS.items()} | {"perceptual": 0.0}
        self.criterion = EarVAELoss(weights)

    def loss(self, batch: int) -> torch.Tensor:
        crops = torch.zeros(batch, 3, 128, 128, device=DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            result = self.model(crops)
        return self.criterion(result, crops)[0]

    def step(self) -> float:
        """Seconds of one step."""
        start = now()
        self.loss(BATCH).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now() - start

    def kept_bytes(self) -> int:
        """Bytes that the forward pass of one crop keeps for the backward pass."""
        own = {x.untyped_storage().data_ptr() for x in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(batch=1)  # keeps them alive: addresses are not reused
        del loss
        return sum(size for place, size in kept.items() if place not in own)


def measure() -> list[Result]:
    kept = {
        size: {name: Training(size, **arguments).kept_bytes() for name, arguments in VARIANTS.items()}
        for size in (224, 448)
    }
    large, small = (Training(size, **FREEZE) for size in (1024, 448))
    for training in (large, small):
        training.step()  # warm-up, initialises AdamW
    seconds = np.array([(large.step(), small.step()) for _ in range(ROUNDS)])
    checkpointed, frozen = (
        {size: round(by_name[name] / by_name["6 blocks frozen"], 3) for size, by_name in kept.items()}
        for name in ("6 blocks frozen, checkpointing", "6 blocks and embeddings frozen")
    )
    faster = float(np.median(seconds[:, 0] / seconds[:, 1]))
    megabytes = {size: {name: round(n / 1e6, 1) for name, n in by_name.items()} for size, by_name in kept.items()}
    details = {"megabytes_a_crop": megabytes}
    details["seconds_a_step"] = dict(zip((1024, 448), np.median(seconds, axis=0).round(3).tolist(), strict=True))
    details |= {"batch": BATCH, "steps": ROUNDS, "precision": PRECISION, "machine": MACHINE}
    details |= {"threads": torch.get_num_threads()}
    results = []
    for name, ratios, target in (("checkpointing", checkpointed, CHECKPOINTED), ("embeddings frozen", frozen, FROZEN)):
        for size, ratio in ratios.items():
            results.append(Result(f"{name}, {size} px", ratio, f"<= {target}", "of the memory", details))
    faster = round(faster, 2)
    return [*results, Result("step at 448 px against 1024", faster, f">= {FASTER}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
