"""Patients in splits, which slices are drawn, augmentation, and CutMix with unknown labels."""

import numpy as np
import pytest
import torch

from core.errors import UserError
from ct.slices import SliceDataset, VolumeDataset, augmentation, cutmix, divide
from ct.store import StoredVolume, label_table, write_slices


def volume(name, patient=None, split="train", file=None, slices=8):
    labels = np.zeros(18, np.int8)
    return StoredVolume(file, name, patient or name, "a", split, slices, labels)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three volumes whose slice k has the value 10 k everywhere, and one of five slices."""
    folder = tmp_path_factory.mktemp("store")
    volumes = []
    for i, n in enumerate((16, 16, 16, 5)):
        pixels = np.broadcast_to(10 * np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 24, 24)).copy()
        write_slices(folder / f"v{i}.h5", pixels, {})
        volumes.append(volume(f"v{i}", file=folder / f"v{i}.h5", slices=n))
    return volumes


# ------------------------------------------------------------------------------------------------ patients


def test_no_patient_stands_in_two_parts():
    volumes = [volume(f"train_{i}_{scan}_{r}", f"train_{i}") for i in range(60) for scan in "ab" for r in (1, 2)]
    volumes += [volume(f"valid_{i}_a_1", f"valid_{i}", "valid") for i in range(10)]
    parts = divide(volumes, 0.2)
    patients = {part: {v.patient for v in found} for part, found in parts.items()}
    assert not patients["train"] & patients["tune"]
    assert not patients["train"] & patients["valid"]
    assert not patients["tune"] & patients["valid"]
    assert sum(map(len, parts.values())) == len(volumes)
    assert min(map(len, parts.values())) > 0


def test_a_shared_patient_ends_it_with_names():
    volumes = [volume("one", "anna"), volume("two", "anna", "valid"), *[volume(f"t{i}") for i in range(30)]]
    with pytest.raises(UserError, match=r"1 patients.*anna.*(one in (train|tune)|two in valid)"):
        divide(volumes, 0.2)


def test_an_empty_part_is_an_error():
    with pytest.raises(UserError, match="no tune volume among 1"):
        divide([volume("x")], 0.0)
    with pytest.raises(UserError, match="no train volume among 1"):
        divide([volume("x")], 1.0)
    with pytest.raises(UserError, match="no valid volume among 1: extract that split"):
        divide([volume("x")], 0.5, needed=("valid",))
    assert divide([volume("x", split="valid")], 0.5, needed=("valid",))["train"] == []


# ------------------------------------------------------------------------------------------------ which slices


def values(item):
    return (item["slices"][:, 0, 0, 0] // 10).tolist()


def test_an_epoch_draws_one_slice_from_each_stretch_of_every_volume(stored):
    dataset = SliceDataset(stored[:3], slices_per_volume=4)
    assert len(dataset) == 12
    for epoch in range(3):
        dataset.set_epoch(epoch)
        drawn = [values(dataset[i])[0] for i in range(12)]
        assert [k // 4 for k in drawn] == [0, 1, 2, 3] * 3
        assert [dataset[i]["id"] for i in range(12)] == [f"v{i // 4}" for i in range(12)]


def test_a_bag_reaches_over_the_whole_volume(stored):
    dataset = SliceDataset(stored, slices_per_volume=4, bag=4)
    assert len(dataset) == 4
    assert [k // 4 for k in values(dataset[0])] == [0, 1, 2, 3]
    assert dataset[3]["slices"].shape == (4, 3, 24, 24)  # a volume of five slices
    assert sorted(set(values(dataset[3]))) == values(dataset[3])


def test_samples_depend_on_seed_epoch_and_index_alone(stored):
    first, second = (SliceDataset(stored, 4, augment=augmentation(True), seed=1) for _ in range(2))
    second[5], second[0]  # what was asked for before must not matter
    assert torch.equal(first[7]["slices"], second[7]["slices"])
    drawn = set()
    for epoch in range(6):
        first.set_epoch(epoch)
        drawn.add(values(SliceDataset.__getitem__(first, 0))[0])
    assert len(drawn) > 1
    assert not torch.equal(
        SliceDataset(stored, 4, augment=augmentation(True), seed=2)[7]["slices"], second[7]["slices"]
    )


def test_one_augmentation_for_a_bag_and_different_ones_for_others(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (3, 24, 24), dtype=np.uint8)
    write_slices(tmp_path / "v.h5", np.stack([picture] * 8), {})
    volumes = [volume("v", file=tmp_path / "v.h5"), volume("w", file=tmp_path / "v.h5")]
    dataset = SliceDataset(volumes, 4, bag=4, augment=augmentation(True))
    bag, other = dataset[0]["slices"], dataset[1]["slices"]
    assert all(torch.equal(bag[0], s) for s in bag)
    assert not torch.equal(bag[0], other[0])
    assert not torch.equal(bag[0], torch.from_numpy(picture))
    basic = SliceDataset(volumes, 4, bag=4, augment=augmentation(False))
    allowed = torch.from_numpy(picture), torch.from_numpy(picture[..., ::-1].copy())
    assert any(torch.equal(basic[0]["slices"][0], picture) for picture in allowed)


def test_volumes_come_whole_and_in_one_size(stored):
    dataset = VolumeDataset(stored)
    assert values(dataset[0]) == list(range(16))
    assert len(dataset[3]["slices"]) == 16
    assert sorted(set(values(dataset[3]))) == [0, 1, 2, 3, 4]
    assert label_table(dataset.volumes).shape == (4, 18)


# ------------------------------------------------------------------------------------------------ CutMix


def batch(n=6, size=32):
    slices = torch.arange(n, dtype=torch.uint8)[:, None, None, None, None].expand(n, 2, 3, size, size).contiguous()
    return slices, torch.eye(n, 18)


def test_the_labels_are_the_shares_of_the_pixels():
    """Slice i has the value i everywhere, and the label i: labels must count the pixels."""
    slices, labels = batch()
    for seed in range(50):
        torch.manual_seed(seed)
        mixed, targets = cutmix(slices, labels, 1.0)
        for i in range(6):
            share = torch.stack([(mixed[i, 1, 2] == k).float().mean() for k in range(6)])
            assert torch.allclose(targets[i, :6], share, atol=1e-6)
            assert torch.equal(mixed[i, 0], mixed[i, 1])  # one box for all slices and channels
    assert torch.equal(slices, batch()[0])  # the given ones are left alone


def test_the_box_is_a_rectangle_of_the_drawn_size():
    slices, labels = batch(size=64)
    shares = []
    for seed in range(300):
        torch.manual_seed(seed)
        mixed, _ = cutmix(slices, labels, 1.0)
        changed = next((m[0, 0] != i for i, m in enumerate(mixed) if (m != i).any()), None)
        if changed is None:
            continue
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert changed.sum() == area
        shares.append(float(area) / 64**2)
    assert 0.25 < np.mean(shares) < 0.45  # E[1-λ] = 1/2 for λ ~ U(0, 1), less what the border cuts off


def test_unknown_labels_stay_unknown_and_probability_counts():
    slices, labels = batch(2)
    labels[0, 5] = -1
    torch.manual_seed(1)
    for _ in range(20):
        mixed, targets = cutmix(slices, labels, 1.0)
        assert set(targets[:, 5].tolist()) <= {-1.0, 0.0}
        if not torch.equal(mixed[1], slices[1]):
            assert targets[:, 5].tolist() == [-1, -1]
        assert ((targets == -1) | ((targets >= 0) & (targets <= 1))).all()
    assert cutmix(slices, labels, 0.0)[0] is slices
    changed = 0
    for seed in range(400):
        torch.manual_seed(seed)
        changed += cutmix(slices, labels, 0.5)[0] is not slices
    assert 150 < changed < 250
