"""Full precision for losses under mixed precision."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def full_precision(function: Callable) -> Callable:
    """Decorator for a loss or the `forward` of a module: runs in float32, also under autocast.

    Autocast is disabled for the call, and float16 and bfloat16 tensors are cast to float32; other tensors (float64,
    labels, masks) are unchanged. In float16, an epsilon of 1e-8 is 0, a sum of squares overflows at 65,504, and a
    sigmoid is 0 for logits below about −17, each of which leads to NaN.
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
