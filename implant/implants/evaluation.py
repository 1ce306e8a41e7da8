"""How good predicted lengths and diameters are: errors in mm and in catalogue sizes, with intervals over patients, and
what is to be expected without a network.

Implants are sold in few sizes, and companies differ in which. So an error in mm says little alone: beside it stands how
often the nearest size on sale is the true one, and what the median of the training split gives.
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

CLOSE = 0.5  # mm: within it counts as close
MEDIAN, MODEL_MEDIAN = "median of the training split", "median of the predicted model"
FEW = 10  # cases: fewer say little of a company or model
SAME = 0.005  # mm: catalogues give hundredths
SMALLEST_SIGMA = 0.01  # mm: models that always agree are not sure beyond that
MEASURES = ("mae", "rmse", "r2", "close", "exact", "one_step", "coverage", "width")
SHARES = ("close", "exact", "one_step", "coverage")  # of the cases: those that can hold for both targets at once

Catalogue = dict[tuple[str, str], dict[str, list[float]]]  # (company, model) -> target -> sizes in mm, ascending
Summary = dict[str, dict[str, Interval]]  # each target; of two also mean, both -> measure -> its interval


class Predictions(NamedTuple):
    """Of N cases: the T targets in mm, and whose implants they are taken for."""

    mean: np.ndarray  # (N, T)
    sigma: np.ndarray  # (N, T), NaN = not estimated
    low: np.ndarray  # (N, T), NaN = no interval
    high: np.ndarray  # (N, T)
    company: np.ndarray  # (N,) of texts, "" = not predicted
    model: np.ndarray  # (N,) of texts
    targets: tuple[str, ...] = TARGETS

    @property
    def named(self) -> list[str]:
        """Those of "company" and "model" that are predicted."""
        return [name for name in ("company", "model") if (getattr(self, name) != "").any()]


def sizes(records: Sequence[Record], targets: Sequence[str] = TARGETS) -> np.ndarray:
    """True sizes (N, T) in mm."""
    truth = np.array([[getattr(record, target) for target in targets] for record in records], float)
    return truth.reshape(-1, len(targets))


def patients(records: Sequence[Record]) -> list[str]:
    """Whose each case is. Where no patient is named, copies of one picture belong together, and nothing else does."""
    return [f"picture {r.origin}" if r.patient is None else f"patient {r.patient}" for r in records]


def combinations(records: Sequence[Record]) -> set[tuple[str, str]]:
    """The pairs of company and model that there are."""
    return {(record.company, record.model) for record in records}


# ---------------------------------------------------------------------------------------------------------- catalogues


def catalogue_of(records: Sequence[Record], targets: Sequence[str] = TARGETS) -> Catalogue:
    """The sizes that occur, by company and model."""
    pairs = sorted(combinations(records))
    truth, of_pair = sizes(records, targets), np.array([pairs.index((r.company, r.model)) for r in records])
    return {
        pair: {target: np.unique(truth[of_pair == i, t]).tolist() for t, target in enumerate(targets)}
        for i, pair in enumerate(pairs)
    }


def read_catalogue(file: Path, targets: Sequence[str] = TARGETS) -> Catalogue:
    """The sizes of `targets` from JSON: {company: {model: {"length": [8, 10, …], "diameter": [3.5, …]}}}, in mm.

    Raises UserError if the file is missing, no JSON, or has another form.
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
    """The sizes (S,) of a company's model, ascending; "" = of any. Of a model that the company does not have those of
    the company; of one that nobody has, or a company that does not exist, all there are."""
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
    """The size on sale (N, T) that is nearest to each prediction, among those of the predicted company and model; of
    two that are equally near the smaller."""
    result = np.empty_like(predictions.mean)
    for i, (company, model) in enumerate(zip(predictions.company, predictions.model, strict=True)):
        for t, target in enumerate(predictions.targets):
            listed = on_sale(catalogue, target, company, model)
            result[i, t] = listed[np.abs(listed - predictions.mean[i, t]).round(6).argmin()]
    return result


def steps(size: float, truth: float, listed: np.ndarray) -> int:
    """How many places two sizes in mm lie apart among those `listed` (S,): 0 = the same, 1 = neighbours.

    A true size that is not listed has a place of its own among them, so it is never met exactly.
    """
    if abs(size - truth) < SAME:
        return 0
    low, high = sorted((size, truth))
    return 1 + int(((listed > low + SAME) & (listed < high - SAME)).sum())


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


