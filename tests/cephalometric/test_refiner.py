"""Stage 2: windows of native pictures, what is learnt from them, and how the answers come back."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from ceph.anatomy import anatomy_of
from ceph.dataset import Cephalogram
from ceph.predictor import Predictor
from ceph.refiner import (
    LARGEST_JITTER,
    SHIFT,
    SHIFTS,
    CoarseCrops,
    LandmarkRefiner,
    RefinerCrops,
    refine,
    window_around,
)
from core.images import read_image
from core.landmarks import make_schema
from core.windows import Letterbox, cut, to_picture, to_window

SIZE, MM = 96, 0.2
CONFIG = {"model": {"image_size": [SIZE, SIZE]}, "mm_per_px": MM, "sigma": 1.5}


def blob(size, centre, sigma):
    """A picture uint8 (height, width) with one bright spot."""
    y, x = np.mgrid[: size[1], : size[0]]
    return np.round(220 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))).astype(np.uint8)


def centroid(pixels):
    weights = pixels.astype(float)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def scattered(mm_per_px):
    """A picture with 29 spots, more than a crop's side apart, and their places (29, 2)."""
    step = 1.6 * SIZE * MM / mm_per_px
    rng = np.random.default_rng(0)
    grid = np.array([[(column + 0.8) * step, (row + 0.8) * step] for row in range(5) for column in range(6)])[:29]
    points = grid + rng.uniform(-3, 3, grid.shape)
    size = (round(6.6 * step), round(5.6 * step))
    pixels = np.zeros(size[::-1], np.uint8)
    reach = round(0.3 * step)
    for x, y in points:
        left, top = int(x) - reach, int(y) - reach
        part = blob((2 * reach, 2 * reach), (x - left, y - top), 0.7 / mm_per_px)
        pixels[top : top + 2 * reach, left : left + 2 * reach] = part
    return pixels, points


