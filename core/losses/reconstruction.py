"""Losses between pictures `(B, C, H, W)`, and losses on the latent code of a variational autoencoder."""

import math
from os import PathLike
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import first_line
from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape
from core.losses.spectral import unit_vectors

# Names of the ReLUs in the literature, and their indices in torchvision's `vgg16().features`.
VGG16_LAYERS = {
    "relu1_1": 1, "relu1_2": 3,
    "relu2_1": 6, "relu2_2": 8,
    "relu3_1": 11, "relu3_2": 13, "relu3_3": 15,
    "relu4_1": 18, "relu4_2": 20, "relu4_3": 22,
    "relu5_1": 25, "relu5_2": 27, "relu5_3": 29,
}  # fmt: skip


class SSIMLoss(nn.Module):
    """`1 − SSIM` (Wang et al. 2004, "Image Quality Assessment"), by torchmetrics with an 11×11 Gaussian of σ = 1.5 px.

    `data_range`: R for pictures in [0, R], or (low, high). Pictures are shifted to start at 0, because the luminance
    term `(2μ₁μ₂ + c₁) / (μ₁² + μ₂² + c₁)` assumes non-negative means: in [−1, 1], it is about 0 for two mid-greys of
    opposite sign. Values out of range are not clipped and keep their gradient.
    Raises ValueError for an empty range and for pictures of different shapes.
    """

    def __init__(self, data_range: float | tuple[float, float]):
        super().__init__()
        self.low, self.high = data_range if isinstance(data_range, tuple | list) else (0.0, data_range)
        _check_range(self.low, self.high)

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction and target `(B, C, H, W)`, at least 6×6 pixels -> scalar in [0, 2]."""
        from torchmetrics.functional.image import structural_similarity_index_measure  # imported on use: takes seconds

        check_same_shape(prediction, target)
        return 1 - structural_similarity_index_measure(
            prediction - self.low, target - self.low, data_range=self.high - self.low
        )


class EdgeLoss(nn.Module):
    """L1 between image gradients: mean of `|∂x ŷ − ∂x y|` and `|∂y ŷ − ∂y y|` over pixels and channels.

    Gradients in intensity per pixel by Scharr's 3×3 operator (central difference, smoothed by [3, 10, 3] / 16), without
    padding. Unlike magnitudes, components have no infinite gradient in flat areas and include the edge direction.
    Raises ValueError if the shapes differ or a side is below 3 pixels.
    """

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction and target `(B, C, H, W)` -> scalar."""
        check_same_shape(prediction, target)
        if min(prediction.shape[-2:]) < 3:
            raise ValueError(f"edges need pictures of at least 3×3 pixels, got {tuple(prediction.shape)}")
        difference = prediction - target  # the operator is linear
        return (_scharr_x(difference).abs().mean() + _scharr_x(difference.mT).abs().mean()) / 2


class CenterWeightedL1(nn.Module):
    """L1 weighted by a central Gaussian: `mean(w |ŷ − y|)` with `w ∝ exp(−(x² + y²) / 2σ²)` and mean(w) = 1.

    x and y run from −1 to 1 between the edges of the picture, so sigma is in half sides. With 0.35, the weights of a
    large picture are 5.2 at the centre and 0.09 in the middle of a side. Raises ValueError if the shapes differ.
    """

    def __init__(self, sigma: float = 0.35):
        super().__init__()
        self.sigma = sigma

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction and target `(B, C, H, W)` -> scalar."""
        check_same_shape(prediction, target)
        height, width = prediction.shape[-2:]
        weight = self._profile(height, prediction)[:, None] * self._profile(width, prediction)  # (H, W)
        return (weight * (prediction - target).abs()).mean()

    def _profile(self, size: int, like: Tensor) -> Tensor:
        """Weights `(size,)` along one side, with a mean of 1; the Gaussian is separable."""
        x = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size * 2 - 1
        profile = torch.exp(-x.square() / (2 * self.sigma**2))
        return profile / profile.mean()


class PerceptualLoss(nn.Module):
    """Mean absolute difference of VGG16 features, averaged over `layers`.

    After Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer" (relu1_2, relu2_2, relu3_3, relu4_3),
    with L1 as in pix2pixHD (Wang et al. 2018): squares would give the large activations of deep layers too much weight.
    Pictures `(B, 1 or 3, H, W)` in `data_range` are scaled to [0, 1] and normalised as for ImageNet; grey is repeated.

    The weights are torchvision's (ImageNet, a download of 528 MB), or those of `weights_file`: a .safetensors or .pth
    file with the keys `features.N.weight` and `features.N.bias`, with or without the prefix. They are non-persistent
    buffers: the loss has no parameters and an empty `state_dict()`, and follows `.to(device)`.

    Raises OSError for a failed download or a missing file, and ValueError for a file without these weights, an unknown
    layer, an empty range, and pictures of different shapes or other numbers of channels.
    """

    def __init__(
        self,
        weights_file: str | PathLike | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
        layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
    ):
        from torchvision.models import vgg16

        super().__init__()
        unknown = set(layers) - set(VGG16_LAYERS)
        if unknown or not layers:
            raise ValueError(f"layers must be among {', '.join(VGG16_LAYERS)}; got {layers}")
        self.low, self.high = data_range
        _check_range(self.low, self.high)
        self.taps = {VGG16_LAYERS[name] for name in layers}
        with torch.device("meta"):  # architecture only: no memory, no random numbers
            self.features = vgg16(weights=None).features[: max(self.taps) + 1]
        _fill_with_constants(self.features, _read_vgg16_weights(weights_file), weights_file)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in eval mode."""
        return super().train(False)

    @full_precision
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction and target `(B, 1 or 3, H, W)`, at least 8×8 pixels for relu4_3 -> scalar."""
        check_same_shape(prediction, target)
        if prediction.shape[1] not in (1, 3):
            raise ValueError(f"pictures must have 1 or 3 channels, got {tuple(prediction.shape)}")
        pairs = zip(self._features(prediction), self._features(target), strict=True)
        return torch.stack([F.l1_loss(ours, theirs) for ours, theirs in pairs]).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        x = (images - self.low) / (self.high - self.low)
        x = (x - self.mean) / self.std  # (B, 3, H, W): grey is broadcast
        tapped = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                tapped.append(x)
        return tapped


@full_precision
def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mu, exp(logvar)) from N(0, I) in nats, summed over latents: mu and logvar `(B, D)` -> scalar.

    `½ Σ_d (mu² + exp(logvar) − 1 − logvar)` (Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B),
    mean over the batch. logvar is clamped to [−30, 20], since exp overflows in float32. Raises ValueError if the shapes
    differ.
    """
    check_same_shape(mu, logvar)
    logvar = logvar.clamp(-30, 20)
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()


