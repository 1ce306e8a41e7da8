"""Windows: what is drawn where, in pictures whose truth is painted into them."""

import albumentations
import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.validation import DataReport
from core.windows import cut, square_window, to_picture, to_window
from ear import detector_windows as ear_windows
from ear.crops import to_pixels
from ear.detector_windows import (
    RandomWindows,
    TwoStages,
    mirrored,
    random_window,
    read_labelled,
    turned,
    turned_box,
    whole,
)
from ear.manifest import Ear
from files import write_csv

FLIP = (1, 0, 2)
BOX = (40.0, 30.0, 80.0, 90.0)
POINTS = np.array([[45.0, 40.0], [70.0, 35.0], [60.0, 85.0]], np.float32)


def spot(points, size=(140, 120), sigma=2.5):
    """A black picture with a Gaussian spot at each point, red, green and blue."""
    width, height = size
    x, y = np.arange(width), np.arange(height)[:, None]
    channels = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points]
    return (255 * np.stack(channels, axis=-1)).round().astype(np.uint8)


def spots(pixels):
    """Where the red, the green and the blue spot are."""
    weight = pixels.astype(float)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return np.array([[(c * x).sum(), (c * y).sum()] / c.sum() for c in np.moveaxis(weight, 2, 0)])


@pytest.fixture
def ear(tmp_path):
    Image.fromarray(spot(POINTS)).save(tmp_path / "spots.png")
    return Ear("spots", tmp_path / "spots.png", BOX, POINTS, "someone", "right")


@pytest.fixture
def no_light(monkeypatch):
    """Without changes of colour, blur and noise."""
    monkeypatch.setattr(ear_windows, "photometric", lambda: albumentations.Compose([]))


@pytest.mark.parametrize("window", [(10.0, 5.0, 100.0), (-7.3, 12.2, 96.5), (33.0, 21.0, 70.0)])
def test_points_go_where_the_pixels_go_and_back(window):
    found = spots(cut(spot(POINTS), window, 64))
    np.testing.assert_allclose(to_window(POINTS, window, 64), found, atol=0.1)
    np.testing.assert_allclose(to_picture(to_window(POINTS, window, 64), window, 64), POINTS, atol=1e-4)


def test_the_whole_picture_is_centred_in_its_square():
    pixels = np.zeros((60, 100, 3), np.uint8)
    assert whole(pixels) == (-0.5, -20.5, 100.0)
    corners = to_window(np.array([[-0.5, -0.5], [99.5, 59.5]]), whole(pixels), 50)
    np.testing.assert_allclose(corners, [[-0.5, 9.5], [49.5, 39.5]])


@pytest.mark.parametrize("degrees", [-20.0, -7.5, 0.0, 13.0, 20.0])
def test_turned_windows_show_the_points_where_the_affine_says(degrees):
    window = (0.0, 0.0, 120.0)
    image, affine = turned(spot(POINTS), window, 60, degrees)
    expected = to_window(POINTS, window, 60) @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(spots(image), expected, atol=0.15)
    along = affine[:, :2] @ [1, 0]  # a positive angle turns x towards y, clockwise on the screen
    assert np.degrees(np.arctan2(along[1], along[0])) == pytest.approx(degrees)


def test_corners_of_a_turned_window_show_the_picture():
    pixels = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 200, 3))
    image, _ = turned(pixels, (60.0, 60.0, 80.0), 80, 20.0)
    steps = np.diff(image[..., 0].astype(int), axis=0)
    assert (steps >= 0).all()
    assert abs(steps.mean() - np.cos(np.radians(20))) < 0.02  # border pixels that go on would be flat


def test_a_turned_box_holds_the_turned_ellipse():
    _, affine = turned(np.zeros((9, 9, 3), np.uint8), (0.0, 0.0, 9.0), 64, 17.0)
    angle = np.linspace(0, 2 * np.pi, 2000)
    ellipse = np.array([30, 35]) + np.array([10, 18]) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = ellipse @ affine[:, :2].T + affine[:, 2]
    box = turned_box(np.array([20.0, 17.0, 40.0, 53.0]), affine)
    np.testing.assert_allclose(box, [*found.min(axis=0), *found.max(axis=0)], atol=1e-3)


