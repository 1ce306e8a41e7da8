"""Device selection by Accelerate."""

import os

import torch
from accelerate import Accelerator


def has_accelerator() -> bool:
    """True if an accelerator such as a GPU is available and not disabled by `accelerate launch --cpu`."""
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return torch.accelerator.is_available() and not forced_cpu


def make_accelerator(**options) -> Accelerator:
    """Accelerator with `options`, also for several processes on a machine without GPU.

    Without `cpu=True`, each process that `accelerate launch --multi_gpu` or `torchrun` starts on a CPU machine would
    train on its own and write to the same folder.
    """
    return Accelerator(cpu=not has_accelerator(), **options)
