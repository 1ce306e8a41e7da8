"""HRNet with one heatmap per landmark; stage 1 adds a pooled branch for measurements and maturation stage.

HRNet: Sun et al. 2019, "Deep High-Resolution Representation Learning for Human Pose Estimation"; backbone from timm.
"""

import argparse
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ceph.anatomy import ANATOMY, Anatomy
from ceph.heatmaps import decode_dark, to_input
from core.backbones import timm_backbone
from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold

GREY_MEAN, GREY_STD = 0.449, 0.226  # of ImageNet, averaged over channels


class HeatmapHRNet(nn.Module):
    """Grey pictures (B, 1, H, W) in 0-1 to heatmaps (B, K, H/stride, W/stride), one peak of height 1 per landmark.

    `anatomy`: the K landmarks. `image_size`: (height, width) in px. `heatmap_size`: heatmap width in px, a divisor of
    the input width. `backbone`: any HRNet of timm, with ImageNet weights if `pretrained`, or weights of the file
    `backbone_weights`. Raises UserError for unavailable weights and invalid sizes.
    """

    kind: str  # in config.json
    needed: ClassVar[dict[str, type]]  # keys of config.json for inference

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        heatmap_size: int,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
        anatomy: Anatomy = ANATOMY,
    ):
        super().__init__()
        self.anatomy = anatomy
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

        # Head of HRNetV2: branches upsampled, concatenated, 1×1 convolution. Convolution before upsampling is
        # equivalent (both are linear), with an eighth of the multiplications.
        self.merge = nn.ModuleList(nn.Conv2d(channels, self.width, 1, bias=False) for channels in widths)
        self.head = nn.Sequential(
            nn.BatchNorm2d(self.width), nn.ReLU(inplace=True), nn.Conv2d(self.width, len(anatomy.names), 1)
        )
        nn.init.normal_(self.head[-1].weight, std=0.001)  # nearly empty heatmaps, as the targets
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.heatmaps(self.branches(image))

    def branches(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, C, H/stride, W/stride) at strides 4, 8, 16, 32."""
        return self.backbone((image - GREY_MEAN) / GREY_STD)[1:]

    def heatmaps(self, branches: list[torch.Tensor]) -> torch.Tensor:
        """Heatmaps (B, K, H/stride, W/stride) of the features."""
        return self.head(sum(self._resize(merge(x)) for merge, x in zip(self.merge, branches, strict=True)))

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-2:] == self.heatmap_size:
            return x
        if x.shape[-1] > self.heatmap_size[1]:
            return F.adaptive_avg_pool2d(x, self.heatmap_size)
        return F.interpolate(x, size=self.heatmap_size, mode="bilinear", align_corners=False)

    def config(self, sigma: float) -> dict:
        """Content of `best/config.json`; training adds the rest of `needed`."""
        return {
            "kind": self.kind,
            "model": self.arguments,
            "normalisation": {"mean": GREY_MEAN, "std": GREY_STD, "inside_the_model": True},
            "sigma": sigma,
            **self.anatomy.config(),
        }

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["HeatmapHRNet", dict]:
        """(model in eval mode, config) of a model folder. Raises UserError for missing or other models."""
        state, config = load_model_folder(folder, cls.kind)
        with fitting(folder):
            must_hold(config, schema=dict, taught=dict, **cls.needed)
            model = cls(**config["model"], anatomy=Anatomy.from_config(config))
            model.load_state_dict(state)
            counts = config["taught"]["landmarks"]
            model.taught = np.array([counts[name] > 0 for name in model.anatomy.names])
            return model.eval(), config


class HRNetLandmarks(HeatmapHRNet):
    """Stage 1: grey pictures (B, 1, H, W) in 0-1 to a dict:

    - `heatmaps` (B, K, H/stride, W/stride), one peak of height 1 per landmark
    - `measurements` (B, M), standardised by `measurement_mean` and `measurement_std`; lengths in input px; if M > 0
    - `cvm_stage` (B, S), logits of the stages; if S > 0

    Arguments as `HeatmapHRNet`; `hidden`: width of the pooled branch.
    """

    kind = "landmark model"
    needed: ClassVar = {"sigma": int | float, "mean_shape": list, "ground_truth": str}

    def __init__(
        self,
        backbone: str = "hrnet_w48",
        image_size: tuple[int, int] = (512, 512),
        heatmap_size: int = 128,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
        hidden: int = 256,
        anatomy: Anatomy = ANATOMY,
    ):
        super().__init__(backbone, image_size, heatmap_size, pretrained, backbone_weights, anatomy)
        self.arguments["hidden"] = hidden
        measurements, stages = len(anatomy.measurements), len(anatomy.stages)
        if measurements or stages:
            self.cvm = nn.Sequential(nn.Linear(self.width, hidden), nn.ReLU(inplace=True), nn.Dropout(0.2))
        if measurements:
            self.cvm_measurements = nn.Linear(hidden, measurements)
            self.register_buffer("measurement_mean", torch.zeros(measurements))
            self.register_buffer("measurement_std", torch.ones(measurements))
        if stages:
            self.cvm_stage = nn.Linear(hidden, stages)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        branches, anatomy, prediction = self.branches(image), self.anatomy, {}
        if anatomy.measurements or anatomy.stages:
            pooled = self.cvm(torch.cat([x.mean(dim=(2, 3)) for x in branches], dim=1))
        if anatomy.measurements:
            prediction["measurements"] = self.cvm_measurements(pooled)
        if anatomy.stages:
            prediction["cvm_stage"] = self.cvm_stage(pooled)
        return {"heatmaps": self.heatmaps(branches), **prediction}

    def set_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Stores mean and SD (M,) of the measurements of the training split as buffers."""
        if self.anatomy.measurements:
            self.measurement_mean.copy_(torch.from_numpy(mean))
            self.measurement_std.copy_(torch.from_numpy(std))

    def config(self, sigma: float) -> dict:
        units = {"landmarks": "heatmap px"}
        if self.anatomy.measurements:
            units["measurements"] = "lengths in input px, angles in °, ratios in %"
        fit = {"channels": 1, "range": [0, 1], "fit": "letterbox, black"}
        return super().config(sigma) | {"input": fit, "units": units}


def add_backbone_arguments(group, default: str) -> None:
    """Adds the arguments of the backbone and its weights."""
    group.add_argument("--backbone", default=default, help="any HRNet of timm")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True, help="ImageNet weights")
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")


def _backbone(name: str, pretrained: bool, weights: Path | None) -> nn.Module:
    import timm  # slow import

    if not timm.is_model(name) or not name.startswith("hrnet"):
        names = timm.list_models("hrnet*")
        raise UserError(f"--backbone {name}: not an HRNet of timm; they are {', '.join(names)}")
    # `feature_location=''`: the branches themselves, without the layers of the classifier.
    return timm_backbone(name, pretrained, weights, features_only=True, feature_location="", in_chans=1)


def decode(prediction: dict[str, torch.Tensor], stride: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (B, K, 2) in input px and confidence (B, K) of a model output; `sigma` in heatmap px."""
    points, confidence = decode_dark(prediction["heatmaps"], sigma)
    return to_input(points, stride), confidence
