"""Freezing and gradual unfreezing of parts of a model, also under DistributedDataParallel.

A frozen module has no gradients, stores no activations under `frozen_context`, and keeps the running statistics of its
normalisation layers.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

Part = nn.Module | nn.Parameter  # e.g. a position embedding is a parameter without its own module


def set_frozen(parts: Iterable[Part], frozen: bool) -> None:
    """Disables or enables the gradients of `parts` and sets modules to eval or train mode, including submodules."""
    for part in parts:
        part.requires_grad_(not frozen)
        if isinstance(part, nn.Module):
            part.train(not frozen)


def is_frozen(module: nn.Module) -> bool:
    """True if the module has parameters and none of them requires a gradient."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


def frozen_context(module: nn.Module) -> AbstractContextManager:
    """`torch.no_grad()` for a frozen module, else a null context: `with frozen_context(backbone): x = backbone(x)`."""
    return torch.no_grad() if is_frozen(module) else nullcontext()


class UnfreezingSchedule:
    """Gradual unfreezing by epoch.

    `stages`: (first epoch, parts) pairs; parts are frozen before this epoch, and parts without a stage are always
    trainable. For example, only the head, from epoch 20 the upper half, from epoch 40 everything:

        UnfreezingSchedule([(20, blocks[6:]), (40, [*blocks[:6], embedding])])

    `Run.prepare` wraps the model before anything is frozen, since DistributedDataParallel registers only parameters
    with gradients (otherwise ranks diverge after unfreezing), and `Run.epochs` calls `apply` in each epoch.
    Raises ValueError for a parameter in two stages.
    """

    def __init__(self, stages: Sequence[tuple[int, Iterable[Part]]]):
        self.stages = [(epoch, list(parts)) for epoch, parts in stages]
        parameters = (_parameters(part) for _, parts in self.stages for part in parts)
        named = [id(parameter) for below in parameters for parameter in below]
        if len(named) != len(set(named)):
            raise ValueError("a parameter is in two stages")

    def apply(self, epoch: int) -> None:
        """Freezes and unfreezes for `epoch`. Call after `model.train()`, which sets frozen BatchNorm to train mode."""
        for first_epoch, parts in self.stages:
            set_frozen(parts, frozen=epoch < first_epoch)


def _parameters(part: Part) -> Iterable[nn.Parameter]:
    return part.parameters() if isinstance(part, nn.Module) else [part]
