"""Hyperparameter search on one machine: search spaces, Optuna studies that survive a kill, trials as processes.

A trial is a run of a training script in a process of its own, whose metrics.jsonl is read while it grows. All of a
trial's randomness follows from (seed, position in the search): with one worker, a search that was killed and started
again ends with the same trials as one that was not. With several, what the sampler knows depends on who ends first.
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

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what happens is said by the scripts
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
POLL = 0.2  # seconds between looks at a trial
IN_A_ROW = 10  # failed trials that end a search
GRACE = 60  # seconds that a training script has to save its state when it is told to stop

# What a trial's process runs first. The system closes its stdin when the search dies, of whatever: then it ends, too.
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
    """One of some numbers or texts. A text with spaces is several values of one flag."""

    choices: tuple[int | float | str, ...]


@dataclass(frozen=True)
class LogUniform:
    """A number between two positive ones, uniform in its logarithm."""

    low: float
    high: float


Space = Mapping[str, Categorical | LogUniform]  # flag, without its dashes -> its values


class TrialFailed(Exception):
    """A trial that gave no value. Its text is one line that says why."""


class Stopped(Exception):
    """The search ends before this trial has."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna's distributions."""
    return {
        name: CategoricalDistribution(values.choices)
        if isinstance(values, Categorical)
        else FloatDistribution(values.low, values.high, log=True)
        for name, values in space.items()
    }


def flags(parameters: Mapping[str, int | float | str]) -> list[str]:
    """Parameters as a command line, numbers with all their digits."""
    return [text for name, value in parameters.items() for text in (f"--{name}", *str(value).split())]


def number_or_text(text: str) -> int | float | str:
    """What a text means that is a number or not."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# ------------------------------------------------------------------------------------------------------------ studies


def open_storage(text: str, must_exist: bool = False) -> BaseStorage:
    """The storage that `journal:FILE`, `sqlite:///FILE` or another address of SQLAlchemy names.

    Raises UserError if it cannot be used, or is not there but `must_exist`. A file of another kind is left as it is.
    """
    kind, _, place = text.partition(":")
    if not place or (kind != "journal" and not place.startswith("//")):
        raise UserError(f"--storage {text}: give journal:FILE or sqlite:///FILE")
    file = Path(place.removeprefix("///")).resolve() if kind in ("journal", "sqlite") else None
    if must_exist and file and not file.is_file():
        raise UserError(f"--storage {text}: no such file; give the storage of a search, as its tune.py was told")
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
        # The system takes this lock away from a process that is killed, Optuna's own would stay.
        return JournalStorage(JournalFileBackend(str(file), lock_obj=FileLock(f"{file}.filelock")))
    except OSError:
        raise
    except Exception as error:  # of json, Optuna or SQLAlchemy, each with a zoo of its own
        reason = first_line(error)
        raise UserError(f"--storage {text} is broken or no storage of Optuna ({reason}); name another") from error


def open_study(
    storage: BaseStorage, name: str, direction: str, pruner: optuna.pruners.BasePruner, search: dict
) -> optuna.Study:
    """The study of this name, new or as it was left.

    `search`, plain JSON, says what its trials have in common; UserError where a study that is there has another.
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
    """How many trials are complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def requeue_running(study: optuna.Study) -> int:
    """Tells trials that nobody runs any more as failed, and has their parameters tried again. Returns their number.

    What tells them from other failed trials is that no "failure" is noted with them.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(running)


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial ended with its search, and was queued again."""
    return trial.state == TrialState.FAIL and "failure" not in trial.user_attrs


# ------------------------------------------------------------------------------------------------------------- search


def search(
    study: optuna.Study, space: Space, attempt: Callable[[int, int, dict, Callable[[int, float], bool]], float], *,
    trials: int, parallel: int, seed: int, stop: threading.Event, told: Callable[[FrozenTrial], None],
) -> None:  # fmt: skip
    """Tries parameters until `trials` trials are finished, `parallel` at a time, or `stop` is set.

    `attempt(worker, number, parameters, report)` gives a trial's value or raises TrialFailed, optuna.TrialPruned or
    Stopped; it calls `report(epoch, value)`, which says whether to prune. `told` gets each trial that has ended.
    Trials that were stopped are queued again. Raises UserError if ten trials in a row fail.
    """
    requeue_running(study)
    lock, running, failures = threading.Lock(), set(), 0  # Optuna and `told` are spoken to by one worker at a time

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
            time.sleep(POLL)  # the main thread stays free for signals
    requeue_running(study)
    for worker in workers:
        worker.result()


def _ask(study: optuna.Study, space: Space, seed: int) -> optuna.Trial:
    """The next trial, by TPE that is seeded anew for each: nothing has to be carried over a restart."""
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
    """Runs a Python script (`command`: its path and arguments) that writes metrics.jsonl into `folder`, and returns the
    `metric` of each epoch that has one. Its output goes to stdout.log and stderr.log there.

    Raises optuna.TrialPruned where `report(epoch, value)` says so, Stopped when `stop` is set, and TrialFailed; the
    process has ended then, and was told to by SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout.log", "w") as stdout, open(folder / "stderr.log", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for the search to answer
        )
    values, position = [], 0
    try:
        while True:
            ended = process.poll() is not None  # asked first: nothing is written after it
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
        if stop.wait(POLL):  # a scheduler's SIGTERM goes to all processes at once
            raise Stopped
        raise TrialFailed(f"exit code {process.returncode}: {_last_line(folder / 'stderr.log')}")
    if not values:
        raise TrialFailed(f"no {metric} in metrics.jsonl")
    return values


def _new_rows(file: Path, position: int) -> tuple[list[dict], int]:
    """The whole lines of a file of JSON lines from a byte on, and where they end."""
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
    process.stdin.close()  # not before: it would be a second SIGTERM, which ends a script that is saving


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing in stderr.log")


def trial_table(metric: str, trials: Sequence[tuple[str, float, Mapping]]) -> Table:
    """Trials (name, value, parameters) as rich prints them; long names of parameters break at their underscores."""
    names = list(trials[0][2])
    headers = "trial", metric, *(name.replace("_", "_\n") for name in names)
    table = Table(*(Column(header, overflow="fold") for header in headers), box=None, collapse_padding=True)
    for name, value, parameters in trials:
        table.add_row(name, f"{value:.4g}", *(cell(parameters.get(name, "")) for name in names))
    return table


def cell(value: int | float | str) -> str:
    """A parameter for people to read."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, the best first; of equal ones the earlier."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (sign * trial.value, trial.number))
