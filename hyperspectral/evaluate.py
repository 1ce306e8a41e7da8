"""Evaluates a masked autoencoder on held-out cubes: reconstruction errors with confidence intervals, and two baselines.

    python hyperspectral/evaluate.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --split test

Each cube is evaluated with several fixed masks. Errors are in the cubes' units, over the foreground. Writes
metrics.json, predictions.csv (one row per cube), data_report.json, figures/ and report.html to --output.
"""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from core.args import ArgumentParser, add_evaluation_arguments, positive_int, script, share
from core.cases import Cases
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.report import Report
from core.results import card, close, evaluation_folder, number, span, with_span, write_csv, write_json
from core.uncertainty import bootstrap
from core.validation import DataReport
from hsi.baselines import interpolate, mean_spectrum
from hsi.dataset import CubeDataset
from hsi.files import SPLITS, inspect, leave_out, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.metrics import measure
from hsi.plots import Shown, shown_of, write_figures
from hsi.statistics import measure_all, unusable

MODEL, INTERPOLATION, MEAN = METHODS = ("model", "interpolation", "mean spectrum")
METRICS = {  # name -> title, digits
    "mse": ("MSE", "{:.3g}"),
    "psnr": ("PSNR [dB]", "{:.2f}"),
    "sam": ("SAM [°]", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "band_mean": ("MSE of the band mean", "{:.3g}"),
}
SCOPES = {"masked": "Hidden voxels", "all": "All voxels, visible ones as in the input"}


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    parser.add_argument("--csv_file", type=Path, required=True, help="table of the cubes; paths relative to it")
    parser.add_argument("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="split to evaluate")
    parser.add_argument("--mask_seeds", type=positive_int, default=4, metavar="N", help="number of masks per cube")
    parser.add_argument("--mask_ratio", type=share, help="share of hidden tokens (default: as in training)")
    parser.add_argument("--nb_to_plot", type=positive_int, default=4, help="number of cubes in the figures")
    seed = "the masks and the bootstrap"
    add_evaluation_arguments(parser, output="evaluation_<split>", batch_size=2, per="cubes", seed=seed)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    model, config = MAESpectral.from_folder(args.checkpoint, mask_ratio=args.mask_ratio)
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.split}")
    key, data_report = args.h5_key or config["h5_key"], DataReport()
    with data_report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        splits = read_cubes(args.csv_file, data_report, *config["split_fractions"])
        splits = inspect({args.split: splits[args.split]}, key, len(config["wavelengths"]), model.img_size, data_report)
        measured = measure_all(splits, key, max(1, args.num_workers), console, accelerator)
        splits = leave_out(splits, unusable(measured), data_report, needed=(args.split,))
    dataset = CubeDataset(splits[args.split], key, model.n_noise)
    table, shown = predict_all(accelerator, console, model, config, dataset, args)
    if accelerator.is_main_process:
        metrics = summarise(table, dataset, config, args)
        metrics["environment"] = environment(accelerator)
        write_json(args.output / "metrics.json", metrics)
        columns = {name.replace(" ", "_"): values for name, values in table.items() if values.ndim == 1}
        rows = ([cube.id, cube.patient, cube.label, *(f"{values[i]:.6g}" for values in columns.values())]
                for i, cube in enumerate(dataset.cubes))  # fmt: skip
        write_csv(args.output / "predictions.csv", ["ID", "patient", "label", *columns], rows)
        write_report(metrics, table, dataset, shown, args, data_report)
        data_report.print(console, args.output / "data_report.json")
        print_summary(metrics, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


@torch.no_grad()
def predict_all(
    accelerator: Accelerator, console: Console, model: MAESpectral, config: dict, dataset: CubeDataset, args
) -> tuple[dict[str, np.ndarray], list[Shown]]:
    """(table, shown): `method/scope_metric` -> (N,) or (N, C), mean over the masks; and the first cubes for figures."""
    statistics, device = config["statistics"], accelerator.device
    mean, std = (torch.tensor(statistics[name], device=device) for name in ("mean", "std"))
    plain_model, patch_size, shown, tables = model.to(device), config["model"]["patch_size"], [], []
    model = accelerator.prepare(model)
    for seed in range(args.seed, args.seed + args.mask_seeds):
        dataset.mask_seed = seed
        loader = accelerator.prepare(DataLoader(dataset, args.batch_size, num_workers=args.num_workers))
        cases = Cases(accelerator, len(dataset))
        with progress(console, f"masks {seed - args.seed + 1}/{args.mask_seeds}", len(loader)) as advance:
            for batch in loader:
                cube, foreground = batch["cube"], batch["foreground"]
                result, hidden = plain_model.assemble(model(cube, batch["noise"]), cube)
                results = {
                    MODEL: result,
                    INTERPOLATION: interpolate(cube, hidden, foreground, mean, std, patch_size),
                    MEAN: mean_spectrum(cube, hidden, mean),
                }
                columns = {}
                for method, made in results.items():
                    measured = measure(made, cube, hidden, foreground, statistics["high"] - statistics["low"])
                    columns |= {f"{method}/{name}": value for name, value in measured.items()}
                cases.add(batch["index"], **columns)
                if seed == args.seed:
                    shown += shown_of(dataset.cubes, batch, result, hidden, args.nb_to_plot - len(shown))
                advance()
        tables.append(cases.table())
    return {name: np.nanmean([table[name].numpy() for table in tables], axis=0) for name in tables[0]}, shown


def summarise(table: dict[str, np.ndarray], dataset: CubeDataset, config: dict, args) -> dict:
    """Content of metrics.json without the machine: data, intervals by method, errors by wavelength."""
    patients = [cube.patient for cube in dataset.cubes]
    statistics = config["statistics"]
    intervals = {
        name: bootstrap(partial(_finite_mean, values), patients, args.bootstrap, seed=args.seed)
        for name, values in table.items() if values.ndim == 1
    }  # fmt: skip
    return {
        "data": {
            "csv_file": args.csv_file,
            "split": args.split,
            "cubes": len(patients),
            "patients": len(set(patients)),
            "masks_a_cube": args.mask_seeds,
            "mask_ratio": config["model"]["mask_ratio"],
        },
        "unit": config["unit"],
        "data_range": statistics["high"] - statistics["low"],
        "methods": {m: {k.split("/")[1]: v for k, v in intervals.items() if k.startswith(f"{m}/")} for m in METHODS},
        "wavelengths": config["wavelengths"],
        "masked_mse_by_wavelength": {m: np.nanmean(table[f"{m}/masked_mse_by_band"], axis=0) for m in METHODS},
        "norm_pix_loss": config["model"]["norm_pix_loss"],
        "checkpoint": args.checkpoint,
    }


def _finite_mean(values: np.ndarray, rows: np.ndarray) -> float:
    return np.nanmean(np.where(np.isfinite(values[rows]), values[rows], np.nan))  # PSNR is infinite for an error of 0


def write_report(
    metrics: dict, table: dict[str, np.ndarray], dataset: CubeDataset, shown: list[Shown], args, data_report: DataReport
) -> None:
    """Writes report.html: headline metrics, table of methods, figures, worst cubes."""
    unit, data, methods = metrics["unit"], metrics["data"], metrics["methods"]
    report = Report("Masked autoencoder of hyperspectral cubes", f"{args.checkpoint} on {args.csv_file}, {args.split}")
    mse = {method: methods[method]["masked_mse"] for method in METHODS}
    ours = mse[MODEL]
    report.cards(
        [
            card("MSE of hidden voxels", ours, "{:.3g}"),
            ("Interpolation", number(mse[INTERPOLATION].estimate, "{:.3g}"), _times(mse[INTERPOLATION], ours)),
            ("Mean spectrum", number(mse[MEAN].estimate, "{:.3g}"), _times(mse[MEAN], ours)),
            card("Spectral angle", methods[MODEL]["masked_sam"], unit="°"),
            ("Cubes", str(data["cubes"]), f"{data['patients']} patients; {data['masks_a_cube']} masks each"),
        ]
    )
    report.text(
        f"{100 * data['mask_ratio']:.0f} % of the tokens are hidden. MSE in {unit}², of the foreground (pixels "
        "brighter than 10 % of the cube's bright pixels); PSNR and SSIM for the data range of the training split, "
        f"{metrics['data_range']:.3g} {unit}. SAM of hidden voxels is the angle over a pixel's hidden bands. "
        f"Intervals: bootstrap over patients, {args.bootstrap} resamples. The mean spectrum is that of the training "
        "split; the interpolation uses the visible voxels, and the training split's mean and SD of each band.",
        note=True,
    )
    if metrics["norm_pix_loss"]:
        report.text(
            "This model was trained with norm_pix_loss: it predicts tokens relative to their true mean and standard "
            "deviation, which are inputs here. Its errors cannot be compared with those of the baselines."
        )
    for scope, title in SCOPES.items():
        report.section(title, "Mean over the cubes with 95 % interval.")
        rows = [
            [heading, *(with_span(methods[method][f"{scope}_{name}"], form) for method in METHODS)]
            for name, (heading, form) in METRICS.items()
        ]
        report.table(["", *METHODS], rows)

    report.section("Figures", "The first cubes of the split, with their first mask.")
    curves = metrics["masked_mse_by_wavelength"]
    for picture in write_figures(args.output / "figures", shown, curves, metrics["wavelengths"], unit):
        report.figures([picture])

    report.section("Worst cubes")
    errors = table[f"{MODEL}/masked_mse"]
    rows = []
    for i in np.argsort(-errors)[:5]:
        cube, angle, ssim = dataset.cubes[i], table[f"{MODEL}/masked_sam"][i], table[f"{MODEL}/masked_ssim"][i]
        others = [f"{table[f'{method}/masked_mse'][i]:.3g}" for method in METHODS[1:]]
        rows.append([cube.id, cube.patient, cube.label, f"{errors[i]:.3g}", *others, f"{angle:.2f}", f"{ssim:.3f}"])
    report.table(["cube", "patient", "label", *(f"MSE, {method}" for method in METHODS), "SAM [°]", "SSIM"], rows)
    close(report, args.output / "report.html", metrics["environment"], data_report.counts())


def print_summary(metrics: dict, console: Console) -> None:
    """Prints the errors of hidden voxels by method."""
    columns = {name: heading for name, (heading, _) in METRICS.items() if name != "band_mean"}
    table = Table("hidden voxels", *columns.values(), box=None)
    for method, values in metrics["methods"].items():
        table.add_row(method, *[number(values[f"masked_{name}"].estimate, METRICS[name][1]) for name in columns])
    console.print(table, crop=False)


def _times(other, ours) -> str:
    return f"{other.estimate / ours.estimate:.2f} × the model's; {span(other, '{:.3g}')}"


if __name__ == "__main__":
    script(main)
