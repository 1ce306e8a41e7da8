"""train.sh and train.bat of every project: the same arguments, all known to train.py."""

import os
import subprocess
from pathlib import Path

import pytest

from conftest import PROJECTS, load_script


@pytest.mark.parametrize("project", PROJECTS, ids=lambda folder: folder.name)
def test_wrappers_pass_the_same_arguments_and_more(project, tmp_path):
    """train.sh runs with a stand-in for `accelerate` that prints its arguments; train.bat has the same."""
    stand_in = tmp_path / "accelerate"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", str(project / "train.sh"), "--resume", "--seed", "my number"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    arguments = done.stdout.splitlines()
    assert arguments[0] == "launch"
    assert Path(arguments[1]) == project / "train.py"
    assert arguments[-3:] == ["--resume", "--seed", "my number"]
    assert load_script(f"{project.name}/train.py").parse_args(arguments[2:-3])
    batch = (project / "train.bat").read_bytes().decode()
    assert "\n" not in batch.replace("\r\n", "")
    lines = [line.removesuffix("^").strip() for line in batch.splitlines()]
    assert 'accelerate launch "%~dp0train.py"' in lines  # %~dp0 is the folder of train.bat
    flags = " ".join(line for line in lines if line.startswith("--")).split()
    assert flags == arguments[2:-3]
    assert lines[-1] == "%*"
    assert all(line.endswith("^") for line in batch.splitlines()[3:-1])
