"""Multi-label losses on logits `(B, C)`, with soft and unknown labels.

Targets `(B, C)` lie in [0, 1] (fractions from CutMix), or are −1 for unknown, without influence on loss and gradients
(CutMix must not average −1 with other labels). The result is the mean over the known labels, or a 0 attached to the
graph if there are none. All raise ValueError if the shapes differ.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape, mean_over_known

UNKNOWN = -1


class MaskedBCE(nn.Module):
    """Binary cross-entropy: `−t log p − (1−t) log(1−p)` with `p = σ(logit)`."""

    @full_precision
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits `(B, C)`, targets `(B, C)` -> scalar."""
        logits, targets, known = _known_labels(logits, targets)
        return mean_over_known(_cross_entropy(logits, targets), known)


class FocalLoss(nn.Module):
    """Focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection"): `α_t (1 − p_t)^γ · BCE`.

    `p_t = t p + (1−t)(1−p)` is the probability of the ground truth, and `α_t = t α + (1−t)(1−α)` the weight: alpha for
    positives, 1 − alpha for negatives; no weights with `alpha=None`.
    """

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    @full_precision
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits `(B, C)`, targets `(B, C)` -> scalar."""
        logits, targets, known = _known_labels(logits, targets)
        missed = targets * torch.sigmoid(-logits) + (1 - targets) * torch.sigmoid(logits)  # 1 − p_t, no cancellation
        loss = _focus(missed, self.gamma) * _cross_entropy(logits, targets)
        if self.alpha is not None:
            loss = loss * (targets * self.alpha + (1 - targets) * (1 - self.alpha))
        return mean_over_known(loss, known)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss (Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification").

    `−t (1−p)^γ₊ log p − (1−t) p_m^γ₋ log(1−p_m)` with the shifted probability `p_m = max(p − clip, 0)`: negatives with
    `p < clip` have no loss. The focusing weights keep their gradient, which is optional in the authors' code.
    """

    def __init__(self, gamma_neg: float = 4, gamma_pos: float = 1, clip: float = 0.05):
        super().__init__()
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip

    @full_precision
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits `(B, C)`, targets `(B, C)` -> scalar."""
        logits, targets, known = _known_labels(logits, targets)
        log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
        # log(1 − p_m) = log(min(1 − p + clip, 1)), in log space: finite for every clip and logit.
        log_clip = logits.new_tensor(math.log(self.clip) if self.clip > 0 else -math.inf)
        log_not_shifted = torch.logaddexp(log_not_p, log_clip).clamp(max=0)
        shifted = (log_p.exp() - self.clip).clamp(min=0)
        positive = _focus(log_not_p.exp(), self.gamma_pos) * log_p
        negative = _focus(shifted, self.gamma_neg) * log_not_shifted
        return mean_over_known(-targets * positive - (1 - targets) * negative, known)


def _known_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets with 0 for unknown labels, and the mask of known labels, bool `(B, C)`."""
    check_same_shape(logits, targets)
    known = targets != UNKNOWN
    return torch.where(known, logits, 0.0), torch.where(known, targets.to(logits.dtype), 0.0), known


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -targets * F.logsigmoid(logits) - (1 - targets) * F.logsigmoid(-logits)


def _focus(missed: Tensor, gamma: float) -> Tensor:
    """missed^γ; the minimum avoids an infinite gradient at 0 for 0 < γ < 1."""
    return missed.clamp(min=1e-12) ** gamma
