"""Schemes of landmarks: known ones, and those of a user's JSON file."""

import json

import pytest

from core.errors import UserError
from core.landmarks import make_schema, read_schema

KNOWN = {"three": make_schema({"name": "three", "names": ["a", "b", "c"]}, "")}


def test_by_name_or_file(tmp_path):
    assert read_schema("three", KNOWN) is KNOWN["three"]
    file = tmp_path / "both.json"
    file.write_text('\ufeff{"names": ["left", "right", "top"], "strips": {"arc": [0, 2, 1]}, "flip": [1, 0, 2]}')
    schema = read_schema(str(file), KNOWN)
    assert schema.name == "both"
    assert schema.names == ("left", "right", "top")
    assert schema.strips == {"arc": (0, 2, 1)}
    assert schema.flip == (1, 0, 2)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not a JSON file"),
        ("[" * 100000, "not a JSON file"),
        ([1], "not an object"),
        ({}, "names is not a list of strings"),
        ({"names": []}, "names is not a list of strings"),
        ({"names": "ab"}, "names is not a list of strings"),
        ({"names": ["a", ""]}, "names is not a list of strings"),
        ({"names": ["a", 1]}, "names is not a list of strings"),
        ({"names": ["crus helicis", "b", "Crus_helicis"]}, "two landmarks are called 'Crus_helicis'"),
        ({"name": 3, "names": ["a"]}, "name is not a string"),
        ({"names": ["a"], "flips": [0]}, "unknown key 'flips'"),
        ({"names": ["a", "b"], "strips": [[0, 1]]}, "strips is not an object"),
        ({"names": ["a", "b"], "strips": {"x": 1}}, "strips is not an object"),
        ({"names": ["a", "b"], "strips": {"x": [0, 1.0]}}, "strips: 'x' names landmark 1.0"),
        ({"names": ["a", "b"], "strips": {"x": [0, 2]}}, "strips: 'x' names landmark 2; there are 0 to 1"),
        ({"names": ["a", "b"], "strips": {"x": [-1]}}, "strips: 'x' names landmark -1"),
        ({"names": ["a", "b"], "lines": {"x": ["a", "c"]}}, "lines: 'x' names landmark c"),
        ({"names": ["a", "b"], "lines": {"x": ["a"]}}, "line 'x' has 1 landmarks"),
        ({"names": ["a", "b"], "titles": ["A"]}, "titles is not a list of 2 strings"),
        ({"names": ["a", "b"], "flip": [0]}, "flip is not a permutation of 0 to 1"),
        ({"names": ["a", "b"], "flip": [0, 0]}, "flip is not a permutation of 0 to 1"),
        ({"names": ["a", "b"], "flip": [False, True]}, "flip is not a permutation of 0 to 1"),
        ({"names": ["a", "b", "c"], "flip": [1, 2, 0]}, "flip maps 0 to 1, but 1 to 2"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, match):
    file = tmp_path / "mine.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=match) as caught:
        read_schema(str(file), KNOWN)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"ear18: no such scheme or file; give three, or a JSON file"):
        read_schema("ear18", KNOWN)
    with pytest.raises(UserError, match="directory"):
        read_schema(str(tmp_path), KNOWN)
