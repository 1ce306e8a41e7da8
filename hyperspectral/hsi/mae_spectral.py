"""Masked autoencoder for hyperspectral cubes: tokens of 25×25 px × 5 bands, a fifth of which are visible to the
encoder.

Masked autoencoders: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners". Spatial-spectral tokens with
separable positions: Cong et al. 2022, "SatMAE"; Hong et al. 2024, "SpectralGPT". Decoder `cross`: Fu et al. 2024,
"Rethinking Patch Dependence for Masked Autoencoders" (CrossMAE). Transformer blocks from timm.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoints import fitting, load_model_folder
from core.errors import UserError
from core.files import must_hold

KIND = "masked autoencoder"  # in config.json
LayerNorm = partial(nn.LayerNorm, eps=1e-6)
DECODERS = ("full", "cross")

# Sizes of the reference; others with the flags of train.py.
IMG_SIZE, PATCH_SIZE, BANDS = 500, (25, 5), 30  # px; px and bands of a token; bands of a cube
_SIZES = {  # encoder layers, heads, width; decoder layers, heads, width
    "mae_tiny": (12, 3, 192, 8, 3, 96),
    "mae_small": (12, 6, 384, 8, 6, 192),
    "mae_base": (12, 12, 768, 8, 12, 384),
    "mae_medium": (16, 16, 512, 8, 8, 256),
    "mae_large": (24, 16, 1024, 8, 16, 512),
    "mae_huge": (32, 16, 1280, 8, 16, 512),
}
_NAMES = ("encoder_depth", "encoder_num_heads", "embed_dim", "decoder_depth", "decoder_num_heads", "decoder_embed_dim")
VARIANTS = {name: dict(zip(_NAMES, sizes, strict=True)) for name, sizes in _SIZES.items()}


class Features(NamedTuple):
    """Features of whole cubes; D: width of the encoder, S × h × w: grid of tokens."""

    tokens: Tensor  # (B, S·h·w, D), bands vary slowest, columns fastest
    pooled: Tensor  # (B, D), their mean
    grid: Tensor  # (B, S, h, w, D)


class MAESpectral(nn.Module):
    """Masked autoencoder of cubes (B, C, H, W) in raw units. `forward` returns a dict:

    - `patches` (B, S, J, P): predicted tokens, as z-scores of their bands; P values in the order (band, row, column)
    - `target` (B, S, J, P): true tokens
    - `hidden` (B, S, J) bool: masked tokens
    - `columns` (B, J): spatial positions of the tokens, among L = h·w

    J is L, or the share `decode_ratio` of L while training with the decoder `cross`: whole columns are decoded, so that
    every decoded pixel has a complete spectrum for the spectral angle.

    `img_size`: height and width in px, or one number if equal; `patch_size` (px, bands) divides them and `in_chans`.
    Band means and standard deviations are buffers of the model (`set_statistics`). With `norm_pix_loss`, predictions
    are relative to the mean and standard deviation of the true token, as in He et al., which are unknown for hidden
    tokens in practice. Raises UserError for sizes that do not fit.
    """

    def __init__(
        self, img_size: int | Sequence[int] = IMG_SIZE, patch_size: Sequence[int] = PATCH_SIZE, in_chans: int = BANDS,
        embed_dim: int = 512, encoder_depth: int = 16, encoder_num_heads: int = 16,
        decoder_embed_dim: int = 256, decoder_depth: int = 8, decoder_num_heads: int = 8,
        mask_ratio: float = 0.8, decoder: str = "full", decode_ratio: float = 0.25, norm_pix_loss: bool = False,
    ):  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.img_size, (self.patch, self.patch_bands) = _pair(img_size), patch_size
        self.arguments = arguments | {"img_size": self.img_size, "patch_size": tuple(patch_size)}
        _check(self.arguments)
        self.grid = (in_chans // self.patch_bands, self.img_size[0] // self.patch, self.img_size[1] // self.patch)
        self.n_columns = self.grid[1] * self.grid[2]
        self.n_tokens = self.grid[0] * self.n_columns
        self.n_visible = max(1, round(self.n_tokens * (1 - mask_ratio)))  # int() gives 479 for 2400 · (1 − 0.8)
        self.n_decoded = max(1, round(self.n_columns * decode_ratio)) if decoder == "cross" else self.n_columns
        self.n_noise = self.n_tokens + self.n_columns  # random numbers per cube for `forward`
        self.norm_pix_loss = norm_pix_loss
        values = self.patch_bands * self.patch**2
        self.encoder = Encoder(values, embed_dim, encoder_depth, encoder_num_heads, self.grid)
        kind = FullDecoder if decoder == "full" else CrossDecoder
        self.decoder = kind(values, embed_dim, decoder_embed_dim, decoder_depth, decoder_num_heads, self.grid)
        self.register_buffer("mean", torch.zeros(in_chans))
        self.register_buffer("std", torch.ones(in_chans))
        self.apply(_initialise)

    # ------------------------------------------------------------------------------------------------ tokens

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets mean and standard deviation of each band (C,), in raw units."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def normalize(self, cube: Tensor) -> Tensor:
        """Cubes (B, C, H, W) in raw units to z-scores of each band."""
        return (cube - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def denormalize(self, cube: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return cube * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)

    def patchify(self, cube: Tensor) -> Tensor:
        """Cubes (B, C, H, W) to tokens (B, N, P): N in the order (band group, row, column), P (band, row, column)."""
        s, h, w = self.grid
        x = cube.reshape(-1, s, self.patch_bands, h, self.patch, w, self.patch)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(cube), self.n_tokens, -1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of `patchify`: (B, N, P) -> (B, C, H, W)."""
        s, h, w = self.grid
        x = tokens.reshape(-1, s, h, w, self.patch_bands, self.patch, self.patch)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(tokens), -1, *self.img_size)

    def draw_mask(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Visible tokens (B, K), in increasing order, and hidden tokens (B, N) bool, from noise (B, N) in [0, 1).

        The K lowest values of each cube are visible: a fixed number, with equal probability for all tokens.
        """
        visible = noise.argsort(dim=1)[:, : self.n_visible].sort(dim=1).values
        hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False)
        return visible, hidden

    # ------------------------------------------------------------------------------------------------ training

    def forward(self, cube: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See the class. `noise` (B, `n_noise`) in [0, 1) determines masked and decoded tokens (default: random)."""
        if noise is None:
            noise = torch.rand(len(cube), self.n_noise, device=cube.device)
        target = self.patchify(self.normalize(cube))  # (B, N, P)
        visible, hidden = self.draw_mask(noise[:, : self.n_tokens])
        encoded = self.encoder(_take(target, visible), visible)  # (B, K, D)
        target, hidden = target.unflatten(1, (self.grid[0], -1)), hidden.unflatten(1, (self.grid[0], -1))
        n = self.n_decoded if self.training else self.n_columns
        if n == self.n_columns:
            columns = torch.arange(n, device=cube.device).expand(len(cube), -1)
        else:
            columns = noise[:, self.n_tokens :].argsort(dim=1)[:, :n].sort(dim=1).values
            chosen = columns[:, None].expand(-1, self.grid[0], -1)
            hidden = hidden.gather(2, chosen)
            target = target.gather(2, chosen[..., None].expand(*chosen.shape, target.shape[-1]))
        patches = self.decoder(encoded, visible, columns).unflatten(1, (self.grid[0], -1)).float()  # (B, S, J, P)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            patches = patches * (variance + 1e-6).sqrt() + mean
        return {"patches": patches, "target": target, "hidden": hidden, "columns": columns}

    def assemble(self, prediction: dict[str, Tensor], cube: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction, hidden), both (B, C, H, W): raw units, with hidden voxels from `prediction` and visible ones
        from `cube`; and the mask of hidden voxels. `prediction`: output in eval mode, with all columns."""
        patches, hidden = prediction["patches"].flatten(1, 2), prediction["hidden"].flatten(1, 2)
        hidden = self.unpatchify(hidden[..., None].expand_as(patches))
        return torch.where(hidden, self.denormalize(self.unpatchify(patches)), cube), hidden

    # ------------------------------------------------------------------------------------------------ features

    def encode(self, cube: Tensor) -> Features:
        """Features of whole cubes (B, C, H, W), without masking."""
        tokens = self.encoder(self.patchify(self.normalize(cube)))
        return Features(tokens, tokens.mean(dim=1), tokens.unflatten(1, self.grid))

    def no_weight_decay(self) -> set[str]:
        """Names of the position embeddings and of the mask token, which have no weight decay."""
        names = {f"{part}.positions.{axis}" for part in ("encoder", "decoder") for axis in ("plane", "spectrum")}
        return names | {"decoder.mask_token"}

    # ------------------------------------------------------------------------------------------------ folders

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        img_size: int | Sequence[int] | None = None,
        wavelengths: Sequence[float] | None = None,
        **changes,
    ) -> tuple["MAESpectral", dict]:
        """(model in eval mode, config) of a `best/` folder, optionally for other `img_size` and `wavelengths`.

        Position embeddings and band statistics are then resampled (`resized`). `changes`: other arguments of the model;
        None = unchanged. The returned config has the model and wavelengths of the returned model. Raises UserError for
        another kind of model and for sizes that do not fit.
        """
        state, config = load_model_folder(folder, KIND)
        with fitting(folder):
            must_hold(config, wavelengths=list, h5_key=str, unit=str, split_fractions=list)
            must_hold(config, statistics=dict, taught=dict)
            old = config["wavelengths"]
            wavelengths = list(wavelengths or old)
            changes |= {"in_chans": len(wavelengths), "img_size": img_size}
            model = cls(**config["model"] | {name: value for name, value in changes.items() if value is not None})
            model.load_state_dict(resized(state, config["model"], old, model, wavelengths))
            return model.eval(), config | {"model": model.arguments, "wavelengths": wavelengths}


def resized(
    state: dict[str, Tensor], arguments: dict, old: Sequence[float], model: MAESpectral, new: Sequence[float]
) -> dict[str, Tensor]:
    """Weights of a model with `arguments` and bands at `old` nm, resampled for `model` with bands at `new` nm.

    Spatial positions: bicubic; spectral positions: linear in the mean wavelength of each group; band means and standard
    deviations: linear in the wavelength. Constant beyond the ends.
    """
    size, (patch, bands) = _pair(arguments["img_size"]), arguments["patch_size"]
    grid = (size[0] // patch, size[1] // patch)
    centres = [np.reshape(nm, (-1, n)).mean(axis=1) for nm, n in ((old, bands), (new, model.patch_bands))]
    state = dict(state)
    for name, weights in state.items():
        if name.endswith("positions.plane") and grid != model.grid[1:]:
            # Not by timm: older versions skip square grids with the same number of positions.
            picture = weights.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, h, w)
            picture = F.interpolate(picture, model.grid[1:], mode="bicubic", antialias=True, align_corners=False)
            state[name] = picture.flatten(2).mT
        elif name.endswith("positions.spectrum"):
            state[name] = _interpolate(weights[0], *centres)[None]
        elif name in ("mean", "std"):
            state[name] = _interpolate(weights[:, None], old, new)[:, 0]
    return state


# ---------------------------------------------------------------------------------------------------------- parts


class Positions(nn.Module):
    """Separable position embeddings: spatial plus spectral, both learned, initialised with sines and cosines (Vaswani
    et al. 2017)."""

    def __init__(self, dim: int, grid: tuple[int, int, int]):
        super().__init__()
        from timm.layers import build_sincos2d_pos_embed

        groups, *plane = grid
        self.plane = nn.Parameter(build_sincos2d_pos_embed(plane, dim)[None])  # (1, h·w, D)
        angle = torch.arange(groups)[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2))
        self.spectrum = nn.Parameter(torch.cat([angle.sin(), angle.cos()], dim=1)[None])  # (1, S, D)

    def forward(self) -> Tensor:
        """Embeddings (1, N, D), in the order of the tokens."""
        return (self.spectrum[:, :, None] + self.plane[:, None]).flatten(1, 2)


class Encoder(nn.Module):
    """Encoder of tokens (B, K, P), with their numbers (B, K) if these are not all N, to features (B, K, D)."""

    def __init__(self, values: int, dim: int, depth: int, heads: int, grid: tuple[int, int, int]):
        super().__init__()
        self.embed = nn.Linear(values, dim)
        self.positions = Positions(dim, grid)
        self.blocks = nn.ModuleList(_block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim)

    def forward(self, tokens: Tensor, which: Tensor | None = None) -> Tensor:
        positions = self.positions().expand(len(tokens), -1, -1)
        x = self.embed(tokens) + (positions if which is None else _take(positions, which))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def _block(dim: int, heads: int) -> nn.Module:
    """Transformer block: (B, N, D) -> (B, N, D)."""
    from timm.models.vision_transformer import Block

    return Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm)


class FullDecoder(nn.Module):
    """Decoder of features (B, K, D) of the visible tokens (B, K) to all tokens (B, N, P), with self-attention."""

    make_block = staticmethod(_block)

    def __init__(self, values: int, width: int, dim: int, depth: int, heads: int, grid: tuple[int, int, int]):
        super().__init__()
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = Positions(dim, grid)
        self.blocks = nn.ModuleList(self.make_block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, values)

    def forward(self, encoded: Tensor, visible: Tensor, columns: Tensor) -> Tensor:
        positions = self.positions()
        x = self.embed(encoded)
        tokens = self.mask_token.to(x.dtype).expand(len(x), positions.shape[1], -1)
        x = tokens.scatter(1, visible[..., None].expand_as(x), x) + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class CrossBlock(nn.Module):
    """Transformer block with cross-attention from tokens (B, Q, D) to a memory (B, K, D), without self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        from timm.layers import Mlp

        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query = self._split(self.query(self.norm1(x)))
        key, value = map(self._split, self.key_value(memory).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, D / heads)


class CrossDecoder(FullDecoder):
    """Decoder of features (B, K, D) of the visible tokens (B, K) to the tokens of columns (B, J): (B, S·J, P).

    Decoded tokens attend to the visible ones only: the cost is proportional to the number of columns.
    """

    make_block = CrossBlock

    def forward(self, encoded: Tensor, visible: Tensor, columns: Tensor) -> Tensor:
        positions = self.positions().expand(len(encoded), -1, -1)
        memory = self.embed(encoded) + _take(positions, visible)
        groups, places = self.positions.spectrum.shape[1], self.positions.plane.shape[1]
        tokens = torch.arange(groups, device=columns.device)[:, None] * places + columns[:, None]  # (B, S, J)
        x = self.mask_token + _take(positions, tokens.flatten(1))
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _take(x: Tensor, which: Tensor) -> Tensor:
    """Rows `which` (B, K) of x (B, N, D), cube by cube: (B, K, D)."""
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))


