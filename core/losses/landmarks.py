"""Losses on landmark coordinates and heatmaps, and the differentiable step between the two.

Points are `(B, K, 2)`, x before y, in heatmap pixels with pixel centres at integers. A mask `(B, K)` is True where the
landmark is known; what lies under False, NaN included, has no influence. Every loss is a mean over known landmarks,
and a 0 that is still attached to the graph if there are none. Wrong shapes raise ValueError.
"""

import math

import torch
from torch import Tensor, nn

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape


class WingLoss(nn.Module):
    """Wing loss (Feng et al. 2018, "Wing Loss for Robust Facial Landmark Localisation"), on each coordinate.

    `ω ln(1 + |x|/ε)` if `|x| < ω`, else `|x| − C` with `C = ω − ω ln(1 + ω/ε)`, where x is the error in pixels.
    The logarithm keeps pulling at small errors. `normalise` divides by ω: with the defaults, an error of ω costs 1.8.
    """

    def __init__(self, omega: float = 10.0, epsilon: float = 2.0, *, normalise: bool = False):
        super().__init__()
        self.omega = omega
        self.epsilon = epsilon
        self.normalise = normalise

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """prediction and target `(B, K, 2)`, mask `(B, K)` bool -> scalar, mean over known coordinates."""
        check_same_shape(prediction, target)
        known = _known_landmarks(mask, prediction)
        error = torch.where(known[..., None], prediction - target, 0.0).abs()  # (B, K, 2)
        offset = self.omega - self.omega * math.log1p(self.omega / self.epsilon)
        near = self.omega * torch.log1p(error / self.epsilon)
        loss = torch.where(error < self.omega, near, error - offset)
        if self.normalise:
            loss = loss / self.omega
        return _mean_over_known(loss.mean(dim=-1), known)


class HeatmapLoss(nn.Module):
    """Squared error of a heatmap, as a share of the target's energy: `Σ (ŷ − y)² / Σ y²` for each map.

    An all-zero prediction costs exactly 1, whatever σ and the map size; a plain MSE would be about `πσ²/HW`, less than
    a thousandth, and drown beside a loss in pixels. With targets drawn at the unrounded centre this is the training
    half of DARK (Zhang et al. 2020, "Distribution-Aware Coordinate Representation for Human Pose Estimation").

    A map with an empty target (the landmark is out of frame) is left out. If only a tail of the Gaussian reaches
    into the frame, dividing by its tiny energy would let this landmark outweigh all others: energies have the floor
    `min_energy`. A Gaussian of peak 1 and σ ≥ 1 px whose centre is in the frame stays above 0.5, even in a corner.
    """

    def __init__(self, min_energy: float = 0.5):
        super().__init__()
        self.min_energy = min_energy

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """prediction and target `(B, K, H, W)`, target with peaks of 1, mask `(B, K)` bool -> scalar."""
        check_same_shape(prediction, target)
        known = _known_landmarks(mask, prediction)
        target = torch.where(known[..., None, None], target, 0.0)
        energy = target.square().sum(dim=(-2, -1))  # (B, K)
        known = known & (energy > 0)
        difference = torch.where(known[..., None, None], prediction - target, 0.0)
        loss = difference.square().sum(dim=(-2, -1)) / energy.clamp(min=self.min_energy)
        return _mean_over_known(loss, known)


@full_precision
def soft_argmax(heatmaps: Tensor, beta: float = 25.0) -> Tensor:
    """Differentiable peak position: the expectation of the pixel position under `softmax(beta · heatmap)`.

    heatmaps `(B, K, H, W)` -> points `(B, K, 2)`, xy in heatmap pixels, pixel centres at integers (Sun et al. 2018,
    "Integral Human Pose Regression", with a temperature).

    Why beta: on a map that peaks at 1 over a background of 0, the peak outweighs one background pixel only by a
    factor e^beta. With beta = 1 the 16,384 pixels of a 128×128 map win, and every answer is the centre of the map; with
    25 their share is below 1e-6. Much larger values approach the hard argmax: sub-pixel position and gradient are lost.
    At 25, an exact Gaussian of σ = 2 px is read with an error below 0.1 px.
    """
    height, width = heatmaps.shape[-2:]
    probability = (beta * heatmaps).flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    xs = torch.arange(width, dtype=probability.dtype, device=probability.device)
    ys = torch.arange(height, dtype=probability.dtype, device=probability.device)
    # Multiplied and summed, since a matrix product may run in TF32, whose 10 bits would cost hundredths of a pixel.
    x = (probability.sum(dim=-2) * xs).sum(dim=-1)
    y = (probability.sum(dim=-1) * ys).sum(dim=-1)
    return torch.stack([x, y], dim=-1)


def _known_landmarks(mask: Tensor | None, prediction: Tensor) -> Tensor:
    """The mask as bool `(B, K)`; without one, all landmarks are known."""
    shape = prediction.shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=prediction.device)
    if mask.shape != shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit {tuple(shape)} landmarks (B, K)")
    return mask.bool()


def _mean_over_known(loss: Tensor, known: Tensor) -> Tensor:
    """loss `(B, K)`, already 0 where unknown."""
    return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)
