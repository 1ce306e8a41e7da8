import math

import numpy as np
import pytest

from core.metrics import crg_score

rng = np.random.default_rng(0)
LABELS = (rng.random((40, 18)) < 0.2).astype(int)


def formula(labels, predicted):
    """The published definition, cell by cell."""
    cells = [(t, p) for t, p in zip(labels.ravel(), predicted.ravel(), strict=True) if t != -1]
    x, a = len(cells), sum(t for t, _ in cells)
    tp, fn, fp = cells.count((1, True)), cells.count((1, False)), cells.count((0, True))
    r, u = (x - a) / (2 * a), (x - a) / 2
    return u / (2 * u - (r * tp - r * fn - fp))


def test_anchors():
    assert crg_score(LABELS, LABELS == 1) == pytest.approx(1)
    assert crg_score(LABELS, np.zeros_like(LABELS)) == pytest.approx(1 / 3)
    assert crg_score(LABELS, np.ones_like(LABELS)) == pytest.approx(1 / 3)
    assert crg_score(LABELS, LABELS == 0) == pytest.approx(1 / 5)


def test_against_the_definition_with_unknown_cells():
    labels = np.where(rng.random(LABELS.shape) < 0.1, -1, LABELS)
    predicted = rng.random(LABELS.shape) < 0.3
    assert crg_score(labels, predicted) == pytest.approx(formula(labels, predicted), rel=1e-12)
    assert crg_score(labels, predicted) == crg_score(labels[labels != -1], predicted[labels != -1])
    assert crg_score(labels, predicted | (labels == -1)) == crg_score(labels, predicted)


def test_a_miss_costs_more_than_a_false_alarm_where_positives_are_rare():
    labels = np.array([1, 1] + [0] * 18)
    miss, alarm = labels == 1, labels == 1
    miss[0], alarm[-1] = False, True
    assert crg_score(labels, miss) < crg_score(labels, alarm) < 1


def test_edges():
    for labels in ([0, 0, -1], [1, 1], [-1], []):
        assert math.isnan(crg_score(labels, np.zeros(len(labels))))
    with pytest.raises(ValueError, match="shape"):
        crg_score(LABELS, LABELS[:, :17])
