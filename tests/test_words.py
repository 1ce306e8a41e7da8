"""Help texts and docstrings: complete phrases, one name per flag, docstrings of public functions."""

import argparse
import ast

import pytest

from conftest import PROJECTS, ROOT, load_module
from core.args import ArgumentParser

SCRIPTS = [
    file
    for project in PROJECTS
    for file in sorted(project.rglob("*.py"))
    if "\ndef parse_args(" in file.read_text(encoding="utf-8")
]
# A phrase that begins with one of these lacks its subject.
MID_PHRASE = {
    "of", "that", "which", "where", "when", "by", "with", "as", "in", "on", "under", "until", "up", "to", "at", "from",
    "and", "or", "than", "for",
}  # fmt: skip
OLD_NAMES = {"--checkpoints": "--checkpoint", "--image": "--input", "--pixel_spacing": "--pixel_size"}


class Caught(Exception):
    pass


def parser_of(script, monkeypatch):
    """The argument parser of a script."""

    def catch(self, *args):
        raise Caught(self)

    module = load_module(script)
    with monkeypatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_known_args", catch)
        with pytest.raises(Caught) as caught:
            module.parse_args([])
    return caught.value.args[0]


def actions(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions(sub)
        elif not isinstance(action, argparse._HelpAction):
            yield action


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_help_texts_are_complete_phrases(script, monkeypatch):
    for action in actions(parser_of(script, monkeypatch)):
        name = (action.option_strings or [action.dest])[0]
        assert action.help, f"{name} has no help"
        assert action.help.split()[0].lower() not in MID_PHRASE, f"{name}: {action.help}"
        for old, new in OLD_NAMES.items():
            if old in action.option_strings:
                assert action.option_strings[0] == new, f"{old} is {new}"


def public(tree, prefix=""):
    """(name, node) of public functions, classes and methods; properties need no docstring."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
                continue
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


@pytest.mark.parametrize("folder", [ROOT / "core", *PROJECTS], ids=lambda folder: folder.name)
def test_public_functions_and_classes_have_docstrings(folder):
    """Except for the code that draws demo data, and for common names of scripts (main, parse_args), data sets and
    modules."""
    usual = {"main", "parse_args", "set_epoch", "forward", "train", "add", "config"}
    missing = []
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), file
        if file.parent.name == "demo" or file.name == "make_demo_data.py":
            continue
        for name, node in public(tree):
            if not ast.get_docstring(node) and name.rpartition(".")[2] not in usual:
                missing.append(f"{file.relative_to(ROOT)}: {name}")
    assert not missing
