"""EarVAE: a variational autoencoder of ear pictures on SAM's encoder.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes". SAM's features pass three convolutional layers and become a
latent code. The decoder has no other input: eigenears, interpolation and sampling show what the code holds.
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
CODE_GRID = 4  # side of the map that becomes the code, and of the one that the code becomes
LOGVAR_RANGE = (-30.0, 20.0)  # exp overflows in float32 from 88, in float16 from 11


class EarVAE(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1], S = `image_size`, to a dict: `reconstruction` like them, `mu` and `logvar`
    (B, latent_dim).

    For `sam_config`, `sam_model`, `sam_image_size`, `freeze_layers` and the others see `SamEncoder`. `size` chooses the
    custom layers' and the decoder's widths, "base" or "tiny"; left out, those of `sam_config`. Raises UserError for an
    `image_size` that is not 8, 16, 32 …
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
        nn.init.zeros_(self.logvar.weight)  # starts with little noise for every picture
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
        """The pictures (B, 3, S, S) in [-1, 1] of codes (B, latent_dim)."""
        return self.decoder(z)

    def forward(self, images: torch.Tensor, other_view: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Draws the codes in training, and takes their means in eval. With an `other_view` (B, 3, S, S) of the same
        ears, the means of its codes come as `mu_other`."""
        if other_view is None:
            mu, logvar = self.encode(images)
        else:
            (mu, mu_other), (logvar, _) = (x.chunk(2) for x in self.encode(torch.cat([images, other_view])))
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu) if self.training else mu
        result = {"reconstruction": self.decode(z), "mu": mu, "logvar": logvar}
        return result if other_view is None else {**result, "mu_other": mu_other}

    @classmethod
    def from_folder(cls, folder: Path) -> tuple["EarVAE", dict]:
        """(model in eval mode, config) of a training run or its `best/`. Raises UserError if it is another model's."""
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, data=dict, taught=dict)
            model = cls(**config["model"])
            model.load_state_dict(state)
            return model.eval(), config

    @classmethod
    def from_pretrained(cls, folder: Path) -> "EarVAE":
        """The model, in eval mode, of a training run or its `best/`."""
        return cls.from_folder(folder)[0]


class EarEncoder(nn.Module):
    """SAM, three layers that halve the grid while it is above the code's, and a linear head: pictures (B, 3, H, W) in
    [-1, 1] to SAM's features (B, `sam.channels`, `sam.grid`, `sam.grid`), those of the layers pooled to 4×4 and flat
    (B, P), and the means of the codes (B, latent_dim). `size`: "base" or "tiny", the layers' widths."""

    def __init__(self, sam: SamEncoder, size: str, latent_dim: int):
        super().__init__()
        self.sam, widths = sam, LAYERS[size]
        grid, layers = sam.grid, []
        for inner, outer in pairwise((sam.channels, *widths)):
            stride = 2 if grid > CODE_GRID else 1
            layers.append(AttentiveLayer(inner, outer, stride))
            grid = -(-grid // stride)
        self.layers = nn.Sequential(*layers)
        # Grids of 64, 42, 28 and 14 have become 8, 6, 4 and 4. Attention and pooling shrink features: bring them back.
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(CODE_GRID), nn.BatchNorm2d(widths[-1], affine=False))
        self.mu = nn.Linear(widths[-1] * CODE_GRID**2, latent_dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.sam(images)
        pooled = self.pool(self.layers(features)).flatten(1)
        return features, pooled, self.mu(pooled)


class AttentiveLayer(nn.Module):
    """Convolutions with batch norm and ReLU, a residual connection around them, spatial attention: (B, C, H, W) ->
    (B, D, H / stride, W / stride).

    The way around is linear (He et al. 2016, "Identity Mappings in Deep Residual Networks") and open at the start, so
    that SAM's features reach the code at once: with a ReLU after each sum, a small model learnt far more slowly.
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
    """Codes (B, latent_dim) to pictures (B, 3, S, S) in [-1, 1]: 4×4, 8×8 … by transposed convolutions.

    The code enters every stage again, as scale and shift of its normalised features (Perez et al. 2018, "FiLM"):
    details need not be carried through the coarse maps.
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
    """Doubles a map (B, C, H, W) to (B, D, 2H, 2W), then adds a residual block that z scales and shifts twice."""

    def __init__(self, inner: int, outer: int, latent_dim: int):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)  # 4 / 2: every pixel gets equal shares
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
