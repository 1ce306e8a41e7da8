from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ceph.anatomy import SCHEMA, anatomy_of
from ceph.dataset import Cephalogram, CephalogramDataset, FrameCache, mean_shape, measurement_statistics
from ceph.expansion import draw_sample, expand
from ceph_training import read_tree
from conftest import load_script
from core.landmarks import make_schema
from core.seeding import sample_rng

TILTED = ("tilted left", "tilted right")
TEETH = {"upper": ["UMT", "UPM", "UIT"], "lower": ["LMT", "LPM", "LIT"]}


def at(points, symbols):
    return points[[SCHEMA.names.index(symbol) for symbol in symbols]]


def indices(dataset, kind):
    return [index for index, (_, drawn) in enumerate(dataset.samples) if drawn == kind]


@pytest.fixture(scope="module")
def head(demo_tree, tmp_path_factory):
    """A data set of one drawn head in a frame of 512 px."""
    cases, _ = read_tree(demo_tree, splits=("train",))
    return CephalogramDataset(cases["train"][:1], FrameCache(tmp_path_factory.mktemp("cache"), (512, 512)))


@pytest.fixture(scope="module")
def frame(head):
    """image, points, mm per px of that frame."""
    case = head.cases[0]
    return head.cache.load(case.image), head.points()[0], case.mm_per_px / head.letterboxes[0].scale


@pytest.fixture(scope="module")
def small(demo_tree, tmp_path_factory):
    """Makes data sets of five drawn heads in frames of 96 px."""
    cases, _ = read_tree(demo_tree, splits=("train",))
    cache = FrameCache(tmp_path_factory.mktemp("cache"), (96, 96))
    return lambda **options: CephalogramDataset(cases["train"][:5], cache, **options)


# ----------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(("expansion", "brightness"), [("6500", ["brighter", "darker"]), ("5500", ["brightness"])])
@pytest.mark.parametrize("originals", [1000, 7, 3, 1])
def test_counts_are_the_references(expansion, brightness, originals):
    samples = expand(originals, expansion)
    kinds = Counter(kind for _, kind in samples)
    braces = originals // 2
    assert kinds == Counter(
        dict.fromkeys(["original", "flipped", *TILTED, *brightness], originals) | ({"braces": braces} if braces else {})
    )
    assert len(set(samples)) == len(samples)
    assert {number for number, _ in samples} == set(range(originals))
    if originals == 1000:
        assert len(samples) == int(expansion)


def test_a_data_set_of_1000_originals(tmp_path):
    points = np.zeros((29, 2))
    cases = [Cephalogram(str(i), Path("none.png"), (100, 120), points, 0.1, "x", None) for i in range(1000)]
    cache = FrameCache(tmp_path, (64, 64))
    assert [len(CephalogramDataset(cases, cache, expansion=name)) for name in ("6500", "5500", "none")] == [
        6500, 5500, 1000,
    ]  # fmt: skip
    expanded = CephalogramDataset(cases, cache, expansion="6500")
    assert expanded.points().shape == expanded.truth().shape == (1000, 29, 2)  # of the originals


