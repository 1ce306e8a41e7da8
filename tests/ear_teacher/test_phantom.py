"""The synthetic ear: landmarks lie on the lines and ridges that they name, and parameters move what they say."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from ear.demo import phantom as phantom
from ear.demo import scene as ear_scene
from ear.demo.phantom import SPREAD, EarShape, ear_curves, sample_shape

ROOT = Path(__file__).resolve().parents[2]
SCALE, MIDDLE = 300.0, 250.0
TO_PX = np.array([[SCALE, 0, MIDDLE], [0, SCALE, MIDDLE]])
SUPERIUS, TOP, BACK, LOWEST, INFERIUS, CRUS, SUPERIOR, INFERIOR, FORK, BODY, ANTITRAGUS, NOTCH, TRAGUS = (
    0, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
)  # fmt: skip
NEAR_MEAN = [sample_shape(np.random.default_rng(seed), EarShape()) for seed in range(8)]  # no folds that merge
SHAPES = [EarShape(), *(sample_shape(np.random.default_rng(seed)) for seed in range(12))]


def relief(shape):
    curves = ear_curves(shape)
    return curves, phantom.relief_of(shape, curves, TO_PX, (500, 500))


def at(image, points):
    """Values of `image` at points (N, 2) of the ear's frame."""
    column, row = np.rint(phantom.px(np.atleast_2d(points), TO_PX)).astype(int).T
    return image[row, column]


