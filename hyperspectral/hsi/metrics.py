"""Reconstruction errors: MSE, PSNR, spectral angle, SSIM, MSE of the band mean, MSE of each band."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses.precision import full_precision
from core.losses.shapes import check_same_shape
from core.losses.spectral import spectral_angle


@full_precision
def measure(
    reconstruction: Tensor, cube: Tensor, hidden: Tensor, foreground: Tensor, data_range: float
) -> dict[str, Tensor]:
    """Metrics (B,) of B cubes, with the prefixes `masked_` and `all_`:

    - `mse`: mean squared error, squared raw units
    - `psnr`: peak signal-to-noise ratio `10 log₁₀(data_range² / mse)`, dB
    - `sam`: mean spectral angle over pixels, degrees
    - `ssim`: structural similarity (Wang et al. 2004) of each band, torchmetrics with a Gaussian of σ = 1.5 px
    - `band_mean`: mean squared error of the mean over bands, squared raw units
    - `mse_by_band`: (B, C), `mse` of each band

    reconstruction and cube (B, C, H, W) in raw units, H and W ≥ 6; 0 is black and `data_range` white; hidden (B, C, H,
    W) and foreground (B, H, W) bool. `masked`: hidden foreground voxels; spectral angle and band mean over the hidden
    bands of a pixel, without pixels that have none. `all`: all foreground voxels, visible ones as in the cube. Pixels
    with a true spectrum of 0 have no angle and are left out of `sam`.

    The SSIM map of torchmetrics, mirrored at the border, is averaged over the counted voxels. Its windows reach 5 px
    further, into visible voxels and background, which is set to 0.

    NaN for metrics without voxels; PSNR without errors is inf. Raises ValueError for shapes that do not match and for a
    `data_range` that is not positive.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_same_shape(reconstruction, cube)
    if hidden.shape != cube.shape or foreground.shape != cube[:, 0].shape:
        shapes = f"hidden {tuple(hidden.shape)} and foreground {tuple(foreground.shape)}"
        raise ValueError(f"{shapes} do not fit cubes of shape {tuple(cube.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    foreground = foreground[:, None].expand_as(hidden)
    true = torch.where(foreground, cube, 0) / data_range
    made = torch.where(hidden & foreground, reconstruction / data_range, true)
    _, ssim = structural_similarity_index_measure(made, true, data_range=1.0, return_full_image=True)
    measures = {}
    for scope, voxels in (("masked", hidden & foreground), ("all", foreground)):
        errors, spectra, target = (torch.where(voxels, x, 0) for x in (made - true, made, true))
        n_bands = voxels.sum(dim=1)  # (B, H, W)
        # Unit vectors: the epsilon of the angle is for spectra of order 1, and a few dark bands are far below.
        angle = spectral_angle(F.normalize(spectra, dim=1), F.normalize(target, dim=1), dim=1)
        mse = _mean(errors.square(), voxels)
        values = {
            "mse": mse * data_range**2,
            "psnr": -10 * mse.log10(),
            "sam": _mean(angle.rad2deg(), target.any(dim=1)),
            "ssim": _mean(ssim, voxels),
            "band_mean": _mean((errors.sum(dim=1) / n_bands).square(), n_bands > 0) * data_range**2,
            "mse_by_band": _mean(errors.square(), voxels, start=2) * data_range**2,
        }
        measures |= {f"{scope}_{name}": value for name, value in values.items()}
    return measures


def _mean(values: Tensor, where: Tensor, start: int = 1) -> Tensor:
    """Mean of values where the mask `where` (same shape) is True, over dimensions from `start`; NaN without any."""
    return torch.where(where, values, 0).flatten(start).sum(dim=start) / where.flatten(start).sum(dim=start)
