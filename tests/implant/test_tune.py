"""implant/tune.py: searches as a user starts, kills and resumes them. The training script is a stand-in whose score is
a formula; it writes what the real ones write."""

import os
import shlex
import signal
import subprocess
import sys
import time

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from conftest import ROOT, load_script
from core.errors import UserError
from files import logged
from implants.search_spaces import METRICS, SCRIPTS, SPACES
from implants.tuning import distributions, flags, interrupted, open_storage
from launch import Launched, run

TRAIN = """
import argparse, json, math, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model_size")
parser.add_argument("--learning_rate", type=float)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--save_dir", type=Path)
parser.add_argument("--seed", type=int)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--pause", type=float, default=0)
parser.add_argument("--failing", default="none")
args = parser.parse_args()

def terminated(number, frame):
    (args.save_dir / "terminated").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, terminated)
if args.model_size == args.failing:
    sys.exit("error: out of memory")
for name in ("best", "last", "previous"):
    (args.save_dir / name).mkdir(parents=True)
(args.save_dir / "threads").write_text(os.environ["OMP_NUM_THREADS"])
score = 0.9 - 0.1 * abs(math.log10(args.learning_rate / 1e-4)) + args.batch_size / 1000 + args.seed / 100
for epoch in range(1, args.epochs + 1):
    time.sleep(args.pause)
    with open(args.save_dir / "metrics.jsonl", "a") as file:
        # The middle epoch is the best.
        row = {"epoch": epoch, "val/accuracy": score - abs(epoch - (args.epochs + 1) / 2) / 10}
        file.write(json.dumps(row) + "\\n")
"""


@pytest.fixture
def command(tmp_path):
    """Flags of a search in tmp_path / "search" with the stand-in: `command(*more, then=[flags of the script])`."""
    script = tmp_path / "stand_in.py"
    script.write_text(TRAIN)

    def make(*more, then=()):
        given = ["--stage", "classifier", "--script", script, "--output", tmp_path / "search", *more]
        return [str(flag) for flag in (*given, "--", *then)]

    return make


@pytest.fixture
def tune(command):
    """Runs a search in this process."""
    script = load_script("implant/tune.py")
    return lambda *more, then=(): script.main(command(*more, then=then))


@pytest.fixture
def trials(tmp_path):
    """What the study of the search holds: `trials(*states)`."""

    def read(*states):
        storage = open_storage(f"journal:{tmp_path / 'search' / 'journal.log'}", must_exist=True)
        return optuna.load_study(study_name="implant_classifier", storage=storage).get_trials(states=states or None)

    return read


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


# -------------------------------------------------------------------------------------------------------------- search


def test_twenty_trials_by_four_workers(tune, trials, tmp_path, capsys):
    tune("--threads_per_trial", 3, "--keep", 2, "--pruner", "none")
    search = tmp_path / "search"
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 20
    best, second = sorted(trials(), key=lambda trial: -trial.value)[:2]
    for trial in trials():
        folder = search / f"trial_{trial.number:04}"
        values = [row["val/accuracy"] for row in logged(folder)]
        assert trial.value == max(values) == values[1]  # of the best epoch
        assert list(trial.intermediate_values.values()) == values
        assert (folder / "threads").read_text() == "3"
        assert (folder / "best").is_dir()
        kept = trial.number in (best.number, second.number)
        assert (folder / "last").exists() == (folder / "previous").exists() == kept
    printed = capsys.readouterr().out
    assert "20 complete\n" in printed
    assert f"best: trial {best.number}, " in printed
    assert printed.splitlines()[-1] == (search / "best_command.txt").read_text().strip()


def test_the_best_command_repeats_the_best_trial(tune, trials, tmp_path, monkeypatch):
    """Whatever the folder's name; the stand-in's score depends on the seed, too."""
    monkeypatch.chdir(tmp_path)
    tune("--trials", 4, "--seed", 7, "--output", "a search", then=["--epochs", 5])
    command = shlex.split((tmp_path / "a search" / "best_command.txt").read_text())
    assert command[:3] == ["env", f"OMP_NUM_THREADS={max(1, len(os.sched_getaffinity(0)) // 4)}", "python"]
    assert command[3] == "stand_in.py"
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    storage = open_storage("journal:a search/journal.log", must_exist=True)
    best = optuna.load_study(study_name="implant_classifier", storage=storage).best_trial
    repeated = logged(tmp_path / "a search" / "best_run")
    assert repeated == logged(tmp_path / "a search" / f"trial_{best.number:04}")
    assert max(row["val/accuracy"] for row in repeated) == best.value


