"""One training, whatever launches it: real interpreters and the real launcher, where other tests fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from files import logged
from launch import run

SPAWNING = """
import multiprocessing, runpy, sys

multiprocessing.set_start_method("spawn", force=True)  # as on Windows and macOS: workers import the script again
script = sys.argv.pop(1)
if script.endswith(".py"):
    runpy.run_path(script, run_name="__main__")
else:
    sys.path.insert(0, "")
    runpy.run_module(script, run_name="__main__", alter_sys=True)
"""
CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def expected(small, tmp_path_factory):
    """What one epoch of a fork logs."""
    folder = tmp_path_factory.mktemp("forked") / "run"
    done = run(*small.training(folder, "--epochs", 1), **CPU)
    assert done.returncode == 0, done.stderr
    return logged(folder)


def launched(command, cwd, home):
    """Runs a command with this environment's `python` and `accelerate`, and nobody's `accelerate config`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **CPU, "PATH": path, "HF_HOME": str(home)}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_as_expected(folder, expected):
    assert logged(folder) == expected
    assert (folder / "best" / "model.safetensors").is_file()


def test_as_a_script_from_elsewhere(small, expected, tmp_path):
    script, *arguments = small.training("run", "--epochs", 1)
    launched([sys.executable, ROOT / script, *arguments], tmp_path, tmp_path)
    assert_as_expected(tmp_path / "run", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_as_a_module(small, expected, tmp_path):
    _, *arguments = small.training(tmp_path / "run", "--epochs", 1)
    launched([sys.executable, "-m", f"{small.project}.train", *arguments], ROOT, tmp_path)
    assert_as_expected(tmp_path / "run", expected)


def test_by_the_wrapper(small, expected, tmp_path):
    """That is `accelerate launch` with one process. The small training's flags come last, and win."""
    _, *arguments = small.training("run", "--epochs", 1)
    launched(["bash", ROOT / small.project / "train.sh", *arguments], tmp_path, tmp_path)
    assert_as_expected(tmp_path / "run", expected)


def test_by_the_launcher_with_two_processes(small, expected, tmp_path):
    """As the README says for a machine without GPUs. What two compute, test_two_ranks.py compares with one."""
    script, *arguments = small.training("run", "--epochs", 1)
    launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    done = launched([*launcher, ROOT / script, *arguments], tmp_path, tmp_path)
    assert "on 2 × cpu" in done.stdout
    (ours,), (theirs,) = logged(tmp_path / "run"), expected
    assert ours.keys() == theirs.keys()
    assert ours["update"] == theirs["update"] // 2
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def spawned(train, small, expected, folder):
    """Trains with workers that are real interpreters; batches then lie elsewhere in memory, which changes roundings."""
    (folder / "spawning.py").write_text(SPAWNING)
    _, *arguments = small.training(folder / "run", "--epochs", 1, "--num_workers", 1)
    done = run(folder / "spawning.py", train, *arguments, **CPU)
    assert done.returncode == 0, done.stderr
    (ours,), (theirs,) = logged(folder / "run"), expected
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_with_spawned_workers(small, expected, tmp_path):
    spawned(ROOT / small.project / "train.py", small, expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["hyperspectral"], indirect=True)
def test_with_spawned_workers_as_a_module(small, expected, tmp_path):
    """The workers then import it by its name. One project stands for all, as every worker takes seconds to start."""
    spawned(f"{small.project}.train", small, expected, tmp_path)
