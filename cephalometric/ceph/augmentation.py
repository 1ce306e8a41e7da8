"""Augmentation of frames and crops. Slow to import (albumentations): import it only for augmentation."""

import os
from collections.abc import Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # disables the version check over the network
import albumentations
import cv2
import numpy as np


class Mirror(albumentations.HorizontalFlip):
    """Horizontal flip that also exchanges landmarks; `flip` (K,): landmark i becomes `points[flip[i]]`."""

    def __init__(self, p: float, flip: Sequence[int]):
        super().__init__(p=p)
        self.flip = list(flip)

    def apply_to_keypoints(self, keypoints: np.ndarray, **params) -> np.ndarray:
        """(K, …) in px."""
        return super().apply_to_keypoints(keypoints, **params)[self.flip]


def frames(flip: Sequence[int], expanded: bool = False) -> albumentations.Compose:
    """Augmentation of frames: flip, tilt, magnification, position, exposure, noise.

    `expanded`: without flip and tilt, which the expanded split contains.
    """
    return _compose(
        Mirror(0 if expanded else 0.5, flip),
        albumentations.Affine(
            rotate=(0, 0) if expanded else (-7, 7), scale=(0.8, 1.2), keep_ratio=True,
            translate_percent=(-0.05, 0.05), interpolation=cv2.INTER_LINEAR, p=0.9,
        ),
        albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
        albumentations.RandomGamma(gamma_limit=(75, 135), p=0.5),
        albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.3),
    )  # fmt: skip


def crops(flip: Sequence[int]) -> albumentations.Compose:
    """Augmentation of crops: flip, tilt, magnification, exposure, sharpness, noise."""
    return _compose(
        Mirror(0.5, flip),
        albumentations.Affine(
            rotate=(-10, 10), scale=(0.9, 1.1), keep_ratio=True, interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_REPLICATE, p=0.8,
        ),
        albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
        albumentations.RandomGamma(gamma_limit=(75, 135), p=0.3),
        albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.0), p=0.2),
        albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.3),
    )  # fmt: skip


def _compose(*transforms: albumentations.BasicTransform) -> albumentations.Compose:
    params = albumentations.KeypointParams(format="xy", remove_invisible=False)
    return albumentations.Compose(list(transforms), keypoint_params=params)


def augment(
    transform: albumentations.Compose, image: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Augmented picture uint8 (H, W) and points (K, 2) in px; NaN stays NaN."""
    transform.set_random_seed(int(rng.integers(2**32)))
    augmented = transform(image=image, keypoints=points)
    return augmented["image"], augmented["keypoints"].astype(points.dtype)
