"""Figures of made-up pictures: what stands where, and in which colour."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from core import figures
from ear import plots as ear_plots
from ear.plots import Eigenear

SIGMAS = np.array([-3.0, -1.5, 0.0, 1.5, 3.0])


@pytest.fixture
def eigenear() -> Eigenear:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    change = np.zeros((8, 8))
    change[2, 3], change[4, 4] = 40.0, 10.0
    return Eigenear("PC 1", pictures, SIGMAS, change, 0.345, 0.125, "structure")


def shown(fig) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes]


def titles(fig) -> list[str]:
    return [ax.get_title() for ax in fig.axes if ax.get_title()]


def texts(fig) -> list[str]:
    return [text.get_text() for text in fig.texts if text.get_text()]


def inside(fig, tmp_path) -> bool:
    """Whether all text and all pictures lie in the figure."""
    figures.save(fig, tmp_path / "figure.png", dpi=50)
    boxes = [text.get_window_extent() for text in fig.texts] + [ax.get_tightbbox() for ax in fig.axes]
    boxes = [box for box in boxes if box.width > 1]
    return all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1 for box in boxes
    )


def test_picture_grid_puts_rows_below_each_other(tmp_path):
    rows = {"first": np.zeros((2, 4, 4, 3), np.uint8), "a longer name\nin two lines": np.full((2, 4, 4), 0.5)}
    fig = ear_plots.picture_grid(rows, ["left", "right"], heading="two rows")
    assert titles(fig) == ["left", "right"]
    assert texts(fig) == ["two rows", *rows]
    places = np.array([ax.get_position().bounds[:2] for ax in fig.axes]).round(9)
    assert places[0, 0] == places[2, 0] < places[1, 0] == places[3, 0]
    assert places[0, 1] == places[1, 1] > places[2, 1] == places[3, 1]
    assert [picture.shape for picture in shown(fig)] == [(4, 4, 3)] * 2 + [(4, 4)] * 2
    assert inside(fig, tmp_path)


def test_a_heading_and_names_of_several_lines_make_room():
    picture = {"": np.zeros((1, 4, 4))}
    plain, headed, two = (ear_plots.picture_grid(picture, heading=heading) for heading in ("", "one", "one\ntwo"))
    assert plain.get_figheight() < headed.get_figheight() < two.get_figheight()
    narrow, wide = (ear_plots.picture_grid({name: picture[""]}) for name in ("ab\ncd", "ab cd"))
    assert narrow.get_figwidth() < wide.get_figwidth()


def test_reconstruction_grid_shows_four_times_the_difference():
    originals = np.full((2, 4, 4, 3), 100, np.uint8)
    made = originals.copy()
    made[0, 1, 1], made[1, 0, 0] = (90, 110, 100), 255
    fig = ear_plots.reconstruction_grid(originals, made, others={"mean ear": originals})
    assert [text for text in texts(fig) if "difference" not in text] == ["original", "reconstruction", "mean ear"]
    difference = next(picture for picture in shown(fig) if picture.ndim == 2)
    assert difference[1, 1] == pytest.approx(4 * 20 / 3 / 255)
    assert np.delete(difference.ravel(), 5).max() == 0
    assert max(picture.max() for picture in shown(fig) if picture.ndim == 2) == 1  # 4 × 155 is cut


def test_kl_bars_sort_and_grey_out_what_hardly_varies():
    kl, mu = np.array([0.5, 3.0, 1.0]), np.random.default_rng(0).standard_normal((50, 3)) * (1, 1, 0.01)
    (ax,) = ear_plots.kl_bars(kl, mu).axes
    assert [bar.get_height() for bar in ax.patches] == [3.0, 1.0, 0.5]
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [figures.BLUE, figures.GREY, figures.BLUE]
    assert "2 of 3" in ax.get_title(loc="left")


@pytest.mark.parametrize("steps", [3, 5])
def test_eigenear_strip(eigenear, tmp_path, steps):
    keep = slice(None) if steps == 5 else [0, 2, 4]
    eigenear = eigenear._replace(pictures=eigenear.pictures[keep], sigmas=SIGMAS[keep])
    fig = ear_plots.eigenear_strip(eigenear)
    middle = ["−1.5σ", "mean", "+1.5σ"] if steps == 5 else ["mean"]
    assert titles(fig) == ["−3σ", *middle, "+3σ", "change, up to 40"]
    *pictures, heat = shown(fig)
    np.testing.assert_array_equal(pictures, eigenear.pictures)
    assert (heat[2, 3], heat[4, 4]) == (1, 0.25)
    (heading,) = texts(fig)
    assert heading.startswith("PC 1: 34.5 % of the variance; changes structure")
    assert "12 % of the change is brightness or colour" in heading
    assert inside(fig, tmp_path)


def test_eigenear_grid_shows_the_ends_the_mean_and_the_change(eigenear, tmp_path):
    still = eigenear._replace(name="PC 2", change=np.zeros((8, 8)), verdict="brightness or colour", explained=0.0004)
    fig = ear_plots.eigenear_grid([eigenear, still])
    assert titles(fig) == ["−3σ", "mean", "+3σ", "change"]
    pictures = shown(fig)
    assert len(pictures) == 8
    for picture, step in zip(pictures[:3], (0, 2, 4), strict=True):
        np.testing.assert_array_equal(picture, eigenear.pictures[step])
    assert pictures[3].max() == 1
    assert pictures[7].max() == 0  # no change is no reason to divide by it
    first, second = texts(fig)
    assert first == "PC 1: 34.5 %\nstructure\nbrightness share 12 %\nchange up to 40"
    assert second.startswith("PC 2: 0.04 %\nbrightness or colour")
    assert inside(fig, tmp_path)


@pytest.mark.parametrize("count", [1, 7])
def test_explained_variance(eigenear, tmp_path, count):
    verdicts = ["brightness or colour", *["structure"] * 6][:count]
    shares = np.array([0.4, 0.2, 0.1, 0.05, 0.05, 0.02, 0.01])[:count]
    ears = [eigenear._replace(explained=s, verdict=v) for s, v in zip(shares, verdicts, strict=True)]
    fig = ear_plots.explained_variance(ears)
    figures.save(fig, tmp_path / "figure.png", dpi=50)
    (ax,) = fig.axes
    heights = {round(bar.get_x() + bar.get_width() / 2): bar for bar in ax.patches}
    assert [heights[i + 1].get_height() for i in range(count)] == pytest.approx(list(100 * shares))
    colours = [to_hex(heights[i + 1].get_facecolor()) for i in range(count)]
    assert colours == [figures.GREY, *[figures.BLUE] * 6][:count]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * shares.cumsum())
    assert [text.get_text() for text in ax.texts] == ["first 5: 80 %" if count == 7 else "first 1: 40 %"]
