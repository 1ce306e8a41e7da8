"""A masked autoencoder for hyperspectral cubes: tokens of 25×25 px × 5 bands, of which the encoder sees one in five.

Masked autoencoders: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners". Tokens of space and spectrum
with separable positions: Cong et al. 2022, "SatMAE"; Hong et al. 2024, "SpectralGPT". Decoder `cross`: Fu et al. 2024,
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

KIND = "masked autoencoder"  # of the model, in config.json
LayerNorm = partial(nn.LayerNorm, eps=1e-6)
DECODERS = ("full", "cross")

# The reference's sizes; flags of train.py name others.
IMG_SIZE, PATCH_SIZE, BANDS = 500, (25, 5), 30  # px of a side; px and bands of a token; bands of a cube
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
    """What the encoder makes of whole cubes; D is its width, S × h × w the grid of tokens."""

    tokens: Tensor  # (B, S·h·w, D), bands slowest, then rows, then columns
    pooled: Tensor  # (B, D), their mean
    grid: Tensor  # (B, S, h, w, D)


class MAESpectral(nn.Module):
    """Cubes (B, C, H, W) in raw units to the tokens that were hidden from it; in training mode `forward` gives a dict:

    - `patches` (B, S, J, P): predicted tokens, as z-scores of their bands; P values in the order (band, row, column)
    - `target` (B, S, J, P): the true ones
    - `hidden` (B, S, J) bool: which of them the encoder did not see
    - `columns` (B, J): which of the L = h·w places in the plane they stand at

    J is L, or with the decoder `cross`, while training, the share `decode_ratio` of it: whole columns are decoded, so
    that every decoded pixel has a whole spectrum, whose angle can be compared.

    `img_size` is the height and width in px, one number if equal; `patch_size` (px, bands) divides them and `in_chans`.
    Band means and standard deviations are buffers of the model (`set_statistics`): no caller can forget or mix them up.
    With `norm_pix_loss` a prediction is relative to the mean and standard deviation of its true token, as in He et al.:
    what comes out is then only as good as these, which are not known for hidden tokens in earnest.
    Raises UserError for sizes that do not fit.
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
        self.n_visible = max(1, round(self.n_tokens * (1 - mask_ratio)))  # int() would make 479 of 2400 · (1 − 0.8)
        self.n_decoded = max(1, round(self.n_columns * decode_ratio)) if decoder == "cross" else self.n_columns
        self.n_noise = self.n_tokens + self.n_columns  # random numbers that `forward` wants for a cube
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
        """Mean and standard deviation of each band (C,), in the cubes' units."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def normalize(self, cube: Tensor) -> Tensor:
        """Raw units to z-scores of each band, (B, C, H, W)."""
        return (cube - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def denormalize(self, cube: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return cube * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)

    def patchify(self, cube: Tensor) -> Tensor:
        """Cubes (B, C, H, W) to tokens (B, N, P): N in the order (bands, row, column), P (band, row, column)."""
        s, h, w = self.grid
        x = cube.reshape(-1, s, self.patch_bands, h, self.patch, w, self.patch)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(cube), self.n_tokens, -1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """The exact inverse of `patchify`: (B, N, P) -> (B, C, H, W)."""
        s, h, w = self.grid
        x = tokens.reshape(-1, s, h, w, self.patch_bands, self.patch, self.patch)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(tokens), -1, *self.img_size)

    def draw_mask(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are seen: numbers (B, K) in rising order, and hidden (B, N) bool, from noise (B, N) in [0, 1).

        The K lowest of each cube are seen: always as many, each token as likely, independent in space and spectrum.
        """
        visible = noise.argsort(dim=1)[:, : self.n_visible].sort(dim=1).values
        hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False)
        return visible, hidden

    # ------------------------------------------------------------------------------------------------ training

    def forward(self, cube: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See the class. `noise` (B, `n_noise`) in [0, 1) decides what is hidden, and decoded; drawn if not given."""
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
        """(reconstruction, hidden), both (B, C, H, W): in raw units, hidden voxels as predicted, others as in `cube`;
        and which voxels were hidden. `prediction` is that of the model in eval mode, with all its columns."""
        patches, hidden = prediction["patches"].flatten(1, 2), prediction["hidden"].flatten(1, 2)
        hidden = self.unpatchify(hidden[..., None].expand_as(patches))
        return torch.where(hidden, self.denormalize(self.unpatchify(patches)), cube), hidden

    # ------------------------------------------------------------------------------------------------ features

    def encode(self, cube: Tensor) -> Features:
        """Features of whole cubes (B, C, H, W), nothing hidden."""
        tokens = self.encoder(self.patchify(self.normalize(cube)))
        return Features(tokens, tokens.mean(dim=1), tokens.unflatten(1, self.grid))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are places, not weights."""
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
        """(model in eval mode, config) of a `best/` folder, for other sizes and bands of cubes where they are given.

        Position embeddings, band means and standard deviations are then resized (`resized`). `changes` are other
        arguments of the model; None changes nothing. The config's model and wavelengths are those of the model
        returned. Raises UserError if it is a model of another kind, or if sizes do not fit.
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
    """Weights of a model with `arguments` and bands at `old` nm, fitted to `model`, whose bands lie at `new` nm.

    Positions in the plane are resampled bicubically; those of spectral groups linearly by the mean wavelength of each
    group, as are mean and standard deviation of the bands; beyond the ends the nearest is taken.
    """
    size, (patch, bands) = _pair(arguments["img_size"]), arguments["patch_size"]
    grid = (size[0] // patch, size[1] // patch)
    centres = [np.reshape(nm, (-1, n)).mean(axis=1) for nm, n in ((old, bands), (new, model.patch_bands))]
    state = dict(state)
    for name, weights in state.items():
        if name.endswith("positions.plane") and grid != model.grid[1:]:
            # Not by timm, whose older versions leave them as they are if the new grid is a square of as many places.
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
    """Separable position embeddings: one for the place in the plane plus one for the spectral group, both learnt.

    They start as sines and cosines (Vaswani et al. 2017), so that near places begin alike.
    """

    def __init__(self, dim: int, grid: tuple[int, int, int]):
        super().__init__()
        from timm.layers import build_sincos2d_pos_embed

        groups, *plane = grid
        self.plane = nn.Parameter(build_sincos2d_pos_embed(plane, dim)[None])  # (1, h·w, D)
        angle = torch.arange(groups)[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2))
        self.spectrum = nn.Parameter(torch.cat([angle.sin(), angle.cos()], dim=1)[None])  # (1, S, D)

    def forward(self) -> Tensor:
        """(1, N, D), in the order of the tokens."""
        return (self.spectrum[:, :, None] + self.plane[:, None]).flatten(1, 2)


class Encoder(nn.Module):
    """Tokens (B, K, P), and which of the N they are (B, K) where not all, to features (B, K, D)."""

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
    """A transformer block: (B, N, D) to (B, N, D)."""
    from timm.models.vision_transformer import Block

    return Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm)


class FullDecoder(nn.Module):
    """Features (B, K, D) of the visible tokens (B, K) to all N tokens (B, N, P): self-attention among all of them."""

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
    """A transformer block in which tokens (B, Q, D) attend to a memory (B, K, D), not to each other."""

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
    """Features (B, K, D) of the visible tokens (B, K) to the tokens of some columns (B, J): (B, S·J, P).

    Every decoded token asks the visible ones and no other: its cost is that of the columns asked for.
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
    """Rows of (A, D), at `old` places in rising order, at `new` places (B,): (B, D)."""
    if np.array_equal(old, new):
        return values
    index = np.interp(new, old, np.arange(len(old)))
    below = torch.from_numpy(index).long().clamp(max=len(old) - 1)
    share = torch.from_numpy(index).to(values.dtype)[:, None] - below[:, None]
    return values[below] * (1 - share) + values[(below + 1).clamp(max=len(old) - 1)] * share


def _initialise(module: nn.Module) -> None:
    """As He et al. 2022: Xavier for weights, zero for biases; mask tokens from a narrow normal distribution."""
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
