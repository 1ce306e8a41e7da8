"""Where a script computes: Accelerate on whatever there is."""

import os

import torch
from accelerate import Accelerator


def has_accelerator() -> bool:
    """Whether there is a GPU or its like, and `accelerate launch --cpu` has not ruled it out."""
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return torch.accelerator.is_available() and not forced_cpu


def make_accelerator(**options) -> Accelerator:
    """An Accelerator with `options` that also knows its fellow processes where there is no GPU.

    Left to itself, each of two processes that `accelerate launch --multi_gpu` or `torchrun` start on a CPU machine
    takes itself for the only one: both would train alone and write to one folder. Said outright, they find each other.
    """
    return Accelerator(cpu=not has_accelerator(), **options)