def test_training_expands_the_training_split_only(tree, tmp_path, monkeypatch):
    """What train.py prepares; not an epoch is run."""
    script = load_script("cephalometric/train.py")
    made, finished = [], []

    class Recorded(script.CephalogramDataset):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(script, "CephalogramDataset", Recorded)
    monkeypatch.setattr(script.Run, "epochs", lambda run: [])
    monkeypatch.setattr(script.Run, "finish", lambda run: finished.append(run))
    small = "--backbone hrnet_w18_small --no-pretrained --image_size 64 64 --heatmap_size 16 --batch_size 4"
    paths = ["--dataset_path", tree.root, "--save_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    script.main([*paths, *small.split(), "--num_workers", "0", "--log_with", "none"])
    originals, train_set, val_set = made
    (run,) = finished
    assert run.train_dataset is train_set
    assert train_set.samples == expand(3, "6500")
    assert len(train_set) == 19
    assert [case.id for case in train_set.cases] == ["a", "b", "c"]
    assert val_set.samples == [(0, "original"), (1, "original")]
    assert val_set.augmentation is None
    for ours, of_originals in zip(train_set.statistics, measurement_statistics(originals.points()), strict=True):
        assert np.array_equal(ours, of_originals)
    assert np.array_equal(run.config["mean_shape"], mean_shape(originals.points()))


def test_the_flag(capsys):
    parse_args = load_script("cephalometric/train.py").parse_args
    assert parse_args([]).expansion == "6500"
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--expansion {6500,5500,none}" in text
    assert "without expansion also flip and tilt" in text
    with pytest.raises(SystemExit) as stop:
        parse_args(["--expansion", "7000"])
    assert stop.value.code == 2


# -------------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("augment", [False, True])
def test_a_sample_depends_on_seed_epoch_and_index_alone(small, augment):
    def images(dataset, workers):
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers)
        return torch.cat([batch["image"] for batch in loader])

    dataset = small(augment=augment, expansion="6500")
    first = images(dataset, 0)
    assert len(first) == 32
    assert torch.equal(first, images(small(augment=augment, expansion="6500"), 2))
    assert torch.equal(first[9], dataset[9]["image"])  # whatever came before
    dataset.set_epoch(1)
    second = images(dataset, 0)
    other_seed = images(small(augment=augment, expansion="6500", seed=1), 0)
    for index, (_, kind) in enumerate(dataset.samples):
        fixed = not augment and kind in ("original", "flipped")
        assert torch.equal(first[index], second[index]) == fixed, kind
        assert torch.equal(first[index], other_seed[index]) == fixed, kind


def test_without_expansion_and_augmentation_the_originals_are_plain(small):
    dataset = small(expansion="none")
    assert [dataset[i]["id"] for i in range(len(dataset))] == [case.id for case in dataset.cases]
    assert np.array_equal(dataset[3]["image"][0] * 255, dataset.cache.load(dataset.cases[3].image))
    expanded = small(expansion="6500")
    for index in indices(expanded, "original"):
        number = expanded.samples[index][0]
        assert torch.equal(expanded[index]["image"], dataset[number]["image"])
        assert expanded[index]["index"] == index
        assert expanded[index]["id"] == dataset[number]["id"]


def test_augmentation_mirrors_and_tilts_only_without_expansion(small):
    def matrices(dataset):
        """(20, 2, 2): what takes the first original's points to an augmented one's, but for the shift."""
        plain = np.c_[dataset.points()[0], np.ones(29)]
        found = []
        for epoch in range(20):
            dataset.set_epoch(epoch)
            points = dataset[0]["points"].numpy()
            known = np.isfinite(points).all(axis=1)
            found.append(np.linalg.lstsq(plain[known], points[known], rcond=None)[0][:2])
        return np.stack(found)

    expanded, alone = matrices(small(augment=True, expansion="6500")), matrices(small(augment=True))
    sizes = expanded[:, [0, 1], [0, 1]]
    assert np.abs(expanded[:, [0, 1], [1, 0]]).max() < 1e-4
    assert ((sizes > 0.799) & (sizes < 1.201)).all()
    assert np.ptp(sizes) > 0.05
    assert np.abs(alone[:, [0, 1], [1, 0]]).max() > 0.03
    assert (alone[:, 0, 0] < 0).any()


# ---------------------------------------------------------------------------------------------------------- landmarks


@pytest.fixture
def blobs(tmp_path):
    """A data set of two cases, each a picture with a Gaussian blob at each of its known landmarks."""
    places = np.array([[70.3, 60.7], [230.2, 80.9], [150.4, 200.5], [90.9, 300.1], [220.6, 330.3]])
    points = np.full((29, 2), np.nan)
    points[[0, 3, 10, 17, 28]] = places
    ys, xs = np.mgrid[:400, :300]
    picture = sum(120 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 5.0**2)) for x, y in places)
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(tmp_path / "blobs.png")
    case = Cephalogram("blobs", tmp_path / "blobs.png", (300, 400), points, 0.1, "x", None)
    return CephalogramDataset([case] * 2, FrameCache(tmp_path / "cache", (320, 320)), expansion="6500")


