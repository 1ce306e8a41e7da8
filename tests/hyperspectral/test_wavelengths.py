import json

import numpy as np
import pytest

from core.args import ArgumentParser
from core.errors import UserError
from hsi.wavelengths import (
    DEFAULT_WAVELENGTHS,
    colour_matching,
    colours,
    parse_wavelengths,
    rgb_weights,
    to_rgb,
    white_level,
)


def light(*lit: float, wavelengths=DEFAULT_WAVELENGTHS, shape=(1, 1)) -> np.ndarray:
    """A cube that is 1 in the bands at `lit` nm and 0 elsewhere."""
    spectrum = np.isin(wavelengths, lit).astype(np.float32)
    return np.broadcast_to(spectrum[:, None, None], (len(wavelengths), *shape))


# ---------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("450,460,470", (450, 460, 470)),
        ("450 460.5\n470", (450, 460.5, 470)),
        ("450:480:10,850", (450, 460, 470, 480, 850)),
        ("450:730:10,850", DEFAULT_WAVELENGTHS),
        ("400:401:0.1", tuple(400 + i / 10 for i in range(11))),
        ("550", (550,)),
        ("1e3,2.5e3", (1000, 2500)),
    ],
)
def test_lists_and_ranges(text, values):
    assert parse_wavelengths(text) == values


def test_the_default_is_29_bands_by_10_nm_and_one_infrared_band():
    assert len(DEFAULT_WAVELENGTHS) == 30
    assert DEFAULT_WAVELENGTHS[0] == 450
    assert DEFAULT_WAVELENGTHS[-2:] == (730, 850)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nm.txt", "450\n460\n\n470\n"),
        ("nm.csv", "\ufeff450, 460,470"),
        ("nm.txt", "450:470:10"),
        ("nm.json", "[450, 460.0, 470]"),
    ],
)
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert parse_wavelengths(str(tmp_path / name)) == (450, 460, 470)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no wavelength"),
        ("bands.csv", "bands.csv: no such file"),
        ("450;460", "no such file, nor numbers"),
        ("450,4-6", "'4-6' is not a number"),
        ("450:", "not a number"),
        ("450:730", "first:last:step"),
        ("730:450:10", "first:last:step"),
        ("450:730:0", "first:last:step"),
        ("450:735:10", "do not end at 735"),
        ("460,450", "450 follows 460"),
        ("450,450", "450 follows 450"),
        ("0.45,0.46", "0.45 looks like micrometres; give nanometres (450)"),
        ("-450", "outside 200-20000"),
        ("0,450", "outside 200-20000"),
        ("450,30000", "outside 200-20000"),
    ],
)
def test_mistakes_end_with_a_line_that_names_them(text, complaint):
    with pytest.raises(UserError) as caught:
        parse_wavelengths(text)
    assert complaint in str(caught.value)
    assert "--wavelengths" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("nm.csv", b"wavelength\n450", "'wavelength' is not a number"),
        ("nm.json", b"[450, NaN]", "nan nm is outside"),
        ("nm.json", b"[450, 1e999]", "inf nm is outside"),
        ("nm.json", b"[450, [460]]", "is not a number"),
        ("nm.json", b"[450,", "cannot be read"),
        ("nm.json", json.dumps({"nm": [450]}).encode(), "must hold a list"),
        ("nm.txt", b"\x89HDF\r\n", "cannot be read"),
        ("nm.txt", b"", "no wavelength"),
    ],
)
def test_mistakes_in_files_name_the_file(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        parse_wavelengths(str(tmp_path / name))
    assert name in str(caught.value)


def test_it_is_an_argparse_type():
    parser = ArgumentParser()
    parser.add_argument("--wavelengths", type=parse_wavelengths, default=DEFAULT_WAVELENGTHS)
    assert parser.parse_args(["--wavelengths", "450:470:10"]).wavelengths == (450, 460, 470)
    with pytest.raises(UserError, match="micrometres"):
        parser.parse_args(["--wavelengths", "0.45"])


# ---------------------------------------------------------------------------------------------------------- colour


def test_colour_matching_functions_against_the_cie_tables():
    # CIE 1931 2° standard observer, as tabulated in CIE 15
    table = {
        450: (0.3362, 0.0380, 1.7721),
        500: (0.0049, 0.3230, 0.2720),
        555: (0.5121, 1.0000, 0.0057),
        600: (1.0622, 0.6310, 0.0008),
        650: (0.2835, 0.1070, 0.0000),
    }
    fit = colour_matching(np.array(list(table), float)).T
    np.testing.assert_allclose(fit, list(table.values()), atol=0.03)


def test_the_integral_of_each_matching_function_is_that_of_the_cie():
    nm = np.arange(380.0, 781)
    np.testing.assert_allclose(colour_matching(nm).sum(axis=1), 106.86, rtol=0.01)


@pytest.mark.parametrize(
    "wavelengths",
    [
        DEFAULT_WAVELENGTHS,
        tuple(range(380, 731, 5)),
        (450, 455, 460, 540, 620, 700, 1000),  # uneven steps
        (460, 550, 610),
        (550, 610),
        (640,),
        (900, 1000),
    ],
)
def test_a_flat_spectrum_is_neutral(wavelengths):
    cube = np.ones((len(wavelengths), 2, 3), np.float32) * np.array([0, 0.2140, 1], np.float32)
    picture = to_rgb(cube, wavelengths, high=1.0)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0], [[0] * 3, [127] * 3, [255] * 3])  # 0.2140 is sRGB 0.5


