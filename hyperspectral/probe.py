"""Puts an encoder to use: classifies cubes by the CSV's label, or segments them by its masks, and says how well.

    python hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv
    python hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --task segment
    accelerate launch hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --finetune

The encoder is frozen unless --finetune says otherwise. A frozen classification is a linear probe, solved exactly in
one go; all else learns on train, and valid chooses the epoch. Results in --save_dir: best/ (for predict.py), and
metrics.json, predictions.csv, report.html, figures/ and masks/ of the test split, beside simpler methods.
"""

import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from core.args import ArgumentParser, add_training_arguments, positive_int, script
from core.cases import Cases
from core.checkpoints import save_model
from core.environment import environment
from core.files import distinct_names
from core.run import Run
from core.schedules import parameter_groups
from core.unfreezing import UnfreezingSchedule
from hsi.files import Cube, inspect, leave_out, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.probe import (
    IGNORED,
    PROJECT,
    LabelledDataset,
    LinearProbe,
    ProbeModel,
    dice,
    read_mask,
    segmentation_loss,
    with_labels,
    with_masks,
)
from hsi.probe_report import Picture, mask_picture, print_summary, write_classification, write_segmentation
from hsi.statistics import measure_all
from hsi.wavelengths import parse_wavelengths

PIXELS = 20_000  # of the train cubes, from which the segmentation by spectrum alone learns,
PENALTY = 1e-4  # and its penalty on weights: so many pixels leave nothing to choose


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--checkpoint", type=Path, required=True, help="best/ of a training run")
    group.add_argument("--random_init", action="store_true", help="forget its weights: what has pre-training brought?")
    group.add_argument("--finetune", action="store_true", help="let the encoder learn, too")
    group.add_argument("--layer_decay", type=float, default=0.75, help="rate of each layer as a share of the next one")
    group = parser.add_argument_group("data")
    group.add_argument("--csv_file", type=Path, required=True, help="table of the cubes; its paths start there")
    group.add_argument("--task", choices=("classify", "segment"), default="classify", help="by label, or by mask_file")
    group.add_argument("--class_names", nargs="+", default=[], metavar="NAME", help="of the mask's classes 0, 1, …")
    group.add_argument("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    group.add_argument(
        "--img_size", type=positive_int, nargs=2, metavar=("H", "W"), help="px (default: as in training)"
    )
    group.add_argument("--wavelengths", type=parse_wavelengths, metavar="LIST", help="nm (default: as in training)")
    group.add_argument("--nb_to_plot", type=positive_int, default=4, help="segmented cubes in the pictures")
    group.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    add_training_arguments(parser, epochs=50, batch_size=6, lr=1e-3, warmup_epochs=5, weight_decay=0.05)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, PROJECT)
    mae, config = MAESpectral.from_folder(args.checkpoint, args.img_size, args.wavelengths)
    if args.random_init:
        fresh = MAESpectral(**config["model"])
        fresh.set_statistics(mae.mean, mae.std)
        mae = fresh.eval()
    key, segment = args.h5_key or config["h5_key"], args.task == "segment"
    splits, classes, spectra = read_data(run, args, mae, key, config["split_fractions"])
    names = None if segment else classes
    model = ProbeModel(mae, len(classes), segment).to(run.accelerator.device)
    config = {name: config[name] for name in ("model", "wavelengths", "unit")} | {
        "project": PROJECT, "task": args.task, "classes": classes, "h5_key": key,
    }  # fmt: skip

    learns = segment or args.finetune
    if not segment:  # fine-tuning, too, starts at the linear probe: a random head spoils features (Kumar et al. 2022)
        cubes = splits["train"] if args.finetune else splits["train"] + splits["valid"]
        features = encode(run, model, LabelledDataset(cubes, key, classes))
        targets = np.array([classes.index(cube.label) for cube in cubes])
        probe, config["penalty"] = LinearProbe.fit(features, targets, [cube.patient for cube in cubes])
        model.head.load_state_dict(probe.state_dict())
    if learns:
        learn(run, model, splits, key, names, config, args)
    elif run.is_main:
        run.files.clear()
        save_model(run.folder / "best", model, config)
        run.files.describe(args, environment(run.accelerator))
        run.files.log({"penalty": config["penalty"]})
    run.accelerator.wait_for_everyone()

    best, _ = ProbeModel.from_folder(run.folder / "best")
    dataset = LabelledDataset(splits["test"], key, names)
    table = predict(run, best.to(run.accelerator.device), dataset)
    if run.is_main:
        method = "fine-tuned" if args.finetune else "frozen"
        if segment:
            by_spectrum = segment_by_spectrum(LabelledDataset(splits["train"], key), dataset, len(classes), args.seed)
            results = {method: table["dice"].numpy(), "spectrum of the pixel": by_spectrum}
            pictures = read_pictures(run.folder, dataset, args.nb_to_plot)
            methods = write_segmentation(
                run.folder, results, dataset.cubes, classes, pictures, config["wavelengths"], args
            )
        else:
            fitted = splits["train"] + splits["valid"]
            results = {method: table["probabilities"].numpy()} | baselines(fitted, dataset.cubes, classes, spectra)
            methods = write_classification(run.folder, results, dataset.cubes, classes, args)
        print_summary(methods, run.console)
        run.console.print(f"report: {run.folder / 'report.html'}", style="bold")
    if learns:
        run.finish()
    else:
        run.accelerator.end_training()


