"""The numbers of evaluate_detector.py, on ears whose errors are known."""

import itertools

import numpy as np
import pytest
from PIL import Image

from core.landmarks import Schema
from ear.evaluation import (
    Evaluation,
    Predictions,
    average_precision,
    distance_to_line,
    intersection_over_union,
    mean_boxes,
    mean_ear,
    place_mean_ear,
    write_predictions,
)
from ear.manifest import Ear
from ear.plots import overlays
from files import read_csv

SCHEMA = Schema("four", ("top", "back", "lobe", "front"), {"rim": (0, 1, 2), "edge": (2, 3)}, (0, 3, 2, 1))
SHAPE = np.array([[0.5, 0.0], [0.9, 0.5], [0.4, 1.0], [0.0, 0.45]])  # shares of the box
BOX = (10.0, 20.0, 40.0, 60.0)  # its diagonal is 50


def make_ear(number=0, box=BOX, shape=SHAPE, side="right", subject=None):
    points = np.array(box[:2]) + shape * np.subtract(box[2:], box[:2])
    return Ear(f"ear{number}", f"ear{number}.png", box, points.astype(np.float32), subject or f"s{number}", side)


def predictions(ears, shift=(0.0, 0.0), scores=None, sides=None):
    """The truth, moved by `shift` px; every ear called a right one, or `sides`."""
    boxes = np.array([ear.box for ear in ears]) + np.tile(shift, 2)
    points = np.stack([ear.landmarks for ear in ears]) + np.array(shift)
    scores = np.ones(len(ears)) if scores is None else np.array(scores)
    return Predictions(boxes, scores, points, np.array(sides or ["right"] * len(ears)))


def evaluate(ears, found):
    return Evaluation(ears, found, SCHEMA, 200, 0)


# ------------------------------------------------------------------------------------------------------------ measures


def test_average_precision_of_the_textbook():
    scores, hits = np.array([0.9, 0.3, 0.8, 0.5]), np.array([True, True, False, True])
    # By score: hit, miss, hit, hit. Precision from each on: 1, 3/4, 3/4, 3/4; recall rises by 1/4 at each hit.
    assert average_precision(scores, hits) == pytest.approx((1 + 0.75 + 0.75) / 4)
    assert average_precision(scores, np.ones(4, bool)) == 1
    assert average_precision(scores, np.zeros(4, bool)) == 0
    good, bad = np.array([0.9, 0.8, 0.1]), np.array([0.1, 0.8, 0.9])
    assert average_precision(good, np.array([1, 1, 0], bool)) > average_precision(bad, np.array([1, 1, 0], bool))


def test_overlap_of_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4]])
    truth = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [6, 6, 9, 9]])
    np.testing.assert_allclose(intersection_over_union(boxes, truth), [1 / 3, 1, 0])


def test_distance_to_a_line_is_to_its_nearest_place():
    line = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [10.0, 10.0]])  # the last step has no length
    points = np.array([[5.0, 3.0], [-3.0, 4.0], [12.0, 5.0], [10.0, 14.0], [7.0, 0.0]])
    np.testing.assert_allclose(distance_to_line(points, line), [3, 5, 2, 4, 0])
    rng = np.random.default_rng(0)
    line, points = rng.uniform(0, 10, (6, 2)), rng.uniform(-3, 13, (50, 2))
    dense = np.concatenate([np.linspace(a, b, 3000) for a, b in itertools.pairwise(line)])
    expected = np.linalg.norm(points[:, None] - dense, axis=2).min(axis=1)
    np.testing.assert_allclose(distance_to_line(points, line), expected, atol=2e-3)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_errors_are_per_cent_of_the_true_diagonal():
    ears = [make_ear(0), make_ear(1, (0.0, 0.0, 60.0, 80.0))]
    found = evaluate(ears, predictions(ears, (3.0, 4.0)))
    np.testing.assert_allclose(found.errors, [[10.0] * 4, [5.0] * 4], rtol=1e-5)
    np.testing.assert_allclose(found.nme, [10, 5], rtol=1e-5)
    assert found.summary()["nme"].estimate == pytest.approx(7.5)
    assert found.summary()["failures"].estimate in (0, 50)  # 10 % is the limit
    assert found.by_landmark()["lobe"].estimate == pytest.approx(7.5)


def test_unknown_landmarks_are_left_out():
    ears = [make_ear(0), make_ear(1)]
    ears[0].landmarks[1] = np.nan
    found = predictions(ears)
    points = np.nan_to_num(found.points, nan=1e6)
    points[1, 1] += (3, 4)
    result = evaluate(ears, found._replace(points=points))
    assert result.nme.tolist() == pytest.approx([0, 2.5])
    assert result.by_landmark()["back"].estimate == pytest.approx(10)
    assert np.isnan(result.contours[0, 0])  # the rim's truth has a gap
    assert result.by_contour()["edge"].estimate == 0


def test_a_landmark_that_no_ear_has_gives_no_number():
    ears = [make_ear(0)]
    ears[0].landmarks[1] = np.nan
    result = evaluate(ears, predictions(ears))
    assert np.isnan(result.by_landmark()["back"]).all()
    assert np.isnan(result.by_contour()["rim"].estimate)


def test_a_shift_along_a_contour_costs_nothing():
    line = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 1.0]])
    ears = [make_ear(0, shape=line)]
    result = evaluate(ears, predictions(ears, (-4.0, 0.0)))
    assert result.by_landmark()["top"].estimate == pytest.approx(8)
    assert result.contours[0, 0] == pytest.approx(8 / 3)  # only its first point leaves the line
    assert result.contours[0, 1] == pytest.approx(8)


