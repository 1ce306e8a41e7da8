"""Metrics of VLM3D Task 2 for any labels, its results.json, and calibration from slice to volume probabilities.

The challenge has a fixed threshold of 0.5. Thresholds tuned on held-out patients are therefore built into the
probabilities: `remap` moves them to 0.5 and keeps the order of the cases.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from core.errors import UserError
from core.metrics import crg_score
from core.results import write_json
from core.uncertainty import fit_platt
from ct.ct_rate import stem
from ct.labels import LABELS, UNKNOWN, official

FORMAT = {"name": "Generated probabilities", "type": "Abnormality Classification", "version": {"major": 1, "minor": 0}}


def official_metrics(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str] = LABELS) -> dict:
    """Metrics of the challenge from labels and probabilities (N, labels): {"per_label", "macro"}, and "crg" for its 18
    labels.

    Threshold 0.5; precision, recall and F1 are 0 for a zero denominator; macro: mean over labels. AUROC counts ties as
    one half; for a single class it is NaN and left out of the mean. Unknown cells (-1) are left out; a label without
    known cases is NaN and left out of all means (the official data have neither). Raises ValueError for other shapes
    and values. Use float64: rounding at 0.5 changes decisions.
    """
    labels, probabilities = _checked(labels, probabilities)
    if labels.shape[1] != len(names):
        raise ValueError(f"labels have shape {labels.shape}, not (N, {len(names)})")
    known, truth = labels != UNKNOWN, labels == 1
    predicted = (probabilities >= 0.5) & known
    cases, positives, named, hits = (cells.sum(axis=0) for cells in (known, truth, predicted, truth & predicted))

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(cases > 0, part / np.maximum(whole, 1), np.nan)

    scores = {
        "precision": ratio(hits, named),
        "recall": ratio(hits, positives),
        "f1": ratio(2 * hits, named + positives),
        "accuracy": ratio(cases - named - positives + 2 * hits, cases),
        "auroc": _auroc(labels, probabilities),
    }
    per_label = {
        label: {name: float(values[i]) for name, values in scores.items()}
        | {"positives": int(positives[i]), "cases": int(cases[i])}
        for i, label in enumerate(names)
    }
    metrics = {"per_label": per_label, "macro": {name: known_mean(values) for name, values in scores.items()}}
    return metrics | ({"crg": crg_score(labels, predicted)} if official(names) else {})


def headline(metrics: dict) -> dict[str, float]:
    """Macro metrics of `official_metrics`, with CRG if there is one."""
    return metrics["macro"] | {name: metrics[name] for name in ("crg",) if name in metrics}


def _auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """AUROC (labels,) of labels and probabilities (N, labels) as rank statistic (Mann-Whitney); NaN for one class."""
    from scipy.stats import rankdata

    known, truth = labels != UNKNOWN, labels == 1
    unknown, positives = (~known).sum(axis=0), truth.sum(axis=0)
    # Unknown cells get the lowest ranks, which are then subtracted.
    ranks = rankdata(np.where(known, probabilities, -1), axis=0) - unknown
    pairs = positives * (len(labels) - unknown - positives)
    wins = np.where(truth, ranks, 0).sum(axis=0) - positives * (positives + 1) / 2
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def known_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), _checked_probabilities(probabilities)
    if labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} differ in shape")
    if not np.isin(labels, (0, 1, UNKNOWN)).all():
        raise ValueError("labels must be 0, 1, or -1 for unknown")
    return labels, probabilities


def _checked_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as float64 (N, labels), N ≥ 1. Raises ValueError for other shapes and values outside [0, 1]."""
    probabilities = np.asarray(probabilities, float)
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise ValueError(f"probabilities have shape {probabilities.shape}, not (N, labels)")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must be numbers in [0, 1]")
    return probabilities


