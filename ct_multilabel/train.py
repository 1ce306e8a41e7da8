"""Trains a classifier of 18 abnormalities on slices of chest CT, and validates it volume by volume.

    accelerate launch ct_multilabel/train.py --freeze-backbone --use-attention se --loss-type asl
    python ct_multilabel/train.py --resume                                    # go on after an interruption

Slices come from extract_slices.py. A part of the training patients is held out for early stopping, thresholds and
calibration, which are kept with the model. Results in --save_dir: best/ (the model), last/ (for --resume),
metrics.jsonl, data_report.json, figures/. Then: evaluate.py, predict.py.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import ArgumentParser, add_training_arguments, non_negative, positive_int, script, share
from core.attention import ATTENTIONS
from core.cases import Cases
from core.errors import UserError
from core.losses.classification import AsymmetricLoss, FocalLoss, MaskedBCE
from core.run import Run
from core.schedules import parameter_groups
from core.unfreezing import UnfreezingSchedule
from core.validation import DataReport
from ct.slice_classifier import POOLINGS, SliceClassifier
from ct.slices import SliceDataset, VolumeDataset, augmentation, cutmix, divide
from ct.store import check_files, read_manifest, read_settings
from ct.vlm3d import AGGREGATES, Calibration, official_metrics, prevalence
from ct.volumes import LABELS

LOSSES = {"focal": FocalLoss, "bce": MaskedBCE, "asl": AsymmetricLoss}
MODES = {"auroc": "max", "f1": "max", "loss": "min"}  # what --monitor chooses the best model by


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--slices_path", type=Path, default=Path("slices"), help="what extract_slices.py wrote")
    group.add_argument("--tune_fraction", type=share, default=0.15, help="share of the train patients held out")
    group.add_argument("--slices_per_volume", type=positive_int, default=8, help="drawn from each volume an epoch")
    group.add_argument("--use_advanced_aug", action="store_true", help="CutMix, tilt, size, position, grey levels")
    group.add_argument("--cutmix_prob", type=share, default=0.5, help="of a batch, with --use_advanced_aug")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="efficientnet_b0", help="resnet50, resnet101, efficientnet_b0, any of timm")
    group.add_argument("--use_attention", choices=ATTENTIONS, default="none", help="on the last feature map")
    group.add_argument("--use_multiscale", action="store_true", help="features of the last three stages")
    group.add_argument("--pooling", choices=tuple(POOLINGS), default="avg", help="map to vector; avgmax = both")
    group.add_argument(
        "--aggregate",
        choices=("auto", *AGGREGATES, "attention"),
        default="auto",
        help="slices to volume: auto = the best of the pools on the tuning patients; attention = learnt",
    )
    group.add_argument("--dropout", type=share, default=0.2, help="before the head")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True, help="ImageNet weights")
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")
    group = parser.add_argument_group("strategy")
    group.add_argument("--freeze_backbone", action="store_true", help="train attention and head only")
    group.add_argument("--progressive_unfreeze", action="store_true", help="frozen first, then part by part")
    group.add_argument("--unfreeze_epoch", type=positive_int, default=10, help="epochs before the last part learns")
    group.add_argument("--unfreeze_every", type=positive_int, default=2, help="epochs between two parts")
    group.add_argument(
        "--backbone_lr_scale", type=non_negative, help="on --lr (default: 0.1 where it is unfrozen, else 1)"
    )
    group.add_argument("--loss_type", choices=tuple(LOSSES), default="focal", help="focal, asymmetric or cross-entropy")
    group.add_argument("--monitor", choices=tuple(MODES), default="auroc", help="what chooses the best model")
    add_training_arguments(parser, epochs=100, batch_size=64, lr=2e-4, warmup_epochs=1, early_stopping_patience=15)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    gated = args.aggregate == "attention"
    bag = args.slices_per_volume if gated else 1
    if args.batch_size < bag:
        raise UserError(f"--batch_size {args.batch_size} slices hold no bag of --slices_per_volume {bag}: enlarge it")
    settings = read_settings(args.slices_path)
    run = Run(args, "ct_multilabel")

    # The model first: if its weights cannot be had, that should be known before the data are read.
    model = SliceClassifier(
        args.model, args.use_attention, args.use_multiscale, gated, args.pooling,
        args.dropout, settings["size"], args.pretrained, args.backbone_weights,
    )  # fmt: skip
    criterion = LOSSES[args.loss_type]()
    staged = args.progressive_unfreeze
    lr_scale = args.backbone_lr_scale
    if lr_scale is None:
        lr_scale = 0.1 if staged else 1.0
    groups = parameter_groups(model, args.lr, args.weight_decay, {"backbone.": lr_scale})
    unfreezing = None
    if staged:
        unfreezing = model.unfreezing(args.unfreeze_epoch, args.unfreeze_every)
    elif args.freeze_backbone:
        unfreezing = UnfreezingSchedule([(args.epochs, [model.backbone])])  # that is, never

    parts = divide(read_manifest(args.slices_path), args.tune_fraction)
    check_files([*parts["train"], *parts["tune"]])
    report = DataReport(cases={part: len(volumes) for part, volumes in parts.items()})
    report.print(run.console)
    if run.is_main:
        report.write(run.folder / "data_report.json")
    augment = augmentation(args.use_advanced_aug)
    train_set = SliceDataset(parts["train"], args.slices_per_volume, bag, augment, args.seed)
    tune_set = VolumeDataset(parts["tune"])
    shares = prevalence(tune_set.labels())
    if not ((shares > 0) & (shares < 1)).any():
        raise UserError("no label is both positive and negative among the tuning patients: enlarge --tune_fraction")
    base_rates = prevalence(train_set.labels())
    model.start_at(base_rates)
    config = {
        "project": "ct_multilabel",
        "model": model.arguments,
        "slices": settings,  # of extract_slices.py: predict.py cuts volumes in the same way
        "labels": list(LABELS),
        "tune_fraction": args.tune_fraction,
        "prevalence": dict(zip(LABELS, base_rates, strict=True)),  # the baseline
    }
    train_loader, tune_loader = run.prepare(
        model,
        groups,
        run.loader(train_set, shuffle=True, batch_size=args.batch_size // bag),
        run.loader(tune_set, shuffle=False, batch_size=max(1, args.batch_size // tune_set.n_slices)),
        config=config,
        monitor=args.monitor,
        mode=MODES[args.monitor],
        unfreezing=unfreezing,
    )
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            slices, labels = batch["slices"], batch["labels"]
            if args.use_advanced_aug:
                slices, labels = cutmix(slices, labels, args.cutmix_prob)
            prediction = run.model(slices)
            logits = prediction["volume"] if gated else prediction["slices"][:, 0]
            loss = criterion(logits, labels)
            run.step(loss)
        metrics, config["calibration"] = validate(run, tune_loader, criterion, args.aggregate)
        if run.end_epoch(metrics):
            break
    run.finish()


@torch.no_grad()
def validate(run: Run, loader, criterion: torch.nn.Module, aggregate: str) -> tuple[dict[str, float], dict]:
    """Loss, AUROC, F1 and CRG of the tuning volumes, each once, and the calibration for this state of the model.

    F1 and CRG are with thresholds tuned on the same volumes: good for comparing epochs, too good to be reported.
    """
    run.model.eval()
    output = "volume" if aggregate == "attention" else "slices"
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        cases.add(batch["index"], logits=run.model(batch["slices"])[output].float())
    logits = cases.table()["logits"]  # (N, S, 18), or (N, 18) of the gated attention
    logits = logits.reshape(len(logits), -1, len(LABELS))
    labels = torch.from_numpy(loader.dataset.labels())
    every_slice = labels[:, None].expand(logits.shape).flatten(0, 1)
    loss = criterion(logits.flatten(0, 1), every_slice.float())
    probabilities = list(logits.double().sigmoid().numpy())
    patients = [volume.patient for volume in loader.dataset.volumes]
    calibration = Calibration.fit(probabilities, labels.numpy(), aggregate, patients)
    result = official_metrics(labels.numpy(), calibration.scores(probabilities))
    metrics = {"loss": float(loss), "auroc": result["macro"]["auroc"], "f1": result["macro"]["f1"]}
    return metrics | {"crg": result["crg"]}, calibration.to_json()


if __name__ == "__main__":
    script(main)
