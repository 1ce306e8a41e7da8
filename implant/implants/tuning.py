"""Hyperparameter search on one machine: search spaces, resumable Optuna studies, trials as processes.

A trial is a run of a training script in its own process, whose metrics.jsonl is read as it grows. Its random numbers
depend on (seed, position in the search) only: with one worker, an interrupted and resumed search has the same trials as
an uninterrupted one. With several workers, the sampler depends on the order in which trials end.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.table import Column, Table

from core.errors import UserError, first_line

optuna.logging.set_verbosity(optuna.logging.ERROR)  # the scripts print the progress
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL = 0.2  # polling interval of a trial, seconds
IN_A_ROW = 10  # consecutive failures that end a search
GRACE = 60  # time for a training script to save its state after SIGTERM, seconds

# Wrapper of a trial's script: ends the trial when the system closes its stdin, that is when the search has died.
WATCHED = f"""
import os, runpy, signal, sys, threading, time

def watch():
    os.read(0, 1)  # not sys.stdin: Python could not end while a thread waits in it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({GRACE})
    os._exit(128 + signal.SIGTERM)

threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Categorical:
    """Choice among numbers or strings; a string with spaces is several values of one flag."""

    choices: tuple[int | float | str, ...]


@dataclass(frozen=True)
class LogUniform:
    """Log-uniform distribution between two positive numbers."""

    low: float
    high: float


Space = Mapping[str, Categorical | LogUniform]  # flag without dashes -> its values


class TrialFailed(Exception):
    """Failure of a trial, with the reason in one line."""


class Stopped(Exception):
    """End of the search during a trial."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna distributions of a search space."""
    return {
        name: CategoricalDistribution(values.choices)
        if isinstance(values, Categorical)
        else FloatDistribution(values.low, values.high, log=True)
        for name, values in space.items()
    }


def flags(parameters: Mapping[str, int | float | str]) -> list[str]:
    """Command-line flags of parameters, with all digits of numbers."""
    return [text for name, value in parameters.items() for text in (f"--{name}", *str(value).split())]


def number_or_text(text: str) -> int | float | str:
    """Value of a text: int or float if possible, otherwise the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# ------------------------------------------------------------------------------------------------------------ studies


def open_storage(text: str, must_exist: bool = False) -> BaseStorage:
    """Storage `journal:FILE`, `sqlite:///FILE` or of another SQLAlchemy URL.

    Raises UserError for an unusable storage, and a missing one if it `must_exist`. Other files are left unchanged.
    """
    kind, _, place = text.partition(":")
    if not place or (kind != "journal" and not place.startswith("//")):
        raise UserError(f"--storage {text}: give journal:FILE or sqlite:///FILE")
    file = Path(place.removeprefix("///")).resolve() if kind in ("journal", "sqlite") else None
    if must_exist and file and not file.is_file():
        raise UserError(f"--storage {text}: no such file; give the --storage of a search by tune.py")
    try:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        if kind != "journal":
            return RDBStorage(text)
        if file.exists():
            with open(file, encoding="utf-8") as journal:
                first = journal.readline()
            if first and "op_code" not in json.loads(first):
                raise ValueError("not a journal of Optuna")
        # The system releases this lock when a process is killed; Optuna's own lock would remain.
        return JournalStorage(JournalFileBackend(str(file), lock_obj=FileLock(f"{file}.filelock")))
    except OSError:
        raise
    except Exception as error:  # json, Optuna or SQLAlchemy, each with its own errors
        reason = first_line(error)
        raise UserError(f"--storage {text} is broken or no storage of Optuna ({reason}); name another") from error


def open_study(
    storage: BaseStorage, name: str, direction: str, pruner: optuna.pruners.BasePruner, search: dict
) -> optuna.Study:
    """Study of this name, new or existing.

    `search`: settings common to all trials, plain JSON; raises UserError if an existing study has others.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, pruner=pruner, load_if_exists=True
    )
    if not study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr("search", search)
    before, now = study.user_attrs.get("search", {}), json.loads(json.dumps(search))
    for key in now:
        if before.get(key) != now[key]:
            raise UserError(
                f"study {name} has {key} {json.dumps(before.get(key))}, now it would be {json.dumps(now[key])}; its "
                "trials could not be compared. Repeat its command, or take another --study_name and --output"
            )
    return study


