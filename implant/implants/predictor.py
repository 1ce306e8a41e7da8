"""Inference with one model or an ensemble, with or without Monte Carlo dropout.

Predictions are mean and variance of a mixture of Gaussians over models (Lakshminarayanan et al. 2017, "Simple and
Scalable Predictive Uncertainty Estimation using Deep Ensembles") and dropout passes, with the predicted variances.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from core.cases import Cases
from core.console import progress
from core.errors import UserError
from core.seeding import seed_batch
from core.uncertainty import dropout_on
from implants.crops import ImplantCrops
from implants.dual_embedding import DualEmbeddingRegressor
from implants.evaluation import Predictions, calibrate, with_intervals
from implants.records import Record

Model = tuple[DualEmbeddingRegressor, dict]  # (model, config)


class Answer(NamedTuple):
    """Outputs of a model or an ensemble for N cases."""

    predictions: Predictions
    attention: dict[str, np.ndarray]  # of the first model: "branch, branch" -> weights (N, branches[, tokens])
    auxiliary: dict[str, np.ndarray]  # field -> class names (N,)


def load_models(folders: Sequence[Path]) -> list[Model]:
    """Models of runs of train.py. Raises UserError for different training records."""
    models = [DualEmbeddingRegressor.from_folder(folder) for folder in folders]
    for folder, (_, config) in zip(folders, models, strict=True):
        if config["train_sizes"] != models[0][1]["train_sizes"]:
            raise UserError(f"{folder} was trained on other records than {folders[0]}: no ensemble")
    return models


def predict_all(
    args, accelerator: Accelerator, console: Console, name: str, models: Sequence[Model], records: Sequence[Record],
    calibration: Sequence[Record] | None = None,
) -> Answer:  # fmt: skip
    """Combined outputs of `models` for `records`, with conformal intervals if there are `calibration` records. The
    ranks share the work. `args`: of `implants.arguments.add_inference_arguments`, `batch_size`, `num_workers`."""
    tables = []
    steps = -(-len(records) // (args.batch_size * accelerator.num_processes))
    with progress(console, name, len(models) * steps) as advance, torch.no_grad():
        for model, config in models:
            model.to(accelerator.device).eval()
            crops = ImplantCrops(records, config["image_size"], config["margin"], config["modalities"])
            loader = DataLoader(crops, args.batch_size, num_workers=args.num_workers)
            cases = Cases(accelerator, len(records))
            for number, batch in enumerate(accelerator.prepare_data_loader(loader)):
                cases.add(batch["index"], **one_batch(model, batch, args.mc_dropout, number))
                advance()
            tables.append(cases.table())
    answer = combine([model for model, _ in models], tables)
    if not calibration:
        return answer
    known = predict_all(args, accelerator, console, f"{name}, calibration", models, calibration).predictions
    factors = calibrate(calibration, known, args.level)
    return answer._replace(predictions=with_intervals(answer.predictions, factors))


def one_batch(model: DualEmbeddingRegressor, batch: dict, mc_dropout: int, number: int) -> dict[str, torch.Tensor]:
    """`means` and `variances` (B, passes, T) in mm and mm², attention weights, and indices of the classes."""
    features = model.encode(batch["image"])  # once, as only the head has dropout
    means, variances = [], []
    with dropout_on(model) if mc_dropout else nullcontext():
        for step in range(mc_dropout or 1):
            seed_batch(0, number, step, 0)
            result = model({"features": features, "scale": batch["scale"]})
            means.append(result["mm"])
            unknown = torch.full_like(result["mm"], torch.nan)
            variance = result["log_variance"].exp() * model.target_std**2 if model.uncertainty else unknown
            variances.append(variance)
    columns = {"means": torch.stack(means, dim=1), "variances": torch.stack(variances, dim=1)}
    columns |= {f"attention {branches}": weights for branches, weights in result["attention"].items()}
    columns |= {f"auxiliary {field}": logits.argmax(dim=1) for field, logits in result["auxiliary"].items()}
    return columns | {f"class {name}": numbers for name, numbers in model.name_classes(features).items()}


def combine(models: Sequence[DualEmbeddingRegressor], tables: Sequence[dict[str, torch.Tensor]]) -> Answer:
    """Outputs from the tables of all models; classes, attention and auxiliary fields of the first model."""
    first, table = models[0], {name: column.numpy() for name, column in tables[0].items()}
    means = np.concatenate([table["means"].numpy().astype(float) for table in tables], axis=1)  # (N, passes, T)
    variances = np.concatenate([table["variances"].numpy().astype(float) for table in tables], axis=1)
    own = np.zeros_like(means) if np.isnan(variances).any() else variances
    sigma = np.sqrt(own.mean(axis=1) + means.var(axis=1))
    if not own.any() and means.shape[1] == 1:
        sigma = np.full_like(sigma, np.nan)  # one pass without predicted variance
    unknown = np.full_like(sigma, np.nan)
    named = {}
    for name in ("company", "model"):
        numbers = table.get(f"class {name}")
        classes = np.array(first.encoders[name].classes) if numbers is not None else None
        named[name] = np.full(len(sigma), "") if numbers is None else classes[numbers]
    fields = first.arguments["auxiliary"] or {}
    auxiliary = {field: np.array(names)[table[f"auxiliary {field}"]] for field, names in fields.items()}
    attention = {name.removeprefix("attention "): w for name, w in table.items() if name.startswith("attention ")}
    predictions = Predictions(means.mean(axis=1), sigma, unknown, unknown, **named, targets=first.targets)
    return Answer(predictions, attention, auxiliary)
