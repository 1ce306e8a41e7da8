"""Encodes and reconstructs your own ears with a trained VAE, and searches for similar ears.

    python ear_teacher/predict.py --checkpoint runs/ear_teacher/best --input PICTURES --output codes --reconstruct
    python ear_teacher/predict.py --checkpoint runs/ear_teacher/best --search QUERY.jpg --index FOLDER --output found

Inputs are pictures of one ear each, folders of such pictures, or manifests as for training, whose boxes are cropped.
--input writes to --output codes.safetensors (`mu` and `logvar` (N, latent_dim)), codes.csv (id, file, subject, side and
box of each row), and with --reconstruct reconstructions/ID.png (crop and reconstruction). --search writes
neighbours.csv and neighbours.png; --index is an output folder of --input, or an input. Both list data problems in
data_report.json.
"""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core import figures
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.errors import UserError, first_line
from core.files import distinct, distinct_names, whole_file
from core.images import SUFFIXES, ImageError
from core.results import write_csv
from core.tables import read_table
from core.validation import DataReport, leave_out_unreadable
from ear.codes import encode_all, nearest
from ear.crops import EarCrops, read_manifest
from ear.manifest import Ear, add_reading_arguments, side_in_name
from ear.plots import picture_grid
from ear.sam_vae import EarVAE

CODES, TABLE = "codes.safetensors", "codes.csv"
GREY = 128  # replaces unreadable pictures of neighbours
COLUMNS = ("id", "file", "subject", "side", "x0", "y0", "x1", "y1")


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", help="pictures, folders or manifests to encode")
    source.add_argument("--search", type=Path, nargs="+", metavar="QUERY", help="query pictures of a search")
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="codes, pictures or manifest to search in")
    parser.add_argument("--top", type=positive_int, default=5, help="number of neighbours per query")
    parser.add_argument("--output", type=Path, help="output folder (default: codes; with --search: found)")
    add_reading_arguments(parser)
    parser.add_argument("--reconstruct", action="store_true", help="also write the reconstruction of each ear")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="batch size in ears")
    parser.add_argument("--num_workers", type=non_negative_int, default=2, help="data loader workers")
    args = parser.parse_args(argv)
    if bool(args.search) != bool(args.index):
        parser.error("--search QUERY and --index FOLDER go together")
    if args.search and args.reconstruct:
        parser.error("--reconstruct goes with --input")
    args.output = args.output or Path("found" if args.search else "codes")
    return args


def main(argv=None):
    args = parse_args(argv)
    console, accelerator = make_console(), make_accelerator()
    model, config = EarVAE.from_folder(args.checkpoint)
    report, owner = DataReport(), fingerprint(model)

    def encode(paths: list[Path], name: str, reconstruct: bool = False) -> tuple[list[Ear], dict]:
        ears = leave_out_unreadable({name: find_ears(paths, args, report)}, report)[name]
        crops = EarCrops(ears, model.image_size, **config["data"])
        return ears, encode_all(accelerator, console, model, crops, args.batch_size, args.num_workers, reconstruct)

    with report.written_to(args.output / "data_report.json"):
        ears, table = encode(args.search or args.input, "ears", reconstruct=args.reconstruct or bool(args.search))
        if args.input:
            write_codes(ears, table, owner, args.output)
            if args.reconstruct:
                write_reconstructions(ears, table, args.output / "reconstructions")
        else:
            if (args.index / CODES).is_file():
                others, codes = read_codes(args.index, owner)
            else:
                others, found = encode([args.index], "index")
                codes = found["mu"]
            crops = EarCrops(others, model.image_size, **config["data"])
            search(ears, table, others, codes, crops, args, report, console)
    report.print(console, args.output / "data_report.json")
    console.print(f"results in {args.output}", style="bold")


