import json

import numpy as np
import pytest

from ceph.anatomy import (
    ANATOMY,
    MEASUREMENTS,
    SCHEMA,
    STAGES,
    Anatomy,
    anatomy_of,
    assess,
    read_norms,
    vertical_measurements,
)
from core.errors import UserError
from core.landmarks import make_schema


def head(**points):
    """Points (K, 2): those given, the rest unknown."""
    array = np.full((29, 2), np.nan)
    for symbol, place in points.items():
        array[SCHEMA.names.index(symbol)] = place
    return array


FACE = head(S=(0, 0), N=(700, -70), ANS=(720, 450), PNS=(250, 470), Me=(600, 1100), Go=(50, 750), Ar=(-100, 300),
            Po=(-200, 220), Or=(620, 230))  # fmt: skip


def line_angle(a, b):
    """Degrees below the horizontal, towards the face, from slopes."""
    return np.degrees(np.arctan((b[1] - a[1]) / (b[0] - a[0])))


def test_values_against_plane_geometry():
    values = vertical_measurements(FACE, 0.1)
    assert list(values) == [m.name for m in MEASUREMENTS]
    assert len(values) == 10
    assert values["N-Me"] == pytest.approx(0.1 * np.hypot(100, 1170))
    assert values["N-ANS"] == pytest.approx(0.1 * np.hypot(20, 520))
    assert values["ANS-Me"] == pytest.approx(0.1 * np.hypot(120, 650))
    assert values["ANS-Me/N-Me"] == pytest.approx(100 * np.hypot(120, 650) / np.hypot(100, 1170))
    assert values["S-Go"] == pytest.approx(0.1 * np.hypot(50, 750))
    assert values["S-Go/N-Me"] == pytest.approx(100 * np.hypot(50, 750) / np.hypot(100, 1170))
    mandibular = line_angle((50, 750), (600, 1100))
    assert values["SN-MP"] == pytest.approx(mandibular - line_angle((0, 0), (700, -70)))
    assert values["FH-MP"] == pytest.approx(mandibular - line_angle((-200, 220), (620, 230)))
    assert values["PP-MP"] == pytest.approx(mandibular - line_angle((250, 470), (720, 450)))
    cosine = np.dot((-150, -450), (550, 350)) / (np.hypot(150, 450) * np.hypot(550, 350))
    assert values["Ar-Go-Me"] == pytest.approx(np.degrees(np.arccos(cosine)))


def test_a_mirrored_or_turned_head_measures_the_same():
    mirrored = FACE * [-1, 1] + [2000, 0]
    assert np.allclose(ANATOMY.measure(mirrored), ANATOMY.measure(FACE))
    c, s = np.cos(0.1), np.sin(0.1)
    assert np.allclose(ANATOMY.measure(FACE @ np.array([[c, s], [-s, c]])), ANATOMY.measure(FACE))


def test_a_plane_that_rises_to_the_front_is_negative():
    flat = FACE.copy()
    flat[SCHEMA.names.index("Me")] = (600, 600)  # above gonion
    values = vertical_measurements(flat, None)
    assert values["SN-MP"] < 0
    assert values["PP-MP"] < 0


def test_lengths_need_a_pixel_size():
    values = vertical_measurements(FACE, None)
    units = {m.name: m.unit for m in MEASUREMENTS}
    assert {name for name, value in values.items() if np.isnan(value)} == {n for n, u in units.items() if u == "mm"}
    assert assess(values["N-Me"], (118, 6)) == (pytest.approx(np.nan, nan_ok=True), "uncalibrated")


def test_unknown_landmarks_make_their_measurements_unknown():
    values = vertical_measurements(head(N=(0, 0), Me=(0, 100)), 0.1)
    assert values["N-Me"] == pytest.approx(10)
    assert all(np.isnan(value) for name, value in values.items() if name != "N-Me")


