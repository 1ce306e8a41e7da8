"""EarDetector: box, side and landmarks of an ear, on the encoder of the VAE.

Two-stage inference with one network for square windows. Stage 1 predicts box and side from the whole picture; stage 2
predicts landmarks and the final box from the window around that box, mirrored for a left ear. The input of stage 2 thus
resembles that of the VAE: right ears that fill the window.

One heatmap locates the centre of the ear. The features there and the code of the window give the size of the box and a
first estimate of all landmarks (Zhou et al. 2019, "Objects as Points"); one heatmap per landmark refines it.
Coordinates are expectations under the softmax of a heatmap (Sun et al. 2018, "Integral Human Pose Regression").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.checkpoints import fitting, load_model_folder
from core.files import must_hold
from core.losses.landmarks import soft_argmax
from core.unfreezing import frozen_context, is_frozen, set_frozen
from core.windows import box_to, cut, square_window, to_picture
from ear.anatomy import EAR17
from ear.crops import to_tensor
from ear.detector_windows import mirrored, whole
from ear.sam_encoder import SamEncoder
from ear.sam_vae import KIND as VAE
from ear.sam_vae import EarEncoder

KIND = "ear detector"  # in config.json
MAP_SIDE = 32  # minimum side of a heatmap, px; the grid of the encoder is doubled up to it
SPREAD = 0.2  # SD around a first estimate, as a share of the mean side of the box
NEAR = 0.08  # half the side of the square of `peak_mass`, as a share of the window side


@dataclass(frozen=True)
class Detection:
    """A detected ear, in px of the picture."""

    box: np.ndarray  # (4,) x0, y0, x1, y1
    score: float  # 0-1, concentration of the heatmap of the centre
    landmarks: np.ndarray  # (K, 2)
    side: str  # "left" or "right"; "" if the detector was trained without sides


class EarDetector(nn.Module):
    """Windows (B, 3, S, S) in [-1, 1], S = `image_size`, to a dict, all coordinates in window px:

    - `points` (B, K, 2), `centre` (B, 2), `box` (B, 4); `guess` (B, K, 2), first estimate of the landmarks
    - `maps` (B, K + 1, M, M), heatmap logits of each landmark and the centre; `score` (B,), 0-1
    - `left` (B,), logit of a left ear

    `freeze_encoder`: no gradients and no stored activations of the encoder. `margin`: of the window of stage 2, as a
    share of the longer side of the box. `width`: channels of the head. `flip`: as in `Schema`; None = no mirroring, for
    training ears of unknown side. Other arguments as `SamEncoder` and `EarVAE`.
    """

    def __init__(
        self, sam_config: str | dict = "base", sam_model: str | Path | None = None, sam_image_size: int = 1024,
        num_landmarks: int = len(EAR17.names), freeze_encoder: bool = False, freeze_layers: int = 6,
        freeze_embeddings: bool = False, gradient_checkpointing: bool = False, image_size: int = 128,
        margin: float = 0.3, width: int = 64, latent_dim: int = 1024, size: str | None = None,
        flip: Sequence[int] | None = None,
    ):  # fmt: skip
        super().__init__()
        size = size or (sam_config if isinstance(sam_config, str) else "base")
        sam = SamEncoder(
            sam_config, sam_model, sam_image_size, freeze_layers, freeze_embeddings, gradient_checkpointing
        )
        self.encoder = EarEncoder(sam, size, latent_dim)
        if freeze_encoder:
            set_frozen([self.encoder], True)
        self.head = DetectionHead(sam.channels, sam.grid, latent_dim, width, num_landmarks)
        self.num_landmarks, self.image_size, self.margin, self.flip = num_landmarks, image_size, margin, flip
        self.arguments = {
            "sam_config": sam.config, "sam_image_size": sam_image_size, "num_landmarks": num_landmarks,
            "freeze_encoder": freeze_encoder, "freeze_layers": freeze_layers, "freeze_embeddings": freeze_embeddings,
            "image_size": image_size, "margin": margin, "width": width,
            "latent_dim": latent_dim, "size": size, "flip": flip,
        }  # fmt: skip

    def train(self, mode: bool = True) -> "EarDetector":
        super().train(mode)
        if is_frozen(self.encoder):
            self.encoder.eval()  # keeps the batch norm statistics
        return self

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with frozen_context(self.encoder):
            features, _, code = self.encoder(images)
        maps, guess, size, left = self.head(features, code)
        points, centre = places(maps).split([self.num_landmarks, 1], dim=1)
        box = torch.cat([centre[:, 0] - size / 2, centre[:, 0] + size / 2], dim=1)
        shares = {"points": points, "centre": centre[:, 0], "box": box, "guess": guess}
        result = {name: share * self.image_size - 0.5 for name, share in shares.items()}
        return result | {"maps": maps, "score": peak_mass(maps[:, -1]), "left": left}

    @torch.no_grad()
    def predict(self, pixels: np.ndarray) -> Detection:
        """Two-stage inference on an RGB picture (H, W, 3) uint8. Always returns one ear; without an ear, its score is
        low. Leaves the model in eval mode."""
        self.eval()
        device, window, left = next(self.parameters()).device, whole(pixels), False
        for stage in (1, 2):
            crop = cut(pixels, window, self.image_size)
            image = to_tensor(crop[:, ::-1] if left else crop)
            found = {name: value[0].float().cpu().numpy() for name, value in self(image[None].to(device)).items()}
            points, box = found["points"], found["box"]
            if left:
                _, points, box = mirrored(crop, points, box, self.flip)
            box = box_to(box, to_picture, window, self.image_size)
            landmarks = to_picture(points, window, self.image_size)
            if stage == 1:
                window, left = square_window(box, self.margin), self.flip is not None and bool(found["left"] > 0)
        side = "" if self.flip is None else "left" if left else "right"
        return Detection(box, float(found["score"]), landmarks, side)

    @classmethod
    def from_vae_checkpoint(
        cls, checkpoint_path: Path, num_landmarks: int = len(EAR17.names), freeze_encoder: bool = False, **options
    ) -> "EarDetector":
        """Detector for training on the encoder of a VAE, from its run folder or `best/`. `options`: arguments of
        `EarDetector`, by default those of the VAE. Raises UserError if the folder holds no VAE."""
        state, config = load_model_folder(checkpoint_path, VAE)
        names = ("sam_config", "sam_image_size", "freeze_layers", "freeze_embeddings", "latent_dim", "size")
        taught = {name: config["model"][name] for name in names}
        model = cls(**{**taught, **options}, num_landmarks=num_landmarks, freeze_encoder=freeze_encoder)
        sam, side = model.encoder.sam, model.encoder.sam.size
        sam.resize(taught["sam_image_size"])
        model.encoder.load_state_dict(
            {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}
        )
        sam.resize(side)
        return model

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["EarDetector", dict]:
        """(model in eval mode, config) of a run of train_detector.py or its `best/`. Raises UserError for missing or
        other models."""
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, schema=dict, mean_ear=dict, taught=dict)
            must_hold(config["taught"], landmarks=dict)
            if not set(config["schema"].get("names", ())) <= config["taught"]["landmarks"].keys():
                raise ValueError("a landmark of the schema was not taught")
            model = cls(**config["model"])
            model.load_state_dict(state)
            return model.eval(), config


class DetectionHead(nn.Module):
    """Features (B, C, grid, grid) and codes (B, latent_dim) to heatmap logits (B, K + 1, M, M) of the landmarks and,
    last, the centre, M >= 32; first estimates of the landmarks (B, K, 2) and (width, height) of the box (B, 2), as
    shares of the window side; logits of a left ear (B,)."""

    def __init__(self, channels: int, grid: int, latent_dim: int, width: int, num_landmarks: int):
        super().__init__()
        layers = [_layer(nn.Conv2d(channels, width, 3, padding=1, bias=False))]
        while grid < MAP_SIDE:
            layers.append(_layer(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False)))
            grid *= 2
        self.enlarge = nn.Sequential(*layers)
        self.maps = nn.Conv2d(width, num_landmarks + 1, 1)
        self.shape = nn.Sequential(
            nn.Linear(channels + width + latent_dim, 128), nn.ReLU(inplace=True), nn.Linear(128, 3 + 2 * num_landmarks)
        )
        nn.init.constant_(self.shape[-1].bias[:2], np.log(0.5))  # initial box: half of the window

    def forward(self, features: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine = self.enlarge(features)
        maps = self.maps(fine).float()  # (B, K + 1, M, M)
        # No gradient through the heatmap of the centre.
        where = maps[:, -1:].detach().flatten(2).softmax(-1).view_as(maps[:, -1:])
        coarse = F.adaptive_avg_pool2d(where, features.shape[-1])
        coarse = coarse / coarse.sum(dim=(2, 3), keepdim=True)
        there = torch.cat([(features * coarse).sum(dim=(2, 3)), (fine * where).sum(dim=(2, 3)), code], dim=1)
        size, left, offsets = self.shape(there).float().tensor_split([2, 3], dim=1)
        size = size.exp()
        guess = places(maps[:, -1:]) + size[:, None] * offsets.unflatten(1, (-1, 2))  # (B, K, 2)
        prior = log_gaussians(guess.detach(), SPREAD * size.detach().mean(dim=1)[:, None, None], maps.shape[-1])
        return maps + F.pad(prior, (0, 0, 0, 0, 0, 1)), guess, size, left[:, 0]


def _layer(convolution: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


def places(maps: torch.Tensor) -> torch.Tensor:
    """Expected positions (B, K, 2) xy of heatmap logits (B, K, M, M), as shares (0-1) of the side."""
    return (soft_argmax(maps, beta=1.0) + 0.5) / maps.shape[-1]


def log_gaussians(points: torch.Tensor, sigma: torch.Tensor | float, side: int) -> torch.Tensor:
    """Logits (B, K, side, side) of Gaussians at points (B, K, 2); points and `sigma` as shares of the side."""
    steps = (torch.arange(side, device=points.device) + 0.5) / side
    across, down = (-0.5 * ((steps - points[..., axis, None]) / sigma) ** 2 for axis in (0, 1))  # (B, K, side)
    return down[..., :, None] + across[..., None, :]


def peak_mass(logits: torch.Tensor) -> torch.Tensor:
    """Largest share (B,) of the softmax of a heatmap (B, M, M) in a square of side 2 · NEAR; 1 for a single peak."""
    reach = round(NEAR * logits.shape[-1])
    probability = logits.detach().float().flatten(1).softmax(dim=1).view_as(logits)[:, None]
    window = 2 * reach + 1
    return F.avg_pool2d(probability, window, stride=1, padding=reach, divisor_override=1).amax(dim=(1, 2, 3))
