"""Fits and evaluates a spectral probe on an encoder: classification by the CSV's label, or segmentation by its masks.

    python hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv
    python hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --task segment
    accelerate launch hyperspectral/probe.py --checkpoint runs/hyperspectral/best --csv_file DATA.csv --finetune

The encoder is frozen unless --finetune is given. Classification with a frozen encoder is a linear probe with an exact
solution on train and valid; otherwise, training is on train, and valid selects the epoch. Writes to --save_dir: best/
(for predict.py), and for the test split, with baselines, metrics.json, predictions.csv, report.html, figures/, masks/.
"""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
import torch.nn.functional as F

from core.args import ArgumentParser, add_training_arguments, positive_int, script
from core.cases import Cases
from core.checkpoints import save_model
from core.environment import environment
from core.files import distinct_names
from core.run import Run
from core.schedules import parameter_groups
from core.unfreezing import UnfreezingSchedule
from core.validation import DataReport
from hsi.files import SPLITS, Cube, inspect, leave_out, read_cubes
from hsi.mae_spectral import MAESpectral
from hsi.probe import (
    IGNORED,
    KIND,
    LabelledDataset,
    LinearProbe,
    ProbeModel,
    dice,
    mask_picture,
    read_classes,
    read_mask,
    segmentation_loss,
    with_labels,
    with_masks,
)
from hsi.probe_report import Picture, Results, print_summary, write_classification, write_segmentation
from hsi.statistics import measure_all, unusable
from hsi.wavelengths import parse_wavelengths

PIXELS = 20_000  # of the train cubes, for the segmentation baseline by single spectra
PENALTY = 1e-4  # its weight penalty, which has little effect with this number of pixels


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    add("--random_init", action="store_true", help="random encoder weights: baseline without training")
    add("--finetune", action="store_true", help="fine-tune the encoder")
    add("--layer_decay", type=float, default=0.75, help="learning rate of each layer relative to the next")
    add = parser.add_argument_group("data").add_argument
    add("--csv_file", type=Path, required=True, help="table of the cubes; paths relative to it")
    text = "target: column label, or column mask_file"
    add("--task", choices=("classify", "segment"), default="classify", help=text)
    add("--class_names", nargs="+", default=[], metavar="NAME", help="names of mask classes 0, 1, …")
    add("--h5_key", help="data set with the cube in the HDF5 files (default: as in training)")
    add("--img_size", type=positive_int, nargs=2, metavar=("H", "W"), help="cube size in px (default: as in training)")
    add("--wavelengths", type=parse_wavelengths, metavar="LIST", help="wavelengths in nm (default: as in training)")
    add("--nb_to_plot", type=positive_int, default=4, help="number of segmented cubes in the figures")
    add("--bootstrap", type=positive_int, default=1000, help="bootstrap resamples of the intervals")
    add_training_arguments(parser, epochs=50, batch_size=6, lr=1e-3, warmup_epochs=5, weight_decay=0.05)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    run = Run(args, f"{Path(__file__).resolve().parent.name}_probe")
    mae, config = MAESpectral.from_folder(args.checkpoint, args.img_size, args.wavelengths)
    if args.random_init:
        fresh = MAESpectral(**config["model"])
        fresh.set_statistics(mae.mean, mae.std)
        mae = fresh.eval()
    key, segment = args.h5_key or config["h5_key"], args.task == "segment"
    report = DataReport()
    with report.written_to(run.folder / "data_report.json", run.is_main):
        splits, counts, spectra = read_data(run, args, mae, key, config["split_fractions"], report)
        for name in (name for name, count in counts.items() if not count):
            report.add("class without a training case", args.csv_file, "left out", name)
    report.print(run.console, run.folder / "data_report.json")
    classes, learns = list(counts), segment or args.finetune
    model = ProbeModel(mae, len(classes), segment).to(run.accelerator.device)
    fitted = splits["train"] if learns else splits["train"] + splits["valid"]
    if not segment:
        counts = Counter(cube.label for cube in fitted)
    config = {name: config[name] for name in ("model", "wavelengths", "unit")} | {
        "kind": KIND, "task": args.task, "classes": classes, "h5_key": key,
        "taught": {"classes": {name: counts[name] for name in classes}},
    }  # fmt: skip

    if not segment:  # also the start of fine-tuning: a random head distorts features (Kumar et al. 2022)
        features = encode(run, model, LabelledDataset(fitted, key, classes))
        targets = np.array([classes.index(cube.label) for cube in fitted])
        probe, config["penalty"] = LinearProbe.fit(features, targets, [cube.patient for cube in fitted])
        model.head.load_state_dict(probe.state_dict())
    names = None if segment else classes
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
        to = Results(run.folder, dataset.cubes, args, report, environment(run.accelerator))
        if segment:
            numbers, train_set = list(best.taught), LabelledDataset(splits["train"], key)
            by_spectrum = segment_by_spectrum(train_set, dataset, numbers, args.seed)
            scores = {method: table["dice"].numpy()[:, numbers], "spectrum of the pixel": by_spectrum[:, numbers]}
            pictures = read_pictures(run.folder, dataset, args.nb_to_plot)
            methods = write_segmentation(to, scores, best.taught, pictures, config["wavelengths"])
        else:
            known = splits["train"] + splits["valid"]
            results = {method: table["probabilities"].numpy()} | baselines(known, dataset.cubes, classes, spectra)
            methods = write_classification(to, results, classes)
        print_summary(methods, run.console)
        run.console.print(f"report: {run.folder / 'report.html'}", style="bold")
    if learns:
        run.finish()
    else:
        run.accelerator.end_training()