def _interpolate(values: Tensor, old: Sequence[float], new: Sequence[float]) -> Tensor:
    """Linear interpolation of rows (A, D) from increasing positions `old` (A,) to positions `new` (B,): (B, D)."""
    if np.array_equal(old, new):
        return values
    index = np.interp(new, old, np.arange(len(old)))
    below = torch.from_numpy(index).long().clamp(max=len(old) - 1)
    share = torch.from_numpy(index).to(values.dtype)[:, None] - below[:, None]
    return values[below] * (1 - share) + values[(below + 1).clamp(max=len(old) - 1)] * share


def _initialise(module: nn.Module) -> None:
    """Initialisation of He et al. 2022: Xavier for weights, zero for biases; mask tokens with SD 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, FullDecoder):
        nn.init.normal_(module.mask_token, std=0.02)


def _check(arguments: dict) -> None:
    (height, width), (patch, bands) = arguments["img_size"], arguments["patch_size"]
    if min(height, width, patch, bands) < 1 or height % patch or width % patch:
        raise UserError(f"patches of {patch} px do not divide {height}×{width} px: change --patch_size or --img_size")
    if arguments["in_chans"] % bands or arguments["in_chans"] < 1:
        raise UserError(f"patches of {bands} bands do not divide {arguments['in_chans']}: change --patch_size")
    for part, width in (("encoder", arguments["embed_dim"]), ("decoder", arguments["decoder_embed_dim"])):
        heads = arguments[f"{part}_num_heads"]
        if heads < 1 or width % heads or width % 4:
            raise UserError(f"{heads} heads and 4 must divide the {part}'s width of {width}")
    if not 0 <= arguments["mask_ratio"] < 1 or not 0 < arguments["decode_ratio"] <= 1:
        raise UserError("--mask_ratio must be in [0, 1), --decode_ratio in (0, 1]")
    if arguments["decoder"] not in DECODERS:
        raise UserError(f"no decoder {arguments['decoder']}: {' or '.join(DECODERS)}")
