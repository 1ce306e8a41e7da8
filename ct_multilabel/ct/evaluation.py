"""The numbers of one evaluation: official metrics with intervals by patient, baselines, calibration, uncertainty."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.classification import binary_average_precision

from core.losses.classification import UNKNOWN
from core.uncertainty import Interval, bootstrap, expected_calibration_error
from ct.ensemble import Predictions
from ct.store import StoredVolume
from ct.vlm3d import known_mean, official_metrics
from ct.volumes import LABELS

MACRO = ("auroc", "f1", "precision", "recall", "accuracy")


class Evaluation:
    """Everything about N volumes with `labels` (N, 18), 1, 0 or -1 = unknown.

    `prevalence` (18,) is the training split's: the baseline. Intervals are bootstraps over patients.
    """

    def __init__(
        self,
        volumes: Sequence[StoredVolume],
        predictions: Predictions,
        prevalence: np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
    ):
        self.volumes, self.predictions, self.resamples, self.seed = list(volumes), predictions, resamples, seed
        self.labels = np.stack([volume.labels for volume in volumes])
        self.patients = [volume.patient for volume in volumes]
        self.official = official_metrics(self.labels, predictions.scores)
        constant = np.broadcast_to(prevalence, self.labels.shape)
        self.prevalence_baseline = official_metrics(self.labels, constant)
        # Under the official threshold of 0.5 a rare label is never found by its prevalence, and F1 is 0. The best that
        # a constant can do for F1 is to say yes to everything, which needs no prevalence at all.
        self.always_baseline = official_metrics(self.labels, np.ones(self.labels.shape))

    def intervals(self) -> dict[str, Interval | dict[str, Interval]]:
        """Macro metrics and CRG, and `by_label` {label: {"auroc": …, "f1": …}}, from one set of resamples."""

        def statistics(rows: np.ndarray) -> np.ndarray:
            result = official_metrics(self.labels[rows], self.predictions.scores[rows])
            labels = result["per_label"]
            for label, values in labels.items():
                # Where none of a label's few positives is drawn, recall and F1 are unknown. The official 0 of such
                # resamples would push the interval below the estimate.
                if values["positives"] == 0 < self.official["per_label"][label]["positives"]:
                    values |= {"recall": np.nan, "f1": np.nan}
            macro = [known_mean(np.array([labels[label][name] for label in LABELS])) for name in MACRO]
            by_label = [labels[label][name] for label in LABELS for name in ("auroc", "f1")]
            return np.array([*macro, result["crg"], *by_label])

        interval = bootstrap(statistics, self.patients, self.resamples, seed=self.seed)
        values = iter([Interval(*map(float, row)) for row in zip(*interval, strict=True)])
        intervals = {name: next(values) for name in (*MACRO, "crg")}
        return intervals | {"by_label": {label: {"auroc": next(values), "f1": next(values)} for label in LABELS}}

    def by_label(self, intervals: dict[str, dict[str, Interval]]) -> list[dict]:
        """A row for each label: counts, AUROC and F1 with intervals, the other metrics, and the baseline's F1."""
        rows = []
        for i, label in enumerate(LABELS):
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
        """Share of wrong decisions among cells of small, middle and large spread; None where there is no spread.

        If the spread knows anything, the share grows from row to row.
        """
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
        """One row a volume: truth, calibrated probability, score (0.5 = threshold) and spread of each label."""
        columns = {
            "label": self.labels,
            "probability": self.predictions.probabilities,
            "score": self.predictions.scores,
        }
        if self.predictions.spread is not None:
            columns["sd"] = self.predictions.spread
        with open(file, "w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(["volume", "patient", "scan", *[f"{label} {name}" for label in LABELS for name in columns]])
            for i, volume in enumerate(self.volumes):
                cells = [f"{values[i, k]:.6g}" for k in range(len(LABELS)) for values in columns.values()]
                writer.writerow([volume.name, volume.patient, volume.scan, *cells])


def _average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    known = labels != UNKNOWN
    if not (labels[known] == 1).any():
        return float("nan")
    return float(
        binary_average_precision(torch.from_numpy(probabilities[known]), torch.from_numpy(labels[known]).long())
    )
