"""Augmentation of frames and of crops. Imports albumentations, so it is imported where pictures are augmented."""

import os
from collections.abc import Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its version at import otherwise
import albumentations
import cv2
import numpy as np


class Mirror(albumentations.HorizontalFlip):
    """A mirror that also exchanges landmarks: `flip` (K,) says which one stands at each place afterwards."""

    def __init__(self, p: float, flip: Sequence[int]):
        super().__init__(p=p)
        self.flip = list(flip)

    def apply_to_keypoints(self, keypoints: np.ndarray, **params) -> np.ndarray:
        """(K, …) in px."""
        return super().apply_to_keypoints(keypoints, **params)[self.flip]


def frames(flip: Sequence[int], expanded: bool = False) -> albumentations.Compose:
    """What differs between radiographs of one patient: mirror, tilt, magnification, position, exposure, noise.

    With `expanded` neither mirror nor tilt: they are kinds of an expanded split.
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
    """What differs between radiographs of one place: mirror, tilt, magnification, exposure, sharpness, noise."""
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
    """The picture uint8 (H, W) and its points (K, 2) px after one draw from `rng`. NaN stays NaN."""
    transform.set_random_seed(int(rng.integers(2**32)))
    augmented = transform(image=image, keypoints=points)
    return augmented["image"], augmented["keypoints"].astype(points.dtype)
