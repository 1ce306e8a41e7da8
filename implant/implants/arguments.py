"""Command-line arguments shared by several scripts."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.args import ArgumentParser, non_negative, non_negative_int, positive_int, share
from implants import sagemaker_container
from implants.vit import WIDTHS


def add_data_arguments(parser: ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the arguments of training records, validation records and crops; returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument("--train_json", type=Path, help="training records")
    group.add_argument("--val_json", type=Path, help="validation records, for the choice of best/")
    add_data_root(group)
    group.add_argument("--margin", type=non_negative, default=0.1,
                       help="margin around the box, as a share of its longer side")  # fmt: skip
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True,
                       help="data augmentation of the training crops")  # fmt: skip
    return group


def add_data_root(parser) -> None:
    """Adds --data_root."""
    parser.add_argument("--data_root", type=Path,
                        help="root folder of the image paths (default: folder of the JSON file)")  # fmt: skip


def add_vit_arguments(parser: ArgumentParser, dropout: float) -> argparse._ArgumentGroup:
    """Adds the arguments of the ViT and its initial weights; returns their group."""
    group = parser.add_argument_group("model")
    group.add_argument("--model_size", choices=tuple(WIDTHS), default="base", help="size of the ViT")
    group.add_argument("--image_size", type=positive_int, default=224, help="side of the crops in px, a multiple of 16")
    group.add_argument("--dropout", type=share, default=dropout, help="dropout rate before the output layer")
    group.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True,
                       help="ImageNet weights for the ViT")  # fmt: skip
    group.add_argument("--backbone_weights", type=Path, metavar="FILE", help="ImageNet weights from a file (offline)")
    group.add_argument("--visual_checkpoint", type=Path,
                       help="run of either training script whose ViT initialises this one")  # fmt: skip
    group.add_argument("--conv_stem", action="store_true",
                       help="convolutional stem instead of patches, for random weights")  # fmt: skip
    return group


def parse_training(parser: ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a training script, with those of a SageMaker container if inside one."""
    args = parser.parse_args(sagemaker_container.words(argv))
    sagemaker_container.fill_in(args)
    if not args.train_json or not args.val_json:
        parser.error("give the records with --train_json and --val_json")
    return args


def add_inference_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of models, intervals and catalogue, for evaluate.py and predict.py."""
    parser.add_argument("--checkpoint", "--checkpoints", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="model folders: best/ of runs of train.py; several form an ensemble")  # fmt: skip
    parser.add_argument("--calibration_json", type=Path,
                        help="calibration records, of other patients, for conformal intervals")  # fmt: skip
    parser.add_argument("--level", type=_level, default=0.9, help="nominal coverage of the conformal intervals")
    parser.add_argument("--mc_dropout", type=non_negative_int, default=0,
                        help="Monte Carlo dropout passes, whose spread scales the intervals; 0 = none")  # fmt: skip
    parser.add_argument(
        "--catalogue", type=Path, help="JSON of the sizes on sale (default: sizes of the training split)"
    )
    add_data_root(parser)


def _level(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return float(text)
