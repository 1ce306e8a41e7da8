"""Cephalograms as a network sees them: letterboxed frames kept on disk, augmentation, samples.

Points are xy in px with pixel centres at integers; NaN = unknown.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its version at import otherwise
import albumentations
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ceph.anatomy import measure
from ceph.expansion import draw_sample, expand
from ceph.landmarks import LANDMARKS as LANDMARKS
from core.errors import UserError
from core.images import ImageError, read_image
from core.processes import in_threads
from core.seeding import sample_rng
from core.validation import DataReport
from core.windows import Letterbox

cv2.setNumThreads(0)  # the loader's processes fill the cores already
PIXEL_SIZES = (0.02, 1.0)  # mm per px that a cephalogram can have


@dataclass(slots=True)
class Cephalogram:
    """One picture with what is known of it. `points` (29, 2) native px, NaN = unknown."""

    id: str
    image: Path
    size: tuple[int, int]  # width, height in px
    points: np.ndarray
    mm_per_px: float | None  # None: uncalibrated
    device: str
    cvm_stage: int | None  # 1-6


class FrameCache:
    """Letterboxed pictures on disk, so that an epoch does not decode files of 20 megapixels.

    One .npy a picture, named by the picture's path, size and time and the frame's size: a changed picture is read
    again, and runs can share a folder. `size` is the frame's (height, width) in px.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.folder, self.frame = Path(folder), (size[1], size[0])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache_dir {folder}: {error.strerror}; give a folder that can be written") from error

    def load(self, image: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """The frame uint8 (height, width). Raises ImageError if the picture cannot be read, or is not of `size`."""
        file = self._file(image)
        try:
            frame = np.load(file)
            if frame.shape == self.frame[::-1]:
                return frame
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or torn by a crash of another kind of program: made below
        pixels = read_image(image).pixels
        if size and pixels.shape[::-1] != size:
            raise ImageError(
                f"{image}: {size[0]}×{size[1]} by its header, {pixels.shape[1]}×{pixels.shape[0]} as shown"
            )
        frame = Letterbox(pixels.shape[::-1], self.frame).draw(pixels)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            np.save(part, frame)
        os.replace(part.name, file)
        return frame

    def holds(self, image: Path) -> bool:
        """Whether the frame is there; torn by a crash, it will be made again when it is loaded."""
        return self._file(image).is_file()

    def _file(self, image: Path) -> Path:
        status = image.stat()
        drawing = 1  # its version
        key = f"{os.path.abspath(image)}|{status.st_size}|{status.st_mtime_ns}|{self.frame}|{drawing}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def leave_out_unreadable(cases: dict[str, list[Cephalogram]], cache: FrameCache, report: DataReport) -> None:
    """Decodes every picture once, into the cache, and takes out the cases whose picture is broken.

    Raises UserError if none is left of a split.
    """

    def problem(case: Cephalogram) -> ImageError | None:
        try:
            if not cache.holds(case.image):
                cache.load(case.image, case.size)
        except ImageError as error:
            return error
        return None

    for split, found in cases.items():
        problems = in_threads(problem, found)
        for case, error in zip(found, problems, strict=True):
            if error:
                report.add("picture unreadable", case.image, "case left out", error)
        found[:] = [case for case, error in zip(found, problems, strict=True) if not error]
        report.cases[split] = len(found)
        if not found:
            raise UserError(f"no readable picture in {split}/, {problems[0]} for example")


# ---------------------------------------------------------------------------------------------------------- samples


def augmentation(expanded: bool = False) -> albumentations.Compose:
    """What differs between cephalograms of one head: mirror, tilt, magnification, position, exposure, noise.

    With `expanded` neither mirror nor tilt: they are kinds of an expanded split.
    """
    tilt = (0, 0) if expanded else (-7, 7)
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0 if expanded else 0.5),
            albumentations.Affine(
                rotate=tilt,
                scale=(0.8, 1.2),
                keep_ratio=True,
                translate_percent=(-0.05, 0.05),
                interpolation=cv2.INTER_LINEAR,
                p=0.9,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
            albumentations.RandomGamma(gamma_limit=(75, 135), p=0.5),
            albumentations.GaussNoise(std_range=(0.01, 0.04), p=0.3),
        ],
        keypoint_params=albumentations.KeypointParams(format="xy", remove_invisible=False),
    )


