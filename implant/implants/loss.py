"""Loss of the regressor: standardised length and diameter, and classes of other fields beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implants.crops import UNKNOWN

BETA = 0.5  # Seitzer et al.: between likelihood (0), which neglects hard cases, and squared error (1)


class DimensionLoss(nn.Module):
    """`length + diameter + weight · auxiliary`, of the targets that the model has, and its parts to log.

    Huber loss (δ = 1) of standardised targets; where the model gives log-variances, β-NLL (Seitzer et al. 2022, "On the
    Pitfalls of Heteroscedastic Uncertainty Estimation"): the Gaussian's negative log-likelihood, weighted by the
    variance to the power of β without a gradient. auxiliary: the mean of the fields' cross-entropies. Cases whose class
    is unknown are left out.
    """

    def __init__(self, auxiliary_weight: float = 0.2):
        super().__init__()
        self.auxiliary_weight = auxiliary_weight

    def forward(self, prediction: dict, batch: dict, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """`prediction` of `DualEmbeddingRegressor`, `batch` of `ImplantCrops`, `model` whose standardisation counts."""
        target = (batch["target"] - model.target_mean) / model.target_std
        if "log_variance" in prediction:
            losses = beta_nll(prediction["standard"], prediction["log_variance"], target)
        else:
            losses = F.huber_loss(prediction["standard"], target, reduction="none")
        parts = dict(zip(model.targets, losses.mean(dim=0), strict=True))
        loss = sum(parts.values())
        if prediction["auxiliary"]:
            terms = [class_loss(logits, batch[f"label_{field}"]) for field, logits in prediction["auxiliary"].items()]
            parts["auxiliary"] = torch.stack(terms).mean()
            loss = loss + self.auxiliary_weight * parts["auxiliary"]
        return loss, parts


def beta_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """β-NLL element by element, without its constant; all (B, T)."""
    likelihood = 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return log_variance.detach().exp() ** BETA * likelihood


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy (B, C) against labels (B,) that are not UNKNOWN; 0 if none is."""
    total = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
    return total / (labels != UNKNOWN).sum().clamp(min=1)
