"""HRNet with heatmaps of 29 landmarks; and stage 1, whose pooled branch also measures and grades.

HRNet: Sun et al. 2019, "Deep High-Resolution Representation Learning for Human Pose Estimation"; backbone from timm.
Loss: 0.5 · heatmaps (DARK's unbiased targets) + 0.5 · Wing + 0.3 · CVM.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ceph.anatomy import NAMES
from ceph.heatmaps import decode_dark, encode_heatmaps, to_heatmap, to_input
from ceph.landmarks import LANDMARKS
from core.backbones import timm_backbone
from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold
from core.losses.landmarks import HeatmapLoss, WingLoss, soft_argmax

CVM_STAGES = 6
GREY_MEAN, GREY_STD = 0.449, 0.226  # ImageNet's, averaged over its channels: what the backbone was trained on


class HeatmapHRNet(nn.Module):
    """Grey pictures (B, 1, H, W) in 0-1 to heatmaps (B, 29, H/stride, W/stride), one peak of height 1 a landmark.

    `image_size` and `heatmap_size` are (height, width) and the heatmap's width; `heatmap_size` divides the width.
    `backbone` is any HRNet of timm, with ImageNet weights if `pretrained`, or with those of a file
    `backbone_weights`. Raises UserError where the weights cannot be had or the sizes do not fit.
    """

    kind: str  # of a model folder's config
    trained_by: str  # script

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        heatmap_size: int,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
    ):
        super().__init__()
        height, width = image_size
        if height % 32 or width % 32:
            raise UserError(f"--image_size {height} {width}: both must be multiples of 32, HRNet's coarsest stride")
        if heatmap_size < 1 or width % heatmap_size or height * heatmap_size % width:
            raise UserError(f"--heatmap_size {heatmap_size} does not divide --image_size {height} {width}")
        self.stride = width // heatmap_size
        self.heatmap_size = (height // self.stride, heatmap_size)
        self.arguments = {"backbone": backbone, "image_size": [height, width], "heatmap_size": heatmap_size}
        self.backbone = _backbone(backbone, pretrained, backbone_weights)
        widths = self.backbone.feature_info.channels()[1:]  # of the four branches, without the stem
        self.width = sum(widths)

        # The head of HRNetV2: all branches at one resolution, concatenated, 1×1 convolution. Convolution before
        # enlargement gives the same sum (both are linear) for an eighth of the multiplications.
        self.merge = nn.ModuleList(nn.Conv2d(channels, self.width, 1, bias=False) for channels in widths)
        self.head = nn.Sequential(
            nn.BatchNorm2d(self.width), nn.ReLU(inplace=True), nn.Conv2d(self.width, len(LANDMARKS), 1)
        )
        nn.init.normal_(self.head[-1].weight, std=0.001)  # starts at empty maps, as the targets nearly are
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.heatmaps(self.branches(image))

    def branches(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features at strides 4, 8, 16, 32."""
        return self.backbone((image - GREY_MEAN) / GREY_STD)[1:]

    def heatmaps(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """(B, 29, H/stride, W/stride)."""
        return self.head(sum(self._resize(merge(x)) for merge, x in zip(self.merge, branches, strict=True)))

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-2:] == self.heatmap_size:
            return x
        if x.shape[-1] > self.heatmap_size[1]:
            return F.adaptive_avg_pool2d(x, self.heatmap_size)
        return F.interpolate(x, size=self.heatmap_size, mode="bilinear", align_corners=False)

    def config(self, sigma: float) -> dict:
        """What inference needs to know, as plain JSON for `best/config.json`."""
        return {
            "project": "cephalometric",
            "kind": self.kind,
            "model": self.arguments,
            "normalisation": {"mean": GREY_MEAN, "std": GREY_STD, "inside_the_model": True},
            "sigma": sigma,
            "landmarks": list(LANDMARKS),
        }

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["HeatmapHRNet", dict]:
        """(model in eval mode, config) of a `best/` folder. Raises UserError if it is another model's."""
        state, config = load_model_folder(folder, "cephalometric")
        with fitting(folder):
            if config["kind"] != cls.kind:
                raise UserError(f"{folder} holds a {config['kind']}, not a {cls.kind}; {cls.trained_by} makes one")
            if config["landmarks"] != list(LANDMARKS):
                raise UserError(f"{folder} was trained on other landmarks: {', '.join(config['landmarks'])}")
            must_hold(config, **cls.needed)
            model = cls(**config["model"])
            model.load_state_dict(state)
            return model.eval(), config


