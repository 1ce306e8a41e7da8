"""Pictures of ears as the VAE sees them: square crops around the box, in [-1, 1].

Points and boxes are in px, x before y, with pixel centres at integers: a window (x, y, side) spans [x, x + side] with
x = -0.5 at the left edge of the picture.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its version at import otherwise
import albumentations
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from core.args import UserError
from core.images import ImageError, read_image
from core.seeding import sample_rng
from core.validation import DataReport
from ear_manifest import Ear
from ear_manifest import read_manifest as read_manifest

cv2.setNumThreads(0)  # the loader's processes fill the cores already

Window = tuple[float, float, float]  # x, y of the upper left corner, side


def square_window(box: tuple[float, float, float, float], margin: float) -> Window:
    """The square around the centre of a box (x0, y0, x1, y1) whose side is `1 + margin` times the box's longer one."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + margin)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side


def cut(pixels: np.ndarray, window: Window, size: int) -> np.ndarray:
    """A window of the picture (H, W, 3) uint8 as (size, size, 3); low-pass filtered where it shrinks. Beyond the
    picture's border its outermost pixels go on."""
    x, y, side = window
    corners = np.array([x, y, x + side, y + side]) + 0.5  # the first pixel spans [0, 1] here
    reach = math.ceil(max(1, side / size))  # of the filter, beyond the window
    left, top = np.floor(corners[:2]).astype(int) - reach
    right, bottom = np.ceil(corners[2:]).astype(int) + reach
    rows = np.arange(top, bottom).clip(0, pixels.shape[0] - 1)
    columns = np.arange(left, right).clip(0, pixels.shape[1] - 1)
    region = Image.fromarray(pixels[rows[:, None], columns])
    box = tuple(corners - (left, top, left, top))
    return np.asarray(region.resize((size, size), Image.Resampling.BILINEAR, box=box))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) to float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3)."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).numpy()


def leave_out_unreadable(splits: dict[str, list[Ear]], report: DataReport) -> dict[str, list[Ear]]:
    """Decodes every picture once, and leaves out the ears whose picture is broken. Raises UserError if a split has no
    ear left."""

    def problem(ear: Ear) -> ImageError | None:
        try:
            read_image(ear.image, "RGB")
        except ImageError as error:
            return error
        return None

    kept = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding runs outside Python's lock
        for split, ears in splits.items():
            problems = list(pool.map(problem, ears))
            kept[split] = [ear for ear, error in zip(ears, problems, strict=True) if error is None]
            for ear, error in zip(ears, problems, strict=True):
                if error is not None:
                    report.add("picture unreadable", ear.id, "ear left out", error)
            report.cases[split] = len(kept[split])
            if not kept[split]:
                raise UserError(f"no readable picture in {split}, for example: {problems[0] if problems else 'empty'}")
    return kept


def augmentation() -> albumentations.Compose:
    """What differs between photographs of one ear: position, tilt, size, light."""
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
    """Crops of `ears`, `size` px square: the box and `margin`, or the whole picture without a box or without `crop`.

    Each is a dict: `image` float32 (3, size, size) in [-1, 1]; `index`; `id`. With `mirror_left`, ears known to be left
    ones are mirrored, so that all look like right ones. With `augment`, a sample depends on (seed, epoch, index) alone;
    `views` 2 adds `other_view`, another draw of the same ear.
    """

    def __init__(
        self,
        ears: list[Ear],
        size: int,
        crop: bool = True,
        margin: float = 0.1,
        mirror_left: bool = True,
        augment: bool = False,
        views: int = 1,
        seed: int = 0,
    ):
        self.ears, self.size = ears, size
        self.crop, self.margin, self.mirror_left = crop, margin, mirror_left
        self.augmentation = augmentation() if augment else None
        self.views, self.seed, self.epoch = views, seed, 0

    def __len__(self) -> int:
        return len(self.ears)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def pixels(self, index: int) -> np.ndarray:
        """The crop (size, size, 3) uint8, not augmented."""
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
