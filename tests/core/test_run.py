"""core.run on a toy: killed and resumed, on one process and two, with bad losses and full disks."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import Launched, run

TOY = Path(__file__).with_name("toy_training.py")


def toy(folder, *arguments, processes=1):
    """Runs the toy to its end; returns (returncode, stdout, stderr)."""
    return run(TOY, "--save_dir", folder, "--log_with", "none", *arguments, processes=processes)


def weights(folder):
    return load_file(folder / "last" / "model.safetensors")


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(folder, reference):
    """The same weights to the bit, in last/ and best/, and the same logged numbers."""
    for name in ("last", "best"):
        ours, theirs = (load_file(f / name / "model.safetensors") for f in (folder, reference))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert rows(folder) == rows(reference)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = toy(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_what_it_promises(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {"args.json", "environment.json", "metrics.jsonl", "last", "previous", "best", "figures"}
    logged = rows(uninterrupted)
    assert [row["epoch"] for row in logged] == [1, 2, 3, 4]
    assert all(row["val/cases"] == 11 for row in logged)
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]
    best = json.loads((uninterrupted / "best" / "config.json").read_text())["best"]
    assert best["error"] == min(row["val/error"] for row in logged)
    assert json.loads((uninterrupted / "args.json").read_text())["batch_size"] == 4


def test_epochs_without_a_validation_are_never_the_best(tmp_path):
    """Validated after the second and the last: also over a resume."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert toy(whole, "--valid_interval", 2, "--epochs", 5).returncode == 0
    assert toy(cut, "--valid_interval", 2, "--epochs", 5, "--kill_at", 14).returncode == -signal.SIGKILL
    assert toy(cut, "--valid_interval", 2, "--epochs", 5, "--resume").returncode == 0
    assert_same_run(cut, whole)
    validated = {row["epoch"]: row["val/error"] for row in rows(whole) if "val/error" in row}
    assert list(validated) == [2, 4, 5]
    best = json.loads((whole / "best" / "config.json").read_text())["best"]
    assert best["error"] == validated[best["epoch"]] == min(validated.values())


def test_tags_and_experiment_name_reach_the_tracker(tmp_path):
    done = run(TOY, "--save_dir", tmp_path, "--experiment_name", "trial", "--tags", "version=v1.0", "--epochs", 1)
    assert done.returncode == 0, done.stderr
    (settings,) = (tmp_path / "tensorboard" / "trial").rglob("hparams.yml")
    assert "tag_version: v1.0" in settings.read_text()
    assert json.loads((tmp_path / "args.json").read_text())["tags"] == [["version", "v1.0"]]
    wrong = run(TOY, "--save_dir", tmp_path, "--tags", "version")
    assert wrong.returncode == 2
    assert "version is not NAME=VALUE" in wrong.stderr