def test_a_killed_search_goes_on(command, trials, tmp_path):
    """With SIGKILL: its trials end, and are tried again."""
    given = command("--trials", 20, "--pruner", "none", then=["--pause", 0.1])
    search = Launched("implant/tune.py", *given)
    wait_for(lambda: (tmp_path / "search" / "trial_0000").exists() and len(trials(*FINISHED)) >= 5)
    children = psutil.Process(search.processes[0].pid).children()
    search.processes[0].kill()
    search.processes[0].join()
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert trials(TrialState.RUNNING)
    done = run("implant/tune.py", *given)
    assert done.returncode == 0, done.stderr
    assert "of 20 trials are finished" in done.stdout.splitlines()[0]
    assert len(trials(*FINISHED)) == 20
    assert not trials(TrialState.RUNNING, TrialState.WAITING)
    again = [trial.params.items() for trial in trials(*FINISHED)]
    for trial in filter(interrupted, trials()):
        assert any(trial.params.items() <= params for params in again)  # fewer, if it was killed while choosing them
        assert not (tmp_path / "search" / f"trial_{trial.number:04}" / "last").exists()
    assert "interrupted and queued again" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_trials_too(command, trials, tmp_path, number):
    search = Launched("implant/tune.py", *command(then=["--pause", 60]))
    started = [tmp_path / "search" / f"trial_000{i}" / "threads" for i in range(4)]
    wait_for(lambda: all(file.exists() for file in started))
    os.kill(search.processes[0].pid, number)
    done = search.wait()
    assert done.returncode == 128 + number
    assert done.stderr == f"{signal.Signals(number).name}: go on with the same command\n"
    assert all((file.parent / "terminated").exists() for file in started)
    assert len(trials(TrialState.WAITING)) == 4
    assert not trials(TrialState.RUNNING)


def test_a_bad_trial_is_pruned(tune, trials, tmp_path, capsys):
    """A batch of -900 takes 0.9 off the score; some trials with 0 are complete by then."""
    tune("--trials", 8, "--parallel", 1, "--startup_trials", 2, "--warmup_epochs", 2, "--space", "batch_size=0,-900",
         then=["--epochs", 30, "--pause", 0.02])  # fmt: skip
    pruned = trials(TrialState.PRUNED)
    assert pruned
    assert len(trials(*FINISHED)) == 8
    for trial in pruned:
        assert trial.last_step >= 3
    early = [trial for trial in pruned if trial.last_step == 3]
    assert early
    for trial in early:
        folder = tmp_path / "search" / f"trial_{trial.number:04}"
        assert (folder / "terminated").exists()
        assert len(logged(folder)) < 30
    assert f"{8 - len(pruned)} complete, {len(pruned)} pruned" in capsys.readouterr().out


def test_failed_trials_are_counted_apart(tune, trials, tmp_path, capsys):
    tune("--trials", 8, "--parallel", 2, then=["--failing", "tiny"])
    failed = trials(TrialState.FAIL)
    assert failed
    assert {trial.params["model_size"] for trial in failed} == {"tiny"}
    assert len(trials(*FINISHED)) == 8
    folder = tmp_path / "search" / f"trial_{failed[0].number:04}"
    assert (folder / "stderr.log").read_text() == "error: out of memory\n"
    printed = capsys.readouterr().out
    assert f"failed: exit code 1: error: out of memory ({folder})" in printed
    assert f" {len(failed)} failed" in printed


def test_a_wrong_flag_ends_the_search(tune, trials):
    with pytest.raises(UserError, match=r"10 trials in a row failed.*unrecognized arguments: --epoch_count 3"):
        tune(then=["--epoch_count", 3])
    assert not trials(*FINISHED)


def test_more_trials_are_added(tune, trials):
    tune("--trials", 3)
    tune("--trials", 5)
    assert len(trials(*FINISHED)) == len(trials()) == 5


