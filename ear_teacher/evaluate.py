"""Evaluates a VAE on held-out ears: PSNR and SSIM of the reconstructions, with a pixel PCA of equal size as baseline.

    python ear_teacher/evaluate.py --checkpoint runs/ear_teacher/best --manifest DATA/val_teacher.npy

Baselines and nearest neighbours use the training ears. Writes metrics.json, predictions.csv (one row per ear),
data_report.json, figures/ and report.html to --output.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, add_evaluation_arguments, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.report import Report
from core.results import card, close, evaluation_folder, with_span, write_csv, write_json
from core.uncertainty import Interval, bootstrap
from core.validation import DataReport, leave_out_unreadable
from ear.codes import encode_all, nearest, take_data_of_training
from ear.crops import EarCrops, read_manifest, to_pixels, to_tensor
from ear.latent_space import active_units, kl_by_dimension
from ear.manifest import add_reading_arguments, refuse_shared_subjects
from ear.plots import kl_bars, picture_grid, reconstruction_grid
from ear.quality import PixelPCA, pixel_pca, quality
from ear.sam_vae import EarVAE

MODEL, PCA, MEAN = METHODS = ("model", "pixel PCA", "mean ear")
METRICS = {"psnr": ("PSNR [dB]", "{:.2f}"), "ssim": ("SSIM", "{:.3f}")}
MOST_PSNR = 20 * np.log10(255 * np.sqrt(12))  # 58.9 dB, PSNR of rounding to 8 bit
REASONS = (
    "Possible reasons: short training, or few training ears; the PCA is the optimal linear method for PSNR, while the "
    "model minimises further losses; hundreds of components keep nearly every pixel."
)
STRIPS, STEPS, NEIGHBOURS = 3, 9, 6  # interpolations, pictures of each, neighbours of an ear


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest to evaluate: .npy, .csv or folder")
    parser.add_argument("--train_manifest", type=Path, help="training manifest (default: that of the run)")
    add_reading_arguments(parser, box_format=None)
    parser.add_argument("--pca_images", type=positive_int, default=4000, help="maximum of training ears for the PCA")
    parser.add_argument("--nb_to_plot", type=positive_int, default=6, help="ears in each figure")
    seed = "the bootstrap and the choice of training ears"
    add_evaluation_arguments(parser, output="evaluation", batch_size=16, per="ears", seed=seed)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    model, config = EarVAE.from_folder(args.checkpoint)
    args.output = args.output or evaluation_folder(args.checkpoint, "evaluation")
    take_data_of_training(args, "train_manifest")
    data_report = DataReport()
    files = {"train": args.train_manifest, "evaluated": args.manifest}
    how = args.data_root, args.box_format or "xyxy"
    with data_report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        splits = {name: read_manifest(file, *how, data_report) for name, file in files.items()}
        refuse_shared_subjects(splits)
        chosen = np.random.default_rng(args.seed).permutation(len(splits["train"]))[: args.pca_images]
        splits["train"] = [splits["train"][i] for i in np.sort(chosen)]
        splits = leave_out_unreadable(splits, data_report, accelerator)
        if len(splits["train"]) < 2:
            raise UserError(f"{args.train_manifest}: the baselines need at least two training ears")
    data = {name: EarCrops(ears, model.image_size, **config["data"]) for name, ears in splits.items()}
    tables = {
        name: encode_all(accelerator, console, model, ears, args.batch_size, args.num_workers, reconstruct=True)
        for name, ears in data.items()
    }
    if accelerator.is_main_process:
        evaluated, train = tables["evaluated"], tables["train"]
        pca = pixel_pca(train["original"], model.latent_dim)
        pictures = reconstructions(evaluated, pca)
        table = {m: measure(evaluated["original"], made) for m, made in pictures.items()}
        metrics = summarise(table, evaluated, splits, model, len(pca.components), args)
        metrics["environment"] = environment(accelerator)
        write_json(args.output / "metrics.json", metrics)
        write_predictions(table, splits["evaluated"], args.output / "predictions.csv")
        shown = draw(model, pictures, table, evaluated, train, splits, args)
        write_report(metrics, shown, args, data_report)
        data_report.print(console, args.output / "data_report.json")
        print_summary(metrics, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def reconstructions(evaluated: dict, pca: PixelPCA) -> dict[str, np.ndarray]:
    """Reconstructions of the evaluated ears by each method: (N, S, S, 3) uint8."""
    mean = np.broadcast_to(pca.mean.round().astype(np.uint8), evaluated["original"].shape)
    return {MODEL: evaluated["reconstruction"], PCA: pca.reconstruct(evaluated["original"]), MEAN: mean}


def measure(originals: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR in dB (MOST_PSNR at most) and SSIM, both (N,), of pictures (N, S, S, 3) uint8."""
    pairs = zip(originals, made, strict=True)
    rows = [quality(to_tensor(ours)[None], to_tensor(truth)[None]) for truth, ours in pairs]
    table = {name: np.array([row[name].item() for row in rows]) for name in METRICS}
    return {**table, "psnr": table["psnr"].clip(max=MOST_PSNR)}


