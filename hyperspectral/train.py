"""Trains a masked autoencoder on hyperspectral cubes: most tokens are masked and predicted from the visible ones.

    accelerate launch hyperspectral/train.py --csv_file DATA.csv --model mae_medium --batch_size 6
    python hyperspectral/train.py --csv_file DATA.csv --resume                    # resume after an interruption

Cubes are HDF5 files (bands, rows, columns) listed in a CSV; without statistics of `cubes.py stats`, they are computed
first. Writes to --save_dir: best/ (model), last/ (for --resume), metrics.jsonl, data_report.json and, after each
validation, figures/. Next: evaluate.py, predict.py, probe.py.
"""

import json
import os
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch
from accelerate.utils import broadcast_object_list

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
from core.validation import DataReport
from hsi.dataset import CubeDataset
from hsi.files import add_data_arguments, inspect, leave_out, read_cubes
from hsi.loss import LOSS_ON, MAESpectralLoss
from hsi.mae_spectral import DECODERS, IMG_SIZE, KIND, PATCH_SIZE, VARIANTS, MAESpectral
from hsi.metrics import measure
from hsi.plots import shown_of, write_figures
from hsi.statistics import compute_statistics, matching_statistics, statistics_file

SHOWN = ("mse", "psnr", "sam", "ssim")  # metrics of hidden voxels in the log
BETAS = (0.9, 0.95)  # He et al. 2022: shorter averages, as random masks make gradients noisy


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    add_data_arguments(group)
    add = group.add_argument
    add("--unit", default="reflectance", help="unit of the values, for figures and reports")
    add("--stats_file", type=Path, help="statistics, from cubes.py stats (default: DATA_stats.json beside the CSV)")
    text = "augmentation: flips, rotations by 90°, noise, brightness and spectral jitter"
    add("--transform_type", choices=("augment_basic", "none"), default="augment_basic", help=text)
    add("--normalize", action=BooleanOptionalAction, default=True, help="normalisation of bands to mean 0, SD 1")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=tuple(VARIANTS), default="mae_medium", help="variant: sets the six sizes below")
    for name in VARIANTS["mae_medium"]:
        text = name.replace("depth", "layers").replace("num_heads", "heads").replace("embed_dim", "width")
        add(f"--{name}", type=positive_int, help=f"{text.replace('_', ' ')} (default: that of --model)")
    add("--img_size", type=positive_int, nargs="+", default=[IMG_SIZE], metavar="PX", help="cube size: side, or H W")
    text = "token size: side in px, number of bands"
    add("--patch_size", type=positive_int, nargs=2, default=PATCH_SIZE, metavar=("PX", "BANDS"), help=text)
    add("--mask_ratio", type=share, default=0.8, help="share of hidden tokens")
    text = "decoder; cross = cross-attention to visible tokens, cheaper"
    add("--decoder", choices=DECODERS, default="full", help=text)
    add("--decode_ratio", type=share, default=0.25, help="share of columns decoded by --decoder cross")
    add("--init_from", type=Path, metavar="FOLDER", help="initial weights and sizes: best/ of another run")
    add = parser.add_argument_group("loss").add_argument
    for name, weight in (("mse", 1.0), ("sam", 0.1), ("variance", 0.01), ("range_penalty", 0.001)):
        text = f"weight of the term {name}; formulas in MAESpectralLoss"
        add(f"--{name}_weight", type=non_negative, default=weight, help=text)
    add("--loss_on", choices=LOSS_ON, default="masked", help="tokens that count in the loss")
    add("--norm_pix_loss", action="store_true", help="targets normalised by mean and SD of their token")
    add = parser.add_argument_group("validation and figures").add_argument
    add("--valid_interval", type=positive_int, default=5, help="epochs between validations")
    add("--nb_to_plot", type=positive_int, default=4, help="number of cubes in the figures")
    add("--load_rgb", action=BooleanOptionalAction, default=True, help="RGB files beside the cubes in the figures")
    add("--save_format", choices=("png", "jpg"), default="png", help="file format of the figures")
    add("--dpi", type=positive_int, default=150, help="resolution of the figures in dpi")
    add = parser.add_argument_group("debugging").add_argument
    add("--print_config", action="store_true", help="print the resolved arguments and exit")
    text = "train and validate on N batches with fixed masks; 0 = all data"
    add("--overfit_batches", type=non_negative_int, default=0, metavar="N", help=text)
    add("--debug", action="store_true", help="no workers, anomaly detection, losses of every batch")
    add = parser.add_argument_group("learning rate").add_argument
    text = "learning rate for a global batch size of 256, unless --lr is given"
    add("--base_lr", type=positive, default=1.5e-4, help=text)
    defaults = {"epochs": 200, "batch_size": 6, "lr": None, "warmup_epochs": 20, "weight_decay": 0.05}
    add_training_arguments(parser, **defaults, num_workers=8)
    args = parser.parse_args(argv)
    for name, value in VARIANTS[args.model].items():
        setattr(args, name, getattr(args, name) or value)
    if len(args.img_size) > 2:
        parser.error(f"--img_size takes one number or two, not {len(args.img_size)}")
    args.img_size = (args.img_size * 2)[:2]
    if args.lr is None:  # linear scaling rule of He et al. 2022
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
    run = Run(args, Path(__file__).resolve().parent.name)
    model, report = make_model(args), DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits, statistics = read_data(run, args, report)
    report.print(run.console, run.folder / "data_report.json")

    train_cubes, val_cubes = splits["train"], splits["valid"]
    if args.overfit_batches:
        n = args.overfit_batches * args.batch_size * run.accelerator.num_processes
        train_cubes = val_cubes = train_cubes[:n]
    augment = args.transform_type != "none" and not args.overfit_batches
    common = args.h5_key, model.n_noise, statistics
    fixed = args.seed if args.overfit_batches else None
    train_set = CubeDataset(train_cubes, *common, augment=augment, seed=args.seed, mask_seed=fixed)
    val_set = CubeDataset(val_cubes, *common, mask_seed=args.seed)
    if args.normalize:
        model.set_statistics(statistics.mean, statistics.std)
    weights = {name: getattr(args, name) for name in vars(args) if name.endswith("_weight")}
    criterion = MAESpectralLoss(
        model.mean, model.std, statistics.low, statistics.high, **weights,
        loss_on=args.loss_on, norm_pix_loss=model.norm_pix_loss,
    ).to(run.accelerator.device)  # fmt: skip
    config = {
        "kind": KIND,
        "variant": args.model,
        "model": model.arguments,
        "wavelengths": list(args.wavelengths),
        "h5_key": args.h5_key,
        "unit": args.unit,
        "statistics": {name: getattr(statistics, name) for name in ("mean", "std", "low", "high")},
        "split_fractions": (args.valid_fraction, args.test_fraction),
        "taught": {"bands": {f"{nm:.10g} nm": len(train_cubes) for nm in args.wavelengths}},
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
    """Model of the arguments, with random weights or those of `--init_from`."""
    masking = {"mask_ratio": args.mask_ratio, "decode_ratio": args.decode_ratio}
    if args.init_from:
        return MAESpectral.from_folder(args.init_from, args.img_size, args.wavelengths, **masking)[0]
    sizes = {name: getattr(args, name) for name in VARIANTS[args.model]}
    return MAESpectral(
        args.img_size, args.patch_size, len(args.wavelengths), **sizes, **masking,
        decoder=args.decoder, norm_pix_loss=args.norm_pix_loss,
    )  # fmt: skip


def read_data(run: Run, args, report: DataReport):
    """(usable cubes by split, statistics of train), read from a file or computed by all ranks."""
    file = args.stats_file or statistics_file(args.csv_file)
    splits = read_cubes(args.csv_file, report, args.valid_fraction, args.test_fraction)
    (known,) = broadcast_object_list([file.exists() or bool(args.stats_file)])
    if known:
        statistics = matching_statistics(file, splits, args.h5_key)
    usable = inspect(splits, args.h5_key, len(args.wavelengths), args.img_size, report)
    if not known:
        run.console.print(f"{file} does not exist: measuring all cubes once")
        workers = max(1, args.num_workers)
        statistics = compute_statistics(splits, args.h5_key, workers, run.console, run.accelerator, report)
        if run.is_main:
            statistics.save(file)
    return leave_out(usable, statistics.unusable, report, needed=("train", "valid")), statistics


@torch.no_grad()
def validate(run: Run, loader, criterion: MAESpectralLoss, statistics, args) -> dict[str, float]:
    """Mean loss and, for hidden voxels, MSE, PSNR, SAM and SSIM in the cubes' units; draws the figures."""
    run.model.eval()
    model = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    cases, shown, curves = Cases(run.accelerator, len(loader.dataset)), [], []
    for batch in run.batches(loader):
        cube, foreground = batch["cube"], batch["foreground"]
        prediction = run.model(cube, batch["noise"])
        # Cube by cube, as the last batch may have duplicates, which `Cases` removes.
        each = [{name: x[i : i + 1] for name, x in prediction.items()} for i in range(len(cube))]
        losses = [criterion(one, inside[None])[0] for one, inside in zip(each, foreground, strict=True)]
        result, hidden = model.assemble(prediction, cube)
        measured = measure(result, cube, hidden, foreground, statistics.high - statistics.low)
        metrics = {name: measured[f"masked_{name}"] for name in (*SHOWN, "mse_by_band")}
        cases.add(batch["index"], loss=torch.stack(losses), **metrics)
        count = args.nb_to_plot - len(shown)
        shown += shown_of(loader.dataset.cubes, batch, result, hidden, count, args.load_rgb)
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