def test_a_mirror_exchanges_what_the_scheme_says():
    image, box = spot(POINTS), np.array(BOX)
    other, points, other_box = mirrored(image, POINTS, box, FLIP)
    np.testing.assert_allclose(spots(other)[[1, 0, 2]], points, atol=0.05)
    np.testing.assert_allclose(other_box, [139 - 80, 30, 139 - 40, 90])
    back, again, box_again = mirrored(other, points, other_box, FLIP)
    np.testing.assert_array_equal(back, image)
    np.testing.assert_allclose(again, POINTS)
    np.testing.assert_allclose(box_again, box)


def test_random_windows_hold_the_ear_in_every_size():
    pixels, rng = np.zeros((400, 300, 3), np.uint8), np.random.default_rng(0)
    windows, close = (
        np.array(column) for column in zip(*(random_window(BOX, pixels, 0.3, rng) for _ in range(2000)), strict=True)
    )
    wholes = (windows == whole(pixels)).all(axis=1)
    assert abs(wholes.mean() - ear_windows.WHOLE) < 0.03
    assert abs(close.mean() - ear_windows.CLOSE) < 0.04
    assert (abs(windows[close, 2] / (60 * 1.3) - 1) <= 0.201).all()
    others = windows[~wholes]
    low, high = others[:, :2], others[:, :2] + others[:, 2:]
    size = np.array([40, 60])
    assert (np.array(BOX[:2]) - low >= -0.101 * size).all()
    assert (high - np.array(BOX[2:]) >= -0.101 * size).all()
    share = 60 / others[:, 2]
    assert 0.2 <= share.min() < 0.25
    assert 0.88 < share.max() <= 0.951


def test_windows_are_no_larger_than_what_there_is_to_see():
    pixels, rng = np.zeros((80, 70, 3), np.uint8), np.random.default_rng(0)
    sides = [random_window((10.0, 10.0, 50.0, 60.0), pixels, 0.3, rng)[0][2] for _ in range(500)]
    assert max(sides) <= ear_windows.LARGEST * 80


def test_landmarks_stay_on_what_they_mark(ear, no_light):
    windows, seen = RandomWindows([ear], 96, 0.3, FLIP, draws=40), 0
    for index in range(40):
        item = windows[index]
        points = item["points"].numpy()
        if (points < 8).any() or (points > 87).any():
            continue
        found = spots(to_pixels(item["image"]))
        order = (0, 1, 2) if np.abs(found - points).max() < 1 else FLIP
        np.testing.assert_allclose(found[list(order)], points, atol=0.5)
        seen += order == FLIP
    assert 0 < seen < 40  # both, mirrored and not


def test_a_window_depends_on_seed_epoch_and_index_alone(ear):
    one, other = (RandomWindows([ear], 32, 0.3, FLIP, draws=3, seed=5) for _ in range(2))
    assert len(one) == 3
    first = one[1]
    one[0], one[2]
    assert (one[1]["image"] == first["image"]).all()
    assert (other[1]["image"] == first["image"]).all()
    assert not (other[2]["image"] == first["image"]).all()
    other.set_epoch(1)
    assert not (other[1]["image"] == first["image"]).all()
    assert first["image"].abs().max() <= 1


def test_unknown_landmarks_stay_unknown(ear):
    points = POINTS.copy()
    points[1] = np.nan
    ears = [Ear(ear.id, ear.image, BOX, points, "someone", "")]
    for windows in (RandomWindows(ears, 32, 0.3, (0, 1, 2)), TwoStages(ears, 32, 0.3, (0, 1, 2))):
        assert windows[0]["left"].isnan().all()
        unknown = windows[0]["points"].isnan()
        assert unknown[..., 1, :].all()
        assert not unknown[..., [0, 2], :].any()


