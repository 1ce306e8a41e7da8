"""Inference with one or several trained models on the slices of volumes: calibration, mean, uncertainty."""

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
    """A trained model with its config and calibration."""

    name: str
    model: SliceClassifier
    config: dict
    calibration: Calibration


@dataclass
class Predictions:
    """Of N volumes. `probabilities` are calibrated; `scores` are remapped so that 0.5 is the tuned threshold."""

    raw: np.ndarray  # (N, labels), pooled over the slices, before calibration
    probabilities: np.ndarray  # (N, labels)
    scores: np.ndarray  # (N, labels)
    spread: np.ndarray | None = None  # (N, labels), SD of the probabilities: over dropout masks, or over members


def load_members(folders: Sequence[Path], device: torch.device) -> list[Member]:
    """Models of `best/` folders. Raises UserError unless all have the same labels, slices and tuning patients."""
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
    """How slices were taken, for a message: "slices 32, size 224, field_mm 360.0, channels windows"."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


@torch.no_grad()
def predict_logits(member: Member, slices: torch.Tensor, dropout_samples: int = 0) -> torch.Tensor:
    """Logits (1 + dropout_samples, B, S, labels) of slices (B, S, 3, H, W) uint8; S is 1 for gated attention.

    The first without dropout, the others each with a mask of its own. Dropout stands behind the backbone, so the
    features are computed once.
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

    With dropout samples the probabilities are their mean, and `spread` is their SD (Gal & Ghahramani 2016, "Dropout
    as a Bayesian Approximation"); otherwise they are those without dropout.
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
    """The ensemble: means of the members' values. Each member's threshold is at 0.5 already, and so is the mean's.

    `spread` is the SD between the members; for a single one it is its own.
    """
    if len(predictions) == 1:
        return predictions[0]
    stack = {name: np.stack([getattr(p, name) for p in predictions]) for name in ("raw", "probabilities", "scores")}
    return Predictions(**{name: values.mean(axis=0) for name, values in stack.items()},
                       spread=stack["probabilities"].std(axis=0))  # fmt: skip