class SeesSpots(LandmarkRefiner):
    """A perfect refiner of spots: its heatmaps are its picture, at their resolution."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.stride, self.anything = 4, torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return F.avg_pool2d(image, self.stride).expand(-1, 29, -1, -1)


@pytest.mark.parametrize("side", [40.0, 96.0, 151.3])
def test_windows_and_crops_are_aligned(side):
    place = np.array([201.37, 148.81])
    pixels = blob((400, 300), place, 0.06 * side)
    window = window_around(place + [0.11 * side, -0.07 * side], side)
    found = centroid(cut(pixels, window, SIZE))
    assert to_window(place, window, SIZE) == pytest.approx(found, abs=0.05)
    assert to_picture(to_window(place, window, SIZE), window, SIZE) == pytest.approx(place)


@pytest.mark.parametrize("crops", [1, 5])
@pytest.mark.parametrize("mm_per_px", [0.1, 0.31])
def test_a_perfect_refiner_corrects_stage_1_at_every_scale(crops, mm_per_px):
    pixels, truth = scattered(mm_per_px)
    coarse = truth + np.random.default_rng(1).uniform(-3, 3, truth.shape) / mm_per_px  # mm
    coarse[4] = np.nan
    points, confidence = refine(SeesSpots(), CONFIG, pixels, coarse, mm_per_px, crops)
    assert np.isnan(points[4]).all()
    assert np.isnan(confidence[4])
    known = np.arange(29) != 4
    assert np.abs(points - truth)[known].max() * mm_per_px < 0.05  # mm: a heatmap px is 0.8
    assert confidence[known].min() > 0.5


def test_five_crops_are_one_and_four_moved_ones():
    assert {count: len(set(shifts)) for count, shifts in SHIFTS.items()} == {1: 1, 5: 5}
    assert np.sum(SHIFTS[5], axis=0).tolist() == [0, 0]


def test_a_landmark_at_the_border_is_found():
    """Three quarters of its window lie outside."""
    pixels = blob((300, 300), (20.0, 276.5), 6)
    coarse = np.full((29, 2), np.nan)
    coarse[0] = 5, 290
    points, _ = refine(SeesSpots(), CONFIG, pixels, coarse, 0.1, 5)
    assert points[0] == pytest.approx([20.0, 276.5], abs=0.5)


def test_twenty_megapixels_are_not_copied():
    """Only windows are read; a copy in floating point would be 80 MB."""
    pixels = np.zeros((5000, 4000), np.uint8)
    coarse = np.random.default_rng(0).uniform(500, 3500, (29, 2))
    tracemalloc.start()
    refine(SeesSpots(), CONFIG, pixels, coarse, 0.1, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes / 2


# ------------------------------------------------------------------------------------------------------------- crops


def write_case(folder: Path, mm_per_px=0.1, known=29, name="a") -> Cephalogram:
    """A picture with one landmark in a spot, the others around it."""
    size, place = (500, 420), np.array([251.3, 207.7])
    Image.fromarray(blob(size, place, 1.2 / mm_per_px)).save(folder / f"{name}.png")
    points = np.full((29, 2), np.nan)
    points[:known] = place + np.random.default_rng(0).uniform(-60, 60, (known, 2))
    points[0] = place
    return Cephalogram(name, folder / f"{name}.png", size, points, mm_per_px, "device", None)


def make_crops(case, coarse=None, **options):
    coarse = np.full((1, 29, 2), np.nan) if coarse is None else coarse[None]
    return RefinerCrops([case], coarse, np.full(29, 2.0), SIZE, MM, **options)


def test_a_sample(tmp_path):
    sample = make_crops(write_case(tmp_path), crops=6)[0]
    assert {name: (x.shape, x.dtype) for name, x in sample.items() if torch.is_tensor(x)} == {
        "image": ((6, 1, SIZE, SIZE), torch.float32), "points": ((6, 29, 2), torch.float32)
    }  # fmt: skip
    assert 0 <= sample["image"].min() <= sample["image"].max() <= 1


def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path):
    case = write_case(tmp_path)
    ours, theirs, other = make_crops(case), make_crops(case), make_crops(case, seed=1)
    expected = ours[0]["image"]
    assert torch.equal(theirs[0]["image"], expected)
    assert torch.equal(next(iter(DataLoader(theirs, num_workers=1)))["image"][0], expected)
    assert not torch.equal(other[0]["image"], expected)
    theirs.set_epoch(1)
    assert not torch.equal(theirs[0]["image"], expected)


def test_few_known_landmarks_come_several_times(tmp_path):
    sample = make_crops(write_case(tmp_path, known=3), crops=8)[0]
    assert len(sample["image"]) == 8
    assert sample["points"].isfinite().all(-1).sum(dim=1).max() <= 3


@pytest.mark.parametrize("mm_per_px", [0.1, 0.14])
def test_landmarks_follow_the_augmentation(tmp_path, mm_per_px):
    """Landmark 0 is the middle of the spot, wherever it goes."""
    crops = make_crops(write_case(tmp_path, mm_per_px, known=1), crops=1)
    crops.augmentation = type(crops.augmentation)(  # grey levels and noise would move the centroid
        [step for step in crops.augmentation if type(step).__name__ in ("Mirror", "Affine")],
        keypoint_params=crops.augmentation.processors["keypoints"].params,
    )
    seen = 0
    for epoch in range(30):
        crops.set_epoch(epoch)
        sample = crops[0]
        image, point = sample["image"][0, 0].numpy(), sample["points"][0, 0].numpy()
        if not (np.abs(point - SIZE / 2) < 18).all():
            continue  # the spot would be cut off
        _, peak, *_ = cv2.minMaxLoc(image)
        spot = np.where(image > 0.02 * peak, image, 0)
        assert centroid(spot) == pytest.approx(point, abs=0.15)
        seen += 1
    assert seen > 10


def test_a_mirror_exchanges_landmarks_by_the_flip(tmp_path):
    """P1 is the one further left, in every crop that has both."""
    anatomy = anatomy_of(make_schema({"name": "pair", "names": ["P1", "P2"], "flip": [1, 0]}, ""))
    case = write_case(tmp_path, known=2)
    case.points = case.points[0] + np.array([[-30.0, 20], [30, -20]])
    crops, lower = RefinerCrops([case], case.points[None], np.ones(2), SIZE, MM, crops=40, anatomy=anatomy), []
    for points in crops[0]["points"].numpy():
        if np.isfinite(points).all():
            assert points[0, 0] < points[1, 0]
            lower.append(points[0, 1] > points[1, 1])
    assert 5 < np.sum(lower) < len(lower) - 5


def test_what_stage_2_was_not_taught_stays_as_stage_1_said():
    predictor = Predictor.__new__(Predictor)
    predictor.refiner, predictor.refiner_config, predictor.refine_crops = SeesSpots(), CONFIG, 1
    predictor.taught, predictor.refiner.taught = np.arange(29) != 7, np.arange(29) != 3
    pixels, truth = scattered(0.2)
    box = Letterbox(pixels.shape[::-1], pixels.shape[::-1])
    found = {"points": torch.from_numpy(truth + 3)[None], "confidence": torch.full((1, 29), 0.25)}
    points, confidence, coarse = predictor.points(found, 0, box, pixels, 0.2)
    assert np.isnan([*points[7], confidence[7], *coarse[7]]).all()
    assert (points[3].tolist(), confidence[3]) == ((truth[3] + 3).tolist(), 0.25)
    others = ~np.isin(np.arange(29), (3, 7))
    assert np.abs(points - truth)[others].max() < 0.5
    assert np.allclose(coarse[others], truth[others] + 3)


def test_centres_are_the_truth_with_noise_or_stage_1s_own(tmp_path):
    """Half of each, and shifted as the windows of `refine`; none so far that the landmark leaves the crop."""
    case = write_case(tmp_path, known=1)
    coarse = case.points + [40.0, -40.0]  # px
    side = SIZE * MM / case.mm_per_px
    crops, places = make_crops(case, coarse, augment=False), []
    for epoch in range(200):
        crops.set_epoch(epoch)
        places.append(crops[0]["points"][0, 0].numpy())
    shifts = ((SIZE - 1) / 2 - np.array(places)) * side / SIZE  # of the centre from the landmark, native px
    shift = SHIFT * side
    own = (np.abs(shifts - [40, -40]) < shift + 0.01).all(axis=1)
    assert 0.4 < own.mean() < 0.65
    assert np.ptp(shifts[own], axis=0) == pytest.approx(2 * shift, rel=0.15)
    noise = np.hypot(2.0 / np.sqrt(2) / case.mm_per_px, shift / np.sqrt(3))  # a spread of 2 mm, a uniform shift
    assert shifts[~own].std(axis=0) == pytest.approx(noise, rel=0.25)
    wild = make_crops(case, case.points + 10_000, augment=False)
    assert wild[0]["points"][:, 0].isfinite().all()
    assert LARGEST_JITTER < 0.5


def test_crops_around_stage_1(tmp_path):
    case = write_case(tmp_path)
    coarse = case.points + 5.0
    coarse[3] = np.nan
    crops = CoarseCrops([case], coarse[None], SIZE, MM)
    sample = crops[0]
    assert sample["image"].shape == (29, 1, SIZE, SIZE)
    middle = np.full((1, 29, 2), (SIZE - 1) / 2)
    native = crops.to_native(middle)[0]
    assert np.isnan(native[3]).all()
    known = np.arange(29) != 3
    assert native[known] == pytest.approx(coarse[known])
    window = crops.windows(0)[0]
    expected = cut(read_image(case.image).pixels, window, SIZE)
    assert np.array_equal((sample["image"][0, 0].numpy() * 255).round().astype(np.uint8), expected)
