"""Conformal intervals where cases come in patients: the formula by hand, and coverage of drawn patients."""

import math

import numpy as np
import pytest

from core.uncertainty import conformal_factor


@pytest.mark.parametrize("level", [0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("count", [9, 19, 20, 39, 100])
def test_one_case_a_patient_gives_the_classical_quantile(count, level):
    scores = np.random.default_rng(count).exponential(size=count)
    rank = math.ceil(round((count + 1) * level, 9))
    expected = np.sort(scores)[rank - 1] if rank <= count else np.inf
    assert conformal_factor(scores, np.arange(count), level) == expected


def test_a_patients_cases_share_one_weight():
    # P = 4, so a patient weighs 1/5; half a weight each for the two cases of b. CDF: 1 -> 0.2, 2 -> 0.3, 3 -> 0.5,
    # 4 -> 0.6, 5 -> 0.8, infinity -> 1.
    scores, groups = [3.0, 4.0, 1.0, 2.0, 5.0], ["c", "b", "a", "b", "d"]
    found = [conformal_factor(scores, groups, level) for level in (0.2, 0.25, 0.3, 0.5, 0.55, 0.6, 0.8)]
    assert found == [1, 2, 2, 3, 4, 4, 5]
    assert conformal_factor(scores, groups, 0.81) == np.inf
    assert conformal_factor(np.repeat(scores, 7), np.repeat(groups, 7), 0.55) == 4  # thirds and sevenths add up


def test_too_few_patients_give_infinity_however_many_cases():
    cases = np.linspace(0, 1, 800)
    assert conformal_factor(cases, np.arange(800) % 8) == np.inf
    assert conformal_factor(cases, np.arange(800) % 9) == 1
    assert conformal_factor([], []) == np.inf


def test_a_score_of_infinity_counts():
    assert conformal_factor([np.inf, 1.0, 2.0, 3.0], range(4), 0.8) == np.inf
    assert conformal_factor([np.inf, 1.0, 2.0, 3.0], range(4), 0.6) == 3


def draw(rng, patients):
    """Scores (N,) and patients (N,): every fourth patient has ten cases, which are worse than those of the others, and
    a patient's cases are alike."""
    cases = np.where(rng.random(patients) < 0.25, 10, 1)
    effect = rng.normal(0, 1, patients) * np.where(cases > 1, 3.0, 1.0)
    groups = np.repeat(np.arange(patients), cases)
    return np.abs(effect[groups] + rng.normal(0, 0.3, len(groups))), groups


def coverage(patients, level, factor, draws=3000):
    """Coverage of the cases of new patients, and its standard error."""
    rng = np.random.default_rng(patients)
    covered = []
    for _ in range(draws):
        limit = factor(*draw(rng, patients), level)
        covered.append((draw(rng, 1)[0] <= limit).mean())
    return np.mean(covered), np.std(covered) / np.sqrt(draws)


@pytest.mark.parametrize(("patients", "level"), [(9, 0.9), (12, 0.9), (40, 0.9), (25, 0.5)])
def test_coverage_of_a_new_patient(patients, level):
    covered, error = coverage(patients, level, conformal_factor)
    # Two patients' weights at most lie above the level: one at infinity, one at the quantile itself.
    assert level - 3 * error <= covered <= level + 2 / (patients + 1) + 3 * error


def test_without_the_weights_or_without_infinity_it_would_be_wrong():
    pooled, error = coverage(25, 0.5, lambda scores, groups, level: np.quantile(scores, level))
    assert pooled > 0.5 + 2 / 26 + 10 * error  # the cases of few patients outnumber the others
    finite, error = coverage(12, 0.9, lambda scores, groups, level: conformal_factor(scores, groups, level * 12 / 13))
    assert finite < 0.9 - 5 * error  # weights of 1/P, nothing at infinity


def test_it_is_refused():
    for scores, groups, level, text in (
        ([1.0, np.nan], [0, 1], 0.9, "NaN"),
        ([1.0, -1.0], [0, 1], 0.9, "negative"),
        ([1.0], [0, 1], 0.9, "do not match"),
        ([1.0], [0], 1.0, "between 0 and 1"),
        ([1.0], [0], 90, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=text):
            conformal_factor(scores, groups, level)
