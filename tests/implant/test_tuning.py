"""implants/tuning.py: spaces, studies that survive a kill, trials as processes. Objectives and scripts are made up."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from conftest import ROOT
from core.errors import UserError
from implants import tuning
from implants.tuning import Categorical, LogUniform, Stopped, TrialFailed

SPACE = {"rate": LogUniform(1e-5, 1e-3), "size": Categorical((8, 16)), "steps": Categorical(("20 40", "10 30"))}


def make_study(direction="minimize", pruner=None, **search):
    pruner = pruner or optuna.pruners.NopPruner()
    return tuning.open_study(optuna.storages.InMemoryStorage(), "test", direction, pruner, search)


def objective(worker, number, parameters, report):
    return abs(math.log10(parameters["rate"] / 1e-4)) + (parameters["size"] == 8)


def run(study, attempt=objective, trials=20, parallel=1, **options):
    """The numbers of the trials that have ended, in that order."""
    ended = []
    options = {"seed": 0, "stop": threading.Event(), "told": lambda trial: ended.append(trial.number)} | options
    tuning.search(study, SPACE, attempt, trials=trials, parallel=parallel, **options)
    return ended


def parameters(study, *states):
    return [trial.params for trial in study.get_trials(states=states or None)]


# -------------------------------------------------------------------------------------------------------------- spaces


def test_flags_keep_all_digits_and_split_texts():
    value = 0.1 + 0.2
    written = tuning.flags({"learning_rate": value, "batch_size": 8, "unfreeze_schedule": "20 40"})
    assert written == ["--learning_rate", "0.30000000000000004", "--batch_size", "8", "--unfreeze_schedule", "20", "40"]
    assert float(written[1]) == value


def test_parameters_lie_in_their_space_and_reach_its_ends():
    study = make_study()
    run(study, trials=60)
    rates = [trial["rate"] for trial in parameters(study)]
    assert 1e-5 <= min(rates) < 2e-5
    assert 5e-4 < max(rates) <= 1e-3
    for name in ("size", "steps"):
        assert {trial[name] for trial in parameters(study)} == set(SPACE[name].choices)


# ------------------------------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_study_is_found_again(tmp_path, monkeypatch, kind, absolute):
    monkeypatch.chdir(tmp_path)
    address = f"{kind}{tmp_path / 'deep' / 'study' if absolute else 'deep/study'}"
    pruner = optuna.pruners.NopPruner()
    run(tuning.open_study(tuning.open_storage(address), "one", "minimize", pruner, {"flags": ["a"]}), trials=3)
    again = tuning.open_study(
        tuning.open_storage(address, must_exist=True), "one", "minimize", pruner, {"flags": ["a"]}
    )
    assert tuning.finished(again) == 3
    assert (tmp_path / "deep" / "study").is_file()
    with pytest.raises(UserError, match=r'has flags \["a"\], now it would be \["b"\]'):
        tuning.open_study(tuning.open_storage(address), "one", "minimize", pruner, {"flags": ["b"]})


@pytest.mark.parametrize(
    "content", [b"some notes", b"notes\nof two lines\n", b'{"a": 1}\n', b"[1, 2]\n", b"\x95\x00\n"]
)
@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path, content, kind):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"notes.txt is broken or no storage of Optuna") as raised:
        tuning.open_storage(f"{kind}{file}")
    assert "\n" not in str(raised.value)
    assert file.read_bytes() == content


def test_a_broken_journal_is_refused(tmp_path):
    address = f"journal:{tmp_path / 'log'}"
    pruner = optuna.pruners.NopPruner()
    run(tuning.open_study(tuning.open_storage(address), "one", "minimize", pruner, {}), trials=2)
    lines = (tmp_path / "log").read_text().splitlines()
    (tmp_path / "log").write_text("\n".join([*lines[:3], lines[3][:9], *lines[4:]]) + "\n")
    with pytest.raises(UserError, match="is broken"):
        tuning.open_storage(address)


def test_locks_that_a_killed_search_has_left_hold_nobody_up(tmp_path):
    for lock in ("log.lock", "log.filelock"):
        (tmp_path / lock).touch()
    start = time.monotonic()
    pruner = optuna.pruners.NopPruner()
    run(tuning.open_study(tuning.open_storage(f"journal:{tmp_path / 'log'}"), "one", "minimize", pruner, {}), trials=1)
    assert time.monotonic() - start < 20  # Optuna's own lock: 30 s, or for ever


@pytest.mark.parametrize("address", ["study.log", "journal:", "file:x", "sqlite:x"])
def test_addresses_of_no_storage(address):
    with pytest.raises(UserError, match="give journal:FILE or sqlite:///FILE"):
        tuning.open_storage(address)


@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
def test_looking_makes_no_storage(tmp_path, kind):
    with pytest.raises(UserError, match="no such file"):
        tuning.open_storage(f"{kind}{tmp_path / 'none'}", must_exist=True)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("parallel", [1, 4])
def test_ends_with_exactly_so_many_trials(parallel):
    study = make_study()
    busy, most, lock = 0, 0, threading.Lock()

    def attempt(*arguments):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return objective(*arguments)

    ended = run(study, attempt, parallel=parallel)
    assert sorted(ended) == list(range(20))
    assert most == parallel
    assert not run(study, attempt, parallel=parallel)  # nothing is left to do


def test_the_search_learns():
    study = make_study()
    run(study, trials=40)
    values = [trial.value for trial in study.trials]
    assert statistics.mean(values[20:]) < 0.7 * statistics.mean(values[:10])


def test_the_seed_decides():
    def tried(seed):
        study = make_study()
        run(study, seed=seed)
        return parameters(study)

    assert tried(0) == tried(0)
    assert tried(0) != tried(1)


def test_a_stopped_search_goes_on_as_if_it_had_not_been(tmp_path):
    """Twice, in random trials and in those of TPE."""
    whole = make_study()
    run(whole)
    study = make_study()
    for last in (4, 14):
        stop = threading.Event()

        def attempt(*arguments, last=last, stop=stop):
            if arguments[1] == last:
                stop.set()
                raise Stopped
            return objective(*arguments)

        run(study, attempt, stop=stop)
        assert not study.get_trials(states=(TrialState.RUNNING,))
    run(study)
    assert parameters(study, TrialState.COMPLETE) == parameters(whole)
    assert sum(map(tuning.interrupted, study.trials)) == 2


def test_trials_of_a_killed_search_are_queued_again():
    study = make_study()
    left = [tuning._ask(study, SPACE, 0).params for _ in range(3)]
    run(study, trials=5)
    assert [trial.state for trial in study.trials[:3]] == [TrialState.FAIL] * 3
    assert parameters(study, TrialState.COMPLETE)[:3] == left
    assert tuning.finished(study) == 5
    assert len(study.trials) == 8


@pytest.mark.parametrize("parallel", [1, 3])
def test_failed_trials_do_not_count(parallel):
    study = make_study()

    def attempt(worker, number, *others):
        if number in (0, 5, 6, 11):
            raise TrialFailed("no memory\nat all")
        return objective(worker, number, *others)

    run(study, attempt, trials=12, parallel=parallel)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert [trial.number for trial in failed] == [0, 5, 6, 11]
    assert {trial.user_attrs["failure"] for trial in failed} == {"no memory"}
    assert not any(map(tuning.interrupted, study.trials))
    assert tuning.finished(study) == 12
    assert len(study.trials) == 16


def test_ten_failures_in_a_row_end_the_search():
    study = make_study()

    def attempt(worker, number, *others):
        if number != 8:
            raise TrialFailed("no memory")
        return objective(worker, number, *others)

    with pytest.raises(UserError, match="10 trials in a row failed; the last, 18: no memory"):
        run(study, attempt)
    assert len(study.trials) == 19
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_a_fault_of_the_program_ends_all_workers():
    study = make_study()

    def attempt(worker, number, *others):
        if number == 5:
            raise ZeroDivisionError
        time.sleep(0.02)
        return objective(worker, number, *others)

    with pytest.raises(ZeroDivisionError):
        run(study, attempt, trials=1000, parallel=3)
    assert len(study.trials) < 30


def test_pruned_trials_count():
    study = make_study(pruner=optuna.pruners.MedianPruner(2, 2))

    def attempt(worker, number, parameters, report):
        for epoch in range(1, 6):
            if report(epoch, number):
                raise optuna.TrialPruned
        return number

    run(study, attempt, trials=6)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 4
    assert {trial.last_step for trial in study.trials[2:]} == {2}


@pytest.mark.parametrize(("direction", "order"), [("minimize", [1, 3, 0, 2]), ("maximize", [0, 2, 1, 3])])
def test_best_trials_first_and_earlier_before_later(direction, order):
    study = make_study(direction)
    values = [2.0, 1.0, 2.0, 1.0]
    run(study, lambda worker, number, *others: values[number], trials=4)
    assert [trial.number for trial in tuning.best_trials(study)] == order


# -------------------------------------------------------------------------------------------------------------- trials

EPOCHS = """
import json, os, sys, time
folder = sys.argv[1]
for epoch, value in enumerate(json.loads(sys.argv[2]), 1):
    with open(folder + "/metrics.jsonl", "a") as file:
        row = {"epoch": epoch} if value == "none" else {"epoch": epoch, "val/loss": value}
        text = json.dumps(row) + "\\n"
        file.write(text[:5]); file.flush(); time.sleep(0.01); file.write(text[5:])
