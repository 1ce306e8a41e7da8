"""Computes encoder features of cubes, and optionally reconstructions of masked cubes and predictions of a probe.

    python hyperspectral/predict.py --checkpoint runs/hyperspectral/best --input CUBES --output features
    python hyperspectral/predict.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --reconstruct
    python hyperspectral/predict.py --checkpoint BEST --input CUBES --probe runs/hyperspectral_probe/best

Features are those of whole, unmasked cubes. Cubes may differ in size from each other and from the training data, and in
bands with --wavelengths. Writes to --output features.csv (one row per cube: ID, file, label, D pooled features),
ID.safetensors (`pooled` (D,) and `grid` (S, h, w, D): spectral groups, rows, columns), and with --reconstruct
ID_reconstruction.h5 (cube, and `hidden`: the predicted voxels) and ID_figures/. With --probe also its predictions:
predictions.csv (class probabilities) or ID_mask.png (class numbers). IDs are file names, numbered if not unique.
Unusable cubes are listed in data_report.json.
"""

import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import h5py
import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file

from core.args import ArgumentParser, non_negative_int, script, share
from core.console import make_console, progress
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct_names, whole_file
from core.results import write_csv
from core.seeding import sample_rng
from core.validation import DataReport
from hsi.files import BadCube, Cube, foreground, read_cube, read_cubes, report_bad
from hsi.mae_spectral import MAESpectral
from hsi.metrics import measure
from hsi.plots import Shown, write_figures
from hsi.probe import ProbeModel, mask_picture
from hsi.wavelengths import parse_wavelengths

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5", ".mat")  # .mat: MATLAB 7.3 writes HDF5
RECONSTRUCTION = "_reconstruction.h5"


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", help="input cubes: HDF5 files or folders")
    source.add_argument("--csv_file", type=Path, help="table of input cubes, as for training; all splits")
    add("--output", type=Path, default=Path("features"), help="output folder")
    add("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    add("--wavelengths", type=parse_wavelengths, metavar="LIST", help="wavelengths in nm (default: as in training)")
    add("--probe", type=Path, help="model folder of a probe, best/ of probe.py: predict labels or masks")
    add("--reconstruct", action="store_true", help="reconstruct each cube from a masked copy")
    add("--mask_ratio", type=share, help="share of hidden tokens for --reconstruct (default: as in training)")
    add("--seed", type=non_negative_int, default=0, help="random seed of the masks")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console, device, report = make_console(), make_accelerator().device, DataReport()
    loaded = model, config, probe = load(args, device)
    if args.reconstruct and not config["model"]["mask_ratio"]:
        raise UserError("--mask_ratio 0 hides nothing that could be reconstructed; give a share above 0")
    args.h5_key, files = args.h5_key or config["h5_key"], find_files(args.input or ())
    with report.written_to(args.output / "data_report.json"):
        cubes = files or [cube for part in read_cubes(args.csv_file, report).values() for cube in part]
        rows, answers = predict(loaded, cubes, args, report, console)
    report.print(console, args.output / "data_report.json")
    width = len(rows[0]) - 3
    write_csv(args.output / "features.csv", ["ID", "file", "label", *(f"f{i}" for i in range(width))], rows)
    if answers:
        header = ["ID", "file", "predicted", *(f"p_{name}" for name in probe.taught.values())]
        write_csv(args.output / "predictions.csv", header, answers)
    if args.reconstruct and model.norm_pix_loss:
        console.print("norm_pix_loss: mean and SD of hidden tokens are the true ones, which are inputs of the model")
    console.print(f"{len(rows)} of {len(cubes)} cubes done, results in {args.output}", style="bold")


def load(args, device: torch.device, img_size=None) -> tuple[MAESpectral, dict, ProbeModel | None]:
    """(model, config, model of `--probe` or None) for the bands of `args` and cubes of `img_size` (H, W).

    Raises UserError for a probe with other wavelengths.
    """
    model, config = MAESpectral.from_folder(args.checkpoint, img_size, args.wavelengths, mask_ratio=args.mask_ratio)
    if args.probe is None:
        return model.to(device), config, None
    probe, theirs = ProbeModel.from_folder(args.probe, model.img_size)
    if theirs["wavelengths"] != config["wavelengths"]:
        raise UserError(f"--probe {args.probe} was trained on other wavelengths: name its own with --wavelengths")
    return model.to(device), config, probe.to(device)


def find_files(paths: Iterable[Path]) -> list[Cube]:
    """Cubes in files and folders, with unique IDs. Raises UserError if there are none."""
    files = {}  # by resolved path, without duplicates
    for path in paths:
        if not path.exists():
            raise UserError(f"--input {path}: no such file or folder")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            ours = file.name.endswith(RECONSTRUCTION)  # output of an earlier call
            if file == path or (file.is_file() and file.suffix.lower() in SUFFIXES and not ours):
                files.setdefault(os.path.realpath(file), file)
    if paths and not files:
        raise UserError(f"no HDF5 file ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    names = distinct_names(file.stem for file in files.values())
    return [Cube(name, file, "", name, "") for name, file in zip(names, files.values(), strict=True)]


@torch.no_grad()
def predict(loaded: tuple, cubes: list[Cube], args, report: DataReport, console: Console) -> tuple[list, list]:
    """Rows of features.csv and predictions.csv; writes the files of each cube and adds unusable cubes to the `report`.
    `loaded`: of `load`. Raises UserError if no cube is usable."""
    model, config, probe = loaded
    names, rows, answers, failures = distinct_names(cube.id for cube in cubes), [], [], []
    args.output.mkdir(parents=True, exist_ok=True)
    with progress(console, "cubes", len(cubes)) as advance:
        for cube, name in zip(cubes, names, strict=True):
            try:
                pixels = read_fitting(cube, args.h5_key, config, report)
                if pixels.shape[1:] != model.img_size:
                    model, config, probe = load(args, model.mean.device, pixels.shape[1:])
                stem, batch = args.output / name, torch.from_numpy(pixels)[None].to(model.mean.device)
                rows.append([cube.id, cube.file, cube.label, *write_features(model, cube, batch, stem)])
                logits = probe(batch)[0].cpu() if probe else None
                if probe and probe.segment:
                    mask = mask_picture(logits.argmax(dim=0).numpy(), len(logits))
                    mask.save(stem.with_name(f"{stem.name}_mask.png"))
                elif probe:
                    every = logits.softmax(dim=0).tolist()
                    taught = {name: every[k] for k, name in probe.taught.items()}
                    answers.append([cube.id, cube.file, max(taught, key=taught.get), *taught.values()])
                if args.reconstruct:
                    write_reconstruction(model, config, cube, batch, stem, args)
            except BadCube as error:
                report_bad(report, cube, error.reason)
                failures.append(error)
            advance()
    report.cases = {"cubes": len(rows)}
    if not rows:
        raise UserError(f"none of {len(cubes)} cubes could be used: {failures[0]}")
    return rows, answers


def read_fitting(cube: Cube, key: str, config: dict, report: DataReport) -> np.ndarray:
    """Values (C, H, W) of a cube for the model; a different range than in training is added to the `report`.

    Raises BadCube like `read_cube`, for another number of bands, a size that is no multiple of the patch, and a cube
    without foreground.
    """
    pixels = read_cube(cube.file, key, len(config["wavelengths"]))
    patch, (height, width) = config["model"]["patch_size"][0], pixels.shape[1:]
    if height % patch or width % patch:
        sizes = f"patches of {patch} px do not divide {height}x{width} px"
        raise BadCube(cube.file, f"size does not fit: {sizes}; cut or pad it to a multiple of {patch}")
    if not foreground(pixels).any():
        raise BadCube(cube.file, "no foreground: no pixel is brighter than black; 0 should be black")
    high, usual = np.percentile(pixels[:, ::3, ::3], 99.9), config["statistics"]["high"]
    if not 0.1 < high / usual < 10:
        detail = f"up to {high:.3g}, in training up to {usual:.3g} {config['unit']}; is it the same unit?"
        report.add("values of another size than in training", f"{cube.id}, {cube.file}", "kept", detail)
    return pixels


def write_features(model: MAESpectral, cube: Cube, batch: torch.Tensor, stem: Path) -> np.ndarray:
    """Writes STEM.safetensors of a cube (1, C, H, W); returns the pooled features (D,). Raises BadCube if features are
    not finite."""
    features = model.encode(batch)
    if not features.grid.isfinite().all():
        raise BadCube(cube.file, f"features are not finite: values from {batch.min():.3g} to {batch.max():.3g}")
    tensors = {"pooled": features.pooled[0].cpu(), "grid": features.grid[0].cpu().contiguous()}
    with whole_file(stem.with_name(f"{stem.name}.safetensors")) as unfinished:
        save_file(tensors, unfinished)
    return tensors["pooled"].numpy()


def write_reconstruction(model: MAESpectral, config: dict, cube: Cube, batch: torch.Tensor, stem: Path, args) -> None:
    """Masks a cube (1, C, H, W); writes its reconstruction to STEM_reconstruction.h5, and figures to STEM_figures/.

    The mask depends on the file name and --seed only.
    """
    rng = sample_rng(args.seed, 0, zlib.crc32(cube.file.name.encode()))
    noise = torch.from_numpy(rng.random((1, model.n_noise), dtype=np.float32))
    pixels = batch[0].cpu().numpy()
    inside = foreground(pixels)
    result, hidden = model.assemble(model(batch, noise.to(batch.device)), batch)
    arrays = result[0].cpu().numpy(), hidden[0].cpu().numpy()
    with whole_file(stem.with_name(stem.name + RECONSTRUCTION)) as unfinished, h5py.File(unfinished, "w") as store:
        for key, values in zip((args.h5_key, "hidden"), arrays, strict=True):
            store.create_dataset(key, data=values)
    statistics, place = config["statistics"], torch.from_numpy(inside)[None].to(batch.device)
    measured = measure(result, batch, hidden, place, statistics["high"] - statistics["low"])
    curves = {stem.name: measured["masked_mse_by_band"][0].cpu().numpy()}
    shown = Shown(stem.name, pixels, *arrays, inside, cube.rgb_file)
    write_figures(stem.with_name(f"{stem.name}_figures"), [shown], curves, config["wavelengths"], config["unit"])


if __name__ == "__main__":
    script(main)
