"""Evaluates regressors on held-out patients: errors in mm and in catalogue sizes, beside the medians, with intervals.

    python implant/evaluate.py --checkpoints runs/implant/best --test_json test.json --calibration_json val.json
    python implant/evaluate.py --checkpoints a/best b/best c/best --test_json test.json     # an ensemble
    python implant/evaluate.py --checkpoints runs/triple --compare runs/none runs/concat --test_json test.json

Writes metrics.json, predictions.csv (one row a case), data_report.json, figures/ and report.html to --output.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import numpy as np
from rich.console import Console
from rich.table import Table

from core import figures
from core.args import ArgumentParser, non_negative_int, positive_int, script
from core.console import make_console
from core.devices import make_accelerator
from core.environment import environment
from core.errors import UserError
from core.report import Report
from core.results import evaluation_folder, plain
from core.uncertainty import Interval
from core.validation import DataReport, leave_out_unreadable
from implants.crops import ImplantCrops
from implants.evaluation import (
    CLOSE,
    Evaluation,
    Summary,
    calibrate,
    catalogue_of,
    combinations,
    groups,
    model_median,
    read_catalogue,
    training_median,
    with_intervals,
    write_predictions,
)
from implants.plots import (
    ablation_bars,
    attention_bars,
    attention_maps,
    interval_plot,
    predicted_against_true,
    residuals,
)
from implants.predictor import Answer, load_models, predict_all
from implants.records import TARGETS, Record, load_records, refuse_leaks
from implants.splits import records_of

MEDIAN, MODEL_MEDIAN = "median of the training split", "median of the predicted model"
COLUMNS = {  # measure -> title, digits
    "mae": ("MAE [mm]", "{:.2f}"),
    "rmse": ("RMSE [mm]", "{:.2f}"),
    "r2": ("R²", "{:.2f}"),
    "close": (f"within {CLOSE:g} mm", "{:.2f}"),
    "exact": ("exact size", "{:.2f}"),
    "one_step": ("± 1 size", "{:.2f}"),
}
GROUPS = {"combination": "Company–model combinations that training has seen, and others", "company": "Companies",
          "model": "Models", "modality": "Modalities", "spacing": "Pixel spacing"}  # fmt: skip


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="best/ of runs of train.py; several are an ensemble")  # fmt: skip
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="FOLDER", help="further runs, beside it")
    parser.add_argument("--test_json", type=Path, required=True, help="records to measure on")
    parser.add_argument("--calibration_json", type=Path,
                        help="records of other patients, which size the intervals; none without it")  # fmt: skip
    parser.add_argument("--level", type=float, default=0.9, help="share of cases that the intervals shall cover")
    parser.add_argument(
        "--mc_dropout", type=non_negative_int, default=0, help="passes with dropout, whose spread sizes intervals"
    )
    parser.add_argument("--catalogue", type=Path, help="JSON of sizes on sale (default: those of the training split)")
    parser.add_argument("--data_root", type=Path, help="where the pictures' paths start (default: at their JSON)")
    parser.add_argument("--output", type=Path, help="folder of results (default: evaluation_<test_json> beside best/)")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="crops a step")
    parser.add_argument("--num_workers", type=non_negative_int, default=4, help="loader processes")
    parser.add_argument("--bootstrap", type=positive_int, default=1000, help="resamples for the intervals")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    if not 0 < args.level < 1:
        parser.error("--level lies between 0 and 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator()
    console = make_console(quiet=not accelerator.is_main_process)
    runs = load_runs(args)
    config = next(iter(runs.values()))[0][1]
    args.output = args.output or evaluation_folder(args.checkpoints[0], f"evaluation_{args.test_json.stem}")
    splits, data_report = read_data(args)
    train = records_of(config["train_sizes"])
    catalogue = read_catalogue(args.catalogue) if args.catalogue else catalogue_of(train)
    answers = {}
    for name, models in runs.items():
        ask = (accelerator, console, name, models)
        how = {"batch_size": args.batch_size, "num_workers": args.num_workers, "mc_dropout": args.mc_dropout}
        answers[name] = predict_all(*ask, splits["test"], **how)
        if args.calibration_json:
            factors = calibrate(splits["calibration"], predict_all(*ask, splits["calibration"], **how)[0], args.level)
            predictions = with_intervals(answers[name].predictions, factors)
            answers[name] = answers[name]._replace(predictions=predictions)
    if accelerator.is_main_process:
        first = next(iter(answers.values())).predictions
        predictions = {name: answer.predictions for name, answer in answers.items()}
        predictions[MEDIAN] = training_median(train, len(splits["test"]))
        predictions[MODEL_MEDIAN] = model_median(train, first)
        evaluations = {
            name: Evaluation(splits["test"], found, catalogue, args.bootstrap, args.seed)
            for name, found in predictions.items()
        }
        answer, seen = next(iter(answers.values())), combinations(train)
        metrics = write_results(
            evaluations, len(runs), answer, seen, config, args, data_report, environment(accelerator)
        )
        data_report.print(console, args.output / "data_report.json")
        print_summary(metrics["methods"], console)
        console.print(f"report: {args.output / 'report.html'}", style="bold")
    accelerator.end_training()


def load_runs(args) -> dict[str, list]:
    """Name -> models: of --checkpoints together, and of each of --compare. Names are as short as they can differ."""
    folders = [args.checkpoints[0], *args.compare]
    runs = [folder.parent if folder.name == "best" else folder for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("--compare names a run twice; name each once")
    if len(args.checkpoints) > 1:
        names[0] = f"ensemble of {len(args.checkpoints)}"
    return dict(zip(names, map(load_models, (args.checkpoints, *([folder] for folder in args.compare))), strict=True))


def read_data(args) -> tuple[dict[str, list[Record]], DataReport]:
    """The records of the test and, if asked for, of the calibration, and what was wrong with them."""
    report, splits = DataReport(), {}
    for split, file in (("test", args.test_json), ("calibration", args.calibration_json)):
        if file:
            splits[split], problems = load_records(file, args.data_root)
            report.problems += problems
    refuse_leaks(splits)
    return leave_out_unreadable(splits, report), report


# ------------------------------------------------------------------------------------------------------------ results


def write_results(
    evaluations: dict[str, Evaluation], count: int, answer: Answer, seen: set, config: dict, args,
    data_report: DataReport, machine: dict,
) -> dict:  # fmt: skip
    """metrics.json, predictions.csv, data_report.json, figures/ and report.html in `args.output`; returns the metrics.
    The first `count` of the evaluations are models, the first of all the one to look at; `answer` is its."""
    args.output.mkdir(parents=True, exist_ok=True)
    first = next(iter(evaluations.values()))
    by_group = {name: first.by(labels) for name, labels in groups(first.records, seen).items()}
    metrics = {
        "data": {"records": args.test_json, "cases": len(first.records), "patients": len(set(first.patients.tolist()))},
        "unit": "mm",
        "interval_level": args.level if args.calibration_json else None,
        "methods": {name: evaluation.summary() for name, evaluation in evaluations.items()},
        "differences": {name: first.differences(evaluation) for name, evaluation in list(evaluations.items())[1:]},
        "groups": by_group,
        "attention": mean_attention(answer, first.records),
        "checkpoints": [*args.checkpoints, *args.compare],
        "environment": machine,
    }
    (args.output / "metrics.json").write_text(json.dumps(plain(metrics), indent=1, ensure_ascii=False), "utf-8")
    write_predictions(args.output / "predictions.csv", first)
    data_report.write(args.output / "data_report.json")
    write_report(metrics, evaluations, count, answer, seen, config, args, data_report)
    return metrics


def mean_attention(answer: Answer, records: list[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Weighting -> company (and "all") -> branch -> mean weight. Weights over patches have no branches."""
    companies = np.array([record.company or "unknown" for record in records])
    result = {}
    for branches, weights in answer.attention.items():
        if weights.ndim == 2:
            names, rows = branches.split(", "), {"all": np.ones(len(records), bool)}
            rows |= {company: companies == company for company in sorted(set(companies.tolist()))}
            result[branches] = {
                label: dict(zip(names, weights[chosen].mean(axis=0).tolist(), strict=True))
                for label, chosen in rows.items()
            }
    return result


