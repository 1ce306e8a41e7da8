"""Evaluates a masked autoencoder on held-out cubes: reconstruction errors with intervals, beside two baselines.

    python hyperspectral/evaluate.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --split test

Every cube is masked in several fixed ways. Errors are in the cubes' own units, of the foreground alone. Writes
metrics.json, predictions.csv (one row a cube), data_report.json, figures/ and report.html to --output.
"""

import csv
import json
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

from core.args import ArgumentParser, non_negative_int, positive_int, script, share
from core.cases import Cases
from core.console import make_console, progress
from core.devices import make_accelerator
from core.environment import environment
from core.report import Report
from core.results import evaluation_folder, plain
from core.uncertainty import bootstrap
from core.validation import DataReport
from hsi.baselines import interpolate, mean_spectrum
from hsi.dataset import CubeDataset
from hsi.files import SPLITS, inspect, leave_out, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.metrics import measure
from hsi.plots import Shown, write_figures
from hsi.statistics import unusable_cubes

MODEL, INTERPOLATION, MEAN = METHODS = ("model", "interpolation", "mean spectrum")
METRICS = {  # name -> title, digits
    "mse": ("MSE", "{:.3g}"),
    "psnr": ("PSNR [dB]", "{:.2f}"),
    "sam": ("SAM [°]", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "band_mean": ("MSE of the band mean", "{:.3g}"),
}
SCOPES = {"masked": "Hidden voxels", "all": "All voxels, visible ones as they were given"}


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best/ of a training run")
    parser.add_argument("--csv_file", type=Path, required=True, help="table of the cubes; its paths start there")
    parser.add_argument("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which cubes")
    parser.add_argument("--mask_seeds", type=positive_int, default=4, metavar="N", help="ways to mask each cube")
    parser.add_argument("--mask_ratio", type=share, help="share of the tokens that is hidden (default: as in training)")
    parser.add_argument("--nb_to_plot", type=positive_int, default=4, help="cubes in the pictures")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<split> beside best/)")
    parser.add_argument("--batch_size", type=positive_int, default=2, help="cubes a process and step")
    parser.add_argument("--num_workers", type=non_negative_int, default=2, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of masks and bootstrap")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    masking = {} if args.mask_ratio is None else {"mask_ratio": args.mask_ratio}
    model, config = MAESpectral.from_folder(args.checkpoint, **masking)
    args.output = args.output or evaluation_folder(args.checkpoint, f"evaluation_{args.split}")
    key = args.h5_key or config["h5_key"]

    splits, data_report = read_cubes(args.csv_file, *config["split_fractions"])
    splits = {args.split: splits[args.split]}
    splits = inspect(splits, key, len(config["wavelengths"]), model.img_size, data_report)
    splits = leave_out(
        splits, unusable_cubes(splits, key, max(1, args.num_workers), console), data_report, needed=(args.split,)
    )
    dataset = CubeDataset(splits[args.split], key, model.n_noise)
    table, shown = predict_all(accelerator, console, model, config, dataset, args)
    if accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        metrics = summarise(table, dataset, config, args)
        metrics["environment"] = environment(accelerator)
        (args.output / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")
        write_predictions(table, dataset, args.output / "predictions.csv")
        data_report.write(args.output / "data_report.json")
        write_report(metrics, table, dataset, shown, args, data_report)
        data_report.print(console, args.output / "data_report.json")
        print_summary(metrics, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


@torch.no_grad()
def predict_all(
    accelerator: Accelerator, console: Console, model: MAESpectral, config: dict, dataset: CubeDataset, args
) -> tuple[dict[str, np.ndarray], list[Shown]]:
    """(table, shown): `method/scope_metric` -> (N,) or (N, C), the mean over the masks; and the first few cubes."""
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
                for i in range(min(len(cube), args.nb_to_plot - len(shown)) if seed == args.seed else 0):
                    item = dataset.cubes[batch["index"][i]]
                    arrays = (x[i].cpu().numpy() for x in (cube, result, hidden, foreground))
                    shown.append(Shown(item.id, *arrays, item.rgb_file))
                advance()
        tables.append(cases.table())
    return {name: np.nanmean([table[name].numpy() for table in tables], axis=0) for name in tables[0]}, shown


def summarise(table: dict[str, np.ndarray], dataset: CubeDataset, config: dict, args) -> dict:
    """Everything of metrics.json but the machine: data, intervals of each method, errors by wavelength."""
    patients = [cube.patient for cube in dataset.cubes]
    statistics = config["statistics"]
    intervals = {}
    for name, values in table.items():
        if values.ndim == 1:
            intervals[name] = bootstrap(partial(_finite_mean, values), patients, args.bootstrap, seed=args.seed)
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
    return np.nanmean(np.where(np.isfinite(values[rows]), values[rows], np.nan))  # an error of 0 has an infinite PSNR


def write_predictions(table: dict[str, np.ndarray], dataset: CubeDataset, file: Path) -> None:
    """One row a cube: ID, patient, label, and every measure of every method."""
    names = [name for name, values in table.items() if values.ndim == 1]
    with open(file, "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["ID", "patient", "label", *(name.replace(" ", "_") for name in names)])
        for i, cube in enumerate(dataset.cubes):
            writer.writerow([cube.id, cube.patient, cube.label, *(f"{table[name][i]:.6g}" for name in names)])


def write_report(
    metrics: dict, table: dict[str, np.ndarray], dataset: CubeDataset, shown: list[Shown], args, data_report: DataReport
) -> None:
    """The page that a person reads: headline, table of methods, pictures, worst cubes."""
    unit, data, methods = metrics["unit"], metrics["data"], metrics["methods"]
    report = Report("Masked autoencoder of hyperspectral cubes", f"{args.checkpoint} on {args.csv_file}, {args.split}")
    mse = {method: methods[method]["masked_mse"] for method in METHODS}
    sam, ours = methods[MODEL]["masked_sam"], mse[MODEL]
    report.cards(
        [
            ("MSE of hidden voxels", f"{ours.estimate:.3g}", f"95 % interval {ours.low:.3g} to {ours.high:.3g}"),
            ("Interpolation", f"{mse[INTERPOLATION].estimate:.3g}", _times(mse[INTERPOLATION], ours)),
            ("Mean spectrum", f"{mse[MEAN].estimate:.3g}", _times(mse[MEAN], ours)),
            ("Spectral angle", f"{sam.estimate:.2f}°", f"95 % interval {sam.low:.2f} to {sam.high:.2f}"),
            ("Cubes", str(data["cubes"]), f"{data['patients']} patients; {data['masks_a_cube']} masks each"),
        ]
    )
    report.text(
        f"{100 * data['mask_ratio']:.0f} % of the tokens are hidden. MSE in {unit}², of the foreground (pixels "
        "brighter than a tenth of the cube's bright ones); PSNR and SSIM for the data range of the training split, "
        f"{metrics['data_range']:.3g} {unit}. SAM of hidden voxels is the angle over a pixel's hidden bands. "
        f"Intervals: bootstrap over patients, {args.bootstrap} resamples. The mean spectrum is that of the training "
        "split; the interpolation sees the visible voxels, and the training split's mean and SD of each band.",
        note=True,
    )
    if metrics["norm_pix_loss"]:
        report.text(
            "This model was trained with norm_pix_loss: it predicts tokens relative to their mean and standard "
            "deviation, which were given to it here. Its errors cannot be compared with those of the baselines."
        )
    for scope, title in SCOPES.items():
        report.section(title, "Mean over the cubes, with its 95 % interval.")
        rows = []
        for name, (heading, form) in METRICS.items():
            cells = [methods[method][f"{scope}_{name}"] for method in METHODS]
            texts = [f"{form.format(c.estimate)} ({form.format(c.low)} to {form.format(c.high)})" for c in cells]
            rows.append([heading, *texts])
        report.table(["", *METHODS], rows)

    report.section("Pictures", "The first cubes of the split, under their first mask.")
    pictures = write_figures(
        args.output / "figures", shown, metrics["masked_mse_by_wavelength"], metrics["wavelengths"], unit
    )
    for picture in pictures:
        report.figures([picture])

    report.section("Worst cubes")
    errors = table[f"{MODEL}/masked_mse"]
    rows = []
    for i in np.argsort(-errors)[:5]:
        cube, angle, ssim = dataset.cubes[i], table[f"{MODEL}/masked_sam"][i], table[f"{MODEL}/masked_ssim"][i]
        others = [f"{table[f'{method}/masked_mse'][i]:.3g}" for method in METHODS[1:]]
        rows.append([cube.id, cube.patient, cube.label, f"{errors[i]:.3g}", *others, f"{angle:.2f}", f"{ssim:.3f}"])
    report.table(["cube", "patient", "label", *(f"MSE, {method}" for method in METHODS), "SAM [°]", "SSIM"], rows)

    if data_report.problems:
        report.section("Data")
        rows = [[reason, action, count] for (reason, action), count in data_report.counts().items()]
        report.table(["problem", "what was done", "count"], rows)
    report.section("Machine")
    report.details("Software and machine", json.dumps(metrics["environment"], indent=1))
    report.text("For research. Not a medical device.", note=True)
    report.write(args.output / "report.html")


def print_summary(metrics: dict, console: Console) -> None:
    """The headline on the terminal."""
    columns = {name: heading for name, (heading, _) in METRICS.items() if name != "band_mean"}
    table = Table("hidden voxels", *columns.values(), box=None)
    for method, values in metrics["methods"].items():
        table.add_row(method, *[METRICS[name][1].format(values[f"masked_{name}"].estimate) for name in columns])
    console.print(table, crop=False)


def _times(other, ours) -> str:
    return f"{other.estimate / ours.estimate:.2f} × the model's; {other.low:.3g} to {other.high:.3g}"


if __name__ == "__main__":
    script(main)
