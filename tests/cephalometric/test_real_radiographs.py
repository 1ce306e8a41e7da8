"""Two real radiographs as scanners wrote them, from the package pydicom-data: a chest (RG1) and a lower leg (RG3)."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from core.images import read_image

pytest.importorskip("data_store", reason="needs the package pydicom-data")


def header(name):
    return pydicom.dcmread(get_testdata_file(f"{name}.dcm", download=False), stop_before_pixels=True)


@pytest.fixture(scope="module")
def chest():
    return read_image(get_testdata_file("RG1_UNCR.dcm", download=False))


@pytest.fixture(scope="module")
def leg():
    return read_image(get_testdata_file("RG3_UNCR.dcm", download=False))


def grey(picture, x, y, half=20):
    """Mean grey of the square around (x, y)."""
    return picture.pixels[y - half : y + half + 1, x - half : x + half + 1].mean()


def test_size_and_spacing(chest, leg):
    assert chest.pixels.shape == (1955, 1841)
    assert leg.pixels.shape == (1760, 1760)
    assert list(header("RG1_UNCR").PixelSpacing) == [0, 0]  # a scanner that wrote no size must not give one of 0 mm
    assert chest.mm_per_px is None
    assert leg.mm_per_px is None


def test_bone_is_bright(chest, leg):
    """Both are stored with bone dark (MONOCHROME1)."""
    assert header("RG1_UNCR").PhotometricInterpretation == header("RG3_UNCR").PhotometricInterpretation == "MONOCHROME1"
    spine, lung, air = grey(chest, 1020, 950), grey(chest, 1180, 270), grey(chest, 50, 140)
    assert spine > 200 > 120 > lung > 2 * air
    talus, muscle, air = grey(leg, 840, 1480), grey(leg, 740, 540), grey(leg, 560, 500)
    assert talus > 200 > 150 > muscle > 80 > 15 > air
    assert leg.pixels.min() == chest.pixels.min() == 0
    assert leg.pixels.max() == chest.pixels.max() == 255


def test_heart_and_head_are_where_the_header_says(chest):
    """Columns go to the patient's left, rows to the feet: the heart's apex right of the spine, neck above belly."""
    assert list(header("RG1_UNCR").PatientOrientation) == ["L", "F"]
    centre, apex = 900, 1240
    assert grey(chest, apex, 1350) > grey(chest, 2 * centre - apex, 1350) + 10
    assert grey(chest, 1000, 1650) > 200  # belly
    assert grey(chest, 50, 140) < 60  # air above the right shoulder
    assert grey(chest, 1790, 140) < 60  # and the left
    assert grey(chest, 50, 1955 - 140) > 60


def test_the_fibula_of_a_right_leg_is_on_its_right(leg):
    """Columns go to the patient's right; the foot is below. The letter R on the film is mirrored, as the film was."""
    assert list(header("RG3_UNCR").PatientOrientation) == ["R", "F"]
    assert header("RG3_UNCR").Laterality == "R"
    tibia, gap, fibula, muscle = (grey(leg, x, 560, 6) for x in (855, 950, 1005, 1080))
    assert min(tibia, fibula) > max(gap, muscle) + 10
    assert grey(leg, 1759 - 1005, 560, 6) < fibula - 30  # no such bone on the other side
    stem, other_side = leg.pixels[1400:1460, 1205:1211].mean(), leg.pixels[1400:1460, 1155:1161].mean()
    assert stem > 150 > other_side


def test_the_window_clips_and_nothing_else_does(leg):
    """Window 550 ± 512 of the values 0-1023, stretched to 0-255."""
    raw = pydicom.dcmread(get_testdata_file("RG3_UNCR.dcm", download=False)).pixel_array.astype(float)
    low = 550 - 0.5 - 1023 / 2
    expected = 255 * (raw.max() - raw) / (raw.max() - low)
    assert np.abs(leg.pixels - expected.clip(0, 255)).max() <= 0.51
    assert (leg.pixels[raw <= low] == 255).all()


@pytest.mark.parametrize("name", ["RG1", "RG3"])
def test_jpeg_2000_is_read_alike(name, request):
    original = request.getfixturevalue({"RG1": "chest", "RG3": "leg"}[name])
    lossless = read_image(get_testdata_file(f"{name}_J2KR.dcm", download=False))
    lossy = read_image(get_testdata_file(f"{name}_J2KI.dcm", download=False))
    assert np.array_equal(lossless.pixels, original.pixels)
    assert np.abs(lossy.pixels - original.pixels.astype(float)).mean() < 1
