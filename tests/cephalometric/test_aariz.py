"""The reader on trees that are not as they should be: every case is used, or counted and listed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ceph.anatomy import SCHEMA, anatomy_of
from ceph.dataset import FrameCache
from ceph_training import decoded, read_tree
from core.errors import UserError
from core.landmarks import make_schema
from core.windows import Letterbox

POINTS = np.stack([np.linspace(20, 100, 29), np.linspace(30, 140, 29)], axis=1)


def problems(report):
    return {(p.reason, p.action) for p in report.problems}


def read(tree, **options):
    cases, report = read_tree(tree.root, **options)
    return {case.id: case for found in cases.values() for case in found}, report


def test_a_tree_in_order(tree):
    tree.add("train", "z", POINTS)
    cases, report = read(tree)
    assert report.problems == []
    assert report.cases == {"train": 4, "valid": 2, "test": 2}
    case = cases["z"]
    assert np.allclose(case.points, POINTS + [0.5, 0])  # mean of both readers, not rounded
    assert (case.size, case.mm_per_px, case.device, case.cvm_stage) == ((120, 160), 0.1, "machine A", 3)


@pytest.mark.parametrize(
    ("ground_truth", "expected"),
    [("mean", 0.5), ("junior", 0.0), ("senior", 1.0)],
)
def test_ground_truths(tree, ground_truth, expected):
    tree.add("train", "z", POINTS)
    cases, _ = read(tree, ground_truth=ground_truth)
    assert np.allclose(cases["z"].points, POINTS + [expected, 0])
    cases, _ = read(tree, ground_truth="official_ceil")
    assert np.array_equal(cases["z"].points, np.ceil(POINTS + [0.5, 0]))


def test_case_of_folders_and_apostrophes_do_not_matter(tree):
    tree.add("train", "z", POINTS)
    file = tree.landmark_file("train", "z", "Senior")
    file.write_text(file.read_text().replace("N`", "N’").replace("Pog`", "Pog'"))
    (tree.root / "train" / "Cephalograms").rename(tree.root / "train" / "cephalograms")
    (tree.root / "train" / "Annotations").rename(tree.root / "train" / "ANNOTATIONS")
    (tree.root / "valid").rename(tree.root / "Val")
    cases, report = read(tree)
    assert np.isfinite(cases["z"].points).all()
    assert "d" in cases
    assert report.problems == []


def test_order_in_the_file_does_not_matter(tree):
    tree.add("train", "z", POINTS)
    for reader in ("Junior", "Senior"):
        file = tree.landmark_file("train", "z", reader)
        content = json.loads(file.read_text())
        content["landmarks"].reverse()
        file.write_text(json.dumps(content))
    assert np.allclose(read(tree)[0]["z"].points, POINTS + [0.5, 0])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "landmark missing"),
        ({"x": "many"}, "coordinate is no number"),
        ({"y": None}, "coordinate is no number"),
        ({"x": float("nan")}, "coordinate is no number"),
        ({"x": 500}, "landmark outside the picture"),
        ({"y": -3}, "landmark outside the picture"),
    ],
)
def test_a_bad_landmark_is_left_out_and_the_case_stays(tree, value, reason):
    tree.edit("train", "a", "Senior", "S", **value)
    cases, report = read(tree)
    row = SCHEMA.names.index("S")
    assert np.isnan(cases["a"].points[row]).all()
    assert np.isfinite(np.delete(cases["a"].points, row, axis=0)).all()
    assert problems(report) == {(reason, "landmark left out")}
    assert "S" in report.problems[0].detail
    assert report.problems[0].where.endswith("Senior Orthodontists/a.json")


def test_a_place_that_is_no_object_is_no_place(tree):
    file = tree.landmark_file("train", "a", "Senior")
    content = json.loads(file.read_text())
    content["landmarks"][0]["value"] = 5
    file.write_text(json.dumps(content))
    cases, report = read(tree)
    assert np.isnan(cases["a"].points).any(axis=1).sum() == 1
    assert problems(report) == {("coordinate is no number", "landmark left out")}


def test_a_picture_turned_by_exif_is_measured_as_displayed(tree, tmp_path):
    """Stored lying, displayed upright: points right of the stored width are inside, the frame is upright."""
    points = np.tile([150.0, 60.0], (29, 1))
    tree.add("train", "z", points, size=(160, 120))
    upright = np.zeros((120, 160), np.uint8)
    upright[:, 100:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tree.image_file("train", "z"), exif=exif)
    cases, report = read(tree)
    assert report.problems == []
    assert cases["z"].size == (160, 120)
    frame = FrameCache(tmp_path / "cache", (64, 64)).load(cases["z"].image)
    x, y = Letterbox(cases["z"].size, (64, 64)).to_frame(cases["z"].points)[0].round().astype(int)
    assert frame[y, x] == 200
    assert frame[y, 10] == 0


def test_numbers_as_strings_are_read(tree):
    tree.edit("train", "a", "Senior", "S", x="51.5")
    cases, report = read(tree)
    assert np.isfinite(cases["a"].points).all()
    assert report.problems == []


def test_missing_halves_are_listed(tree):
    tree.image_file("train", "a").unlink()
    for reader in ("Junior", "Senior"):
        tree.landmark_file("valid", "d", reader).unlink()
    tree.landmark_file("test", "f", "Junior").unlink()
    for reader in ("Junior", "Senior"):
        tree.landmark_file("train", "b", reader).write_text("{")
    tree.landmark_file("train", "c", "Junior").write_text("[1, 2]")
    for symbol in SCHEMA.names:
        tree.edit("test", "g", "Junior", symbol)
    cases, report = read(tree)
    assert sorted(cases) == ["c", "e", "f"]
    assert ("annotation without picture", "annotation left out") in problems(report)
    assert ("picture without annotation", "case left out") in problems(report)
    assert ("one reader only", "kept") in problems(report)
    assert ("annotation unreadable", "annotation left out") in problems(report)
    assert ("no landmark left", "case left out") in problems(report)


def test_duplicate_ids_within_a_split(tree):
    Image.open(tree.image_file("train", "a")).save(tree.image_file("train", "a", "bmp"))
    cases, report = read(tree)
    assert cases["a"].image.suffix == ".bmp"  # the first by name
    assert problems(report) == {("duplicate id", "file left out")}


def test_a_picture_in_two_splits_stays_in_the_later_one(tree):
    tree.add("train", "f")  # an id of the test split
    shutil.copy(tree.image_file("test", "g"), tree.image_file("train", "b"))  # a content of the test split
    shutil.copy(tree.image_file("test", "f"), tree.image_file("valid", "d"))
    cases, report = read_tree(tree.root)
    assert [case.id for case in cases["train"]] == ["a", "c"]
    assert [case.id for case in cases["valid"]] == ["e"]
    assert [case.id for case in cases["test"]] == ["f", "g"]
    assert problems(report) == {
        ("picture in two splits", "left out of train"),
        ("picture in two splits", "left out of valid"),
    }
    assert report.cases == {"train": 2, "valid": 1, "test": 2}


@pytest.mark.parametrize("pixel_size", ["", "n/a", "0", "-0.1", "96"])
def test_without_a_plausible_pixel_size_a_case_is_uncalibrated(tree, pixel_size):
    tree.add("train", "z", pixel_size=pixel_size)
    cases, report = read(tree)
    assert cases["z"].mm_per_px is None
    assert problems(report) == {("no plausible pixel size", "kept, uncalibrated, px only")}


def test_gaps_in_the_machine_table(tree):
    tree.rows.append(["a", "machine B", "0.2", "png", "L"])
    tree.rows = [row for row in tree.rows if row[0] != "b"]
    tree.write_machines()
    cases, report = read(tree)
    assert cases["a"].mm_per_px is None
    assert cases["b"].mm_per_px is None
    assert cases["c"].mm_per_px == 0.1
    assert {reason for reason, _ in problems(report)} == {"two pixel sizes", "not in the machine table"}
    for change, reason in (
        (lambda table: table.write_text("device\nA\n"), "machine table names no case"),
        (lambda table: table.write_text(""), "machine table names no case"),
        (lambda table: table.unlink(), "no machine table"),
    ):
        change(tree.root / "cephalogram_machine_mappings.csv")
        cases, report = read(tree)
        assert all(case.mm_per_px is None for case in cases.values())
        assert (reason, "all cases uncalibrated, px only") in problems(report)


@pytest.mark.parametrize("content", ["{}", '{"cvm_stage": {"value": 9}}', '{"cvm_stage": {"value": "late"}}', "\x00"])
def test_bad_stages_are_unknown(tree, content):
    (tree.root / "train/Annotations/CVM Stages/a.json").write_text(content)
    (tree.root / "train/Annotations/CVM Stages/b.json").unlink()
    cases, report = read(tree)
    assert cases["a"].cvm_stage is None
    assert cases["b"].cvm_stage is None
    assert {reason for reason, _ in problems(report)} == {"CVM stage unreadable", "no CVM stage"}


def test_broken_pictures_are_found_before_training(tree, tmp_path):
    for name, identity in (("train", "a"), ("valid", "d")):
        file = tree.image_file(name, identity)
        file.write_bytes(file.read_bytes()[:2000])  # the header is whole
    tree.image_file("test", "f").write_bytes(b"no picture")
    cases, report = read_tree(tree.root)
    cases = decoded(cases, report, tmp_path / "cache")
    assert {split: [case.id for case in found] for split, found in cases.items()} == {
        "train": ["b", "c"], "valid": ["e"], "test": ["g"],
    }  # fmt: skip
    assert report.cases == {"train": 2, "valid": 1, "test": 1}
    assert problems(report) == {("picture unreadable", "left out")}
    assert len(report.problems) == 3


def test_sizes_come_from_headers_and_are_checked_when_decoded(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda *_: pytest.fail("decoded"))
    cases, report = read_tree(tree.root)
    monkeypatch.undo()
    cases["train"][0].size = (160, 120)  # as if the orientation stood after the pixels
    cases = decoded(cases, report, tmp_path / "cache")
    assert [case.id for case in cases["train"]] == ["b", "c"]
    assert "160×120 by its header, 120×160 as shown" in report.problems[0].detail


def test_a_split_without_a_readable_picture_is_one_line(tree, tmp_path):
    for identity in "de":
        file = tree.image_file("valid", identity)
        file.write_bytes(file.read_bytes()[:2000])
    cases, report = read_tree(tree.root)
    with pytest.raises(UserError, match=r"no readable picture in valid .*d\.png"):
        decoded(cases, report, tmp_path / "cache")


def test_no_tree_at_all(tmp_path, tree):
    with pytest.raises(UserError, match="no such folder"):
        read_tree(tmp_path / "nowhere", "aariz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of train"):
        read_tree(tmp_path / "empty", "aariz")
    for identity in "de":
        for reader in ("Junior", "Senior"):
            tree.landmark_file("valid", identity, reader).unlink()
    with pytest.raises(UserError, match=r"no usable case in valid/ \(2 × picture without annotation\)"):
        read_tree(tree.root)
    assert read_tree(tree.root, splits=("train",))[0]["train"]


def test_unknown_landmarks_are_named_and_counted(tree):
    for identity in "ab":
        for reader in ("Junior", "Senior"):
            file = tree.landmark_file("train", identity, reader)
            content = json.loads(file.read_text())
            content["landmarks"].append({"symbol": "Mine", "value": {"x": 30, "y": 30}})
            if identity == "a":
                next(entry for entry in content["landmarks"] if entry["symbol"] == "Go")["symbol"] = "Gonion"
            file.write_text(json.dumps(content))
    cases, report = read(tree)
    unknown = [p for p in report.problems if p.reason == "unknown landmark"]
    assert [p.detail.split(";")[0] for p in unknown] == ["Gonion, in 2 files", "Mine, in 4 files"]
    assert all("expected are those of aariz29: A, ANS, B, Me," in p.detail and p.action == "not used" for p in unknown)
    assert [p.detail for p in report.problems if p.reason == "landmark missing"] == ["Go", "Go"]
    assert np.isnan(cases["a"].points).any(axis=1).sum() == 1


HAND = anatomy_of(make_schema({"name": "hand", "names": ["P1", "P2", "P3"], "flip": [1, 0, 2]}, ""))


def test_a_tree_of_other_landmarks_names_them_and_the_way_out(tree):
    with pytest.raises(UserError) as refused:
        read_tree(tree.root, anatomy=HAND)
    text = str(refused.value)
    assert "found A, ANS, Ar, B," in text
    assert text.endswith("of hand: P1, P2, P3; to train on others, give train.py --landmarks FILE.json")


def test_apostrophes_are_one_character_in_scheme_and_files(tree):
    """The scheme's own name comes back, however it is spelt."""
    for spelt, own in (("Lister’s", "Lister's"), ("Pog'", "Pog`"), ("N`", "N´")):
        anatomy = anatomy_of(make_schema({"name": "one", "names": [own]}, ""))
        for identity in "ab":
            for reader in ("Junior", "Senior"):
                point = {"symbol": f" {spelt}", "value": {"x": 30, "y": 31}}
                tree.landmark_file("train", identity, reader).write_text(json.dumps({"landmarks": [point]}))
        cases, _ = read(tree, anatomy=anatomy, splits=("train",))
        assert cases["a"].points.tolist() == [[30, 31]]


