"""Loss of the masked autoencoder: squared error of hidden tokens, and three terms for whole spectra."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.losses.precision import full_precision
from core.losses.spectral import range_penalty, spectral_angle, spectral_variance_loss

LOSS_ON = ("masked", "all")


class MAESpectralLoss(nn.Module):
    """`mse_weight · MSE + sam_weight · SAM + variance_weight · V + range_penalty_weight · R`, in float32:

    - MSE: mean squared error of z-scores over the hidden tokens of each cube, then over cubes. With `norm_pix_loss`
      each token's error is divided by the variance of the true token (He et al. 2022).
    - SAM: mean spectral angle in radians over pixels, 0 for the background.
    - V = mean of `(s(x̂) − s(x))²`, with s the standard deviation over the bands of a pixel: penalises flat spectra.
    - R = mean of `max(l − x̂, 0)² + max(x̂ − h, 0)²`: values outside the range [l, h] of the training data.

    SAM, V and R use raw units divided by h − l, so that the weights have the same effect for reflectance and counts.
    Their visible tokens are those of the input, without gradient. With `loss_on` "all" instead of "masked", visible
    tokens are taken from the prediction and count in MSE.

    Each term is a mean over cubes with equal weights: the mean over two half batches equals that of the whole batch.
    `mean`, `std` (C,), `low`, `high`: of `hsi.statistics.Statistics`. Raises ValueError for another `loss_on`.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], low: float, high: float,
        mse_weight: float = 1.0, sam_weight: float = 0.1, variance_weight: float = 0.01,
        range_penalty_weight: float = 0.001, loss_on: str = "masked", norm_pix_loss: bool = False,
    ):  # fmt: skip
        super().__init__()
        if loss_on not in LOSS_ON:
            raise ValueError(f"loss_on is {loss_on}, not {' or '.join(LOSS_ON)}")
        self.weights = {"mse": mse_weight, "sam": sam_weight, "variance": variance_weight}
        self.weights["range"] = range_penalty_weight
        self.on_all, self.norm_pix_loss = loss_on == "all", norm_pix_loss
        unit = high - low
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32) / unit)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32) / unit)
        self.low, self.high = low / unit, high / unit

    def forward(self, prediction: dict[str, Tensor], foreground: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, its parts) of the output of `MAESpectral` and the foreground (B, H, W) bool."""
        return self._terms(
            prediction["patches"], prediction["target"], prediction["hidden"], self._pixels(prediction, foreground)
        )

    @full_precision
    def _terms(self, patches: Tensor, target: Tensor, hidden: Tensor, foreground: Tensor):
        counted = torch.ones_like(hidden) if self.on_all else hidden  # (B, S, J)
        error = (patches - target).square().mean(dim=-1)
        if self.norm_pix_loss:
            error = error / (target.var(dim=-1) + 1e-6)
        n = counted.sum(dim=(1, 2)).clamp_min(1)
        parts = {"mse": ((error * counted).sum(dim=(1, 2)) / n).mean()}
        if any(weight for name, weight in self.weights.items() if name != "mse"):
            seen = torch.where(counted[..., None], patches, target)
            spectra, truth = self._spectra(seen), self._spectra(target)  # (B, J, C, pixels)
            parts["sam"] = (spectral_angle(spectra, truth, dim=2) * foreground).mean()
            parts["variance"] = spectral_variance_loss(spectra, truth, dim=2)
            parts["range"] = range_penalty(spectra, self.low, self.high)
        return sum(self.weights[name] * part for name, part in parts.items()), parts

    def _spectra(self, patches: Tensor) -> Tensor:
        """z-scores (B, S, J, P) to values (B, J, C, pixels) in units of h − l."""
        groups = patches.shape[1]
        values = patches.unflatten(3, (len(self.mean) // groups, -1))  # (B, S, J, bands, pixels)
        mean, std = (x.view(1, groups, 1, -1, 1) for x in (self.mean, self.std))
        return (values * std + mean).transpose(1, 2).flatten(2, 3)

    def _pixels(self, prediction: dict[str, Tensor], foreground: Tensor) -> Tensor:
        """Foreground (B, H, W) as pixels (B, J, pixels) of the decoded columns."""
        patches, columns = prediction["patches"], prediction["columns"]
        pixels = patches.shape[1] * patches.shape[3] // len(self.mean)
        side = round(pixels**0.5)
        height, width = foreground.shape[1:]
        x = foreground.reshape(-1, height // side, side, width // side, side).transpose(2, 3)
        x = x.reshape(len(x), -1, pixels)
        return x.gather(1, columns[..., None].expand(-1, -1, pixels))
