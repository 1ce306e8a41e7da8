"""Trains the regressor of length and diameter on the embeddings of company and model.

    accelerate launch implant/train.py --train_json augmented_train.json --val_json augmented_val.json \
        --company_checkpoint runs/implant_company/best --model_checkpoint runs/implant_model/best
    python implant/train.py --resume                                          # go on after an interruption

The checkpoints are those of train_classifier.py, or .pth files with a ViT, an embedding and a head. Head first, then
the upper half of each network, then everything. Results in --save_dir: best/ (the model), last/ (for --resume),
metrics.jsonl, data_report.json, figures/. Then: evaluate.py, predict.py.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import ArgumentParser, add_training_arguments, non_negative, positive_int, script, share
from core.cases import Cases
from core.run import Run
from core.schedules import parameter_groups
from implants import sagemaker_container
from implants.crops import ImplantCrops, classes_of, scale_length
from implants.dual_embedding import ATTENTION_TYPES, EMBEDDINGS, DualEmbeddingRegressor, load_visual
from implants.feature_cache import CachedCrops
from implants.loss import DimensionLoss
from implants.records import TARGETS
from implants.splits import read_splits, size_table
from implants.vit import WIDTHS, ImplantVit, load_classifier


def epoch_number(text: str) -> list[int]:
    """An argparse type: "20", or "20 40" as one word, as SageMaker and Optuna hand it on."""
    numbers = [int(word) for word in text.split()]
    if not numbers or min(numbers) < 0:
        raise ValueError(text)
    return numbers


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--train_json", type=Path, help="records to learn from")
    group.add_argument("--val_json", type=Path, help="records to choose best/ by")
    group.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their JSON)")
    group.add_argument("--margin", type=non_negative, default=0.1, help="around the box, of its longer side")
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="other views each epoch")
    group.add_argument("--scale_features", action=argparse.BooleanOptionalAction,
                       help="crop's size in px and mm, modality (default: on where a spacing is known)")  # fmt: skip
    group = parser.add_argument_group("model")
    group.add_argument("--company_checkpoint", type=Path, help="folder or .pth of the company classifier")
    group.add_argument("--model_checkpoint", type=Path, help="folder or .pth of the model classifier")
    group.add_argument(
        "--visual_checkpoint", type=Path, help="run of either script whose ViT the visual branch starts from"
    )
    group.add_argument("--embeddings", choices=tuple(EMBEDDINGS), default="dual", help="which of the two to use")
    group.add_argument("--attention_type", choices=ATTENTION_TYPES,
                       help="how branches are fused (default: triple; concat without embeddings)")  # fmt: skip
    group.add_argument("--embedding_dim", type=positive_int, default=256, help="width to which branches are projected")
    group.add_argument("--model_size", choices=tuple(WIDTHS), default="base", help="of the visual ViT")
    group.add_argument("--image_size", type=positive_int, default=224, help="px of the crops, a multiple of 16")
    group.add_argument("--dropout", type=share, default=0.2, help="in the regression head")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True,
                       help="ImageNet weights for the visual ViT")  # fmt: skip
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")
    group.add_argument("--conv_stem", action="store_true", help="of the visual ViT, in place of patches: see README")
    group.add_argument("--uncertainty", action="store_true", help="a log-variance beside each size (β-NLL loss)")
    group.add_argument("--auxiliary", nargs="+", default=[], metavar="FIELD", help="fields to classify, as thread_type")
    group.add_argument("--auxiliary_weight", type=non_negative, default=0.2, help="of their loss")
    group = parser.add_argument_group("strategy")
    group.add_argument("--unfreeze_schedule", type=epoch_number, nargs="+", default=[[20, 40]], metavar="EPOCH",
                       help="two: from which the upper half of each network learns, and the rest")  # fmt: skip
    group.add_argument(
        "--embedding_lr_multiplier", type=non_negative, default=0.1, help="on --lr, for the three networks"
    )
    group.add_argument("--cache_features", action="store_true", help="compute features once while all is frozen")
    group.add_argument("--cache_views", type=positive_int, default=4, help="augmented views of each picture to cache")
    add_training_arguments(parser, epochs=50, batch_size=16, lr=5e-4, warmup_epochs=2, weight_decay=0.01)
    args = parser.parse_args(sagemaker_container.words(argv))
    sagemaker_container.fill_in(args)
    if not args.train_json or not args.val_json:
        parser.error("give the records with --train_json and --val_json")
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
    run = Run(args, "implant")
    splits = read_splits(run, args, needs=TARGETS)
    if args.scale_features is None:
        args.scale_features = any(record.mm_per_px for record in splits["train"])
    modalities = classes_of(splits["train"], "modality") if args.scale_features else []
    auxiliary = {field: classes_of(splits["train"], field) for field in args.auxiliary}
    model = make_model(args, modalities, auxiliary)
    targets = torch.tensor([[getattr(record, name) for name in TARGETS] for record in splits["train"]])
    model.standardise(targets)
    criterion = DimensionLoss(args.auxiliary_weight)
    half, full = args.unfreeze_schedule
    views = args.cache_views if args.cache_features and args.augment else None
    train_set, val_set = (
        CachedCrops(
            ImplantCrops(splits[split], args.image_size, args.margin, modalities, auxiliary, augment, some, args.seed)
        )
        for split, augment, some in (("train", args.augment, views), ("val", False, None))
    )
    config = {
        "project": "implant",
        "kind": "regressor",
        "model": model.arguments,
        "unit": "mm",
        "targets": TARGETS,
        "image_size": args.image_size,
        "margin": args.margin,
        "modalities": modalities,
        "embeddings": args.embeddings,
        "train_sizes": size_table(splits["train"]),  # evaluation compares with their medians, and knows what is sold
    }
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay, {"encoders.": args.embedding_lr_multiplier}),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor="avg_mae",
        unfreezing=model.unfreezing(half, full),
    )
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


def make_model(args, modalities: list[str], auxiliary: dict[str, list[str]]) -> DualEmbeddingRegressor:
    """The regressor with the networks that the arguments name."""
    taught = {
        name: load_classifier(getattr(args, f"{name}_checkpoint"), args.image_size)
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
        visual.arguments, **{name: classifier.arguments for name, classifier in taught.items()},
        attention_type=args.attention_type, embedding_dim=args.embedding_dim,
        scale_features=scale_length(modalities) if args.scale_features else 0, auxiliary=auxiliary,
        uncertainty=args.uncertainty, dropout=args.dropout,
    )  # fmt: skip
    for name, encoder in {"visual": visual, **taught}.items():
        model.encoders[name].load_state_dict(encoder.state_dict())
    return model


@torch.no_grad()
def validate(run: Run, loader, criterion: DimensionLoss, model: DualEmbeddingRegressor) -> dict[str, float]:
    """Loss, and mean absolute errors in mm of length, diameter and both, each case once."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        prediction = run.model(batch)
        rows = range(len(batch["index"]))
        losses = [criterion(pick(prediction, row), pick(batch, row), model)[0] for row in rows]
        cases.add(batch["index"], loss=torch.stack(losses), error=(prediction["mm"] - batch["target"]).abs())
    table = cases.table()
    errors = table["error"].mean(dim=0)
    metrics = {f"{name}_mae": float(error) for name, error in zip(TARGETS, errors, strict=True)}
    return {"loss": float(table["loss"].mean()), "avg_mae": float(errors.mean()), **metrics}


def pick(values: dict, row: int) -> dict:
    """One case of a batch: its tensors with a batch of one."""
    return {
        name: pick(value, row) if isinstance(value, dict) else value[row : row + 1]
        for name, value in values.items()
        if not isinstance(value, list)
    }


if __name__ == "__main__":
    script(main)
