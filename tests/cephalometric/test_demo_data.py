"""The demo data: synthetic phantoms, no patient. Layout as in Aariz, exact truth, anatomy in its right order."""

import csv
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo_refusals
from ceph.anatomy import SCHEMA, TITLES
from ceph.demo import film as phantom_film
from ceph.demo import phantom
from core.demo_data import RECIPE, clear, write
from core.errors import UserError

SCRIPT = Path(phantom.__file__).parents[2] / "make_demo_data.py"
SPLITS = ("train", "valid", "test")
READERS = ("Junior Orthodontists", "Senior Orthodontists")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cephalometric_demo_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(script, tmp_path_factory):
    """Six phantoms, drawn by two processes."""
    folder = tmp_path_factory.mktemp("demo") / "Aariz"
    script.main(["--output", str(folder), "--cases", "6", "--seed", "3", "--workers", "2"])
    return folder


@pytest.fixture(scope="module")
def heads():
    """Many heads, anatomy only: (mm in the head frame, px in the picture, its device)."""
    result = []
    for case in range(60):
        rng, device = phantom_film.case_stream(5, case)
        head = phantom.sample_anatomy(rng)
        to_px = phantom_film.sample_pose(head, device, rng)
        pixels = np.array([head.points[symbol] for symbol in SCHEMA.names]) @ to_px[:, :2].T + to_px[:, 2]
        result.append((head.points, pixels, device))
    return result


@pytest.fixture(scope="module")
def noise_free():
    """(image, head, Film) of one case on each device, without noise, furniture and scatter's chance."""
    drawn = []
    for number, device in enumerate(phantom_film.DEVICES):
        rng = np.random.default_rng([11, number])
        head = phantom.sample_anatomy(rng)
        pose = phantom_film.sample_pose(head, device, rng)
        film = phantom_film.Film(device.height, device.width, pose, device.mm_per_px)
        phantom_film.paint_head(film, head, rng)
        drawn.append((phantom_film.expose(film, replace(device, noise=0, furniture=()), rng).astype(float), head, film))
    return drawn


def mapping(tree):
    rows = csv.DictReader(io.StringIO((tree / "cephalogram_machine_mappings.csv").read_bytes().decode("utf-8-sig")))
    return {row["cephalogram_id"]: row for row in rows}


def test_layout_is_that_of_aariz(tree):
    raw = (tree / "cephalogram_machine_mappings.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfcephalogram_id,machine,pixel_size,image_format,mode")
    table, found = mapping(tree), {}
    for split in SPLITS:
        for path in (tree / split / "Cephalograms").iterdir():
            found[path.stem] = split
            row = table[path.stem]
            with Image.open(path) as image:
                assert path.suffix == f".{row['image_format']}"
                assert image.mode == row["mode"]
                width, height = image.size
            assert 0.089 <= float(row["pixel_size"]) <= 0.144
            annotations = tree / split / "Annotations"
            stage = json.loads((annotations / "CVM Stages" / f"{path.stem}.json").read_text())
            assert stage["ceph_id"] == path.stem
            assert stage["cvm_stage"]["value"] in range(1, 7)
            for reader in READERS:
                file = annotations / "Cephalometric Landmarks" / reader / f"{path.stem}.json"
                record = json.loads(file.read_text())
                assert record["ceph_id"] == path.stem
                assert {e["symbol"]: e["title"] for e in record["landmarks"]} == TITLES
                for entry in record["landmarks"]:
                    assert set(entry) == {"landmark_id", "title", "symbol", "value"}
                    assert type(entry["value"]["x"]) is type(entry["value"]["y"]) is int
                    assert 0 <= entry["value"]["x"] < width
                    assert 0 <= entry["value"]["y"] < height
    assert found.keys() == table.keys() == json.loads((tree / "truth.json").read_text()).keys()
    assert [list(found.values()).count(split) for split in SPLITS] == [4, 1, 1]


def test_split_is_70_15_15(script):
    splits = script.split_of_cases(100)
    assert [splits.count(split) for split in SPLITS] == [70, 15, 15]
    assert set(script.split_of_cases(3)) == set(SPLITS)


def test_readers_click_near_the_truth(tree):
    truth, table = json.loads((tree / "truth.json").read_text()), mapping(tree)
    mean = {}
    for reader in READERS:
        errors = []
        for path in tree.glob(f"*/Annotations/Cephalometric Landmarks/{reader}/*.json"):
            mm = float(table[path.stem]["pixel_size"])
            for entry in json.loads(path.read_text())["landmarks"]:
                click = np.array([entry["value"]["x"], entry["value"]["y"]])
                errors.append(np.linalg.norm(click - truth[path.stem][entry["symbol"]]) * mm)
        assert max(errors) < 5
        mean[reader] = np.mean(errors)
    assert 0.3 < mean["Senior Orthodontists"] < mean["Junior Orthodontists"] < 1.3


