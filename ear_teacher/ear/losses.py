"""Losses of the VAE and of the detector.

VAE: `L1 + 1.5·perceptual + 0.6·SSIM + 0.3·edge + 0.1·contrastive + 3.0·centre + 1e-6·KL`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import UserError
from core.losses.landmarks import WingLoss
from core.losses.reconstruction import (
    CenterWeightedL1,
    EdgeLoss,
    PerceptualLoss,
    SSIMLoss,
    contrastive_loss,
    kl_divergence,
)
from ear.detector import log_gaussians

WEIGHTS = {  # name of the flag without `_weight` -> (default weight as in the reference, help text)
    "l1": (1.0, "mean absolute difference of pixels"),
    "perceptual": (1.5, "difference of VGG16 features"),
    "ssim": (0.6, "1 − structural similarity"),
    "edge": (0.3, "difference of image gradients"),
    "contrastive": (0.1, "contrastive loss between the codes of different ears"),
    "center": (3.0, "mean absolute difference, weighted by a Gaussian at the centre"),
    "kl": (1e-6, "KL divergence of the codes from N(0, 1), summed over dimensions"),
}
RANGE = (-1.0, 1.0)
SIGMA = 0.04  # SD of the target Gaussians, as a share of the window side


class EarVAELoss(nn.Module):
    """Weighted sum of the terms of WEIGHTS, returned with the unweighted terms for logging; in float32.

    Terms of weight 0 are not computed. The perceptual term needs VGG16 weights, from a download or the file
    `vgg_weights`; raises UserError if they are unavailable.
    """

    def __init__(self, weights: dict[str, float], vgg_weights: Path | None = None):
        super().__init__()
        self.weights = {name: weights[name] for name in WEIGHTS if weights[name]}
        self.ssim, self.edge, self.center = SSIMLoss(RANGE), EdgeLoss(), CenterWeightedL1()
        if "perceptual" in self.weights:
            try:
                self.perceptual = PerceptualLoss(vgg_weights, RANGE)
            except (OSError, ValueError) as error:
                reason = str(error).rstrip(".")
                raise UserError(
                    f"perceptual loss: {reason}; give --vgg_weights FILE, or do without: --perceptual_weight 0"
                ) from error

    def forward(
        self, result: dict[str, torch.Tensor], images: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Output of EarVAE and its pictures (B, 3, S, S) to (scalar, {term: scalar})."""
        prediction, target = result["reconstruction"].float(), images.float()
        terms = {
            "l1": lambda: F.l1_loss(prediction, target),
            "perceptual": lambda: self.perceptual(prediction, target),
            "ssim": lambda: self.ssim(prediction, target),
            "edge": lambda: self.edge(prediction, target),
            "contrastive": lambda: contrastive_loss(result["mu"], result.get("mu_other")),
            "center": lambda: self.center(prediction, target),
            "kl": lambda: kl_divergence(result["mu"], result["logvar"]),
        }
        parts = {name: terms[name]() for name in self.weights}
        return sum(self.weights[name] * part for name, part in parts.items()), parts


class DetectionLoss(nn.Module):
    """`heatmap + wing + guess + box + side`, returned with its parts for logging.

    heatmap: KL divergence of the softmax of the maps from a Gaussian at the landmark. wing, guess: Wing loss divided by
    ω, of coordinates and first estimates in % of the window side. box: 1 - GIoU (Rezatofighi et al. 2019) plus four
    times the mean distance of its edges, as a share of the window side. side: binary cross-entropy; without it if
    `sides` is False. Landmarks that are unknown or outside the window are ignored.
    """

    def __init__(self, image_size: int, sides: bool = True):
        super().__init__()
        self.image_size, self.sides = image_size, sides
        self.wing = WingLoss(omega=10.0, epsilon=2.0, normalise=True)

    def forward(
        self, prediction: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`batch`: points (B, K, 2), NaN = unknown, and box (B, 4), in window px; left (B,), 1 or 0, NaN = unknown.
        Returns (scalar, {part: scalar})."""
        from torchvision.ops import generalized_box_iou_loss

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
        }
        if self.sides:
            parts["side"] = side_loss(prediction["left"], batch["left"])
        return sum(parts.values()), parts


def side_loss(logits: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of logits (B,) with targets 1 or 0 (B,); NaN targets are ignored."""
    known = ~left.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, left.nan_to_num(), reduction="none")
    return torch.where(known, loss, 0.0).sum() / known.sum().clamp(min=1)


def map_divergence(maps: torch.Tensor, points: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of softmax(maps) (B, K, M, M) from Gaussians at points (B, K, 2) in 0-1, over `known`
    (B, K)."""
    target = log_gaussians(points.nan_to_num(), SIGMA, maps.shape[-1]).flatten(2).log_softmax(dim=-1)
    divergence = F.kl_div(maps.flatten(2).log_softmax(dim=-1), target, reduction="none", log_target=True).sum(dim=-1)
    return torch.where(known, divergence, 0.0).sum() / known.sum().clamp(min=1)