def exactly(kind, points, rng):
    """Points of a frame of 320 × 320 px as complex numbers turned about its centre, or mirrored."""
    z = points @ np.array([1, 1j]) - (159.5 + 159.5j)
    if kind == "flipped":
        z = -z.conj()
    elif kind in TILTED:
        degrees = 7 - 7 * rng.random()
        assert 0 < degrees <= 7
        z = z * np.exp(1j * np.radians(-degrees if kind == "tilted left" else degrees))  # y points down
    return np.stack([z.real, z.imag], axis=1) + 159.5


def test_landmarks_follow_to_a_twentieth_px(blobs):
    """Against the exact formula, and against the centre of mass of the blob drawn there, through the letterbox."""
    ys, xs = np.mgrid[:320, :320]
    for epoch in range(4):
        blobs.set_epoch(epoch)
        for index, (number, kind) in enumerate(blobs.samples):
            sample = blobs[index]
            points = sample["points"].numpy()
            truth = exactly(kind, blobs.points()[number], sample_rng(0, epoch, index))
            known = np.isfinite(truth).all(axis=1)
            assert np.array_equal(np.isfinite(points).all(axis=1), known)
            assert np.abs(points - truth)[known].max() < 0.001, kind
            if kind == "braces":
                continue  # of a head with neither S nor N there are none
            image = sample["image"][0].numpy()
            for x, y in points[known]:
                mass = image * (np.hypot(xs - x, ys - y) < 14)
                centre = np.array([(xs * mass).sum(), (ys * mass).sum()]) / mass.sum()
                assert np.hypot(*(centre - (x, y))) < 0.05, kind


def test_a_mirror_exchanges_landmarks_by_the_flip(tmp_path):
    """In the expansion and in the augmentation: P1 is the left one of two spots, before and after."""
    anatomy = anatomy_of(make_schema({"name": "pair", "names": ["P1", "P2", "P3"], "flip": [1, 0, 2]}, ""))
    points, rng = np.array([[20.0, 50], [70, 40], [np.nan, np.nan]]), np.random.default_rng(0)
    picture = np.zeros((100, 100), np.uint8)
    _, mirrored = draw_sample("flipped", picture, points, None, rng, anatomy)
    assert np.array_equal(mirrored, [[29, 40], [79, 50], [np.nan, np.nan]], equal_nan=True)
    Image.fromarray(picture).save(tmp_path / "a.png")
    case = Cephalogram("a", tmp_path / "a.png", (100, 100), points, None, "", None)
    dataset = CephalogramDataset([case] * 40, FrameCache(tmp_path, (96, 96)), augment=True, anatomy=anatomy)
    assert "braces" not in {kind for _, kind in expand(9, "6500", anatomy)}
    found = torch.stack([dataset[i]["points"] for i in range(40)])
    assert (found[:, 0, 0] < found[:, 1, 0])[found.isfinite().all(-1)[:, :2].all(-1)].all()
    assert 10 < (found[:, 0, 1] > found[:, 1, 1]).sum() < 30  # the lower one is left as long as nothing is mirrored
    assert found[:, 2].isnan().all()
    assert set(dataset[0]) == {"image", "points", "index", "id"}  # of measurements and stages there are none


def test_tilts_go_both_ways_up_to_seven_degrees(frame):
    for kind, sign in zip(TILTED, (-1, 1), strict=True):
        degrees = []
        for seed in range(200):
            points = np.array([[255.5, 0.0]])  # above the centre
            _, (moved,) = draw_sample(kind, np.zeros((512, 512), np.uint8), points, None, np.random.default_rng(seed))
            degrees.append(sign * np.degrees(np.arctan2(moved[0] - 255.5, 255.5 - moved[1])))
        assert 0 < min(degrees) < 0.3
        assert 6.7 < max(degrees) <= 7 + 1e-6


