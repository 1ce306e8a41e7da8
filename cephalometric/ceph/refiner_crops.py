"""Crops of native pictures: those that the refiner learns from, around places where stage 1 may have put a landmark,
and those that it is judged by, around places where stage 1 has put it."""

import os
from collections.abc import Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its version at import otherwise
import albumentations
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ceph.dataset import Cephalogram
from ceph.landmarks import LANDMARKS
from ceph.refiner import SHIFT, window_around
from core.images import read_image
from core.seeding import sample_rng
from core.windows import Window, cut, to_picture, to_window

LARGEST_JITTER = 0.35  # of a crop's side: beyond it the landmark would leave the crop
SMALLEST_SPREAD = 0.5  # mm: a stage 1 that is this good still errs more on pictures unlike those it was tried on


def augmentation() -> albumentations.Compose:
    """What differs between radiographs of one place: mirror, tilt, magnification, exposure, sharpness, noise."""
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                rotate=(-10, 10), scale=(0.9, 1.1), keep_ratio=True, interpolation=cv2.INTER_LINEAR,
                border_mode=cv2.BORDER_REPLICATE, p=0.8,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
            albumentations.RandomGamma(gamma_limit=(75, 135), p=0.3),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.0), p=0.2),
            albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.3),
        ],
        keypoint_params=albumentations.KeypointParams(format="xy", remove_invisible=False),
    )  # fmt: skip


class RefinerCrops(Dataset):
    """`crops` windows of each calibrated case, `size` px of `mm_per_px` a side, around its landmarks or beside them.

    `coarse` (N, 29, 2), native px: where stage 1 sees the landmarks. `spread` (29,), mm: by how much it errs on
    pictures that it has not learnt from, more than on those it has. Half of the centres are stage 1's own points, the
    others the truth with normal noise of that spread; all are shifted by up to SHIFT, as the five windows of `refine`.
    Items: `image` float32 (crops, 1, size, size) in 0-1; `points` float32 (crops, 29, 2) crop px of all landmarks in
    the crop, NaN = unknown or out of it. A sample depends on (seed, epoch, index) alone.
    """

    def __init__(
        self,
        cases: Sequence[Cephalogram],
        coarse: np.ndarray,
        spread: np.ndarray,
        size: int,
        mm_per_px: float,
        crops: int = 8,
        augment: bool = True,
        seed: int = 0,
    ):
        self.cases, self.coarse, self.spread = cases, coarse, np.maximum(spread, SMALLEST_SPREAD)
        self.size, self.mm_per_px, self.crops = size, mm_per_px, crops
        self.augmentation = augmentation() if augment else None
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.cases)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        case, rng = self.cases[index], sample_rng(self.seed, self.epoch, index)
        known = np.flatnonzero(np.isfinite(case.points).all(axis=1))
        pixels = read_image(case.image).pixels
        images, points = [], []
        for landmark in rng.choice(known, self.crops, replace=len(known) < self.crops):
            image, inside = self._crop(pixels, case, index, int(landmark), rng)
            images.append(torch.from_numpy(image.copy())[None].float() / 255)
            points.append(torch.from_numpy(inside).float())
        return {"image": torch.stack(images), "points": torch.stack(points), "index": index, "id": case.id}

    def _crop(
        self, pixels: np.ndarray, case: Cephalogram, index: int, landmark: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A window uint8 (size, size) around a landmark, and all points (29, 2) in it."""
        side = self.size * self.mm_per_px / case.mm_per_px  # native px
        truth, own = case.points[landmark], self.coarse[index, landmark]
        jitter = rng.normal(size=2) * self.spread[landmark] / np.sqrt(2) / case.mm_per_px
        if rng.random() < 0.5 and np.isfinite(own).all():
            jitter = own - truth
        jitter = jitter + rng.uniform(-SHIFT, SHIFT, 2) * side
        limit = LARGEST_JITTER * side
        window = window_around(truth + jitter.clip(-limit, limit), side)
        image, points = cut(pixels, window, self.size), to_window(case.points, window, self.size)
        if self.augmentation:
            self.augmentation.set_random_seed(int(rng.integers(2**32)))
            there = np.isfinite(points).all(axis=1)
            augmented = self.augmentation(image=image, keypoints=points[there])
            image, points = augmented["image"], np.full((len(LANDMARKS), 2), np.nan)
            points[there] = augmented["keypoints"]
        outside = (points < -0.5).any(axis=1) | (points > self.size - 0.5).any(axis=1)
        points[outside] = np.nan
        return image, points


class CoarseCrops(Dataset):
    """One window for each of the 29 landmarks of each case, around its point in `coarse` (N, 29, 2), native px.

    Items: `image` float32 (29, 1, size, size) in 0-1, `index`. Where stage 1 has no point, the picture's middle stands
    in for it.
    """

    def __init__(self, cases: Sequence[Cephalogram], coarse: np.ndarray, size: int, mm_per_px: float):
        self.cases, self.coarse, self.size, self.mm_per_px = cases, coarse, size, mm_per_px

    def __len__(self) -> int:
        return len(self.cases)

    def windows(self, index: int) -> list[Window]:
        case = self.cases[index]
        middle = (np.array(case.size) - 1) / 2
        side = self.size * self.mm_per_px / case.mm_per_px
        return [window_around(np.where(np.isfinite(point), point, middle), side) for point in self.coarse[index]]

    def __getitem__(self, index: int) -> dict:
        pixels = read_image(self.cases[index].image).pixels
        images = np.stack([cut(pixels, window, self.size) for window in self.windows(index)])
        return {"image": torch.from_numpy(images)[:, None].float() / 255, "index": index}

    def to_native(self, points: np.ndarray) -> np.ndarray:
        """Crop px (N, 29, 2), of all cases in their order, to native px; NaN where stage 1 has no point."""
        native = [
            [to_picture(point, window, self.size) for point, window in zip(row, self.windows(index), strict=True)]
            for index, row in enumerate(points)
        ]
        return np.where(np.isfinite(self.coarse), native, np.nan)
