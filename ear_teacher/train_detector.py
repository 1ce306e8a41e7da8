"""Trains the ear detector (box, side, landmarks) on the encoder of a VAE, of SAM, or from scratch.

    python ear_teacher/train_detector.py --teacher runs/ear_teacher/best --train_manifest DATA/train_detector.npy \
        --val_manifest DATA/val_detector.npy
    python ear_teacher/train_detector.py --sam_model facebook/sam-vit-base --data IBUG --landmarks ibug55

A manifest is a .npy with image_paths, landmarks and optionally bboxes, a .csv, or a folder with .pts files. Results in
--save_dir: best/ (the model), last/ (for --resume), metrics.jsonl, data_report.json. Next: evaluate_detector.py.
Settings: DETECTION_GUIDE.md.
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
from ear.anatomy import SCHEMAS, part_of, schema_for
from ear.detector import KIND, EarDetector
from ear.detector_windows import RandomWindows, TwoStages, read_labelled, truths, with_landmarks
from ear.entries import named_schema
from ear.evaluation import intersection_over_union, mean_ear
from ear.losses import DetectionLoss
from ear.manifest import Ear, add_reading_arguments, refuse_shared_subjects, split_by_subject
from ear.sam_encoder import SAM_CONFIGS

DATA = Path("data/preprocessed")


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--train_manifest", type=Path, default=DATA / "train_detector.npy", help="training manifest")
    group.add_argument("--val_manifest", type=Path, default=DATA / "val_detector.npy", help="validation manifest")
    group.add_argument("--data", type=Path, metavar="FILE_OR_FOLDER",
                       help="manifest to split by subject, instead of both; of a folder with train/, that")  # fmt: skip
    group.add_argument("--val_fraction", type=share, default=0.1, help="share of the subjects of --data for validation")
    group.add_argument("--test_fraction", type=share, default=0.1,
                       help="share of the subjects of --data for testing (none with train/)")  # fmt: skip
    add_reading_arguments(group)
    group.add_argument("--landmarks", "--landmark_schema", dest="landmark_schema", metavar="SCHEME",
                       help=f"scheme: {', '.join(SCHEMAS)} or a JSON file (default: by names or number)")  # fmt: skip
    group.add_argument("--windows", type=positive_int, default=4, help="random windows per ear and epoch")
    group = parser.add_argument_group("encoder (one of)")
    group = group.add_mutually_exclusive_group(required=True)
    group.add_argument("--teacher", type=Path, metavar="FOLDER", help="VAE: best/ of a run of train.py")
    group.add_argument("--sam_model", metavar="NAME_OR_FOLDER", help="SAM: name on the Hugging Face hub, or folder")
    group.add_argument("--sam_config", choices=tuple(SAM_CONFIGS), help="SAM of random weights")
    group = parser.add_argument_group("model")
    group.add_argument("--sam_image_size", type=int, choices=(1024, 672, 448, 224, 128),
                       help="side of SAM's input, px (default: the teacher's, or 1024)")  # fmt: skip
    group.add_argument("--latent_dim", type=positive_int, help="code dimensions (default: the teacher's, or 1024)")
    group.add_argument("--image_size", type=positive_int, default=128, help="side of the windows, px")
    group.add_argument("--margin", type=non_negative, default=0.3,
                       help="margin of stage 2's window around the box, over its longer side")  # fmt: skip
    group.add_argument("--freeze_encoder", action="store_true", help="train only the head")
    group.add_argument("--freeze_layers", type=int,
                       help="frozen SAM blocks, from the first (default: as teacher; SAM: 6; random: 0)")  # fmt: skip
    group.add_argument("--encoder_lr_scale", type=non_negative,
                       help="learning rate of the encoder over --lr (default: 0.1; 1 if random)")  # fmt: skip
    group.add_argument("--gradient_checkpointing", action="store_true",
                       help="gradient checkpointing of SAM's blocks: less memory, more time")  # fmt: skip
    add_training_arguments(parser, epochs=60, batch_size=16, lr=1e-3, warmup_epochs=1, num_workers=4)
    args = parser.parse_args(argv)
    if args.teacher and args.latent_dim:
        parser.error("--latent_dim is the teacher's: leave it out")
    if args.encoder_lr_scale is None:
        args.encoder_lr_scale = 1.0 if args.sam_config else 0.1
    return args


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, f"{Path(__file__).resolve().parent.name}_detector")
    report = DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits, schema, counts = read_data(run, args, report)
    sides = sum(bool(ear.side) for ear in splits["train"])
    sided = sides > 0.5 * len(splits["train"])
    model = make_model(args, len(schema.names), schema.flip if sided else None)
    criterion = DetectionLoss(model.image_size, sides=sides > 0)
    shape = (model.image_size, model.margin, schema.flip, sided)
    train_set = RandomWindows(splits["train"], *shape, args.windows, args.seed)
    val_set = TwoStages(splits["val"], *shape)
    sizes = [picture_size(ear.image) for ear in splits["train"]]
    config = {
        "kind": KIND,
        "model": model.arguments,
        "schema": asdict(schema),
        "taught": {"landmarks": counts, "boxes": {"box": len(splits["train"])}, "side": {"side": sides}},
        "mean_ear": mean_ear(splits["train"], sizes, schema),  # baseline of the evaluation
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
    """Detector on the encoder of --teacher, --sam_model or --sam_config. Raises UserError as these."""
    options = {
        "image_size": args.image_size, "margin": args.margin, "flip": flip, "freeze_encoder": args.freeze_encoder,
        "gradient_checkpointing": args.gradient_checkpointing,
    }  # fmt: skip
    asked = {name: getattr(args, name) for name in ("freeze_layers", "latent_dim", "sam_image_size")}
    options |= {name: value for name, value in asked.items() if value is not None}
    if args.teacher:
        return EarDetector.from_vae_checkpoint(args.teacher, num_landmarks, **options)
    if args.sam_config:
        options.setdefault("freeze_layers", 0)  # random blocks must not be frozen
    return EarDetector(args.sam_config or "base", args.sam_model, num_landmarks=num_landmarks, **options)


def read_data(run: Run, args, report: DataReport) -> tuple[dict[str, list[Ear]], Schema, dict[str, int]]:
    """(usable ears by split, their scheme, landmark in the files -> number of training ears); the first two without
    landmarks of no training ear. Prints the data problems. Raises UserError for unusable data."""
    scheme = args.landmark_schema
    named = read_schema(scheme, SCHEMAS) if scheme else named_schema(args.data or args.train_manifest)

    def read(path: Path) -> list[Ear]:
        return read_labelled(path, args.data_root, args.box_format, report, named)

    if args.data is None:
        splits = {"train": read(args.train_manifest), "val": read(args.val_manifest)}
    elif (args.data / "train").is_dir():  # iBUG; test/ is not read
        splits = split_by_subject(read(args.data / "train"), args.val_fraction, 0)
    else:
        splits = split_by_subject(read(args.data), args.val_fraction, args.test_fraction)
    splits = {split: splits[split] for split in ("train", "val")}
    refuse_shared_subjects(splits)
    splits = leave_out_unreadable(splits, report, run.accelerator)
    counts = {split: len(ears[0].landmarks) for split, ears in splits.items()}
    schema = named or schema_for(counts["train"])
    for split, count in counts.items():
        if count != len(schema.names):
            raise UserError(
                f"the ears of {split} have {count} landmarks, {schema.name} has {len(schema.names)}; name the scheme "
                "of these data with --landmarks"
            )
    counts = truths(splits["train"], schema)
    for name in [name for name, count in counts.items() if not count]:
        report.add("landmark of no training ear", name, "left out of the model")
    taught = [place for place, count in enumerate(counts.values()) if count]
    splits = {split: with_landmarks(ears, taught, report, split) for split, ears in splits.items()}
    report.print(run.console, run.folder / "data_report.json")
    return splits, part_of(schema, taught), counts


@torch.no_grad()
def validate(run: Run, loader, criterion: DetectionLoss) -> dict[str, float]:
    """Loss of both stages; `nme` [% of the diagonal of the true box] and `iou` of stage 2 in windows around the true
    boxes; `iou_whole` and, with sides, the share of correct sides `side_whole` of stage 1."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        truth = {name: batch[name].flatten(0, 1) for name in ("image", "points", "box", "left")}
        prediction = run.model(truth["image"])
        # Per ear: on several ranks the last batch may repeat ears, which `Cases` drops.
        pairs = [slice(i, i + 2) for i in range(0, len(truth["image"]), 2)]
        losses = [criterion(*({k: x[pair] for k, x in y.items()} for y in (prediction, truth)))[0] for pair in pairs]
        diagonal = (truth["box"][:, 2:] - truth["box"][:, :2]).norm(dim=1)
        nme = 100 * (prediction["points"] - truth["points"]).norm(dim=2).nanmean(dim=1) / diagonal
        iou = torch.from_numpy(intersection_over_union(prediction["box"].cpu(), truth["box"].cpu())).to(nme)
        side = torch.where(truth["left"].isnan(), torch.nan, ((prediction["left"] > 0) == (truth["left"] > 0)).float())
        by_stage = {name: x.unflatten(0, (-1, 2)) for name, x in (("nme", nme), ("iou", iou), ("side", side))}
        cases.add(batch["index"], loss=torch.stack(losses), **by_stage)
    table = cases.table()
    whole, close = range(2)
    sides = table["side"][:, whole]
    known = {"side_whole": float(sides.nanmean())} if criterion.sides and not sides.isnan().all() else {}
    return known | {
        "loss": float(table["loss"].mean()),
        "nme": float(table["nme"][:, close].mean()),
        "iou": float(table["iou"][:, close].mean()),
        "iou_whole": float(table["iou"][:, whole].mean()),
    }


if __name__ == "__main__":
    script(main)