def write_report(
    metrics: dict, evaluations: dict[str, Evaluation], count: int, answer: Answer, seen: set, config: dict, args,
    data_report: DataReport,
) -> None:  # fmt: skip
    """The page that a person reads."""
    (name, first), folder = next(iter(evaluations.items())), args.output / "figures"
    ours, median = metrics["methods"][name], metrics["methods"][MEDIAN]
    report = Report("Length and diameter of implants", f"{name} on {args.test_json}")
    cards = []
    for target in TARGETS:
        mae = ours[target]["mae"]
        note = f"95 % interval {mae.low:.2f} to {mae.high:.2f}; median {median[target]['mae'].estimate:.2f}"
        cards.append((f"{target.capitalize()}, MAE", f"{mae.estimate:.2f} mm", note))
    cards.append(("Both sizes exact", f"{100 * ours['both']['exact'].estimate:.0f} %", "nearest size on sale"))
    data = metrics["data"]
    cards.append(("Cases", str(data["cases"]), f"{data['patients']} patients"))
    report.cards(cards)
    report.text(
        "Sizes on sale are those of the predicted company and model. 95 % intervals of the measures: bootstrap over "
        f"patients, {args.bootstrap} resamples. The medians are those of the training split.", note=True,
    )  # fmt: skip
    titles = [title for title, _ in COLUMNS.values()]
    for target in (*TARGETS, "mean"):
        report.section({"mean": "Mean of both"}.get(target, target.capitalize()))
        rows = [
            [method, *(_interval(summary[target][measure], form) for measure, (_, form) in COLUMNS.items())]
            for method, summary in metrics["methods"].items()
        ]
        report.table(["", *titles], rows)
    report.section("Differences", f"{name} minus the other, on the same cases. An interval without 0 is a difference.")
    rows = [
        [other, *(_interval(summary[target]["mae"], "{:+.2f}") for target in TARGETS)]
        for other, summary in metrics["differences"].items()
    ]
    report.table(["", *(f"{target}, MAE [mm]" for target in TARGETS)], rows)
    report.section("Pictures")
    plots = [(predicted_against_true(first, seen), "scatter", "Predicted against true"),
             (residuals(first, seen), "residuals", "Errors over the truth")]  # fmt: skip
    if args.calibration_json:
        plots.append((interval_plot(first, args.level), "intervals", "Conformal intervals"))
    if count > 1:
        shown = {method: [metrics["methods"][method][target]["mae"] for target in TARGETS]
                 for method in list(evaluations)[:count]}  # fmt: skip
        plots.append(
            (ablation_bars(shown, [median[target]["mae"].estimate for target in TARGETS]), "comparison", "All runs")
        )
    for branches, by_company in metrics["attention"].items():
        file = "attention_" + branches.replace(", ", "_")
        plots.append((attention_bars(by_company), file, f"Mean attention weights: {branches}"))
    for branches, weights in answer.attention.items():
        if weights.ndim == 3:
            crops = ImplantCrops(first.records, config["image_size"], config["margin"])
            pictures = [crops[row]["image"][0].numpy() for row in range(min(6, len(first.records)))]
            names = branches.removesuffix(" over patches").split(", ")
            plots.append((attention_maps(pictures, weights, names), "attention_patches", "Where the embeddings look"))
    for figure, file, caption in plots:
        report.figures([(figures.save(figure, folder / f"{file}.png"), caption)])
    if args.calibration_json:
        report.section("Intervals", f"Split conformal, meant to cover {100 * args.level:g} %.")
        rows = [
            [target, *(_interval(ours[target][measure], "{:.2f}") for measure in ("coverage", "width"))]
            for target in TARGETS
        ]
        report.table(["", "coverage", "mean width [mm]"], rows)
    for kind, title in GROUPS.items():
        report.section(title)
        rows = [
            [label + (" (few)" if group.few else ""), group.n, group.patients,
             *(_interval(group.summary[target][name], "{:.2f}") for target in TARGETS for name in ("mae", "exact"))]
            for label, group in metrics["groups"][kind].items()
        ]  # fmt: skip
        titles = [f"{target}, {title}" for target in TARGETS for title in ("MAE [mm]", "exact")]
        report.table(["", "cases", "patients", *titles], rows)
    report.section("Data and machine")
    for (reason, action), number in data_report.counts().items():
        report.text(f"{number} × {reason}: {action}.")
    report.text("Every problem is listed in data_report.json." if data_report.problems else "No problems in the data.")
    report.details("Software and machine", json.dumps(metrics["environment"], indent=1))
    report.write(args.output / "report.html")


def print_summary(methods: dict[str, Summary], console: Console) -> None:
    """The headline on the terminal."""
    table = Table("", *(f"{target}, {title}" for target in TARGETS for title in ("MAE [mm]", "exact")), box=None)
    for name, summary in methods.items():
        table.add_row(
            name, *(f"{summary[target][measure].estimate:.2f}" for target in TARGETS for measure in ("mae", "exact"))
        )
    console.print(table, crop=False)


def _interval(interval: Interval, form: str) -> str:
    estimate, low, high = (form.format(value) if np.isfinite(value) else "–" for value in interval)
    return f"{estimate} ({low} to {high})" if np.isfinite(interval.low) else estimate


if __name__ == "__main__":
    script(main)
