"""Trains stage 2: refinement of each landmark of stage 1 in crops of the native picture.

    accelerate launch cephalometric/train_refiner.py --checkpoint runs/cephalometric/best --dataset_path Aariz
    python cephalometric/train_refiner.py --resume …                             # resume an interrupted run

HRNet-W32 on 256×256 crops at 0.1 mm per px, centred on the ground truth plus noise or on the predictions of stage 1.
Validation: one crop around each prediction of stage 1. Results in --save_dir: best/ (for --refiner of evaluate.py and
predict.py), last/ (for --resume), metrics.jsonl, data_report.json, figures/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch

from ceph.anatomy import Anatomy
from ceph.cases import add_data_arguments, read_frames
from ceph.dataset import Cephalogram, CephalogramDataset, keep_taught
from ceph.hrnet import add_backbone_arguments
from ceph.losses import PointLoss
from ceph.predictor import Predictor, predict_dataset
from ceph.refiner import MM_PER_PX, CoarseCrops, LandmarkRefiner, RefinerCrops, peaks
from core.args import ArgumentParser, add_training_arguments, positive, positive_int, script
from core.cases import Cases
from core.errors import UserError
from core.metrics import radial_errors, success_detection_rate
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--checkpoint", type=Path, required=True, help="model folder of stage 1: best/ of train.py")
    add_data_arguments(group)
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="augmentation: flip, "
                       "tilt, magnification, grey levels")  # fmt: skip
    group.add_argument("--crops_per_image", type=positive_int, default=8, help="crops per image and epoch")
    group = parser.add_argument_group("model")
    add_backbone_arguments(group, "hrnet_w32")
    group.add_argument("--crop_size", type=positive_int, default=256, help="side of a crop, px")
    group.add_argument("--crop_mm_per_px", type=positive, default=MM_PER_PX, help="pixel size of the crops, mm")
    group.add_argument("--heatmap_size", type=positive_int, default=64, help="side of a heatmap, px")
    group.add_argument("--sigma", type=positive, default=2.0, help="SD of the target Gaussians, heatmap px")
    add_training_arguments(parser, epochs=60, batch_size=4, lr=1e-4, warmup_epochs=3, num_workers=6)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, f"{Path(__file__).resolve().parent.name}_refiner")
    # Both models first: missing weights are reported before minutes of data reading.
    with torch.random.fork_rng():  # keeps the refiner's initial weights independent of stage 1
        predictor = Predictor(args.checkpoint)
    anatomy, size = Anatomy(predictor.anatomy.schema), (args.crop_size, args.crop_size)
    model = LandmarkRefiner(args.backbone, size, args.heatmap_size, args.pretrained, args.backbone_weights, anatomy)
    ground_truth = args.ground_truth or predictor.config["ground_truth"]
    cases, coarse = read_coarse(run, args, predictor, ground_truth)
    keep_taught(cases["valid"], "valid", predictor.anatomy.names, predictor.config["taught"])
    errors = errors_mm(coarse["valid"], cases["valid"])
    spread = np.sqrt(np.nansum(errors**2, axis=0) / np.isfinite(errors).sum(axis=0).clip(1))  # (K,) mm
    train_set = RefinerCrops(
        cases["train"], coarse["train"], spread, args.crop_size, args.crop_mm_per_px, args.crops_per_image,
        args.augment, args.seed, anatomy,
    )  # fmt: skip
    val_set = CoarseCrops(cases["valid"], coarse["valid"], args.crop_size, args.crop_mm_per_px)
    config = model.config(args.sigma) | {
        "mm_per_px": args.crop_mm_per_px,
        "ground_truth": ground_truth,
        "taught": model.anatomy.taught(np.stack([case.points for case in cases["train"]]), ()),
        "stage_1": {"checkpoint": str(args.checkpoint), "valid_mre_mm": float(np.nanmean(errors))},
    }
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False, batch_size=1),
        config=config,
        monitor="mre_mm",
    )
    criterion = PointLoss(model.stride, model.heatmap_size, args.sigma)
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            images, points = batch["image"].flatten(0, 1), batch["points"].flatten(0, 1)
            loss, parts = criterion(run.model(images), points)
            run.step(loss, parts)
        if run.end_epoch(validate(run, val_loader, val_set, model, args.sigma)):
            break
    run.finish()


def read_coarse(run: Run, args, predictor: Predictor, ground_truth: str) -> tuple[dict, dict]:
    """(calibrated cases, predictions of stage 1 (N, K, 2) in native px), both by split, of train and valid.

    Raises UserError if a split has no calibrated case.
    """
    report, size, splits = DataReport(), predictor.config["model"]["image_size"], ("train", "valid")
    with report.written_to(run.folder / "data_report.json", run.is_main):
        anatomy, accelerator = predictor.anatomy, run.accelerator
        cases, cache = read_frames(args, ground_truth, splits, size, anatomy, report, accelerator)
        for split, found in cases.items():
            cases[split] = [case for case in found if case.mm_per_px]
            for case in found:
                if not case.mm_per_px:
                    report.add("no plausible pixel size", case.image, "left out: crops are cut in mm")
            report.cases[split] = len(cases[split])
            if not cases[split]:
                raise UserError(f"{args.dataset_path}: no case of {split}/ has a pixel size, and crops are cut in mm")
    report.print(run.console, run.folder / "data_report.json")
    return cases, {
        split: predict_dataset(
            accelerator, predictor, CephalogramDataset(found, cache, anatomy=anatomy), args.batch_size, args.num_workers
        ).points
        for split, found in cases.items()
    }


@torch.no_grad()
def validate(run: Run, loader, crops: CoarseCrops, model: LandmarkRefiner, sigma: float) -> dict[str, float]:
    """MRE in mm and SDR at 2 mm in % after refinement with one crop per landmark."""
    run.model.eval()
    cases = Cases(run.accelerator, len(crops))
    landmarks = torch.arange(len(model.anatomy.names), device=run.accelerator.device)
    for batch in run.batches(loader):
        points, _ = peaks(run.model(batch["image"].flatten(0, 1)).float(), landmarks, model, sigma)
        cases.add(batch["index"], points=points[None])
    points = crops.to_native(cases.table()["points"].double().numpy())
    errors = errors_mm(points, crops.cases)
    return {"mre_mm": float(np.nanmean(errors)), "sdr_2mm": success_detection_rate(errors)[2.0]}


def errors_mm(points: np.ndarray, cases: Sequence[Cephalogram]) -> np.ndarray:
    """Radial errors (N, K) in mm of points (N, K, 2) in native px."""
    truth = np.stack([case.points for case in cases])
    return radial_errors(points, truth, np.array([case.mm_per_px for case in cases]))


if __name__ == "__main__":
    script(main)
