"""One shape check for all losses."""

from torch import Tensor


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless the two shapes are equal.

    Without it `(B, 1)` against `(B,)` broadcasts to `(B, B)` and trains on nonsense without a word.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