def fingerprint(model: EarVAE) -> str:
    """SHA-256 of the weights, which identifies the model of stored codes."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def find_ears(paths: list[Path], args, report: DataReport) -> list[Ear]:
    """Ears of pictures, folders and manifests, without duplicates. Repeated ids get a number, as 1_2. Raises UserError
    as `read_manifest`."""
    ears = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            side, subject = side_in_name(path)
            found = [Ear(path.stem, path, None, None, subject, side, False)]
        else:
            found = read_manifest(path, args.data_root, args.box_format, report)
        for ear in found:
            ears.setdefault((os.path.realpath(ear.image), ear.box), ear)
    names = distinct(ear.id for ear in ears.values())
    return [replace(ear, id=name) for ear, name in zip(ears.values(), names, strict=True)]


def write_codes(ears: list[Ear], table: dict[str, np.ndarray], owner: str, folder: Path) -> None:
    """Writes codes.safetensors and codes.csv. `owner`: `fingerprint` of the model."""
    with whole_file(folder / CODES) as unfinished:
        codes = {name: np.ascontiguousarray(table[name]) for name in ("mu", "logvar")}
        save_file(codes, unfinished, {"model": owner})
    rows = ([ear.id, os.path.realpath(ear.image), ear.subject, ear.side, *(ear.box or [""] * 4)] for ear in ears)
    write_csv(folder / TABLE, COLUMNS, rows)


def read_codes(folder: Path, owner: str) -> tuple[list[Ear], np.ndarray]:
    """(ears, mu (N, latent_dim)) of the files of `write_codes`. Raises UserError for damaged files and those of a model
    with another fingerprint than `owner`."""
    again = "write it again with --input"
    rows = read_table(folder / TABLE, COLUMNS, again)
    try:
        with safe_open(folder / CODES, "numpy") as file:
            mu, model = file.get_tensor("mu"), (file.metadata() or {}).get("model")
        boxes = [tuple(float(row[name]) for name in COLUMNS[4:]) if row["x0"] else None for _, row in rows]
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({first_line(error)}); {again}") from error
    if model != owner:
        raise UserError(f"{folder} holds codes of another model; {again}")
    if len(mu) != len(rows):
        raise UserError(f"{folder} is damaged ({len(mu)} codes, {len(rows)} rows in {TABLE}); {again}")
    texts = [[row[name] for name in COLUMNS[:4]] for _, row in rows]
    return [Ear(i, Path(f), box, None, s, side) for (i, f, s, side), box in zip(texts, boxes, strict=True)], mu


def write_reconstructions(ears: list[Ear], table: dict[str, np.ndarray], folder: Path) -> None:
    """Writes ID.png of each ear, crop and reconstruction side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, *pair in zip(distinct_names(e.id for e in ears), table["original"], table["reconstruction"], strict=True):
        Image.fromarray(np.concatenate(pair, axis=1)).save(folder / f"{name}.png")


def search(
    ears: list[Ear], table: dict[str, np.ndarray], others: list[Ear], codes: np.ndarray, crops: EarCrops, args,
    report: DataReport, console: Console,
) -> None:  # fmt: skip
    """Writes the nearest ears of the index to each query, by Euclidean distance of the codes (N, latent_dim)."""
    rows, distances = nearest(table["mu"], codes, min(args.top, len(others)))
    neighbours, shown = [], Table("query", "nearest", "distance", box=None)
    for ear, found, far in zip(ears, rows, distances, strict=True):
        for rank, (row, distance) in enumerate(zip(found, far, strict=True), 1):
            other = others[row]
            neighbours.append([ear.id, rank, other.id, other.image, other.subject, f"{distance:.4f}"])
        shown.add_row(ear.id, others[found[0]].id, f"{far[0]:.3g}")
    write_csv(args.output / "neighbours.csv", ["query", "rank", "id", "file", "subject", "distance"], neighbours)
    console.print(shown)
    pictures = {}
    for row in np.unique(rows[:10]):
        try:
            pictures[row] = crops.pixels(row)
        except ImageError as error:  # picture removed after encoding
            report.add("picture unreadable", others[row].id, "found by its code, not shown", error)
            pictures[row] = np.full_like(table["original"][0], GREY)
    grid = {
        ear.id: np.stack([original, *(pictures[row] for row in found)])
        for ear, original, found in zip(ears[:10], table["original"], rows, strict=False)
    }
    titles = ["query", *(f"{rank}" for rank in range(1, rows.shape[1] + 1))]
    figures.save(picture_grid(grid, titles), args.output / "neighbours.png")


if __name__ == "__main__":
    script(main)
