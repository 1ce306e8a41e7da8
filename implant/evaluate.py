"""Evaluates regressors on held-out patients: errors in mm and in catalogue sizes, with medians as baselines.

    python implant/evaluate.py --checkpoint runs/implant/best --test_json test.json --calibration_json val.json
    python implant/evaluate.py --checkpoint a/best b/best c/best --test_json test.json     # an ensemble
    python implant/evaluate.py --checkpoint runs/triple --compare runs/none runs/concat --test_json test.json

Writes metrics.json, predictions.csv (one row per case), data_report.json, figures/ and report.html to --output.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, add_evaluation_arguments, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.report import Report
from core.results import card, close, evaluation_folder, number, with_span, write_json
from core.validation import DataReport
from implants import evaluation, plots
from implants.arguments import add_inference_arguments
from implants.crops import ImplantCrops, classes_of
from implants.predictor import Answer, load_models, predict_all
from implants.records import Record
from implants.splits import needed, read_splits, records_of, tell_unseen

COLUMNS = {"mae": "MAE [mm]", "rmse": "RMSE [mm]", "r2": "R²", "close": f"within {evaluation.CLOSE:g} mm",
           "exact": "exact size", "one_step": "± 1 size"}  # fmt: skip
GROUPS = {"combination": "Company–model combinations that training has seen, and others", "company": "Companies",
          "model": "Models", "modality": "Modalities", "spacing": "Pixel spacing"}  # fmt: skip


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    add_inference_arguments(parser)
    parser.add_argument("--test_json", type=Path, required=True, help="test records")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="FOLDER",
                        help="model folders of further runs to compare with")  # fmt: skip
    add_evaluation_arguments(parser, output="evaluation_<test_json>", batch_size=16, per="crops")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    runs = load_runs(args)
    model, config = next(iter(runs.values()))[0]
    args.output = args.output or evaluation_folder(args.checkpoint[0], f"evaluation_{args.test_json.stem}")
    train = records_of(config["train_sizes"], model.targets)
    sold = evaluation.catalogue_of(train, model.targets)
    catalogue = evaluation.read_catalogue(args.catalogue, model.targets) if args.catalogue else sold
    report, files = DataReport(), {"test": args.test_json, "calibration": args.calibration_json}
    with report.written_to(args.output / "data_report.json", accelerator.is_main_process):
        needs, fields = needed(train, model.targets), model.arguments["auxiliary"] or {}
        known = {name: classes_of(train, name) for name in ("company", "model")}
        known |= {"modality": config["modalities"] or (), **fields}
        splits = read_splits(files, args.data_root, report, accelerator, needs, config["limits"], fields)
        for split, records in splits.items():
            tell_unseen(report, files[split], records, known)
    answers = {
        name: predict_all(args, accelerator, console, name, models, splits["test"], splits.get("calibration"))
        for name, models in runs.items()
    }
    if accelerator.is_main_process:
        found = evaluation.with_medians({name: answer.predictions for name, answer in answers.items()}, train)
        evaluations = {
            name: evaluation.Evaluation(splits["test"], predictions, catalogue, args.bootstrap, args.seed)
            for name, predictions in found.items()
        }
        answer, seen = next(iter(answers.values())), evaluation.combinations(train)
        metrics = write_results(evaluations, len(runs), answer, seen, config, args, report, environment(accelerator))
        report.print(console, args.output / "data_report.json")
        print_summary(metrics["methods"], model.targets, console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def load_runs(args) -> dict[str, list]:
    """Shortest distinct name -> models: --checkpoint as one ensemble, and each of --compare. Raises UserError for
    repeated runs and runs with other targets."""
    folders = [args.checkpoint[0], *args.compare]
    runs = [folder.parent if folder.name == "best" else folder for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("--compare names a run twice; name each once")
    if len(args.checkpoint) > 1:
        names[0] = f"ensemble of {len(args.checkpoint)}"
    models = list(map(load_models, (args.checkpoint, *([folder] for folder in args.compare))))
    for folder, ((model, _), *_) in zip(folders, models, strict=True):
        if model.targets != models[0][0][0].targets:
            raise UserError(f"{folder} predicts {' and '.join(model.targets)}, unlike {folders[0]}: no comparison")
    return dict(zip(names, models, strict=True))


# ------------------------------------------------------------------------------------------------------------ results


def write_results(
    evaluations: dict[str, evaluation.Evaluation], count: int, answer: Answer, seen: set, config: dict, args,
    data_report: DataReport, machine: dict,
) -> dict:  # fmt: skip
    """Writes metrics.json, predictions.csv, figures/ and report.html to `args.output`; returns the metrics. The first
    `count` evaluations are models, the very first the main one, with outputs `answer`; the others are baselines."""
    first = next(iter(evaluations.values()))
    by_group = {name: first.by(labels) for name, labels in evaluation.groups(first.records, seen).items()}
    metrics = {
        "data": {"records": args.test_json, "cases": len(first.records), "patients": len(set(first.patients.tolist()))},
        "unit": "mm",
        "interval_level": args.level if args.calibration_json else None,
        "methods": {name: method.summary() for name, method in evaluations.items()},
        "differences": {name: first.differences(method) for name, method in list(evaluations.items())[1:]},
        "groups": by_group,
        "attention": mean_attention(answer, first.records),
        "checkpoints": [*args.checkpoint, *args.compare],
        "environment": machine,
    }
    write_json(args.output / "metrics.json", metrics)
    evaluation.write_predictions(args.output / "predictions.csv", first)
    write_report(metrics, evaluations, count, answer, seen, config, args, data_report)
    return metrics


def mean_attention(answer: Answer, records: list[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Weighting -> company, or "all" -> branch -> mean weight, without weights over patches."""
    companies = np.array([record.company or "unknown" for record in records])
    result = {}
    for branches, weights in answer.attention.items():
        if weights.ndim == 2:
            names, rows = branches.split(", "), {"all": np.ones(len(records), bool)}
            if any(record.company for record in records):
                rows |= {company: companies == company for company in sorted(set(companies.tolist()))}
            result[branches] = {
                label: dict(zip(names, weights[chosen].mean(axis=0).tolist(), strict=True))
                for label, chosen in rows.items()
            }
    return result


