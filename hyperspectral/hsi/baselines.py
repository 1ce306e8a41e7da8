"""Baselines of the reconstruction: hidden voxels filled from the training mean spectrum, and by interpolation.

Both keep visible voxels and see no hidden one. Cubes and reconstructions are (B, C, H, W) in raw units, on any device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_spectrum(cube: Tensor, hidden: Tensor, mean: Tensor) -> Tensor:
    """`cube` with its hidden voxels (B, C, H, W) bool set to the training mean (C,) of their band."""
    return torch.where(hidden, mean.view(-1, 1, 1), cube)


def interpolate(
    cube: Tensor, hidden: Tensor, foreground: Tensor, mean: Tensor, std: Tensor, patch_size: Sequence[int]
) -> Tensor:
    """`cube` with its hidden voxels (B, C, H, W) bool interpolated in the plane and across bands.

    Works on z-scores by the training `mean` and `std` (C,), in three rounds with σ of two, one and half a patch:

    1. base: a Gaussian mean of the visible voxels, later of the last round's estimate (normalised convolution: Knutsson
       & Westin 1993, "Normalized and Differential Convolution")
    2. details, i.e. values minus base, of hidden bands: their linear regression on the bands that are visible at the
       same pixel, from the cube's own band covariance (`_across_bands`)
    3. where no band of a pixel is visible: the Gaussian mean, σ = half a patch, of the details around

    so that fine structure comes from other bands where it can, and large structure from all around. Of several such
    schemes it had the lowest squared error and spectral angle on phantoms, where its widths and ridge were chosen.
    Visible background, where `foreground` (B, H, W) bool is False, is left out, or it would darken the border; of
    pixels without a visible band `foreground` is not read. `patch_size` (px, bands) is that of the mask; the px must
    divide H and W.
    """
    patch = patch_size[0]
    z = (cube - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    visible = ~hidden & foreground[:, None]
    z = torch.where(visible, z, 0)  # from here on nothing hidden can be read
    known = visible.any(dim=1, keepdim=True)
    estimate, weights = z, visible.to(z.dtype)
    for width in (2 * patch, patch, patch / 2):
        base = _gaussian_mean(estimate, weights, width, patch)
        details = _across_bands(z - base, visible, patch)
        details = torch.where(known, details, _gaussian_mean(details, known.to(z.dtype), patch / 2, patch))
        estimate, weights = base + details, torch.ones_like(weights[:, :1])
    return torch.where(hidden, estimate * std.view(-1, 1, 1) + mean.view(-1, 1, 1), cube)


def _gaussian_mean(values: Tensor, weights: Tensor, width: float, patch: int) -> Tensor:
    """Weighted mean around each pixel, `Σ g w x / (Σ g w + 10⁻³)` with g a Gaussian of `width` px: far from all is 0.

    values (B, C, H, W), weights of that shape or with one band. Sums run over cells of a few pixels, which divide the
    patch: widths are much larger, and it saves nine tenths of the work.
    """
    cell = max(n for n in range(1, max(1, patch // 5) + 1) if patch % n == 0)
    rows, columns = (_gaussian(size, cell, width, values) for size in values.shape[-2:])
    total, weight = (rows @ F.avg_pool2d(x, cell) @ columns.mT for x in (values * weights, weights))
    return total / (weight + 1e-3)


def _gaussian(size: int, cell: int, width: float, like: Tensor) -> Tensor:
    """Weights (size, size / cell) between pixels and centres of cells."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    centres = pixels.view(-1, cell).mean(dim=1)
    return torch.exp(-((pixels[:, None] - centres) ** 2) / (2 * width**2))


def _across_bands(details: Tensor, visible: Tensor, patch: int, ridge: float = 0.1) -> Tensor:
    """Every band's details as a linear function of the visible ones at the same pixel: (B, C, H, W), 0 where none is.

    With K the covariance of the bands and v the visible ones, `K[:, v] (K[v, v] + λI)⁻¹ x[v]`, the mean of a Gaussian
    given some of its components. K is estimated from the pixels of each cube in which both bands are visible, with one
    patch of zeros added, so that chance does not rule where they are few, and made positive by dropping negative
    eigenvalues; λ is `ridge` times the mean variance. Which bands are visible must be the same all over a patch, the
    background aside.
    """
    details = details * visible
    x, seen = details.flatten(2), visible.to(details.dtype).flatten(2)  # (B, C, H·W)
    covariance = x @ x.mT / (seen @ seen.mT + patch**2)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    covariance = vectors * eigenvalues.clamp(min=0)[:, None] @ vectors.mT  # (B, C, C)
    noise = ridge * covariance.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-6

    seen = F.max_pool2d(visible.to(details.dtype), patch).flatten(2).mT  # (B, patches, C)
    given = covariance[:, None] * seen[..., None]  # rows of hidden bands are 0
    system = given * seen[:, :, None] + torch.diag_embed(1 - seen + seen * noise[:, None, None])
    weights = torch.linalg.solve(system, given)  # (B, patches, visible C, C)
    rows, columns = (size // patch for size in details.shape[-2:])
    x = details.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # (B, C, rows, patch, columns, patch)
    x = x.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)  # (B, patches, C, patch²)
    filled = (weights.mT @ x).unflatten(3, (patch, patch)).unflatten(1, (rows, columns))
    return filled.permute(0, 3, 1, 4, 2, 5).reshape(details.shape)