@pytest.mark.parametrize(
    "how",
    [
        ("--kill_at", 3),  # in the first epoch, before anything is saved
        ("--kill_at", 14),  # in the third epoch
        ("--kill_in_write", 1),  # best/ of the first epoch
        ("--kill_in_write", 2),  # last/ of the first epoch
        ("--kill_in_write", 4),  # last/ of the second
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, how):
    assert toy(tmp_path, *how).returncode == -signal.SIGKILL
    done = toy(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("how", [("--term_at", 8), ("--term_in_validation", 1)])
def test_sigterm_saves_and_leaves_with_143(tmp_path, uninterrupted, how):
    stopped = toy(tmp_path, *how)
    assert stopped.returncode == 143, stopped.stderr
    assert "go on with --resume" in stopped.stdout
    done = toy(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, uninterrupted)


def test_killed_from_outside_at_random_moments(tmp_path, uninterrupted):
    rng = random.Random(0)
    for _ in range(6):
        launched = Launched(TOY, "--save_dir", tmp_path, "--log_with", "none", "--resume", "--delay", "0.03")
        time.sleep(rng.uniform(0.4, 1.6))
        launched.processes[0].kill()
        launched.wait()
    done = toy(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, uninterrupted)


def test_a_damaged_last_falls_back_to_previous(tmp_path, uninterrupted):
    assert toy(tmp_path, "--kill_at", 20).returncode == -signal.SIGKILL
    with open(tmp_path / "last" / "optimizer.bin", "r+b") as file:
        file.truncate(100)
    done = toy(tmp_path, "--resume")
    assert "optimizer.bin is damaged" in done.stdout
    assert_same_run(tmp_path, uninterrupted)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, uninterrupted):
    stopped = toy(tmp_path, "--fail_at", 2)
    assert stopped.returncode == 2
    assert "cannot write" in stopped.stderr
    assert "untouched" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert json.loads((tmp_path / "last" / "state.json").read_text())["epoch"] == 2
    assert toy(tmp_path, "--resume").returncode == 0
    assert_same_run(tmp_path, uninterrupted)


def test_accumulation_counts_updates_and_resumes(tmp_path):
    """An epoch has whole groups of batches only, also after a resume."""
    done = toy(tmp_path / "a", "--batch_size", 4, "--accumulate_grad_batches", 3)
    assert done.returncode == 0, done.stderr
    assert [row["update"] for row in rows(tmp_path / "a")] == [2, 4, 6, 8]  # 26 cases: 6 batches, 2 updates
    killed = toy(tmp_path / "b", "--batch_size", 4, "--accumulate_grad_batches", 3, "--term_at", 3)
    assert killed.returncode == 143
    assert toy(tmp_path / "b", "--batch_size", 4, "--accumulate_grad_batches", 3, "--resume").returncode == 0
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_two_processes_count_every_case_once_and_agree_after_an_unfreeze(tmp_path):
    done = toy(tmp_path / "two", "--batch_size", 2, "--unfreeze", 2, processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 × 2 × 1 = 4" in done.stdout
    assert "ranks agree: True (2)" in done.stdout
    logged = rows(tmp_path / "two")
    assert all(row["val/cases"] == 11 for row in logged)
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]


def test_two_processes_resume_exactly(tmp_path):
    arguments = ("--batch_size", 2, "--epochs", 2)
    assert toy(tmp_path / "a", *arguments, processes=2).returncode == 0
    stopped = toy(tmp_path / "b", *arguments, "--term_at", 10, processes=2)  # ranks agree every ten updates
    assert stopped.returncode != 0
    assert "go on with --resume" in stopped.stdout
    done = toy(tmp_path / "b", *arguments, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_a_nan_loss_names_the_batch(tmp_path):
    done = toy(tmp_path, "--nan_at", 7)
    assert done.returncode == 2
    assert "case7" in done.stderr
    assert "loss nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "last").exists()


def test_a_run_is_not_overwritten_by_accident(tmp_path, uninterrupted):
    before = weights(uninterrupted)
    again = toy(uninterrupted)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert all(np.array_equal(value, before[name]) for name, value in weights(uninterrupted).items())
    finished = toy(uninterrupted, "--resume")
    assert finished.returncode == 0
    assert rows(uninterrupted)[-1]["epoch"] == 4
    nowhere = toy(tmp_path / "x", "--resume", tmp_path / "nowhere")
    assert nowhere.returncode == 2
    assert "no training state there" in nowhere.stderr
    weights_only = toy(tmp_path / "x", "--resume", uninterrupted / "best")
    assert weights_only.returncode == 2


def test_early_stopping_and_overwrite(tmp_path):
    arguments = ("--epochs", 30, "--lr", "1e-9", "--early_stopping_patience", 2)
    assert toy(tmp_path, *arguments).returncode == 0
    first = rows(tmp_path)
    assert len(first) < 30
    best = min(range(len(first)), key=lambda i: first[i]["val/error"])
    assert len(first) == best + 1 + 2
    assert toy(tmp_path, *arguments, "--overwrite", "--size", 3).returncode == 2  # too few to train on
    assert rows(tmp_path) == first
    assert (tmp_path / "best").is_dir()
    assert toy(tmp_path, *arguments, "--overwrite").returncode == 0
    assert rows(tmp_path) == first


def test_too_few_cases_and_fp16_without_an_accelerator(tmp_path):
    few = toy(tmp_path / "few", "--size", 3)
    assert few.returncode == 2
    assert "lower --batch_size" in few.stderr
    half = toy(tmp_path / "half", "--mixed_precision", "--epochs", 1)
    assert half.returncode == 0, half.stderr
    assert "computes in fp32" in half.stdout