def write_report(
    metrics: dict, evaluations: dict[str, evaluation.Evaluation], count: int, answer: Answer, seen: set, config: dict,
    args, data_report: DataReport,
) -> None:  # fmt: skip
    """Writes report.html and figures/."""
    (name, first), folder = next(iter(evaluations.items())), args.output / "figures"
    methods, targets, data = metrics["methods"], first.targets, metrics["data"]
    ours, median = methods[name], methods[evaluation.MEDIAN]
    report = Report(" and ".join(targets).capitalize(), f"{name} on {args.test_json}")
    cards = [
        card(f"{target.capitalize()}, MAE", ours[target]["mae"], unit=" mm",
             note=f"median {median[target]['mae'].estimate:.2f}") for target in targets
    ]  # fmt: skip
    exact = f"{100 * ours[first.rows[-1]]['exact'].estimate:.0f} %"
    cards.append(("Both sizes exact" if len(targets) > 1 else "Size exact", exact, "nearest size on sale"))
    report.cards([*cards, ("Cases", str(data["cases"]), f"{data['patients']} patients")])
    report.text(
        "Sizes on sale are those of the predicted company and model. 95 % intervals of the measures: bootstrap over "
        f"patients, {args.bootstrap} resamples. The medians are those of the training split.", note=True,
    )  # fmt: skip
    for row in (row for row in first.rows if row != "both"):
        report.section({"mean": "Mean of both"}.get(row, row.capitalize()))
        report.table(
            ["", *COLUMNS.values()],
            [[method, *(with_span(summary[row][measure]) for measure in COLUMNS)]
             for method, summary in methods.items()],
        )  # fmt: skip
    report.section("Differences", f"{name} minus the other, on the same cases. An interval without 0 is a difference.")
    report.table(
        ["", *(f"{target}, MAE [mm]" for target in targets)],
        [[other, *(with_span(summary[target]["mae"], "{:+.2f}") for target in targets)]
         for other, summary in metrics["differences"].items()],
    )  # fmt: skip
    report.section("Pictures")
    drawn = [(plots.predicted_against_true(first, seen), "scatter", "Predicted against true"),
             (plots.residuals(first, seen), "residuals", "Errors over the truth")]  # fmt: skip
    if args.calibration_json:
        drawn.append((plots.interval_plot(first, args.level), "intervals", "Conformal intervals"))
    if count > 1:
        shown = {method: [methods[method][target]["mae"] for target in targets] for method in list(evaluations)[:count]}
        level = [median[target]["mae"].estimate for target in targets]
        drawn.append((plots.ablation_bars(shown, level, targets), "comparison", "All runs"))
    for branches, by_company in metrics["attention"].items():
        file = "attention_" + branches.replace(", ", "_")
        drawn.append((plots.attention_bars(by_company), file, f"Mean attention weights: {branches}"))
    for branches, weights in answer.attention.items():
        if weights.ndim == 3:
            crops = ImplantCrops(first.records, config["image_size"], config["margin"])
            pictures = [crops[row]["image"][0].numpy() for row in range(min(6, len(first.records)))]
            names = branches.removesuffix(" over patches").split(", ")
            drawn.append(
                (plots.attention_maps(pictures, weights, names), "attention_patches", "Attention over the patches")
            )
    for figure, file, caption in drawn:
        report.figures([(figures.save(figure, folder / f"{file}.png"), caption)])
    if args.calibration_json:
        report.section("Intervals", f"Split conformal, nominal coverage {100 * args.level:g} %.")
        rows = [
            [target, *(with_span(ours[target][measure]) for measure in ("coverage", "width"))] for target in targets
        ]
        report.table(["", "coverage", "mean width [mm]"], rows)
    for kind, title in GROUPS.items():
        if kind in metrics["groups"]:
            report.section(title)
            rows = [
                [label + (" (few)" if group.few else ""), group.n, group.patients,
                 *(with_span(group.summary[target][measure]) for target, measure, _ in headline(targets))]
                for label, group in metrics["groups"][kind].items()
            ]  # fmt: skip
            report.table(["", "cases", "patients", *(title for *_, title in headline(targets))], rows)
    close(report, args.output / "report.html", metrics["environment"], data_report.counts())


def headline(targets: Sequence[str]) -> list[tuple[str, str, str]]:
    """(target, measure, title) of the columns of summary tables."""
    measures = (("mae", "MAE [mm]"), ("exact", "exact"))
    return [(target, measure, f"{target}, {title}") for target in targets for measure, title in measures]


def print_summary(methods: dict[str, evaluation.Summary], targets: Sequence[str], console: Console) -> None:
    """Prints the main measures of each method."""
    table = Table("", *(title for *_, title in headline(targets)), box=None)
    for name, summary in methods.items():
        table.add_row(name, *(number(summary[target][measure].estimate) for target, measure, _ in headline(targets)))
    console.print(table, crop=False)


if __name__ == "__main__":
    script(main)
