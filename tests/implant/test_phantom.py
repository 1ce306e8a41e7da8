"""The synthetic implants: as long and as wide as they say, each maker by its own thread, and pictures around them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from implants.demo import phantom as phantom
from implants.demo.phantom import CATALOGUE, COLLAR, COMPANIES, Implant, draw_picture, titanium

MODELS = ("Straight", "Tapered", "TissueLevel", "Short")
MM_PER_PX = 0.05
EVERY = [Implant(company, model, 10.0, 4.1) for company in COMPANIES for model in MODELS]
SOLD = [Implant(*kind, lengths[0], diameters[-1]) for kind, (lengths, diameters) in CATALOGUE.items()]
SOLD += [Implant(*kind, lengths[-1], diameters[0]) for kind, (lengths, diameters) in CATALOGUE.items()]


def name(implant):
    return " ".join(map(str, (implant.company, implant.model, implant.length, implant.diameter)))


def extent(shadow, axis):
    found = np.flatnonzero(shadow.any(axis))
    return found[-1] - found[0] + 1


def body(implant, thickness, step):
    """Without the flared collar, which is wider than the implant."""
    return thickness[round((COLLAR if implant.model == "TissueLevel" else 0) / step) :]


@pytest.mark.parametrize("implant", [*EVERY, *SOLD], ids=name)
def test_length_and_diameter_are_exact(implant):
    step = 0.02
    thickness = titanium(implant, step)
    assert thickness.dtype == np.float32
    assert thickness.min() >= 0
    shadow = thickness > 0.05
    assert extent(shadow, 1) * step == pytest.approx(implant.length, abs=0.03)
    assert extent(body(implant, shadow, step), 0) * step == pytest.approx(implant.diameter, abs=0.05)
    assert body(implant, thickness, step).max() <= implant.diameter + 1e-5  # no beam is longer inside than it is wide


@pytest.mark.parametrize("implant", [replace(implant, diameter=4.8) for implant in EVERY], ids=name)
def test_upright_implant_measures_the_same_in_px(implant):
    film = phantom.Film(
        (300, 200), np.array([[1, 0, 99.5], [0, 1, 39.5]]) * [1 / MM_PER_PX, 1 / MM_PER_PX, 1], MM_PER_PX
    )
    film.add_implant(implant, screw=0.4)
    edge = 0.25 * phantom.TITANIUM  # a beam that is cut to a quarter of a millimetre
    rows = np.flatnonzero((film.attenuation > edge).any(1))
    assert rows[0] == pytest.approx(40, abs=1)  # pixel 39 ends where the platform is
    assert (rows[-1] - rows[0] + 1) * MM_PER_PX == pytest.approx(implant.length, abs=0.11)
    below = film.attenuation[40 + round(COLLAR / MM_PER_PX if implant.model == "TissueLevel" else 0) :]
    assert extent(below > edge, 0) * MM_PER_PX == pytest.approx(implant.diameter, abs=0.11)


@pytest.mark.parametrize("company", COMPANIES)
def test_thread_repeats_at_the_makers_pitch(company):
    step = 0.02
    implant = Implant(company, "Straight", 13.0, 4.1)
    profile = titanium(implant, step).astype(float)
    left = (profile[:, : profile.shape[1] // 2] > 0.05).sum(1) * step  # radius at each height
    smooth = round(3.0 / step), round((implant.length - 3.0) / step)
    wave = left[slice(*smooth)] - left[slice(*smooth)].mean()
    power = abs(np.fft.rfft(wave, 16384))
    pitch = step / np.fft.rfftfreq(16384)[power.argmax()]
    assert pitch == pytest.approx(COMPANIES[company].pitch, rel=0.06)
    depth = COMPANIES[company].depth
    assert 0.6 * depth < np.ptp(wave) < depth + 0.03  # a valley's outline is filled by the thread before and behind it


def test_crests_of_the_two_sides_alternate():
    step = 0.02
    thickness = titanium(Implant("Dromund", "Straight", 13.0, 4.5), step)
    half = thickness.shape[1] // 2
    left, right = (thickness > 0.05)[:, :half].sum(1), (thickness > 0.05)[:, half:].sum(1)
    shift = round(COMPANIES["Dromund"].pitch / 2 / step)
    middle = slice(round(3 / step), round(9 / step))
    np.testing.assert_allclose(left[middle], right[middle.start + shift : middle.stop + shift], atol=2)
    assert abs(left[middle] - right[middle]).max() * step > 0.3


def test_makers_and_models_differ_by_design():
    for field in ("thread", "pitch", "neck", "apex", "connection"):
        assert len({getattr(company, field) for company in COMPANIES.values()}) == len(COMPANIES)
    radii = {}
    for implant in (Implant("Alvento", model, 8.0, 4.1) for model in MODELS):
        y = np.array([0.02, 2.3, 7.0])
        radii[implant.model] = phantom.outline_of(implant, y)[0] / (implant.diameter / 2)
    assert radii["TissueLevel"][0] > 1.2  # flared
    assert radii["Short"][0] < 0.8  # a shoulder
    assert radii["Tapered"][2] < 0.8 * radii["Straight"][2]
    for values in radii.values():
        assert values[1] == pytest.approx(1)


def test_catalogue_has_what_can_be_bought():
    lengths = {length for sizes, _ in CATALOGUE.values() for length in sizes}
    diameters = {diameter for _, sizes in CATALOGUE.values() for diameter in sizes}
    assert lengths == {6, 7, 8, 8.5, 10, 11.5, 13, 14.5, 16}
    assert diameters == {3.0, 3.3, 3.75, 4.1, 4.5, 4.8, 5.5, 6.0}
    assert {company for company, _ in CATALOGUE} == set(COMPANIES)
    assert {model for _, model in CATALOGUE} == set(MODELS)
    assert len(CATALOGUE) < len(COMPANIES) * len(MODELS)
    rng = np.random.default_rng(0)
    drawn = [phantom.sample_implant(rng, "Alvento", "Straight") for _ in range(400)]
    counts = [sum(implant.length == length for implant in drawn) for length in (8, 10, 11.5, 13, 14.5)]
    assert min(counts) > 0
    assert max(counts) == counts[2]
    assert sum(counts) == 400


@pytest.mark.parametrize("seed", range(6))
def test_pictures_show_the_implant_where_the_truth_says(seed):
    implant = Implant("Eskilo", "Straight", 11.5, 4.5)  # solid down to its end
    picture = draw_picture(implant, np.random.default_rng(seed))
    assert picture.pixels.dtype == np.uint8
    height, width = picture.pixels.shape
    x0, y0, x1, y1 = picture.box
    assert -0.5 <= x0 < x1 <= width - 0.5
    assert -0.5 <= y0 < y1 <= height - 0.5
    platform, apex = (np.array(picture.scene[end]) for end in ("platform", "apex"))
    away = np.linalg.norm(apex - platform)
    assert away * picture.mm_per_px == pytest.approx(implant.length * picture.scene["foreshortening"], abs=2e-3)
    assert 0.97 < picture.scene["foreshortening"] <= 1
    assert abs(picture.scene["turn"]) <= 15
    for x, y in (platform, apex):
        assert x0 < x < x1
        assert y0 < y < y1
    along = (apex - platform) / away
    inside, outside = (
        cv2.getRectSubPix(picture.pixels, (5, 5), (apex + along * mm / picture.mm_per_px).tolist()).mean()
        for mm in (-0.8, 0.8)
    )
    assert inside > outside + 25


def test_size_changes_the_grid_and_not_the_scene():
    implant = SOLD[0]
    large, small = (draw_picture(implant, np.random.default_rng(4), size) for size in (224, 112))
    assert small.mm_per_px == pytest.approx(2 * large.mm_per_px, abs=2e-4)
    np.testing.assert_allclose(np.array(large.pixels.shape) / small.pixels.shape, 2, rtol=0.02)
    assert small.scene["turn"] == large.scene["turn"]
    assert small.scene["restoration"] == large.scene["restoration"]
    low, high = phantom.SPACINGS[large.modality]
    assert low <= large.mm_per_px <= high


def test_box_height_alone_does_not_give_the_length():
    rng = np.random.default_rng(1)
    kinds = list(CATALOGUE)
    lengths, heights = [], []
    for seed in range(60):
        implant = phantom.sample_implant(rng, *kinds[rng.integers(len(kinds))])
        box = draw_picture(implant, np.random.default_rng((1, seed)), 64).box
        lengths.append(implant.length)
        heights.append(box[3] - box[1])
    assert np.corrcoef(lengths, heights)[0, 1] < 0.8
