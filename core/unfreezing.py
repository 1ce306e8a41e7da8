"""Freezing parts of a model and letting them learn later, also under DistributedDataParallel.

A frozen module gets no gradients, keeps no activations when its forward runs under `frozen_context`, and its
normalisation layers keep the statistics that they came with.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

Part = nn.Module | nn.Parameter  # a transformer's position embedding belongs to no module of its own


def set_frozen(parts: Iterable[Part], frozen: bool) -> None:
    """Turns the gradients of `parts` and of all parameters below them off or on, and modules to eval or train mode."""
    for part in parts:
        part.requires_grad_(not frozen)
        if isinstance(part, nn.Module):
            part.train(not frozen)


def is_frozen(module: nn.Module) -> bool:
    """True where the module has parameters and none of them takes a gradient."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


def frozen_context(module: nn.Module) -> AbstractContextManager:
    """`torch.no_grad()` for a frozen module, otherwise nothing: `with frozen_context(backbone): x = backbone(x)`."""
    return torch.no_grad() if is_frozen(module) else nullcontext()


class UnfreezingSchedule:
    """Which modules and parameters learn from which epoch on.

    `stages` is a list of (first epoch, parts): the parts are frozen before that epoch and learn from it on.
    What no stage names learns from the start. For example, head first, the upper half at 20, everything at 40:

        UnfreezingSchedule([(20, blocks[6:]), (40, [*blocks[:6], embedding])])

    Give it to `Run.prepare`, which wraps the model while everything is still trainable (DistributedDataParallel
    registers only parameters that take gradients then; freezing first makes ranks diverge silently after the
    unfreeze) and calls `apply` at the start of every epoch.
    """

    def __init__(self, stages: Sequence[tuple[int, Iterable[Part]]]):
        self.stages = [(epoch, list(parts)) for epoch, parts in stages]
        parameters = (_parameters(part) for _, parts in self.stages for part in parts)
        named = [id(parameter) for below in parameters for parameter in below]
        if len(named) != len(set(named)):
            raise ValueError("a parameter stands in two stages")

    def apply(self, epoch: int) -> None:
        """Freezes and unfreezes for `epoch`. To be called after `model.train()`, which would wake frozen BatchNorm."""
        for first_epoch, parts in self.stages:
            set_frozen(parts, frozen=epoch < first_epoch)


def _parameters(part: Part) -> Iterable[nn.Parameter]:
    return part.parameters() if isinstance(part, nn.Module) else [part]