def test_same_seed_same_bytes_whatever_the_number(script, tree, tmp_path):
    """Three cases drawn in this process equal the first three of six that two processes drew."""
    script.main(["--output", str(tmp_path), "--cases", "3", "--seed", "3", "--workers", "1"])
    for name in ("phantom_0000", "phantom_0001", "phantom_0002"):
        first, second = (sorted((f.name, f.parent.name, f.read_bytes()) for f in folder.rglob(f"{name}.*"))
                         for folder in (tree, tmp_path))  # fmt: skip
        assert len(first) == 4
        assert first == second
    one, other = (phantom_film.draw_case(seed, 0).image for seed in (3, 4))
    assert one.shape != other.shape or (one != other).any()


def test_all_landmarks_inside(heads):
    for _, pixels, device in heads:
        assert (pixels > 5 / device.mm_per_px).all()
        assert (pixels < np.array([device.width, device.height]) - 5 / device.mm_per_px).all()


def test_anatomical_order(heads):
    for p, _, _ in heads:
        x, y = ({symbol: p[symbol][axis] for symbol in SCHEMA.names} for axis in (0, 1))
        assert y["N"] < y["Or"] < y["ANS"] < y["A"] < y["UIT"] < y["B"] < y["Pog"] < y["Gn"] < y["Me"]
        assert y["N`"] < y["Pn"] < y["Sn"] < y["Ls"] < y["Li"] < y["Pog`"]
        assert y["Co"] < y["Ar"] < y["Go"]
        assert x["Po"] < x["Co"] < x["S"] + 3 < x["PNS"] < x["UMT"] < x["UPM"] < x["UIT"] < x["Ls"]
        assert x["Go"] < x["R"] < x["LMT"] < x["LPM"] < x["LIT"] < x["UIT"]
        assert x["Pn"] == max(x.values())
        assert y["UIA"] < y["UIT"]
        assert y["LIT"] < y["LIA"]
        assert y["Po"] == pytest.approx(y["Or"])  # the Frankfort horizontal is level in the head frame


def test_vertical_proportions(heads):
    def length(p, a, b):
        return np.linalg.norm(p[a] - p[b])

    def slope(p, a, b):
        return np.rad2deg(np.arctan2(*(p[b] - p[a])[::-1]))

    values = {
        "N-Me": [length(p, "N", "Me") for p, *_ in heads],
        "ANS-Me/N-Me": [length(p, "ANS", "Me") / length(p, "N", "Me") for p, *_ in heads],
        "S-Go/N-Me": [length(p, "S", "Go") / length(p, "N", "Me") for p, *_ in heads],
        "S-N": [length(p, "S", "N") for p, *_ in heads],
        "SN-MP": [slope(p, "Go", "Me") - slope(p, "S", "N") for p, *_ in heads],
        "FH-MP": [slope(p, "Go", "Me") for p, *_ in heads],
        "gonial": [phantom.angle_at(p["Go"], p["Ar"], p["Me"]) for p, *_ in heads],
    }
    expected = {  # mean, its tolerance, least and greatest standard deviation
        "N-Me": (115, 3, 3, 8),
        "ANS-Me/N-Me": (0.55, 0.01, 0.008, 0.025),
        "S-Go/N-Me": (0.66, 0.03, 0.02, 0.06),
        "S-N": (72, 2, 1, 4),
        "SN-MP": (32, 2, 2, 6),
        "FH-MP": (25, 2, 2, 6),
        "gonial": (127, 3, 3, 8),
    }
    for name, (mean, tolerance, least, greatest) in expected.items():
        assert np.mean(values[name]) == pytest.approx(mean, abs=tolerance), name
        assert least < np.std(values[name]) < greatest, name


def test_mean_shape_is_a_weak_predictor(heads):
    """Pictures aligned by letterbox alone: the mean of the others misses by about a centimetre."""
    frames, mm = [], []
    for _, pixels, device in heads:
        size = np.array([device.width, device.height])
        frames.append((pixels + 0.5 - size / 2) / size.max())
        mm.append(device.mm_per_px * size.max())
    errors = np.linalg.norm(frames - np.mean(frames, axis=0), axis=-1) * np.array(mm)[:, None]
    assert 8 < errors.mean() < 15


