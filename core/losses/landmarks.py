"""Losses on landmark coordinates and heatmaps, and the soft argmax from heatmaps to coordinates.

Points are `(B, K, 2)` xy in heatmap pixels, with pixel centres at integers. The mask `(B, K)` is True for known
landmarks; values of others, NaN included, are ignored. Losses are means over the known landmarks, or a 0 attached to
the graph if there are none. Wrong shapes raise ValueError.
"""

import math

import torch
from torch import Tensor, nn

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape, mean_over_known


class WingLoss(nn.Module):
    """Wing loss (Feng et al. 2018, "Wing Loss for Robust Facial Landmark Localisation"), on each coordinate.

    `ω ln(1 + |x|/ε)` if `|x| < ω`, else `|x| − C` with `C = ω − ω ln(1 + ω/ε)`, for an error of x pixels. The logarithm
    increases the gradient of small errors. `normalise` divides by ω: with the defaults, the loss at x = ω is 1.8.
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
        return mean_over_known(loss.mean(dim=-1), known)


class HeatmapLoss(nn.Module):
    """Squared error of each heatmap relative to the energy of its target: `Σ (ŷ − y)² / Σ y²`.

    An all-zero prediction has a loss of exactly 1 for any σ and map size; the MSE, about `πσ²/HW`, would be negligible
    beside a loss in pixels. With targets drawn at the unrounded centre, this is the training part of DARK (Zhang et al.
    2020, "Distribution-Aware Coordinate Representation for Human Pose Estimation").

    Maps with an empty target (landmark outside the frame) are left out. `min_energy` limits the weight of landmarks of
    which only a tail of the Gaussian is inside; with a peak of 1, σ ≥ 1 px and the centre inside, even in a corner, the
    energy is above 0.5.
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
        return mean_over_known(loss, known)


@full_precision
def soft_argmax(heatmaps: Tensor, beta: float = 25.0) -> Tensor:
    """Differentiable peak position: expectation of the pixel position under `softmax(beta · heatmap)`.

    heatmaps `(B, K, H, W)` -> points `(B, K, 2)`, xy in heatmap pixels, pixel centres at integers (Sun et al. 2018,
    "Integral Human Pose Regression", with a temperature).

    A peak of 1 outweighs a background pixel of 0 by a factor of e^beta. For beta = 1, the background of a 128×128 map
    dominates, and the result is its centre; for 25, its share is below 1e-6, and the error for a Gaussian of σ = 2 px
    is below 0.1 px. Much larger values approach the hard argmax, without sub-pixel position and gradient.
    """
    height, width = heatmaps.shape[-2:]
    probability = (beta * heatmaps).flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    xs = torch.arange(width, dtype=probability.dtype, device=probability.device)
    ys = torch.arange(height, dtype=probability.dtype, device=probability.device)
    # Product and sum: a matrix product may run in TF32, whose 10-bit mantissa would cost hundredths of a pixel.
    x = (probability.sum(dim=-2) * xs).sum(dim=-1)
    y = (probability.sum(dim=-1) * ys).sum(dim=-1)
    return torch.stack([x, y], dim=-1)


def _known_landmarks(mask: Tensor | None, prediction: Tensor) -> Tensor:
    """The mask as bool `(B, K)`; all True without a mask."""
    shape = prediction.shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=prediction.device)
    if mask.shape != shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit {tuple(shape)} landmarks (B, K)")
    return mask.bool()
