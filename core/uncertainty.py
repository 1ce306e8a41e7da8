"""How sure a number is: bootstrap intervals over patients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[np.ndarray], float],
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
    estimate = float(statistic(np.arange(len(membership))))
    if not np.isfinite(values).any():
        return Interval(estimate, np.nan, np.nan)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))
