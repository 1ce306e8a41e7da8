"""The front door: what it does without internet, without venv, with an old Python, and the second time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, load_script

quickstart = load_script("quickstart.py")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """quickstart with its folders moved to tmp_path, and requirements that install at once."""
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    for name, value in {
        "VENV": tmp_path / ".venv",
        "PYTHON": tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"),
        "REQUIREMENTS": tmp_path / "requirements.txt",
        "STAMP": tmp_path / ".venv" / "installed.txt",
    }.items():
        monkeypatch.setattr(quickstart, name, str(value))
    return tmp_path


def stopped(capsys, function, *arguments):
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def test_the_second_run_installs_nothing(house, monkeypatch):
    quickstart.install()
    assert (house / ".venv" / "installed.txt").exists()
    monkeypatch.setattr(quickstart.subprocess, "call", lambda *_: pytest.fail("installed again"))
    quickstart.install()
    (house / "requirements.txt").write_text("# something else\n")
    with pytest.raises(pytest.fail.Exception):
        quickstart.install()


def test_a_failed_installation_is_one_line_and_is_tried_again(house, monkeypatch, capsys):
    monkeypatch.setattr(quickstart.subprocess, "call", lambda *_: 1)
    assert "internet" in stopped(capsys, quickstart.install)
    assert not (house / ".venv" / "installed.txt").exists()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_without_venv(house, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert "python3-venv" in stopped(capsys, quickstart.install)


def test_old_python(monkeypatch, capsys):
    monkeypatch.setattr(quickstart.sys, "version_info", (3, 8, 1))
    assert "3.10 or newer" in stopped(capsys, quickstart.main, [])


def test_old_pythons_can_parse_it():
    """No f-strings, no annotations: Python 2.7 and 3.6 must get as far as the version check."""
    found = [shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.7", "3.8", "3.9")]
    pyenv = Path.home() / ".pyenv" / "versions"
    found += [str(folder / "bin" / "python") for folder in pyenv.glob("*") if folder.name[:3] in ("2.7", "3.6", "3.8")]
    tried = 0
    for python in filter(None, found):
        done = subprocess.run([python, str(ROOT / "quickstart.py")], capture_output=True, text=True, check=False)
        if "is not installed" in done.stderr or "not found" in done.stderr:
            continue  # a pyenv shim without a version behind it
        assert done.returncode == 2, done.stderr
        assert "3.10 or newer is needed" in done.stderr
        tried += 1
    if not tried:
        pytest.skip("no older Python here")


def test_wrong_words(capsys):
    assert "usage" in stopped(capsys, quickstart.main, ["everything"])


def test_every_step_names_a_script_with_flags_that_it_has():
    for steps, pages in quickstart.PROJECTS.values():
        assert pages
        for _, (path, *arguments) in steps:
            module = load_script(path.replace(os.sep, "/"))
            assert module.parse_args(arguments)


def test_a_failed_step_stops(house, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "run", lambda script: 1)
    assert "this step failed" in stopped(capsys, quickstart.demonstrate, ["cephalometric"])