def test_points_that_leave_the_frame_are_unknown_but_measured(demo_tree, tmp_path):
    cases, _ = read_tree(demo_tree, splits=("train",))
    case = cases["train"][0]
    case.points = (case.points - case.points.min(axis=0)) * (np.array(case.size) - 1) / np.ptp(case.points, axis=0)
    dataset = CephalogramDataset([case], FrameCache(tmp_path, (128, 128)), expansion="6500")
    for kind in TILTED:
        sample = dataset[indices(dataset, kind)[0]]
        assert 0 < sample["points"].isnan().any(dim=1).sum() < 15
        assert sample["measurements"].isfinite().all()


# --------------------------------------------------------------------------------------------- grey levels and braces


def test_brightness_leaves_the_points_and_goes_its_way(frame):
    image, points, mm_per_px = frame

    def change(kind, seed):
        """Of middle grey."""
        drawn, same = draw_sample(kind, image, points, mm_per_px, np.random.default_rng(seed))
        assert np.array_equal(same, points)
        assert np.array_equal(drawn == 255, image == 255)  # nothing is cut off
        order = np.argsort(image, axis=None)
        assert (np.diff(drawn.ravel()[order].astype(int)) >= 0).all()
        middle = np.abs(image - 127.5) < 3
        return drawn[middle].mean() / image[middle].mean()

    assert all(1.08 < change("brighter", seed) < 1.26 for seed in range(10))
    assert all(0.71 < change("darker", seed) < 0.92 for seed in range(10))
    either = np.array([change("brightness", seed) for seed in range(10)])
    assert (either > 1.08).any()
    assert (either < 0.92).any()


def near_teeth(points, mm_per_px, jaw):
    """Where the frame is within 12 mm of the line of a jaw's cusps."""
    arch = np.full((512, 512), 255, np.uint8)
    cv2.polylines(arch, [np.rint(at(points, TEETH[jaw])).astype(np.int32)], False, 0)
    return cv2.distanceTransform(arch, cv2.DIST_L2, 5) * mm_per_px < 12


def braces(frame, seed, **changed):
    image, points, mm_per_px = frame
    points = points.copy()
    for symbol, value in changed.items():
        points[SCHEMA.names.index(symbol)] = value
    before = points.copy()
    drawn, after = draw_sample("braces", image, points, mm_per_px, np.random.default_rng(seed))
    assert np.array_equal(after, before, equal_nan=True)
    return drawn.astype(int) - image


def test_braces_only_brighten_the_teeth_and_leave_the_points(frame):
    image, points, mm_per_px = frame
    near = near_teeth(points, mm_per_px, "upper") | near_teeth(points, mm_per_px, "lower")
    pictures = [braces(frame, seed) for seed in range(10)]
    for gain in pictures:
        assert gain.min() == 0
        assert gain.max() > 60
        assert not gain[~near].any()
        assert 0.002 < (gain > 10).mean() < 0.03
    assert not np.array_equal(pictures[0], pictures[1])
    original = image.copy()
    draw_sample("braces", image, points, mm_per_px, np.random.default_rng(0))
    assert np.array_equal(image, original)  # what the caller holds stays as it was


def test_samples_with_braces_have_the_points_of_their_original(small):
    plain, expanded = small(), small(expansion="6500", seed=2)
    assert len(indices(expanded, "braces")) == 2
    for index in indices(expanded, "braces"):
        original, sample = plain[expanded.samples[index][0]], expanded[index]
        assert torch.equal(sample["points"], original["points"])
        assert torch.equal(sample["measurements"], original["measurements"])
        assert not torch.equal(sample["image"], original["image"])


