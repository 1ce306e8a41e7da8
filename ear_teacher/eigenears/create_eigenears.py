"""Draws eigenears: decoded principal components of the codes of a VAE, and whether they change structure or brightness.

    python ear_teacher/eigenears/create_eigenears.py --checkpoint runs/ear_teacher/best
    python ear_teacher/eigenears/create_eigenears.py --checkpoint BEST --manifest DATA/val_teacher.npy --output val

Uses the training ears of the model, or those of --manifest. Writes pc_1.png … pc_16.png, eigenears_grid.png,
explained_variance.png and .csv (one row per component), samples.png, eigenears.json, data_report.json and report.html
to --output. Details: eigenears/README.md.
"""

import sys
from pathlib import Path

sys.path[:0] = [
    str(folder) for folder in Path(__file__).resolve().parents[1:3]
]  # the project, then the repository root

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, non_negative_int, positive, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.report import Report
from core.results import close, evaluation_folder, write_csv, write_json
from core.validation import DataReport, leave_out_unreadable
from ear.codes import encode_all, take_data_of_training
from ear.crops import EarCrops, read_manifest, to_pixels
from ear.latent_space import (
    PCA,
    STRUCTURE,
    Mixture,
    active_units,
    along,
    brightness_share,
    fit_mixture,
    principal_components,
    sample,
    verdict,
)
from ear.manifest import add_reading_arguments
from ear.plots import Eigenear, eigenear_grid, eigenear_strip, explained_variance, picture_grid
from ear.sam_vae import EarVAE

