"""Trains a classifier of implants by company or by model. Its embedding is what train.py starts from.

    python implant/train_classifier.py --target company --train_json train.json --val_json val.json
    python implant/train_classifier.py --target model --train_json train.json --val_json val.json

Results in --save_dir: best/ (the classifier), last/ (for --resume), metrics.jsonl, data_report.json, figures/ with the
confusion matrix of validation.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from core import figures
from core.args import ArgumentParser, add_training_arguments, non_negative, positive_int, script, share
from core.cases import Cases
from core.errors import UserError
from core.run import Run
from core.schedules import parameter_groups
from implants import sagemaker_container
from implants.crops import ImplantCrops, classes_of
from implants.dual_embedding import load_visual
from implants.loss import class_loss
from implants.splits import read_splits
from implants.vit import WIDTHS, ImplantClassifier


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--target", choices=("company", "model"), required=True, help="what to tell apart")
    group.add_argument("--train_json", type=Path, help="records to learn from")
    group.add_argument("--val_json", type=Path, help="records to choose best/ by")
    group.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their JSON)")
    group.add_argument("--margin", type=non_negative, default=0.1, help="around the box, of its longer side")
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="other views each epoch")
    group = parser.add_argument_group("model")
    group.add_argument("--model_size", choices=tuple(WIDTHS), default="base", help="of the ViT")
    group.add_argument("--image_size", type=positive_int, default=224, help="px of the crops, a multiple of 16")
    group.add_argument("--embedding_dim", type=positive_int, default=256, help="numbers of the embedding")
    group.add_argument("--dropout", type=share, default=0.1, help="before the head")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True, help="ImageNet weights")
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")
    group.add_argument("--visual_checkpoint", type=Path, help="run of either script whose ViT this one starts from")
    group.add_argument("--conv_stem", action="store_true", help="convolutions, not patches: for random weights")
    add_training_arguments(
        parser, epochs=30, batch_size=32, lr=1e-4, warmup_epochs=2, weight_decay=0.05, early_stopping_patience=10
    )
    args = parser.parse_args(sagemaker_container.words(argv))
    sagemaker_container.fill_in(args)
    if not args.train_json or not args.val_json:
        parser.error("give the records with --train_json and --val_json")
    return args


def main(argv=None):
    args = parse_args(argv)
    sagemaker_container.relaunch_on_all_gpus()
    run = Run(args, f"implant_{args.target}")
    # Sizes are not asked for: a record without them still names its company.
    splits = read_splits(run, args, needs=(args.target,))
    classes = classes_of(splits["train"], args.target)
    if len(classes) < 2:
        raise UserError(
            f"{args.train_json}: every record is of {args.target} {classes[0]!r}; there is nothing to tell apart"
        )
    model = make_model(args, classes)
    labels = {args.target: classes}
    train_set, val_set = (
        ImplantCrops(splits[split], args.image_size, args.margin, labels=labels, augment=augment, seed=args.seed)
        for split, augment in (("train", args.augment), ("val", False))
    )
    config = {
        "project": "implant",
        "kind": "classifier",
        "target": args.target,
        "classes": classes,
        "model": model.arguments,
        "margin": args.margin,
    }
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor="accuracy",
        mode="max",
    )
    label = f"label_{args.target}"
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            run.step(F.cross_entropy(run.model(batch["image"]).float(), batch[label]))
        if sagemaker_container.end_epoch(run, validate(run, val_loader, label, classes), "val_accuracy"):
            break
    sagemaker_container.finish(run, "val_accuracy")
    run.finish()


def make_model(args, classes: list[str]) -> ImplantClassifier:
    """The classifier, on the weights that the arguments name."""
    if args.visual_checkpoint:
        vit = load_visual(args.visual_checkpoint, args.image_size)
        model = ImplantClassifier(
            classes=classes, embedding_dim=args.embedding_dim, dropout=args.dropout, **vit.arguments
        )
        model.backbone.load_state_dict(vit.state_dict())
        return model
    return ImplantClassifier(
        args.model_size, classes, args.embedding_dim, args.image_size, args.dropout, args.conv_stem,
        args.pretrained and not args.backbone_weights, args.backbone_weights,
    )  # fmt: skip


@torch.no_grad()
def validate(run: Run, loader, label: str, classes: list[str]) -> dict[str, float]:
    """Loss, accuracy and macro-F1, each case once. What training has not seen is always wrong. The confusion matrix of
    a new best goes to figures/."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        cases.add(batch["index"], logits=run.model(batch["image"]).float(), label=batch[label])
    table = cases.table()
    known = table["label"] >= 0
    logits, labels = table["logits"][known], table["label"][known]
    count = len(classes)
    metrics = {
        "loss": float(class_loss(logits, labels)),
        "accuracy": float(multiclass_accuracy(logits, labels, count, average="micro") * known.float().mean()),
        "macro_f1": float(multiclass_f1_score(logits, labels, count, average="macro")),
    }
    if run.is_main and (run.best is None or metrics["accuracy"] > run.best):
        matrix = multiclass_confusion_matrix(logits, labels, count).numpy()
        figures.save(
            figures.confusion_matrix(matrix, classes, f"Validation, epoch {run.epoch + 1}"),
            run.folder / "figures" / "confusion_matrix.png",
        )
    return metrics


if __name__ == "__main__":
    script(main)