def test_every_landmark_lies_on_something_visible(noise_free):
    """Grey values around each landmark vary far more than in the air and in the brain's even shadow."""
    for image, head, film in noise_free:

        def spread(mm_point, image=image, film=film, radius=3.0):
            x, y = np.rint(film.px(np.asarray(mm_point))).astype(int)
            r = round(radius / film.mm_per_px)
            return image[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1].std()

        even = max(spread(head.points["S"] + [-3, -13]), spread(head.points["Pn"] + [3, 30]))
        for symbol in SCHEMA.names:
            contrast = spread(head.points[symbol], radius=6.5 if symbol == "S" else 3.0)  # S: the middle of its cup
            assert contrast > 1.5 * even, (symbol, contrast, even)


@pytest.mark.parametrize(("symbol", "outward"), [
    ("N`", (1, 0)), ("Pn", (1, 0)), ("Ls", (1, 0)), ("Li", (1, 0)), ("Pog`", (1, 0)), ("Sn", (0.8, 0.6)),
    ("A", (1, 0)), ("B", (1, 0)), ("Pog", (1, 0)), ("Gn", (0.6, 0.8)), ("Me", (0, 1)), ("Go", (-0.8, 0.6)),
    ("ANS", (1, 0)), ("R", (1, 0)), ("UIT", (0.5, 0.9)), ("Or", (0, 1)),
])  # fmt: skip
def test_outlines_end_at_the_landmark(noise_free, symbol, outward):
    """One step inside is brighter than one step outside: the drawn edge passes through the point, to 1.5 mm."""
    steps = []
    for image, head, film in noise_free:
        for sign in (-1, 1):
            x, y = film.px(head.points[symbol] + sign * (0.6 if sign < 0 else 2.4) * np.array(outward))
            r = max(1, round(0.3 / film.mm_per_px))
            steps.append(image[round(y) - r : round(y) + r + 1, round(x) - r : round(x) + r + 1].mean())
    inside, outside = np.array(steps).reshape(-1, 2).T
    assert (inside - outside > 3).all(), (inside, outside)


def test_cvm_stage_changes_the_vertebrae_and_nothing_far_from_them():
    """The same head at stages 1 and 6: C3 grows from flat to upright; the change is there, and not near the face."""
    images, shapes = [], []
    for stage in (1, 6):
        rng = np.random.default_rng(0)
        head = phantom.sample_anatomy(rng)
        head.stage = stage
        device = phantom_film.DEVICES[2]
        pose = np.column_stack([np.eye(2), [70, 75]]) / device.mm_per_px
        film = phantom_film.Film(device.height, device.width, pose, device.mm_per_px)
        phantom_film.paint_spine(film, head)
        images.append(film.density)
        shapes.append(phantom.cervical_spine(head)["C3"])
    height, width = np.ptp(shapes[0], axis=0)[1], np.ptp(shapes[0], axis=0)[0]
    assert height < 0.8 * width
    assert np.ptp(shapes[1], axis=0)[1] > np.ptp(shapes[1], axis=0)[0]
    changed = np.abs(images[0] - images[1])
    x, y = np.rint(film.px(shapes[0].mean(0))).astype(int)
    assert changed[y - 60 : y + 60, x - 60 : x + 60].mean() > 0.02
    assert changed[:, x + 200 :].max() == 0


def test_refuses_existing_data_and_foreign_files(script, tmp_path):
    arguments = ["--output", str(tmp_path), "--cases", "3", "--workers", "1"]
    keep = tmp_path / "train" / "mine.txt"
    keep.parent.mkdir()
    keep.write_text("not yours")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"mine\.txt"):
            script.main(arguments + extra)
    assert keep.read_text() == "not yours"
    assert len(list(tmp_path.rglob("*"))) == 2


def test_overwrite_replaces_only_what_the_recipe_explains(script, tree, tmp_path):
    with pytest.raises(UserError, match="overwrite"):
        clear(tree, False, script.files_of)
    copy = tmp_path / "copy"
    for path in tree.rglob("*.json"):
        write(copy / path.relative_to(tree), path.read_bytes())
    clear(copy, True, script.files_of)
    assert list(copy.rglob("*")) == []
    # A recipe that was edited, or of fewer cases, explains fewer files: nothing is deleted.
    for path in tree.rglob("*.json"):
        write(copy / path.relative_to(tree), path.read_bytes())
    (copy / RECIPE).write_text('{"cases": 3, "seed": 3, "files": ["../../etc"]}')
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="another origin"):
        clear(copy, True, script.files_of)
    assert sorted(copy.rglob("*")) == before


def test_too_few_cases_end_with_one_line(script, tmp_path, capsys):
    demo_refusals.refuses_impossible_numbers(script, tmp_path, ["--cases", "2"], capsys)