def read_data(run: Run, args, mae: MAESpectral, key: str, fractions: tuple[float, float], report: DataReport):
    """(usable cubes with a target, by split; class -> number of train cubes; ID -> mean spectrum (C,))."""
    splits = read_cubes(args.csv_file, report, *fractions)  # as in training, which excludes its cubes from test
    splits = inspect(splits, key, len(mae.mean), mae.img_size, report)
    choose, segment = with_labels, args.task == "segment"
    needed = SPLITS if args.finetune or segment else ("train", "test")
    if segment:
        choose = partial(with_masks, found=read_classes(splits, mae.img_size, run.accelerator), names=args.class_names)
    splits, _ = choose(splits, report=report)
    measured = measure_all(splits, key, max(1, args.num_workers), run.console, run.accelerator)
    bad = unusable(measured)
    splits = leave_out(splits, bad, report, needed=("train",))
    splits, counts = choose(splits, report=report)  # again, as the last cube of a class may be unusable
    splits = leave_out(splits, {}, report, needed)
    return splits, counts, {name: result.mean for name, result in measured.items() if name not in bad}


def learn(run: Run, model: ProbeModel, splits, key: str, classes: list[str] | None, config: dict, args) -> None:
    """Trains the head, and with `--finetune` the encoder; best/ of the run has the best epoch."""
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
        unfreezing=None if args.finetune else UnfreezingSchedule([(args.epochs, [model.mae])]),  # never unfrozen
    )
    for _ in run.epochs():
        for batch in run.batches(train_loader):
            run.step(criterion(run.model(batch["cube"]), batch["target"]))
        if run.end_epoch(validate(run, val_loader, criterion)):
            break


@torch.no_grad()
def validate(run: Run, loader, criterion) -> dict[str, float]:
    """Mean loss over the cubes."""
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
    for batch in run.accelerator.prepare(run.loader(dataset, shuffle=False)):
        cases.add(batch["index"], features=model.mae.encode(batch["cube"]).pooled)
    return cases.table()["features"].numpy()


@torch.no_grad()
def predict(run: Run, model: ProbeModel, dataset: LabelledDataset) -> dict[str, torch.Tensor]:
    """`probabilities` (N, K), or `dice` (N, K) with the predicted masks written to masks/."""
    cases, files = Cases(run.accelerator, len(dataset)), mask_files(run.folder, dataset)
    if model.segment:
        files[0].parent.mkdir(parents=True, exist_ok=True)
    for batch in run.accelerator.prepare(run.loader(dataset, shuffle=False)):
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
    """Files of the predicted masks."""
    return [folder / "masks" / f"{name}.png" for name in distinct_names(cube.id for cube in dataset.cubes)]


def read_pictures(folder: Path, dataset: LabelledDataset, number: int) -> list[Picture]:
    """The first `number` cubes with ground truth and predicted masks."""
    pictures = []
    for index, file in enumerate(mask_files(folder, dataset)[:number]):
        item = dataset[index]
        mask = item["target"].numpy()
        pictures.append(Picture(item["id"], item["cube"].numpy(), mask, read_mask(file, mask.shape)))
    return pictures


def baselines(
    fitted: list[Cube], cubes: list[Cube], classes: list[str], spectra: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Probabilities (N, K) of the linear probe on mean spectra, and of the class frequencies."""
    targets = np.array([classes.index(cube.label) for cube in fitted])
    known = np.array([spectra[cube.id] for cube in fitted])
    probe, _ = LinearProbe.fit(known, targets, [cube.patient for cube in fitted])
    with torch.no_grad():
        by_spectrum = probe(torch.from_numpy(np.array([spectra[cube.id] for cube in cubes]))).softmax(dim=1).numpy()
    shares = np.bincount(targets, minlength=len(classes)) / len(targets)
    return {"mean spectrum": by_spectrum, "frequency alone": np.tile(shares, (len(cubes), 1))}


@torch.no_grad()
def segment_by_spectrum(train: LabelledDataset, test: LabelledDataset, classes: list[int], seed: int) -> np.ndarray:
    """Dice (N, K) on `test` of a linear classifier of single spectra. `classes`: numbers of the classes in train; K = 1
    + the highest."""
    rng, x, y = np.random.default_rng(seed), [], []
    for item in train:
        mask = item["target"].flatten()
        known = np.flatnonzero(mask != IGNORED)
        where = rng.choice(known, min(len(known), -(-PIXELS // len(train))), replace=False)
        x.append(item["cube"].flatten(1)[:, where].T)
        y.append(mask[where])
    count, numbers, results = 1 + max(classes), torch.tensor(classes), []
    probe = LinearProbe.solve(torch.cat(x).numpy(), torch.cat(y).numpy(), count, PENALTY)
    for item in test:
        best = probe(item["cube"].double().flatten(1).T)[:, numbers].argmax(dim=1)
        results.append(dice(numbers[best].view_as(item["target"])[None], item["target"][None], count))
    return torch.cat(results).numpy()


if __name__ == "__main__":
    script(main)
