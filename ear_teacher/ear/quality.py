"""PSNR and SSIM of reconstructions; pixel PCA with codes of the same length as linear baseline."""

from typing import NamedTuple

import numpy as np
import torch


def quality(prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """`psnr` [dB] and `ssim`, both (B,), of pictures (B, 3, H, W) in [-1, 1], rescaled to [0, 1].

    SSIM: Wang et al. 2004, 11×11 Gaussian of 1.5 px, mean over the channels.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    prediction, target = ((x.float().clamp(-1, 1) + 1) / 2 for x in (prediction, target))
    psnr = peak_signal_noise_ratio(prediction, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none")
    return {"psnr": psnr, "ssim": ssim.reshape(len(target))}


class PixelPCA(NamedTuple):
    """Principal components of pictures: Turk & Pentland 1991, "Eigenfaces for Recognition"."""

    mean: np.ndarray  # (H, W, 3) float32
    components: np.ndarray  # (K, H * W * 3), orthonormal

    def reconstruct(self, pictures: np.ndarray) -> np.ndarray:
        """Reconstructions (N, H, W, 3) uint8 of pictures (N, H, W, 3) uint8 from K coefficients."""
        difference = (pictures - self.mean).reshape(len(pictures), -1)
        made = (difference @ self.components.T) @ self.components
        return np.clip(made.reshape(pictures.shape) + self.mean, 0, 255).round().astype(np.uint8)


def pixel_pca(pictures: np.ndarray, count: int) -> PixelPCA:
    """First `count` principal components of pictures (N, H, W, 3) uint8, N − 1 at most."""
    mean = pictures.mean(axis=0, dtype=np.float32)
    centred = (pictures - mean).reshape(len(pictures), -1)
    # The Gram matrix (N, N) has the same non-zero eigenvalues as the much larger covariance of the pixels.
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    count = min(count, len(pictures) - 1)
    keep = np.argsort(-values)[:count]
    keep = keep[values[keep] > 1e-6 * values.max()]  # drops empty directions
    components = vectors[:, keep].T / np.sqrt(values[keep])[:, None]
    return PixelPCA(mean, (components @ centred).astype(np.float32))