# ----------------------------------------------------------------------------------------------------------- baselines


def with_medians(found: Mapping[str, Predictions], train: Sequence[Record]) -> dict[str, Predictions]:
    """The predictions of each method, and beside them the medians; that of the predicted model where the first method
    predicts one."""
    first = next(iter(found.values()))
    medians = {MEDIAN: training_median(train, len(first.mean), first.targets)}
    return {**found, **medians, **({MODEL_MEDIAN: model_median(train, first)} if "model" in first.named else {})}


def training_median(train: Sequence[Record], count: int, targets: Sequence[str] = TARGETS) -> Predictions:
    """The median sizes of the training split, for each of `count` cases."""
    nobody, median = np.full(count, ""), np.median(sizes(train, targets), axis=0)
    return _without_spread(np.tile(median, (count, 1)), nobody, nobody, targets)


def model_median(train: Sequence[Record], predictions: Predictions) -> Predictions:
    """The training median of each case's predicted model; of all where the training split has no such model."""
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
    """Factors (T,) of σ for conformal intervals, from a calibration split; infinite where it has too few patients.

    Where the model estimates no σ it is taken as 1 mm: then all intervals are of one width.
    """
    scores = np.abs(sizes(records, predictions.targets) - predictions.mean) / _spread(predictions)
    return np.array([conformal_factor(column, patients(records), level) for column in scores.T])


def with_intervals(predictions: Predictions, factors: np.ndarray) -> Predictions:
    """The predictions with intervals mean ± factor · σ, `factors` (T,) as `calibrate` gives them."""
    half = factors * _spread(predictions)
    return predictions._replace(low=predictions.mean - half, high=predictions.mean + half)


def _spread(predictions: Predictions) -> np.ndarray:
    return np.maximum(np.nan_to_num(predictions.sigma, nan=1.0), SMALLEST_SIGMA)


# ---------------------------------------------------------------------------------------------------------- evaluation


class Group(NamedTuple):
    """Some of the cases: how many, of how many patients, and their measures."""

    n: int
    patients: int
    summary: Summary

    @property
    def few(self) -> bool:
        """Whether these are too few cases to say much."""
        return self.n < FEW


class Evaluation:
    """Predictions for `records`, whose sizes are all known, beside the truth.

    `errors` (N, T) mm, prediction minus truth; `nearest` (N, T) mm, the size on sale nearest to each prediction;
    `steps` (N, T), how many sizes that is away from the truth; `covered` (N, T), 1 where the interval holds the truth,
    NaN without one. `rows` names what is measured: each target, and of two their mean, and both at once. Raises
    ValueError for a record without a size.
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
        """All measures of each target, and of two also their mean, and the shares that hold for both at once."""
        return self._intervals(self._measures, np.arange(len(self.records)))

    def differences(self, other: "Evaluation") -> Summary:
        """This one minus the other, on the same cases, drawn together. An interval without 0 is a difference."""
        if [record.id for record in self.records] != [record.id for record in other.records]:
            raise ValueError("two evaluations of different cases cannot be compared")
        every = np.arange(len(self.records))
        with np.errstate(invalid="ignore"):  # infinite widths have no difference
            return self._intervals(lambda rows: self._measures(rows) - other._measures(rows), every)

    def by(self, labels: Sequence[str]) -> dict[str, Group]:
        """Measures of the cases of each label, the most frequent first. `labels` (N,), as of `groups`."""
        labels = np.array(labels)
        result = {}
        for label, count in sorted(Counter(labels.tolist()).items(), key=lambda item: (-item[1], item[0])):
            rows = np.flatnonzero(labels == label)
            result[label] = Group(count, len(set(self.patients[rows].tolist())), self._intervals(self._measures, rows))
        return result

    def _intervals(self, statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Summary:
        """95 % intervals of `statistic` (rows, M) over the patients of some rows; none of one patient."""
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
        """(len(self.rows), M): MEASURES of the targets, mean and both (NaN where one is no share) over `rows`."""
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
    """Ways to part the cases: name -> label of each; none by what is unknown of all. `seen`: the `combinations` of the
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
    """One row a case: who and what it is, and for each target, in mm, the truth, the prediction, σ, interval, nearest
    size on sale and error. Cells of what is unknown are empty."""
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
    """Numbers in mm, of any shape, as cells of a table; empty where they are unknown."""
    return ["" if np.isnan(number) else f"{number:.3f}" for number in numbers.ravel()]
