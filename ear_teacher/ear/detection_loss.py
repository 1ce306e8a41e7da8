"""What the detector is trained by: landmarks as maps and as coordinates, the box, and the side."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from core.losses.landmarks import WingLoss
from ear.detector import log_gaussians

SIGMA = 0.04  # of the target Gaussians, in shares of the window's side


class DetectionLoss(nn.Module):
    """`heatmap + wing + guess + box + side`, and its parts to log.

    heatmap: Kullback-Leibler divergence of the maps' softmax from a Gaussian at the landmark. wing and guess: Wing loss
    over ω of coordinates and of their guesses, in per cent of the window's side. box: 1 - GIoU (Rezatofighi et al.
    2019) plus four times the mean distance of its sides, in shares of the window's side. side: binary cross-entropy.
    What is unknown or outside the window is left out.
    """

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size
        self.wing = WingLoss(omega=10.0, epsilon=2.0, normalise=True)

    def forward(
        self, prediction: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`batch`: points (B, K, 2), NaN = unknown, and box (B, 4), in window px; left (B,), 1 or 0, NaN = unknown."""
        box, percent = batch["box"], 100 / self.image_size
        centre = (box[:, :2] + box[:, 2:]) / 2
        target = torch.cat([batch["points"], centre[:, None]], dim=1)  # (B, K + 1, 2)
        inside = ((target >= -0.5) & (target <= self.image_size - 0.5)).all(dim=-1)  # NaN compares false
        found = torch.cat([prediction["points"], prediction["centre"][:, None]], dim=1)
        parts = {
            "heatmap": map_divergence(prediction["maps"], (target + 0.5) / self.image_size, inside),
            "wing": self.wing(percent * found, percent * target, inside),
            "guess": self.wing(percent * prediction["guess"], percent * target[:, :-1], inside[:, :-1]),
            "box": generalized_box_iou_loss(prediction["box"], box, reduction="mean")
            + 4 * F.l1_loss(prediction["box"], box) / self.image_size,
            "side": side_loss(prediction["left"], batch["left"]),
        }
        return sum(parts.values()), parts


def side_loss(logits: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of logits (B,) against 1 or 0 (B,), where these are not NaN."""
    known = ~left.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, left.nan_to_num(), reduction="none")
    return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)


def map_divergence(maps: torch.Tensor, points: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of softmax(maps) (B, K, M, M) from Gaussians at points (B, K, 2) in 0-1, if `known` (B, K)."""
    target = log_gaussians(points.nan_to_num(), SIGMA, maps.shape[-1]).flatten(2).log_softmax(dim=-1)
    divergence = F.kl_div(maps.flatten(2).log_softmax(dim=-1), target, reduction="none", log_target=True).sum(dim=-1)
    return torch.where(known, divergence, 0.0).sum() / known.sum().clamp(min=1)