def read_data(run: Run, args, mae: MAESpectral, key: str, fractions: tuple[float, float]):
    """(usable cubes with a target, by split; the classes; ID -> mean spectrum (C,)); the problems are printed and in
    data_report.json."""
    splits, report = read_cubes(args.csv_file, *fractions)  # as in training: what it has seen is no test
    splits = inspect(splits, key, len(mae.mean), mae.img_size, report)
    segment = args.task == "segment"
    needed = ("train", "valid", "test") if segment or args.finetune else ("train", "test")
    choose = partial(with_masks, size=mae.img_size, names=args.class_names) if segment else with_labels
    splits, _ = choose(splits, report=report)
    measured = [measure_all(splits, key, max(1, args.num_workers), run.console) if run.is_main else None]
    broadcast_object_list(measured)
    unusable = {name: result for name, result in measured[0].items() if isinstance(result, str)}
    splits = leave_out(splits, unusable, report, needed=("train",))
    splits, classes = choose(splits, report=report)  # again: the only cube of a class may have been unusable
    splits = leave_out(splits, {}, report, needed)
    report.print(run.console, run.folder / "data_report.json")
    if run.is_main:
        report.write(run.folder / "data_report.json")
    return splits, classes, {name: result.mean for name, result in measured[0].items() if name not in unusable}


def learn(run: Run, model: ProbeModel, splits, key: str, classes: list[str] | None, config: dict, args) -> None:
    """Trains the head, and with `--finetune` the encoder, into the run's best/."""
    criterion = F.cross_entropy if classes else segmentation_loss
    train_set = LabelledDataset(splits["train"], key, classes, model.mae.std.cpu().numpy(), args.seed)
    val_set = LabelledDataset(splits["valid"], key, classes)
    rates = model.layer_decay(args.layer_decay) if args.finetune else None
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay, rates),
        run.loader(train_set, shuffle=True),
        run.loader(val_set, shuffle=False),
        config=config,
        monitor="loss",
        unfreezing=None if args.finetune else UnfreezingSchedule([(args.epochs, [model.mae])]),  # that is, never
    )
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            run.step(criterion(run.model(batch["cube"]), batch["target"]))
        if run.end_epoch(validate(run, val_loader, criterion)):
            break


@torch.no_grad()
def validate(run: Run, loader, criterion) -> dict[str, float]:
    """The mean loss over the cubes, each once."""
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        logits = run.model(batch["cube"])
        losses = [criterion(one[None], target[None]) for one, target in zip(logits, batch["target"], strict=True)]
        cases.add(batch["index"], loss=torch.stack(losses))
    return {"loss": float(cases.table()["loss"].mean())}


