"""Baselines of reconstruction: hidden voxels from the training mean spectrum, and by interpolation.

Both keep visible voxels and do not use hidden ones. Cubes and reconstructions: (B, C, H, W) in raw units, on any
device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_spectrum(cube: Tensor, hidden: Tensor, mean: Tensor) -> Tensor:
    """`cube` with hidden voxels (B, C, H, W) bool replaced by the training mean (C,) of their band."""
    return torch.where(hidden, mean.view(-1, 1, 1), cube)


def interpolate(
    cube: Tensor, hidden: Tensor, foreground: Tensor, mean: Tensor, std: Tensor, patch_size: Sequence[int]
) -> Tensor:
    """`cube` with hidden voxels (B, C, H, W) bool interpolated in space and across bands.

    Computed on z-scores of the training `mean` and `std` (C,), in three rounds with σ of two, one and half a patch:

    1. base: Gaussian mean of the visible voxels, in later rounds of the last estimate (normalised convolution: Knutsson
       & Westin 1993, "Normalized and Differential Convolution")
    2. details (values minus base) of hidden bands: linear regression on the visible bands of the same pixel, from the
       band covariance of the cube (`_across_bands`)
    3. details of pixels without visible bands: Gaussian mean of the surrounding details, σ = half a patch

    Of several such schemes, this one had the lowest squared error and spectral angle on phantoms, on which its widths
    and ridge were chosen. Visible background (`foreground` (B, H, W) bool False) is left out, as it would darken the
    border; in pixels without visible bands, `foreground` is not used. `patch_size` (px, bands): of the mask; the px
    divide H and W.
    """
    patch = patch_size[0]
    z = (cube - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    visible = ~hidden & foreground[:, None]
    z = torch.where(visible, z, 0)  # hidden values are not used below
    known = visible.any(dim=1, keepdim=True)
    estimate, weights = z, visible.to(z.dtype)
    for width in (2 * patch, patch, patch / 2):
        base = _gaussian_mean(estimate, weights, width, patch)
        details = _across_bands(z - base, visible, patch)
        details = torch.where(known, details, _gaussian_mean(details, known.to(z.dtype), patch / 2, patch))
        estimate, weights = base + details, torch.ones_like(weights[:, :1])
    return torch.where(hidden, estimate * std.view(-1, 1, 1) + mean.view(-1, 1, 1), cube)


def _gaussian_mean(values: Tensor, weights: Tensor, width: float, patch: int) -> Tensor:
    """Weighted local mean `Σ g w x / (Σ g w + 10⁻³)` with a Gaussian g of `width` px; 0 far from all weights.

    values (B, C, H, W), weights of this shape or with one band. Sums run over cells of a few pixels, which divide the
    patch and are much smaller than `width`: a tenth of the operations.
    """
    cell = max(n for n in range(1, max(1, patch // 5) + 1) if patch % n == 0)
    rows, columns = (_gaussian(size, cell, width, values) for size in values.shape[-2:])
    total, weight = (rows @ F.avg_pool2d(x, cell) @ columns.mT for x in (values * weights, weights))
    return total / (weight + 1e-3)


def _gaussian(size: int, cell: int, width: float, like: Tensor) -> Tensor:
    """Weights (size, size / cell) between pixels and cell centres."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    centres = pixels.view(-1, cell).mean(dim=1)
    return torch.exp(-((pixels[:, None] - centres) ** 2) / (2 * width**2))


def _across_bands(details: Tensor, visible: Tensor, patch: int, ridge: float = 0.1) -> Tensor:
    """Details (B, C, H, W) of each band as a linear function of the visible bands of the same pixel; 0 without any.

    With the band covariance K and the visible bands v: `K[:, v] (K[v, v] + λI)⁻¹ x[v]`, the conditional mean of a
    Gaussian. K is estimated per cube from pixels with both bands visible and one patch of zeros, as shrinkage for few
    pixels, and made positive semi-definite by dropping negative eigenvalues; λ is `ridge` times the mean variance.
    Within a patch, the visible bands must be the same, except in the background.
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