def test_an_angle_to_the_front_needs_to_know_where_the_front_is():
    """Without N it is unknown whether the mandible rises or falls; the gonial angle has no sign."""
    faceless = FACE.copy()
    faceless[SCHEMA.names.index("N")] = np.nan
    values = vertical_measurements(faceless, 0.1)
    assert np.isnan([values["FH-MP"], values["PP-MP"]]).all()
    assert np.isfinite([values["S-Go"], values["Ar-Go-Me"]]).all()


def test_a_scheme_has_the_measurements_whose_landmarks_it_has():
    """In whatever order; the stages are the built-in scheme's alone."""
    names = ("Me", "x", "Go", "N", "Ar", "ANS")
    some = anatomy_of(make_schema({"name": "some", "names": names}, ""))
    assert [m.name for m in some.measurements] == ["N-Me", "N-ANS", "ANS-Me", "ANS-Me/N-Me", "Ar-Go-Me"]
    assert some.stages == ()
    points = np.array([FACE[SCHEMA.names.index(name)] if name != "x" else (0, 0) for name in names])
    ours, theirs = vertical_measurements(points, 0.1, some), vertical_measurements(FACE, 0.1)
    assert ours == {name: theirs[name] for name in ours}
    assert (ANATOMY.schema.flip, ANATOMY.stages) == (tuple(range(29)), STAGES)
    none = anatomy_of(make_schema({"name": "none", "names": ["P1", "P2"]}, ""))
    assert (none.measurements, none.stages, none.measure(np.zeros((3, 2, 2))).shape) == ((), (), (3, 0))


@pytest.mark.parametrize("anatomy", [ANATOMY, Anatomy(make_schema({"names": ["a", "b", "c"], "flip": [1, 0, 2]}, ""))])
def test_a_config_holds_an_anatomy(anatomy):
    content = json.loads(json.dumps(anatomy.config()))
    assert Anatomy.from_config(content) == anatomy
    assert list(content) == (["schema", "measurements", "cvm_stages"] if anatomy == ANATOMY else ["schema"])


def test_what_was_taught_is_counted_and_the_rest_left_out():
    points = np.stack([FACE, FACE, np.full((29, 2), np.nan)])
    points[1, SCHEMA.names.index("Ar")] = np.nan
    points[:, SCHEMA.names.index("Or")] = np.nan
    taught = ANATOMY.taught(points, [3, None, 1])
    assert {name: taught["landmarks"][name] for name in ("S", "Ar", "Or", "Sn")} == {"S": 2, "Ar": 1, "Or": 0, "Sn": 0}
    assert [taught["measurements"][name] for name in ("N-Me", "FH-MP", "Ar-Go-Me")] == [2, 0, 1]
    assert taught["stage"] == {"stage": 2}
    told = ANATOMY.only(taught)
    assert (told.schema, told.stages) == (SCHEMA, STAGES)
    assert {m.name for m in ANATOMY.measurements} - {m.name for m in told.measurements} == {"FH-MP"}
    assert ANATOMY.only(ANATOMY.taught(points, [None] * 3)).stages == ()
    assert set(Anatomy(SCHEMA).taught(points, [None] * 3)) == {"landmarks"}


def test_batches():
    assert np.allclose(
        ANATOMY.measure(np.stack([FACE, 2 * FACE]))[1][[0, 3, 9]], ANATOMY.measure(FACE)[[0, 3, 9]] * [2, 1, 1]
    )


def test_norms_can_be_overridden(tmp_path):
    assert read_norms()["FH-MP"] == (25, 3)
    assert read_norms()["N-Me"] is None
    file = tmp_path / "norms.json"
    file.write_text(json.dumps({"N-Me": [118, 6]}))
    assert read_norms(file)["N-Me"] == (118, 6)
    assert assess(130, (118, 6)) == (2.0, "high")
    assert assess(115, (118, 6)) == (-0.5, "normal")
    assert assess(100, (118, 6))[1] == "low"
    assert assess(100, None)[1] == "no norm"
    for content in ("{", "[1]", '{"N-Me": 3}', '{"N-X": [1, 2]}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"norms\.json"):
            read_norms(file)
