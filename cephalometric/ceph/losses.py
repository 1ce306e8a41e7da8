"""Losses: 0.5 · heatmap loss (unbiased targets as in DARK) + 0.5 · Wing; stage 1 adds 0.3 · loss of the pooled branch
for measurements and stage (CVM branch in the reference).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ceph.heatmaps import encode_heatmaps, to_heatmap
from core.losses.landmarks import HeatmapLoss, WingLoss, soft_argmax


class PointLoss(nn.Module):
    """`0.5 · dark + 0.5 · wing`, returned with both parts for logging.

    dark: squared error of the heatmaps divided by the energy of the target (1.0 for empty heatmaps). wing: Wing loss
    divided by ω, on soft-argmax coordinates in heatmap px. (Unnormalised, Wing would outweigh it 16,000 times.)
    """

    def __init__(self, stride: float, heatmap_size: tuple[int, int], sigma: float = 2.0):
        super().__init__()
        self.stride, self.heatmap_size, self.sigma = stride, heatmap_size, sigma
        self.heatmap_loss = HeatmapLoss()
        self.wing_loss = WingLoss(omega=10.0, epsilon=2.0, normalise=True)

    def forward(self, heatmaps: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`heatmaps` (B, K, H, W), `points` (B, K, 2) input px, NaN = unknown."""
        points, heatmaps = to_heatmap(points, self.stride), heatmaps.float()
        target = encode_heatmaps(points, self.heatmap_size, self.sigma)
        size = points.new_tensor([self.heatmap_size[1], self.heatmap_size[0]])
        inside = ((points >= -0.5) & (points <= size - 0.5)).all(-1)  # (B, K), False for NaN
        dark = self.heatmap_loss(heatmaps, target, inside)
        wing = self.wing_loss(soft_argmax(heatmaps), points.nan_to_num(), inside)
        return 0.5 * dark + 0.5 * wing, {"dark": dark, "wing": wing}


class LandmarkLoss(nn.Module):
    """`PointLoss + branch_weight · branch`, returned with its parts for logging ("cvm" if the branch has stages).

    branch: smooth L1 of the standardised measurements plus cross-entropy of the stage with class weights
    `stage_weights` (S,). Absent outputs are left out.
    """

    def __init__(
        self,
        stride: float,
        heatmap_size: tuple[int, int],
        sigma: float = 2.0,
        branch_weight: float = 0.3,
        stage_weights: np.ndarray | None = None,
    ):
        super().__init__()
        self.point_loss, self.branch_weight = PointLoss(stride, heatmap_size, sigma), branch_weight
        weights = None if stage_weights is None else torch.tensor(stage_weights, dtype=torch.float32)
        self.register_buffer("stage_weights", weights)

    def forward(
        self, prediction: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`prediction`: output of `HRNetLandmarks`. `batch`: points (B, K, 2) input px and standardised measurements
        (B, M), NaN = unknown; cvm_stage (B,) 0 to S - 1, -1 = unknown."""
        loss, parts = self.point_loss(prediction["heatmaps"], batch["points"])
        branch = []
        if "measurements" in prediction:
            known = batch["measurements"].isfinite()
            error = F.smooth_l1_loss(
                prediction["measurements"].float(), batch["measurements"].nan_to_num(), reduction="none"
            )
            branch.append((error * known).sum() / known.sum().clamp_min(1))
        if "cvm_stage" in prediction:
            stages, graded = batch["cvm_stage"], batch["cvm_stage"] >= 0
            costs = F.cross_entropy(
                prediction["cvm_stage"].float(), stages, self.stage_weights, ignore_index=-1, reduction="sum"
            )
            # Divided by the number of cases, not by their weights: batches of rare stages count more.
            branch.append(costs / graded.sum().clamp_min(1))
        if not branch:
            return loss, parts
        cost = sum(branch)
        return loss + self.branch_weight * cost, parts | {"cvm" if "cvm_stage" in prediction else "branch": cost}
