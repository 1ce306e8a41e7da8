"""Stage 2: refinement of each landmark in crops of the native picture at one physical scale.

Stage 1 uses the whole head at about 0.5 mm per px, stage 2 crops at 0.1 mm per px. Predictions from five shifted crops
are averaged.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from ceph.anatomy import ANATOMY, Anatomy
from ceph.dataset import Cephalogram
from ceph.heatmaps import decode_dark, to_input
from ceph.hrnet import HeatmapHRNet
from core.images import read_image
from core.seeding import sample_rng
from core.windows import Window, cut, to_picture, to_window

MM_PER_PX = 0.1  # of the crops
SHIFT = 1 / 8  # offset of the four other windows, as a share of the crop side
SHIFTS = {1: ((0, 0),), 5: ((0, 0), (-SHIFT, 0), (SHIFT, 0), (0, -SHIFT), (0, SHIFT))}
LARGEST_JITTER = 0.35  # share of the crop side; keeps the landmark inside the crop
SMALLEST_SPREAD = 0.5  # mm; margin for larger errors of stage 1 on other data
AT_A_TIME = 64  # crops per forward pass, which bounds the memory


class LandmarkRefiner(HeatmapHRNet):
    """Grey crops (B, 1, S, S) in 0-1 to heatmaps (B, K, S/stride, S/stride); see `HeatmapHRNet`."""

    kind = "landmark refiner"
    needed: ClassVar = {"sigma": int | float, "mm_per_px": int | float}


def window_around(centre: np.ndarray, side: float) -> Window:
    """Square window of `side` native px around a point (2,)."""
    return float(centre[0] - side / 2), float(centre[1] - side / 2), side


def peaks(
    heatmaps: torch.Tensor, landmarks: torch.Tensor, model: LandmarkRefiner, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(points (N, 2) crop px, confidence (N,)) of the central landmark (N,) of each crop, from heatmaps
    (N, K, H, W)."""
    own = heatmaps[torch.arange(len(landmarks), device=heatmaps.device), landmarks]
    points, confidence = decode_dark(own[:, None], sigma)
    return to_input(points[:, 0], model.stride), confidence[:, 0]


@torch.no_grad()
def refine(
    model: LandmarkRefiner, config: dict, pixels: np.ndarray, points: np.ndarray, mm_per_px: float, crops: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """(points (K, 2) native px, confidence (K,)) from `points` (K, 2) of stage 1 in a grey picture uint8 (H, W).

    `crops`: 1 or 5 per landmark. NaN stays NaN.
    """
    size, device = config["model"]["image_size"][0], next(model.parameters()).device
    side = size * config["mm_per_px"] / mm_per_px
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    landmarks = np.repeat(known, crops)
    windows = [window_around(points[k] + np.array(shift) * side, side) for k in known for shift in SHIFTS[crops]]
    found, confidence = np.full((len(landmarks), 2), np.nan), np.full(len(landmarks), np.nan)
    for start in range(0, len(landmarks), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        images = np.stack([cut(pixels, window, size) for window in windows[part]])
        heatmaps = model(torch.from_numpy(images)[:, None].to(device).float() / 255)
        own = torch.from_numpy(landmarks[part]).to(device)
        places, heights = (values.cpu().double().numpy() for values in peaks(heatmaps, own, model, config["sigma"]))
        found[part] = [to_picture(p, window, size) for p, window in zip(places, windows[part], strict=True)]
        confidence[part] = heights
    refined, sure = np.full(points.shape, np.nan), np.full(len(points), np.nan)
    refined[known] = found.reshape(-1, crops, 2).mean(axis=1)
    sure[known] = confidence.reshape(-1, crops).mean(axis=1)
    return refined, sure


# -------------------------------------------------------------------------------------------------------------- crops


class RefinerCrops(Dataset):
    """`crops` windows of `size` px at `mm_per_px` near the landmarks of each calibrated case.

    `coarse` (N, K, 2) native px: predictions of stage 1. `spread` (K,) mm: their RMS errors on held-out pictures. Half
    of the centres are predictions of stage 1, the others ground truth plus normal noise of that spread; all are shifted
    by up to SHIFT, as the five windows of `refine`. Items: `image` float32 (crops, 1, size, size) in 0-1; `points`
    float32 (crops, K, 2) crop px, NaN = unknown or outside the crop; `index`; `id` of the case. A sample depends on
    (seed, epoch, index) only.
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
        anatomy: Anatomy = ANATOMY,
    ):
        self.cases, self.coarse, self.spread = cases, coarse, np.maximum(spread, SMALLEST_SPREAD)
        self.size, self.mm_per_px, self.crops = size, mm_per_px, crops
        self.seed, self.epoch, self.augmentation = seed, 0, None
        if augment:
            from ceph import augmentation  # slow import

            self.augmentation = augmentation.crops(anatomy.flip)

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
        """Crop uint8 (size, size) near a landmark, and all points (K, 2) in crop px."""
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
            from ceph.augmentation import augment

            image, points = augment(self.augmentation, image, points, rng)
        outside = (points < -0.5).any(axis=1) | (points > self.size - 0.5).any(axis=1)
        points[outside] = np.nan
        return image, points


class CoarseCrops(Dataset):
    """One window around each point of `coarse` (N, K, 2) in native px; the picture's centre for NaN.

    Items: `image` float32 (K, 1, size, size) in 0-1; `index`.
    """

    def __init__(self, cases: Sequence[Cephalogram], coarse: np.ndarray, size: int, mm_per_px: float):
        self.cases, self.coarse, self.size, self.mm_per_px = cases, coarse, size, mm_per_px

    def __len__(self) -> int:
        return len(self.cases)

    def windows(self, index: int) -> list[Window]:
        """The K windows of a case in native px."""
        case = self.cases[index]
        middle = (np.array(case.size) - 1) / 2
        side = self.size * self.mm_per_px / case.mm_per_px
        return [window_around(np.where(np.isfinite(point), point, middle), side) for point in self.coarse[index]]

    def __getitem__(self, index: int) -> dict:
        pixels = read_image(self.cases[index].image).pixels
        images = np.stack([cut(pixels, window, self.size) for window in self.windows(index)])
        return {"image": torch.from_numpy(images)[:, None].float() / 255, "index": index}

    def to_native(self, points: np.ndarray) -> np.ndarray:
        """Points (N, K, 2) of all cases, from crop px to native px; NaN where `coarse` is NaN."""
        native = [
            [to_picture(point, window, self.size) for point, window in zip(row, self.windows(index), strict=True)]
            for index, row in enumerate(points)
        ]
        return np.where(np.isfinite(self.coarse), native, np.nan)
