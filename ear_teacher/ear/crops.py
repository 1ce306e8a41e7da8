"""Input of the VAE: square crops around the box, in [-1, 1].

Points and boxes are in px, x before y, with pixel centres at integers.
"""

import os
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from core.images import read_image
from core.seeding import sample_rng
from core.windows import cut, square_window
from ear.manifest import Ear
from ear.manifest import read_manifest as read_manifest

if TYPE_CHECKING:
    import albumentations

cv2.setNumThreads(0)  # the data loader workers use all cores


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) to float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3)."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).numpy()


def load_albumentations():
    """Imports albumentations (slow) without its version check over the network."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def augmentation() -> "albumentations.Compose":
    """Augmentation of pictures (H, W, 3) uint8: shift, rotation, scale, light."""
    albumentations = load_albumentations()
    return albumentations.Compose(
        [
            albumentations.Affine(
                rotate=(-8, 8), scale=(0.94, 1.06), translate_percent=(-0.03, 0.03),
                interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_REPLICATE, p=0.8,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
        ]
    )  # fmt: skip


class EarCrops(Dataset):
    """Square crops of `size` px around the boxes with a `margin` (share of the longer side); the whole picture without
    box or `crop`.

    Items: `image` float32 (3, size, size) in [-1, 1]; `index`; `id`; with `views` 2 also `other_view`, a second
    augmented view. `mirror_left`: ears known to be left are mirrored. A sample depends on (seed, epoch, index) only.
    """

    def __init__(
        self, ears: list[Ear], size: int, crop: bool = True, margin: float = 0.1, mirror_left: bool = True,
        augment: bool = False, views: int = 1, seed: int = 0,
    ):  # fmt: skip
        self.ears, self.size = ears, size
        self.crop, self.margin, self.mirror_left = crop, margin, mirror_left
        self.augmentation = augmentation() if augment else None
        self.views, self.seed, self.epoch = views, seed, 0

    def __len__(self) -> int:
        return len(self.ears)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def pixels(self, index: int) -> np.ndarray:
        """Crop (size, size, 3) uint8 without augmentation."""
        ear = self.ears[index]
        picture = read_image(ear.image, "RGB").pixels
        height, width = picture.shape[:2]
        box, margin = (-0.5, -0.5, width - 0.5, height - 0.5), 0.0
        if self.crop and ear.box:
            box, margin = ear.box, self.margin
        crop = cut(picture, square_window(box, margin), self.size)
        return crop[:, ::-1] if self.mirror_left and ear.side == "left" else crop

    def __getitem__(self, index: int) -> dict:
        crop = self.pixels(index)
        item = {"image": self._view(crop, index, 0), "index": index, "id": self.ears[index].id}
        if self.views == 2:
            item["other_view"] = self._view(crop, index, 1)
        return item

    def _view(self, crop: np.ndarray, index: int, view: int) -> torch.Tensor:
        if self.augmentation:
            rng = sample_rng(self.seed, self.epoch, self.views * index + view)
            self.augmentation.set_random_seed(int(rng.integers(2**32)))
            crop = self.augmentation(image=np.ascontiguousarray(crop))["image"]
        return to_tensor(crop)
