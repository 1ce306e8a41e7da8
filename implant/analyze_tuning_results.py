"""Shows the results of a hyperparameter search: trials, best trial, importance of the parameters.

    python implant/analyze_tuning_results.py --storage journal:runs/tune_regression/journal.log
    python implant/analyze_tuning_results.py --tuning-job-name NAME --output runs/sagemaker

Reads a study of tune.py or a tuning job of SageMaker (with the credentials of boto3), finished or not. Writes
trials.csv, metrics.json, figures/ and report.html to --output.
"""

import inspect
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from core import figures
from core.args import ArgumentParser, positive_int, script
from core.console import make_console
from core.errors import UserError
from core.report import Report
from core.results import write_csv, write_json
from implants.tuning import cell, interrupted, open_storage, trial_table
from implants.tuning_plots import history, importances, is_log, is_number, parallel_coordinates

ENOUGH = 8  # minimum number of complete trials for importances
QUANTILE = 0.25  # share of the best trials, compared with all
STATUS = {  # of SageMaker training jobs
    "Completed": "complete", "Stopped": "pruned", "Stopping": "running", "InProgress": "running", "Failed": "failed",
}  # fmt: skip


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tuning_job_name", metavar="NAME", help="SageMaker hyperparameter tuning job")
    source.add_argument("--storage", help="storage of tune.py: journal:FILE or sqlite:///FILE")
    parser.add_argument("--region", help="AWS region of the tuning job (default: that of the AWS configuration)")
    parser.add_argument("--study_name", help="study name in the storage (default: the only one)")
    parser.add_argument("--output", type=Path, help="output folder (default: runs/analysis_<name>)")
    parser.add_argument("--shown", type=positive_int, default=20, metavar="N", help="trials in the table of the report")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    console = make_console()
    read = from_storage if args.storage else from_sagemaker
    name, metric, mode, trials = read(args)
    args.output = args.output or Path("runs") / f"analysis_{name}"
    ranked = sorted(
        (trial for trial in trials if trial["status"] == "complete" and trial["value"] is not None),
        key=lambda trial: trial["value"],
        reverse=mode == "max",
    )
    counts = Counter(trial["status"] for trial in trials)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    if not ranked:
        raise UserError(f"{name} has no complete trial yet ({told or 'none at all'}); look again later")
    shares = parameter_importances(ranked, mode)
    metrics = {
        "search": name, "metric": metric, "mode": mode, "trials": counts, "best": ranked[0], "importances": shares,
    }  # fmt: skip
    write_trials(args.output / "trials.csv", trials)
    write_json(args.output / "metrics.json", metrics)
    write_report(args, metrics, trials, ranked)
    best = [(trial["name"].removeprefix("trial_"), trial["value"], trial["parameters"]) for trial in ranked[:10]]
    console.print(trial_table(metric, best))
    console.print(told)
    console.print(f"report: {args.output / 'report.html'}", style="bold")


# -------------------------------------------------------------------------------------------------------------- trials


def from_storage(args) -> tuple[str, str, str, list[dict]]:
    """(name, metric, "max" or "min", trials in order) of an Optuna study, without interrupted and waiting trials, which
    are repeated under other numbers. Raises UserError for an ambiguous or missing study."""
    storage = open_storage(args.storage, must_exist=True)
    names = [study.study_name for study in storage.get_all_studies()]
    if args.study_name is None and len(names) != 1:
        raise UserError(f"--storage {args.storage} holds {len(names)} studies: choose one by --study_name {names}")
    name = args.study_name or names[0]
    if name not in names:
        raise UserError(f"--storage {args.storage} has no study {name}, but {', '.join(names) or 'none'}")
    study = optuna.load_study(study_name=name, storage=storage)
    status = {"FAIL": "failed"}
    trials = [
        {"name": f"trial_{trial.number:04}", "status": status.get(trial.state.name, trial.state.name.lower()),
         "parameters": trial.params, "value": trial.value}
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and not interrupted(trial)
    ]  # fmt: skip
    metric = study.user_attrs.get("search", {}).get("metric", "value").removeprefix("val/")
    return name, metric, "max" if study.direction.name == "MAXIMIZE" else "min", trials


def from_sagemaker(args) -> tuple[str, str, str, list[dict]]:
    """The same for a tuning job of SageMaker; jobs ended by early stopping count as pruned. Raises UserError for
    missing boto3 and AWS errors."""
    try:
        from sagemaker_launcher import describe, make_client, tuning_results  # boto3 is optional
    except ImportError as error:
        raise UserError(f"--tuning_job_name needs boto3 ({error}): pip install boto3") from error
    client = make_client("sagemaker", args.region)
    job = describe(client, args.tuning_job_name)
    trials = [
        {**trial, "status": STATUS.get(trial["status"], trial["status"].lower())}
        for trial in tuning_results(client, args.tuning_job_name)
    ]
    return job["name"], job["metric"], job["mode"], trials


