"""Cubes for training and evaluation: reading, augmentation, and the random numbers that decide what is hidden."""

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
    """An item is a dict of `cube` float32 (C, H, W) in the files' units, `foreground` bool (H, W), `noise` float32
    (`n_tokens`,) in [0, 1), `index`, `id`.

    With `augment`, cubes are turned, and changed a little in brightness, spectrum and noise; this needs `statistics`.
    Augmentation and `noise` depend on (seed, epoch, index) alone. With `mask_seed`, `noise` depends on (mask_seed,
    index): the same tokens are hidden in every epoch, as comparisons need. Raises BadCube for a file that has been
    damaged since the data were checked.
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
        """Sets the epoch from which augmentation and masks follow."""
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


# Written by hand: the libraries of augmentations go through OpenCV, whose functions take 4 channels, some of them 512,
# as (H, W, C), and fail on 30 bands or treat the first three as colours.


def augment(
    cube: np.ndarray, inside: np.ndarray, rng: np.random.Generator, std: np.ndarray,
    noise: float = NOISE, brightness: float = BRIGHTNESS, jitter: float = JITTER,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A changed copy of a cube float32 (C, H, W), and its foreground or mask (H, W) turned with it, both contiguous.

    One of the 8 flips and rotations by 90°; of these 4 where H and W differ, as a batch needs one shape. Each band is
    multiplied by `spectral_gain`, and gets normal noise of up to `noise` times its `std` (C,).
    """
    flips = rng.integers(2, size=3)
    if flips[0] and cube.shape[1] == cube.shape[2]:
        cube, inside = cube.swapaxes(1, 2), inside.T
    turn = np.s_[..., :: 1 - 2 * flips[1], :: 1 - 2 * flips[2]]
    cube, inside = cube[turn], np.ascontiguousarray(inside[turn])

    gain = spectral_gain(len(cube), rng, brightness, jitter)
    sigma = np.float32(rng.uniform(0, noise)) * std
    # Each band takes its noise from another place of one stock, a little larger than a band: to draw all C·H·W numbers
    # takes many times as long as to read the cube.
    spare = inside.size // 4 + len(cube)
    stock = rng.standard_normal(inside.size + spare if noise else 0, dtype=np.float32)
    starts = rng.choice(spare, len(cube), replace=False)
    result = np.empty(cube.shape, np.float32)
    for i, band in enumerate(result):  # band by band, in the cache
        np.multiply(cube[i], gain[i], out=band)
        if noise:
            band += sigma[i] * stock[starts[i] : starts[i] + inside.size].reshape(inside.shape)
    return result, inside


def spectral_gain(bands: int, rng: np.random.Generator, brightness: float, jitter: float) -> np.ndarray:
    """(C,) float32: a factor of 1 ± `brightness` for all bands, times 1 plus two slow waves of up to ± `jitter`.

    So exposure, lamp and lens vary between recordings: smoothly over the wavelength, not from band to band.
    """
    place = np.linspace(0, 1, bands)
    waves = 1 + sum(rng.uniform(-jitter, jitter) * np.cos(np.pi * order * place) for order in (1, 2))
    return ((1 + rng.uniform(-brightness, brightness)) * waves).astype(np.float32)