class CephalogramDataset(Dataset):
    """Samples of `cases` in the frames of `cache`: one a case, or those of an `expansion` ("6500" or "5500").

    Each is a dict: `image` float32 (1, H, W) in 0-1; `points` float32 (29, 2) frame px, NaN = unknown or out of the
    frame; `measurements` float32 (10,), standardised with `statistics` (mean, SD), lengths in frame px; `cvm_stage`
    0-5 or -1 = unknown; `index`; `id`, the case's. `augment` varies size, position, grey levels and noise of every
    sample, and mirrors and tilts it where there is no expansion. A sample depends on (seed, epoch, index) alone.
    """

    def __init__(
        self,
        cases: list[Cephalogram],
        cache: FrameCache,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
        augment: bool = False,
        seed: int = 0,
        expansion: str = "none",
    ):
        self.cases, self.cache, self.seed, self.epoch = cases, cache, seed, 0
        self.letterboxes = [Letterbox(case.size, cache.frame) for case in cases]
        self.samples = expand(len(cases), expansion)
        self.augmentation = augmentation(expanded=expansion != "none") if augment else None
        self.statistics = statistics or (np.zeros(10), np.ones(10))

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def points(self) -> np.ndarray:
        """Ground truth (N, 29, 2) of the cases in frame px, neither expanded nor augmented."""
        return np.stack([box.to_frame(case.points) for case, box in zip(self.cases, self.letterboxes, strict=True)])

    def to_native(self, points: np.ndarray) -> np.ndarray:
        """Frame px (N, 29, 2), one row a case in order, to native px."""
        return np.stack([box.to_picture(row) for row, box in zip(points, self.letterboxes, strict=True)])

    def truth(self) -> np.ndarray:
        """Ground truth (N, 29, 2) in native px."""
        return np.stack([case.points for case in self.cases])

    def mm_per_px(self) -> np.ndarray:
        """(N,), NaN where a case is uncalibrated."""
        return np.array([case.mm_per_px or np.nan for case in self.cases])

    def __getitem__(self, index: int) -> dict:
        number, kind = self.samples[index]
        case, letterbox = self.cases[number], self.letterboxes[number]
        rng = sample_rng(self.seed, self.epoch, index)
        mm_per_px = case.mm_per_px and case.mm_per_px / letterbox.scale
        frame = self.cache.load(case.image)
        image, points = draw_sample(kind, frame, letterbox.to_frame(case.points), mm_per_px, rng)
        if self.augmentation:
            self.augmentation.set_random_seed(int(rng.integers(2**32)))
            known = np.isfinite(points).all(axis=1)
            augmented = self.augmentation(image=image, keypoints=points[known])
            image = augmented["image"]
            points = np.full_like(points, np.nan)
            points[known] = augmented["keypoints"]
        height, width = image.shape
        outside = (points < -0.5).any(axis=1) | (points > np.array([width, height]) - 0.5).any(axis=1)
        mean, std = self.statistics
        measurements = (measure(points) - mean) / std  # of the whole head, also where the frame cuts it
        points[outside] = np.nan
        return {
            "image": torch.from_numpy(image)[None].float() / 255,
            "points": torch.from_numpy(points).float(),
            "measurements": torch.from_numpy(measurements).float(),
            "cvm_stage": -1 if case.cvm_stage is None else case.cvm_stage - 1,
            "index": index,
            "id": case.id,
        }


def mean_shape(points: np.ndarray) -> np.ndarray:
    """Mean (29, 2) of points (N, 29, 2) over the cases that have each landmark; NaN where none has."""
    known = np.isfinite(points)
    return np.where(known.any(axis=0), np.nansum(points, axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)


def measurement_statistics(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (10,) of the measurements of points (N, 29, 2)."""
    columns = [column[np.isfinite(column)] for column in measure(points).T]
    mean = np.array([column.mean() if column.size else 0.0 for column in columns])
    std = np.array([column.std() if column.size else 0.0 for column in columns])
    return mean, np.where(std > 1e-6, std, 1.0)  # a single head, or none, has no spread


def stage_weights(cases: list[Cephalogram]) -> np.ndarray:
    """Weights (6,) of the maturation stages 1-6, as frequent ones would drown the others: the inverse of how often each
    occurs, 1 on average over the cases; 1 for a stage that does not occur."""
    counts = np.bincount([case.cvm_stage - 1 for case in cases if case.cvm_stage], minlength=6)
    return np.where(counts > 0, counts.sum() / np.maximum(1, counts) / max(1, (counts > 0).sum()), 1.0)
