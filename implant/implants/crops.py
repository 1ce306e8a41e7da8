"""Crops of implants, and features of their scale, which resizing removes.

Points and boxes are xy in px, with pixel centres at integers.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from core.images import read_image
from core.seeding import sample_rng
from core.windows import Window, cut, square_window
from implants.records import TARGETS, Record

if TYPE_CHECKING:
    import albumentations

cv2.setNumThreads(0)  # the data loader workers use all cores

ZOOM, SHIFT = 0.1, 0.05  # maximum change by augmentation, as shares of the window side
UNKNOWN = -1  # index of missing classes and those not in training
USUAL_MM, USUAL_PX = 0.1, 224  # references of the scale features: mm per px, side in px


def augmentation() -> "albumentations.Compose":
    """Augmentation of crops without change of size; changes of the window alter size and scale features together."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # disables the version check over the network
    import albumentations  # slow import

    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Rotate(limit=8, interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_REPLICATE, p=0.7),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
            albumentations.RandomGamma(gamma_limit=(75, 135), p=0.3),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.0), p=0.2),
            albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.3),
        ]
    )


class ImplantCrops(Dataset):
    """Square crops of `size` px around the boxes of `records`; `margin`: share of the longer side of the box.

    Items: `image` float32 (1, size, size) in [0, 1]; `scale` float32 (F,), see `scale_features`; `target` float32 (T,),
    the `targets` in mm, NaN = unknown; `index`; `id`; `label_<field>` for each of `labels` (field, "company" or "model"
    -> class names), index of the class or -1. With `augment`, a sample depends on (seed, epoch, index) only; with
    `views`, on (seed, epoch modulo views, index). Raises core.images.ImageError for unreadable pictures.
    """

    def __init__(
        self, records: Sequence[Record], size: int, margin: float = 0.1, modalities: Sequence[str] = (),
        labels: dict[str, Sequence[str]] | None = None, augment: bool = False, views: int | None = None, seed: int = 0,
        targets: Sequence[str] = TARGETS,
    ):  # fmt: skip
        self.records, self.size, self.margin = records, size, margin
        self.modalities, self.labels = modalities, labels or {}
        self.augmentation = augmentation() if augment else None
        self.views, self.seed, self.targets, self.epoch = views, seed, targets, 0

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        pixels = read_image(record.image).pixels
        height, width = pixels.shape
        box = record.bbox or (-0.5, -0.5, width - 0.5, height - 0.5)
        window = square_window(box, self.margin)
        if self.augmentation:
            rng = sample_rng(self.seed, self.epoch % self.views if self.views else self.epoch, index)
            window = moved(window, rng)
            self.augmentation.set_random_seed(int(rng.integers(2**32)))
            crop = self.augmentation(image=cut(pixels, window, self.size))["image"]
        else:
            crop = cut(pixels, window, self.size)
        item = {
            "image": torch.from_numpy(crop.copy())[None].float() / 255,
            "scale": torch.tensor(scale_features(record, window[2], self.size, self.modalities)).float(),
            "target": torch.tensor([getattr(record, target) for target in self.targets]).float(),
            "index": index,
            "id": record.id,
        }
        return item | {f"label_{field}": class_of(record, field, names) for field, names in self.labels.items()}


def moved(window: Window, rng: np.random.Generator) -> Window:
    """Randomly perturbed window: side by up to ZOOM, centre by up to SHIFT."""
    x, y, side = window
    larger = side * rng.uniform(1 - ZOOM, 1 + ZOOM)
    x, y = (place + (side - larger) / 2 + side * rng.uniform(-SHIFT, SHIFT) for place in (x, y))
    return x, y, larger


def scale_features(record: Record, side: float, size: int, modalities: Sequence[str]) -> list[float]:
    """Scale features of a window of `side` picture px, resized to `size` px: 1 if the pixel size is known, else 0; log
    of mm per crop px in x and y relative to USUAL_MM (0 if unknown); log of the side relative to USUAL_PX; one-hot
    modality."""
    known = record.mm_per_px is not None
    mm = [np.log(spacing * side / size / USUAL_MM) for spacing in record.mm_per_px] if known else [0.0, 0.0]
    return [float(known), *mm, np.log(side / USUAL_PX), *(float(record.modality == name) for name in modalities)]


def scale_length(modalities: Sequence[str]) -> int:
    """Number of scale features."""
    return 4 + len(modalities)


def value_of(record: Record, field: str) -> str:
    """Value of "company", "model", "modality" or another field of a record; "" = unknown."""
    return getattr(record, field) if field in ("company", "model", "modality") else record.fields.get(field, "")


def class_of(record: Record, field: str, names: Sequence[str]) -> int:
    """Index of the record's class in `names`, or UNKNOWN."""
    value = value_of(record, field)
    return names.index(value) if value in names else UNKNOWN


def count_classes(records: Sequence[Record], field: str) -> dict[str, int]:
    """Class of a field -> number of records, in alphabetical order."""
    return dict(sorted(Counter(value for record in records if (value := value_of(record, field))).items()))


def classes_of(records: Sequence[Record], field: str) -> list[str]:
    """Classes of a field in alphabetical order."""
    return list(count_classes(records, field))
