"""Hyperparameter search on one machine: each trial is a run of the training script, with pruning by epoch.

    python implant/tune.py --stage classifier --trials 20 --parallel 4 --output runs/tune_classifier \
        -- --target model --train_json DATA/train.json --val_json DATA/val.json --epochs 30
    python implant/tune.py --stage regression --output runs/tune_regression --space attention_type=triple,cross \
        -- --train_json DATA/train.json --val_json DATA/val.json --company_checkpoint runs/company/best \
        --model_checkpoint runs/model/best --epochs 50

Flags after -- are passed to every trial. The same command resumes an interrupted search. Needs no server: the study is
a journal file in --output, which also holds trial_0000/ … (runs) and best_command.txt, the command of the best trial.
implant/analyze_tuning_results.py writes a report.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from core.args import ArgumentParser, positive_int, script
from core.console import make_console
from core.errors import UserError
from core.processes import cores
from implants import tuning
from implants.search_spaces import METRICS, SCRIPTS, SPACES
from implants.tuning import Categorical, Space, cell, number_or_text, trial_table

ALIASES = {"lr": "learning_rate"}
OURS = {"save_dir", "resume", "overwrite"}  # flags of the training script set or excluded by the search
SHOWN = 10  # trials in the final table


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__, usage="%(prog)s [options] -- [flags of the training script]")
    group = parser.add_argument_group("search")
    group.add_argument("--stage", choices=tuple(SPACES), required=True, help="model to tune, with its search space")
    group.add_argument("--trials", type=positive_int, default=20, help="number of trials, complete or pruned")
    group.add_argument("--space", type=choices, nargs="+", default=[], metavar="FLAG=A,B,C",
                       help="values of a flag to search; one value fixes it")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="random seed of the search and of every trial")
    group.add_argument("--pruner", choices=("median", "none"), default="median",
                       help="pruning of trials whose best epoch is worse than the median of the others")  # fmt: skip
    group.add_argument("--startup_trials", type=int, default=5, help="complete trials before the first is pruned")
    group.add_argument("--warmup_epochs", type=int, default=5, help="epochs of each trial without pruning")
    group.add_argument("--script", type=Path, metavar="FILE", help="training script (default: that of the stage)")

    group = parser.add_argument_group("machine and results")
    group.add_argument("--parallel", type=positive_int, default=4, help="concurrent trials; the GPUs are shared out")
    group.add_argument(
        "--threads_per_trial", type=positive_int, help="CPU threads of a trial (default: cores / parallel)"
    )
    group.add_argument("--output", type=Path, help="output folder (default: runs/tune_<stage>)")
    group.add_argument("--storage", help="journal:FILE or sqlite:///FILE (default: journal.log in --output)")
    group.add_argument("--study_name", help="study name in the storage (default: <folder>_<stage>)")
    group.add_argument("--keep", type=positive_int, default=1, help="best trials that keep last/, for further training")

    argv = [str(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    split = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.fixed = argv[split + 1 :]
    args.script = args.script or Path(__file__).resolve().parent / SCRIPTS[args.stage]
    args.output = args.output or Path("runs") / f"tune_{args.stage}"
    args.storage = args.storage or f"journal:{args.output / 'journal.log'}"
    args.study_name = args.study_name or f"{Path(__file__).resolve().parent.name}_{args.stage}"
    args.threads_per_trial = args.threads_per_trial or max(1, cores() // args.parallel)
    return args


def choices(text: str) -> tuple[str, Categorical]:
    """argparse type: FLAG=A,B,C, with numbers where possible."""
    name, equals, values = text.partition("=")
    if not equals or not all(values.split(",")):
        raise ValueError(text)
    return flag_name(name), Categorical(tuple(number_or_text(value) for value in values.split(",")))


def flag_name(argument: str) -> str:
    """Parameter name of a flag: batch_size for "--batch-size=8"."""
    name = argument.partition("=")[0].lstrip("-").replace("-", "_")
    return ALIASES.get(name, name)


def main(argv=None):
    args = parse_args(argv)
    console = make_console()
    metric, mode = METRICS[args.stage]
    space = SPACES[args.stage] | dict(args.space)
    check(args, space)

    def told(trial: FrozenTrial) -> None:
        print_trial(console, args, metric, trial)
        tidy(study, args)

    with alone(args.output):
        study = open_study(args, space, f"val/{metric}", mode)
        done = tuning.finished(study)
        if done:
            console.print(f"going on with {args.study_name}: {done} of {args.trials} trials are finished")
        with signals() as stop:
            attempt = partial(run_trial, args, f"val/{metric}", mode, visible_gpus(), stop)
            limits = {"trials": args.trials, "parallel": args.parallel, "seed": args.seed}
            tuning.search(study, space, attempt, **limits, stop=stop, told=told)
        print_summary(console, study, args, metric)


def check(args, space: Space) -> None:
    """Raises UserError for contradictory flags and a missing script."""
    if not args.script.is_file():
        raise UserError(f"--script {args.script}: no such file")
    given = {flag_name(argument) for argument in args.fixed if re.match("--[a-z]", argument)}
    if given & OURS:
        raise UserError(f"leave out --{min(given & OURS)} after --: each trial has a folder of its own in --output")
    if given & set(space):
        name = min(given & set(space))
        raise UserError(f"--{name} is searched: to fix it, give --space {name}=VALUE in place of --{name} after --")


@contextmanager
def alone(folder: Path):
    """Context manager that locks a folder. Raises UserError if another search runs in it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "tune.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"another search runs in {folder}: wait for it, or take another --output") from None
    with lock:
        yield


