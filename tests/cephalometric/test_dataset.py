import os
import warnings
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from ceph.anatomy import ANATOMY
from ceph.augmentation import frames
from ceph.dataset import (
    Cephalogram,
    CephalogramDataset,
    FrameCache,
    keep_taught,
    measurement_statistics,
    stage_weights,
)
from ceph_training import read_tree
from core.errors import UserError

SIZE = (128, 128)


@pytest.fixture
def dataset(demo_tree, tmp_path):
    cases, _ = read_tree(demo_tree)
    return CephalogramDataset(cases["train"], FrameCache(tmp_path / "cache", SIZE), augment=True, seed=3)


def test_a_sample(dataset):
    sample = dataset[0]
    assert sample["image"].shape == (1, 128, 128)
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    assert sample["points"].shape == (29, 2)
    assert sample["measurements"].shape == (10,)
    assert sample["id"] == dataset.cases[0].id
    assert sample["cvm_stage"] == dataset.cases[0].cvm_stage - 1


def test_augmentation_depends_on_seed_epoch_and_index_alone(dataset, tmp_path):
    def all_images(workers):
        loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers)
        return torch.cat([batch["image"] for batch in loader])

    first = all_images(0)
    assert torch.equal(first, all_images(2))  # whatever the workers
    assert torch.equal(first[5], dataset[5]["image"])  # whatever came before
    dataset.set_epoch(1)
    second = all_images(2)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    dataset.set_epoch(0)
    assert torch.equal(first, all_images(0))
    dataset.seed = 4
    assert not torch.equal(first[0], dataset[0]["image"])
    # Two copies of one case get different augmentations in one epoch.
    twice = CephalogramDataset([dataset.cases[0]] * 2, dataset.cache, augment=True)
    assert not torch.equal(twice[0]["image"], twice[1]["image"])


