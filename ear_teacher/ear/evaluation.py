"""Errors of boxes and landmarks of detectors with confidence intervals, and the mean ear as baseline.

NME (normalised mean error): distances over the diagonal of the true box in %, as usual for the ears of iBUG (Zhou &
Zafeiriou 2017, "Deformable Models of Ears in-the-wild for Alignment and Recognition").
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from core.landmarks import Schema
from core.metrics import radial_errors
from core.results import write_csv
from core.uncertainty import Interval, bootstrap
from ear.manifest import Ear

FAILURE = 10.0  # NME in %, the usual threshold in the literature
MEAN_IN_PICTURE, MEAN_IN_BOX = "mean ear in the mean box", "mean ear in the detected box"


class Predictions(NamedTuple):
    """Detections of N ears, in px of the pictures."""

    boxes: np.ndarray  # (N, 4)
    scores: np.ndarray  # (N,)
    points: np.ndarray  # (N, K, 2)
    sides: np.ndarray  # (N,) of str: left, right or ""


# ---------------------------------------------------------------------------------------------------------- baselines


def mean_ear(ears: Sequence[Ear], sizes: Sequence[tuple[int, int]], schema: Schema) -> dict[str, list]:
    """Mean of right and mirrored left ears: landmarks `shape` (K, 2) as shares of the box, NaN = unknown; `box` (4,) as
    shares of the picture. `sizes`: (width, height) of each picture in px."""
    boxes, shapes = [], []
    for ear, size in zip(ears, sizes, strict=True):
        box = _shares(np.reshape(ear.box, (2, 2)), (-0.5, -0.5, size[0] - 0.5, size[1] - 0.5))
        shape = _shares(ear.landmarks, ear.box)
        if ear.side == "left":
            box, shape = _mirrored_box(box), _mirrored(shape, schema)
        boxes.append(box)
        shapes.append(shape)
    shapes = np.array(shapes, float)
    known = np.isfinite(shapes)
    mean = np.where(known.any(axis=0), np.nansum(shapes, axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)
    return {"shape": mean.tolist(), "box": np.mean(boxes, axis=0).ravel().tolist()}


def place_mean_ear(ears: Sequence[Ear], boxes: np.ndarray, shape: np.ndarray, schema: Schema) -> np.ndarray:
    """Mean landmarks (N, K, 2) px in `boxes` (N, 4), mirrored for ears whose true side is left."""
    shapes = [_mirrored(shape, schema) if ear.side == "left" else shape for ear in ears]
    return boxes[:, None, :2] + np.array(shapes) * (boxes[:, 2:] - boxes[:, :2])[:, None]


def mean_boxes(ears: Sequence[Ear], sizes: Sequence[tuple[int, int]], box: np.ndarray) -> np.ndarray:
    """Mean box (N, 4) px in pictures of `sizes` (width, height), mirrored for ears whose true side is left."""
    corners = [_mirrored_box(box.reshape(2, 2)) if ear.side == "left" else box.reshape(2, 2) for ear in ears]
    return (np.array(corners) * np.array(sizes)[:, None] - 0.5).reshape(-1, 4)


def _shares(points: np.ndarray, box: Sequence[float]) -> np.ndarray:
    low, high = np.array(box[:2]), np.array(box[2:])
    return (points - low) / (high - low)


def _mirrored(shape: np.ndarray, schema: Schema) -> np.ndarray:
    return shape[list(schema.flip)] * [-1, 1] + [1, 0]


def _mirrored_box(corners: np.ndarray) -> np.ndarray:
    return np.array([[1 - corners[1, 0], corners[0, 1]], [1 - corners[0, 0], corners[1, 1]]])


# ------------------------------------------------------------------------------------------------------------ measures


def intersection_over_union(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (N,) of boxes (N, 4) with the true boxes (N, 4)."""
    from torchvision.ops import box_iou

    return box_iou(*(torch.as_tensor(x, dtype=torch.float64) for x in (boxes, truth))).diag().numpy()


def average_precision(scores: np.ndarray, hits: np.ndarray) -> float:
    """Area under the precision-recall curve (all points, as PASCAL VOC since 2010) for one detection per ear: `scores`
    (N,), `hits` (N,) bool."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = found / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_from_here * hits[order]).sum() / len(hits))


def distance_to_line(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distances (P,) of points (P, 2) to a polyline (L, 2), L >= 2."""
    start, step = line[:-1], np.diff(line, axis=0)  # (L - 1, 2)
    length = np.maximum((step**2).sum(axis=1), 1e-12)
    share = (((points[:, None] - start) * step).sum(axis=2) / length).clip(0, 1)  # (P, L - 1)
    return np.linalg.norm(points[:, None] - start - share[..., None] * step, axis=2).min(axis=1)


