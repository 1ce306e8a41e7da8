"""Trains a slice classifier for the labels of chest CT, with validation by volume.

    accelerate launch ct_multilabel/train.py --freeze-backbone --use-attention se --loss-type asl
    python ct_multilabel/train.py --resume                                    # resume after an interruption

Slices and labels come from extract_slices.py. A share of the training patients is held out for early stopping,
thresholds and calibration, which are stored in the checkpoint. Writes to --save_dir: best/ (model), last/ (for
--resume), metrics.jsonl, data_report.json, figures/. Next: evaluate.py, predict.py.
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
from ct.labels import UNKNOWN, with_labels
from ct.slice_classifier import KIND, POOLINGS, SliceClassifier
from ct.slices import SliceDataset, VolumeDataset, augmentation, cutmix, divide
from ct.store import StoredVolume, check_files, label_table, read_manifest, read_settings
from ct.vlm3d import AGGREGATES, Calibration, headline, official_metrics, prevalence

LOSSES = {"focal": FocalLoss, "bce": MaskedBCE, "asl": AsymmetricLoss}
MODES = {"auroc": "max", "f1": "max", "loss": "min"}  # choices of --monitor


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--slices_path", type=Path, default=Path("slices"), help="slice store of extract_slices.py")
    group.add_argument("--tune_fraction", type=share, default=0.15, help="share of the training patients held out")
    group.add_argument("--slices_per_volume", type=positive_int, default=8, help="slices per volume and epoch")
    group.add_argument("--use_advanced_aug", action="store_true", help="CutMix, rotation, scale, position, grey levels")
    group.add_argument("--cutmix_prob", type=share, default=0.5, help="CutMix probability of a batch")
    mirror = "left-right mirroring; off where labels have a side"
    group.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=True, help=mirror)
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="efficientnet_b0", help="backbone: any timm model with feature maps")
    group.add_argument("--use_attention", choices=ATTENTIONS, default="none", help="attention on the last feature map")
    group.add_argument("--use_multiscale", action="store_true", help="features of the last three stages")
    group.add_argument("--pooling", choices=tuple(POOLINGS), default="avg", help="pooling of feature maps")
    aggregates, text = ("auto", *AGGREGATES, "attention"), "slices to volume; auto = best pooling on tuning patients"
    group.add_argument("--aggregate", choices=aggregates, default="auto", help=f"{text}, attention = learnt")
    group.add_argument("--dropout", type=share, default=0.2, help="dropout before the head")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True, help="ImageNet weights")
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")
    group = parser.add_argument_group("strategy")
    group.add_argument("--freeze_backbone", action="store_true", help="freeze the backbone, train attention and head")
    group.add_argument("--progressive_unfreeze", action="store_true", help="gradual unfreezing, from the last part")
    group.add_argument("--unfreeze_epoch", type=positive_int, default=10, help="epochs before unfreezing the last part")
    group.add_argument("--unfreeze_every", type=positive_int, default=2, help="epochs between parts")
    rate = "learning rate factor of the backbone (default: 0.1 with --progressive_unfreeze, else 1)"
    group.add_argument("--backbone_lr_scale", type=non_negative, help=rate)
    group.add_argument("--loss_type", choices=tuple(LOSSES), default="focal", help="focal, asymmetric or cross-entropy")
    group.add_argument("--monitor", choices=tuple(MODES), default="auroc", help="metric that chooses the best model")
    add_training_arguments(parser, epochs=100, batch_size=64, lr=2e-4, warmup_epochs=1, early_stopping_patience=15)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    gated = args.aggregate == "attention"
    bag = args.slices_per_volume if gated else 1
    if args.batch_size < bag:
        raise UserError(f"--batch_size {args.batch_size} slices hold no bag of --slices_per_volume {bag}: enlarge it")
    settings = read_settings(args.slices_path)
    run = Run(args, Path(__file__).resolve().parent.name)

    report = DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        taught, labels, parts = read_volumes(args, report)
        # The model before the files: a failed download of its weights is reported first.
        model = SliceClassifier(
            len(labels), args.model, args.use_attention, args.use_multiscale, gated, args.pooling,
            args.dropout, settings["size"], args.pretrained, args.backbone_weights,
        )  # fmt: skip
        check_files([*parts["train"], *parts["tune"]], report, run.accelerator)
    report.print(run.console, run.folder / "data_report.json")

    criterion = LOSSES[args.loss_type]()
    lr_scale = args.backbone_lr_scale
    if lr_scale is None:
        lr_scale = 0.1 if args.progressive_unfreeze else 1.0
    groups = parameter_groups(model, args.lr, args.weight_decay, {"backbone.": lr_scale})
    unfreezing = None
    if args.progressive_unfreeze:
        unfreezing = model.unfreezing(args.unfreeze_epoch, args.unfreeze_every)
    elif args.freeze_backbone:
        unfreezing = UnfreezingSchedule([(args.epochs, [model.backbone])])  # never unfrozen
    augment = augmentation(args.use_advanced_aug, args.mirror)
    train_set = SliceDataset(parts["train"], args.slices_per_volume, bag, augment, args.seed)
    tune_set = VolumeDataset(parts["tune"])
    base_rates = prevalence(label_table(parts["train"]))
    model.start_at(base_rates)
    config = {
        "kind": KIND,
        "model": model.arguments,
        "slices": settings,  # of extract_slices.py, also used by predict.py
        "labels": labels,
        "taught": {"labels": taught},
        "tune_fraction": args.tune_fraction,
        "prevalence": dict(zip(labels, base_rates, strict=True)),  # the baseline
    }
    train_loader = run.loader(train_set, shuffle=True, batch_size=args.batch_size // bag)
    tune_loader = run.loader(tune_set, shuffle=False, batch_size=max(1, args.batch_size // tune_set.n_slices))
    train_loader, tune_loader = run.prepare(
        model, groups, train_loader, tune_loader,
        config=config, monitor=args.monitor, mode=MODES[args.monitor], unfreezing=unfreezing,
    )  # fmt: skip
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            slices, targets = batch["slices"], batch["labels"]
            if args.use_advanced_aug:
                slices, targets = cutmix(slices, targets, args.cutmix_prob)
            prediction = run.model(slices)
            logits = prediction["volume"] if gated else prediction["slices"][:, 0]
            run.step(criterion(logits, targets))
        metrics, config["calibration"] = validate(run, tune_loader, criterion, args.aggregate, labels)
        if run.end_epoch(metrics):
            break
    run.finish()


def read_volumes(args, report: DataReport) -> tuple[dict[str, int], list[str], dict[str, list[StoredVolume]]]:
    """(label -> number of training volumes with a known truth, labels that are both positive and negative in training,
    split -> volumes with these labels).

    Other labels are reported. Raises UserError where no label can be learnt or tuned.
    """
    labels, volumes = read_manifest(args.slices_path)
    parts = divide(volumes, args.tune_fraction)
    report.cases = {part: len(found) for part, found in parts.items()}
    table, kept = label_table(parts["train"]), []
    known, positives = (table != UNKNOWN).sum(axis=0).tolist(), (table == 1).sum(axis=0).tolist()
    for label, cases, found in zip(labels, known, positives, strict=True):
        if cases == 0:
            report.add("label without a known training case", label, "left out")
        elif found in (0, cases):
            report.add("label with one class in training", label, "left out", f"{found} of {cases} positive")
        else:
            kept.append(label)
    if not kept:
        raise UserError(f"{args.slices_path}: no label is both positive and negative in training; check the labels")
    parts = {part: with_labels(found, labels, kept) for part, found in parts.items()}
    tuned = label_table(parts["tune"])
    if not ((tuned == 0).any(axis=0) & (tuned == 1).any(axis=0)).any():
        report.add("no label with both classes", "tuning patients", "refused")
        raise UserError("no label is both positive and negative among the tuning patients: enlarge --tune_fraction")
    return dict(zip(labels, known, strict=True)), kept, parts


@torch.no_grad()
def validate(
    run: Run, loader, criterion: torch.nn.Module, aggregate: str, names: list[str]
) -> tuple[dict[str, float], dict]:
    """(loss, AUROC, F1 and, for CT-RATE's labels, CRG of the tuning volumes; calibration for the current weights).

    F1 and CRG are for comparing epochs only: their thresholds are tuned on the same volumes.
    """
    run.model.eval()
    output = "volume" if aggregate == "attention" else "slices"
    volumes = loader.dataset.volumes
    cases = Cases(run.accelerator, len(volumes))
    for batch in run.batches(loader):
        cases.add(batch["index"], logits=run.model(batch["slices"])[output].float())
    logits = cases.table()["logits"]  # (N, S, labels), or (N, labels) of the gated attention
    logits = logits.reshape(len(logits), -1, len(names))
    labels = label_table(volumes)
    every_slice = torch.from_numpy(labels)[:, None].expand(logits.shape).flatten(0, 1)
    loss = criterion(logits.flatten(0, 1), every_slice.float())
    probabilities = list(logits.double().sigmoid().numpy())
    calibration = Calibration.fit(probabilities, labels, aggregate, [volume.patient for volume in volumes])
    result = headline(official_metrics(labels, calibration.scores(probabilities), names))
    metrics = {"loss": float(loss)} | {name: result[name] for name in ("auroc", "f1", "crg") if name in result}
    return metrics, calibration.to_json(names)


if __name__ == "__main__":
    script(main)