"""
FOREVER = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def save(number, frame):
    (folder / "saved").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
(folder / "ready").touch()
if len(sys.argv) > 2:
    (folder / "metrics.jsonl").write_text(sys.argv[2] + "\\n")
time.sleep(100)
"""


@pytest.fixture
def follow(tmp_path):
    """Runs a script of this text: `follow(text, *arguments, report=…, stop=…)`."""

    def follow_script(text, *arguments, report=lambda epoch, value: False, stop=None, **options):
        (tmp_path / "script.py").write_text(text)
        command = [str(tmp_path / "script.py"), str(tmp_path / "trial"), *map(str, arguments)]
        return tuning.follow(command, tmp_path / "trial", "val/loss", report, stop or threading.Event(), **options)

    return follow_script


def test_reports_every_epoch_once_and_in_order(follow):
    reports = []
    values = follow(EPOCHS, json.dumps([3.0, "none", 2.0, 2.5]), report=lambda *row: reports.append(row))
    assert reports == [(1, 3.0), (3, 2.0), (4, 2.5)]
    assert values == [3.0, 2.0, 2.5]


def test_half_a_line_waits_for_its_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert tuning._new_rows(file, 0) == ([], 0)
    file.write_text('{"epoch": 1}\n{"epoch"')
    assert tuning._new_rows(file, 0) == ([{"epoch": 1}], 13)
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert tuning._new_rows(file, 13) == ([{"epoch": 2}], 26)


