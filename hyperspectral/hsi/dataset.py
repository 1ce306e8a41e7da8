"""Data set of cubes for training and evaluation: reading, augmentation, random numbers of the masks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from core.seeding import sample_rng
from hsi.files import H5_KEY, Cube, foreground, read_cube
from hsi.statistics import Statistics

NOISE = 0.02  # largest SD of the added noise, as a share of a band's SD
BRIGHTNESS = 0.05  # largest change of all bands together
JITTER = 0.02  # largest change of each smooth wave over the bands


class CubeDataset(Dataset):
    """Items are dicts of `cube` float32 (C, H, W) in the files' units, `foreground` bool (H, W), `noise` float32
    (`n_tokens`,) in [0, 1) for the mask, `index`, `id`.

    `augment`: flips, rotations, brightness, spectral gain and noise; needs `statistics`. Augmentation and `noise`
    depend on (seed, epoch, index) only; with `mask_seed`, `noise` depends on (mask_seed, index), for equal masks in all
    epochs. Raises ValueError for `augment` without `statistics`, and BadCube for files damaged since the data check.
    """

    def __init__(
        self, cubes: Sequence[Cube], key: str = H5_KEY, n_tokens: int = 0, statistics: Statistics | None = None,
        augment: bool = False, seed: int = 0, mask_seed: int | None = None,
    ):  # fmt: skip
        if augment and statistics is None:
            raise ValueError("augmentation needs the statistics: its noise is a share of each band's SD")
        self.cubes, self.key, self.n_tokens = list(cubes), key, n_tokens
        self.bands = len(statistics.mean) if statistics else None
        self.std = np.array(statistics.std, np.float32) if augment else None
        self.seed, self.mask_seed, self.epoch = seed, mask_seed, 0

    def __len__(self) -> int:
        return len(self.cubes)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of augmentation and masks."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        rng = sample_rng(self.seed, self.epoch, index)
        mask_rng = rng if self.mask_seed is None else sample_rng(self.mask_seed, 0, index)
        noise = mask_rng.random(self.n_tokens, dtype=np.float32)
        cube = read_cube(self.cubes[index].file, self.key, self.bands)
        inside = foreground(cube)
        if self.std is not None:
            cube, inside = augment(cube, inside, rng, self.std)
        return {
            "cube": torch.from_numpy(cube),
            "foreground": torch.from_numpy(inside),
            "noise": torch.from_numpy(noise),
            "index": index,
            "id": self.cubes[index].id,
        }


# Not from an augmentation library: these use OpenCV, whose functions fail on 30 bands (H, W, C), or treat the first
# three as colours.


def augment(
    cube: np.ndarray, inside: np.ndarray, rng: np.random.Generator, std: np.ndarray,
    noise: float = NOISE, brightness: float = BRIGHTNESS, jitter: float = JITTER,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Augmented copy of a cube float32 (C, H, W), and its foreground or mask (H, W) transformed alike, both contiguous.

    One of the 8 flips and rotations by 90°, or of 4 if H and W differ, to keep the shape. Each band is multiplied by
    `spectral_gain` and gets Gaussian noise with an SD of up to `noise` times `std` (C,).
    """
    flips = rng.integers(2, size=3)
    if flips[0] and cube.shape[1] == cube.shape[2]:
        cube, inside = cube.swapaxes(1, 2), inside.T
    turn = np.s_[..., :: 1 - 2 * flips[1], :: 1 - 2 * flips[2]]
    cube, inside = cube[turn], np.ascontiguousarray(inside[turn])

    gain = spectral_gain(len(cube), rng, brightness, jitter)
    sigma = np.float32(rng.uniform(0, noise)) * std
    # All bands take their noise from different offsets of one array: drawing C·H·W numbers takes many times as long as
    # reading the cube.
    spare = inside.size // 4 + len(cube)
    stock = rng.standard_normal(inside.size + spare if noise else 0, dtype=np.float32)
    starts = rng.choice(spare, len(cube), replace=False)
    result = np.empty(cube.shape, np.float32)
    for i, band in enumerate(result):  # band by band, within the CPU cache
        np.multiply(cube[i], gain[i], out=band)
        if noise:
            band += sigma[i] * stock[starts[i] : starts[i] + inside.size].reshape(inside.shape)
    return result, inside


def spectral_gain(bands: int, rng: np.random.Generator, brightness: float, jitter: float) -> np.ndarray:
    """Gain (C,) float32: a factor of 1 ± `brightness` times 1 plus two smooth waves of up to ± `jitter`.

    Exposure, lamp and lens vary in this way: smoothly with the wavelength.
    """
    place = np.linspace(0, 1, bands)
    waves = 1 + sum(rng.uniform(-jitter, jitter) * np.cos(np.pi * order * place) for order in (1, 2))
    return ((1 + rng.uniform(-brightness, brightness)) * waves).astype(np.float32)