class Evaluation:
    """Errors of one detector on `ears` with landmarks.

    `errors` (N, K) and `contours` (N, number of strips) in % of the diagonal of the true box, NaN = unknown; `nme` (N,)
    in %; `iou` (N,). The error of a contour is the mean distance of its predicted points to the true line; shifts along
    the line do not count.
    """

    def __init__(self, ears: Sequence[Ear], predictions: Predictions, schema: Schema, resamples: int, seed: int):
        self.ears, self.predictions, self.schema = ears, predictions, schema
        self.resamples, self.seed = resamples, seed
        self.subjects = [ear.subject for ear in ears]
        truth, boxes = np.stack([ear.landmarks for ear in ears]), np.array([ear.box for ear in ears])
        percent = 100 / np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1)
        self.errors = radial_errors(predictions.points, truth, percent)
        self.nme = np.nanmean(self.errors, axis=1)
        self.iou = intersection_over_union(predictions.boxes, boxes)
        self.contours = np.full((len(ears), len(schema.strips)), np.nan)
        for column, indices in enumerate(schema.strips.values()):
            for row, (found, line) in enumerate(zip(predictions.points, truth[:, list(indices)], strict=True)):
                if np.isfinite(line).all():
                    self.contours[row, column] = percent[row] * distance_to_line(found[list(indices)], line).mean()

    def interval(self, statistic: Callable[[np.ndarray], float]) -> Interval:
        """`statistic` of row indices with 95 % confidence interval, bootstrapped over the subjects."""
        return bootstrap(statistic, self.subjects, self.resamples, seed=self.seed)

    def mean(self, values: np.ndarray) -> Interval:
        """Mean of `values` (N,) with interval, ignoring NaN."""
        known = np.isfinite(values)
        if not known.any():
            return Interval(np.nan, np.nan, np.nan)
        subjects = np.array(self.subjects)[known]
        return bootstrap(lambda rows: float(values[known][rows].mean()), subjects, self.resamples, seed=self.seed)

    def summary(self) -> dict[str, Interval]:
        """`nme` [%], `failures` [%], `iou` and `ap50` (average precision of boxes at an IoU of 0.5)."""
        hits = self.iou >= 0.5
        return {
            "nme": self.mean(self.nme),
            "failures": self.mean(100.0 * (self.nme > FAILURE)),
            "iou": self.mean(self.iou),
            "ap50": self.interval(lambda rows: average_precision(self.predictions.scores[rows], hits[rows])),
        }

    def differences(self, other: "Evaluation") -> dict[str, Interval]:
        """Paired differences (this minus the other): `nme` [%], `failures` [%], `iou`; significant if the interval
        excludes 0."""
        return {
            "nme": self.mean(self.nme - other.nme),
            "failures": self.mean(100.0 * (self.nme > FAILURE) - 100.0 * (other.nme > FAILURE)),
            "iou": self.mean(self.iou - other.iou),
        }

    def sides_right(self) -> Interval:
        """Share of correct sides, over ears of known and predicted side; NaN without any."""
        told = np.array([bool(ear.side and side) for ear, side in zip(self.ears, self.predictions.sides, strict=True)])
        right = np.array([ear.side for ear in self.ears]) == self.predictions.sides
        return self.mean(np.where(told, right, np.nan))

    def by_landmark(self) -> dict[str, Interval]:
        """Landmark -> mean error with interval, in % of the diagonal of the true box."""
        return {name: self.mean(self.errors[:, i]) for i, name in enumerate(self.schema.names)}

    def by_contour(self) -> dict[str, Interval]:
        """Contour -> mean distance of its landmarks to the true line with interval, in % of the diagonal."""
        return {name: self.mean(self.contours[:, i]) for i, name in enumerate(self.schema.strips)}


def write_predictions(file: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Writes a CSV table, one row per ear and detector: box, score, side if predicted, landmarks in px, errors."""
    first = next(iter(evaluations.values()))
    sided = any(evaluation.predictions.sides.any() for evaluation in evaluations.values())
    coordinates = [f"{name}_{axis}".replace(" ", "_") for name in first.schema.names for axis in "xy"]
    header = ["detector", "id", "subject", "side", *(["side_found"] * sided), "nme_percent", "iou", "score",
              "x0", "y0", "x1", "y1", *coordinates]  # fmt: skip
    rows = []
    for name, evaluation in evaluations.items():
        for i, ear in enumerate(evaluation.ears):
            boxes, scores, points, side = (column[i] for column in evaluation.predictions)
            numbers = [evaluation.nme[i], evaluation.iou[i], scores, *boxes, *points.ravel()]
            texts = [name, ear.id, ear.subject, ear.side, *([side] * sided)]
            rows.append([*texts, *(f"{number:.3f}" for number in numbers)])
    write_csv(file, header, rows)