@torch.no_grad()
def encode(run: Run, model: ProbeModel, dataset: LabelledDataset) -> np.ndarray:
    """Pooled features (N, D) of all cubes."""
    cases = Cases(run.accelerator, len(dataset))
    for batch in run.accelerator.prepare(DataLoader(dataset, run.args.batch_size, num_workers=run.args.num_workers)):
        cases.add(batch["index"], features=model.mae.encode(batch["cube"]).pooled)
    return cases.table()["features"].numpy()


@torch.no_grad()
def predict(run: Run, model: ProbeModel, dataset: LabelledDataset) -> dict[str, torch.Tensor]:
    """`probabilities` (N, K), or `dice` (N, K), and then the predicted masks are in masks/."""
    cases, files = Cases(run.accelerator, len(dataset)), mask_files(run.folder, dataset)
    if model.segment:
        files[0].parent.mkdir(parents=True, exist_ok=True)
    for batch in run.accelerator.prepare(DataLoader(dataset, run.args.batch_size, num_workers=run.args.num_workers)):
        logits = model(batch["cube"]).float()
        if not model.segment:
            cases.add(batch["index"], probabilities=logits.softmax(dim=1))
            continue
        predicted = logits.argmax(dim=1)
        cases.add(batch["index"], dice=dice(predicted, batch["target"], logits.shape[1]))
        for index, mask in zip(batch["index"], predicted.cpu().numpy(), strict=True):
            mask_picture(mask, logits.shape[1]).save(files[index])
    run.accelerator.wait_for_everyone()  # the others' masks are there, too
    return cases.table()


def mask_files(folder: Path, dataset: LabelledDataset) -> list[Path]:
    """Where the predicted masks of the cubes are."""
    return [folder / "masks" / f"{name}.png" for name in distinct_names(cube.id for cube in dataset.cubes)]


def read_pictures(folder: Path, dataset: LabelledDataset, number: int) -> list[Picture]:
    """The first `number` cubes, their masks, and the predicted ones."""
    pictures = []
    for index, file in enumerate(mask_files(folder, dataset)[:number]):
        item = dataset[index]
        mask = item["target"].numpy()
        pictures.append(Picture(item["id"], item["cube"].numpy(), mask, read_mask(file, mask.shape)))
    return pictures


def baselines(
    fitted: list[Cube], cubes: list[Cube], classes: list[str], spectra: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Probabilities (N, K) by the linear probe on mean spectra, and by the frequency of the classes alone."""
    targets = np.array([classes.index(cube.label) for cube in fitted])
    known = np.array([spectra[cube.id] for cube in fitted])
    probe, _ = LinearProbe.fit(known, targets, [cube.patient for cube in fitted])
    with torch.no_grad():
        by_spectrum = probe(torch.from_numpy(np.array([spectra[cube.id] for cube in cubes]))).softmax(dim=1).numpy()
    shares = np.bincount(targets, minlength=len(classes)) / len(targets)
    return {"mean spectrum": by_spectrum, "frequency alone": np.tile(shares, (len(cubes), 1))}


@torch.no_grad()
def segment_by_spectrum(train: LabelledDataset, test: LabelledDataset, classes: int, seed: int) -> np.ndarray:
    """Dice (N, K) on `test` of a linear classifier that sees the spectrum of each pixel and nothing else."""
    rng, x, y = np.random.default_rng(seed), [], []
    for item in train:
        mask = item["target"].flatten()
        known = np.flatnonzero(mask != IGNORED)
        where = rng.choice(known, min(len(known), -(-PIXELS // len(train))), replace=False)
        x.append(item["cube"].flatten(1)[:, where].T)
        y.append(mask[where])
    probe = LinearProbe.solve(torch.cat(x).numpy(), torch.cat(y).numpy(), classes, PENALTY)
    results = []
    for item in test:
        predicted = probe(item["cube"].double().flatten(1).T).argmax(dim=1).view_as(item["target"])
        results.append(dice(predicted[None], item["target"][None], classes))
    return torch.cat(results).numpy()


if __name__ == "__main__":
    script(main)
