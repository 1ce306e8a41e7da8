"""Metrics of an evaluation with confidence intervals over patients: classification, baselines, calibration,
uncertainty."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.classification import binary_average_precision

from core.results import write_csv
from core.uncertainty import Interval, bootstrap, expected_calibration_error
from ct.ensemble import Predictions
from ct.labels import UNKNOWN, official
from ct.store import StoredVolume, label_table
from ct.vlm3d import known_mean, official_metrics

MACRO = ("auroc", "f1", "precision", "recall", "accuracy")


class Evaluation:
    """Metrics of N volumes for the labels `names`; ground truth (N, labels): 1, 0 or -1 (unknown).

    `prevalence` (labels,): of the training split, as baseline. Intervals: bootstrap over patients.
    """

    def __init__(
        self,
        names: Sequence[str],
        volumes: Sequence[StoredVolume],
        predictions: Predictions,
        prevalence: np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
    ):
        self.volumes, self.predictions, self.resamples, self.seed = list(volumes), predictions, resamples, seed
        self.names, self.labels = tuple(names), label_table(volumes)
        self.headlines = (*MACRO, "crg") if official(names) else MACRO
        self.patients = [volume.patient for volume in volumes]
        self.official = official_metrics(self.labels, predictions.scores, names)
        constant = np.broadcast_to(prevalence, self.labels.shape)
        self.prevalence_baseline = official_metrics(self.labels, constant, names)
        # F1 of the prevalence is 0 for labels rarer than 0.5; the best constant prediction for F1 is "always positive".
        self.always_baseline = official_metrics(self.labels, np.ones(self.labels.shape), names)

    def intervals(self) -> dict[str, Interval | dict[str, Interval]]:
        """Intervals of the headline metrics, and `by_label` {label: {"auroc": …, "f1": …}}, from the same resamples."""

        def statistics(rows: np.ndarray) -> np.ndarray:
            result = official_metrics(self.labels[rows], self.predictions.scores[rows], self.names)
            labels = result["per_label"]
            for label, values in labels.items():
                # Without positive cases in a resample, recall and F1 are unknown; the official 0 would bias them.
                if values["positives"] == 0 < self.official["per_label"][label]["positives"]:
                    values |= {"recall": np.nan, "f1": np.nan}
            macro = [known_mean(np.array([labels[label][name] for label in labels])) for name in MACRO]
            by_label = [labels[label][name] for label in labels for name in ("auroc", "f1")]
            return np.array([*macro, *[result[name] for name in self.headlines[len(MACRO) :]], *by_label])

        interval = bootstrap(statistics, self.patients, self.resamples, seed=self.seed)
        values = iter([Interval(*map(float, row)) for row in zip(*interval, strict=True)])
        intervals = {name: next(values) for name in self.headlines}
        return intervals | {"by_label": {label: {"auroc": next(values), "f1": next(values)} for label in self.names}}

    def by_label(self, intervals: dict[str, dict[str, Interval]]) -> list[dict]:
        """One row per label: counts, AUROC and F1 with intervals, other metrics, F1 of the baseline."""
        rows = []
        for i, label in enumerate(self.names):
            official = self.official["per_label"][label]
            row = {"label": label, "cases": official["cases"], "positives": official["positives"]}
            row |= intervals[label] | {name: official[name] for name in ("precision", "recall", "accuracy")}
            row["average_precision"] = _average_precision(self.labels[:, i], self.predictions.probabilities[:, i])
            row["baseline_f1"] = self.always_baseline["per_label"][label]["f1"]
            rows.append(row)
        return rows

    def calibration_errors(self) -> dict[str, float]:
        """Expected calibration error of the probabilities before and after Platt scaling."""
        values = {"before": self.predictions.raw, "after": self.predictions.probabilities}
        return {name: expected_calibration_error(p, self.labels) for name, p in values.items()}

    def error_by_spread(self, parts: int = 3) -> list[dict] | None:
        """Share of wrong decisions in `parts` groups of increasing spread, which grows if the spread is informative;
        None without spread."""
        spread = self.predictions.spread
        if spread is None:
            return None
        known = self.labels != UNKNOWN
        wrong = ((self.predictions.scores >= 0.5) != (self.labels == 1))[known]
        order = np.argsort(spread[known], kind="stable")
        groups = np.array_split(order, parts)
        return [
            {"spread": float(spread[known][g].mean()), "cells": len(g), "wrong": float(wrong[g].mean())} for g in groups
        ]

    def write_predictions(self, file: Path) -> None:
        """Writes one row per volume: ground truth, calibrated probability, score (0.5 = threshold) and spread of each
        label."""
        p = self.predictions
        columns = {"label": self.labels, "probability": p.probabilities, "score": p.scores}
        columns |= {} if p.spread is None else {"sd": p.spread}
        header = ["volume", "patient", "scan", *[f"{label} {name}" for label in self.names for name in columns]]
        cells = np.stack([*columns.values()], axis=-1).reshape(len(self.volumes), -1)  # (N, labels × columns)
        rows = (
            [v.name, v.patient, v.scan, *map("{:.6g}".format, row)] for v, row in zip(self.volumes, cells, strict=True)
        )
        write_csv(file, header, rows)


def _average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    known = labels != UNKNOWN
    truth = torch.from_numpy(labels[known]).long()
    return float(binary_average_precision(torch.from_numpy(probabilities[known]), truth)) if truth.any() else np.nan
