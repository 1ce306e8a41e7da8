"""Freezing parts of a model and letting them learn later, also under DistributedDataParallel.

A frozen module gets no gradients, keeps no activations when its forward runs under `frozen_context`, and its
normalisation layers keep the statistics that they came with.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def set_frozen(modules: Iterable[nn.Module], frozen: bool) -> None:
    """Turns the gradients of all parameters below `modules` off or on, and the modules to eval or train mode."""
    for module in modules:
        module.requires_grad_(not frozen)
        module.train(not frozen)


def is_frozen(module: nn.Module) -> bool:
    """True where the module has parameters and none of them takes a gradient."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


def frozen_context(module: nn.Module) -> AbstractContextManager:
    """`torch.no_grad()` for a frozen module, otherwise nothing: `with frozen_context(backbone): x = backbone(x)`."""
    return torch.no_grad() if is_frozen(module) else nullcontext()


class UnfreezingSchedule:
    """Which modules learn from which epoch on.

    `stages` is a list of (first epoch, modules): the modules are frozen before that epoch and learn from it on.
    What no stage names learns from the start. For example, head first, the upper half at 20, everything at 40:

        UnfreezingSchedule([(20, blocks[6:]), (40, [*blocks[:6], embedding])])

    Give it to `Run.prepare`, which wraps the model while everything is still trainable (DistributedDataParallel
    registers only parameters that take gradients then; freezing first makes ranks diverge silently after the
    unfreeze) and calls `apply` at the start of every epoch.
    """

    def __init__(self, stages: Sequence[tuple[int, Iterable[nn.Module]]]):
        self.stages = [(epoch, list(modules)) for epoch, modules in stages]
        named = [id(parameter) for _, modules in self.stages for module in modules for parameter in module.parameters()]
        if len(named) != len(set(named)):
            raise ValueError("a parameter stands in two stages")

    def apply(self, epoch: int) -> None:
        """Freezes and unfreezes for `epoch`. To be called after `model.train()`, which would wake frozen BatchNorm."""
        for first_epoch, modules in self.stages:
            set_frozen(modules, frozen=epoch < first_epoch)
