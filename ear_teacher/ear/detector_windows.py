"""Input of the detector: square windows of pictures, resized to (size, size), with one ear.

Points and boxes are xy in px of picture or resized window, with pixel centres at integers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from core.errors import UserError
from core.images import read_image
from core.landmarks import Schema
from core.seeding import sample_rng
from core.validation import DataReport
from core.windows import Window, box_to, cut, square_window, to_window
from ear.crops import load_albumentations, to_tensor
from ear.manifest import LEFT_OUT, NO_POINT_KNOWN, Ear, read_manifest

if TYPE_CHECKING:
    import albumentations

WHOLE, CLOSE = 0.3, 0.5  # shares of training windows as in stage 1 and as in stage 2
SHARES = (0.2, 0.95)  # other windows: longer side of the ear over the window side
LARGEST = 1.25  # other windows: maximum side over the longer side of the picture
TURN = 20.0  # maximum rotation, °
LEFT = {"left": 1.0, "right": 0.0, "": float("nan")}  # target by side


def whole(pixels: np.ndarray) -> Window:
    """Square window around a whole picture (H, W, 3), the input of stage 1."""
    height, width = pixels.shape[:2]
    return square_window((-0.5, -0.5, width - 0.5, height - 0.5), 0.0)


def read_labelled(
    path: Path, data_root: Path | None, box_format: str, report: DataReport, schema: Schema | None = None
) -> list[Ear]:
    """Ears of a manifest with landmarks, in the order of `schema`, and a box. Raises UserError as `read_manifest`, and
    if no ear has both."""
    ears = read_manifest(path, data_root, box_format, report, landmarks=True, schema=schema)
    for ear in ears:
        if not ear.box:
            report.add("no box, and landmarks that make none", ear.id, LEFT_OUT)
    ears = [ear for ear in ears if ear.box]
    if not ears:
        raise UserError(f"{path}: no ear has a box, or landmarks that make one; give the boxes")
    return ears


def truths(ears: Sequence[Ear], schema: Schema) -> dict[str, int]:
    """Landmark -> number of ears in which it, or the landmark it becomes in a mirror image, is known: half of the
    training windows are mirrored."""
    known = np.isfinite([ear.landmarks for ear in ears]).all(axis=2)  # (N, K)
    return dict(zip(schema.names, (known | known[:, list(schema.flip)]).sum(axis=0).tolist(), strict=True))


def with_landmarks(ears: Sequence[Ear], places: list[int], report: DataReport, split: str) -> list[Ear]:
    """Ears with the landmarks of indices `places` only; ears without any are left out. Raises UserError if no ear is
    left."""
    ears = [replace(ear, landmarks=ear.landmarks[places]) for ear in ears]
    kept = [ear for ear in ears if np.isfinite(ear.landmarks).any()]
    for ear in ears:
        if not np.isfinite(ear.landmarks).any():
            report.add(NO_POINT_KNOWN, ear.id, LEFT_OUT, "none of those that the training ears have")
    report.cases[split] = len(kept)
    if not kept:
        raise UserError(f"no ear of {split} has a landmark that the training ears have; label the same ones in both")
    return kept


# ------------------------------------------------------------------------------------------------------ augmentation


def random_window(
    box: tuple[float, ...], pixels: np.ndarray, margin: float, rng: np.random.Generator
) -> tuple[Window, bool]:
    """(window, whether it is as in stage 2): the whole picture as in stage 1; a window around a perturbed box as in
    stage 2; or a square with the box at a random position, at most a tenth of it outside."""
    everything, kind = whole(pixels), rng.random()
    if kind < WHOLE:
        return everything, False
    low, high = np.array(box[:2]), np.array(box[2:])
    longer, close = (high - low).max(), kind < WHOLE + CLOSE
    if close:
        side = longer * (1 + margin) * rng.uniform(0.85, 1.2)
        x, y = (low + high - side) / 2 + longer * rng.uniform(-0.08, 0.08, 2)
    else:
        side = min(longer / rng.uniform(*SHARES), LARGEST * everything[2])
        room, overhang = side - (high - low), 0.1 * (high - low)
        x, y = low - rng.uniform(-overhang, room + overhang)
    return (x, y, side), close


def turned(pixels: np.ndarray, window: Window, size: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """(window (size, size, 3) rotated about its centre, affine (2, 3) from px of the unrotated window to its px). The
    corners show the picture."""
    x, y, side = window
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    larger = int(np.ceil(size * (abs(cosine) + abs(sine))))
    extra = side * (larger / size - 1)
    region = cut(pixels, (x - extra / 2, y - extra / 2, side + extra), larger)
    rotation = np.array([[cosine, -sine], [sine, cosine]])

    def about(old: int) -> np.ndarray:  # maps the centre of `old` px to that of `size` px
        return np.column_stack([rotation, (size - 1) / 2 - rotation @ np.full(2, (old - 1) / 2)])

    image = cv2.warpAffine(region, about(larger), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return image, about(size)


def turned_box(box: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Bounding box (4,) of the ellipse inscribed in `box` after the affine transform (2, 3)."""
    low, high = box[:2], box[2:]
    half = np.sqrt((affine[:, :2] ** 2) @ ((high - low) / 2) ** 2)
    centre = affine[:, :2] @ ((low + high) / 2) + affine[:, 2]
    return np.concatenate([centre - half, centre + half])


