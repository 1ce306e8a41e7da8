"""Trains the teacher, a SAM-based variational autoencoder (VAE) of ears.

    python ear_teacher/train.py --epochs 60 --batch-size 4
    accelerate launch ear_teacher/train.py --train_manifest DATA/train_teacher.npy --val_manifest DATA/val_teacher.npy
    python ear_teacher/train.py --resume                          # resume an interrupted run

A manifest is a .npy with image_paths and bboxes, a .csv, or a folder of pictures. Results in --save_dir: best/, best_2/
and best_3/ (the three best models), last/ (for --resume), metrics.jsonl, data_report.json, figures/ (reconstructions of
the first validation ears). Next: evaluate.py, eigenears/create_eigenears.py, predict.py, train_detector.py.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core import figures
from core.args import ArgumentParser, add_training_arguments, non_negative, positive_int, script
from core.cases import Cases
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport, leave_out_unreadable
from ear.crops import EarCrops, read_manifest, to_pixels
from ear.latent_space import active_units, kl_by_dimension
from ear.losses import WEIGHTS, EarVAELoss
from ear.manifest import Ear, add_reading_arguments, refuse_shared_subjects
from ear.plots import kl_bars, reconstruction_grid
from ear.quality import quality
from ear.sam_encoder import SAM_CONFIGS, SAM_MODEL
from ear.sam_vae import KIND, EarVAE

PRECISIONS = {"32": "no", "16-mixed": "fp16", "bf16-mixed": "bf16"}
DATA = Path("data/preprocessed")


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--train_manifest", type=Path, default=DATA / "train_teacher.npy", help="training manifest")
    group.add_argument("--val_manifest", type=Path, default=DATA / "val_teacher.npy", help="validation manifest")
    add_reading_arguments(group)
    group.add_argument("--crop", action=argparse.BooleanOptionalAction, default=True,
                       help="crops around the boxes; whole pictures without boxes")  # fmt: skip
    group.add_argument("--margin", type=non_negative, default=0.1, help="margin around the box, over its longer side")
    group.add_argument("--mirror_left", action=argparse.BooleanOptionalAction, default=True,
                       help="mirroring of ears known to be left")  # fmt: skip
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True,
                       help="augmentation: small shifts, rotations, changes of scale and light")  # fmt: skip
    group = parser.add_argument_group("model")
    group.add_argument("--sam_model", default=SAM_MODEL, help="SAM with a ViT: name on the Hugging Face hub, or folder")
    group.add_argument("--sam_config", choices=tuple(SAM_CONFIGS), help="SAM of random weights instead of --sam_model")
    group.add_argument("--sam_image_size", type=int, choices=(1024, 672, 448, 224, 128), default=1024,
                       help="side of SAM's input, px (cost of each: see the README)")  # fmt: skip
    group.add_argument("--latent_dim", type=positive_int, default=1024, help="dimensions of the latent code")
    group.add_argument("--image_size", type=int, default=128, help="side of crops and reconstructions, px")
    group.add_argument("--freeze_layers", type=int, help="frozen SAM blocks, from the first (default: 6; tiny: 0)")
    group.add_argument("--freeze_embeddings", action=argparse.BooleanOptionalAction, default=False,
                       help="also freeze patch and position embeddings: less memory")  # fmt: skip
    group.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=False,
                       help="gradient checkpointing of SAM's blocks: less memory, more time")  # fmt: skip
    group = parser.add_argument_group("loss")
    for name, (weight, meaning) in WEIGHTS.items():
        group.add_argument(f"--{name}_weight", type=non_negative, default=weight, help=f"loss weight: {meaning}")
    group.add_argument("--vgg_weights", type=Path, metavar="FILE", help="VGG16 weights instead of a download")
    group.add_argument("--contrastive_views", type=int, choices=(1, 2), default=1,
                       help="views of each ear in the contrastive loss; 2 doubles the encoder's cost")  # fmt: skip
    group = parser.add_argument_group("validation and figures")
    group.add_argument("--valid_interval", type=positive_int, default=1, help="epochs between validations")
    group.add_argument("--nb_to_plot", type=positive_int, default=8, help="ears in the figures")
    add_training_arguments(parser, epochs=60, batch_size=4, lr=3e-4, num_workers=4)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="--mixed_precision as named in the reference")
    args = parser.parse_args(argv)
    if args.precision:
        if args.mixed_precision not in (None, PRECISIONS[args.precision]):
            parser.error(f"--precision {args.precision} and --mixed_precision {args.mixed_precision}: give one of them")
        args.mixed_precision = PRECISIONS[args.precision]
    if args.sam_config:
        args.sam_model = None
    if args.freeze_layers is None:
        args.freeze_layers = 0 if args.sam_config == "tiny" else 6  # random blocks must not be frozen
    return args


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, Path(__file__).resolve().parent.name)
    weights = {name: getattr(args, f"{name}_weight") for name in WEIGHTS}
    criterion = EarVAELoss(weights, args.vgg_weights).to(run.accelerator.device)
    model = EarVAE(
        args.sam_config or "base", args.sam_model, args.sam_image_size, args.latent_dim, args.image_size,
        args.freeze_layers, args.freeze_embeddings, args.gradient_checkpointing,
    )  # fmt: skip
    report = DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits = read_data(run, args, report)
    shape = {"crop": args.crop, "margin": args.margin, "mirror_left": args.mirror_left}
    train_set = EarCrops(
        splits["train"], args.image_size, **shape, augment=args.augment, views=args.contrastive_views, seed=args.seed
    )
    val_set = EarCrops(splits["val"], args.image_size, **shape)
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config={"kind": KIND, "model": model.arguments, "data": shape, "taught": {"images": {"ears": len(train_set)}}},
        monitor="loss",
        keep=3,
    )
    for epoch in run.epochs():
        for batch in run.batches(train_loader):
            result = run.model(batch["image"], batch.get("other_view"))
            loss, parts = criterion(result, batch["image"])
            run.step(loss, parts)
        validated = (epoch + 1) % args.valid_interval == 0 or epoch + 1 == args.epochs
        if run.end_epoch(validate(run, val_loader, criterion, args) if validated else None):
            break
    run.finish()


def read_data(run: Run, args, report: DataReport) -> dict[str, list[Ear]]:
    """Usable ears by split; prints the data problems. Raises UserError for a split without ears, or shared subjects."""
    files = {"train": args.train_manifest, "val": args.val_manifest}
    splits = {split: read_manifest(file, args.data_root, args.box_format, report) for split, file in files.items()}
    refuse_shared_subjects(splits)
    splits = leave_out_unreadable(splits, report, run.accelerator)
    report.print(run.console, run.folder / "data_report.json")
    return splits


@torch.no_grad()
def validate(run: Run, loader, criterion: EarVAELoss, args) -> dict[str, float]:
    """Means of loss, PSNR [dB] and SSIM over the pictures, KL [nats] and active units; draws the figures."""
    run.model.eval()
    cases, shown = Cases(run.accelerator, len(loader.dataset)), []
    for batch in run.batches(loader):
        images = batch["image"]
        result = run.model(images)
        # Per picture: on several ranks the last batch may repeat pictures, which `Cases` drops.
        each = [{name: x[i : i + 1] for name, x in result.items()} for i in range(len(images))]
        losses = [criterion(one, images[i : i + 1])[0] for i, one in enumerate(each)]
        cases.add(
            batch["index"], loss=torch.stack(losses), mu=result["mu"], logvar=result["logvar"],
            **quality(result["reconstruction"], images),
        )  # fmt: skip
        shown += [
            (images[i], result["reconstruction"][i]) for i in range(min(len(images), args.nb_to_plot - len(shown)))
        ]
    table = {name: column.float().numpy() for name, column in cases.table().items()}
    mu, kl = table["mu"], kl_by_dimension(table["mu"], table["logvar"])
    if run.is_main:
        folder = run.folder / "figures" / f"epoch_{run.epoch + 1:04d}"
        originals, made = (to_pixels(torch.stack(column)) for column in zip(*shown, strict=True))
        run.show(figures.save(reconstruction_grid(originals, made), folder / "reconstructions.png"))
        run.show(figures.save(kl_bars(kl, mu), folder / "kl_by_dimension.png"))
    means = {name: float(table[name].mean()) for name in ("loss", "psnr", "ssim")}
    return {**means, "kl": float(kl.sum()), "active_units": active_units(mu)}


if __name__ == "__main__":
    script(main)
