import numpy as np
import pytest
import torch
from scipy.special import expit
from torchmetrics.functional.classification import binary_calibration_error

from core import figures
from core.uncertainty import expected_calibration_error, fit_platt, reliability


def logits_and_labels(temperature, bias=0.0, cells=20000, seed=0):
    """Logits that `temperature` and `bias` would put right, and labels drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    right = rng.normal(-1, 2, (cells // 10, 10))
    return (right - bias) * temperature, (rng.random(right.shape) < expit(right)).astype(int)


def likelihood_loss(logits, labels, temperature, bias):
    p = expit(logits / temperature + bias)
    return -np.mean(np.log(np.where(labels == 1, p, 1 - p))[labels != -1])


@pytest.mark.parametrize("bias", [-3.0, 0.0, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 6.0])
def test_a_known_temperature_and_bias_are_found(temperature, bias):
    logits, labels = logits_and_labels(temperature, bias)
    found = fit_platt(logits, labels)
    assert found == (pytest.approx(temperature, rel=0.05), pytest.approx(bias, abs=0.1))
    best = likelihood_loss(logits, labels, *found)
    for t, b in ((0.98, 0), (1.02, 0), (1, 0.03), (1, -0.03)):
        assert likelihood_loss(logits, labels, t * found[0], found[1] + b) > best


def test_it_lowers_the_calibration_error_where_a_temperature_alone_could_not():
    logits, labels = logits_and_labels(1, -3)
    temperature, bias = fit_platt(logits, labels)
    errors = [expected_calibration_error(expit(x), labels) for x in (logits, logits / temperature + bias)]
    assert errors[1] < 0.015 < 0.2 < errors[0]
    assert min(expected_calibration_error(expit(logits / t), labels) for t in np.geomspace(0.02, 50, 60)) > 0.1


def test_unknown_cells_do_not_count():
    logits, labels = logits_and_labels(2, cells=2000)
    labels[::3, ::2] = -1
    known = labels != -1
    other = np.where(known, logits, 99)
    assert fit_platt(other, labels) == fit_platt(logits[known], labels[known])
    p, q = expit(logits), expit(other)
    assert expected_calibration_error(q, labels) == expected_calibration_error(p[known], labels[known])


def test_edges():
    for labels in ([1, 1], [0, 0], [-1, -1], [1, -1]):
        assert fit_platt([2.0, -1.0], labels) == (1, 0)
    assert fit_platt([0.0] * 4, [0, 1, 0, 0])[1] == pytest.approx(-np.log(3), abs=1e-3)  # nothing but the prevalence
    assert fit_platt([-1.0, 1.0], [0, 1])[0] < 0.1  # separated: very sharp
    assert fit_platt([-1.0, 1.0], [1, 0])[0] == pytest.approx(50, rel=0.01)  # worse than chance: as flat as allowed
    with pytest.raises(ValueError, match="finite"):
        fit_platt([np.inf, 0.0], [0, 1])
    with pytest.raises(ValueError, match="shape"):
        fit_platt([1.0, 0.0], [[0, 1]])


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_against_torchmetrics(bins):
    rng = np.random.default_rng(1)
    p = rng.random((300, 18)) ** 2
    p[0, :4] = (0, 0.5, 0.1, 0.2)  # on ends of bins
    labels = np.where(rng.random(p.shape) < 0.1, -1, rng.random(p.shape) < p**1.5)
    theirs = binary_calibration_error(torch.from_numpy(p), torch.from_numpy(labels), bins, ignore_index=-1)
    assert expected_calibration_error(p, labels, bins) == pytest.approx(theirs.item(), abs=1e-12)


def test_reliability_by_hand():
    mean, frequency, count = reliability([0.1, 0.2, 0.5, 0.9, 1.0, 1.0, 0.7], [0, 1, 0, 1, 1, 0, -1], bins=4)
    np.testing.assert_allclose(mean, [0.15, np.nan, 0.5, 2.9 / 3])
    np.testing.assert_allclose(frequency, [0.5, np.nan, 0, 2 / 3])
    assert count.tolist() == [2, 0, 1, 3]
    by_hand = (2 * 0.35 + 0.5 + 3 * 0.3) / 6
    assert expected_calibration_error([0.1, 0.2, 0.5, 0.9, 1, 1], [0, 1, 0, 1, 1, 0], 4) == pytest.approx(by_hand)
    assert np.isnan(expected_calibration_error([0.5], [-1]))
    for wrong in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="probabilities"):
            reliability([wrong], [1])


def test_figures_of_calibration_and_curves():
    logits, labels = logits_and_labels(3, 2000)
    curves = {name: reliability(expit(logits / t), labels) for name, t in (("as trained", 1), ("calibrated", 3))}
    upper, lower = figures.reliability_diagram(curves).axes
    _, mine, _ = upper.lines
    np.testing.assert_array_equal(
        mine.get_xydata(), np.transpose(curves["as trained"][:2])[curves["as trained"][2] > 0]
    )
    assert sum(bar.get_height() for bar in lower.patches) == 2 * labels.size

    line = np.array([0, 0.2, 1]), np.array([0, 0.9, 1])
    panels = {f"A label with a long name, number {i}  0.91": [line, line] for i in range(8)}
    fig = figures.curve_grid(panels, "recall", "precision", levels=dict.fromkeys(panels, 0.3), columns=3)
    assert len(fig.axes) == 8
    for ax in fig.axes:
        chance, member, model = ax.lines
        assert list(chance.get_ydata()) == [0.3, 0.3]
        assert (model.get_color(), member.get_color()) == (figures.BLUE, figures.GREY)
    with_numbers = [bool(ax.get_xticklabels()[0].get_text()) for ax in fig.axes]
    assert with_numbers == [False] * 5 + [True] * 3  # the lowest panel of each column
    diagonal = figures.curve_grid({"A": [line]}, "x", "y").axes[0].lines[0]
    assert list(diagonal.get_ydata()) == [0, 1]
