"""Trains stage 1: landmarks, measurements and maturation stage of lateral cephalograms, or a landmark scheme of yours.

    accelerate launch cephalometric/train.py --dataset_path Aariz --batch_size 6
    python cephalometric/train.py --dataset_path Aariz --resume                  # resume an interrupted run
    python cephalometric/train.py --dataset_path hands --landmarks hand.json     # other landmarks

HRNet-W48 at 512×512 with 128×128 heatmaps, ImageNet weights, DARK + Wing + CVM loss. Results in --save_dir:
best/ (the model), last/ (for --resume), metrics.jsonl, data_report.json, figures/. Then: evaluate.py, predict.py.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch

from ceph.anatomy import SCHEMA, anatomy_of
from ceph.cases import add_data_arguments, read_frames
from ceph.dataset import CephalogramDataset, keep_taught, mean_shape, measurement_statistics, stage_weights
from ceph.expansion import EXPANSIONS
from ceph.hrnet import HRNetLandmarks, add_backbone_arguments, decode
from ceph.losses import LandmarkLoss
from core.args import ArgumentParser, add_training_arguments, non_negative, positive, positive_int, script
from core.cases import Cases
from core.landmarks import read_schema
from core.metrics import radial_errors, success_detection_rate
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    add_data_arguments(group, ground_truth="mean")
    group.add_argument("--landmarks", default=SCHEMA.name, metavar="SCHEME", help="landmark scheme: the built-in one "
                       'or a JSON file {"name", "names", "titles", "lines", "flip"}')  # fmt: skip
    group.add_argument("--expansion", choices=EXPANSIONS, default="6500", help="training samples per 1000 originals: "
                       "flipped, tilted, brighter, darker, with braces; 5500: brighter or darker")  # fmt: skip
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="augmentation: size, "
                       "position, grey levels, noise; without expansion also flip and tilt")  # fmt: skip
    group = parser.add_argument_group("model")
    add_backbone_arguments(group, "hrnet_w48")
    group.add_argument("--image_size", type=positive_int, nargs=2, default=(512, 512), metavar=("H", "W"), help="px")
    group.add_argument("--heatmap_size", type=positive_int, default=128, help="heatmap width, px; divides input width")
    group = parser.add_argument_group("loss")
    group.add_argument("--sigma", type=positive, default=2.0, help="SD of the target Gaussians, heatmap px")
    group.add_argument("--cvm_weight", "--branch_weight", dest="branch_weight", type=non_negative, default=0.3,
                       help="loss weight of measurements and stage")  # fmt: skip
    group.add_argument("--cvm_class_weights", "--class_weights", dest="class_weights", default=True,
                       action=argparse.BooleanOptionalAction, help="class weights by inverse frequency")  # fmt: skip
    add_training_arguments(parser, epochs=200, batch_size=6, lr=1e-4, warmup_epochs=10, num_workers=6)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, Path(__file__).resolve().parent.name)

    # The model first: missing weights are reported before minutes of data reading.
    anatomy = anatomy_of(read_schema(args.landmarks, {SCHEMA.name: SCHEMA}))
    size = args.image_size, args.heatmap_size
    model = HRNetLandmarks(args.backbone, *size, args.pretrained, args.backbone_weights, anatomy=anatomy)

    report = DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits = "train", "valid"
        cases, cache = read_frames(args, args.ground_truth, splits, args.image_size, anatomy, report, run.accelerator)
    report.print(run.console, run.folder / "data_report.json")
    train_points = CephalogramDataset(cases["train"], cache).points()  # (N, K, 2) frame px
    taught = anatomy.taught(train_points, [case.cvm_stage for case in cases["train"]])
    keep_taught(cases["valid"], "valid", anatomy.names, taught)
    statistics = measurement_statistics(train_points, anatomy)
    train_set = CephalogramDataset(
        cases["train"], cache, statistics, args.augment, args.seed, args.expansion, anatomy=anatomy
    )
    val_set = CephalogramDataset(cases["valid"], cache, statistics, anatomy=anatomy)
    if len(train_set) > len(train_points):
        run.console.print(f"{len(train_points)} training cases are expanded to {len(train_set)} samples per epoch")

    model.set_statistics(*statistics)
    config = model.config(args.sigma) | {
        "mean_shape": mean_shape(train_points),  # frame px: the baseline of every evaluation
        "ground_truth": args.ground_truth,
        "taught": taught,
    }
    unit = "mm" if any(case.mm_per_px for case in cases["valid"]) else "px"
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor=f"mre_{unit}",
    )
    weights = stage_weights(cases["train"], anatomy) if args.class_weights else None
    criterion = LandmarkLoss(model.stride, model.heatmap_size, args.sigma, args.branch_weight, weights)
    criterion.to(run.accelerator.device)
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            prediction = run.model(batch["image"])
            loss, parts = criterion(prediction, batch)
            run.step(loss, parts)
        metrics = validate(run, val_loader, criterion, model.stride)
        if run.end_epoch(metrics):
            break
    run.finish()


@torch.no_grad()
def validate(run: Run, loader, criterion: LandmarkLoss, stride: int) -> dict[str, float]:
    """Loss, MRE and SDR [%] on the validation split."""
    run.model.eval()
    dataset = loader.dataset
    cases = Cases(run.accelerator, len(dataset))
    for batch in run.batches(loader):
        prediction = run.model(batch["image"])
        points, _ = decode(prediction, stride, run.args.sigma)
        # Per case: on several ranks the last batch may repeat cases, which `Cases` drops.
        losses = [
            criterion(*({name: x[i : i + 1] for name, x in values.items()} for values in (prediction, batch)))[0]
            for i in range(len(points))
        ]
        cases.add(batch["index"], points=points, loss=torch.stack(losses))
    table = cases.table()
    points = dataset.to_native(table["points"].numpy())
    errors_px = radial_errors(points, dataset.truth())
    errors_mm = radial_errors(points, dataset.truth(), dataset.mm_per_px())
    metrics = {"loss": float(table["loss"].mean()), "mre_px": float(np.nanmean(errors_px))}
    if np.isfinite(errors_mm).any():
        metrics["mre_mm"] = float(np.nanmean(errors_mm))
        metrics["sdr_2mm"] = success_detection_rate(errors_mm)[2.0]
    return metrics


if __name__ == "__main__":
    script(main)
