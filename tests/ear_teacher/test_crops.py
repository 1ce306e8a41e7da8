"""Crops: where every pixel comes from, at borders and at other scales; mirrors, views, and what a sample depends on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from core.errors import UserError
from core.validation import DataReport, leave_out_unreadable
from core.windows import cut, square_window
from ear.crops import EarCrops, to_pixels, to_tensor
from ear.manifest import Ear


def ramp(slope_x, slope_y, height=100, width=120, start=20.0):
    """A picture whose value is `start` + slope_x · x + slope_y · y, rounded, in all channels."""
    values = start + slope_x * np.arange(width) + slope_y * np.arange(height)[:, None]
    return np.repeat(np.round(values)[..., None], 3, axis=2).astype(np.uint8)


def centres(window, size):
    """x and y (size,) of the output's pixel centres in the picture."""
    x, y, side = window
    steps = (np.arange(size) + 0.5) * side / size
    return x + steps, y + steps


def slow_cut(pixels, window, size):
    """Each output pixel as the mean under a tent around its centre, as wide as a pixel of the coarser grid."""
    support, result = max(1.0, window[2] / size), np.zeros((size, size, 3))
    xs, ys = centres(window, size)

    def weights(centre):
        places = np.arange(int(np.ceil(centre - support)), int(np.floor(centre + support)) + 1)
        tent = 1 - np.abs(places - centre) / support
        return places, tent / tent.sum()

    for row, y in enumerate(ys):
        i, down = weights(y)
        i = i.clip(0, pixels.shape[0] - 1)
        for column, x in enumerate(xs):
            j, across = weights(x)
            j = j.clip(0, pixels.shape[1] - 1)
            result[row, column] = np.einsum("i,j,ijc->c", down, across, pixels[i[:, None], j].astype(float))
    return result


def ear(path, box=None, side="", name="ear"):
    return Ear(name, path, box, None, name, side)


@pytest.fixture
def photo(tmp_path):
    """A picture of 40×60 px, no two columns or rows alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


# ------------------------------------------------------------------------------------------------ geometry


def test_the_window_is_square_and_keeps_the_centre():
    assert square_window((10, 20, 30, 60), 0.0) == (0, 20, 40)
    x, y, side = square_window((10.0, 20.0, 30.0, 60.0), 0.1)
    assert side == pytest.approx(44)
    assert (x + side / 2, y + side / 2) == pytest.approx((20, 40))


WINDOWS = [
    ((20.0, 30.0, 32.0), 64),  # enlarged, between pixels
    ((19.5, 29.5, 32.0), 128),  # enlarged, from edge to edge of pixels
    ((19.5, 29.5, 32.0), 32),  # pixel by pixel
    ((19.8, 30.3, 48.0), 32),
    ((20.2, 10.7, 64.0), 8),  # shrunk
    ((50.3, 50.3, 2.0), 32),  # two pixels
    ((50.3, 50.3, 0.5), 16),  # less than one
]


@pytest.mark.parametrize(("window", "size"), WINDOWS)
def test_a_ramp_stays_a_ramp(window, size):
    """At every pixel's centre, those at the window's edge included, to the rounding of pixels."""
    xs, ys = centres(window, size)
    for slopes, places in (((2, 0), xs[None, :]), ((0, 2), ys[:, None])):
        found = cut(ramp(*slopes), window, size)
        assert found.shape == (size, size, 3)
        assert found.dtype == np.uint8
        assert np.abs(found[..., 0] - (20 + 2 * places)).max() <= 0.6


@pytest.mark.parametrize(
    ("window", "size"),
    [
        *WINDOWS,
        ((-7.3, -4.1, 30.0), 20),
        ((100.0, 85.0, 40.0), 50),
        ((-30.0, 20.0, 180.0), 40),
        ((200.0, 300.0, 9.0), 8),
    ],
)
def test_against_a_slow_formula(window, size):
    """Beyond the border the outermost pixels go on."""
    pixels = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    assert np.abs(cut(pixels, window, size) - slow_cut(pixels, window, size)).max() <= 1.5


@pytest.mark.parametrize(("window", "size"), WINDOWS)
def test_the_inside_of_a_window_against_a_slow_formula(window, size):
    """Two pixels off the window's edge."""
    pixels = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    edge = 1 + int(np.ceil(max(1.0, size / window[2])))
    inside = slice(edge, -edge)
    difference = np.abs(cut(pixels, window, size) - slow_cut(pixels, window, size))[inside, inside]
    assert difference.size == 0 or difference.max() <= 1.5


def test_pixels_are_kept_where_windows_fall_on_them():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut(pixels, (9.5, 4.5, 20), 20), pixels[5:25, 10:30])
    outside = cut(pixels, (-5.5, 44.5, 10), 10)
    np.testing.assert_array_equal(outside[:5, 5:], pixels[45:, :5])
    np.testing.assert_array_equal(outside[5:, 5:], np.repeat(pixels[49:, :5], 5, axis=0))
    assert (outside[5:, :5] == pixels[49, 0]).all()


def test_a_fine_checkerboard_becomes_grey():
    """Shrunk 8 times: every other pixel taken would give black or white."""
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    found = cut(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), (31.5, 31.5, 192.0), 24)
    assert np.abs(found.astype(float) - 127.5).max() < 3


def test_tensors_and_pixels_are_there_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    tensor = to_tensor(pixels)
    assert tensor.shape == (3, 7, 5)
    assert tensor[2, 4, 1].item() == pytest.approx(pixels[4, 1, 2] / 255 * 2 - 1, abs=1e-6)
    np.testing.assert_array_equal(to_pixels(tensor), pixels)
    assert to_pixels(torch.tensor([-3.0, 3.0]).view(1, 1, 2).expand(3, 1, 2))[0, :, 0].tolist() == [0, 255]