FIRST = 5  # components in the summary


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    parser.add_argument("--manifest", type=Path, help="ears: .npy, .csv or folder (default: the training ears)")
    add_reading_arguments(parser, box_format=None)
    parser.add_argument("--components", type=positive_int, default=16, help="maximum number of components")
    parser.add_argument("--steps", type=positive_int, default=7, help="pictures per component, an odd number")
    parser.add_argument("--sigma", type=positive, default=3.0, help="standard deviations from the mean to either end")
    parser.add_argument("--samples", type=positive_int, default=16, help="number of sampled ears")
    parser.add_argument("--output", type=Path, help="output folder (default: eigenears/ beside best/)")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="batch size per process, in ears")
    parser.add_argument("--num_workers", type=non_negative_int, default=2, help="data loader workers per process")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="random seed of the samples")
    args = parser.parse_args(argv)
    if args.steps < 3 or args.steps % 2 == 0:
        parser.error(f"--steps {args.steps}: give 3, 5, 7 …, so that the middle one is the mean ear")
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    model, config = EarVAE.from_folder(args.checkpoint)
    args.output = args.output or evaluation_folder(args.checkpoint, "eigenears")
    take_data_of_training(args)
    data_report = DataReport()
    with data_report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        ears = read_manifest(args.manifest, args.data_root, args.box_format or "xyxy", data_report)
        ears = leave_out_unreadable({"ears": ears}, data_report, accelerator)["ears"]
    crops = EarCrops(ears, model.image_size, **config["data"])
    mu = encode_all(accelerator, console, model, crops, args.batch_size, args.num_workers)["mu"]
    if accelerator.is_main_process:
        data_report.print(console, args.output / "data_report.json")
        pca = components_of(mu, args)
        count = min(args.components, len(pca.explained))
        if count < args.components:
            console.print(f"{len(ears)} ears have {count} components, fewer than --components {args.components}")
        eigenears = [decode_component(model, pca, number, args) for number in range(count)]
        mixture = fit_mixture(pca, mu)
        pictures = write_figures(model, mixture, eigenears, mu, args)
        results = summarise(mixture, eigenears, mu, model, args)
        results["environment"] = environment(accelerator)
        write_json(args.output / "eigenears.json", results)
        write_table(results["components"], args.output / "explained_variance.csv")
        write_report(results, pictures, data_report, args)
        print_summary(results, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def components_of(mu: np.ndarray, args) -> PCA:
    """Principal components of codes (N, D). Raises UserError for fewer than two codes and for equal codes."""
    try:
        return principal_components(mu)
    except ValueError as error:
        way_out = "give two ears at least, or train a model that tells them apart"
        raise UserError(f"{args.manifest}: {error}; {way_out}") from error


@torch.no_grad()
def decode(model: EarVAE, codes: np.ndarray) -> torch.Tensor:
    """Pictures (N, 3, S, S) in [-1, 1] of codes (N, D)."""
    device = next(model.parameters()).device
    return model.decode(torch.from_numpy(codes.astype(np.float32)).to(device)).cpu()


def decode_component(model: EarVAE, pca: PCA, number: int, args) -> Eigenear:
    """Decoded pictures along component `number` (0 = first), and the verdict on its change from end to end."""
    sigmas = np.linspace(-args.sigma, args.sigma, args.steps)
    pictures = decode(model, along(pca, number, sigmas))
    low, high = pictures[0].numpy(), pictures[-1].numpy()
    share = brightness_share(low, high)
    change = 127.5 * np.abs(high - low).mean(axis=0)
    explained = float(pca.explained[number])
    return Eigenear(f"PC {number + 1}", to_pixels(pictures), sigmas, change, explained, share, verdict(share))


def write_figures(model: EarVAE, mixture: Mixture, eigenears: list[Eigenear], mu: np.ndarray, args) -> dict[str, Path]:
    """Writes the figures; returns name -> file."""
    rng = np.random.default_rng(args.seed)
    some = mu[rng.permutation(len(mu))[: args.samples]]
    samples = {
        "reconstructions\nof real ears": decode(model, some),
        "samples of the\nfitted mixture": decode(model, sample(mixture, args.samples, rng)),
        "samples of N(0, I)": decode(model, rng.standard_normal((args.samples, mu.shape[1]))),
    }
    samples = {name: to_pixels(pictures) for name, pictures in samples.items()}
    drawn = {
        "eigenears_grid": eigenear_grid(eigenears),
        "explained_variance": explained_variance(eigenears),
        "samples": picture_grid(samples, inches=0.8),
        **{f"pc_{number}": eigenear_strip(eigenear) for number, eigenear in enumerate(eigenears, 1)},
    }
    return {name: figures.save(fig, args.output / f"{name}.png") for name, fig in drawn.items()}


def summarise(mixture: Mixture, eigenears: list[Eigenear], mu: np.ndarray, model: EarVAE, args) -> dict:
    """Content of eigenears.json without the environment."""
    pca, rows = mixture.pca, []
    for number, eigenear in enumerate(eigenears):
        rows.append(
            {
                "component": number + 1,
                "deviation": float(pca.deviations[number]),
                "share": eigenear.explained,
                "cumulative": float(pca.explained[: number + 1].sum()),
                "brightness_share": eigenear.brightness_share,
                "verdict": eigenear.verdict,
                "change": float(eigenear.change.mean()),
            }
        )
    first = rows[:FIRST]
    return {
        "checkpoint": args.checkpoint,
        "manifest": args.manifest,
        "ears": len(mu),
        "latent_dim": model.latent_dim,
        "active_units": active_units(mu),
        "sigma": args.sigma,
        "first": {
            "components": len(first),
            "share": first[-1]["cumulative"],
            "structure": sum(row["verdict"] == STRUCTURE for row in first),
        },
        "components_for_90_percent": int(np.searchsorted(pca.explained.cumsum(), 0.9)) + 1,
        "gaussians": len(mixture.weights),
        "components": rows,
    }


def write_table(rows: list[dict], file: Path) -> None:
    """Writes a CSV table, one row per component: shares in 0-1, `deviation` in code units, `change` in grey levels of
    255."""
    cells = ([f"{x:.6g}" if isinstance(x, float) else x for x in row.values()] for row in rows)
    write_csv(file, list(rows[0]), cells)


def write_report(results: dict, pictures: dict[str, Path], data_report: DataReport, args) -> None:
    """Writes report.html: main results, components, explained variance, sampled ears."""
    first, count = results["first"], len(results["components"])
    report = Report("Eigenears", f"{args.checkpoint}, {results['ears']} ears of {args.manifest}")
    report.cards(
        [
            (f"First {first['components']} components", f"{100 * first['share']:.1f} %", "of the code variance"),
            ("Change structure", f"{first['structure']} of {first['components']}", "not brightness or colour"),
            ("Components for 90 %", str(results["components_for_90_percent"]), "of the code variance"),
            ("Active units", f"{results['active_units']} of {results['latent_dim']}", "variance of mu above 0.01"),
        ]
    )
    report.text(
        f"Each row follows one principal component of the codes from −{args.sigma:g} to +{args.sigma:g} standard "
        "deviations about the mean ear. The last column maps the change of the pixels between both ends, scaled to its "
        "maximum (in grey levels of 255). A component changes brightness or colour if one gain and offset per colour "
        "channel explain at least half of its squared change; otherwise structure, such as shape, pose, hair and "
        "shadows."
    )
    if not first["structure"]:
        report.text("None of the first components changes structure; eigenears/README.md lists remedies.")
    report.section("All components")
    report.figures([(pictures["eigenears_grid"], f"The first {count} components")])
    report.section("Explained variance")
    report.figures([(pictures["explained_variance"], "Variance of the codes by component and verdict")])
    rows = [
        [row["component"], f"{row['deviation']:.3g}", f"{100 * row['share']:.1f} %", f"{100 * row['cumulative']:.1f} %",
         f"{100 * row['brightness_share']:.0f} %", row["verdict"], f"{row['change']:.1f}"]
        for row in results["components"]
    ]  # fmt: skip
    titles = "component", "deviation", "variance", "cumulative", "brightness, colour", "changes", "mean change of 255"
    report.table(titles, rows)
    report.section(
        "Sampled ears",
        f"Decoded codes of a mixture of {results['gaussians']} Gaussians, fitted to the ears' codes. The last row "
        "shows samples of the prior N(0, I), which the codes do not follow: the weight of the KL term is small.",
    )
    report.figures([(pictures["samples"], "Reconstructed ears, and sampled ones")])
    report.section("First components in steps", "Further components are in the files pc_N.png.")
    for number in range(1, first["components"] + 1):
        report.figures([(pictures[f"pc_{number}"], "")])
    close(report, args.output / "report.html", results["environment"], data_report.counts())


def print_summary(results: dict, console: Console) -> None:
    """Prints the first components."""
    table = Table("component", "variance", "cumulative", "brightness, colour", "changes", box=None)
    for row in results["components"][:FIRST]:
        shares = [f"{100 * row[name]:.1f} %" for name in ("share", "cumulative", "brightness_share")]
        table.add_row(f"PC {row['component']}", *shares, row["verdict"])
    console.print(table, crop=False)
    first = results["first"]
    console.print(
        f"first {first['components']} components explain {100 * first['share']:.1f} % of the variance; "
        f"{first['structure']} of them change structure"
    )


if __name__ == "__main__":
    script(main)
