"""Trains the detector of ears, box and landmarks, on the encoder that a VAE has taught; or on SAM's, or from scratch.

    python ear_teacher/train_detector.py --teacher runs/ear_teacher/best --train_manifest DATA/train_detector.npy \
        --val_manifest DATA/val_detector.npy
    python ear_teacher/train_detector.py --sam_model facebook/sam-vit-base --data IBUG --landmark_schema ibug55

A manifest is an .npy with image_paths, landmarks and, if known, bboxes, a .csv, or a folder with .pts files. Results in
--save_dir: best/ (the model), last/ (for --resume), metrics.jsonl, data_report.json. Then: evaluate_detector.py.
How to choose: DETECTION_GUIDE.md.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch

from core.args import ArgumentParser, add_training_arguments, non_negative, positive_int, script, share
from core.cases import Cases
from core.errors import UserError
from core.images import picture_size
from core.landmarks import Schema, read_schema
from core.run import Run
from core.schedules import parameter_groups
from core.validation import DataReport, leave_out_unreadable
from ear.anatomy import SCHEMAS, schema_for
from ear.detection_loss import DetectionLoss
from ear.detector import EarDetector
from ear.detector_windows import RandomWindows, TwoLooks, read_labelled
from ear.entries import BOX_FORMATS
from ear.evaluation import intersection_over_union, mean_ear
from ear.manifest import Ear
from ear.sam_encoder import SAM_CONFIGS
from ear.splits import refuse_shared_subjects, split_by_subject

DATA = Path("data/preprocessed")


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--train_manifest", type=Path, default=DATA / "train_detector.npy", help="ears to learn from")
    group.add_argument("--val_manifest", type=Path, default=DATA / "val_detector.npy", help="ears to choose best/ by")
    group.add_argument("--data", type=Path, metavar="FILE_OR_FOLDER",
                       help="one manifest in place of both, divided by subject; its train/ if it has one")  # fmt: skip
    group.add_argument("--val_fraction", type=share, default=0.1, help="of the subjects of --data")
    group.add_argument("--test_fraction", type=share, default=0.1,
                       help="of the subjects of --data, for evaluate_detector.py; none if it has train/")  # fmt: skip
    group.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their manifest)")
    group.add_argument("--box_format", choices=BOX_FORMATS, default="xyxy", help="of a .npy's boxes, in px")
    group.add_argument("--landmark_schema", metavar="NAME_OR_FILE",
                       help="ear17, ibug55 or a JSON file (default: by the number of landmarks)")  # fmt: skip
    group.add_argument("--windows", type=positive_int, default=4, help="drawn of each ear an epoch")
    group = parser.add_argument_group("encoder, one of")
    group = group.add_mutually_exclusive_group(required=True)
    group.add_argument("--teacher", type=Path, metavar="FOLDER", help="best/ of a VAE that train.py has trained")
    group.add_argument("--sam_model", metavar="NAME_OR_FOLDER", help="SAM as it is")
    group.add_argument("--sam_config", choices=tuple(SAM_CONFIGS), help="random weights")
    group = parser.add_argument_group("model")
    group.add_argument("--sam_image_size", type=int, choices=(1024, 672, 448, 224, 128),
                       help="px to which SAM's input is enlarged (default: the teacher's, or 1024)")  # fmt: skip
    group.add_argument("--latent_dim", type=positive_int, help="numbers in the code (default: the teacher's, or 1024)")
    group.add_argument("--image_size", type=positive_int, default=128, help="px of the windows")
    group.add_argument(
        "--margin", type=non_negative, default=0.3, help="of the second look around the box, of its longer side"
    )
    group.add_argument("--freeze_encoder", action="store_true", help="train the head alone")
    group.add_argument("--freeze_layers", type=int,
                       help="of SAM's blocks, the first ones (default: the teacher's; 6; 0 if random)")  # fmt: skip
    group.add_argument("--encoder_lr_scale", type=non_negative,
                       help="the encoder's learning rate over --lr (default: 0.1; 1 if random)")  # fmt: skip
    group.add_argument("--gradient_checkpointing", action="store_true", help="of SAM's blocks: less memory, more time")
    add_training_arguments(parser, epochs=60, batch_size=16, lr=1e-3, warmup_epochs=1, num_workers=4)
    args = parser.parse_args(argv)
    if args.margin < 0:
        parser.error("--margin must not be negative")
    if args.teacher and args.latent_dim:
        parser.error("--latent_dim is the teacher's: leave it out")
    if args.encoder_lr_scale is None:
        args.encoder_lr_scale = 1.0 if args.sam_config else 0.1
    return args


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, "ear_detector")
    splits, schema = read_data(run, args)
    sided = sum(bool(ear.side) for ear in splits["train"]) > 0.5 * len(splits["train"])
    model = make_model(args, len(schema.names), schema.flip if sided else None)
    criterion = DetectionLoss(model.image_size)
    looks = (model.image_size, model.margin, schema.flip, sided)
    train_set = RandomWindows(splits["train"], *looks, args.windows, args.seed)
    val_set = TwoLooks(splits["val"], *looks)
    sizes = [picture_size(ear.image) for ear in splits["train"]]
    config = {
        "project": "ear_teacher",
        "kind": "detector",
        "model": model.arguments,
        "schema": asdict(schema),
        "mean_ear": mean_ear(splits["train"], sizes, schema),  # the baseline of every evaluation
        "encoder": str(args.teacher or args.sam_model or f"random weights, {args.sam_config}"),
        "split_fractions": [args.val_fraction, args.test_fraction],
    }
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay, {"encoder.": args.encoder_lr_scale}),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor="nme",
    )
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            loss, parts = criterion(run.model(batch["image"]), batch)
            run.step(loss, parts)
        if run.end_epoch(validate(run, val_loader, criterion)):
            break
    run.finish()


def make_model(args, num_landmarks: int, flip: tuple[int, ...] | None) -> EarDetector:
    """The detector with the encoder that the arguments ask for."""
    options = {
        "image_size": args.image_size, "margin": args.margin, "flip": flip, "freeze_encoder": args.freeze_encoder,
        "gradient_checkpointing": args.gradient_checkpointing,
    }  # fmt: skip
    asked = {name: getattr(args, name) for name in ("freeze_layers", "latent_dim", "sam_image_size")}
    options |= {name: value for name, value in asked.items() if value is not None}
    if args.teacher:
        return EarDetector.from_vae_checkpoint(args.teacher, num_landmarks, **options)
    if args.sam_config:
        options.setdefault("freeze_layers", 0)  # random blocks have nothing to keep
    return EarDetector(args.sam_config or "base", args.sam_model, num_landmarks=num_landmarks, **options)


def read_data(run: Run, args) -> tuple[dict[str, list[Ear]], Schema]:
    """(usable ears by split, scheme of their landmarks); all problems are printed and in data_report.json."""
    report = DataReport()

    def read(path: Path) -> list[Ear]:
        return read_labelled(path, args.data_root, args.box_format, report)

    if args.data is None:
        splits = {"train": read(args.train_manifest), "val": read(args.val_manifest)}
    elif (args.data / "train").is_dir():  # iBUG's: its test/ is not looked at
        splits = split_by_subject(read(args.data / "train"), args.val_fraction, 0)
    else:
        splits = split_by_subject(read(args.data), args.val_fraction, args.test_fraction)
    splits = {split: splits[split] for split in ("train", "val")}
    refuse_shared_subjects(splits)
    splits = leave_out_unreadable(splits, report)
    counts = {split: len(ears[0].landmarks) for split, ears in splits.items()}
    schema = read_schema(args.landmark_schema, SCHEMAS) if args.landmark_schema else schema_for(counts["train"])
    for split, count in counts.items():
        if count != len(schema.names):
            raise UserError(
                f"the ears of {split} have {count} landmarks, {schema.name} has {len(schema.names)}; name the scheme "
                "of these data with --landmark_schema"
            )
    report.print(run.console, run.folder / "data_report.json")
    if run.is_main:
        report.write(run.folder / "data_report.json")
    return splits, schema


@torch.no_grad()
def validate(run: Run, loader, criterion: DetectionLoss) -> dict[str, float]:
    """Loss over both looks; `nme` [% of the true box's diagonal] in windows around the true boxes, as the second look
    is when the first was right; IoU of the boxes found there, and in whole pictures; share of sides that the first look
    tells rightly, if they are known."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        looks = {name: batch[name].flatten(0, 1) for name in ("image", "points", "box", "left")}
        prediction = run.model(looks["image"])
        # Ear by ear, two looks each: the last batch may hold some twice, which `Cases` leaves out.
        pairs = [slice(i, i + 2) for i in range(0, len(looks["image"]), 2)]
        losses = [criterion(*({k: x[pair] for k, x in y.items()} for y in (prediction, looks)))[0] for pair in pairs]
        diagonal = (looks["box"][:, 2:] - looks["box"][:, :2]).norm(dim=1)
        nme = 100 * (prediction["points"] - looks["points"]).norm(dim=2).nanmean(dim=1) / diagonal
        iou = torch.from_numpy(intersection_over_union(prediction["box"].cpu(), looks["box"].cpu())).to(nme)
        side = torch.where(looks["left"].isnan(), torch.nan, ((prediction["left"] > 0) == (looks["left"] > 0)).float())
        by_look = {name: x.unflatten(0, (-1, 2)) for name, x in (("nme", nme), ("iou", iou), ("side", side))}
        cases.add(batch["index"], loss=torch.stack(losses), **by_look)
    table = cases.table()
    whole, close = range(2)
    sides = table["side"][:, whole]
    known = {"side_whole": float(sides.nanmean())} if not sides.isnan().all() else {}
    return known | {
        "loss": float(table["loss"].mean()),
        "nme": float(table["nme"][:, close].mean()),
        "iou": float(table["iou"][:, close].mean()),
        "iou_whole": float(table["iou"][:, whole].mean()),
    }


if __name__ == "__main__":
    script(main)