def test_a_script_finds_its_neighbours_arguments_and_environment(follow, tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 2.0")
    follow(
        "import os, sys, neighbour\nprint(sys.argv[2:], os.environ['MINE'], __name__, __file__)\n" + EPOCHS,
        "[1]", "a b", environment={"MINE": "yes"},
    )  # fmt: skip
    written = (tmp_path / "trial" / "stdout.log").read_text()
    assert written == f"['[1]', 'a b'] yes __main__ {tmp_path / 'script.py'}\n"


@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        (EPOCHS, "[1, null]", "val/loss is no number in epoch 2"),
        (EPOCHS, "[NaN]", "val/loss is no number in epoch 1"),
        (EPOCHS, '["none"]', "no val/loss in metrics.jsonl"),
        (EPOCHS + "sys.exit('first\\nerror: no memory\\n')", "[1]", "exit code 1: error: no memory"),
        (EPOCHS + "os._exit(3)", "[1]", "exit code 3: nothing in stderr.log"),
        ("1 / 0", "[]", "exit code 1: ZeroDivisionError: division by zero"),
    ],
)
def test_failures_say_why(follow, text, values, reason):
    with pytest.raises(TrialFailed, match=f"^{reason}$"):
        follow(text, values)


def test_a_pruned_trial_is_told_to_end(follow, tmp_path):
    with pytest.raises(optuna.TrialPruned):
        follow(FOREVER, '{"epoch": 1, "val/loss": 3}', report=lambda epoch, value: value > 2)
    assert (tmp_path / "trial" / "saved").read_text() == str(int(signal.SIGTERM))


def test_one_that_does_not_obey_is_killed(follow, monkeypatch):
    monkeypatch.setattr(tuning, "GRACE", 0.3)
    stubborn = FOREVER.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN")
    start = time.monotonic()
    with pytest.raises(optuna.TrialPruned):
        follow(stubborn, '{"epoch": 1, "val/loss": 3}', report=lambda *_: True)
    assert time.monotonic() - start < 20


def test_stop_ends_a_trial(follow, tmp_path):
    stop = threading.Event()
    (tmp_path / "trial").mkdir()

    def stop_when_ready():
        while not (tmp_path / "trial" / "ready").exists():
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_when_ready).start()
    with pytest.raises(Stopped):
        follow(FOREVER, stop=stop)
    assert (tmp_path / "trial" / "saved").exists()


def test_a_trial_that_ended_with_the_search_has_not_failed(follow, monkeypatch):
    """A scheduler's SIGTERM goes to all processes; the search may hear of it last."""
    stop = threading.Event()
    monkeypatch.setattr(tuning, "_end", lambda process: stop.set())
    with pytest.raises(Stopped):
        follow("import sys; sys.exit(143)", stop=stop)


def test_a_trial_ends_with_its_killed_search(tmp_path):
    """The search has no chance to say so: the trial sees it."""
    (tmp_path / "script.py").write_text(FOREVER)
    text = "import sys, threading; from implants import tuning; from pathlib import Path\n"
    text += "tuning.follow(sys.argv[1:], Path(sys.argv[2]), 'val/loss', print, threading.Event())"
    command = [sys.executable, "-c", text, str(tmp_path / "script.py"), str(tmp_path / "trial")]
    search = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "implant")))}
    )
    try:
        appears(tmp_path / "trial" / "ready")
    finally:
        search.kill()
        search.wait()
    appears(tmp_path / "trial" / "saved")


def appears(file, seconds=30):
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.02)


def test_table_of_trials():
    table = tuning.trial_table("mae", [("3", 0.51234, {"embedding_dim": 8, "rate": 1.23456e-4}), ("1", 2.0, {})])
    assert [column.header for column in table.columns] == ["trial", "mae", "embedding_\ndim", "rate"]
    assert [list(column.cells) for column in table.columns] == [
        ["3", "1"], ["0.5123", "2"], ["8", ""], ["0.000123", ""],
    ]  # fmt: skip