class HRNetLandmarks(HeatmapHRNet):
    """Stage 1: grey pictures (B, 1, H, W) in 0-1 to a dict:

    - `heatmaps` (B, 29, H/stride, W/stride), one peak of height 1 a landmark
    - `measurements` (B, 10), standardised with `measurement_mean` and `measurement_std`; lengths in input px
    - `cvm_stage` (B, 6), logits of the cervical vertebral maturation stages 1-6

    For the arguments see `HeatmapHRNet`; `hidden` is the width of the pooled branch.
    """

    kind, trained_by = "landmark model", "train.py"
    needed: ClassVar = {"sigma": int | float, "mean_shape": list, "ground_truth": str}  # by inference, by its type

    def __init__(
        self,
        backbone: str = "hrnet_w48",
        image_size: tuple[int, int] = (512, 512),
        heatmap_size: int = 128,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
        hidden: int = 256,
    ):
        super().__init__(backbone, image_size, heatmap_size, pretrained, backbone_weights)
        self.arguments["hidden"] = hidden
        self.cvm = nn.Sequential(nn.Linear(self.width, hidden), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.cvm_measurements = nn.Linear(hidden, len(NAMES))
        self.cvm_stage = nn.Linear(hidden, CVM_STAGES)
        self.register_buffer("measurement_mean", torch.zeros(len(NAMES)))
        self.register_buffer("measurement_std", torch.ones(len(NAMES)))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        branches = self.branches(image)
        pooled = self.cvm(torch.cat([x.mean(dim=(2, 3)) for x in branches], dim=1))
        return {
            "heatmaps": self.heatmaps(branches),
            "measurements": self.cvm_measurements(pooled),
            "cvm_stage": self.cvm_stage(pooled),
        }

    def set_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Mean and SD (10,) of the training split's measurements, kept with the weights."""
        self.measurement_mean.copy_(torch.from_numpy(mean))
        self.measurement_std.copy_(torch.from_numpy(std))

    def config(self, sigma: float) -> dict:
        return super().config(sigma) | {
            "input": {"channels": 1, "range": [0, 1], "fit": "letterbox, black"},
            "measurements": list(NAMES),
            "cvm_stages": list(range(1, CVM_STAGES + 1)),
            "units": {"landmarks": "heatmap px", "measurements": "lengths in input px, angles in °, ratios in %"},
        }


def _backbone(name: str, pretrained: bool, weights: Path | None) -> nn.Module:
    if not timm.is_model(name) or not name.startswith("hrnet"):
        names = timm.list_models("hrnet*")
        raise UserError(f"--backbone {name}: not an HRNet of timm; they are {', '.join(names)}")
    # `feature_location=''` gives the branches themselves; the default adds the classifier's widening layers.
    return timm_backbone(name, pretrained, weights, features_only=True, feature_location="", in_chans=1)


def decode(prediction: dict[str, torch.Tensor], stride: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (B, 29, 2) in input px and confidence (B, 29) of a prediction."""
    points, confidence = decode_dark(prediction["heatmaps"], sigma)
    return to_input(points, stride), confidence


class PointLoss(nn.Module):
    """`0.5 · dark + 0.5 · wing`, and these two to log.

    dark: squared error of the heatmaps over the energy of the target, 1.0 for empty maps. wing: Wing loss over ω on
    soft-argmax coordinates in heatmap px. (Un-normalised, Wing would outweigh the heatmaps 16,000 times.)
    """

    def __init__(self, stride: float, heatmap_size: tuple[int, int], sigma: float = 2.0):
        super().__init__()
        self.stride, self.heatmap_size, self.sigma = stride, heatmap_size, sigma
        self.heatmap_loss = HeatmapLoss()
        self.wing_loss = WingLoss(omega=10.0, epsilon=2.0, normalise=True)

    def forward(self, heatmaps: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`heatmaps` (B, 29, H, W), `points` (B, 29, 2) input px, NaN = unknown."""
        points, heatmaps = to_heatmap(points, self.stride), heatmaps.float()
        target = encode_heatmaps(points, self.heatmap_size, self.sigma)
        size = points.new_tensor([self.heatmap_size[1], self.heatmap_size[0]])
        inside = ((points >= -0.5) & (points <= size - 0.5)).all(-1)  # (B, K), False for unknown ones
        dark = self.heatmap_loss(heatmaps, target, inside)
        wing = self.wing_loss(soft_argmax(heatmaps), points.nan_to_num(), inside)
        return 0.5 * dark + 0.5 * wing, {"dark": dark, "wing": wing}


class LandmarkLoss(nn.Module):
    """`PointLoss + cvm_weight · cvm`, and its parts to log.

    cvm: smooth L1 of the standardised measurements plus cross-entropy of the maturation stage, whose cases count by
    `stage_weights` (6,).
    """

    def __init__(
        self,
        stride: float,
        heatmap_size: tuple[int, int],
        sigma: float = 2.0,
        cvm_weight: float = 0.3,
        stage_weights: np.ndarray | None = None,
    ):
        super().__init__()
        self.point_loss, self.cvm_weight = PointLoss(stride, heatmap_size, sigma), cvm_weight
        weights = np.ones(CVM_STAGES) if stage_weights is None else stage_weights
        self.register_buffer("stage_weights", torch.tensor(weights, dtype=torch.float32))

    def forward(
        self, prediction: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`batch`: points (B, 29, 2) input px (NaN = unknown), measurements (B, 10) standardised (NaN = unknown),
        cvm_stage (B,) 0-5 or -1 = unknown."""
        loss, parts = self.point_loss(prediction["heatmaps"], batch["points"])
        known = batch["measurements"].isfinite()
        error = F.smooth_l1_loss(
            prediction["measurements"].float(), batch["measurements"].nan_to_num(), reduction="none"
        )
        measurements = (error * known).sum() / known.sum().clamp_min(1)
        stages, graded = batch["cvm_stage"], batch["cvm_stage"] >= 0
        costs = F.cross_entropy(
            prediction["cvm_stage"].float(), stages, self.stage_weights, ignore_index=-1, reduction="sum"
        )
        stage = costs / graded.sum().clamp_min(1)  # not by their weights: a batch of a rare stage counts for more
        cvm = measurements + stage
        return loss + self.cvm_weight * cvm, parts | {"cvm": cvm}