def open_study(args, space: Space, metric: str, mode: str) -> optuna.Study:
    """Study of these arguments, new or existing. Raises UserError for trials of another study."""
    pruner = optuna.pruners.NopPruner()
    if args.pruner == "median":
        pruner = optuna.pruners.MedianPruner(args.startup_trials, args.warmup_epochs + 1)  # epochs count from 1
    search = {
        "script": args.script.name,
        "flags": fixed_flags(args),
        "space": {name: list(vars(values).values()) for name, values in space.items()},
        "metric": metric,
    }
    direction = {"max": "maximize", "min": "minimize"}[mode]
    study = tuning.open_study(tuning.open_storage(args.storage), args.study_name, direction, pruner, search)
    if not study.get_trials(deepcopy=False) and any(args.output.glob("trial_*")):
        raise UserError(f"{args.output} holds trials of another study: take another --output, or its --storage")
    return study


def fixed_flags(args) -> list[str]:
    """Flags of all trials; a --seed after -- has priority over that of the search."""
    return ["--seed", str(args.seed), *args.fixed]


def visible_gpus() -> list[str]:
    """Available GPUs, as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def signals():
    """Context manager with an event that SIGTERM and Ctrl-C set: the block then has to end, and the process exits by
    the signal. A second Ctrl-C ends it at once, and its trials with it."""
    stop, told = threading.Event(), []

    def remember(number, frame):
        signal.signal(number, handlers[number])
        told.append(number)
        stop.set()

    handlers = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if told:
        print(f"{signal.Signals(told[0]).name}: go on with the same command", file=sys.stderr)
        sys.exit(128 + told[0])


# ------------------------------------------------------------------------------------------------------------- trials


def run_trial(
    args, metric: str, mode: str, gpus: list[str], stop: threading.Event,
    worker: int, number: int, parameters: dict, report: Callable[[int, float], bool],
) -> float:  # fmt: skip
    """Metric of the best epoch of a trial. Raises as `tuning.follow`."""
    environment = {"OMP_NUM_THREADS": str(args.threads_per_trial)}
    if len(gpus) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    folder = trial_folder(args, number)
    command = [str(args.script), *fixed_flags(args), *tuning.flags(parameters), "--save_dir", str(folder)]
    values = tuning.follow(command, folder, metric, report, stop, environment)
    return {"max": max, "min": min}[mode](values)


def trial_folder(args, number: int) -> Path:
    """Run folder of a trial."""
    return args.output / f"trial_{number:04}"


def tidy(study: optuna.Study, args) -> None:
    """Removes last/ of all ended trials except the --keep best."""
    kept = [trial.number for trial in tuning.best_trials(study)[: args.keep]]
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in kept:
            for name in ("last", "previous"):
                shutil.rmtree(trial_folder(args, trial.number) / name, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------ results


def best_command(args, trial: FrozenTrial) -> str:
    """Shell command that repeats a trial, with its number of threads, so that CPU results are identical."""
    here = Path.cwd()
    file = args.script.resolve()
    file = file.relative_to(here) if file.is_relative_to(here) else file
    folder = args.output / "best_run"
    command = ["python", str(file), *fixed_flags(args), *tuning.flags(trial.params), "--save_dir", str(folder)]
    if os.name == "nt":
        return subprocess.list2cmdline(command)
    return shlex.join(["env", f"OMP_NUM_THREADS={args.threads_per_trial}", *command])


def print_trial(console: Console, args, metric: str, trial: FrozenTrial) -> None:
    """Prints one line for an ended trial."""
    outcome = {
        TrialState.COMPLETE: f"{metric} {trial.value:.4g}" if trial.value is not None else "",
        TrialState.PRUNED: f"pruned in epoch {trial.last_step}",
        TrialState.FAIL: f"failed: {trial.user_attrs.get('failure')} ({trial_folder(args, trial.number)})",
    }[trial.state]
    parameters = "  ".join(f"{name} {cell(value)}" for name, value in trial.params.items())
    console.print(f"trial {trial.number:>3}  {outcome}  │ {parameters}")


def print_summary(console: Console, study: optuna.Study, args, metric: str) -> None:
    """Prints the best trials and the command of the best one, also written to best_command.txt. Raises UserError
    without complete trial."""
    trials = study.get_trials(deepcopy=False)
    best = tuning.best_trials(study)
    counts = {
        "complete": len(best),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "failed": sum(trial.state == TrialState.FAIL and not tuning.interrupted(trial) for trial in trials),
        "interrupted and queued again": sum(map(tuning.interrupted, trials)),
    }
    if best:
        console.print(trial_table(metric, [(str(trial.number), trial.value, trial.params) for trial in best[:SHOWN]]))
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    if not best:
        raise UserError("no trial is complete: look at stderr.log in the trials' folders, or try --pruner none")
    command = best_command(args, best[0])
    (args.output / "best_command.txt").write_text(command + "\n", encoding="utf-8")
    console.print(f"best: trial {best[0].number}, {trial_folder(args, best[0].number) / 'best'}", style="bold")
    console.print(command)


if __name__ == "__main__":
    script(main)
