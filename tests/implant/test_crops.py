"""Crops: what they show, and the scale that goes with them."""

import math

import numpy as np
import pytest
from PIL import Image

from implants.crops import ImplantCrops, class_of, classes_of, moved, scale_features, scale_length
from implants.records import Record


def record(image, bbox=None, mm_per_px=(0.1, 0.1), modality="periapical", **fields):
    return Record("a", image, "Alpha", "Straight", 10.0, 4.0, "p", bbox, mm_per_px, modality, "a", fields)


@pytest.fixture
def picture(tmp_path):
    """80 × 60 px, a ramp to the right."""
    Image.fromarray(np.tile(np.arange(80, dtype=np.uint8) * 3, (60, 1))).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_crop_is_the_square_around_its_box(picture):
    item = ImplantCrops([record(picture, (19.5, 9.5, 39.5, 49.5))], 40, margin=0.0)[0]
    assert item["image"].shape == (1, 40, 40)
    np.testing.assert_allclose(item["image"][0, 20] * 255, 3 * (np.arange(40) + 10), atol=1)
    assert item["target"].tolist() == [10, 4]
    whole = ImplantCrops([record(picture)], 40, margin=0.0)[0]
    np.testing.assert_allclose(whole["image"][0, 20] * 255, 3 * (2 * np.arange(40) + 0.5), atol=1.5)


def test_the_scale_follows_the_window(picture):
    """0.08 mm across, 0.1 mm down; 50 px shown as 25: twice as many mm a pixel."""
    known = scale_features(record(picture, mm_per_px=(0.08, 0.1)), 50, 25, ("panoramic", "periapical"))
    assert known == pytest.approx([1, math.log(0.16 / 0.1), math.log(0.2 / 0.1), math.log(50 / 224), 0, 1])
    unknown = scale_features(record(picture, mm_per_px=None, modality="other"), 50, 25, ("panoramic", "periapical"))
    assert unknown == pytest.approx([0, 0, 0, math.log(50 / 224), 0, 0])
    assert len(known) == scale_length(("panoramic", "periapical"))


def test_augmented_windows_keep_the_scale_true(picture):
    """A 20-px stripe seen in the crop, in px of the crop times mm a px, is 2 mm, however far the window is moved."""
    pixels = np.zeros((200, 200), np.uint8)
    pixels[:, 90:110] = 255
    Image.fromarray(pixels).save(picture)
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(20):
        window = moved((50.0, 50.0, 100.0), rng)
        sides.append(window[2])
        from core.windows import cut

        shown = cut(pixels, window, 128)
        width = shown.mean(axis=0).sum() / 255  # px of the crop
        mm = 0.1 * math.exp(scale_features(record(picture), window[2], 128, ())[1])
        assert width * mm == pytest.approx(2.0, abs=0.02)
    assert max(sides) - min(sides) > 10


def test_samples_depend_on_seed_epoch_and_index_alone_and_views_come_again(picture):
    one, other = (ImplantCrops([record(picture)] * 3, 32, augment=True, seed=5) for _ in range(2))
    one[0], one[2]
    assert (one[1]["image"] == other[1]["image"]).all()
    other.set_epoch(1)
    assert not (one[1]["image"] == other[1]["image"]).all()
    views = ImplantCrops([record(picture)], 32, augment=True, views=2)
    shown = []
    for epoch in range(4):
        views.set_epoch(epoch)
        shown.append(views[0])
    for name in ("image", "scale"):
        assert (shown[0][name] == shown[2][name]).all()
        assert not (shown[0][name] == shown[1][name]).all()


def test_labels_are_numbers_of_classes(picture):
    records = [record(picture, thread_type="v"), record(picture, thread_type="square"), record(picture)]
    assert classes_of(records, "thread_type") == ["square", "v"]
    assert classes_of(records, "company") == ["Alpha"]
    assert [class_of(r, "thread_type", ["square", "v"]) for r in records] == [1, 0, -1]
    crops = ImplantCrops(records, 16, labels={"thread_type": ["square", "v"]})
    assert [crops[i]["label_thread_type"] for i in range(3)] == [1, 0, -1]
