"""How sure a number is: bootstrap intervals over patients, conformal intervals, calibration, Monte Carlo dropout."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from core.losses.classification import UNKNOWN


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    groups: Sequence,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13) of `statistic` over whole groups.

    `groups` (N,) says which patient each case belongs to: cases of one patient are drawn together, because they are
    not independent. `statistic` takes row numbers (with repeats) and returns a number; resamples in which it is NaN
    (no positive case drawn, say) are left out. Raises ValueError for no cases.
    """
    if len(groups) == 0:
        raise ValueError("no cases to bootstrap")
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(membership == group) for group in range(membership.max() + 1)]
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(members), size=(samples, len(members)))
    values = np.array([statistic(np.concatenate([members[group] for group in draw])) for draw in draws])
    estimate = np.asarray(statistic(np.arange(len(membership))), float)
    ends = np.full((2, *estimate.shape), np.nan)
    known = np.isfinite(values).any(axis=0)  # of an all-NaN column numpy would warn
    ends[:, known] = np.nanquantile(values[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(*(float(value) if estimate.ndim == 0 else value for value in (estimate, *ends)))


def conformal_factor(scores: Sequence[float], groups: Sequence, level: float = 0.9) -> float:
    """The quantile of `scores` (N,) = |y - ŷ| / σ of a calibration set that makes ŷ ± factor · σ cover new cases.

    Split conformal prediction where cases come in groups: each of P patients weighs 1/(P + 1), shared evenly by their
    cases, and the last 1/(P + 1), that of the patient to come, lies at infinity (Lee, Barber & Willett 2023,
    "Distribution-free inference with hierarchical data", who so give a guarantee to the pooled CDFs of Dunn, Wasserman
    & Ramdas 2022, which cover as asked for in the limit of many patients). If patients are exchangeable, and each one's
    cases among themselves, a case of a new patient is covered with probability `level` or more, for any model that has
    not seen the calibration set. This is on average over calibration sets and patients, each patient counted once
    however many cases there are; not for every patient, nor given the size. With one case a patient it is the
    ⌈(P + 1) level⌉-th smallest score.

    Infinite where P < level / (1 - level). Raises ValueError for scores that are negative or NaN, for a level outside
    (0, 1), and unless each score has a group.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 1 or len(scores) != len(groups):
        raise ValueError(f"scores {scores.shape} and {len(groups)} groups do not match")
    if not (scores >= 0).all():
        raise ValueError("scores must not be negative or NaN")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    _, membership, cases = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.argsort(scores)
    patients = np.cumsum(1 / cases[membership[order]])  # how many lie up to each score, in parts of patients
    needed = level * (len(cases) + 1) - 1e-9  # sums of thirds are a little off
    reached = np.searchsorted(patients, needed)
    return float(scores[order[reached]]) if reached < len(scores) else np.inf


@contextlib.contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Dropout as in training, all else as it is: passes differ, and their spread tells how sure the model is.

    Monte Carlo dropout: Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation".
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and not m.training]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) that make `σ(logit / temperature + bias)` most likely, the temperature between 1/50 and 50.

    Platt 1999 with one scale and one bias for all labels; without the bias it is the temperature scaling of Guo et al.
    2017, which cannot mend what pooling does: a maximum of many probabilities is too high by its nature. `logits`,
    finite, and `labels` (1, 0, or -1 for unknown) of one shape; all known cells count alike. (1, 0) where the known
    cells hold one class or none. Raises ValueError for other shapes and logits that are not finite.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    logits, labels = _known(logits, labels)
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite")
    if len(np.unique(labels)) < 2:
        return 1.0, 0.0

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:  # mean negative log-likelihood, convex in (1/T, b)
        scaled = x[0] * logits + x[1]
        error = expit(scaled) - labels
        value = np.logaddexp(0, scaled) - labels * scaled
        return float(value.mean()), np.array([(error * logits).mean(), error.mean()])

    found = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=[(1 / 50, 50), (None, None)])
    return float(1 / found.x[0]), float(found.x[1])


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean probability, frequency of the label, count), each (bins,), of the known cells in bins of equal width.

    `probabilities` and `labels` (1, 0, or -1 for unknown) have one shape. A bin holds its lower end, the last one also
    1. Mean and frequency of an empty bin are NaN. Raises ValueError for other shapes and outside [0, 1].
    """
    probabilities, labels = _known(probabilities, labels)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities, side="right")
    count = np.bincount(place, minlength=bins)
    share = np.where(count > 0, count, np.nan)
    mean, frequency = (np.bincount(place, values, bins) / share for values in (probabilities, labels))
    return mean, frequency, count


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean distance of probability and frequency over the cells, bin by bin: what `reliability` shows in one number.

    For yes-or-no labels, not for the top class of several. torchmetrics gives probabilities of exactly 1 a bin of
    their own, which no diagram shows; pooled probabilities do reach 1. NaN if no label is known.
    """
    mean, frequency, count = reliability(probabilities, labels, bins)
    return float(np.nansum(count * np.abs(mean - frequency)) / count.sum()) if count.any() else np.nan


def _known(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels, float64 (n,), of the cells whose label is known."""
    values, labels = np.asarray(values, float), np.asarray(labels)
    if values.shape != labels.shape:
        raise ValueError(f"values {values.shape} and labels {labels.shape} differ in shape")
    return values[labels != UNKNOWN], labels[labels != UNKNOWN].astype(float)