def prevalence(labels: np.ndarray) -> np.ndarray:
    """Prevalence (labels,) among the known labels of (N, labels); NaN without any.

    As constant probability, the training prevalence is the baseline of AUROC (0.5) and calibration. Its F1 is 0 below
    0.5; the best constant prediction for F1 is "always positive": 2π / (1 + π) at prevalence π.
    """
    known, positives = np.sum(np.asarray(labels) != UNKNOWN, axis=0), np.sum(np.asarray(labels) == 1, axis=0)
    return np.where(known > 0, positives / np.maximum(known, 1), np.nan)


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray, min_positives: int = 5) -> np.ndarray:
    """Thresholds (labels,) with the largest F1, for labels and probabilities (N, labels) of tuning patients.

    Thresholds lie midway between adjacent probabilities (or 0 and the lowest), never at 0 or 1; ties go to the one
    nearest 0.5. Labels with fewer than `min_positives` known positives or negatives get the threshold with the largest
    F1 of all cells pooled.
    """
    labels, probabilities = _checked(labels, probabilities)
    thresholds = np.full(labels.shape[1], _best_threshold(labels.ravel(), probabilities.ravel()))
    enough = np.minimum(np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)) >= min_positives
    for i in np.flatnonzero(enough):
        thresholds[i] = _best_threshold(labels[:, i], probabilities[:, i])
    return thresholds


def _best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Threshold with the largest F1 for labels and probabilities (n,); 0.5 without positives."""
    truth = labels[labels != UNKNOWN] == 1
    values, place = np.unique(probabilities[labels != UNKNOWN], return_inverse=True)
    cases, hits = (np.bincount(place, weights, len(values))[::-1].cumsum()[::-1] for weights in (None, truth))
    f1 = 2 * hits / (cases + truth.sum())  # with values[k] and all above as positive
    below = np.concatenate([np.zeros(1), values[:-1]])
    cuts = below + (values - below) / 2
    cuts = np.where(cuts > below, cuts, values)  # adjacent floats have no midpoint
    inside = (cuts > 0) & (cuts < 1)
    if not truth.any() or not inside.any():
        return 0.5
    best = cuts[inside & (f1 == f1[inside].max())]
    return float(best[np.argmin(np.abs(best - 0.5))])


def remap(probabilities: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Moves thresholds (labels,) or scalar in (0, 1) to 0.5: `p(1−t) / (p(1−t) + t(1−p))` in float64, with 0 and 1
    fixed.

    Divides the odds by those of the threshold: monotonic in p, and at least 0.5 exactly if `p ≥ t`. Raises ValueError
    for values out of range.
    """
    p, t = np.asarray(probabilities, float), np.asarray(thresholds, float)
    if not ((p >= 0) & (p <= 1)).all() or not ((t > 0) & (t < 1)).all():
        raise ValueError("probabilities must lie in [0, 1], thresholds in (0, 1)")
    with np.errstate(divide="ignore", over="ignore"):  # the odds against p = 0 are infinite
        # Monotonic also after rounding, unlike the quotient of the docstring in its last bit.
        moved = 1 / (1 + t * (1 - p) / (p * (1 - t)))
    return np.where(p < t, np.minimum(moved, np.nextafter(0.5, 0)), moved)


def _noisy_or(p: np.ndarray) -> np.ndarray:
    """1 − Π (1 − p): probability of at least one positive slice, for independent slices."""
    with np.errstate(divide="ignore"):  # log 0 for p = 1
        return -np.expm1(np.log1p(-p).sum(axis=-2))


def _topk(p: np.ndarray) -> np.ndarray:
    """Mean of the largest fifth of the slices, at least one."""
    return np.sort(p, axis=-2)[..., -max(1, round(p.shape[-2] / 5)) :, :].mean(axis=-2)


# Pooling of the probabilities (..., S, labels) of S slices to those of the volume, (..., labels).
AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda p: p.mean(axis=-2),
    "max": lambda p: p.max(axis=-2),
    "topk": _topk,
    "noisy-or": _noisy_or,
}


def pool(slice_probabilities: Sequence[np.ndarray], aggregate: str) -> np.ndarray:
    """Probabilities (N, labels) of N volumes from arrays (S_i, labels) of their slices.

    `aggregate`: one of AGGREGATES, or "attention" for arrays (labels,) or (1, labels) that the model has pooled.
    """
    if aggregate == "attention":
        return _checked_probabilities([np.reshape(p, np.shape(p)[-1]) for p in slice_probabilities])
    return np.array([AGGREGATES[aggregate](_checked_probabilities(p)) for p in slice_probabilities])


