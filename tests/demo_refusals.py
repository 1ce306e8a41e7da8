"""Refusals of every make_demo_data.py, for the tests of the projects. `folder`: output of `script` with `arguments`."""

import json
import re
import shutil

import pytest

from core.demo_data import RECIPE, clear
from core.errors import UserError


def refuses_existing_data_and_foreign_files(script, arguments, folder, empty, name):
    """Neither earlier demo data nor other files are lost. `name`: another file, relative to the output."""
    with pytest.raises(UserError, match="add --overwrite"):
        script.main(["--output", str(folder), *arguments])
    note = empty / name
    note.parent.mkdir()
    note.write_text("not yours")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=re.escape(note.name)):
            script.main(["--output", str(empty), *arguments, *extra])
    assert note.read_text() == "not yours"


def overwrites_only_what_the_recipe_explains(script, folder, empty, smaller):
    """`smaller`: a recipe with fewer files than there are."""
    copy = empty / "copy"
    shutil.copytree(folder, copy)
    (copy / RECIPE).write_text(json.dumps(smaller))
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="another origin"):
        clear(copy, True, script.files_of)
    assert sorted(copy.rglob("*")) == before
    shutil.copy(folder / RECIPE, copy)
    clear(copy, True, script.files_of)
    assert list(copy.rglob("*")) == []


def refuses_impossible_numbers(script, empty, arguments, capsys):
    """One line that names the flag; nothing is written."""
    with pytest.raises(SystemExit) as stop:
        script.main(["--output", str(empty / "new"), *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert arguments[0] in line
    assert not (empty / "new").exists()