@pytest.mark.parametrize("readers", [("Junior", "Senior"), ("",)])
def test_trees_of_other_subjects(tmp_path, readers):
    """Neutral names of folders, one reader or two, stages not looked for."""
    for number, split in enumerate(("train", "valid", "test")):
        for shift, reader in enumerate(readers):
            folder = tmp_path / split / "Annotations/Landmarks" / reader
            folder.mkdir(parents=True)
            places = {"P3": (5 + shift, 6), "P1": (1, 2), "P2": (3, 4)}
            landmarks = [{"symbol": s, "value": {"x": x, "y": y}} for s, (x, y) in places.items()]
            (folder / f"{split}.json").write_text(json.dumps({"landmarks": landmarks}))
        (tmp_path / split / "Images").mkdir()
        Image.new("L", (30 + number, 30)).save(tmp_path / split / f"Images/{split}.png")
    rows = "".join(f"{split},M,0.5\n" for split in ("train", "valid", "test"))
    (tmp_path / "machines.csv").write_text(f"id,machine,pixel_size\n{rows}")
    cases, report = read_tree(tmp_path, anatomy=HAND)
    assert report.problems == []
    (case,) = cases["valid"]
    assert case.points.tolist() == [[1, 2], [3, 4], [5 + (len(readers) - 1) / 2, 6]]
    assert (case.mm_per_px, case.device, case.cvm_stage) == (0.5, "M", None)
    assert read_tree(tmp_path, anatomy=HAND, ground_truth="junior")[0]["test"][0].points[2].tolist() == [5, 6]


def test_the_report_lists_everything(tree, tmp_path):
    tree.edit("train", "a", "Senior", "S")
    tree.edit("train", "b", "Junior", "N", x=900)
    _, report = read_tree(tree.root)
    report.write(tmp_path / "data_report.json")
    written = json.loads((tmp_path / "data_report.json").read_text())
    assert written["cases"] == {"train": 3, "valid": 2, "test": 2}
    assert {(row["reason"], row["count"]) for row in written["counts"]} == {
        ("landmark missing", 1), ("landmark outside the picture", 1),
    }  # fmt: skip
    assert [p["detail"].split(":")[0] for p in written["problems"]] == ["S", "N"]
