"""Shape check and masked mean of the losses."""

import torch
from torch import Tensor


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError unless the shapes are equal: `(B, 1)` and `(B,)` would silently broadcast to `(B, B)`."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")


def mean_over_known(loss: Tensor, known: Tensor) -> Tensor:
    """Scalar mean of `loss` over the elements with `known` (bool, same shape); 0 if there are none."""
    return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)