@dataclass(frozen=True)
class Calibration:
    """Pooling, calibration and thresholds of a model, fitted on tuning patients."""

    aggregate: str  # one of AGGREGATES, or "attention"
    temperature: float  # probability = σ(logit / temperature + bias)
    bias: float
    thresholds: tuple[float, ...]  # (labels,), of calibrated probabilities
    n_patients: int  # number of tuning patients

    @classmethod
    def fit(
        cls,
        slice_probabilities: Sequence[np.ndarray],
        labels: np.ndarray,
        aggregate: str = "auto",
        patients: Sequence | None = None,
    ) -> "Calibration":
        """Fits to N arrays (S_i, labels) and labels (N, labels) of tuning patients; "auto" pools with the best macro
        AUROC.

        `patients` (N,): patient of each volume (default: all different). Ties and undefined AUROC go to the first of
        AGGREGATES. Raises ValueError like `official_metrics`.
        """
        from scipy.special import expit, logit

        if aggregate == "auto":
            pooled = {name: _checked(labels, pool(slice_probabilities, name)) for name in AGGREGATES}
            auroc = {name: known_mean(_auroc(*checked)) for name, checked in pooled.items()}
            aggregate = max(auroc, key=lambda name: np.nan_to_num(auroc[name]))
        labels, pooled = _checked(labels, pool(slice_probabilities, aggregate))
        # Probabilities of 0 and 1 are rounded: by float32 in the model, or by a product of many.
        rounding = np.finfo(np.float32).eps / 2
        temperature, bias = fit_platt(logit(pooled.clip(rounding, 1 - rounding)), labels)
        thresholds = best_thresholds(labels, expit(logit(pooled) / temperature + bias))
        n_patients = len(labels if patients is None else set(patients))
        return cls(aggregate, temperature, bias, tuple(map(float, thresholds)), n_patients)

    def probabilities(self, slice_probabilities: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities (N, labels) of N volumes, from arrays (S_i, labels)."""
        from scipy.special import expit, logit

        return expit(logit(pool(slice_probabilities, self.aggregate)) / self.temperature + self.bias)

    def scores(self, slice_probabilities: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities remapped to thresholds of 0.5 (N, labels), for the official metrics and results.json."""
        return remap(self.probabilities(slice_probabilities), self.thresholds)

    def to_json(self, names: Sequence[str]) -> dict:
        """Plain dict for config.json, with thresholds by label."""
        return asdict(self) | {"thresholds": dict(zip(names, self.thresholds, strict=True))}

    @classmethod
    def from_json(cls, content: dict, names: Sequence[str]) -> "Calibration":
        """Inverse of `to_json` for the labels `names`."""
        return cls(**content | {"thresholds": tuple(content["thresholds"][label] for label in names)})


def write_results(path: Path, names: Sequence[str], probabilities: np.ndarray) -> None:
    """Writes results.json of the challenge: probabilities (N, 18) of the volumes `names`, whose suffixes are removed.

    Raises ValueError for invalid probabilities, and UserError for duplicate names.
    """
    probabilities = _checked_probabilities(probabilities)
    names = [stem(name) for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} cannot hold two volumes called {twice[0]}; rename one")
    predictions = [
        {"input_image_name": name, "probabilities": dict(zip(LABELS, row.tolist(), strict=True))}
        for name, row in zip(names, probabilities, strict=True)
    ]
    write_json(Path(path), FORMAT | {"predictions": predictions})


def write_submission(folder: Path, names: Sequence[str], scores: np.ndarray, config: dict, console: Console) -> None:
    """Writes results.json to `folder`, from scores (N, labels) of a model with this `config` for the volumes `names`.

    Models without all labels of the challenge have none: the missing labels are printed if they are less than half.
    """
    file = folder / "results.json"
    if official(config["labels"]):
        write_results(file, names, scores)
        return
    file.unlink(missing_ok=True)  # of an earlier model
    missing = [label for label in LABELS if label not in config["labels"]]
    if len(missing) < len(LABELS) / 2:
        console.print(f"no {file.name}: it needs all {len(LABELS)} labels; not taught: {', '.join(missing)}")
