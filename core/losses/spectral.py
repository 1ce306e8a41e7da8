"""Losses on spectra: tensors with a band dimension `dim`, in physical (de-normalised) units."""

import torch
from torch import Tensor

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape


def unit_vectors(vectors: Tensor, dim: int, epsilon: float = 1e-8) -> Tensor:
    """`v / √(‖v‖² + ε)`: length 1 for ordinary vectors; 0 stays 0, with a gradient of at most 1/√ε."""
    return vectors * (vectors.square().sum(dim=dim, keepdim=True) + epsilon).rsqrt()


@full_precision
def spectral_angle(prediction: Tensor, target: Tensor, dim: int) -> Tensor:
    """Angle between spectra in radians, with `dim` reduced: `(B, C, H, W)`, dim=1 -> `(B, H, W)`.

    The spectral angle mapper (Kruse et al. 1993, "The Spectral Image Processing System"), computed as
    `2 atan2(‖u − v‖, ‖u + v‖)` on unit vectors u and v (Kahan 2006, "How Futile are Mindless Assessments of Roundoff").
    The usual `acos(u·v)` has an infinite gradient at parallel and opposite spectra, and float32 rounds its angles
    below 3e-4 rad to 0. Norms are `√(Σx² + ε)`, hence finite gradients everywhere; equal spectra give 1e-6 rad.
    An all-zero spectrum has no angle: it is given π/2, so mask the background. Raises ValueError if shapes differ.
    """
    check_same_shape(prediction, target)
    u, v = unit_vectors(prediction, dim), unit_vectors(target, dim)
    return 2 * torch.atan2(_norm(u - v, dim), _norm(u + v, dim))


@full_precision
def spectral_variance_loss(prediction: Tensor, target: Tensor, dim: int) -> Tensor:
    """Mean of `(s(prediction) − s(target))²`, where `s = √(Var + ε)` is the standard deviation along the bands.

    It penalises spectra that are too flat, the usual failing of a squared error. Var is the population variance
    `Σ (x − x̄)² / C` over the C entries of `dim`; ε = 1e-12 gives flat spectra a gradient of 0 instead of NaN.
    Raises ValueError if shapes differ.
    """
    check_same_shape(prediction, target)
    return (_standard_deviation(prediction, dim) - _standard_deviation(target, dim)).square().mean()


@full_precision
def range_penalty(values: Tensor, low: float, high: float) -> Tensor:
    """Mean squared excess beyond [low, high]: `mean(max(low − x, 0)² + max(x − high, 0)²)`, in squared units of x.

    Raises ValueError if low exceeds high.
    """
    if low > high:
        raise ValueError(f"low {low} exceeds high {high}")
    return (values - values.clamp(low, high)).square().mean()


def _norm(vectors: Tensor, dim: int, epsilon: float = 1e-12) -> Tensor:
    return (vectors.square().sum(dim=dim) + epsilon).sqrt()


def _standard_deviation(values: Tensor, dim: int, epsilon: float = 1e-12) -> Tensor:
    return (values.var(dim=dim, unbiased=False) + epsilon).sqrt()
