"""Losses on spectra: tensors with bands along `dim`, in physical (de-normalised) units."""

import torch
from torch import Tensor

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape


def unit_vectors(vectors: Tensor, dim: int, epsilon: float = 1e-8) -> Tensor:
    """`v / √(‖v‖² + ε)` along `dim`, in the shape of `vectors`; a zero vector gives 0, with a gradient up to 1/√ε."""
    return vectors * (vectors.square().sum(dim=dim, keepdim=True) + epsilon).rsqrt()


@full_precision
def spectral_angle(prediction: Tensor, target: Tensor, dim: int) -> Tensor:
    """Spectral angle in radians, with `dim` reduced: `(B, C, H, W)`, dim=1 -> `(B, H, W)`.

    The spectral angle mapper (Kruse et al. 1993, "The Spectral Image Processing System"), computed as
    `2 atan2(‖u − v‖, ‖u + v‖)` on unit vectors u and v (Kahan 2006, "How Futile are Mindless Assessments of Roundoff").
    The usual `acos(u·v)` has infinite gradients for parallel and opposite spectra, and float32 rounds angles below
    3e-4 rad to 0. Norms are `√(Σx² + ε)`, with finite gradients everywhere; equal spectra give 1e-6 rad. All-zero
    spectra give π/2, so the background must be masked. Raises ValueError if the shapes differ.
    """
    check_same_shape(prediction, target)
    u, v = unit_vectors(prediction, dim), unit_vectors(target, dim)
    return 2 * torch.atan2(_norm(u - v, dim), _norm(u + v, dim))


@full_precision
def spectral_variance_loss(prediction: Tensor, target: Tensor, dim: int) -> Tensor:
    """Scalar mean of `(s(prediction) − s(target))²`, where `s = √(Var + ε)` is the standard deviation along the bands.

    It penalises spectra that are too flat, a typical result of a squared error. Var is the population variance
    `Σ (x − x̄)² / C` over the C bands of `dim`; with ε = 1e-12, flat spectra have a gradient of 0 instead of NaN.
    Raises ValueError if the shapes differ.
    """
    check_same_shape(prediction, target)
    return (_standard_deviation(prediction, dim) - _standard_deviation(target, dim)).square().mean()


@full_precision
def range_penalty(values: Tensor, low: float, high: float) -> Tensor:
    """Mean squared excess of `values` (any shape) beyond [low, high]: `mean(max(low − x, 0)² + max(x − high, 0)²)`.

    Raises ValueError if low exceeds high.
    """
    if low > high:
        raise ValueError(f"low {low} exceeds high {high}")
    return (values - values.clamp(low, high)).square().mean()


def _norm(vectors: Tensor, dim: int, epsilon: float = 1e-12) -> Tensor:
    return (vectors.square().sum(dim=dim) + epsilon).sqrt()


def _standard_deviation(values: Tensor, dim: int, epsilon: float = 1e-12) -> Tensor:
    return (values.var(dim=dim, unbiased=False) + epsilon).sqrt()
