"""Metrics of one evaluation, with intervals by patient: official metrics, baselines, calibration, uncertainty."""

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
    """Metrics of N volumes with the labels `names`, whose ground truth `labels` (N, labels) is 1, 0 or -1 = unknown.

    `prevalence` (labels,) is the training split's: the baseline. Intervals are bootstraps over patients.
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
        # Under the official threshold of 0.5 a rare label is never found by its prevalence, and F1 is 0. The best
        # constant for F1 is "always positive", which needs no prevalence.
        self.always_baseline = official_metrics(self.labels, np.ones(self.labels.shape), names)

    def intervals(self) -> dict[str, Interval | dict[str, Interval]]:
        """The headlines, and `by_label` {label: {"auroc": …, "f1": …}}, from one set of resamples."""

        def statistics(rows: np.ndarray) -> np.ndarray:
            result = official_metrics(self.labels[rows], self.predictions.scores[rows], self.names)
            labels = result["per_label"]
            for label, values in labels.items():
                # Where none of a label's few positives is drawn, recall and F1 are unknown. The official 0 of such
                # resamples would push the interval below the estimate.
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
        """A row for each label: counts, AUROC and F1 with intervals, the other metrics, and the baseline's F1."""
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
        """Share of wrong decisions among cells of small, middle and large spread; None where there is no spread.

        With an informative spread the share grows from row to row.
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
        header = ["volume", "patient", "scan", *[f"{label} {name}" for label in self.names for name in columns]]
        cells = np.stack([*columns.values()], axis=-1).reshape(len(self.volumes), -1)  # (N, labels × columns)
        rows = (
            [v.name, v.patient, v.scan, *map("{:.6g}".format, row)] for v, row in zip(self.volumes, cells, strict=True)
        )
        write_csv(file, header, rows)


def _average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    known = labels != UNKNOWN
    if not (labels[known] == 1).any():
        return float("nan")
    return float(
        binary_average_precision(torch.from_numpy(probabilities[known]), torch.from_numpy(labels[known]).long())
    )
