"""EarVAE: a variational autoencoder (Kingma & Welling 2014) of ear pictures on the encoder of SAM.

Three convolutional layers and a linear head map the SAM features to a latent code, the only input of the decoder.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from core.attention import spatial_attention
from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold
from ear.sam_encoder import SamEncoder

KIND = "ear VAE"  # in config.json
LAYERS = {"base": (256, 512, 512), "tiny": (64, 64, 96)}  # channels of the custom layers
DECODER_WIDTHS = {"base": 512, "tiny": 64}  # channels at 4×4
CODE_GRID = 4  # side of the last feature map of the encoder and of the first of the decoder
LOGVAR_RANGE = (-30.0, 20.0)  # exp overflows above 88 in float32, above 11 in float16


class EarVAE(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1], S = `image_size`, to a dict: `reconstruction` (B, 3, S, S), `mu` and `logvar`
    (B, latent_dim).

    `size`: width of the custom layers and the decoder, "base" or "tiny" (default: as `sam_config`). Other arguments as
    `SamEncoder`. Raises UserError as `SamEncoder`, and for an `image_size` other than 8, 16, 32 …
    """

    def __init__(
        self, sam_config: str | dict = "base", sam_model: str | Path | None = None, sam_image_size: int = 1024,
        latent_dim: int = 1024, image_size: int = 128, freeze_layers: int = 6, freeze_embeddings: bool = False,
        gradient_checkpointing: bool = False, size: str | None = None,
    ):  # fmt: skip
        super().__init__()
        size = size or (sam_config if isinstance(sam_config, str) else "base")
        sam = SamEncoder(
            sam_config, sam_model, sam_image_size, freeze_layers, freeze_embeddings, gradient_checkpointing
        )
        self.encoder = EarEncoder(sam, size, latent_dim)
        self.logvar = nn.Linear(self.encoder.mu.in_features, latent_dim)
        nn.init.zeros_(self.logvar.weight)  # little initial noise
        nn.init.constant_(self.logvar.bias, -4.0)
        self.decoder = EarDecoder(DECODER_WIDTHS[size], latent_dim, image_size)
        self.latent_dim, self.image_size = latent_dim, image_size
        self.arguments = {
            "sam_config": sam.config, "sam_image_size": sam_image_size, "latent_dim": latent_dim,
            "image_size": image_size, "freeze_layers": freeze_layers, "freeze_embeddings": freeze_embeddings,
            "size": size,
        }  # fmt: skip

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (B, latent_dim) of the codes of pictures (B, 3, S, S)."""
        _, pooled, mu = self.encoder(images)
        return mu, self.logvar(pooled).clamp(*LOGVAR_RANGE)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, S, S) in [-1, 1] of codes (B, latent_dim)."""
        return self.decoder(z)

    def forward(self, images: torch.Tensor, other_view: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Samples the codes in training mode, uses their means in eval mode. `other_view` (B, 3, S, S), a second view
        of the ears, adds the means of its codes as `mu_other`."""
        if other_view is None:
            mu, logvar = self.encode(images)
        else:
            (mu, mu_other), (logvar, _) = (x.chunk(2) for x in self.encode(torch.cat([images, other_view])))
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu) if self.training else mu
        result = {"reconstruction": self.decode(z), "mu": mu, "logvar": logvar}
        return result if other_view is None else {**result, "mu_other": mu_other}

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["EarVAE", dict]:
        """(model in eval mode, config) of a run folder or its `best/`. Raises UserError for missing or other models."""
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, data=dict, taught=dict)
            model = cls(**config["model"])
            model.load_state_dict(state)
            return model.eval(), config

    @classmethod
    def from_pretrained(cls, folder: Path) -> "EarVAE":
        """Model in eval mode of a run folder or its `best/`. Raises UserError as `from_folder`."""
        return cls.from_folder(folder)[0]


class EarEncoder(nn.Module):
    """SAM, three layers that halve the grid down to 4×4, and a linear head: pictures (B, 3, H, W) in [-1, 1] to SAM
    features (B, `sam.channels`, `sam.grid`, `sam.grid`), features of the layers, pooled to 4×4 and flattened (B, P),
    and means of the codes (B, latent_dim). `size`: width of the layers, "base" or "tiny"."""

    def __init__(self, sam: SamEncoder, size: str, latent_dim: int):
        super().__init__()
        self.sam, widths = sam, LAYERS[size]
        grid, layers = sam.grid, []
        for inner, outer in pairwise((sam.channels, *widths)):
            stride = 2 if grid > CODE_GRID else 1
            layers.append(AttentiveLayer(inner, outer, stride))
            grid = -(-grid // stride)
        self.layers = nn.Sequential(*layers)
        # Grids of 64, 42, 28 and 14 are now 8, 6, 4 and 4. The norm restores the scale after attention and pooling.
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(CODE_GRID), nn.BatchNorm2d(widths[-1], affine=False))
        self.mu = nn.Linear(widths[-1] * CODE_GRID**2, latent_dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.sam(images)
        pooled = self.pool(self.layers(features)).flatten(1)
        return features, pooled, self.mu(pooled)


class AttentiveLayer(nn.Module):
    """Residual block of convolutions with batch norm and ReLU, then spatial attention: (B, C, H, W) ->
    (B, D, H / stride, W / stride).

    The shortcut is linear (He et al. 2016, "Identity Mappings in Deep Residual Networks"): with a ReLU after each sum,
    a small model learnt much more slowly.
    """

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            _conv(inner, outer, stride), nn.BatchNorm2d(outer), nn.ReLU(inplace=True),
            _conv(outer, outer), nn.BatchNorm2d(outer), nn.ReLU(inplace=True),
            _conv(outer, outer), nn.BatchNorm2d(outer),
        )  # fmt: skip
        nn.init.constant_(self.residual[-1].weight, 0.1)
        self.shortcut = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(inner, outer, 1, bias=False))
        nn.init.orthogonal_(self.shortcut[1].weight)
        self.attention = spatial_attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(self.shortcut(x) + self.residual(x))


class EarDecoder(nn.Module):
    """Codes (B, latent_dim) to pictures (B, 3, S, S) in [-1, 1] by transposed convolutions: 4×4, 8×8 …

    The code also scales and shifts the normalised features of every stage (Perez et al. 2018, "FiLM").
    """

    def __init__(self, width: int, latent_dim: int, image_size: int):
        super().__init__()
        stages = (image_size // CODE_GRID).bit_length() - 1
        if stages < 1 or image_size != CODE_GRID * 2**stages:
            raise UserError(f"--image_size {image_size} is not 8, 16, 32, 64, 128, 256 …: each stage doubles the side")
        widths = [width, *(max(16, width >> stage) for stage in range(stages))]  # 512, 512, 256, 128 …
        self.enter = nn.Linear(latent_dim, width * CODE_GRID**2)
        self.stages = nn.ModuleList(DecoderStage(inner, outer, latent_dim) for inner, outer in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.enter(z).unflatten(1, (-1, CODE_GRID, CODE_GRID))
        for stage in self.stages:
            x = stage(x, z)
        return self.leave(x).tanh()


class DecoderStage(nn.Module):
    """Upsampling of features (B, C, H, W) to (B, D, 2H, 2W), and a residual block modulated by codes z
    (B, latent_dim)."""

    def __init__(self, inner: int, outer: int, latent_dim: int):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)  # no checkerboard artefacts
        self.convs = nn.ModuleList(_conv(outer, outer) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, outer, affine=False) for _ in range(2))
        self.films = nn.ModuleList(nn.Linear(latent_dim, 2 * outer) for _ in range(2))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x = residual = self.enlarge(x)
        for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
            scale, shift = film(z)[..., None, None].chunk(2, dim=1)  # (B, D, 1, 1)
            residual = conv((norm(residual) * (1 + scale) + shift).relu())
        return x + residual


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
