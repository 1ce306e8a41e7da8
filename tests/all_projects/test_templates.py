"""A project's folder as a template: copied under another name, its package renamed as CONTRIBUTING says, it does
another subject by flags and data alone, from anywhere, and needs nothing of the original."""

import re
import subprocess

import pytest

from conftest import ROOT, load_module
from copies import Copy
from projects import facts, words

STEPS = {"train": "run", "evaluate": "evaluation", "predict": "predictions"}  # -> its folder
TEXTS = (".json", ".jsonl", ".csv", ".html", ".txt", ".log")


def rename_package(copy: Copy, package: str) -> None:
    """Runs the command of CONTRIBUTING.md in the copy, with the package's name in place of the example's."""
    (command,) = re.findall(r"^(mv ceph .+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    subprocess.run(["bash", "-c", command.replace("ceph", package)], cwd=copy.folder, check=True)


@pytest.mark.parametrize("core_inside", [True, False], ids=["core inside", "core beside"])
def test_every_script_starts_in_a_copy(project, tmp_path, core_inside):
    copy = Copy(project, tmp_path / "elsewhere" / "my_project", core_inside)
    assert {"make_demo_data.py", "train.py", "evaluate.py", "predict.py"} < set(copy.scripts)
    for script in copy.scripts:
        assert "usage: " in copy.do(tmp_path, f"{script} --help").stdout


def test_a_copy_does_another_subject(project, tmp_path):
    """Without what draws demo data. A project whose tests know no other subject does its own, with it."""
    copy, here = Copy(project, tmp_path / "elsewhere" / "my_project"), tmp_path / "here"
    here.mkdir()
    (package,) = (path.parent.name for path in copy.folder.glob("*/__init__.py") if path.parent.name != "core")
    rename_package(copy, package)
    file, forbidden = ROOT / "tests" / project / "other_subject.py", "$^"
    if file.is_file():
        other = load_module(file)
        commands, forbidden = [line.format(data="data", out="out") for line in other.COMMANDS], other.FORBIDDEN
        copy.without_demo()
        (here / "data").mkdir()
        other.draw(here / "data")
    else:
        tests, folders = facts(project)["tests"], {"data": "data", "run": "out/run"}
        steps = [*((step, "") for step in tests["prepare"]), *((tests[name], name) for name in STEPS)]
        commands = [" ".join(words(step, **folders, out=f"out/{STEPS.get(name)}")) for step, name in steps]
    told = [copy.do(here, line) for line in commands]
    texts = {f"terminal of {line}": done.stdout + done.stderr for line, done in zip(commands, told, strict=True)}
    for path in sorted((here / "out").rglob("*")):
        if path.suffix in TEXTS:
            texts[str(path)] = re.sub(r"base64,[\w+/=]+", "", path.read_text(encoding="utf-8"))
    assert len(texts) > len(told) + 5
    for place, text in texts.items():
        assert "Traceback" not in text, place
        found = re.search(forbidden, text)
        assert found is None, (place, text[max(0, found.start() - 80) : found.end() + 80])
    assert {path.name for path in here.iterdir()} == {"data", "out"}
