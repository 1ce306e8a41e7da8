"""Data sets of slices for training and validation: split by patient, sampling, augmentation, multi-label CutMix."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.seeding import sample_rng
from core.splits import position, refuse_shared_patients
from ct.labels import UNKNOWN
from ct.store import StoredVolume, read_slices

if TYPE_CHECKING:
    import albumentations


def divide(
    volumes: Sequence[StoredVolume], tune_fraction: float, needed: Sequence[str] = ("train", "tune")
) -> dict[str, list[StoredVolume]]:
    """Splits train, tune and valid: the official valid split, and the official train split divided by patient.

    Tuning patients (early stopping, thresholds, calibration) depend on their names only: the common thresholds of an
    ensemble must not be tuned on training patients of any member. Raises UserError for a patient in two splits, and for
    `needed` splits without volumes.
    """
    parts = {"train": [], "tune": [], "valid": []}
    for volume in volumes:
        tuning = volume.split == "train" and position(volume.patient) < tune_fraction
        parts["tune" if tuning else volume.split].append(volume)
    refuse_shared_patients({part: {v.name: v.patient for v in volumes} for part, volumes in parts.items()})
    for part in needed:
        if not parts[part]:
            way_out = "extract that split" if part == "valid" else "extract more of train, or change --tune_fraction"
            raise UserError(f"no {part} volume among {len(volumes)}: {way_out}")
    return parts


def augmentation(advanced: bool, mirror: bool = True) -> "albumentations.Compose":
    """Left-right mirroring if `mirror`; with `advanced` also rotation, scale, translation, grey levels and noise.

    Changes of grey levels are small, as absolute values carry meaning in CT.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # a download at import otherwise
    import albumentations

    steps = [albumentations.HorizontalFlip(p=0.5)] if mirror else []
    if advanced:
        steps += [
            albumentations.Affine(rotate=(-10, 10), scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), p=0.9),
            albumentations.RandomBrightnessContrast(brightness_limit=0.08, contrast_limit=0.1, p=0.5),
            albumentations.GaussNoise(std_range=(0.005, 0.02), p=0.3),
        ]
    return albumentations.Compose(steps)


class SliceDataset(Dataset):
    """Training slices. An item is a dict of `slices` uint8 (bag, 3, H, W) of one volume, `labels` float32 (labels,)
    with -1 = unknown, `index` and `id`.

    An epoch has `slices_per_volume` random slices per volume, one from each of as many equal segments; an item holds
    `bag` of them, spread over the volume. A sample depends on (seed, epoch, index) only. Raises ValueError if `bag`
    does not divide `slices_per_volume`.
    """

    def __init__(
        self,
        volumes: Sequence[StoredVolume],
        slices_per_volume: int,
        bag: int = 1,
        augment: "albumentations.Compose | None" = None,
        seed: int = 0,
    ):
        if slices_per_volume % bag:
            raise ValueError(f"bags of {bag} do not divide {slices_per_volume} slices")
        self.volumes, self.per_volume, self.bag = list(volumes), slices_per_volume, bag
        self.augmentation, self.seed, self.epoch = augment, seed, 0

    def __len__(self) -> int:
        return len(self.volumes) * self.per_volume // self.bag

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the random draws."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        items = self.per_volume // self.bag
        volume, part = self.volumes[index // items], index % items
        rng = sample_rng(self.seed, self.epoch, index)
        stretches = np.arange(part, self.per_volume, items) + rng.random(self.bag)  # a bag is spread over the volume
        which = (stretches * volume.slices / self.per_volume).astype(int).clip(max=volume.slices - 1)
        slices = read_slices(volume.file, which)
        if self.augmentation:
            seed = int(rng.integers(2**32))
            for i, image in enumerate(slices):
                self.augmentation.set_random_seed(seed)  # the same for all slices of a bag
                slices[i] = self.augmentation(image=image.transpose(1, 2, 0))["image"].transpose(2, 0, 1)
        return {
            "slices": torch.from_numpy(slices),
            "labels": torch.from_numpy(volume.labels.astype(np.float32)),
            "index": index,
            "id": volume.name,
        }


class VolumeDataset(Dataset):
    """Whole volumes for validation: `slices` uint8 (S, 3, H, W), `index`, `id`.

    S is the largest number of slices; volumes with fewer repeat some.
    """

    def __init__(self, volumes: Sequence[StoredVolume]):
        self.volumes = list(volumes)
        self.n_slices = max(volume.slices for volume in volumes)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict:
        volume = self.volumes[index]
        slices = read_slices(volume.file)
        which = np.linspace(0, len(slices) - 1, self.n_slices).round().astype(int)
        return {"slices": torch.from_numpy(slices[which]), "index": index, "id": volume.name}


def cutmix(slices: Tensor, labels: Tensor, probability: float, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019) for multi-label samples: a box of each sample is replaced by that of another.

    slices (B, S, 3, H, W) and labels (B, C) in [0, 1] or -1 -> new tensors of the same shapes, with `probability` for
    the whole batch. Box sides: √(1−λ) of the picture, λ ~ Beta(alpha, alpha); if clipped at the border, λ is the share
    of kept pixels. Labels are mixed by λ, and unknown if unknown in either sample.
    """
    if torch.rand(()) >= probability:
        return slices, labels
    height, width = slices.shape[-2:]
    ratio = torch.distributions.Beta(alpha, alpha).sample()
    side = torch.sqrt(1 - ratio)
    centre = torch.rand(2) * torch.tensor([height, width])
    half = side * torch.tensor([height, width]) / 2
    (top, left), (bottom, right) = (centre - half).round().int().tolist(), (centre + half).round().int().tolist()
    box = (..., slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right)))
    other = torch.randperm(len(slices)).to(slices.device)
    mixed = slices.clone()
    mixed[box] = slices[other][box]
    kept = 1 - mixed[box].shape[-2] * mixed[box].shape[-1] / (height * width)
    known = (labels != UNKNOWN) & (labels[other] != UNKNOWN)
    return mixed, torch.where(known, kept * labels + (1 - kept) * labels[other], float(UNKNOWN))
