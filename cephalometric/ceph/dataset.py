"""Data set of cephalograms: cases, disk cache of letterboxed frames, samples.

Points are xy in px with pixel centres at integers; NaN = unknown.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ceph.anatomy import ANATOMY, Anatomy
from ceph.expansion import draw_sample, expand
from core.errors import UserError
from core.images import ImageError, read_image
from core.seeding import sample_rng
from core.windows import Letterbox

cv2.setNumThreads(0)  # the data loader workers use all cores
PIXEL_SIZES = (0.02, 1.0)  # plausible range for a radiograph, mm per px


@dataclass(slots=True)
class Cephalogram:
    """A case: picture and ground truth. `points` (K, 2) native px, NaN = unknown."""

    id: str
    image: Path
    size: tuple[int, int]  # width, height in px
    points: np.ndarray
    mm_per_px: float | None  # None: uncalibrated
    device: str
    cvm_stage: int | None  # one of the anatomy's stages; None: unknown


class FrameCache:
    """Disk cache of letterboxed pictures of `size` (height, width) in px, one .npy file each.

    The file name is a hash of path, file size and modification time of the picture and of the frame size: a changed
    picture is read again, and runs can share a folder. Raises UserError if the folder cannot be made.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.folder, self.frame = Path(folder), (size[1], size[0])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache_dir {folder}: {error.strerror}; give a folder that can be written") from error

    def load(self, image: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """Frame uint8 (height, width). Raises ImageError for an unreadable picture and for one that is not of `size`,
        (width, height) in px."""
        file = self._file(image)
        try:
            frame = np.load(file)
            if frame.shape == self.frame[::-1]:
                return frame
        except (OSError, ValueError, EOFError):
            pass  # missing or damaged
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

    def prepare(self, case: Cephalogram) -> None:
        """Makes the frame if its file is missing. Raises ImageError as `load`."""
        if not self._file(case.image).is_file():
            self.load(case.image, case.size)

    def _file(self, image: Path) -> Path:
        status = image.stat()
        drawing = 1  # version of the letterboxing
        key = f"{os.path.abspath(image)}|{status.st_size}|{status.st_mtime_ns}|{self.frame}|{drawing}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


class CephalogramDataset(Dataset):
    """Samples of `cases`, one per case or those of an `expansion` ("6500" or "5500"), from the frames of `cache`.

    Items: `image` float32 (1, H, W) in 0-1; `points` float32 (K, 2) frame px, NaN = unknown or outside the frame;
    `index`; `id` of the case; if the anatomy has them, `measurements` float32 (M,), standardised by `statistics` (mean,
    SD), lengths in frame px, and `cvm_stage`, index of the stage, -1 = unknown. `augment`: size, position, grey levels
    and noise; without expansion also flip and tilt. A sample depends on (seed, epoch, index) only.
    """

    def __init__(
        self,
        cases: list[Cephalogram],
        cache: FrameCache,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
        augment: bool = False,
        seed: int = 0,
        expansion: str = "none",
        anatomy: Anatomy = ANATOMY,
    ):
        self.cases, self.cache, self.seed, self.epoch, self.anatomy = cases, cache, seed, 0, anatomy
        self.letterboxes = [Letterbox(case.size, cache.frame) for case in cases]
        self.samples = expand(len(cases), expansion, anatomy)
        self.statistics, self.augmentation = statistics or (0.0, 1.0), None
        if augment:
            from ceph import augmentation  # slow import

            self.augmentation = augmentation.frames(anatomy.flip, expanded=expansion != "none")

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def points(self) -> np.ndarray:
        """Ground truth (N, K, 2) of the cases in frame px, without expansion and augmentation."""
        return np.stack([box.to_frame(case.points) for case, box in zip(self.cases, self.letterboxes, strict=True)])

    def to_native(self, points: np.ndarray) -> np.ndarray:
        """Points (N, K, 2) of the N cases, from frame px to native px."""
        return np.stack([box.to_picture(row) for row, box in zip(points, self.letterboxes, strict=True)])

    def truth(self) -> np.ndarray:
        """Ground truth (N, K, 2) in native px."""
        return np.stack([case.points for case in self.cases])

    def mm_per_px(self) -> np.ndarray:
        """Pixel sizes (N,) in mm; NaN = uncalibrated."""
        return np.array([case.mm_per_px or np.nan for case in self.cases])

    def __getitem__(self, index: int) -> dict:
        number, kind = self.samples[index]
        case, letterbox = self.cases[number], self.letterboxes[number]
        rng = sample_rng(self.seed, self.epoch, index)
        mm_per_px = case.mm_per_px and case.mm_per_px / letterbox.scale
        frame = self.cache.load(case.image)
        image, points = draw_sample(kind, frame, letterbox.to_frame(case.points), mm_per_px, rng, self.anatomy)
        if self.augmentation:
            from ceph.augmentation import augment

            image, points = augment(self.augmentation, image, points, rng)
        height, width = image.shape
        outside = (points < -0.5).any(axis=1) | (points > np.array([width, height]) - 0.5).any(axis=1)
        sample = {"image": torch.from_numpy(image)[None].float() / 255, "index": index, "id": case.id}
        if self.anatomy.measurements:
            mean, std = self.statistics
            values = (self.anatomy.measure(points) - mean) / std  # before points outside the frame become NaN
            sample["measurements"] = torch.from_numpy(values).float()
        if stages := self.anatomy.stages:
            sample["cvm_stage"] = -1 if case.cvm_stage is None else stages.index(case.cvm_stage)
        points[outside] = np.nan
        return sample | {"points": torch.from_numpy(points).float()}


def mean_shape(points: np.ndarray) -> np.ndarray:
    """Mean (K, 2) of points (N, K, 2), ignoring NaN; NaN for landmarks without case."""
    known = np.isfinite(points)
    return np.where(known.any(axis=0), np.nansum(points, axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)


def keep_taught(cases: Sequence[Cephalogram], split: str, names: Sequence[str], taught: Mapping) -> None:
    """Makes unknown what a model with these counts (`Anatomy.taught`) was not taught. Raises UserError if no case has a
    landmark left."""
    known = [bool(taught["landmarks"].get(name)) for name in names]
    there = sorted({names[i] for case in cases for i in np.flatnonzero(np.isfinite(case.points).all(axis=1))})
    for case in cases:
        case.points[~np.array(known)] = np.nan
        case.cvm_stage = case.cvm_stage if taught.get("stage", {}).get("stage") else None
    if not any(np.isfinite(case.points).all(axis=1).any() for case in cases):
        trained = ", ".join(name for name, is_known in zip(names, known, strict=True) if is_known)
        raise UserError(f"no landmark of {split} was taught: it has {', '.join(there)}, the model {trained}")


def measurement_statistics(points: np.ndarray, anatomy: Anatomy = ANATOMY) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD (M,) of the measurements of points (N, K, 2); the mean is NaN where no case has one: unknown then."""
    columns = [column[np.isfinite(column)] for column in anatomy.measure(points).T]
    mean = np.array([column.mean() if column.size else np.nan for column in columns])
    std = np.array([column.std() if column.size else 0.0 for column in columns])
    return mean, np.where(std > 1e-6, std, 1.0)  # one case or none


def stage_weights(cases: list[Cephalogram], anatomy: Anatomy = ANATOMY) -> np.ndarray:
    """Inverse-frequency class weights (S,) of the stages, with mean 1 over the cases; 1 for stages without case."""
    known = [anatomy.stages.index(case.cvm_stage) for case in cases if case.cvm_stage is not None]
    counts = np.bincount(np.array(known, int), minlength=len(anatomy.stages))
    return np.where(counts > 0, counts.sum() / np.maximum(1, counts) / max(1, (counts > 0).sum()), 1.0)