def mirrored(image: np.ndarray, points: np.ndarray, box: np.ndarray, flip: tuple[int, ...]):
    """Mirrored window (H, W, 3), landmarks (K, 2), reordered by `flip`, and box (4,)."""
    last = image.shape[1] - 1
    points = points[list(flip)] * [-1, 1] + [last, 0]
    return image[:, ::-1], points, np.array([last - box[2], box[1], last - box[0], box[3]])


def photometric() -> "albumentations.Compose":
    """Augmentation of windows (H, W, 3) uint8: light, colour, sharpness, noise."""
    albumentations = load_albumentations()
    return albumentations.Compose(
        [
            albumentations.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7),
            albumentations.HueSaturationValue(hue_shift_limit=6, sat_shift_limit=20, val_shift_limit=0, p=0.3),
            albumentations.RandomGamma(gamma_limit=(75, 135), p=0.3),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.2), p=0.2),
            albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.2),
        ]
    )


# ---------------------------------------------------------------------------------------------------------- data sets


class RandomWindows(Dataset):
    """Training windows: `draws` random windows of each ear per epoch, which depend on (seed, epoch, index) only.

    `margin`: of stage 2. `flip`: as in `Schema`. Half of the windows are mirrored; with `mirror_left`, windows as in
    stage 2 show right ears instead, if the side is known.

    Items: `image` float32 (3, size, size) in [-1, 1]; `points` float32 (K, 2), NaN = unknown, and `box` (4,), in window
    px, also outside; `left`, 1.0 for a left ear, 0.0 for a right one, NaN = unknown; `index`; `id`.
    """

    def __init__(
        self, ears: list[Ear], size: int, margin: float, flip: tuple[int, ...], mirror_left: bool = True,
        draws: int = 1, seed: int = 0,
    ):  # fmt: skip
        self.ears, self.size, self.margin, self.flip = ears, size, margin, flip
        self.mirror_left, self.draws, self.seed, self.epoch = mirror_left, draws, seed, 0
        self.photometric = photometric()

    def __len__(self) -> int:
        return self.draws * len(self.ears)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        ear = self.ears[index % len(self.ears)]
        rng = sample_rng(self.seed, self.epoch, index)
        pixels = read_image(ear.image, "RGB").pixels
        window, close = random_window(ear.box, pixels, self.margin, rng)
        image, affine = turned(pixels, window, self.size, rng.triangular(-TURN, 0, TURN))
        points = to_window(ear.landmarks, window, self.size) @ affine[:, :2].T + affine[:, 2]
        box = turned_box(box_to(ear.box, to_window, window, self.size), affine)
        left, mirror = LEFT[ear.side], rng.random() < 0.5
        if self.mirror_left and close and ear.side:
            mirror = ear.side == "left"
        if mirror:
            image, points, box = mirrored(image, points, box, self.flip)
            left = 1 - left
        self.photometric.set_random_seed(int(rng.integers(2**32)))
        image = self.photometric(image=np.ascontiguousarray(image))["image"]
        return sample(image, points, box, left) | {"index": index, "id": ear.id}


class TwoStages(Dataset):
    """Validation windows of both stages: the whole picture, and the window around the true box with `margin`, which
    shows a right ear with `mirror_left`, if the side is known.

    Items as of `RandomWindows`, for both stages: `image` (2, 3, size, size), `points` (2, K, 2), `box` (2, 4), `left`
    (2,).
    """

    def __init__(self, ears: list[Ear], size: int, margin: float, flip: tuple[int, ...], mirror_left: bool = True):
        self.ears, self.size, self.margin, self.flip, self.mirror_left = ears, size, margin, flip, mirror_left

    def __len__(self) -> int:
        return len(self.ears)

    def __getitem__(self, index: int) -> dict:
        ear = self.ears[index]
        pixels = read_image(ear.image, "RGB").pixels
        stages, left = [], LEFT[ear.side]
        for window, mirror in (
            (whole(pixels), False), (square_window(ear.box, self.margin), self.mirror_left and ear.side == "left")
        ):  # fmt: skip
            image, points = cut(pixels, window, self.size), to_window(ear.landmarks, window, self.size)
            box = box_to(ear.box, to_window, window, self.size)
            if mirror:
                image, points, box = mirrored(image, points, box, self.flip)
            stages.append(sample(image, points, box, 1 - left if mirror else left))
        both = {name: torch.stack([stage[name] for stage in stages]) for name in stages[0]}
        return both | {"index": index, "id": ear.id}


def sample(image: np.ndarray, points: np.ndarray, box: np.ndarray, left: float) -> dict[str, torch.Tensor]:
    """Tensors of a window (H, W, 3) uint8, its landmarks (K, 2) and box (4,) in px, and its `left`."""
    numbers = {"points": points, "box": box, "left": left}
    return {"image": to_tensor(image)} | {name: torch.tensor(value).float() for name, value in numbers.items()}