def test_sqlite_does_as_well(tune, tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    tune("--trials", 3, "--storage", storage, "--study_name", "mine")
    study = optuna.load_study(study_name="mine", storage=open_storage(storage, must_exist=True))
    assert len(study.trials) == 3


# ----------------------------------------------------------------------------------------------------------- arguments


def test_space_replaces_fixes_and_adds(tune, trials):
    tune("--trials", 6, "--space", "model-size=small", "lr=1e-4,2e-4", "epochs=2,4")
    tried = [trial.params for trial in trials()]
    assert {trial["model_size"] for trial in tried} == {"small"}
    assert {trial["learning_rate"] for trial in tried} == {1e-4, 2e-4}
    assert {trial["epochs"] for trial in tried} == {2, 4}
    assert {trial["batch_size"] for trial in tried} <= {8, 16, 32}


@pytest.mark.parametrize("text", ["batch_size", "batch_size=", "batch_size=8,"])
def test_a_space_without_values_is_refused(tune, capsys, text):
    with pytest.raises(SystemExit):
        tune("--space", text)
    assert "--space" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--batch-size", "8"], ["--batch_size=8"], ["--lr", "1e-4"]])
def test_a_flag_is_searched_or_fixed(tune, given):
    with pytest.raises(UserError, match=r"--(batch_size|learning_rate) is searched: to fix it, give --space"):
        tune(then=given)


@pytest.mark.parametrize("name", ["--save_dir", "--save-dir", "--resume", "--overwrite"])
def test_trials_have_folders_of_their_own(tune, name):
    with pytest.raises(UserError, match=r"leave out --(save_dir|resume|overwrite) after --"):
        tune(then=[name])


def test_the_seed_after_the_dashes_wins(tune, tmp_path):
    tune("--trials", 1, then=["--seed", 5])
    assert logged(tmp_path / "search" / "trial_0000")[1]["val/accuracy"] > 0.9 - 0.1 + 0.05


def test_another_search_is_no_continuation(tune):
    tune("--trials", 1)
    with pytest.raises(UserError, match=r'has flags .*now it would be \["--seed", "0", "--epochs", "4"\]'):
        tune("--trials", 2, then=["--epochs", 4])
    with pytest.raises(UserError, match="has space"):
        tune("--trials", 2, "--space", "batch_size=8")
    with pytest.raises(UserError, match="holds trials of another study"):
        tune("--trials", 2, "--study_name", "other")


def test_one_search_at_a_time(tune, tmp_path):
    script = load_script("implant/tune.py")
    with script.alone(tmp_path / "search"), pytest.raises(UserError, match="another search runs in"):
        tune()
    tune("--trials", 1)


def test_a_script_that_is_not_there(tune, tmp_path):
    with pytest.raises(UserError, match=r"none\.py: no such file"):
        tune("--script", tmp_path / "none.py")


@pytest.mark.parametrize("named", [None, "2,5"])
def test_gpus_are_shared_out(monkeypatch, named):
    script = load_script("implant/tune.py")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    given = []
    monkeypatch.setattr(script.tuning, "follow", lambda *arguments: given.append(arguments[-1]) or [0.5])
    args = script.parse_args(["--stage", "classifier", "--threads_per_trial", "1"])
    for worker in range(3):
        script.run_trial(args, "val/accuracy", "max", script.visible_gpus(), None, worker, worker, {}, None)
    first, second = named.split(",") if named else ("0", "1")
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == [first, second, first]


# -------------------------------------------------------------------------------------------------------------- spaces

RECORDS = ["--train_json", "train.json", "--val_json", "val.json"]
NEEDED = {
    "classifier": [*RECORDS, "--target", "model"],
    "regression": [*RECORDS, "--company_checkpoint", "company", "--model_checkpoint", "model"],
}


@pytest.mark.parametrize("stage", SPACES)
def test_the_training_scripts_take_every_value(stage):
    script, space = load_script(f"implant/{SCRIPTS[stage]}"), SPACES[stage]
    every = {name: getattr(values, "choices", tuple(vars(values).values())) for name, values in space.items()}
    for i in range(max(map(len, every.values()))):
        tried = {name: values[i % len(values)] for name, values in every.items()}
        args = vars(script.parse_args([*NEEDED[stage], *flags(tried)]))
        read = {name: args["lr" if name == "learning_rate" else name] for name in space}
        if "unfreeze_schedule" in read:
            read["unfreeze_schedule"] = " ".join(map(str, read["unfreeze_schedule"]))
        assert read == tried


@pytest.mark.parametrize("stage", SPACES)
def test_the_metric_is_the_one_that_the_script_monitors(stage):
    metric, mode = METRICS[stage]
    text = (ROOT / "implant" / SCRIPTS[stage]).read_text()
    assert f'monitor="{metric}"' in text
    assert ('mode="max"' in text) == (mode == "max")


def test_spaces_of_the_reference():
    assert set(SPACES["classifier"]) == {"model_size", "learning_rate", "batch_size"}
    regression = distributions(SPACES["regression"])
    assert regression["embedding_dim"].choices == (128, 256, 512)
    assert regression["attention_type"].choices == ("dual", "triple", "hierarchical")
    assert (regression["embedding_lr_multiplier"].low, regression["embedding_lr_multiplier"].high) == (0.01, 0.5)
