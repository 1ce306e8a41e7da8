"""Metrics that torchmetrics does not have. Everything else comes from there."""

import numpy as np


def radial_errors(prediction: np.ndarray, target: np.ndarray, mm_per_px: np.ndarray | float = 1.0) -> np.ndarray:
    """Euclidean distances (N, K) of points (N, K, 2) in px, in mm where `mm_per_px` (a number or (N,)) is given.

    NaN where the target or the scale is unknown (NaN). Their mean is the field's MRE, mean radial error.
    """
    scale = np.reshape(np.asarray(mm_per_px, dtype=float), (-1, 1))
    return np.linalg.norm(np.asarray(prediction, float) - np.asarray(target, float), axis=-1) * scale


def success_detection_rate(errors: np.ndarray, thresholds: tuple[float, ...] = (2.0, 2.5, 3.0, 4.0)) -> dict:
    """SDR: per cent of the known errors (any shape; NaN = unknown) that are at most each threshold (same unit).

    The thresholds are those of the ISBI 2014/2015 challenges (Wang et al. 2016) in mm. NaN if no error is known.
    """
    known = errors[np.isfinite(errors)]
    return {threshold: 100 * float(np.mean(known <= threshold)) if known.size else np.nan for threshold in thresholds}
