"""Schemes of landmarks: the known ones, plain ones, and those of a user's JSON file."""

import json
from dataclasses import asdict

import pytest

from core.errors import UserError
from core.landmarks import make_schema, read_schema
from ear.anatomy import SCHEMAS, schema_for


def test_the_known_schemes():
    ear17, ibug55 = SCHEMAS["ear17"], SCHEMAS["ibug55"]
    assert (len(ear17.names), len(ibug55.names)) == (17, 55)
    assert ear17.names[4] == "postaurale"
    assert ear17.names[16] == "tragus"
    assert ear17.strips["antihelix"] == (10, 12, 13, 14)
    assert [ear17.names[i] for i in ear17.strips["tragus to antitragus"]] == [
        "tragus",
        "intertragic notch",
        "antitragus",
    ]
    assert {strip: (indices[0], indices[-1]) for strip, indices in ibug55.strips.items()} == {
        "outer helix": (0, 19),
        "inner helix": (20, 34),
        "tragus to inferior crus": (35, 49),
        "superior crus": (50, 54),
    }
    assert sorted(i for indices in ibug55.strips.values() for i in indices) == list(range(55))
    assert ibug55.names[35] == "tragus to inferior crus 1"


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=list(SCHEMAS))
def test_known_schemes_hold_what_is_asked_of_a_users(schema):
    assert schema.flip == tuple(range(len(schema.names)))  # anatomical: a mirror exchanges nothing
    assert make_schema(json.loads(json.dumps(asdict(schema))), "") == schema


def test_by_number():
    assert schema_for(17) is SCHEMAS["ear17"]
    assert schema_for(55) is SCHEMAS["ibug55"]
    plain = schema_for(3)
    assert (plain.names, plain.strips, plain.flip) == (("1", "2", "3"), {}, (0, 1, 2))


def test_by_name_or_file(tmp_path):
    assert read_schema("ibug55", SCHEMAS) is SCHEMAS["ibug55"]
    file = tmp_path / "both.json"
    file.write_text('\ufeff{"names": ["left", "right", "top"], "strips": {"arc": [0, 2, 1]}, "flip": [1, 0, 2]}')
    schema = read_schema(str(file), SCHEMAS)
    assert schema.name == "both"
    assert schema.names == ("left", "right", "top")
    assert schema.strips == {"arc": (0, 2, 1)}
    assert schema.flip == (1, 0, 2)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "no JSON file"),
        ("[" * 100000, "no JSON file"),
        ([1], "not an object"),
        ({}, "names is no list of texts"),
        ({"names": []}, "names is no list of texts"),
        ({"names": "ab"}, "names is no list of texts"),
        ({"names": ["a", ""]}, "names is no list of texts"),
        ({"names": ["a", 1]}, "names is no list of texts"),
        ({"names": ["crus helicis", "b", "Crus_helicis"]}, "two landmarks are called 'Crus_helicis'"),
        ({"name": 3, "names": ["a"]}, "name is no text"),
        ({"names": ["a"], "flips": [0]}, "unknown key 'flips'"),
        ({"names": ["a", "b"], "strips": [[0, 1]]}, "strips is no object"),
        ({"names": ["a", "b"], "strips": {"x": 1}}, "strips is no object"),
        ({"names": ["a", "b"], "strips": {"x": [0, 1.0]}}, "strips: 'x' names landmark 1.0"),
        ({"names": ["a", "b"], "strips": {"x": [0, 2]}}, "strips: 'x' names landmark 2; there are 0 to 1"),
        ({"names": ["a", "b"], "strips": {"x": [-1]}}, "strips: 'x' names landmark -1"),
        ({"names": ["a", "b"], "lines": {"x": ["a", "c"]}}, "lines: 'x' names landmark c"),
        ({"names": ["a", "b"], "lines": {"x": ["a"]}}, "line 'x' has 1 landmarks"),
        ({"names": ["a", "b"], "titles": ["A"]}, "titles is no list of 2 texts"),
        ({"names": ["a", "b"], "flip": [0]}, "flip is no order of 0 to 1"),
        ({"names": ["a", "b"], "flip": [0, 0]}, "flip is no order of 0 to 1"),
        ({"names": ["a", "b"], "flip": [False, True]}, "flip is no order of 0 to 1"),
        ({"names": ["a", "b", "c"], "flip": [1, 2, 0]}, "flip takes 1 for 0, but 2 for 1"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, match):
    file = tmp_path / "mine.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=match) as caught:
        read_schema(str(file), SCHEMAS)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"ear18: no such scheme or file; give ear17, ibug55, or a JSON file"):
        read_schema("ear18", SCHEMAS)
    with pytest.raises(UserError, match="directory"):
        read_schema(str(tmp_path), SCHEMAS)
