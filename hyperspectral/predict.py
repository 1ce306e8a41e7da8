"""Features of your own cubes from a trained encoder, and what the model makes of them when they are masked.

    python hyperspectral/predict.py --checkpoint runs/hyperspectral/best --input CUBES --output features
    python hyperspectral/predict.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --reconstruct
    python hyperspectral/predict.py --checkpoint BEST --input CUBES --probe runs/hyperspectral_probe/best

Nothing is hidden for the features. Cubes may differ in size from each other and from those of the training, and may
have other bands if --wavelengths names them. Writes to --output features.csv (a row a cube: ID, file, label, the D
pooled features), ID.safetensors (`pooled` (D,) and `grid` (S, h, w, D): spectral groups, rows, columns), and with
--reconstruct ID_reconstruction.h5 (the cube, and `hidden`: which voxels were predicted) and pictures in ID_figures/.
With --probe also what its head says: predictions.csv (a probability for each label), or ID_mask.png (class numbers).
The ID of a file is its name; a second one of that name becomes NAME_2. What cannot be used is listed in
data_report.json.
"""

import csv
import os
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from core.args import ArgumentParser, non_negative_int, script, share
from core.console import make_console, progress
from core.devices import make_accelerator
from core.errors import UserError
from core.files import distinct_names, whole_file
from core.seeding import sample_rng
from core.validation import DataReport
from hsi.files import BadCube, Cube, foreground, read_cube, read_cubes, reason_of, report_bad
from hsi.mae_spectral import MAESpectral
from hsi.metrics import measure
from hsi.plots import Shown, write_figures
from hsi.probe import ProbeModel
from hsi.probe_report import mask_picture
from hsi.wavelengths import parse_wavelengths

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5", ".mat")  # .mat: MATLAB 7.3 writes HDF5
RECONSTRUCTION = "_reconstruction.h5"


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best/ of a training run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, nargs="+", help="HDF5 files, or folders of them")
    source.add_argument("--csv_file", type=Path, help="table of cubes, as for training; all splits")
    parser.add_argument("--output", type=Path, default=Path("features"), help="folder of results")
    parser.add_argument("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    parser.add_argument("--wavelengths", type=parse_wavelengths, metavar="LIST", help="nm (default: as in training)")
    parser.add_argument("--probe", type=Path, help="best/ of probe.py: also say the label, or draw the mask")
    parser.add_argument("--reconstruct", action="store_true", help="also mask each cube, and fill in what was hidden")
    parser.add_argument("--mask_ratio", type=share, help="with it, the share that is hidden (default: as in training)")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the masks")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console, device = make_console(), make_accelerator().device
    model, config = load(args, device)
    probe, classes = load_probe(args, config, device)
    if args.reconstruct and not config["model"]["mask_ratio"]:
        raise UserError("--mask_ratio 0 hides nothing that could be reconstructed; give a share above 0")
    args.h5_key = args.h5_key or config["h5_key"]
    cubes, report = find_cubes(args)
    names, rows, answers, failures = distinct_names(cube.id for cube in cubes), [], [], []
    args.output.mkdir(parents=True, exist_ok=True)
    with progress(console, "cubes", len(cubes)) as advance:
        for cube, name in zip(cubes, names, strict=True):
            try:
                pixels = read_fitting(cube, args.h5_key, config, report)
                if pixels.shape[1:] != model.img_size:
                    model, config = load(args, device, pixels.shape[1:])
                    probe, _ = load_probe(args, config, device, pixels.shape[1:])
                rows.append([cube.id, cube.file, cube.label, *write_features(model, cube, pixels, args.output / name)])
                if probe and probe.segment:
                    write_mask(probe, pixels, args.output / name)
                elif probe:
                    answers.append([cube.id, cube.file, *label(probe, classes, pixels)])
                if args.reconstruct:
                    write_reconstruction(model, config, cube, pixels, args.output / name, args)
            except BadCube as error:
                report_bad(report, cube, reason_of(error, cube.file))
                failures.append(error)
            advance()
    report.cases = {"cubes": len(rows)}
    report.write(args.output / "data_report.json")
    if not rows:
        raise UserError(f"none of {len(cubes)} cubes could be used: {failures[0]}")
    report.print(console, args.output / "data_report.json")
    write_table(
        args.output / "features.csv", ["ID", "file", "label", *(f"f{i}" for i in range(len(rows[0]) - 3))], rows
    )
    if answers:
        header = ["ID", "file", "predicted", *(f"p_{name}" for name in classes)]
        write_table(args.output / "predictions.csv", header, answers)
    if args.reconstruct and model.norm_pix_loss:
        console.print("norm_pix_loss: hidden tokens have the mean and SD of the true ones, which the model was given")
    console.print(f"{len(rows)} of {len(cubes)} cubes done, results in {args.output}", style="bold")


def load(args, device: torch.device, img_size: tuple[int, int] | None = None) -> tuple[MAESpectral, dict]:
    """(model, config) of the checkpoint, for the bands that the arguments name and this size of cubes."""
    masking = {} if args.mask_ratio is None else {"mask_ratio": args.mask_ratio}
    model, config = MAESpectral.from_folder(args.checkpoint, img_size, args.wavelengths, **masking)
    return model.to(device), config


def load_probe(
    args, config: dict, device: torch.device, img_size: tuple[int, int] | None = None
) -> tuple[ProbeModel | None, list[str]]:
    """(model of `--probe`, its classes), for this size of cubes; (None, []) where none is named.

    Raises UserError if it wants other bands than the encoder of `config`.
    """
    if args.probe is None:
        return None, []
    probe, theirs = ProbeModel.from_folder(args.probe, img_size or config["model"]["img_size"])
    if theirs["wavelengths"] != config["wavelengths"]:
        raise UserError(f"--probe {args.probe} was trained on other wavelengths: name its own with --wavelengths")
    return probe.to(device), theirs["classes"]


def find_cubes(args) -> tuple[list[Cube], DataReport]:
    """The cubes that the arguments name, each with an ID of its own. Raises UserError if there are none."""
    if args.csv_file:
        splits, report = read_cubes(args.csv_file)
        return [cube for part in splits.values() for cube in part], report
    files = {}  # by what they resolve to: a file that is named twice is one cube
    for path in args.input:
        if not path.exists():
            raise UserError(f"--input {path}: no such file or folder")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            ours = file.name.endswith(RECONSTRUCTION)  # of an earlier call, with its --output in this folder
            if file == path or (file.is_file() and file.suffix.lower() in SUFFIXES and not ours):
                files.setdefault(os.path.realpath(file), file)
    if not files:
        raise UserError(f"no HDF5 file ({', '.join(SUFFIXES)}) in {', '.join(map(str, args.input))}")
    names = distinct_names(file.stem for file in files.values())
    return [Cube(name, file, "", name, "") for name, file in zip(names, files.values(), strict=True)], DataReport()


def read_fitting(cube: Cube, key: str, config: dict, report: DataReport) -> np.ndarray:
    """The values (C, H, W) of a cube that the model can use; adds to the `report` if they are unlike the training's.

    Raises BadCube for what `read_cube` refuses, for another number of bands, a size that patches do not divide, and a
    cube without foreground.
    """
    pixels = read_cube(cube.file, key, len(config["wavelengths"]))
    patch, (height, width) = config["model"]["patch_size"][0], pixels.shape[1:]
    if height % patch or width % patch:
        sizes = f"patches of {patch} px do not divide {height}x{width} px"
        raise BadCube(f"{cube.file}: size does not fit: {sizes}; cut or pad it to a multiple of {patch}")
    if not foreground(pixels).any():
        raise BadCube(f"{cube.file}: no foreground: no pixel is brighter than black; 0 should be black")
    high, usual = np.percentile(pixels[:, ::3, ::3], 99.9), config["statistics"]["high"]
    if not 0.1 < high / usual < 10:
        detail = f"up to {high:.3g}, in training up to {usual:.3g} {config['unit']}; is it the same unit?"
        report.add("values of another size than in training", f"{cube.id}, {cube.file}", "kept", detail)
    return pixels


@torch.no_grad()
def write_features(model: MAESpectral, cube: Cube, pixels: np.ndarray, stem: Path) -> np.ndarray:
    """Writes STEM.safetensors; returns the pooled features (D,). Raises BadCube if they are not finite."""
    features = model.encode(torch.from_numpy(pixels)[None].to(model.mean.device))
    if not features.grid.isfinite().all():
        raise BadCube(f"{cube.file}: features are not finite: values from {pixels.min():.3g} to {pixels.max():.3g}")
    tensors = {"pooled": features.pooled[0].cpu(), "grid": features.grid[0].cpu().contiguous()}
    with whole_file(stem.with_name(f"{stem.name}.safetensors")) as unfinished:
        save_file(tensors, unfinished)
    return tensors["pooled"].numpy()


@torch.no_grad()
def label(probe: ProbeModel, classes: list[str], pixels: np.ndarray) -> list:
    """The likeliest class of a cube (C, H, W), and the probability of each."""
    probabilities = probe(torch.from_numpy(pixels)[None].to(probe.mae.mean.device))[0].softmax(dim=0).tolist()
    return [classes[int(np.argmax(probabilities))], *probabilities]


@torch.no_grad()
def write_mask(probe: ProbeModel, pixels: np.ndarray, stem: Path) -> None:
    """Writes the class of every pixel to STEM_mask.png."""
    logits = probe(torch.from_numpy(pixels)[None].to(probe.mae.mean.device))[0]
    mask_picture(logits.argmax(dim=0).cpu().numpy(), len(logits)).save(stem.with_name(f"{stem.name}_mask.png"))


@torch.no_grad()
def write_reconstruction(model: MAESpectral, config: dict, cube: Cube, pixels: np.ndarray, stem: Path, args) -> None:
    """Masks a cube; writes what the model makes of it to STEM_reconstruction.h5, and pictures to STEM_figures/.

    The mask follows the file's name and --seed, whatever else is in the call.
    """
    rng = sample_rng(args.seed, 0, zlib.crc32(cube.file.name.encode()))
    noise = torch.from_numpy(rng.random((1, model.n_noise), dtype=np.float32))
    batch, inside = torch.from_numpy(pixels)[None].to(model.mean.device), foreground(pixels)
    result, hidden = model.assemble(model(batch, noise.to(batch.device)), batch)
    arrays = result[0].cpu().numpy(), hidden[0].cpu().numpy()
    with (
        whole_file(stem.with_name(stem.name + RECONSTRUCTION)) as unfinished,
        h5py.File(unfinished, "w") as store,
    ):
        for key, values in zip((args.h5_key, "hidden"), arrays, strict=True):
            store.create_dataset(key, data=values)
    statistics, place = config["statistics"], torch.from_numpy(inside)[None].to(batch.device)
    measured = measure(result, batch, hidden, place, statistics["high"] - statistics["low"])
    curves = {stem.name: measured["masked_mse_by_band"][0].cpu().numpy()}
    shown = Shown(stem.name, pixels, *arrays, inside, cube.rgb_file)
    write_figures(stem.with_name(f"{stem.name}_figures"), [shown], curves, config["wavelengths"], config["unit"])


def write_table(file: Path, header: list[str], rows: list[list]) -> None:
    with whole_file(file) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    script(main)
