"""Codes of data sets, nearest neighbours, and the training data of a run."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from core.cases import Cases
from core.console import progress
from core.errors import UserError, first_line
from core.files import must_hold, read_json
from ear.crops import EarCrops, to_pixels
from ear.sam_vae import EarVAE


@torch.no_grad()
def encode_all(
    accelerator: Accelerator, console: Console, model: EarVAE, dataset: EarCrops, batch_size: int, num_workers: int,
    reconstruct: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """`mu` and `logvar` (N, latent_dim) of all ears, in order of the data set; with `reconstruct` also `original` and
    `reconstruction` (N, S, S, 3) uint8. The ranks share the work."""
    model = model.to(accelerator.device).eval()
    loader = accelerator.prepare(DataLoader(dataset, batch_size, num_workers=num_workers))
    cases = Cases(accelerator, len(dataset))
    with progress(console, "ears", len(loader)) as advance:
        for batch in loader:
            mu, logvar = model.encode(batch["image"])
            columns = {"mu": mu, "logvar": logvar}
            if reconstruct:
                pictures = {"original": batch["image"], "reconstruction": model.decode(mu)}
                columns |= {name: torch.from_numpy(to_pixels(x)).to(mu.device) for name, x in pictures.items()}
            cases.add(batch["index"], **columns)
            advance()
    return {name: column.numpy() for name, column in cases.table().items()}


def nearest(queries: np.ndarray, codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, Euclidean distances), both (Q, count), of the nearest codes (N, D) to each query (Q, D), nearest
    first."""
    from scipy.spatial import KDTree

    distances, rows = KDTree(codes).query(queries, k=range(1, count + 1))
    return rows, distances


def take_data_of_training(args, name: str = "manifest") -> None:
    """Default of the flag --`name`: the training manifest of the run of --checkpoint, with its --data_root and
    --box_format.

    Raises UserError if the args.json of the run or the manifest is missing.
    """
    if getattr(args, name):
        return
    folder = args.checkpoint.resolve()
    file = next((place / "args.json" for place in (folder, folder.parent) if (place / "args.json").is_file()), None)
    if file is None:
        raise UserError(f"{args.checkpoint}: no args.json beside it names the training data; give --{name}")
    try:
        before = read_json(file)
        must_hold(before, train_manifest=str)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}; give --{name}") from error
    manifest = Path(before["train_manifest"])
    if not manifest.exists():
        raise UserError(f"training data {manifest}: no such file or folder; give --{name}")
    setattr(args, name, manifest)
    args.data_root = args.data_root or before.get("data_root")
    args.box_format = args.box_format or before.get("box_format")