def summarise(table: dict, evaluated: dict, splits: dict, model: EarVAE, components: int, args) -> dict:
    """Content of metrics.json without the environment."""
    subjects, known = [ear.subject for ear in splits["evaluated"]], all(e.subject_known for e in splits["evaluated"])

    def interval(values: np.ndarray) -> Interval:
        return bootstrap(lambda rows: float(values[rows].mean()), subjects, args.bootstrap, seed=args.seed)

    kl = kl_by_dimension(evaluated["mu"], evaluated["logvar"])
    return {
        "data": {
            "manifest": args.manifest, "ears": len(subjects), "subjects": len(set(subjects)), "subjects_known": known,
            "train_manifest": args.train_manifest, "pca_ears": len(splits["train"]),
        },
        "latent_dim": model.latent_dim,
        "pca_components": components,
        "methods": {m: {name: interval(values) for name, values in table[m].items()} for m in METHODS},
        **{f"{name}_above_pca": interval(table[MODEL][name] - table[PCA][name]) for name in METRICS},
        "active_units": active_units(evaluated["mu"]),
        "kl": float(kl.sum()),
        "kl_by_dimension": kl,
        "checkpoint": args.checkpoint,
    }  # fmt: skip


def write_predictions(table: dict, ears: list, file: Path) -> None:
    """Writes a CSV table, one row per ear: id, subject, side, PSNR and SSIM of each method."""
    names = [(method, metric) for method in METHODS for metric in METRICS]
    header = ["id", "subject", "side", *(f"{m.replace(' ', '_')}_{metric}" for m, metric in names)]
    rows = (
        [ear.id, ear.subject, ear.side, *(f"{table[m][metric][i]:.4f}" for m, metric in names)]
        for i, ear in enumerate(ears)
    )
    write_csv(file, header, rows)


# ------------------------------------------------------------------------------------------------------------ pictures