# ------------------------------------------------------------------------------------------------ samples


def test_left_ears_are_mirrored(photo):
    path, pixels = photo
    box = (9.5, 19.5, 29.5, 39.5)
    left, right, unknown = (ear(path, box, side) for side in ("left", "right", ""))
    expected = pixels[20:40, 10:30]
    for mirror, sides in ((True, (expected[:, ::-1], expected, expected)), (False, (expected,) * 3)):
        crops = EarCrops([left, right, unknown], 20, margin=0.0, mirror_left=mirror)
        for i, picture in enumerate(sides):
            np.testing.assert_array_equal(crops.pixels(i), picture)
            np.testing.assert_array_equal(to_pixels(crops[i]["image"]), picture)


def test_without_a_box_the_whole_picture_is_shown(photo):
    path, pixels = photo
    whole = cut(pixels, (-10.5, -0.5, 60.0), 30)
    np.testing.assert_array_equal(EarCrops([ear(path)], 30).pixels(0), whole)
    boxed = ear(path, (5.0, 5.0, 15.0, 15.0))
    np.testing.assert_array_equal(EarCrops([boxed], 30, crop=False).pixels(0), whole)
    assert not np.array_equal(EarCrops([boxed], 30).pixels(0), whole)
    np.testing.assert_array_equal(EarCrops([boxed], 30, margin=0.2).pixels(0), cut(pixels, (4.0, 4.0, 12.0), 30))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "P", "RGBA", "I;16"])
def test_every_kind_of_picture_is_rgb(tmp_path, mode):
    grey = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (30, 1))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    file = tmp_path / ("ear.tif" if mode in ("CMYK", "I;16") else "ear.png")
    picture.save(file)
    item = EarCrops([ear(file)], 16)[0]
    assert item["image"].shape == (3, 16, 16)
    assert item["image"].dtype == torch.float32
    assert item["image"].abs().max() <= 1
    assert item["image"][:, 8, 14].mean() > item["image"][:, 8, 1].mean() + 0.5


def test_a_picture_of_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "dot.png")
    for box in (None, (-0.5, -0.5, 0.5, 0.5)):
        assert (EarCrops([ear(tmp_path / "dot.png", box)], 8).pixels(0) == (10, 200, 30)).all()


def samples(ears, epoch=0, workers=0, **arguments):
    data = EarCrops(ears, 24, augment=True, **arguments)
    data.set_epoch(epoch)
    loader = DataLoader(data, batch_size=2, num_workers=workers, multiprocessing_context="fork" if workers else None)
    batches = list(loader)
    return {
        name: torch.cat([batch[name] for batch in batches]) for name in ("image", "other_view") if name in batches[0]
    }


def test_a_sample_follows_from_seed_epoch_and_index(photo):
    ears = [ear(photo[0], (5.0, 15.0, 35.0, 45.0), name=str(i)) for i in range(6)]
    ours = samples(ears)["image"]
    assert torch.equal(samples(ears)["image"], ours)
    assert torch.equal(samples(ears, workers=2)["image"], ours)
    torch.manual_seed(5)
    np.random.seed(5)
    one = EarCrops(ears, 24, augment=True)
    _ = one[0]
    assert torch.equal(one[4]["image"], ours[4])
    for other in (samples(ears, epoch=1), samples(ears, seed=1)):
        assert ((other["image"] - ours).abs().mean(dim=(1, 2, 3)) > 0).sum() >= 5  # one may draw nothing both times
    assert ((ours[1:] - ours[:1]).abs().mean(dim=(1, 2, 3)) > 0).sum() >= 4


def test_two_views_are_two_draws_of_one_ear(photo):
    ears = [ear(photo[0], (5.0, 15.0, 35.0, 45.0), name=str(i)) for i in range(6)]
    both = samples(ears, views=2)
    differences = (both["image"] - both["other_view"]).abs().mean(dim=(1, 2, 3))
    assert (differences > 0).sum() >= 5
    workers = samples(ears, views=2, workers=2)
    assert all(torch.equal(both[name], workers[name]) for name in both)
    drawn = torch.cat([both["image"], both["other_view"]]).flatten(1)
    assert len(torch.unique(drawn, dim=0)) >= 10  # no view is another ear's


def test_without_augmentation_nothing_is_drawn(photo):
    data = EarCrops([ear(photo[0], name="first/ear")], 24, views=2)
    first = data[0]
    data.set_epoch(3)
    assert torch.equal(first["image"], data[0]["image"])
    assert torch.equal(first["image"], first["other_view"])
    assert (first["id"], first["index"]) == ("first/ear", 0)
    assert set(EarCrops([ear(photo[0])], 24)[0]) == {"image", "index", "id"}


# ------------------------------------------------------------------------------------------------ broken pictures


def test_broken_pictures_are_left_out_and_listed(photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo[0].read_bytes()[:2000])
    report = DataReport()
    good, bad = ear(photo[0], name="good"), ear(broken, name="bad")
    kept = leave_out_unreadable({"train": [bad, good], "val": [good]}, report)
    assert kept == {"train": [good], "val": [good]}
    assert report.cases == {"train": 1, "val": 1}
    assert [(p.where, p.action) for p in report.problems] == [("bad", "left out")]
    assert str(broken) in report.problems[0].detail
    with pytest.raises(UserError, match=r"no readable picture in val.*broken\.png") as caught:
        leave_out_unreadable({"train": [good], "val": [bad]}, DataReport())
    assert "\n" not in str(caught.value)
