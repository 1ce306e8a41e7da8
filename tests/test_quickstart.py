"""quickstart.py: without internet, without venv, with old Pythons, and repeated runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECTS, ROOT, load_script

quickstart = load_script("quickstart.py")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """quickstart with folders in tmp_path and requirements that install at once."""
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
    """No f-strings, no annotations: Python 2.7 and 3.6 must reach the version check."""
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


@pytest.mark.parametrize("name", quickstart.find_projects())
def test_every_step_names_a_script_with_flags_that_it_has(name):
    for step in quickstart.find_projects()[name]["demo"]:
        script, *arguments = quickstart.words(step["run"], out="out")
        assert load_script(f"{name}/{script}").parse_args(arguments)


def test_every_project_is_demonstrated():
    assert sorted(quickstart.find_projects()) == [folder.name for folder in PROJECTS]


def test_a_project_json_that_is_none_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "project.json").write_text("{,")
    monkeypatch.setattr(quickstart, "ROOT", str(tmp_path))
    assert "mine/project.json" in stopped(capsys, quickstart.main, [])


REPORT = """
from pathlib import Path
from PIL import Image
from core.report import Report

Path(sys.argv[1]).mkdir(parents=True)
Image.new("RGB", (2000, 1000)).save(f"{sys.argv[1]}/a.png")
report = Report(f"Report of {sys.argv[1]}")
report.cards([("error", "1.2 mm", "less is better"), ("baseline", "3.4 mm", ""), ("cases", "5", "")])
report.write(Path(sys.argv[1]) / "report.html")
print("reported", os.environ.get("OMP_NUM_THREADS"), os.environ.get("COLUMNS"), flush=True)
"""


@pytest.fixture
def two_projects(tmp_path, monkeypatch):
    """quickstart in a folder with two projects of one step each, whose script is REPORT."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        start = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        (tmp_path / name / "work.py").write_text(start + REPORT)
        project = {"title": f"Title <{name}>", "minutes": 1, "demo": [{"step": "report", "run": ["work.py", "{out}"]}],
                   "picture": "a.png", "caption": "a picture", "reports": ["report.html"]}  # fmt: skip
        (tmp_path / name / "project.json").write_text(json.dumps(project))
    monkeypatch.setattr(quickstart, "PYTHON", sys.executable)
    monkeypatch.setattr(quickstart, "ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_two_projects_at_a_time_end_in_one_page(two_projects, monkeypatch, capfd):
    monkeypatch.setattr(quickstart.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    assert quickstart.demonstrate(quickstart.find_projects(), ["one", "two"]) == 0
    printed = capfd.readouterr().out
    assert "== one 1/1: report\n   python one/work.py runs/quickstart/one\n" in printed
    for name in ("one", "two"):
        assert re.search(rf"^{name} +\| reported 3 84$", printed, re.MULTILINE)
    index = two_projects / "runs" / "quickstart" / "index.html"
    assert str(index) in printed
    page = index.read_text()
    assert page.count("1.2 mm") == page.count("3.4 mm") == 2 * 2  # on the page and in its summary
    assert 'href="one/report.html"' in page
    assert "Title &lt;one&gt;" in page


def test_one_project_alone_joins_the_page_of_the_others(two_projects, monkeypatch, capfd):
    monkeypatch.setattr(quickstart.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quickstart.demonstrate(quickstart.find_projects(), ["two"])
    assert "\nreported 3 " in capfd.readouterr().out  # as many threads as with the other
    page = two_projects / "runs" / "quickstart" / "index.html"
    assert 'href="two/report.html"' in page.read_text()
    assert 'href="one/report.html"' not in page.read_text()
    quickstart.demonstrate(quickstart.find_projects(), ["one"])
    assert 'href="one/report.html"' in page.read_text()
    assert 'href="two/report.html"' in page.read_text()


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_a_failed_step_stops(two_projects, monkeypatch, capfd, names):
    (two_projects / "one" / "work.py").write_text("raise SystemExit('no room')")
    with pytest.raises(SystemExit) as end:
        quickstart.demonstrate(quickstart.find_projects(), names)
    assert end.value.code == 2
    assert capfd.readouterr().err.endswith("error: one 1/1: report: this step failed; what it said stands above\n")
    assert not (two_projects / "runs" / "quickstart" / "index.html").exists()
