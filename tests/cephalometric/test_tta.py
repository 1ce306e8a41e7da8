"""Test-time augmentation of models that see perfectly, or err in a known way. Pictures are drawn: blobs on black."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ceph.anatomy import ANATOMY
from ceph.heatmaps import decode_dark, encode_heatmaps, to_heatmap
from ceph.hrnet import HRNetLandmarks, decode
from ceph.tta import VIEWS, View, predict_views
from core.landmarks import make_schema

HEIGHTS = torch.tensor([1.0, 0.85, 0.7, 0.55, 0.4])  # of the blobs, one a landmark: that is how they are told apart
BLOB, SIGMA, STRIDE = 4.0, 2.0, 2  # SDs in input px, in heatmap px
AUGMENTED = ["10", "18"]
BLOBS = replace(ANATOMY, schema=make_schema({"name": "blobs", "names": list("abcde")}, ""))


def draw(points, height, width):
    """Pictures (B, 1, H, W) with a Gaussian of its own height at each of points (B, 5, 2)."""
    return (encode_heatmaps(points, (height, width), BLOB) * HEIGHTS[:, None, None]).amax(dim=1, keepdim=True)


class BlobFinder:
    """Finds the blobs of `draw` in whatever picture it is shown, and nothing else: it knows of no view.

    A blob whose top it does not see it puts into a corner. `shift` (x, y) is an error in px that it always makes.
    """

    stride, anatomy = STRIDE, BLOBS
    measurement_mean, measurement_std = torch.full((10,), 60.0), torch.full((10,), 7.0)

    def __init__(self, shift=(0.0, 0.0)):
        self.shift = torch.tensor(shift)
        self.pictures = []

    def __call__(self, image):
        self.pictures.append(image)
        height, width = image.shape[-2:]
        tops = F.pad((F.max_pool2d(image, 11, 1, 5) == image)[..., 2:-2, 2:-2], (2, 2, 2, 2))
        alike = tops & ((image - HEIGHTS[:, None, None]).abs() < 0.07)  # (B, 5, H, W)
        place = alike.flatten(2).int().argmax(-1)  # 0 where there is none
        place = torch.stack([place % width, place // width], dim=-1)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        near = (x - place[..., :1, None]).square() + (y - place[..., 1:, None]).square() < 100
        points, _ = decode_dark(torch.where(alike.flatten(2).any(-1)[..., None, None] & near, image, 0), 1.5)
        length = (points[:, 0] - points[:, 1]).norm(dim=-1, keepdim=True)
        values = torch.where(torch.from_numpy(ANATOMY.is_length), length, 25.0)
        heatmaps = encode_heatmaps(
            to_heatmap(points + self.shift, self.stride), (height // STRIDE, width // STRIDE), SIGMA
        )
        return {
            "heatmaps": heatmaps,
            "measurements": (values - self.measurement_mean) / self.measurement_std,
            "cvm_stage": 3 * image.mean(dim=(2, 3)) * torch.arange(6),
        }


class SideFinder(BlobFinder):
    """Calls the left one of the first two blobs a, the right one b, whatever their heights: as a hand's two sides."""

    anatomy = replace(BLOBS, schema=make_schema({"name": "sides", "names": list("abcde"), "flip": [1, 0, 2, 3, 4]}, ""))

    def __call__(self, image):
        prediction = super().__call__(image)
        points, _ = decode(prediction, STRIDE, SIGMA)
        for maps, point in zip(prediction["heatmaps"], points, strict=True):
            if point[0, 0] > point[1, 0]:
                maps[:2] = maps[:2].flip(0)
        points, _ = decode(prediction, STRIDE, SIGMA)
        first = (points[:, 0] - points[:, 2]).norm(dim=-1)  # from a, so that its mirror is another measurement
        prediction["measurements"][:, 0] = (first - self.measurement_mean[0]) / self.measurement_std[0]
        return prediction


@pytest.mark.parametrize("tta", AUGMENTED)
def test_measurements_are_not_those_of_the_mirror(tta):
    images = draw(scattered(192, 160), 192, 160)
    found, plain = (predict_views(SideFinder(), images, SIGMA, views)["measurements"][:, 0] for views in (tta, "none"))
    torch.testing.assert_close(found, plain, rtol=0, atol=0.5)