def draw(model: EarVAE, pictures: dict, table: dict, evaluated: dict, train: dict, splits: dict, args) -> list:
    """Writes the figures; returns [(title, text, file, caption), …]."""
    order, n = np.argsort(-table[MODEL]["psnr"]), min(args.nb_to_plot, len(splits["evaluated"]))
    middle = (len(order) - n) // 2
    choices = {"typical": order[middle : middle + n], "best": order[:n], "worst": order[::-1][:n]}
    ids, shown = [ear.id for ear in splits["evaluated"]], []

    def add(name: str, fig, title: str, sentence: str, caption: str) -> None:
        shown.append((title, sentence, figures.save(fig, args.output / "figures" / f"{name}.png"), caption))

    for name, rows in choices.items():
        titles = [f"{table[MODEL]['psnr'][i]:.1f} dB" for i in rows]
        others = {PCA: pictures[PCA][rows]} if name == "typical" else {}
        fig = reconstruction_grid(evaluated["original"][rows], pictures[MODEL][rows], titles, others)
        text = "Ears around the median; the titles are the model's PSNR." if others else ""
        add(name, fig, f"{name.capitalize()} reconstructions", text, ", ".join(ids[i] for i in rows))
    strips = interpolations(model, evaluated["mu"], ids, min(STRIPS, len(order) // 2))
    titles = ["one ear", *[""] * (STEPS - 2), "another"]
    text = "Decoded codes on straight lines between the codes of two ears."
    if strips:
        add("interpolation", picture_grid(strips, titles), "Interpolation between two ears", text, "")
    rows = choices["typical"]
    near, _ = nearest(evaluated["mu"][rows], train["mu"], min(NEIGHBOURS, len(train["mu"])))
    grid = {
        ids[row]: np.concatenate([evaluated["original"][[row]], train["original"][neighbours]])
        for row, neighbours in zip(rows, near, strict=True)
    }
    titles = ["query", *(f"nearest {i + 1}" for i in range(near.shape[1]))]
    text = "Training ears whose codes are nearest to those of the typical ears."
    add("neighbours", picture_grid(grid, titles), "Nearest neighbours", text, "")
    kl = kl_bars(kl_by_dimension(evaluated["mu"], evaluated["logvar"]), evaluated["mu"])
    add("kl_by_dimension", kl, "KL divergence by dimension", "", "")
    return shown


@torch.no_grad()
def interpolations(model: EarVAE, mu: np.ndarray, ids: list[str], count: int) -> dict[str, np.ndarray]:
    """Ids of two ears -> pictures (STEPS, S, S, 3) on the line between their codes, for the most different pairs among
    the first ears."""
    first = mu[: 4 * count]
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)
    np.fill_diagonal(distances, -1)  # excludes pairs of one ear
    strips, device = {}, next(model.parameters()).device
    for _ in range(count):
        a, b = np.unravel_index(distances.argmax(), distances.shape)
        distances[[a, b]] = distances[:, [a, b]] = -1
        steps = np.linspace(0, 1, STEPS, dtype=np.float32)[:, None]
        codes = torch.from_numpy((1 - steps) * first[a] + steps * first[b]).to(device)
        strips[f"{ids[a]}\nto {ids[b]}"] = to_pixels(model.decode(codes))
    return strips


# -------------------------------------------------------------------------------------------------------------- report


def write_report(metrics: dict, shown: list, args, data_report: DataReport) -> None:
    """Writes report.html: main results, table of methods, figures."""
    data, methods = metrics["data"], metrics["methods"]
    active = f"{metrics['active_units']} of {metrics['latent_dim']}"
    guessed = "" if data["subjects_known"] else ", guessed from names of files"
    ears = f"{data['ears']} ears of {data['subjects']} persons{guessed}"
    report = Report("VAE of ears", f"{args.checkpoint} on {args.manifest}: {ears}")
    report.cards(
        [
            card("PSNR", methods[MODEL]["psnr"], unit=" dB"),
            card("Above pixel PCA", metrics["psnr_above_pca"], "{:+.2f}", " dB"),
            card("SSIM", methods[MODEL]["ssim"], "{:.3f}"),
            ("Active units", active, f"KL {metrics['kl']:.0f} nats"),
        ]
    )
    report.text(
        "PSNR and SSIM are means over the ears, of pictures in [0, 1]. Intervals: bootstrap over persons, "
        f"{args.bootstrap} resamples. Pixel PCA with {metrics['pca_components']} components and mean ear: from "
        f"{data['pca_ears']} training ears.",
        note=True,
    )
    report.text(compare(metrics))
    rows = [
        [heading, *(with_span(methods[method][name], form) for method in METHODS)]
        for name, (heading, form) in METRICS.items()
    ]
    report.table(["", *METHODS], rows)
    for title, sentence, file, caption in shown:
        report.section(title, sentence)
        report.figures([(file, caption)])
    close(report, args.output / "report.html", metrics["environment"], data_report.counts())


def compare(metrics: dict) -> str:
    """Verdict on the difference from the pixel PCA."""
    psnr, ssim = metrics["psnr_above_pca"], metrics["ssim_above_pca"]
    if psnr.low > 0:
        by = ", by at least 1 dB" if psnr.low >= 1 else ", perhaps by less than 1 dB"
        return f"In PSNR the model is ahead of the pixel PCA with codes of the same length{by}."
    verdict = "is behind" if psnr.high < 0 else "does not differ significantly from"
    text = f"In PSNR the model {verdict} the pixel PCA with codes of the same length"
    return f"{text}; in SSIM it is ahead. {REASONS}" if ssim.low > 0 else f"{text}. {REASONS}"


def print_summary(metrics: dict, console: Console) -> None:
    """Prints PSNR and SSIM of each method."""
    table = Table("", *(heading for heading, _ in METRICS.values()), box=None)
    for method, values in metrics["methods"].items():
        table.add_row(method, *(with_span(values[name], form) for name, (_, form) in METRICS.items()))
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
