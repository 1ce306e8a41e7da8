"""Samples that depend on seed, epoch and index alone; augmentation that moves pixels and changes little else."""

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from core.errors import UserError, first_line
from hsi.dataset import BRIGHTNESS, JITTER, NOISE, CubeDataset, augment, spectral_gain
from hsi.files import H5_KEY, BadCube, Cube, foreground
from hsi.statistics import compute_statistics

BANDS, SIZE, TOKENS = 6, 20, 32


def cube_values(seed, shape=(BANDS, SIZE, SIZE)):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.3, 0.7, shape).astype("f4")
    values[:, :3] = 0.001  # the border, on one side: flips can be seen
    return values


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Five cubes and their statistics. Not to be written to."""
    folder = tmp_path_factory.mktemp("cubes")
    cubes = []
    for i in range(5):
        with h5py.File(folder / f"{i}.h5", "w") as store:
            store[H5_KEY] = cube_values(i)
        cubes.append(Cube(f"c{i}", folder / f"{i}.h5", "", str(i), "train"))
    return cubes, compute_statistics({"train": cubes})


def dataset(stored, **options):
    cubes, statistics = stored
    return CubeDataset(cubes, H5_KEY, TOKENS, statistics, **options)


def test_an_item_is_the_cube_as_it_is_in_the_file(stored):
    data = dataset(stored)
    item = data[3]
    assert torch.equal(item["cube"], torch.from_numpy(cube_values(3)))
    assert item["foreground"].dtype == torch.bool
    assert item["foreground"].tolist() == [[row >= 3] * SIZE for row in range(SIZE)]
    assert (item["noise"].shape, item["noise"].dtype) == ((TOKENS,), torch.float32)
    assert 0 <= item["noise"].min() < item["noise"].max() < 1
    assert (item["index"], item["id"], len(data)) == (3, "c3", 5)


def epoch_of(data, workers=0, epoch=0):
    data.set_epoch(epoch)
    return list(DataLoader(data, batch_size=2, num_workers=workers))


def test_samples_do_not_depend_on_workers(stored):
    here, there = (epoch_of(dataset(stored, augment=True, seed=1), workers, 4) for workers in (0, 2))
    for a, b in zip(here, there, strict=True):
        for name in ("cube", "foreground", "noise", "index"):
            assert torch.equal(a[name], b[name])
        assert a["id"] == b["id"]


def test_samples_differ_by_seed_epoch_and_index(stored):
    data, other = dataset(stored, augment=True, seed=1), dataset(stored, augment=True, seed=2)
    first, second = data[0], data[1]
    data.set_epoch(1)
    for a, b in ((first, second), (first, data[0]), (first, other[0])):
        assert not torch.equal(a["noise"], b["noise"])
        assert not torch.equal(a["cube"], b["cube"])
    data.set_epoch(0)
    assert torch.equal(first["cube"], data[0]["cube"])  # and come back


def test_a_mask_seed_hides_the_same_in_every_epoch(stored):
    data = dataset(stored, mask_seed=7, seed=1)
    first, second = data[0]["noise"], data[1]["noise"]
    data.set_epoch(5)
    assert torch.equal(data[0]["noise"], first)
    assert not torch.equal(first, second)
    assert torch.equal(dataset(stored, mask_seed=7, seed=2)[0]["noise"], first)
    assert not torch.equal(dataset(stored, mask_seed=8)[0]["noise"], first)


def test_augmentation_leaves_the_masks_alone(stored):
    assert torch.equal(dataset(stored, augment=True)[2]["noise"], dataset(stored)[2]["noise"])


def test_augmentation_without_statistics_is_refused(stored):
    with pytest.raises(ValueError, match="needs the statistics"):
        CubeDataset(stored[0], H5_KEY, TOKENS, augment=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_damaged_meanwhile_is_named(stored, tmp_path, workers):
    (tmp_path / "broken.h5").write_text("gone")
    data = CubeDataset([Cube("x", tmp_path / "broken.h5", "", "p", "train")], H5_KEY, TOKENS, stored[1])
    with pytest.raises(BadCube) as caught:
        list(DataLoader(data, num_workers=workers))
    assert isinstance(caught.value, UserError)
    assert first_line(caught.value).startswith(f"{tmp_path / 'broken.h5'}: no HDF5 file, or a damaged one")


def test_a_cube_of_other_bands_than_the_statistics_is_named(stored, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as store:
        store[H5_KEY] = cube_values(0, (7, SIZE, SIZE))
    data = CubeDataset([Cube("x", tmp_path / "a.h5", "", "p", "train")], H5_KEY, TOKENS, stored[1])
    with pytest.raises(BadCube, match="other number of bands: 7, not 6"):
        data[0]


# ------------------------------------------------------------------------------------------------ augmentation

STD = np.full(BANDS, 0.1, np.float32)


def turned(cube, inside, seed):
    return augment(cube, inside, np.random.default_rng(seed), STD, noise=0, brightness=0, jitter=0)


def test_turning_only_moves_pixels_and_the_foreground_moves_with_them():
    cube = cube_values(0)
    inside = foreground(cube)
    expected = [np.rot90(mirrored, k, (1, 2)) for mirrored in (cube, cube[:, ::-1]) for k in range(4)]
    found = set()
    for seed in range(60):
        result, moved = turned(cube, inside, seed)
        assert result.dtype == np.float32
        assert result.flags["C_CONTIGUOUS"]
        assert moved.flags["C_CONTIGUOUS"]
        found.add(next(i for i, e in enumerate(expected) if np.array_equal(result, e)))
        np.testing.assert_array_equal(moved, foreground(result))
    assert found == set(range(8))
    np.testing.assert_array_equal(cube, cube_values(0))  # the given one is left alone


def test_a_cube_that_is_not_square_keeps_its_shape():
    cube = cube_values(0, (BANDS, SIZE, SIZE + 4))
    expected = [cube[:, ::v, ::h] for v in (1, -1) for h in (1, -1)]
    found = set()
    for seed in range(40):
        result, moved = turned(cube, foreground(cube), seed)
        assert result.shape == cube.shape
        found.add(next(i for i, e in enumerate(expected) if np.array_equal(result, e)))
        np.testing.assert_array_equal(moved, foreground(result))
    assert found == {0, 1, 2, 3}


def test_noise_is_a_share_of_each_bands_sd_and_differs_between_bands():
    cube = np.ones((BANDS, 64, 64), np.float32)
    std = np.arange(1, BANDS + 1, dtype=np.float32)
    inside = np.ones((64, 64), bool)
    shares = []
    for seed in range(30):
        result, _ = augment(cube, inside, np.random.default_rng(seed), std, brightness=0, jitter=0)
        noise = (result - 1).reshape(BANDS, -1) / std[:, None]
        np.testing.assert_allclose(noise.std(axis=1), noise.std(), rtol=0.1)
        assert np.abs(noise.mean(axis=1)).max() < 0.1 * NOISE
        assert np.abs(np.corrcoef(noise) - np.eye(BANDS)).max() < 0.2
        shares.append(noise.std())
    assert 0.8 * NOISE < max(shares) < 1.05 * NOISE
    assert min(shares) < 0.3 * NOISE


def test_the_spectral_gain_is_smooth_near_one_and_the_same_for_all_pixels():
    gains = np.stack([spectral_gain(30, np.random.default_rng(seed), BRIGHTNESS, JITTER) for seed in range(200)])
    assert np.abs(gains - 1).max() <= (1 + BRIGHTNESS) * (1 + 2 * JITTER) - 1
    assert np.abs(np.diff(gains, axis=1)).max() < 0.01
    assert gains.std(axis=0).min() > 0.02
    assert (gains / gains.mean(axis=1, keepdims=True)).std(axis=0).max() > 0.005  # spectra change their shape, too
    cube = np.ones((30, 8, 8), np.float32)
    result, _ = augment(cube, cube[0] > 0, np.random.default_rng(0), np.ones(30, np.float32), noise=0)
    assert (result == result[:, :1, :1]).all()
    assert not np.allclose(result, 1)
