"""Figures of synthetic cubes: smooth tissue with one dark vessel and one bright disc in a round field of view."""

import numpy as np
import pytest
from PIL import Image

from core import figures
from hsi import plots as spectral_plots
from hsi.wavelengths import DEFAULT_WAVELENGTHS

NM = np.array(DEFAULT_WAVELENGTHS)


@pytest.fixture
def eye() -> tuple[np.ndarray, np.ndarray]:
    """A cube (30, 96, 96) and its foreground."""
    rows, columns = np.mgrid[:96, :96] - 47.5
    tissue = 0.05 + 0.25 / (1 + np.exp((590 - NM) / 20))
    cube = tissue[:, None, None] * (1 + 0.002 * rows)
    cube[:, :, 30:33] *= np.where(NM < 600, 0.5, 0.95)[:, None, None]  # the vessel
    cube[:, np.hypot(rows, columns - 20) < 9] = 0.4
    foreground = np.hypot(rows, columns) < 44
    return np.where(foreground, cube, 0).astype(np.float32), foreground


@pytest.fixture
def hidden() -> np.ndarray:
    """Tokens of 5 bands and 24 × 24 pixels; at the first one everything is visible, at the second nothing."""
    tokens = np.random.default_rng(0).random((6, 4, 4)) < 0.8
    tokens[:, 0, 0], tokens[:, 0, 1] = False, True
    return np.kron(tokens, np.ones((5, 24, 24))).astype(bool)


def case(cube, result, hidden, name="eye", photo=None):
    return spectral_plots.Shown(name, cube, result, hidden, cube[0] > 0, photo)


def drawn(fig, tmp_path):
    file = figures.save(fig, tmp_path / "figure.png", dpi=60)
    assert file.stat().st_size > 5000
    return fig


@pytest.mark.parametrize("cases", [1, 3])
@pytest.mark.parametrize("photo", [False, True])
def test_reconstructions(eye, hidden, tmp_path, cases, photo):
    (cube, _), file = eye, tmp_path / "photo.png"
    Image.new("RGB", (80, 60)).save(file)
    names = [f"eye {i}" for i in range(cases)]
    result = np.where(hidden, cube + 0.02, cube)
    shown = [case(cube, result, hidden, name, file if photo else None) for name in names]
    fig = drawn(spectral_plots.reconstructions(shown, NM, "reflectance"), tmp_path)
    *panels, bar = fig.axes
    assert len(panels) == cases * (5 if photo else 4)
    assert [ax.get_ylabel() for ax in panels if ax.get_ylabel()] == names
    assert bar.get_ylabel() == "reflectance"
    share = 100 * (1 - hidden.mean())
    titles = [ax.get_title(loc="left") for ax in panels]
    assert any(f"{share:.0f} % of voxels" in title for title in titles)
    assert "Cube in true colour" in titles
    axes = spectral_plots.reconstructions(shown, NM + 400, "reflectance").axes
    assert "Cube in grey" in [ax.get_title(loc="left") for ax in axes]


def test_the_error_is_over_hidden_bands_and_the_input_shows_visible_ones_alone(eye, hidden):
    cube, _ = eye
    result = np.where(hidden, cube + 0.02, cube)
    fig = spectral_plots.reconstructions([case(cube, result, hidden)], NM, "reflectance")
    original, masked, result, error = (ax.images[0].get_array() for ax in fig.axes[:4])
    assert error.mask[:24, :24].all()  # nothing is hidden, so that there is no error
    np.testing.assert_allclose(error.compressed(), 0.02, atol=1e-5)
    np.testing.assert_array_equal(masked[:24, :24], original[:24, :24])
    assert (masked[:24, 24:48] == masked[0, 24]).all()
    assert masked[0, 24].min() > 200  # grey
    assert (masked[40:, 40:].astype(int) <= original[40:, 40:]).mean() > 0.3
    assert result.astype(int).sum() > original.astype(int).sum()  # the same white: brighter stays brighter


def test_a_perfect_reconstruction_and_nothing_hidden_can_be_drawn(eye, hidden, tmp_path):
    cube, _ = eye
    for mask in (hidden, np.zeros_like(hidden)):
        drawn(spectral_plots.reconstructions([case(cube, cube, mask)], NM, "reflectance"), tmp_path)


