"""Metrics that torchmetrics lacks."""

import numpy as np

from core.losses.classification import UNKNOWN


def radial_errors(prediction: np.ndarray, target: np.ndarray, mm_per_px: np.ndarray | float = 1.0) -> np.ndarray:
    """Euclidean distances (N, K) of points (N, K, 2) in px, or in mm with `mm_per_px` (scalar or (N,)).

    NaN if the target or the scale is unknown (NaN). Their mean is the mean radial error (MRE).
    """
    scale = np.reshape(np.asarray(mm_per_px, dtype=float), (-1, 1))
    return np.linalg.norm(np.asarray(prediction, float) - np.asarray(target, float), axis=-1) * scale


def success_detection_rate(errors: np.ndarray, thresholds: tuple[float, ...] = (2.0, 2.5, 3.0, 4.0)) -> dict:
    """SDR: percentage of the known errors (any shape; NaN = unknown) up to each threshold, in the same unit.

    Default thresholds in mm: ISBI 2014/2015 challenges (Wang et al. 2016). NaN if no error is known.
    """
    known = errors[np.isfinite(errors)]
    return {threshold: 100 * float(np.mean(known <= threshold)) if known.size else np.nan for threshold in thresholds}


def crg_score(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Clinically relevant findings score (Hamamci et al. 2025, "CRG Score") of binary findings, higher is better.

    `labels`: 1, 0 or -1 (unknown, left out); `predicted`: bool; both of the same shape, e.g. (N, C), pooled. With X
    known cells, A of them positive, a positive weighs `r = (X−A) / 2A` times a negative: `U = (X−A) / 2`,
    `s = r·TP − r·FN − FP`, `CRG = U / (2U − s)`. All correct: 1; all negative or all positive: 1/3; all wrong: 1/5.
    NaN without positive or without negative cells. Raises ValueError if the shapes differ.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted, bool)
    if labels.shape != predicted.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape} differ in shape")
    cells, positives = np.sum(labels != UNKNOWN), np.sum(labels == 1)
    if positives in (0, cells):
        return np.nan
    found, false_alarms = np.sum(predicted & (labels == 1)), np.sum(predicted & (labels == 0))
    weight, best = (cells - positives) / (2 * positives), (cells - positives) / 2
    score = weight * found - weight * (positives - found) - false_alarms
    return float(best / (2 * best - score))
