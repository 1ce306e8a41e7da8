"""Errors of predicted lengths and diameters in mm and in catalogue sizes, with confidence intervals over patients, and
medians of the training split as baselines.

Implants are sold in few sizes, which differ between companies. Therefore errors in mm are complemented by the share of
cases in which the nearest size on sale is the true one.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import UserError, first_line
from core.files import read_json
from core.results import write_csv
from core.uncertainty import Interval, bootstrap, conformal_factor
from implants.records import TARGETS, Record

CLOSE = 0.5  # mm, maximum error of "close"
MEDIAN, MODEL_MEDIAN = "median of the training split", "median of the predicted model"
FEW = 10  # minimum number of cases for conclusions on a company or model
SAME = 0.005  # mm, tolerance of equal sizes
SMALLEST_SIGMA = 0.01  # mm, lower bound of σ
MEASURES = ("mae", "rmse", "r2", "close", "exact", "one_step", "coverage", "width")
SHARES = ("close", "exact", "one_step", "coverage")  # shares of the cases, also for both targets at once

Catalogue = dict[tuple[str, str], dict[str, list[float]]]  # (company, model) -> target -> sizes in mm, ascending
Summary = dict[str, dict[str, Interval]]  # target, and for two targets "mean" and "both" -> measure -> interval


class Predictions(NamedTuple):
    """Predictions of N cases: T targets in mm, company and model."""

    mean: np.ndarray  # (N, T)
    sigma: np.ndarray  # (N, T), NaN = not estimated
    low: np.ndarray  # (N, T), NaN = no interval
    high: np.ndarray  # (N, T)
    company: np.ndarray  # (N,) of str, "" = not predicted
    model: np.ndarray  # (N,) of str, "" = not predicted
    targets: tuple[str, ...] = TARGETS

    @property
    def named(self) -> list[str]:
        """The predicted ones of "company" and "model"."""
        return [name for name in ("company", "model") if (getattr(self, name) != "").any()]


def sizes(records: Sequence[Record], targets: Sequence[str] = TARGETS) -> np.ndarray:
    """True sizes (N, T) in mm."""
    truth = np.array([[getattr(record, target) for target in targets] for record in records], float)
    return truth.reshape(-1, len(targets))


def patients(records: Sequence[Record]) -> list[str]:
    """Patient of each case; for unknown patients, the original of the picture."""
    return [f"picture {r.origin}" if r.patient is None else f"patient {r.patient}" for r in records]


def combinations(records: Sequence[Record]) -> set[tuple[str, str]]:
    """Pairs (company, model) of the records."""
    return {(record.company, record.model) for record in records}


# ---------------------------------------------------------------------------------------------------------- catalogues


def catalogue_of(records: Sequence[Record], targets: Sequence[str] = TARGETS) -> Catalogue:
    """Catalogue of the sizes that occur in the records."""
    pairs = sorted(combinations(records))
    truth, of_pair = sizes(records, targets), np.array([pairs.index((r.company, r.model)) for r in records])
    return {
        pair: {target: np.unique(truth[of_pair == i, t]).tolist() for t, target in enumerate(targets)}
        for i, pair in enumerate(pairs)
    }


def read_catalogue(file: Path, targets: Sequence[str] = TARGETS) -> Catalogue:
    """Catalogue of `targets` from JSON: {company: {model: {"length": [8, 10, …], "diameter": [3.5, …]}}}, in mm.

    Raises UserError for a missing or invalid file.
    """
    try:
        entries = read_json(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; leave out --catalogue to use the sizes of the training data") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no JSON in UTF-8 ({first_line(error)})") from error
    form = "{company: {model: {" + ", ".join(f'"{target}": [sizes in mm]' for target in targets) + "}}}"
    if not isinstance(entries, dict) or not entries or not all(isinstance(m, dict) and m for m in entries.values()):
        raise UserError(f"{file} is no catalogue: it must be {form}")
    catalogue = {}
    for company, models in entries.items():
        for model, of_target in models.items():
            for target in targets:
                listed = of_target.get(target) if isinstance(of_target, dict) else None
                if not isinstance(listed, list) or not listed or not all(map(_is_size, listed)):
                    raise UserError(f"{file}: {company}, {model} has no list of {target} in mm; it must be {form}")
            catalogue[company, model] = {target: sorted(set(map(float, of_target[target]))) for target in targets}
    return catalogue


def on_sale(catalogue: Catalogue, target: str, company: str = "", model: str = "") -> np.ndarray:
    """Sizes (S,) in mm of a model of a company, ascending; "" = any. Sizes of the company if it has no such model; all
    sizes if model or company are not in the catalogue."""
    for asked in ((company, model), (company, "")):
        listed = [
            of_target[target]
            for pair, of_target in catalogue.items()
            if all(name in ("", own) for name, own in zip(asked, pair, strict=True))
        ]
        if listed:
            return np.unique(np.concatenate(listed))
    return np.unique(np.concatenate([of_target[target] for of_target in catalogue.values()]))


def nearest_sizes(predictions: Predictions, catalogue: Catalogue) -> np.ndarray:
    """Nearest size on sale (N, T) in mm to each prediction, for the predicted company and model; the smaller one of two
    equally near."""
    result = np.empty_like(predictions.mean)
    for i, (company, model) in enumerate(zip(predictions.company, predictions.model, strict=True)):
        for t, target in enumerate(predictions.targets):
            listed = on_sale(catalogue, target, company, model)
            result[i, t] = listed[np.abs(listed - predictions.mean[i, t]).round(6).argmin()]
    return result


def steps(size: float, truth: float, listed: np.ndarray) -> int:
    """Number of steps between two sizes in mm among those `listed` (S,) and the true one: 0 = equal, 1 = neighbours."""
    if abs(size - truth) < SAME:
        return 0
    low, high = sorted((size, truth))
    return 1 + int(((listed > low + SAME) & (listed < high - SAME)).sum())


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


# ----------------------------------------------------------------------------------------------------------- baselines


def with_medians(found: Mapping[str, Predictions], train: Sequence[Record]) -> dict[str, Predictions]:
    """Predictions of each method and the median baselines; that of the predicted model only if the first method
    predicts models."""
    first = next(iter(found.values()))
    medians = {MEDIAN: training_median(train, len(first.mean), first.targets)}
    return {**found, **medians, **({MODEL_MEDIAN: model_median(train, first)} if "model" in first.named else {})}


def training_median(train: Sequence[Record], count: int, targets: Sequence[str] = TARGETS) -> Predictions:
    """Median sizes of the training split for `count` cases."""
    nobody, median = np.full(count, ""), np.median(sizes(train, targets), axis=0)
    return _without_spread(np.tile(median, (count, 1)), nobody, nobody, targets)


def model_median(train: Sequence[Record], predictions: Predictions) -> Predictions:
    """Training median of the predicted model of each case; of all records if training had no such model."""
    truth, models = sizes(train, predictions.targets), np.array([record.model for record in train])
    medians = {model: np.median(truth[models == model], axis=0) for model in set(models.tolist()) - {""}}
    overall = np.median(truth, axis=0)
    means = np.array([medians.get(model, overall) for model in predictions.model]).reshape(-1, len(predictions.targets))
    return _without_spread(means, predictions.company, predictions.model, predictions.targets)


def _without_spread(mean: np.ndarray, company: np.ndarray, model: np.ndarray, targets: Sequence[str]) -> Predictions:
    unknown = np.full_like(mean, np.nan)
    return Predictions(mean, unknown, unknown, unknown, company, model, tuple(targets))


# ----------------------------------------------------------------------------------------------------------- intervals


def calibrate(records: Sequence[Record], predictions: Predictions, level: float = 0.9) -> np.ndarray:
    """Factors (T,) of σ for conformal intervals at `level`, from a calibration split; infinite with too few patients.

    Without σ, 1 mm is used, so that all intervals have the same width.
    """
    scores = np.abs(sizes(records, predictions.targets) - predictions.mean) / _spread(predictions)
    return np.array([conformal_factor(column, patients(records), level) for column in scores.T])


def with_intervals(predictions: Predictions, factors: np.ndarray) -> Predictions:
    """Predictions with intervals mean ± factor · σ; `factors` (T,) from `calibrate`."""
    half = factors * _spread(predictions)
    return predictions._replace(low=predictions.mean - half, high=predictions.mean + half)


def _spread(predictions: Predictions) -> np.ndarray:
    return np.maximum(np.nan_to_num(predictions.sigma, nan=1.0), SMALLEST_SIGMA)


# ---------------------------------------------------------------------------------------------------------- evaluation


class Group(NamedTuple):
    """Numbers of cases and patients of a group, and its measures."""

    n: int
    patients: int
    summary: Summary

    @property
    def few(self) -> bool:
        """Whether the group has fewer than FEW cases."""
        return self.n < FEW


class Evaluation:
    """Predictions for `records` of known size, compared with the ground truth.

    `errors` (N, T) mm, prediction minus truth; `nearest` (N, T) mm, nearest size on sale to each prediction; `steps`
    (N, T), its distance from the truth in catalogue sizes; `covered` (N, T), 1 if the interval contains the truth, NaN
    without interval. `rows`: each target, and for two targets "mean" and "both". Raises ValueError for a record without
    size.
    """

    def __init__(
        self, records: Sequence[Record], predictions: Predictions, catalogue: Catalogue, resamples: int = 1000,
        seed: int = 0,
    ):  # fmt: skip
        self.records, self.predictions, self.catalogue = records, predictions, catalogue
        self.resamples, self.seed = resamples, seed
        self.patients = np.array(patients(records))
        self.targets = predictions.targets
        self.rows = (*self.targets, "mean", "both") if len(self.targets) > 1 else self.targets
        self.truth = sizes(records, self.targets)
        if not np.isfinite(self.truth).all():
            raise ValueError(f"a record has no {' or no '.join(self.targets)}")
        self.errors = predictions.mean - self.truth
        self.nearest = nearest_sizes(predictions, catalogue)
        named = zip(predictions.company, predictions.model, strict=True)
        self.steps = np.array([
            [steps(self.nearest[i, t], self.truth[i, t], on_sale(catalogue, target, *names))
             for t, target in enumerate(self.targets)]
            for i, names in enumerate(named)
        ])  # fmt: skip
        inside = (predictions.low <= self.truth) & (self.truth <= predictions.high)
        self.covered = np.where(np.isnan(predictions.low), np.nan, inside)

    def summary(self) -> Summary:
        """All measures of each target; for two targets also their mean, and the shares for both at once."""
        return self._intervals(self._measures, np.arange(len(self.records)))

    def differences(self, other: "Evaluation") -> Summary:
        """Paired differences (this minus the other) on the same cases; significant if the interval excludes 0. Raises
        ValueError for different cases."""
        if [record.id for record in self.records] != [record.id for record in other.records]:
            raise ValueError("two evaluations of different cases cannot be compared")
        every = np.arange(len(self.records))
        with np.errstate(invalid="ignore"):  # difference of infinite widths
            return self._intervals(lambda rows: self._measures(rows) - other._measures(rows), every)

    def by(self, labels: Sequence[str]) -> dict[str, Group]:
        """Measures of the cases of each label, most frequent first. `labels` (N,): as from `groups`."""
        labels = np.array(labels)
        result = {}
        for label, count in sorted(Counter(labels.tolist()).items(), key=lambda item: (-item[1], item[0])):
            rows = np.flatnonzero(labels == label)
            result[label] = Group(count, len(set(self.patients[rows].tolist())), self._intervals(self._measures, rows))
        return result

    def _intervals(self, statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Summary:
        """95 % intervals of `statistic` (rows, M), bootstrapped over the patients of `rows`; NaN for one patient."""
        of_rows = self.patients[rows]
        estimate, low, high = bootstrap(lambda drawn: statistic(rows[drawn]), of_rows, self.resamples, seed=self.seed)
        if len(set(of_rows.tolist())) < 2:
            low = high = np.full_like(estimate, np.nan)
        return {
            name: {measure: Interval(*(float(values[i, m]) for values in (estimate, low, high)))
                   for m, measure in enumerate(MEASURES) if name != "both" or measure in SHARES}
            for i, name in enumerate(self.rows)
        }  # fmt: skip

    def _measures(self, rows: np.ndarray) -> np.ndarray:
        """(len(self.rows), M): MEASURES over `rows` of the targets, their mean, and both (shares only, else NaN)."""
        errors, squares, variance = self.errors[rows], self.errors[rows] ** 2, self.truth[rows].var(axis=0)
        shares = {
            "close": np.abs(errors) <= CLOSE,
            "exact": self.steps[rows] == 0,
            "one_step": self.steps[rows] <= 1,
            "coverage": self.covered[rows],
        }
        columns = {
            "mae": np.abs(errors).mean(axis=0),
            "rmse": np.sqrt(squares.mean(axis=0)),
            "r2": 1 - squares.mean(axis=0) / np.where(variance > SAME**2, variance, np.nan),
            "width": (self.predictions.high - self.predictions.low)[rows].mean(axis=0),
            **{name: held.mean(axis=0) for name, held in shares.items()},
        }
        table = np.array([columns[name] for name in MEASURES]).T  # (T, M)
        both = [shares[name].min(axis=1).mean() if name in shares else np.nan for name in MEASURES]
        return np.vstack([table, table.mean(axis=0), both])[: len(self.rows)]


def groups(records: Sequence[Record], seen: set[tuple[str, str]]) -> dict[str, list[str]]:
    """Groupings of the cases: name -> label of each case, without fields unknown for all. `seen`: `combinations` of the
    training split."""
    labels = {
        "company": [record.company or "unknown" for record in records],
        "model": [" ".join(filter(None, (record.company, record.model))) or "unknown" for record in records],
        "modality": [record.modality or "unknown" for record in records],
        "combination": ["seen" if (r.company, r.model) in seen else "unseen" for r in records],
        "spacing": ["known" if record.mm_per_px else "unknown" for record in records],
    }
    for name in ("model", "combination"):
        if not any(record.model or (name != "model" and record.company) for record in records):
            del labels[name]
    return {name: of_cases for name, of_cases in labels.items() if set(of_cases) != {"unknown"}}


def write_predictions(file: Path, evaluation: Evaluation) -> None:
    """Writes a CSV table, one row per case: id, patient, labels; for each target truth, prediction, σ, interval,
    nearest size on sale and error in mm; empty = unknown."""
    parts = ("", "_predicted", "_sigma", "_low", "_high", "_nearest", "_error")
    found = evaluation.predictions
    numbers = np.stack([evaluation.truth, *found[:4], evaluation.nearest, evaluation.errors], axis=2)  # (N, T, parts)
    true = [name for name in ("company", "model") if any(getattr(record, name) for record in evaluation.records)]
    header = ["id", "patient", *true, *(f"{name}_predicted" for name in found.named)]
    rows = (
        [record.id, record.patient or "", *(getattr(record, name) for name in true),
         *(getattr(found, name)[row] for name in found.named), *mm_cells(numbers[row])]
        for row, record in enumerate(evaluation.records)
    )  # fmt: skip
    write_csv(file, header + [f"{target}{part}_mm" for target in found.targets for part in parts], rows)


def mm_cells(numbers: np.ndarray) -> list[str]:
    """Numbers in mm, of any shape, as table cells; empty for NaN and infinity."""
    return [f"{number:.3f}" if np.isfinite(number) else "" for number in numbers.ravel()]