@full_precision
def contrastive_loss(z: Tensor, z_other: Tensor | None = None, temperature: float = 0.5) -> Tensor:
    """Contrastive loss on latent codes z `(B, D)` and, optionally, z_other `(B, D)` of a second view -> scalar.

    With the cosine similarity s:
    two views: NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning", eq. 1), mean over all 2B codes
    of `−log(exp(s_ij / τ) / Σ_{k≠i} exp(s_ik / τ))`, where j is the other view of i;
    one view: `log mean_{i≠j} exp(s_ij / τ)`, only the repulsion (uniformity term of Wang & Isola 2020), between −1/τ
    and 1/τ, and 0 for orthogonal codes. A batch of one gives a 0 attached to the graph.
    Raises ValueError if the shapes differ.
    """
    if z_other is not None:
        check_same_shape(z, z_other)
        z = torch.cat([z, z_other])  # (2B, D)
    count = len(z)
    z = unit_vectors(z, dim=1)
    if count == 1:
        return 0.0 * z.sum()
    itself = torch.eye(count, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -math.inf)
    if z_other is None:
        return logits.flatten().logsumexp(dim=0) - math.log(count * (count - 1))
    other_view = torch.arange(count, device=z.device).roll(count // 2)
    return F.cross_entropy(logits, other_view)


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"data_range must be increasing, got {low} to {high}")


def _scharr_x(images: Tensor) -> Tensor:
    """Horizontal derivative `(B, C, H, W)` -> `(B, C, H−2, W−2)`, in intensity per pixel."""
    slope = (images[..., 2:] - images[..., :-2]) / 2
    return (3 * slope[..., :-2, :] + 10 * slope[..., 1:-1, :] + 3 * slope[..., 2:, :]) / 16


def _read_vgg16_weights(weights_file: str | PathLike | None) -> dict[str, Tensor]:
    """Weights by key, from torchvision's download or from a file."""
    if weights_file is None:
        from torchvision.models import VGG16_Weights

        try:
            return VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"cannot download the VGG16 weights ({first_line(error)}). Offline: copy "
                f"{VGG16_Weights.IMAGENET1K_V1.url} to this machine and give that file"
            ) from error
    path = Path(weights_file)
    if not path.is_file():
        raise FileNotFoundError(f"weights_file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # exceptions depend on the format and do not name the file
        reason = first_line(error)
        raise ValueError(f"weights_file {path} is damaged or not a .safetensors or .pth file ({reason})") from error


def _fill_with_constants(features: nn.Sequential, weights: dict[str, Tensor], source: str | PathLike | None) -> None:
    """Replaces each parameter by a float32 buffer of the same name, which is not part of `state_dict()`."""
    if not isinstance(weights, dict):
        raise ValueError(f"weights_file {source} holds a {type(weights).__name__}, not a dict of weights")
    weights = {key.removeprefix("features."): value for key, value in weights.items()}
    for key, parameter in list(features.named_parameters()):
        if key not in weights or weights[key].shape != parameter.shape:
            raise ValueError(
                f"weights_file {source} does not hold VGG16: features.{key} of shape {tuple(parameter.shape)} is "
                "missing or has another shape; use the features of torchvision's vgg16"
            )
        index, name = key.split(".")
        layer = features[int(index)]
        delattr(layer, name)
        layer.register_buffer(name, weights[key].float(), persistent=False)
