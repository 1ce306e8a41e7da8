"""Uncertainty: bootstrap confidence intervals over patients, conformal intervals, calibration, Monte Carlo dropout."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from core.losses.classification import UNKNOWN


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

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
    """Percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13) of `statistic`, resampled by group.

    `groups` (N,): patient of each case; cases of a patient are not independent and are drawn together. `statistic`:
    row numbers with repeats (n,) -> scalar or array; resamples in which it is NaN (e.g. without a positive case) are
    left out. Raises ValueError if there are no cases.
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
    known = np.isfinite(values).any(axis=0)  # numpy warns about all-NaN columns
    ends[:, known] = np.nanquantile(values[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(*(float(value) if estimate.ndim == 0 else value for value in (estimate, *ends)))


def conformal_factor(scores: Sequence[float], groups: Sequence, level: float = 0.9) -> float:
    """Quantile of the `scores` (N,) = |y − ŷ| / σ of a calibration set, so that ŷ ± factor · σ covers new cases.

    Split conformal prediction with grouped cases: each of P patients has the weight 1/(P + 1), divided equally among
    the patient's cases, and the new patient's 1/(P + 1) lies at infinity (Lee, Barber & Willett 2023,
    "Distribution-free inference with hierarchical data": the pooled CDFs of Dunn, Wasserman & Ramdas 2022 with a
    finite-sample guarantee). If patients are exchangeable, and the cases within each patient, a case of a new patient
    is covered with probability `level` or more, for any model not trained on the calibration set. The guarantee is
    marginal over calibration sets and patients (each patient counts once), not conditional on the patient or the number
    of cases. With one case per patient, the factor is the ⌈(P + 1) level⌉-th smallest score.

    Infinite for P < level / (1 − level). Raises ValueError for negative or NaN scores, a level outside (0, 1), and
    `scores` and `groups` (N,) of different lengths.
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
    patients = np.cumsum(1 / cases[membership[order]])  # cumulative weight of the sorted scores
    needed = level * (len(cases) + 1) - 1e-9  # tolerance for rounding
    reached = np.searchsorted(patients, needed)
    return float(scores[order[reached]]) if reached < len(scores) else np.inf


@contextlib.contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Monte Carlo dropout (Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation"): activates the dropout layers,
    so that repeated predictions vary with the uncertainty of the model."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and not m.training]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Maximum-likelihood (temperature, bias) of `σ(logit / temperature + bias)`, with a temperature in [1/50, 50].

    Platt 1999, with one scale and one bias for all labels. Temperature scaling (Guo et al. 2017) has no bias and cannot
    correct the upward bias of a maximum over many probabilities. `logits` (finite) and `labels` (1, 0, or -1 for
    unknown): same shape, e.g. (N, C); all known cells have equal weight. (1, 0) if the known cells have fewer than two
    classes. Raises ValueError for different shapes and logits that are not finite.
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

    `probabilities` and `labels` (1, 0, or -1 for unknown): same shape, e.g. (N, C). Bins include their lower bound, the
    last one also 1; empty bins give NaN. Raises ValueError for different shapes and values outside [0, 1].
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
    """Expected calibration error: mean of |mean probability − frequency| over the bins of `reliability`, by count.

    For binary labels, arguments as for `reliability`. torchmetrics puts probabilities of exactly 1, which pooling can
    give, into an extra bin. NaN if no label is known.
    """
    mean, frequency, count = reliability(probabilities, labels, bins)
    return float(np.nansum(count * np.abs(mean - frequency)) / count.sum()) if count.any() else np.nan


def _known(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels, float64 (n,), of the cells with a known label."""
    values, labels = np.asarray(values, float), np.asarray(labels)
    if values.shape != labels.shape:
        raise ValueError(f"values {values.shape} and labels {labels.shape} differ in shape")
    return values[labels != UNKNOWN], labels[labels != UNKNOWN].astype(float)
