"""core.run on a toy: killed and resumed, on one process and two, with bad losses and full disks."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import load_script
from core import checkpoints
from core.checkpoints import damage, load_model_folder, save_model
from core.run_folder import RunFolder
from files import read_json
from launch import AGREEING, Launched, run

TOY = Path(__file__).with_name("toy_training.py")
THREE = ("--keep", 3, "--epochs", 6, "--lr", 0.1)


def toy(folder, *arguments, processes=1):
    """Runs the toy to its end; returns (returncode, stdout, stderr)."""
    script = [TOY] if processes == 1 else [AGREEING, TOY]
    return run(*script, "--save_dir", folder, "--log_with", "none", *arguments, processes=processes)


def weights(folder):
    return load_file(folder / "last" / "model.safetensors")


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def best_folders(folder):
    """The folders of the best models, the best first."""
    return sorted(path for path in folder.iterdir() if path.name == "best" or path.name.startswith("best_"))


def assert_same_run(folder, reference):
    """The same weights to the bit, in last/ and the best ones, and the same logged numbers."""
    names = [path.name for path in best_folders(reference)]
    assert [path.name for path in best_folders(folder)] == names
    for name in ("last", *names):
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
    assert "weights agree: True (2)" in done.stdout
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


# ------------------------------------------------------------------------------------------------ the three best


@pytest.fixture(scope="module")
def three_best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three_best")
    done = toy(folder, *THREE)
    assert done.returncode == 0, done.stderr
    return folder


@torch.no_grad()
def test_the_three_best_models_are_kept_in_order(three_best):
    """Each with the weights of its own epoch: they give the error that was logged for it."""
    errors = {row["epoch"]: row["val/error"] for row in rows(three_best)}
    order = sorted(errors, key=errors.get)
    assert order != sorted(order, reverse=True)  # or this test would not tell much
    assert [folder.name for folder in best_folders(three_best)] == ["best", "best_2", "best_3"]
    script = load_script("tests/core/toy_training.py")
    data = script.Numbers(11, seed=0, noise=0.0)
    for folder, epoch in zip(best_folders(three_best), order, strict=False):
        state, config = load_model_folder(folder, "toy")
        assert config["best"] == {"epoch": epoch, "error": errors[epoch]}
        model = script.Net()
        model.load_state_dict(state)
        error = (model.eval()(data.x) - data.y).square().mean().item()
        assert error == pytest.approx(errors[epoch], rel=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        ("--kill_in_write", 5),  # best_2/ of the third epoch
        ("--kill_in_write", 7),  # best/ of the fourth
        ("--kill_at", 26),  # in the fifth
    ],
)
def test_the_three_best_after_a_kill_are_those_of_an_uninterrupted_run(tmp_path, three_best, how):
    assert toy(tmp_path, *THREE, *how).returncode == -signal.SIGKILL
    done = toy(tmp_path, *THREE, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, three_best)
    assert_nothing_left_over(tmp_path)


def test_overwrite_removes_all_of_the_best(tmp_path, three_best):
    folder = tmp_path / "run"
    shutil.copytree(three_best, folder)
    (folder / "best_practice").mkdir()  # the user's own
    done = toy(folder, "--epochs", 1, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in best_folders(folder)] == ["best", "best_practice"]
    assert read_json(folder / "best" / "config.json")["best"]["epoch"] == 1


VALUES = [5.0, 3.0, 4.0, 2.0, 3.5, 1.0, 1.0, 9.0, 0.5, 2.0]  # of epoch 1, 2 …: at each place once, and equal ones


def keep_best(folder, values=VALUES, mode="min", count=3):
    """What a run does at the ends of its epochs; goes on after the last epoch that came to its end."""
    done, files = folder / "done", RunFolder(folder, print)
    for epoch in range(int(done.read_text()) if done.exists() else 0, len(values)):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, epoch + 1)
        if place := files.place_among_best(values[epoch], epoch + 1, "error", mode, count):
            save_model(place[0], model, {"best": {"epoch": epoch + 1, "error": values[epoch]}}, keep=place[1])
        done.write_text(str(epoch + 1))


def kept(folder):
    """name -> epoch of the folders with the best models; each must be whole, and its weights those of this epoch."""
    found = {}
    for path in best_folders(folder):
        assert damage(path) is None
        state, config = load_model_folder(path)
        assert state["weight"].item() == config["best"]["epoch"]
        found[path.name] = config["best"]["epoch"]
    return found


def assert_nothing_left_over(folder):
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def die_at(number):
    """The process ends, without any clearing up, before it changes the disk's folders for the `number`-th time."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    checkpoints.seal = counted(checkpoints.seal)


@pytest.mark.parametrize(("mode", "values"), [("min", VALUES), ("max", [-value for value in VALUES])])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_best_are_those_that_sorting_finds(tmp_path, mode, values, count):
    """Equal values: the earlier epoch stays ahead."""
    keep_best(tmp_path, values, mode, count)
    order = sorted(range(1, len(VALUES) + 1), key=lambda epoch: VALUES[epoch - 1])  # a stable sort
    assert kept(tmp_path) == dict(zip(["best", "best_2", "best_3", "best_4"], order[:count], strict=False))
    assert_nothing_left_over(tmp_path)


def test_killed_at_any_moment_the_best_are_the_same_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "flush", lambda path: None)  # waits for the disk; nothing here cuts the power
    values = [3.0, 1.0, 2.0, 0.5, 0.8, 0.9]  # the last three are the best, the second and the third then
    number, status = 0, 9
    while status:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        if (child := os.fork()) == 0:
            die_at(number)
            keep_best(folder, values)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        keep_best(folder, values)
        assert kept(folder) == {"best": 4, "best_2": 5, "best_3": 6}, number
        assert_nothing_left_over(folder)
    assert number >= 30


@pytest.mark.parametrize("value", [0.1, 1.5, 2.5, 3.5])
def test_an_epoch_that_comes_out_otherwise_the_second_time_is_not_kept_twice(tmp_path, value):
    """A GPU does not repeat itself to the bit. After a crash before last/ was written, the epoch is done again."""
    keep_best(tmp_path, [1.0, 2.0, 3.0, 0.5])
    assert kept(tmp_path) == {"best": 4, "best_2": 1, "best_3": 2}
    (tmp_path / "done").write_text("3")
    keep_best(tmp_path, [1.0, 2.0, 3.0, value])
    order = sorted([(1.0, 1), (2.0, 2), (value, 4)])
    assert kept(tmp_path) == dict(zip(["best", "best_2", "best_3"], [epoch for _, epoch in order], strict=True))


def test_too_few_cases_and_fp16_without_an_accelerator(tmp_path):
    few = toy(tmp_path / "few", "--size", 3)
    assert few.returncode == 2
    assert "lower --batch_size" in few.stderr
    half = toy(tmp_path / "half", "--mixed_precision", "--epochs", 1)
    assert half.returncode == 0, half.stderr
    assert "computes in fp32" in half.stdout