def parameter_importances(trials: list[dict], mode: str) -> dict[str, float]:
    """Importance of each varying parameter for reaching the best quarter of the complete trials, by PED-ANOVA (Watanabe
    et al., IJCAI 2023), with sum 1; none for fewer than ENOUGH trials."""
    names = [name for name in trials[0]["parameters"] if all(name in trial["parameters"] for trial in trials)]
    space = {}
    for name in names:
        values = [trial["parameters"][name] for trial in trials]
        if len(set(values)) > 1 and is_number(values):
            space[name] = FloatDistribution(min(values), max(values), log=is_log(values))
        elif len(set(values)) > 1:
            space[name] = CategoricalDistribution(sorted(set(values), key=str))
    if len(trials) < ENOUGH or not space:
        return {}
    study = optuna.create_study(direction={"max": "maximize", "min": "minimize"}[mode])
    study.add_trials(
        optuna.trial.create_trial(
            params={name: trial["parameters"][name] for name in space}, distributions=space, value=trial["value"]
        )
        for trial in trials
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator
        options = inspect.signature(evaluator).parameters
        quantile = "target_quantile" if "target_quantile" in options else "baseline_quantile"  # in older Optuna
        return optuna.importance.get_param_importances(study, evaluator=evaluator(**{quantile: QUANTILE}))


# ------------------------------------------------------------------------------------------------------------- results


def row(trial: dict, parameters) -> list[str]:
    """Table cells of a trial: name, value, parameters."""
    return [trial["name"], f"{trial['value']:.4g}", *(cell(trial["parameters"].get(name, "")) for name in parameters)]


def write_trials(file: Path, trials: list[dict]) -> None:
    """Writes a CSV table, one row per trial, with all digits of numbers."""
    names = list(dict.fromkeys(name for trial in trials for name in trial["parameters"]))
    rows = ([trial["name"], trial["status"], trial["value"], *map(trial["parameters"].get, names)] for trial in trials)
    write_csv(file, ["name", "status", "value", *names], rows)


def write_report(args, metrics: dict, trials: list[dict], ranked: list[dict]) -> None:
    """Writes report.html and figures/: best trial, history, importances, table of trials."""
    best, metric, counts, mode = ranked[0], metrics["metric"], metrics["trials"], metrics["mode"]
    folder = args.output / "figures"
    report = Report(f"Hyperparameter search {metrics['search']}", args.storage or "SageMaker tuning job")
    middle = ranked[len(ranked) // 2]["value"]
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "complete")
    report.cards([
        (f"Best {metric}", f"{best['value']:.4g}", f"{best['name']}, on the validation data"),
        (f"Median {metric}", f"{middle:.4g}", "of the complete trials"),
        ("Complete trials", str(len(ranked)), others),
    ])  # fmt: skip
    report.text(
        "The validation result of the best of many trials is optimistic: report its test results, and repeat it with "
        "other random seeds before interpreting small differences.",
        note=True,
    )
    report.section("Best trial")
    report.table(["parameter", "value"], zip(best["parameters"], row(best, best["parameters"])[2:], strict=True))
    report.section("History")
    drawn = figures.save(history(trials, metric, mode), folder / "history.png")
    report.figures([(drawn, f"{metric} of each trial; " + ("higher" if mode == "max" else "lower") + " is better")])
    report.section("Importance of the parameters")
    if metrics["importances"]:
        drawn = figures.save(importances(metrics["importances"]), folder / "importances.png")
        report.figures([(drawn, f"PED-ANOVA: the best quarter of {len(ranked)} complete trials against all")])
        report.text("Unreliable with few trials; does not indicate which value is better.", note=True)
    else:
        report.text(f"Needs {ENOUGH} complete trials with different parameters; there are {len(ranked)}.")
    report.section("Parameters and result")
    drawn = figures.save(parallel_coordinates(trials, metric, mode), folder / "parallel_coordinates.png")
    report.figures([(drawn, "One line per trial; better values of the last axis are at the top")])
    report.section("Trials", f"The best {min(args.shown, len(ranked))} of {len(trials)}; trials.csv has all.")
    report.table(["trial", metric, *best["parameters"]], [row(t, best["parameters"]) for t in ranked[: args.shown]])
    report.write(args.output / "report.html")


if __name__ == "__main__":
    script(main)
