"""Trains the regressor of length and diameter with company and model embeddings.

    accelerate launch implant/train.py --train_json augmented_train.json --val_json augmented_val.json \
        --company_checkpoint runs/implant_company/best --model_checkpoint runs/implant_model/best
    python implant/train.py --train_json … --val_json … --company_checkpoint … --resume     # the same command, resumed

The checkpoints are from train_classifier.py, or .pth files with a ViT, an embedding and a head. Trains the head first,
then also the upper half of each network, then all. Results in --save_dir: best/ (the model), last/ (for --resume),
metrics.jsonl, data_report.json, figures/. Next: evaluate.py, predict.py.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import ArgumentParser, add_training_arguments, non_negative, positive, positive_int, script
from core.cases import Cases
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport
from implants import sagemaker_container
from implants.arguments import add_data_arguments, add_vit_arguments, parse_training
from implants.crops import ImplantCrops, classes_of, count_classes, scale_length
from implants.dual_embedding import ATTENTION_TYPES, EMBEDDINGS, DualEmbeddingRegressor, load_visual
from implants.evaluation import sizes
from implants.feature_cache import CachedCrops
from implants.loss import DimensionLoss
from implants.records import LIMITS, TARGETS
from implants.splits import is_known, read_splits, size_table, tell_unseen
from implants.vit import ImplantVit, load_classifier


def epoch_number(text: str) -> list[int]:
    """argparse type: "20", or "20 40" as one word, as passed by SageMaker and Optuna."""
    numbers = [int(word) for word in text.split()]
    if not numbers or min(numbers) < 0:
        raise ValueError(text)
    return numbers


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = add_data_arguments(parser)
    group.add_argument("--scale_features", action=argparse.BooleanOptionalAction,
                       help="crop size and modality as inputs (default: if a pixel size is known)")  # fmt: skip
    for name, limits in LIMITS.items():
        group.add_argument(f"--{name}_limits", type=positive, nargs=2, default=limits, metavar=("MIN", "MAX"),
                           help=f"plausible {name} in mm; records outside are skipped")  # fmt: skip
    group = add_vit_arguments(parser, dropout=0.2)
    group.add_argument("--company_checkpoint", type=Path, help="company classifier: model folder or .pth file")
    group.add_argument("--model_checkpoint", type=Path, help="model classifier: model folder or .pth file")
    group.add_argument("--embeddings", choices=tuple(EMBEDDINGS), default="dual", help="embedding branches to use")
    group.add_argument("--attention_type", choices=ATTENTION_TYPES,
                       help="fusion of the branches (default: triple; concat without embeddings)")  # fmt: skip
    group.add_argument("--embedding_dim", type=positive_int, default=256, help="common width of the projected branches")
    group.add_argument("--uncertainty", action="store_true", help="log-variance for each size (β-NLL loss)")
    group.add_argument("--auxiliary", nargs="+", default=[], metavar="FIELD",
                       help="record fields to classify as well, for example thread_type")  # fmt: skip
    group.add_argument("--auxiliary_weight", type=non_negative, default=0.2, help="weight of the auxiliary loss")
    group = parser.add_argument_group("strategy")
    group.add_argument("--unfreeze_schedule", type=epoch_number, nargs="+", default=[[20, 40]], metavar="EPOCH",
                       help="epochs at which the upper half of each network, then all of it, is unfrozen")  # fmt: skip
    group.add_argument("--embedding_lr_multiplier", type=non_negative, default=0.1,
                       help="learning rate of the networks as a factor on --lr")  # fmt: skip
    group.add_argument("--cache_features", action="store_true", help="cache the features of frozen networks")
    group.add_argument("--cache_views", type=positive_int, default=4, help="augmented views of each image in the cache")
    add_training_arguments(parser, epochs=50, batch_size=16, lr=5e-4, warmup_epochs=2, weight_decay=0.01)
    args = parse_training(parser, argv)
    args.unfreeze_schedule = [number for numbers in args.unfreeze_schedule for number in numbers]
    if len(args.unfreeze_schedule) != 2 or args.unfreeze_schedule[0] > args.unfreeze_schedule[1]:
        parser.error("--unfreeze_schedule takes two epochs, the smaller one first: 20 40")
    args.attention_type = args.attention_type or ("triple" if EMBEDDINGS[args.embeddings] else "concat")
    for name in EMBEDDINGS[args.embeddings]:
        if not getattr(args, f"{name}_checkpoint"):
            parser.error(f"--embeddings {args.embeddings} needs --{name}_checkpoint, a run of train_classifier.py")
    return args


def main(argv=None):
    args = parse_args(argv)
    sagemaker_container.relaunch_on_all_gpus()
    run = Run(args, Path(__file__).resolve().parent.name)
    report, files = DataReport(), {"train": args.train_json, "val": args.val_json}
    limits = {name: getattr(args, f"{name}_limits") for name in LIMITS}
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits = read_splits(files, args.data_root, report, run.accelerator, TARGETS, limits, args.auxiliary)
        train = splits["train"]
        auxiliary = {field: classes for field in args.auxiliary if (classes := classes_of(train, field))}
        for field in (field for field in args.auxiliary if field not in auxiliary):
            report.add(f"no {field} in any training record", args.train_json, f"{field} left out")
        known = {name: classes_of(train, name) for name in ("company", "model", "modality")} | auxiliary
        tell_unseen(report, args.val_json, splits["val"], known)
    report.print(run.console, run.folder / "data_report.json")
    targets = [name for name in TARGETS if is_known(train[0], name)]
    if args.scale_features is None:
        args.scale_features = any(record.mm_per_px for record in train)
    modalities = classes_of(train, "modality") if args.scale_features else []
    model, taught = make_model(args, targets, modalities, auxiliary)
    model.standardise(torch.from_numpy(sizes(train, targets)).float())
    criterion = DimensionLoss(args.auxiliary_weight)
    half, full = args.unfreeze_schedule
    views = args.cache_views if args.cache_features and args.augment else None
    train_set, val_set = (
        CachedCrops(
            ImplantCrops(
                splits[split], args.image_size, args.margin, modalities, auxiliary, augment, some, args.seed, targets
            )
        )
        for split, augment, some in (("train", args.augment, views), ("val", False, None))
    )
    config = {
        "kind": "implant regressor",
        "model": model.arguments,
        "unit": "mm",
        "taught": {"targets": dict.fromkeys(targets, len(train)), **taught,
                   **{field: count_classes(train, field) for field in auxiliary}},
        "limits": limits,
        "image_size": args.image_size,
        "margin": args.margin,
        "modalities": modalities,
        "embeddings": args.embeddings,
        "train_sizes": size_table(train, targets),  # for medians and catalogue of the evaluation
    }  # fmt: skip
    train_loader, val_loader = run.prepare(
        model, parameter_groups(model, args.lr, args.weight_decay, {"encoders.": args.embedding_lr_multiplier}),
        run.loader(train_set, shuffle=True), run.loader(val_set, shuffle=False), config=config, monitor="avg_mae",
        unfreezing=model.unfreezing(half, full),
    )  # fmt: skip
    for epoch in run.epochs():
        for dataset in (train_set, val_set) if args.cache_features else ():
            if epoch >= half:
                dataset.clear()
            elif dataset.features is None:
                dataset.fill(run, args.batch_size)
        for batch in run.batches(train_loader):
            loss, parts = criterion(run.model(batch), batch, model)
            run.step(loss, parts)
        if sagemaker_container.end_epoch(run, validate(run, val_loader, criterion, model), "avg_mae"):
            break
    sagemaker_container.finish(run, "avg_mae")
    run.finish()


def make_model(
    args, targets: list[str], modalities: list[str], auxiliary: dict[str, list[str]]
) -> tuple[DualEmbeddingRegressor, dict[str, dict[str, int]]]:
    """(regressor with the networks of the arguments; "company", "model" -> class -> number of training cases of its
    network)."""
    branches = {
        name: load_classifier(getattr(args, f"{name}_checkpoint"), args.image_size, name)
        for name in EMBEDDINGS[args.embeddings]
    }
    if args.visual_checkpoint:
        visual = load_visual(args.visual_checkpoint, args.image_size)
    else:
        visual = ImplantVit(
            args.model_size, args.image_size, args.conv_stem, args.pretrained and not args.backbone_weights,
            args.backbone_weights,
        )  # fmt: skip
    model = DualEmbeddingRegressor(
        visual.arguments, **{name: classifier.arguments for name, classifier in branches.items()},
        attention_type=args.attention_type, embedding_dim=args.embedding_dim,
        scale_features=scale_length(modalities) if args.scale_features else 0, auxiliary=auxiliary,
        uncertainty=args.uncertainty, dropout=args.dropout, targets=targets,
    )  # fmt: skip
    for name, encoder in {"visual": visual, **branches}.items():
        model.encoders[name].load_state_dict(encoder.state_dict())
    return model, {name: classifier.taught for name, classifier in branches.items() if classifier.taught}


@torch.no_grad()
def validate(run: Run, loader, criterion: DimensionLoss, model: DualEmbeddingRegressor) -> dict[str, float]:
    """Loss, and mean absolute errors in mm of each target and over all targets."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        prediction = run.model(batch)
        rows = range(len(batch["index"]))
        losses = [criterion(pick(prediction, row), pick(batch, row), model)[0] for row in rows]
        cases.add(batch["index"], loss=torch.stack(losses), error=(prediction["mm"] - batch["target"]).abs())
    table = cases.table()
    errors = table["error"].mean(dim=0)
    metrics = {f"{name}_mae": float(error) for name, error in zip(model.targets, errors, strict=True)}
    return {"loss": float(table["loss"].mean()), "avg_mae": float(errors.mean()), **metrics}


def pick(values: dict, row: int) -> dict:
    """Batch of one case of a batch."""
    return {
        name: pick(value, row) if isinstance(value, dict) else value[row : row + 1]
        for name, value in values.items()
        if not isinstance(value, list)
    }


if __name__ == "__main__":
    script(main)
