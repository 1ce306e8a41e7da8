"""Trains a masked autoencoder on hyperspectral cubes: four in five tokens are hidden, and predicted from the rest.

    accelerate launch hyperspectral/train.py --csv_file DATA.csv --model mae_medium --batch_size 6
    python hyperspectral/train.py --csv_file DATA.csv --resume                    # go on after an interruption

Cubes are HDF5 files (bands, rows, columns) that a CSV lists; `cubes.py stats` measures them first, or this does.
Results in --save_dir: best/ (the model), last/ (for --resume), metrics.jsonl, data_report.json, figures/ (after every
validation). Then: evaluate.py, predict.py, probe.py.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import (
    ArgumentParser,
    add_training_arguments,
    non_negative,
    non_negative_int,
    positive,
    positive_int,
    script,
    share,
)
from core.cases import Cases
from core.results import plain
from core.run import Run
from core.schedules import parameter_groups
from hsi.dataset import CubeDataset
from hsi.files import add_data_arguments, inspect, leave_out, read_cubes
from hsi.loss import LOSS_ON, MAESpectralLoss
from hsi.mae_spectral import DECODERS, VARIANTS, MAESpectral
from hsi.metrics import measure
from hsi.plots import Shown, write_figures
from hsi.statistics import compute_statistics, matching_statistics, statistics_file

SHOWN = ("mse", "psnr", "sam", "ssim")  # of the hidden voxels, after each validation
BETAS = (0.9, 0.95)  # He et al. 2022: a shorter memory than usual, because masks make gradients noisy


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    add_data_arguments(group)
    group.add_argument("--unit", default="reflectance", help="of the values, for figures and reports")
    group.add_argument("--stats_file", type=Path, help="of cubes.py stats (default: DATA_stats.json beside the CSV)")
    group.add_argument("--transform_type", choices=("augment_basic", "none"), default="augment_basic",
                       help="flips, turns by 90°, a little noise, brightness and spectral jitter")  # fmt: skip
    group.add_argument("--normalize", action=argparse.BooleanOptionalAction, default=True, help="bands to mean 0, SD 1")
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=tuple(VARIANTS), default="mae_medium", help="sets the six sizes below")
    for name in VARIANTS["mae_medium"]:
        group.add_argument(f"--{name}", type=positive_int, help="in place of that of --model")
    group.add_argument("--img_size", type=positive_int, nargs="+", default=[500], metavar="PX", help="side, or H W")
    group.add_argument(
        "--patch_size", type=positive_int, nargs=2, default=(25, 5), metavar=("PX", "BANDS"), help="token"
    )
    group.add_argument("--mask_ratio", type=share, default=0.8, help="share of the tokens that is hidden")
    group.add_argument("--decoder", choices=DECODERS, default="full", help="cross: cheaper, from visible tokens alone")
    group.add_argument("--decode_ratio", type=share, default=0.25, help="share of the columns that cross decodes")
    group.add_argument("--init_from", type=Path, metavar="FOLDER", help="weights and sizes of another run's best/")
    group = parser.add_argument_group("loss")
    for name, weight in (("mse", 1.0), ("sam", 0.1), ("variance", 0.01), ("range_penalty", 0.001)):
        group.add_argument(
            f"--{name}_weight", type=non_negative, default=weight, help="in the sum; see MAESpectralLoss"
        )
    group.add_argument("--loss_on", choices=LOSS_ON, default="masked", help="which tokens")
    group.add_argument("--norm_pix_loss", action="store_true", help="targets relative to their own token's mean and SD")
    group = parser.add_argument_group("validation and pictures")
    group.add_argument("--valid_interval", type=positive_int, default=5, help="epochs between validations")
    group.add_argument("--nb_to_plot", type=positive_int, default=4, help="cubes in the pictures")
    group.add_argument(
        "--load_rgb", action=argparse.BooleanOptionalAction, default=True, help="show the RGB files, too"
    )
    group.add_argument("--save_format", choices=("png", "jpg"), default="png", help="of the pictures")
    group.add_argument("--dpi", type=positive_int, default=150, help="of the pictures")
    group = parser.add_argument_group("looking for mistakes")
    group.add_argument("--print_config", action="store_true", help="print all arguments as they will be, and stop")
    group.add_argument("--overfit_batches", type=non_negative_int, default=0, metavar="N",
                       help="train and validate on N batches alone, always with the same tokens hidden")  # fmt: skip
    group.add_argument("--debug", action="store_true", help="no workers, anomaly detection, every batch's losses")
    group = parser.add_argument_group("learning rate")
    group.add_argument(
        "--base_lr", type=positive, default=1.5e-4, help="of a global batch of 256; used where --lr is not"
    )
    add_training_arguments(
        parser, epochs=200, batch_size=6, lr=None, warmup_epochs=20, weight_decay=0.05, num_workers=8
    )
    args = parser.parse_args(argv)
    for name, value in VARIANTS[args.model].items():
        setattr(args, name, getattr(args, name) or value)
    if len(args.img_size) > 2:
        parser.error(f"--img_size takes one number or two, not {len(args.img_size)}")
    args.img_size = (args.img_size * 2)[:2]
    if args.overfit_batches < 0:
        parser.error("--overfit_batches must not be negative")
    if args.lr is None:  # the linear rule of He et al. 2022
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        args.lr = args.base_lr * args.batch_size * processes * args.accumulate_grad_batches / 256
    if args.debug:
        args.num_workers = 0
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.print_config:
        print(json.dumps(plain(vars(args)), indent=1))
        return
    torch.autograd.set_detect_anomaly(args.debug)
    run = Run(args, "hyperspectral")
    model = make_model(args)
    splits, statistics = read_data(run, args)

    train_cubes, val_cubes = splits["train"], splits["valid"]
    if args.overfit_batches:
        n = args.overfit_batches * args.batch_size * run.accelerator.num_processes
        train_cubes = val_cubes = train_cubes[:n]
    train_set = CubeDataset(
        train_cubes,
        args.h5_key,
        model.n_noise,
        statistics,
        augment=args.transform_type != "none" and not args.overfit_batches,
        seed=args.seed,
        mask_seed=args.seed if args.overfit_batches else None,
    )
    val_set = CubeDataset(val_cubes, args.h5_key, model.n_noise, statistics, mask_seed=args.seed)
    if args.normalize:
        model.set_statistics(statistics.mean, statistics.std)
    weights = {name: getattr(args, name) for name in vars(args) if name.endswith("_weight")}
    criterion = MAESpectralLoss(
        model.mean, model.std, statistics.low, statistics.high, **weights,
        loss_on=args.loss_on, norm_pix_loss=model.norm_pix_loss,
    ).to(run.accelerator.device)  # fmt: skip
    config = {
        "project": "hyperspectral",
        "variant": args.model,
        "model": model.arguments,
        "wavelengths": list(args.wavelengths),
        "h5_key": args.h5_key,
        "unit": args.unit,
        "statistics": {name: getattr(statistics, name) for name in ("mean", "std", "low", "high")},
        "split_fractions": (args.valid_fraction, args.test_fraction),
    }
    groups = parameter_groups(model, args.lr, args.weight_decay)
    train_loader, val_loader = run.prepare(
        model,
        [group | {"betas": BETAS} for group in groups],
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor="loss",
    )
    for epoch in run.epochs():
        for batch in run.batches(train_loader):
            prediction = run.model(batch["cube"], batch["noise"])
            loss, parts = criterion(prediction, batch["foreground"])
            run.step(loss, parts)
            if args.debug:
                run.console.print(f"{batch['id']}: " + ", ".join(f"{name} {part:.4g}" for name, part in parts.items()))
        validated = (epoch + 1) % args.valid_interval == 0 or epoch + 1 == args.epochs
        if run.end_epoch(validate(run, val_loader, criterion, statistics, args) if validated else None):
            break
    run.finish()


def make_model(args) -> MAESpectral:
    """The model that the arguments ask for, from random weights or those of `--init_from`."""
    masking = {"mask_ratio": args.mask_ratio, "decode_ratio": args.decode_ratio}
    if args.init_from:
        model, _ = MAESpectral.from_folder(args.init_from, args.img_size, args.wavelengths, **masking)
        return model
    sizes = {name: getattr(args, name) for name in VARIANTS[args.model]}
    return MAESpectral(
        args.img_size, args.patch_size, len(args.wavelengths), **sizes, **masking,
        decoder=args.decoder, norm_pix_loss=args.norm_pix_loss,
    )  # fmt: skip


def read_data(run: Run, args):
    """Usable cubes by split, and the statistics of train; all problems are printed and in data_report.json."""
    file = args.stats_file or statistics_file(args.csv_file)
    with run.accelerator.main_process_first():  # the others find what the first has measured
        splits, report = read_cubes(args.csv_file, args.valid_fraction, args.test_fraction)
        if file.exists() or args.stats_file:
            statistics = matching_statistics(file, splits, args.h5_key)
        else:
            run.console.print(f"{file} is not there: measuring all cubes once")
            statistics = compute_statistics(splits, args.h5_key, max(1, args.num_workers), run.console)
            if run.is_main:
                statistics.save(file)
    splits = inspect(splits, args.h5_key, len(args.wavelengths), args.img_size, report)
    splits = leave_out(splits, statistics.unusable, report, needed=("train", "valid"))
    report.print(run.console, run.folder / "data_report.json")
    if run.is_main:
        report.write(run.folder / "data_report.json")
    return splits, statistics


@torch.no_grad()
def validate(run: Run, loader, criterion: MAESpectralLoss, statistics, args) -> dict[str, float]:
    """Loss and, for hidden voxels, MSE, PSNR, SAM and SSIM in the cubes' units, each cube once; draws the pictures."""
    run.model.eval()
    model = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    cases, shown, curves = Cases(run.accelerator, len(loader.dataset)), [], []
    for batch in run.batches(loader):
        cube, foreground = batch["cube"], batch["foreground"]
        prediction = run.model(cube, batch["noise"])
        # Cube by cube: the last batch may hold some twice, which `Cases` leaves out.
        each = [{name: x[i : i + 1] for name, x in prediction.items()} for i in range(len(cube))]
        losses = [criterion(one, inside[None])[0] for one, inside in zip(each, foreground, strict=True)]
        result, hidden = model.assemble(prediction, cube)
        measured = measure(result, cube, hidden, foreground, statistics.high - statistics.low)
        metrics = {name: measured[f"masked_{name}"] for name in (*SHOWN, "mse_by_band")}
        cases.add(batch["index"], loss=torch.stack(losses), **metrics)
        for i in range(min(len(cube), args.nb_to_plot - len(shown))):
            item = loader.dataset.cubes[batch["index"][i]]
            shown.append(Shown(item.id, *(x[i].cpu().numpy() for x in (cube, result, hidden, foreground)),
                               item.rgb_file if args.load_rgb else None))  # fmt: skip
    table = cases.table()
    if run.is_main:
        folder = run.folder / "figures" / f"epoch_{run.epoch + 1:04d}"
        curves = {"model": table["mse_by_band"].nanmean(dim=0).numpy()}
        pictures = write_figures(folder, shown, curves, args.wavelengths, args.unit, args.save_format, args.dpi)
        for file, _ in pictures:
            run.show(file)
    return {name: float(table[name].nanmean()) for name in ("loss", *SHOWN)}


if __name__ == "__main__":
    script(main)