def test_two_stages_are_the_picture_and_the_window_around_the_box(ear):
    stages = TwoStages([ear], 48, 0.25, FLIP)[0]
    windows = whole(spot(POINTS)), square_window(BOX, 0.25)
    for image, points, box, window in zip(stages["image"], stages["points"], stages["box"], windows, strict=True):
        np.testing.assert_allclose(spots(to_pixels(image)), points, atol=0.2)
        np.testing.assert_allclose(points, to_window(POINTS, window, 48), atol=1e-4)
        np.testing.assert_allclose(box, to_window(np.reshape(BOX, (2, 2)), window, 48).ravel(), atol=1e-4)
    close = stages["box"][1]
    np.testing.assert_allclose((close[:2] + close[2:]) / 2, [23.5, 23.5], atol=1e-4)
    assert close[3] - close[1] == pytest.approx(48 / 1.25)
    assert stages["left"].tolist() == [0, 0]


def test_stage_2_shows_a_left_ear_in_a_mirror(ear):
    left = Ear(ear.id, ear.image, BOX, POINTS, "someone", "left")
    for mirror_left in (True, False):
        ours, right = (TwoStages([one], 48, 0.25, FLIP, mirror_left)[0] for one in (left, ear))
        assert ours["left"].tolist() == [1, 0 if mirror_left else 1]
        assert (ours["image"][0] == right["image"][0]).all()
        second = ours["image"][1].flip(-1) if mirror_left else ours["image"][1]
        assert (second == right["image"][1]).all()
        places = spots(to_pixels(ours["image"][1]))
        np.testing.assert_allclose(places[list(FLIP)] if mirror_left else places, ours["points"][1], atol=0.2)


@pytest.mark.parametrize(("side", "as_drawn"), [("right", 0.0), ("left", 1.0)])
def test_training_windows_know_their_side_and_show_close_ones_as_right(ear, no_light, monkeypatch, side, as_drawn):
    ears = [Ear(ear.id, ear.image, BOX, POINTS, "someone", side)]
    monkeypatch.setattr(ear_windows, "TURN", 0.001)

    def mirrored_and_left(windows):
        items = [windows[index] for index in range(60)]
        red = [spots(to_pixels(item["image"])) for item in items]
        return [places[0, 0] > places[1, 0] for places in red], [item["left"].item() for item in items]

    for kind in ("WHOLE", "CLOSE"):
        monkeypatch.setattr(ear_windows, "WHOLE", float(kind == "WHOLE"))
        monkeypatch.setattr(ear_windows, "CLOSE", float(kind == "CLOSE"))
        for mirror_left in (True, False):
            mirrors, left = mirrored_and_left(RandomWindows(ears, 64, 0.3, FLIP, mirror_left, draws=60))
            assert left == [abs(as_drawn - mirror) for mirror in mirrors]
            if kind == "CLOSE" and mirror_left:
                assert set(left) == {0.0}
            else:
                assert 15 < sum(left) < 45


def test_labelled_ears_need_landmarks_and_a_box(ear, tmp_path):
    row = {"image": "spots.png", "x0": 40, "y0": 30, "x1": 80, "y1": 90}
    known = {f"landmark_{i}_{axis}": POINTS[i, k] for i in range(3) for k, axis in enumerate("xy")}
    one_point = dict.fromkeys(known, 50.0)
    without_box = {"x0": "", "y0": "", "x1": "", "y1": ""}
    write_csv(tmp_path / "ears.csv", [row | known, {**row, **without_box, **one_point}, row | dict.fromkeys(known, "")])
    report = DataReport()
    (found,) = read_labelled(tmp_path / "ears.csv", None, "xyxy", report)
    np.testing.assert_array_equal(found.landmarks, POINTS)
    assert len(report.problems) == 2
    write_csv(tmp_path / "points.csv", [{"image": "spots.png", **one_point}])
    with pytest.raises(UserError, match="no ear has a box"):
        read_labelled(tmp_path / "points.csv", None, "xyxy", DataReport())