def test_error_by_wavelength(tmp_path):
    curves = {"model": np.full(30, 1e-4), "mean spectrum": np.full(30, 1e-2), "interpolation": np.full(30, 1e-3)}
    fig = drawn(spectral_plots.error_by_wavelength(curves, DEFAULT_WAVELENGTHS, "reflectance"), tmp_path)
    (ax,) = fig.axes
    assert ax.get_xlabel() == "wavelength [nm]"
    assert ax.get_ylabel() == "mean squared error [reflectance²]"
    assert ax.get_yscale() == "log"
    assert [line.get_label() for line in ax.lines] == list(curves)
    assert ax.lines[0].get_color() == figures.BLUE
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x[[28, 30]], (730, 850))
    assert np.isnan(y[29])  # the line stops at 730 nm
    assert len(x) == 31
    assert ax.lines[0].get_marker() == "o"  # and the band at 850 nm is seen as a dot


@pytest.mark.parametrize(
    ("wavelengths", "gaps"),
    [
        ((450, 460, 470, 480, 500), 0),
        ((450, 460, 470, 500), 0),  # three steps are no gap yet
        ((450, 460, 470, 501), 1),
        ((450, 460, 600, 610, 620, 800, 810), 2),
        ((450, 900), 0),
    ],
)
def test_lines_are_broken_where_bands_are_missing(wavelengths, gaps):
    fig = spectral_plots.error_by_wavelength({"model": np.arange(1, len(wavelengths) + 1)}, wavelengths, "a.u.")
    x, y = fig.axes[0].lines[0].get_data()
    assert np.isnan(y).sum() == np.isnan(x).sum() == gaps
    np.testing.assert_array_equal(x[~np.isnan(x)], wavelengths)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_spectra(eye, hidden, tmp_path, count):
    cube, foreground = eye
    points = spectral_plots.typical_points(cube, foreground, NM, count)
    fig = drawn(spectral_plots.spectra(case(cube, cube + 0.1, hidden, "eye 1"), NM, points, "reflectance"), tmp_path)
    picture, *panels = fig.axes
    assert picture.get_title(loc="left") == "eye 1"
    assert len(panels) == count
    marks = [tuple(line.get_xydata()[0]) for line in picture.lines]
    assert marks == [(column, row) for row, column, _ in points]
    assert panels[-1].get_xlabel() == "wavelength [nm]"
    assert panels[0].get_ylabel() == "reflectance"
    for ax, (row, column, _) in zip(panels, points, strict=True):
        before, after = (line.get_ydata() for line in ax.lines)
        np.testing.assert_allclose(np.delete(before, 29), cube[:, row, column])
        np.testing.assert_allclose(np.delete(after - before, 29), 0.1, rtol=1e-4)
        assert len(ax.patches) == hidden[:, row, column].sum()


def test_hidden_bands_are_shaded_half_way_to_their_neighbours_but_not_across_a_gap(eye, hidden):
    cube, _ = eye
    shown = case(cube, cube, np.ones_like(hidden))
    fig = spectral_plots.spectra(shown, NM, [(40, 40, "centre")], "reflectance")
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in fig.axes[1].patches]
    np.testing.assert_allclose(spans, [(nm - 5, nm + 5) for nm in NM])


def test_typical_points_are_a_vessel_and_dark_to_bright_tissue_inside_the_foreground(eye):
    cube, foreground = eye
    points = spectral_plots.typical_points(cube, foreground, NM)
    assert points == spectral_plots.typical_points(cube, foreground, NM)
    places = np.array([point[:2] for point in points])
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert distances[np.triu_indices(4, 1)].min() > 96 / 16  # their numbers do not cover each other
    assert all(foreground[row, column] for row, column, _ in points)
    vessel, dark, median, bright = points
    assert vessel[1] in (30, 31, 32)
    levels = [cube[12, row, column] for row, column, _ in (dark, median, bright)]
    assert levels == sorted(levels)
    assert cube[12, bright[0], bright[1]] == pytest.approx(0.4)  # the disc
    assert all("570 nm" in title for *_, title in points)


def test_typical_points_of_a_foreground_that_is_all_rim(eye):
    cube, _ = eye
    foreground = np.zeros((96, 96), bool)
    foreground[50, 20:70] = True
    points = spectral_plots.typical_points(cube, foreground, NM)
    assert all(row == 50 and 20 <= column < 70 for row, column, _ in points)
