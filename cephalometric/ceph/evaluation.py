"""Metrics of an evaluation: errors of landmarks, measurements and stages, with confidence intervals and baselines."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ceph.dataset import CephalogramDataset
from ceph.predictor import Findings
from core.metrics import radial_errors, success_detection_rate
from core.results import write_csv
from core.uncertainty import Interval, bootstrap

THRESHOLDS = (2.0, 2.5, 3.0, 4.0)  # of the SDR, ISBI 2014/2015


def rate(errors: np.ndarray, threshold: float) -> float:
    """Success detection rate [%] of errors at one threshold."""
    return success_detection_rate(errors, (threshold,))[threshold]


STATISTICS = {"MRE": np.nanmean, **{f"SDR {t:g}": partial(rate, threshold=t) for t in THRESHOLDS}}  # of errors (N, …)


def differences(
    a: np.ndarray, b: np.ndarray, resamples: int = 1000, seed: int = 0, names: Iterable[str] = STATISTICS
) -> dict[str, Interval]:
    """STATISTICS `names` of errors `b` minus those of `a`, both (N, …), of the same N patients, with 95 % confidence
    intervals of the paired bootstrap. Points that are NaN in either are left out of both."""
    both = np.isfinite(a) & np.isfinite(b)
    kept = both.any(axis=1)
    a, b = (np.where(both, errors, np.nan)[kept] for errors in (a, b))

    def difference(rows, statistic: Callable) -> float:
        return float(statistic(b[rows]) - statistic(a[rows]))

    return {
        name: bootstrap(partial(difference, statistic=STATISTICS[name]), range(len(a)), resamples, seed=seed)
        for name in names
    }


class Evaluation:
    """Metrics of N cases. Errors are (N, K) in `unit`; NaN if ground truth or pixel size is unknown or the landmark was
    not trained.

    The baseline is `mean_shape` (K, 2) in frame px, the mean of the training split aligned by the letterbox. `unit` is
    mm if any case is calibrated (the others are then left out), otherwise px. Intervals are bootstrapped over patients,
    one per cephalogram.
    """

    def __init__(
        self,
        dataset: CephalogramDataset,
        findings: Findings,
        mean_shape: np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
    ):
        self.cases, self.points, self.truth = dataset.cases, findings.points, dataset.truth()
        self.anatomy = anatomy = dataset.anatomy
        told = np.isfinite(self.points).any(axis=(0, 2))
        self.names = {name: i for i, name in enumerate(anatomy.names) if told[i]}  # landmark -> index among the K
        self.resamples, self.seed = resamples, seed
        mm_per_px = dataset.mm_per_px()
        self.calibrated = np.isfinite(mm_per_px)
        self.unit = "mm" if self.calibrated.any() else "px"
        scale = mm_per_px if self.unit == "mm" else 1.0
        baseline = dataset.to_native(np.broadcast_to(mean_shape, self.truth.shape))
        self.errors = radial_errors(self.points, self.truth, scale)
        self.coarse_errors = radial_errors(findings.coarse, self.truth, scale)  # of stage 1
        self.seconds = findings.seconds.mean(axis=0)  # per picture: stage 1, stage 2
        self.baseline_errors = radial_errors(baseline, self.truth, scale)
        to_mm = np.where(anatomy.is_length, mm_per_px[:, None], 1.0)  # (N, M)
        self.true_measurements = anatomy.measure(self.truth) * to_mm
        self.measured = {"landmarks": anatomy.measure(self.points) * to_mm}
        if findings.measurements is not None:
            self.measured["CVM branch" if anatomy.stages else "branch"] = findings.measurements * to_mm
        if findings.stage is not None:
            self.predicted_stages = findings.stage.argmax(axis=1)  # indices of the S stages
            known = [case.cvm_stage for case in dataset.cases]
            self.stages = np.array([-1 if stage is None else anatomy.stages.index(stage) for stage in known])

    def interval(self, errors: np.ndarray, statistic: Callable = np.nanmean) -> Interval:
        """`statistic` of errors (N, …) with 95 % confidence interval, over the patients with a known error."""
        known = errors[np.isfinite(errors.reshape(len(errors), -1)).any(axis=1)]
        return bootstrap(lambda rows: float(statistic(known[rows])), range(len(known)), self.resamples, seed=self.seed)

    def rates(self, errors: np.ndarray) -> dict[float, Interval]:
        """Success detection rate [%] of errors (N, …) at each threshold."""
        return {t: self.interval(errors, partial(rate, threshold=t)) for t in THRESHOLDS}

    def stage_1(self) -> dict:
        """MRE and SDR of stage 1 alone, and the paired differences by stage 2."""
        return {
            "mre": self.interval(self.coarse_errors),
            "sdr": self.rates(self.coarse_errors),
            "difference": differences(self.coarse_errors, self.errors, self.resamples, self.seed),
        }

    def by_landmark(self) -> list[dict]:
        """MRE with interval, SD, median, SDR and baseline MRE of each landmark with ground truth."""
        rows = []
        for symbol, i in self.names.items():
            errors = self.errors[:, i]
            known = errors[np.isfinite(errors)]
            if known.size:
                row = {"landmark": symbol, "cases": known.size, "mre": self.interval(errors)}
                row |= {"sd": float(known.std()), "median": float(np.median(known))}
                row |= {"sdr": success_detection_rate(known), "baseline": float(np.nanmean(self.baseline_errors[:, i]))}
                rows.append(row)
        return rows

    def by_device(self) -> list[dict]:
        """MRE with interval and SDR of each X-ray machine."""
        rows = []
        for device in sorted({case.device for case in self.cases}):
            errors = self.errors[[case.device == device for case in self.cases]]
            if np.isfinite(errors).any():
                row = {"device": device, "cases": len(errors), "mre": self.interval(errors)}
                rows.append(row | {"sdr": success_detection_rate(errors)})
        return rows

    def by_measurement(self) -> list[dict]:
        """Bias, SD and mean absolute error of each measurement, from the landmarks and from the pooled branch."""
        rows = []
        for i, measurement in enumerate(self.anatomy.measurements):
            truth = self.true_measurements[:, i]
            row = {"measurement": measurement.name, "title": measurement.title, "unit": measurement.unit}
            row["spread"] = float(np.nanstd(truth)) if np.isfinite(truth).any() else np.nan
            for source, values in self.measured.items():
                difference = values[:, i] - truth
                known = difference[np.isfinite(difference)]
                summary = {"bias": known.mean(), "sd": known.std(), "mae": np.abs(known).mean()} if known.size else None
                row[source] = summary and {name: float(number) for name, number in summary.items()}
            rows.append(row)
        return rows

    def by_stage(self) -> dict | None:
        """Accuracy, macro-F1 and confusion matrix (S, S) (truth, prediction) of the stage; None without ground truth.

        The baseline is the accuracy of the most frequent stage.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

        known, count = self.stages >= 0, len(self.anatomy.stages)
        if not known.any():
            return None
        truth, predicted = torch.from_numpy(self.stages[known]), torch.from_numpy(self.predicted_stages[known])
        counts = multiclass_confusion_matrix(predicted, truth, count).numpy()
        return {
            "accuracy": float((predicted == truth).float().mean()),
            "baseline": float(counts.sum(axis=1).max() / counts.sum()),
            "macro_f1": multiclass_f1_score(predicted, truth, count, average="macro").item(),
            "counts": counts,
        }

    def case_errors(self) -> np.ndarray:
        """Mean radial error (N,) of each case in `unit`; NaN = unknown."""
        counts = np.isfinite(self.errors).sum(axis=1)
        return np.where(counts > 0, np.nansum(self.errors, axis=1) / np.maximum(1, counts), np.nan)

    def write_predictions(self, file: Path) -> None:
        """Writes a CSV table, one row per case: points in native px, errors, measurements, stage; only trained
        outputs."""
        header = [
            "id",
            "device",
            "mm_per_px",
            f"mre_{self.unit}",
            *(f"{name}_{axis}" for name in self.names for axis in "xy"),
        ]
        header += [*(f"{name}_error_{self.unit}" for name in self.names), *(m.name for m in self.anatomy.measurements)]
        told, rows = list(self.names.values()), []
        for i, (case, error) in enumerate(zip(self.cases, self.case_errors(), strict=True)):
            numbers = [error, *self.points[i, told].ravel(), *self.errors[i, told], *self.measured["landmarks"][i]]
            cells = ["" if np.isnan(number) else f"{number:.3f}" for number in numbers]
            rows.append([case.id, case.device, case.mm_per_px or "", *cells])
            if self.anatomy.stages:
                rows[-1].append(self.anatomy.stages[self.predicted_stages[i]])
        write_csv(file, header + (["cvm_stage"] if self.anatomy.stages else []), rows)