def test_incisors_carry_their_bracket_in_front_whichever_way_the_head_faces(frame):
    image, points, mm_per_px = frame
    mirrored = np.ascontiguousarray(image[:, ::-1]), points * (-1, 1) + (511, 0), mm_per_px
    none_but = dict.fromkeys(["LMT", "LPM", "LIT", "LIA"], np.nan)
    for side, facing in ((frame, 1), (mirrored, -1)):
        gain = braces(side, 0, **none_but)
        tip, apex = at(side[1], ["UIT", "UIA"])
        axis = (apex - tip) / np.linalg.norm(apex - tip)
        front = facing * np.array([-axis[1], axis[0]])
        for beyond, metal in ((3.0, True), (-3.5, False), (8.0, False)):  # mm before the axis
            x, y = np.rint(tip + (4 * axis + beyond * front) / mm_per_px).astype(int)
            assert (gain[y - 1 : y + 2, x - 1 : x + 2].mean() > 40) == metal


def test_a_tooth_without_landmark_gets_none(frame):
    _, points, mm_per_px = frame
    lower = near_teeth(points, mm_per_px, "lower")
    tip, apex, molar = at(points, ["UIT", "UIA", "UMT"])
    x, y = np.rint(tip + 0.3 * (apex - tip)).astype(int)
    gain = braces(frame, 0, UMT=np.nan, UPM=np.nan, UIT=np.nan)
    assert gain.any()
    assert not gain[~lower].any()
    assert not gain[:y, x:].any()
    assert braces(frame, 0)[:y, x:].any()
    for missing in ("UIT", "UIA"):
        gain = braces(frame, 0, LMT=np.nan, LPM=np.nan, LIT=np.nan, **{missing: np.nan})
        columns = np.flatnonzero(gain.any(axis=0))
        assert abs(columns - molar[0]).min() < 1
        assert abs(columns - tip[0]).min() * mm_per_px > 5
    for missing in ("S", "N"):
        assert not braces(frame, 0, **{missing: np.nan}).any()
    assert not braces(frame, 0, UMT=np.nan, UPM=np.nan, LMT=np.nan, LPM=np.nan).any()  # no arch for the wire


def test_without_a_pixel_size_braces_have_the_size_of_the_head(frame):
    image, points, mm_per_px = frame
    areas = [(braces((image, points, mm), 4) > 20).sum() * mm_per_px**2 for mm in (mm_per_px, None)]
    assert areas[1] == pytest.approx(areas[0], rel=0.25)
    doubled = cv2.resize(image, (1024, 1024))
    larger = (braces((doubled, points * 2 + 0.5, mm_per_px / 2), 4) > 20).sum() * (mm_per_px / 2) ** 2
    assert larger == pytest.approx(areas[0], rel=0.15)


def test_one_head_in_five_has_braces_in_one_jaw(frame):
    _, points, mm_per_px = frame
    jaws = Counter()
    for seed in range(100):
        gain = braces(frame, seed)
        cusps = at(points, ["UIT", "UIA", "LIT", "LIA"])
        found = ""
        for jaw, tip, apex in (("upper", *cusps[:2]), ("lower", *cusps[2:])):
            axis = (apex - tip) / np.linalg.norm(apex - tip)
            turn = 1 if jaw == "upper" else -1
            x, y = np.rint(tip + (4 * axis + 3 * turn * np.array([-axis[1], axis[0]])) / mm_per_px).astype(int)
            found += jaw if gain[y - 1 : y + 2, x - 1 : x + 2].mean() > 30 else ""
        jaws[found] += 1
    assert jaws["upperlower"] in range(68, 92)
    assert jaws["upper"] > 3
    assert jaws["lower"] > 2
    assert jaws[""] == 0


def test_teeth_out_of_the_frame_get_none(frame):
    image, points, mm_per_px = frame
    assert not braces((image, points + (1000, 0), mm_per_px), 0).any()
    half = braces((image, points + (511 - at(points, ["UPM"])[0, 0], 0), mm_per_px), 0)
    assert half.any()
