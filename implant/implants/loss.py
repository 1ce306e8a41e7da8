"""Loss of the regressor: standardised length and diameter, and auxiliary classification of other fields."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implants.crops import UNKNOWN

BETA = 0.5  # Seitzer et al.: between likelihood (0) and squared error (1)


class DimensionLoss(nn.Module):
    """`length + diameter + weight · auxiliary` for the targets of the model, returned with its parts for logging.

    Huber loss (δ = 1) of standardised targets; with log-variances β-NLL (Seitzer et al. 2022, "On the Pitfalls of
    Heteroscedastic Uncertainty Estimation"): Gaussian negative log-likelihood, weighted by the variance to the power of
    β without gradient. auxiliary: mean cross-entropy of the fields, without cases of unknown class.
    """

    def __init__(self, auxiliary_weight: float = 0.2):
        super().__init__()
        self.auxiliary_weight = auxiliary_weight

    def forward(self, prediction: dict, batch: dict, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """`prediction` of `DualEmbeddingRegressor`, `batch` of `ImplantCrops`, `model` with the standardisation."""
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
    """Elementwise β-NLL without its constant; all (B, T)."""
    likelihood = 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return log_variance.detach().exp() ** BETA * likelihood


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, C) with labels (B,), without UNKNOWN ones; 0 if all are."""
    total = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
    return total / (labels != UNKNOWN).sum().clamp(min=1)
