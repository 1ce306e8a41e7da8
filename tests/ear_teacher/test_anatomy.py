"""The landmark schemes of ears, and those that follow from a number, a table or what was taught."""

import json
from dataclasses import asdict

import pytest

from core.landmarks import make_schema
from ear.anatomy import SCHEMAS, part_of, schema_for
from ear.entries import named_schema
from files import write_csv


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


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["Tragus", "Superaurale", "knob"], "ear17"),  # most are its own
        (["tragus", "knob"], "mine"),
        (["stalk", "Left edge"], "mine"),
        (["landmark_1", "landmark_0"], None),
        (["1", "2"], None),
        ([], None),
    ],
)
def test_by_the_names_of_a_table(tmp_path, names, scheme):
    write_csv(tmp_path / "mine.csv", [{"image": "a.png"} | {f"{name}_{axis}": 1 for name in names for axis in "xy"}])
    found = named_schema(tmp_path / "mine.csv")
    assert found is SCHEMAS.get(scheme) if scheme != "mine" else found.names == tuple(names)
    assert named_schema(tmp_path) is None


def test_part_of_a_scheme():
    content = {"name": "x", "names": list("abcde"), "strips": {"s": [4, 0, 1], "t": [2, 4]}, "flip": [4, 1, 3, 2, 0]}
    part = part_of(make_schema(content, ""), [0, 1, 4])
    assert (part.name, part.names, part.flip) == ("x", ("a", "b", "e"), (2, 1, 0))
    assert part.strips == {"s": (2, 0, 1)}  # of t a single point is left
    assert part_of(SCHEMAS["ear17"], list(range(17))) == SCHEMAS["ear17"]