def finished(study: optuna.Study) -> int:
    """Number of complete or pruned trials."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def requeue_running(study: optuna.Study) -> int:
    """Marks orphaned running trials as failed, without the attribute "failure", and queues their parameters again;
    returns their number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(running)


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial was interrupted with its search and queued again."""
    return trial.state == TrialState.FAIL and "failure" not in trial.user_attrs


# ------------------------------------------------------------------------------------------------------------- search


def search(
    study: optuna.Study, space: Space, attempt: Callable[[int, int, dict, Callable[[int, float], bool]], float], *,
    trials: int, parallel: int, seed: int, stop: threading.Event, told: Callable[[FrozenTrial], None],
) -> None:  # fmt: skip
    """Runs trials, `parallel` at a time, until `trials` are finished or `stop` is set.

    `attempt(worker, number, parameters, report)` returns the value of a trial or raises TrialFailed, optuna.TrialPruned
    or Stopped; it calls `report(epoch, value)`, which returns whether to prune. `told(trial)` is called for each ended
    trial. Stopped trials are queued again. Raises UserError after IN_A_ROW consecutive failures.
    """
    requeue_running(study)
    lock, running, failures = threading.Lock(), set(), 0  # one worker at a time uses Optuna and `told`

    def work(worker: int) -> None:
        while True:
            with lock:
                if stop.is_set() or finished(study) + len(running) >= trials:
                    return
                trial = _ask(study, space, seed)
                running.add(trial.number)
            try:
                end = TrialState.COMPLETE, attempt(worker, trial.number, trial.params, partial(report, trial)), None
            except optuna.TrialPruned:
                end = TrialState.PRUNED, None, None
            except TrialFailed as error:
                end = TrialState.FAIL, None, first_line(error)
            except Stopped:
                return
            with lock:
                tell(trial, *end)

    def report(trial: optuna.Trial, epoch: int, value: float) -> bool:
        with lock:
            trial.report(value, epoch)
            return trial.should_prune()

    def tell(trial: optuna.Trial, state: TrialState, value: float | None, failure: str | None) -> None:
        nonlocal failures
        if failure:
            trial.set_user_attr("failure", failure)
        told(study.tell(trial, value, state))
        running.remove(trial.number)
        failures = failures + 1 if failure else 0
        if failures == IN_A_ROW:
            raise UserError(f"{failures} trials in a row failed; the last, {trial.number}: {failure}")

    def work_or_stop(worker: int) -> None:
        try:
            work(worker)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(parallel) as pool:
        workers = [pool.submit(work_or_stop, worker) for worker in range(parallel)]
        while not all(worker.done() for worker in workers):
            time.sleep(POLL)  # keeps the main thread responsive to signals
    requeue_running(study)
    for worker in workers:
        worker.result()


def _ask(study: optuna.Study, space: Space, seed: int) -> optuna.Trial:
    """Next trial by TPE, reseeded for each trial, so that a restart needs no sampler state."""
    trials = study.get_trials(deepcopy=False)
    position = sum(trial.state != TrialState.WAITING and not interrupted(trial) for trial in trials)
    (number,) = np.random.SeedSequence((seed, position)).generate_state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of both options, before Optuna 5
        study.sampler = optuna.samplers.TPESampler(seed=int(number), multivariate=True, constant_liar=True)
    return study.ask(distributions(space))


# ------------------------------------------------------------------------------------------------------------- trials


def follow(
    command: list[str], folder: Path, metric: str, report: Callable[[int, float], bool], stop: threading.Event,
    environment: Mapping[str, str] | None = None,
) -> list[float]:  # fmt: skip
    """Runs a Python script (`command`: path and arguments) that writes metrics.jsonl to `folder`; returns the `metric`
    of each validated epoch. Its output is written to stdout.log and stderr.log in `folder`.

    Raises optuna.TrialPruned if `report(epoch, value)` is true, Stopped when `stop` is set, and TrialFailed, after
    ending the process by SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout.log", "w") as stdout, open(folder / "stderr.log", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is handled by the search
        )
    values, position = [], 0
    try:
        while True:
            ended = process.poll() is not None  # before reading, so that no row is missed
            rows, position = _new_rows(folder / "metrics.jsonl", position)
            for row in rows:
                if metric not in row:
                    continue  # not every epoch is validated
                if row[metric] is None or not math.isfinite(row[metric]):
                    raise TrialFailed(f"{metric} is no number in epoch {row['epoch']}")
                values.append(row[metric])
                if report(row["epoch"], row[metric]):
                    raise optuna.TrialPruned
            if ended:
                break
            if stop.wait(POLL):
                raise Stopped
    finally:
        _end(process)
    if process.returncode:
        if stop.wait(POLL):  # a scheduler sends SIGTERM to all processes
            raise Stopped
        raise TrialFailed(f"exit code {process.returncode}: {_last_line(folder / 'stderr.log')}")
    if not values:
        raise TrialFailed(f"no {metric} in metrics.jsonl")
    return values


def _new_rows(file: Path, position: int) -> tuple[list[dict], int]:
    """(complete rows of a JSON lines file from byte `position` on, end position)."""
    if not file.exists():
        return [], position
    with open(file, "rb") as lines:
        lines.seek(position)
        whole = [line for line in lines if line.endswith(b"\n")]
    return [json.loads(line) for line in whole], position + sum(map(len, whole))


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdin.close()  # last, as it causes a second SIGTERM, which would interrupt saving


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing in stderr.log")


def trial_table(metric: str, trials: Sequence[tuple[str, float, Mapping]]) -> Table:
    """Table of trials (name, value, parameters); long parameter names break at underscores."""
    names = list(trials[0][2])
    headers = "trial", metric, *(name.replace("_", "_\n") for name in names)
    table = Table(*(Column(header, overflow="fold") for header in headers), box=None, collapse_padding=True)
    for name, value, parameters in trials:
        table.add_row(name, f"{value:.4g}", *(cell(parameters.get(name, "")) for name in names))
    return table


def cell(value: int | float | str) -> str:
    """Parameter as a table cell."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first, earlier ones first if equal."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (sign * trial.value, trial.number))