def scattered(height, width, margin=20, seed=0):
    """Points (4, 5, 2) at least 24 px apart, and `margin` from the border."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height]) - 1 - 2 * margin
    found = []
    while len(found) < 4:
        points = torch.rand(5, 2, generator=generator) * size + margin
        if torch.pdist(points).min() > 24:
            found.append(points)
    return torch.stack(found)


def off(found, points):
    return (found["points"] - points).norm(dim=-1).max().item()


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("10", 10), ("18", 18)])
def test_views_are_counted_and_distinct(tta, count):
    assert len(set(VIEWS[tta])) == len(VIEWS[tta]) == count
    assert VIEWS[tta][0] == View(1, 0, False)
    if count > 1:
        mirrored = {View(view.scale, view.tilt, not view.flip) for view in VIEWS[tta]}
        assert mirrored == set(VIEWS[tta])
        assert {view.scale for view in VIEWS[tta]} == {0.8, 1.0, 1.2}
        assert {view.tilt for view in VIEWS[tta]} == {-3.0, 0.0, 3.0}
    model = BlobFinder()
    predict_views(model, draw(scattered(96, 128), 96, 128), SIGMA, tta)
    pictures = torch.stack(model.pictures).flatten(1)
    assert len(pictures) == count
    if count > 1:
        assert torch.pdist(pictures).min() > 1  # the model was shown as many different pictures


@pytest.mark.parametrize("view", VIEWS["18"])
def test_a_view_shows_a_point_where_it_says(view):
    """Scale, turn and mirror, worked out by hand for one point of a frame that is not square."""
    points = torch.tensor([[[84.0, 30.0]]])
    picture = encode_heatmaps(points, (96, 128), BLOB)
    x, y = 84.0 - 63.5, 30.0 - 47.5
    x = -x if view.flip else x
    angle = np.radians(view.tilt)
    expected = torch.tensor(
        [
            63.5 + view.scale * (x * np.cos(angle) - y * np.sin(angle)),
            47.5 + view.scale * (x * np.sin(angle) + y * np.cos(angle)),
        ]
    ).float()
    centre = torch.tensor([63.5, 47.5])
    assert torch.allclose(view.to_view(points, centre), expected, atol=1e-4)
    assert torch.allclose(view.to_input(expected.expand(1, 1, 2), centre), points, atol=1e-4)
    seen, _ = decode_dark(view.draw(picture), 1.5)
    assert torch.allclose(seen, expected, atol=0.03)


@pytest.mark.parametrize("tta", AUGMENTED)
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (192, 128)])
def test_a_perfect_model_stays_exact(tta, size):
    points = scattered(*size)
    with torch.inference_mode():
        found = predict_views(BlobFinder(), draw(points, *size), SIGMA, tta)
    assert off(found, points) <= 0.05
    assert (found["confidence"] > 0.9).all()


@pytest.mark.parametrize("tta", AUGMENTED)
def test_mirrored_views_exchange_sides(tta, monkeypatch):
    points = scattered(128, 160, margin=30)
    sides = points[:, :2]
    points[:, :2] = torch.stack([p[p[:, 0].argsort()] for p in sides])
    images = draw(torch.cat([sides, points[:, 2:]], dim=1), 128, 160)
    assert off(predict_views(SideFinder(), images, SIGMA, tta), points) <= 0.05
    monkeypatch.setattr(SideFinder, "anatomy", BLOBS)  # as if a mirror exchanged nothing
    assert off(predict_views(SideFinder(), images, SIGMA, tta), points) > 5


@pytest.mark.parametrize("tta", AUGMENTED)
def test_autocast_costs_no_precision(tta):
    points = scattered(192, 192, margin=30)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = predict_views(BlobFinder(), draw(points, 192, 192), SIGMA, tta)
    assert off(found, points) <= 0.05


@pytest.mark.parametrize("tta", AUGMENTED)
def test_landmarks_that_a_view_pushes_out_are_left_out_of_its_average(tta, monkeypatch):
    points = scattered(128, 128)
    points[:, 2] = torch.tensor([[9.0, 8.5], [118.5, 9.0], [8.2, 119.3], [118.7, 118.1]])  # 1.2 × moves them out
    images = draw(points, 128, 128)
    assert off(predict_views(BlobFinder(), images, SIGMA, tta), points) <= 0.05
    monkeypatch.setattr(View, "to_view", lambda view, points, centre: points)  # as if all views showed everything
    assert off(predict_views(BlobFinder(), images, SIGMA, tta), points) > 5


def test_the_picture_as_it_is_counts_wherever_the_landmark_lies():
    """A model may put a landmark just beyond the frame: the mean must still be a number."""
    points = scattered(128, 128)
    points[:, 2] = torch.tensor([10.0, 8.0])
    found = predict_views(BlobFinder(shift=(-12.0, 0.0)), draw(points, 128, 128), SIGMA)["points"][:, 2]
    assert torch.allclose(found, torch.tensor([-2.0, 8.0]), atol=0.1)


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.2])
def test_measurements_come_back_to_the_scale_of_the_picture(scale, monkeypatch):
    """With one scale beside the picture as it is: over 0.8 and 1.2 together the mean hides what is not divided."""
    monkeypatch.setitem(VIEWS, "10", (View(), View(scale, 3.0, True)))
    points = scattered(128, 160, margin=30)
    found = predict_views(BlobFinder(), draw(points, 128, 160), SIGMA, "10")["measurements"]
    length = (points[:, :1] - points[:, 1:2]).norm(dim=-1)  # (B, 1)
    assert found.shape == (4, 10)
    assert torch.allclose(found[:, ANATOMY.is_length], length.expand(4, int(ANATOMY.is_length.sum())), atol=0.05)
    assert torch.allclose(found[:, ~ANATOMY.is_length], torch.tensor(25.0), atol=1e-3)


def test_stages_are_mean_probabilities():
    model = BlobFinder()
    stage = predict_views(model, draw(scattered(128, 128), 128, 128), SIGMA, "10")["cvm_stage"]
    logits = [3 * picture.mean(dim=(2, 3)).numpy() * np.arange(6) for picture in model.pictures]
    each = [np.exp(row) / np.exp(row).sum(axis=1, keepdims=True) for row in logits]
    assert np.allclose(stage, np.mean(each, axis=0), atol=1e-6)


def test_a_mirrored_picture_gives_mirrored_points():
    """Of a model that errs 2 px to the right: alone it contradicts itself by 4 px, over the views it is right."""
    points, model = scattered(128, 160, margin=25), BlobFinder(shift=(2.0, 0.0))
    images = draw(points, 128, 160)

    def difference(tta):
        plain, mirrored = (predict_views(model, picture, SIGMA, tta)["points"] for picture in (images, images.flip(3)))
        mirrored[..., 0] = 159 - mirrored[..., 0]
        return (plain - mirrored).norm(dim=-1)

    assert torch.allclose(difference("none"), torch.tensor(4.0), atol=0.1)
    assert difference("10").max() <= 0.05
    assert off(predict_views(model, images, SIGMA, "10"), points) <= 0.05


def test_without_augmentation_it_is_the_model_and_a_batch_is_its_pictures():
    torch.manual_seed(0)
    model = HRNetLandmarks("hrnet_w18_small", (64, 96), 24).eval()
    model.set_statistics(np.arange(10.0), np.arange(1.0, 11))
    images = torch.rand(2, 1, 64, 96)
    with torch.inference_mode():
        prediction = model(images)
        points, confidence = decode(prediction, model.stride, SIGMA)
        plain = predict_views(model, images, SIGMA)
        together = predict_views(model, images, SIGMA, "10")
        alone = predict_views(model, images[1:2], SIGMA, "10")
    assert {name: tuple(value.shape) for name, value in plain.items()} == {
        "points": (2, 29, 2), "confidence": (2, 29), "measurements": (2, 10), "cvm_stage": (2, 6),
    }  # fmt: skip
    assert torch.allclose(plain["points"], points, atol=1e-4)
    assert torch.equal(plain["confidence"], confidence)
    expected = prediction["measurements"] * torch.arange(1.0, 11) + torch.arange(10.0)
    assert torch.allclose(plain["measurements"], expected)
    for name, value in alone.items():
        assert torch.allclose(value[0], together[name][1], atol=1e-3), name