def test_albumentations_knows_every_argument():
    """It only warns of those that it does not know, and leaves them out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames(ANATOMY.flip)
        with pytest.raises(UserWarning):
            albumentations.HorizontalFlip(probability=0.5)


def test_landmarks_follow_the_augmentation(tmp_path):
    """A Gaussian blob at each of three points ends with its centre of mass where the point went, to 0.05 px."""
    points = np.array([[60.3, 50.7], [130.2, 140.9], [100.0, 95.5]])
    ys, xs = np.mgrid[:192, :192]
    geometric = albumentations.HorizontalFlip | albumentations.Affine
    geometry = [transform for transform in frames([0]).transforms if isinstance(transform, geometric)]
    assert len(geometry) == 2
    moved = albumentations.Compose(geometry, keypoint_params=frames([0]).processors["keypoints"].params)
    distances = []
    for seed in range(25):
        for point in points:
            blob = (250 * np.exp(-((xs - point[0]) ** 2 + (ys - point[1]) ** 2) / (2 * 4.0**2))).astype(np.float32)
            moved.set_random_seed(seed)
            result = moved(image=blob, keypoints=point[None])
            mass = result["image"]
            centre = np.array([(xs * mass).sum(), (ys * mass).sum()]) / mass.sum()
            distances.append(np.linalg.norm(centre - result["keypoints"][0]))
    assert max(distances) < 0.05


def test_points_out_of_the_frame_are_unknown(tmp_path):
    image = tmp_path / "a.png"
    Image.new("L", (100, 100)).save(image)
    points = np.tile([99.0, 50.0], (29, 1))
    points[1] = np.nan
    case = Cephalogram("a", image, (100, 100), points, 0.1, "x", None)
    dataset = CephalogramDataset([case] * 40, FrameCache(tmp_path / "cache", SIZE), augment=True)
    samples = torch.stack([dataset[i]["points"] for i in range(40)])
    assert samples[:, 1].isnan().all()
    out = samples[:, 0].isnan().any(dim=-1)
    assert 0 < out.sum() < 40
    inside = samples[:, 0][~out]
    assert ((inside >= -0.5) & (inside <= 127.5)).all()
    assert dataset[0]["cvm_stage"] == -1


def test_unaugmented_points_come_back_native(dataset):
    frame = dataset.points()
    assert np.allclose(dataset.to_native(frame), dataset.truth())
    plain = CephalogramDataset(dataset.cases, dataset.cache)
    assert np.allclose(plain[2]["points"].numpy(), frame[2], atol=1e-4)


def test_measurements_are_those_of_the_augmented_head(dataset):
    mean, std = measurement_statistics(dataset.points())
    standardised = CephalogramDataset(dataset.cases, dataset.cache, (mean, std), augment=True, seed=3)
    sample = standardised[1]
    values = sample["measurements"].numpy() * std + mean
    assert sample["points"].isfinite().all()
    assert np.allclose(values, ANATOMY.measure(sample["points"].numpy()), rtol=1e-3)


def test_statistics_ignore_what_is_unknown():
    points = np.random.default_rng(0).uniform(0, 100, (5, 29, 2))
    points[0, 4] = np.nan
    mean, std = measurement_statistics(points)
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    mean, std = measurement_statistics(np.full((2, 29, 2), np.nan))
    assert np.isnan(mean).all()  # standardised with it, a measurement is unknown
    assert np.array_equal(std, np.ones(10))


def case_of(points, stage=None):
    return Cephalogram("a", Path("a.png"), (50, 50), np.array(points, float), None, "", stage)


def test_what_was_not_taught_is_unknown_when_it_is_measured():
    """A landmark or stage that only the other split has counts for nothing there."""
    taught = {"landmarks": {"a": 2, "b": 0}, "measurements": {}, "stage": {"stage": 0}}
    case = case_of([[1, 2], [3, 4]], stage=0)
    keep_taught([case], "valid", ["a", "b"], taught)
    np.testing.assert_array_equal(case.points, [[1, 2], [np.nan, np.nan]])
    assert case.cvm_stage is None
    with pytest.raises(UserError, match="no landmark of test was taught: it has b, the model a"):
        keep_taught([case_of([[np.nan, np.nan], [3, 4]])], "test", ["a", "b"], taught)


def test_the_cache_spares_the_decoding_and_notices_changes(tmp_path, monkeypatch):
    image = tmp_path / "a.png"
    Image.new("L", (50, 50), 10).save(image)
    cache = FrameCache(tmp_path / "cache", (32, 32))
    case = Cephalogram("a", image, (50, 50), np.zeros((29, 2)), None, "", None)
    cache.prepare(case)
    monkeypatch.setattr("ceph.dataset.read_image", lambda *_: pytest.fail("decoded again"))
    cache.prepare(case)
    assert (cache.load(image) == 10).all()
    monkeypatch.undo()
    Image.new("L", (50, 50), 99).save(image)
    os.utime(image, ns=(1, 1))
    assert (cache.load(image) == 99).all()
    next(cache.folder.glob("*.npy")).write_bytes(b"torn")
    for file in cache.folder.glob("*.npy"):
        file.write_bytes(b"torn")
    assert (cache.load(image) == 99).all()
    assert not list(cache.folder.glob("*.part"))


def test_stages_weigh_by_their_rarity():
    def weights(*stages):
        cases = [Cephalogram("x", Path("x"), (9, 9), np.zeros((29, 2)), None, "", stage) for stage in stages]
        return stage_weights(cases)

    assert weights(1, 1, 1, 2, None) == pytest.approx([2 / 3, 2, 1, 1, 1, 1])
    assert weights(3, 5) == pytest.approx(np.ones(6))
    assert weights(None) == pytest.approx(np.ones(6))
    drawn = [1, 1, 1, 1, 4, 6, 6]
    assert weights(*drawn)[np.array(drawn) - 1].mean() == pytest.approx(1)
