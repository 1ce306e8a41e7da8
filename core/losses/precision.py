"""Keep a loss out of half precision."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def full_precision(function: Callable) -> Callable:
    """Decorate a loss, or a module's `forward`, to run in float32 even under autocast.

    Autocast is switched off for the call, and float16 and bfloat16 tensor arguments are widened to float32. Other
    tensors (float64, labels, masks) pass unchanged. In float16 an epsilon of 1e-8 is 0, a sum of squares overflows at
    65,504, and a sigmoid is 0 below a logit of about −17: each has turned a training run into NaN.
    """

    @functools.wraps(function)
    def in_float32(*args: Any, **kwargs: Any) -> Any:
        args = [_widen(value) for value in args]
        kwargs = {name: _widen(value) for name, value in kwargs.items()}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device_type = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device_type=device_type, enabled=False):
            return function(*args, **kwargs)

    return in_float32


def _widen(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