def test_boxes_and_scores():
    ears = [make_ear(number) for number in range(4)]
    found = predictions(ears, scores=[0.9, 0.8, 0.7, 0.6])
    found.boxes[1] += 30  # a miss, second by score
    summary = evaluate(ears, found).summary()
    assert summary["iou"].estimate == pytest.approx(0.75)
    assert summary["ap50"].estimate == pytest.approx((1 + 0.75 + 0.75) / 4)


def test_intervals_are_over_subjects():
    """One subject with two equal ears is one case: with it alone there is no spread, however many ears."""
    one = [make_ear(number, subject="same") for number in range(6)]
    found = predictions(one)
    found.points[::2] += (3, 4)
    nme = evaluate(one, found).summary()["nme"]
    assert nme == pytest.approx((5, 5, 5))
    many = [make_ear(number) for number in range(6)]
    nme = evaluate(many, found).summary()["nme"]
    assert nme.low < 4 < 6 < nme.high


def test_differences_are_between_the_same_ears():
    """Errors differ by far between ears, and by the same between the detectors: the difference is sure."""
    ears = [make_ear(number) for number in range(10)]
    shifts = np.arange(10)[:, None, None] * np.array([1.0, 0.0])
    found = predictions(ears)
    better, worse = (evaluate(ears, found._replace(points=found.points + shifts + [d, 0.0])) for d in (0.0, 0.5))
    assert better.summary()["nme"].high > worse.summary()["nme"].low  # one cannot tell them apart by their intervals
    assert better.differences(worse)["nme"] == pytest.approx((-1, -1, -1), rel=1e-4)
    assert worse.differences(better)["nme"].estimate == pytest.approx(1, rel=1e-4)


def test_predictions_are_written_with_their_errors(tmp_path):
    ears = [make_ear(0), make_ear(1, side="left")]
    found = evaluate(ears, predictions(ears, (3.0, 4.0), [0.5, 0.25]))
    write_predictions(tmp_path / "predictions.csv", {"one": found, "other": found})
    rows = read_csv(tmp_path / "predictions.csv")
    assert [(row["detector"], row["id"]) for row in rows] == [
        ("one", "ear0"), ("one", "ear1"), ("other", "ear0"), ("other", "ear1"),
    ]  # fmt: skip
    assert [(row["side"], row["side_found"]) for row in rows[:2]] == [("right", "right"), ("left", "right")]
    assert [float(rows[1][name]) for name in ("nme_percent", "score", "x0", "y0")] == [10, 0.25, 13, 24]
    assert float(rows[0]["lobe_y"]) == 64


def test_sides_count_where_they_are_known_and_looked_for():
    ears = [make_ear(0), make_ear(1, side="left"), make_ear(2, side=""), make_ear(3, side="left")]
    found = predictions(ears, sides=["right", "right", "left", "left"])
    assert evaluate(ears, found).sides_right().estimate == pytest.approx(2 / 3)
    assert np.isnan(evaluate(ears, predictions(ears, sides=[""] * 4)).sides_right().estimate)


# ----------------------------------------------------------------------------------------------------------- baselines


def test_the_mean_ear_of_equal_ears_is_that_ear():
    """In pictures of two sizes, left ones mirrored, and a gap in one of them."""
    sizes = [(100, 80), (200, 160), (100, 80)]
    right, large = make_ear(0), make_ear(1, (20.5, 40.5, 80.5, 120.5))
    mirrored = SHAPE[list(SCHEMA.flip)] * [-1, 1] + [1, 0]
    left = make_ear(2, (99 - 40.0, 20.0, 99 - 10.0, 60.0), mirrored, "left")
    right.landmarks[3] = np.nan
    mean = mean_ear([right, large, left], sizes, SCHEMA)
    np.testing.assert_allclose(mean["shape"], SHAPE, atol=1e-6)
    ears = [right, large, left]
    boxes = mean_boxes(ears, sizes, np.array(mean["box"]))
    np.testing.assert_allclose(boxes, [ear.box for ear in ears], atol=1e-6)
    points = place_mean_ear(ears, boxes, np.array(mean["shape"]), SCHEMA)
    np.testing.assert_allclose(points[1:], [large.landmarks, left.landmarks], atol=1e-4)


def test_a_landmark_that_is_never_known_has_no_mean():
    ear = make_ear(0)
    ear.landmarks[2] = np.nan
    assert np.isnan(mean_ear([ear], [(100, 80)], SCHEMA)["shape"][2]).all()


# ------------------------------------------------------------------------------------------------------------ pictures


def test_overlays_show_truth_and_prediction_where_they_are():
    """One landmark and the box, found too far to the right: red lies right of green."""
    pixels = np.full((90, 70, 3), 120, np.uint8)
    ear = make_ear(0)
    schema = Schema("four", SCHEMA.names, {}, SCHEMA.flip)
    fig = overlays([(pixels, ear, np.array(ear.box) + [20, 0, 20, 0], ear.landmarks + [20, 0], "moved")], schema)
    fig.canvas.draw()
    (ax,) = fig.axes
    truth, found = (collection.get_offsets() for collection in ax.collections)
    np.testing.assert_allclose(found[:, 1], truth[:, 1], atol=1e-3)
    assert (found[:, 0] > truth[:, 0] + 10).all()
    frames = [patch.get_bbox() for patch in ax.patches]
    assert frames[1].x0 > frames[0].x0 + 10
    assert ax.get_title(loc="left") == "moved"
    shown = Image.fromarray(np.asarray(fig.canvas.buffer_rgba())).convert("RGB")
    assert np.asarray(shown).std() > 10