def test_shapes_stay_within_bounds_and_ears_of_one_person_are_alike():
    rng = np.random.default_rng(0)
    names = [field.name for field in fields(EarShape)]
    values = np.array([[getattr(sample_shape(rng), name) for name in names] for _ in range(400)])
    mean, spread = (np.array([getattr(shape, name) for name in names]) for shape in (EarShape(), SPREAD))
    deviations = (values - mean) / spread
    assert abs(deviations).max() <= phantom.EXTREME + 1e-9
    np.testing.assert_allclose(deviations.mean(0), 0, atol=0.2)
    free = [name != "attachment" for name in names]  # which is also held within 0-1
    np.testing.assert_allclose(deviations.std(0)[free], 1, atol=0.12)
    assert values[:, names.index("attachment")].min() == 0
    assert values[:, names.index("attachment")].max() == 1
    other = np.array([getattr(sample_shape(rng, EarShape()), name) for name in names])
    assert 0 < abs((other - mean) / spread).max() <= phantom.ASYMMETRY * phantom.EXTREME + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_landmarks_are_where_their_names_say(shape):
    curves = ear_curves(shape)
    p, outer = curves.ear17, curves.outer
    assert (p.shape, curves.ibug55.shape) == ((17, 2), (55, 2))
    assert p[TOP, 1] == outer[:, 1].min()
    assert p[LOWEST, 1] == outer[:, 1].max()
    assert p[BACK, 0] == outer[outer[:, 1] < 0.1][:, 0].min()
    along = [np.linalg.norm(outer - point, axis=1).argmin() for point in p[:9]]
    np.testing.assert_allclose(outer[along], p[:9], atol=1e-9)  # on the outline,
    assert along == sorted(along)  # in their order
    assert p[ANTITRAGUS, 0] < p[NOTCH, 0] < p[TRAGUS, 0]
    assert p[SUPERIOR, 1] < p[FORK, 1] < p[BODY, 1] < p[ANTITRAGUS, 1]
    assert p[FORK, 0] < p[INFERIOR, 0] < p[SUPERIUS, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_both_schemas_share_their_ends(shape):
    curves = ear_curves(shape, yaw=0.1)
    one, other = curves.ear17, curves.ibug55
    pairs = {SUPERIUS: 0, INFERIUS: 19, TRAGUS: 35, INFERIOR: 49, FORK: 50, SUPERIOR: 54}
    np.testing.assert_allclose(one[list(pairs)], other[list(pairs.values())], atol=1e-9)
    for first, last, curve in ((0, 20, curves.outer), (20, 35, curves.inner), (35, 50, curves.rim)):
        strip = other[first:last]
        away = [np.linalg.norm(curve - point, axis=1).min() for point in strip]
        assert max(away) < 0.004  # a curve's points are that dense
        steps = np.linalg.norm(np.diff(strip, axis=0), axis=1)
        assert steps.max() / steps.min() < 1.25  # chords of equal arcs


@pytest.mark.parametrize("shape", NEAR_MEAN)
def test_ridges_and_hollows(shape):
    """The helix is higher than what lies inside it, the antihelix than the concha and the scapha, and so on."""
    curves, drawn = relief(shape)
    middle = range(60, 110, 10)  # before the superior crus comes close
    helix = at(drawn.height, [(curves.outer[i] + curves.inner[i]) / 2 for i in middle])
    within = at(drawn.height, [curves.inner[i] + 0.6 * (curves.inner[i] - curves.outer[i]) for i in middle])
    assert (helix > within + 0.01).all()
    body = curves.ear17[BODY]
    ridge, concha = at(drawn.height, [body, body + [0.07, 0]])
    rim = curves.inner[np.linalg.norm(curves.inner - body, axis=1).argmin()]
    scapha = at(drawn.height, body + np.linspace(0, 1, 20)[:, None] * (rim - body))
    assert ridge > scapha.min()
    assert ridge > concha + 0.08
    tragus, canal = at(drawn.height, curves.ear17[[TRAGUS]] + [[0.03, 0], [-0.04, 0]])
    assert tragus > canal + 0.08
    crus, beside = at(drawn.height, [curves.crus[60], curves.crus[60] + [0, 0.05]])
    assert crus > beside


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_relief_covers_what_the_outline_encloses(shape):
    curves, drawn = relief(shape)
    assert (at(drawn.cover, curves.ear17[9:15]) > 0.9).all()
    outwards = phantom.normals(curves.outer)[40:300]
    assert (at(drawn.cover, curves.outer[40:300] - 0.01 * outwards) > 0.5).all()
    assert (at(drawn.cover, curves.outer[40:300] + 0.01 * outwards) < 0.1).all()
    rows, columns = np.nonzero(drawn.cover > 0.5)
    x0, y0, x1, y1 = phantom.box_of(curves, TO_PX)
    np.testing.assert_allclose([columns.min(), rows.min(), rows.max()], [x0, y0, y1], atol=1)
    assert abs(columns.max() - x1) < 0.09 * SCALE  # there the ear fades into the cheek


@pytest.mark.parametrize(
    ("name", "landmark", "axis", "sign"),
    [
        ("width", BACK, 0, -1), ("top", TOP, 0, 1), ("back", BACK, 1, 1), ("fullness", 5, 0, -1),
        ("lobe", ANTITRAGUS, 1, -1), ("lobe", TRAGUS, 1, -1), ("lobe_width", 6, 0, -1), ("attachment", INFERIUS, 1, 1),
        ("antihelix_back", BODY, 0, -1), ("fork", FORK, 1, 1), ("superior_crus", SUPERIOR, 0, 1),
        ("inferior_crus", INFERIOR, 1, 1), ("tragus", TRAGUS, 0, -1), ("tragus_low", TRAGUS, 1, 1),
        ("antitragus", ANTITRAGUS, 1, -1), ("crus", CRUS, 0, -1),
    ],
)  # fmt: skip
def test_parameters_move_their_landmarks(name, landmark, axis, sign):
    mean = EarShape()
    moved = replace(mean, **{name: getattr(mean, name) + getattr(SPREAD, name)})
    before, after = ear_curves(mean), ear_curves(moved)
    assert sign * (after.ear17 - before.ear17)[landmark, axis] > 0.005
    assert before.outer[:, 1].min() == pytest.approx(after.outer[:, 1].min(), abs=0.01)  # the length is the unit
    assert before.outer[:, 1].max() == pytest.approx(after.outer[:, 1].max(), abs=0.01)


@pytest.mark.parametrize(
    ("name", "place", "sign"),
    [
        ("helix_roll", lambda c: (c.outer[100] + c.inner[100]) / 2, 1),
        ("antihelix", lambda c: c.ear17[BODY], 1),
        ("concha", lambda c: c.ear17[BODY] + [0.08, 0], -1),
        ("tragus", lambda c: c.ear17[TRAGUS] + [0.03, 0], 1),
        ("antitragus", lambda c: c.ear17[ANTITRAGUS], 1),
    ],
)
def test_parameters_of_the_relief(name, place, sign):
    mean = EarShape()
    before = at(relief(mean)[1].height, place(ear_curves(mean)))
    after = at(relief(replace(mean, **{name: 1.3}))[1].height, place(ear_curves(mean)))
    assert sign * (after - before) > 0.005


def test_helix_width_and_protrusion():
    mean = EarShape()
    wide = ear_curves(replace(mean, helix_width=1.5 * mean.helix_width))
    breadth = np.linalg.norm(wide.band - wide.inner, axis=1) / np.linalg.norm(
        ear_curves(mean).band - ear_curves(mean).inner, axis=1
    )
    np.testing.assert_allclose(breadth, 1.5, rtol=1e-6)
    # A camera further in front sees the rim of a protruding ear further back; the root in the cheek stays.
    shift = [
        ear_curves(replace(mean, protrusion=stand), yaw=0.2).ear17 - ear_curves(mean).ear17 for stand in (0.2, 0.8)
    ]
    assert shift[1][BACK, 0] < shift[0][BACK, 0] - 0.02
    assert abs(shift[1][TRAGUS, 0] - shift[0][TRAGUS, 0]) < 0.02
    front = ear_curves(mean).front
    np.testing.assert_allclose(ear_curves(mean, yaw=0.2).front[:, 0], front[:, 0] * np.cos(0.2), atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- scenes


def person(seed, **changes):
    return replace(ear_scene.sample_person(np.random.default_rng(seed)), **changes)


def scene(who, side="right", seed=0, size=200):
    return ear_scene.draw_scene(who, side, np.random.default_rng(seed), size)


@pytest.mark.parametrize("seed", range(8))
def test_scene_holds_the_whole_ear(seed):
    drawn = scene(person(seed), seed=seed)
    height, width = drawn.image.shape[:2]
    assert drawn.image.dtype == np.uint8
    assert 0.93 * 200 < min(height, width) <= max(height, width) < 1.13 * 200
    x0, y0, x1, y1 = drawn.box
    assert 0 <= x0 < x1 <= width - 1
    assert 0 <= y0 < y1 <= height - 1
    assert 0.3 < (y1 - y0) / height < 0.6
    for points in (drawn.ear17, drawn.ibug55):
        assert (points >= drawn.box[:2] - 1e-6).all()
        assert (points <= drawn.box[2:] + 1e-6).all()
    sides = np.concatenate([drawn.ibug55.min(0), drawn.ibug55.max(0)])
    np.testing.assert_allclose(sides[[0, 1, 3]], drawn.box[[0, 1, 3]], atol=0.02 * (y1 - y0))  # x1 is in the cheek


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_lie_on_skin(seed):
    """Skin that is painted green is green at every landmark, and the wall and the hair behind are not."""
    who = person(seed, lock=0.0)
    skin, ear_scene.SKIN_TONES = ear_scene.SKIN_TONES, ("#20d020",) * 6
    try:
        drawn = scene(who, seed=seed)
    finally:
        ear_scene.SKIN_TONES = skin
    middle = drawn.box.reshape(2, 2).mean(0)
    for points in (drawn.ear17, drawn.ibug55):
        inwards = (middle - points) / np.linalg.norm(middle - points, axis=1)[:, None]
        column, row = np.rint(points + 2.5 * inwards).astype(int).T
        red, green, _ = drawn.image[row, column].T.astype(int)
        assert (green > 1.5 * red).all()


def test_left_picture_is_the_mirrored_right_one():
    shape = sample_shape(np.random.default_rng(5))
    who = person(3, ears={"right": shape, "left": shape})
    right, left = scene(who, "right"), scene(who, "left")
    np.testing.assert_array_equal(left.image, right.image[:, ::-1])
    width = right.image.shape[1]
    for one, other in ((right.ear17, left.ear17), (right.ibug55, left.ibug55)):
        np.testing.assert_allclose(other, np.column_stack([width - 1 - one[:, 0], one[:, 1]]))
    np.testing.assert_allclose(left.box[[0, 2]], width - 1 - right.box[[2, 0]])
    np.testing.assert_array_equal(left.box[[1, 3]], right.box[[1, 3]])
    assert right.ear17[TRAGUS, 0] > right.ear17[BACK, 0]  # a right ear has the face to its right
    assert left.ear17[TRAGUS, 0] < left.ear17[BACK, 0]


def inside(drawn):
    x0, y0, x1, y1 = drawn.box.round().astype(int)
    return drawn.image[y0:y1, x0:x1].astype(float)


def test_skin_light_and_hair_do_what_they_say():
    who = person(1, lock=0.0)
    light, dark = (inside(scene(replace(who, tone=tone))).mean() for tone in (0.1, 0.9))
    assert light > dark + 20
    lamp = replace(who.light, strength=0.8)
    bright = {}
    for name, towards in (("left", (-0.7, -0.1, 0.7)), ("right", (0.7, -0.1, 0.7))):
        drawn = scene(replace(who, light=replace(lamp, towards=towards)))
        bright[name] = drawn.image[:, :, 1].astype(float)
    column, row = np.rint((drawn.ear17[FORK] + drawn.ear17[BODY]) / 2).astype(int)
    facing = bright["right"] - bright["left"]
    assert facing[row, column + 2 : column + 5].mean() > facing[row, column - 6 : column - 2].mean() + 5
    without, with_lock = scene(who), scene(replace(who, lock=0.15))
    x, y = np.rint(without.ear17[TOP] + [0, 2]).astype(int)
    assert without.image[y, x].mean() > with_lock.image[y, x].mean() + 30  # dark hair on the top of the ear
    np.testing.assert_array_equal(without.ear17, with_lock.ear17)


def test_structure_varies_at_least_as_much_as_skin():
    """Crops of one skin in one light, with ears of several shapes, differ no less than those of one ear in many."""

    def spread(people):
        crops = []
        for seed, who in enumerate(people):
            drawn = scene(who, seed=seed)
            x0, y0, x1, y1 = drawn.box
            rows, columns = np.linspace(y0, y1, 48).round().astype(int), np.linspace(x0, x1, 32).round().astype(int)
            crops.append(drawn.image[np.ix_(rows, columns)].astype(float))
        return np.var(crops, axis=0).mean()

    people = [person(seed, lock=0.0) for seed in range(24)]
    ears = spread([replace(people[0], ears=who.ears) for who in people])
    everything = spread(people)
    assert ears > 0.35 * everything


def test_workers_need_no_torch():
    """Each process that draws would wait seconds for it."""
    code = "import sys, ear.demo.scene; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'ear_teacher'}"})
