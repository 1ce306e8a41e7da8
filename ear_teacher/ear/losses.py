"""`L1 + 1.5·perceptual + 0.6·SSIM + 0.3·edge + 0.1·contrastive + 3.0·centre + 1e-6·KL`."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import UserError
from core.losses.reconstruction import (
    CenterWeightedL1,
    EdgeLoss,
    PerceptualLoss,
    SSIMLoss,
    contrastive_loss,
    kl_divergence,
)

WEIGHTS = {  # name of the flag without `_weight` -> (the reference's weight, what it is for)
    "l1": (1.0, "mean absolute difference of pixels"),
    "perceptual": (1.5, "difference of VGG16 features"),
    "ssim": (0.6, "1 − structural similarity"),
    "edge": (0.3, "difference of image gradients"),
    "contrastive": (0.1, "pushes the codes of different ears apart"),
    "center": (3.0, "mean absolute difference, weighted by a Gaussian at the centre"),
    "kl": (1e-6, "divergence of the codes from a normal distribution, summed over dimensions"),
}
RANGE = (-1.0, 1.0)


class EarVAELoss(nn.Module):
    """The weighted sum of the terms of WEIGHTS, and each term, unweighted, to log; all in float32.

    Terms of weight 0 are not computed. The perceptual one needs VGG16's weights: a download, or the file `vgg_weights`.
    Raises UserError where they cannot be had.
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
        """`result` of EarVAE and its pictures (B, 3, S, S) -> (scalar, {term: scalar})."""
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
