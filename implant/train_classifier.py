"""Trains a classifier of implants by company or model, whose embedding is an input of train.py.

    python implant/train_classifier.py --target company --train_json train.json --val_json val.json
    python implant/train_classifier.py --target model --train_json train.json --val_json val.json

Results in --save_dir: best/ (the classifier), last/ (for --resume), metrics.jsonl, data_report.json, figures/ with the
confusion matrix of validation.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch
import torch.nn.functional as F

from core import figures
from core.args import ArgumentParser, add_training_arguments, positive_int, script
from core.cases import Cases
from core.errors import UserError
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport
from implants import sagemaker_container
from implants.arguments import add_data_arguments, add_vit_arguments, parse_training
from implants.crops import ImplantCrops, count_classes
from implants.dual_embedding import load_visual
from implants.loss import class_loss
from implants.splits import read_splits, tell_unseen
from implants.vit import ImplantClassifier


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = add_data_arguments(parser)
    group.add_argument("--target", choices=("company", "model"), required=True, help="label to classify")
    group = add_vit_arguments(parser, dropout=0.1)
    group.add_argument("--embedding_dim", type=positive_int, default=256, help="length of the embedding")
    add_training_arguments(
        parser, epochs=30, batch_size=32, lr=1e-4, warmup_epochs=2, weight_decay=0.05, early_stopping_patience=10
    )
    return parse_training(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    sagemaker_container.relaunch_on_all_gpus()
    run = Run(args, f"{Path(__file__).resolve().parent.name}_{args.target}")
    report, files = DataReport(), {"train": args.train_json, "val": args.val_json}
    with report.written_to(run.folder / "data_report.json", run.is_main):
        # Records without sizes are usable.
        splits = read_splits(files, args.data_root, report, run.accelerator, (args.target,))
        taught = count_classes(splits["train"], args.target)
        classes = list(taught)
        tell_unseen(report, args.val_json, splits["val"], {args.target: classes})
        if len(classes) < 2:
            report.add(f"one {args.target} only", args.train_json, "refused", classes[0])
            raise UserError(
                f"{args.train_json}: every record is of {args.target} {classes[0]!r}; there is nothing to tell apart"
            )
    report.print(run.console, run.folder / "data_report.json")
    model = make_model(args, classes)
    labels = {args.target: classes}
    train_set, val_set = (
        ImplantCrops(splits[split], args.image_size, args.margin, labels=labels, augment=augment, seed=args.seed)
        for split, augment in (("train", args.augment), ("val", False))
    )
    config = {
        "kind": "implant classifier", "taught": {args.target: taught}, "target": args.target, "classes": classes,
        "model": model.arguments, "margin": args.margin,
    }  # fmt: skip
    train_loader, val_loader = run.prepare(
        model, parameter_groups(model, args.lr, args.weight_decay), run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False), config=config, monitor="accuracy", mode="max",
    )  # fmt: skip
    label = f"label_{args.target}"
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            run.step(F.cross_entropy(run.model(batch["image"]).float(), batch[label]))
        if sagemaker_container.end_epoch(run, validate(run, val_loader, label, classes), "val_accuracy"):
            break
    sagemaker_container.finish(run, "val_accuracy")
    run.finish()


def make_model(args, classes: list[str]) -> ImplantClassifier:
    """Classifier with the initial weights of the arguments."""
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
    """Loss, accuracy and macro-F1; classes that are not in training count as errors. Writes the confusion matrix of a
    new best epoch to figures/."""
    from torchmetrics.functional.classification import (  # slow import
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

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
