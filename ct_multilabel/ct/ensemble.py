"""Inference with one or several models on the slices of volumes: calibration, averaging, uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.checkpoints import fitting
from core.errors import UserError
from core.uncertainty import dropout_on
from ct.slice_classifier import SliceClassifier
from ct.vlm3d import Calibration, pool, remap


@dataclass
class Member:
    """A trained model with its configuration and calibration."""

    name: str
    model: SliceClassifier
    config: dict
    calibration: Calibration


@dataclass
class Predictions:
    """Predictions for N volumes. `probabilities` are calibrated; `scores` have the tuned thresholds at 0.5."""

    raw: np.ndarray  # (N, labels), pooled over the slices, not calibrated
    probabilities: np.ndarray  # (N, labels)
    scores: np.ndarray  # (N, labels)
    spread: np.ndarray | None = None  # (N, labels), SD over dropout masks or members


def load_members(folders: Sequence[Path], device: torch.device) -> list[Member]:
    """Models of `best/` folders. Raises UserError if labels, slice settings or tuning patients differ."""
    members = []
    for folder in folders:
        model, config = SliceClassifier.from_folder(folder)
        name = folder.parent.name if folder.name == "best" else folder.name
        with fitting(folder):
            calibration = Calibration.from_json(config["calibration"], config["labels"])
        members.append(Member(name, model.to(device), config, calibration))
        if config["labels"] != members[0].config["labels"]:
            ours, theirs = (", ".join(labels) for labels in (config["labels"], members[0].config["labels"]))
            raise UserError(f"{folder} has other labels ({ours}) than {folders[0]} ({theirs}): evaluate them apart")
        if config["slices"] != members[0].config["slices"]:
            raise UserError(
                f"{folder} was trained on other slices ({settings_text(config['slices'])}) than {folders[0]} "
                f"({settings_text(members[0].config['slices'])}): evaluate them apart"
            )
        if config["tune_fraction"] != members[0].config["tune_fraction"]:
            raise UserError(f"{folder} has other tuning patients than {folders[0]}: train with one --tune_fraction")
    names = [member.name for member in members]
    for number, member in enumerate(members, 1):
        if names.count(member.name) > 1:
            member.name = f"{number} {member.name}"
    return members


def settings_text(settings: dict) -> str:
    """Slice settings as text: "slices 32, size 224, field_mm 360.0, channels windows"."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


@torch.no_grad()
def predict_logits(member: Member, slices: torch.Tensor, dropout_samples: int = 0) -> torch.Tensor:
    """Logits (1 + dropout_samples, B, S, labels) of slices (B, S, 3, H, W) uint8; S is 1 with gated attention.

    The first ones are without dropout. Dropout follows the backbone, so that features are computed once.
    """
    model = member.model
    output = "volume" if model.gate else "slices"
    features = model.encode(slices)
    logits = [model.classify(features)[output]]
    with dropout_on(model):
        logits += [model.classify(features)[output] for _ in range(dropout_samples)]
    logits = torch.stack(logits).float()
    return logits[:, :, None] if model.gate else logits


def calibrated(member: Member, logits: np.ndarray) -> Predictions:
    """Predictions of a member from its logits (1 + dropout samples, N, S, labels).

    With dropout samples, `probabilities` and `spread` are their mean and SD (Gal & Ghahramani 2016, "Dropout as a
    Bayesian Approximation").
    """
    slices = 1 / (1 + np.exp(-logits.astype(float)))
    runs = [member.calibration.probabilities(run) for run in (slices[1:] if len(slices) > 1 else slices)]
    probabilities = np.mean(runs, axis=0)
    return Predictions(
        raw=pool(slices[0], member.calibration.aggregate),
        probabilities=probabilities,
        scores=remap(probabilities, member.calibration.thresholds),
        spread=np.std(runs, axis=0) if len(runs) > 1 else None,
    )


def average(predictions: Sequence[Predictions]) -> Predictions:
    """Means over the members, whose thresholds are all at 0.5; `spread`: SD between members, or that of a single
    member."""
    if len(predictions) == 1:
        return predictions[0]
    stack = {name: np.stack([getattr(p, name) for p in predictions]) for name in ("raw", "probabilities", "scores")}
    return Predictions(**{name: values.mean(axis=0) for name, values in stack.items()},
                       spread=stack["probabilities"].std(axis=0))  # fmt: skip