def test_single_bands_have_their_hues():
    def hue(nm: float) -> int:
        return int(to_rgb(light(nm), DEFAULT_WAVELENGTHS, 0.15)[0, 0].argmax())

    assert [hue(nm) for nm in (450, 470, 530, 550, 610, 650)] == [2, 2, 1, 1, 0, 0]
    yellow = to_rgb(light(570), DEFAULT_WAVELENGTHS, 0.15)[0, 0]
    assert min(yellow[0], yellow[1]) > 180 > 20 > yellow[2]


def test_infrared_and_ultraviolet_do_not_count():
    nm = (300, *DEFAULT_WAVELENGTHS)
    weights = rgb_weights(nm)
    assert (weights[:, [0, -1]] == 0).all()
    np.testing.assert_allclose(weights[:, 1:-1], rgb_weights(DEFAULT_WAVELENGTHS[:-1]))


def test_finer_sampling_of_a_spectrum_does_not_change_its_colour():
    def picture(nm: np.ndarray) -> np.ndarray:
        spectrum = 0.1 + 0.4 / (1 + np.exp((590 - nm) / 25))
        return to_rgb(spectrum[:, None, None].astype(np.float32), nm, 1.0)[0, 0].astype(int)

    coarse, fine = picture(np.arange(450.0, 731, 10)), picture(np.arange(450.0, 731, 1))
    uneven = picture(np.concatenate([np.arange(450.0, 590, 2), np.arange(590.0, 731, 10)]))  # band widths matter
    assert abs(coarse - fine).max() <= 2
    assert abs(uneven - fine).max() <= 2


def test_without_all_three_thirds_the_nearest_bands_are_taken():
    np.testing.assert_array_equal(rgb_weights((520, 560, 600, 660)), [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(rgb_weights((450, 640, 900)), [[0, 1, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(rgb_weights((800, 900)), 0.5)


@pytest.mark.parametrize(
    ("wavelengths", "text"),
    [
        (DEFAULT_WAVELENGTHS, "in true colour"),
        ((460, 550, 610), "in true colour"),
        ((500, 550.5, 640, 1050), "in false colour, with the bands at 640, 550.5 and 500 nm as red, green and blue"),
        ((700, 900), "in false colour, with the bands at 700, 700 and 700 nm as red, green and blue"),
        ((800, 900), "in grey, the mean of all bands, as none is visible"),
        ((800,), "in grey, the mean of all bands, as none is visible"),
    ],
)
def test_how_cubes_are_shown_is_said(wavelengths, text):
    assert colours(wavelengths) == text


def test_white_is_the_brightest_half_percent_unless_given():
    cube = light(*DEFAULT_WAVELENGTHS, shape=(20, 50)) * np.linspace(0, 40, 1000, dtype=np.float32).reshape(20, 50)
    assert white_level(cube, DEFAULT_WAVELENGTHS) == pytest.approx(39.8, abs=0.05)
    picture = to_rgb(cube, DEFAULT_WAVELENGTHS)
    assert (picture == 255).all(axis=2).sum() in range(5, 12)
    np.testing.assert_array_equal(picture, to_rgb(cube, DEFAULT_WAVELENGTHS, 39.8))
    assert to_rgb(cube, DEFAULT_WAVELENGTHS, 80.0).max() < 190
    assert (to_rgb(0 * cube, DEFAULT_WAVELENGTHS) == 0).all()
