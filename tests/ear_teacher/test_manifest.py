"""Manifests of ears in every form, and what is said of the wrong ones."""

import csv
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.images import ImageError, read_image
from core.validation import DataReport
from ear.anatomy import SCHEMAS
from ear.entries import BOX_FORMATS
from ear.manifest import Ear, read_manifest, refuse_shared_subjects, split_by_subject

SIZE = (60, 80)  # width, height
BOX = (10.0, 20.0, 40.0, 70.0)


def picture(file, size=SIZE, mode="RGB", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(file, **options)
    return file


def saved(folder, name="m.npy", **content):
    np.save(folder / name, content, allow_pickle=True)
    return folder / name


def table(folder, rows, name="m.csv"):
    with open(folder / name, "w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.fixture
def pictures(tmp_path):
    for name in ("a_L", "a_R", "b"):
        picture(tmp_path / f"{name}.png")
    return ["a_L.png", "a_R.png", "b.png"]


def problems(report):
    return [(problem.reason, problem.action) for problem in report.problems]


def points_of(count=4, offset=0.0):
    return np.stack([np.linspace(12, 30, count) + offset, np.linspace(22, 60, count)], axis=1)


# ------------------------------------------------------------------------------------------------------------ .npy


def test_a_npy_with_everything(tmp_path, pictures):
    points = np.stack([points_of(offset=i) for i in range(3)])
    file = saved(
        tmp_path, image_paths=pictures, bboxes=np.tile(BOX, (3, 1)), landmarks=points, subjects=[7, "x", np.str_("y")],
        sides=["L", "right", b"LEFT"],
    )  # fmt: skip
    report = DataReport()
    ears = read_manifest(file, report=report, landmarks=True)
    assert report.problems == []
    assert [ear.id for ear in ears] == ["a_L", "a_R", "b"]
    assert [ear.image for ear in ears] == [tmp_path / name for name in pictures]
    assert [ear.box for ear in ears] == [BOX] * 3
    assert [ear.subject for ear in ears] == ["7", "x", "y"]
    assert [ear.side for ear in ears] == ["left", "right", "left"]
    assert all(ear.subject_known for ear in ears)
    for ear, expected in zip(ears, points, strict=True):
        assert ear.landmarks.dtype == np.float32
        assert np.array_equal(ear.landmarks, expected.astype(np.float32))


def test_a_npy_of_the_reference(tmp_path, pictures):
    """Two lists, boxes of which need not be there; subjects and sides are guessed from names."""
    ears = read_manifest(saved(tmp_path, image_paths=np.array(pictures), bboxes=None))
    assert [ear.box for ear in ears] == [None] * 3
    assert [ear.landmarks for ear in ears] == [None] * 3
    assert [(ear.subject, ear.side) for ear in ears] == [("a", "left"), ("a", "right"), ("b", "")]
    assert not any(ear.subject_known for ear in ears)
    encoded = saved(tmp_path, image_paths=[name.encode() for name in pictures], bboxes=[BOX, None, list(BOX)])
    assert [ear.box for ear in read_manifest(encoded)] == [BOX, None, BOX]


def test_paths_start_at_the_manifest_or_at_the_data_root(tmp_path, monkeypatch):
    image = picture(tmp_path / "pictures" / "deep" / "x.png")
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path / "lists")
    for path, root, expected in (
        ("../pictures/deep/x.png", None, "pictures/deep/x"),
        ("deep/x.png", tmp_path / "pictures", "deep/x"),
        ("deep/x.png", "../pictures", "deep/x"),
        (r"deep\x.png", "../pictures", "deep/x"),  # a list from Windows
        (str(image), None, None),
    ):
        for ears in (
            read_manifest(saved(tmp_path / "lists", image_paths=[path]), root),
            read_manifest(table(tmp_path / "lists", [{"image": path}]), root),
        ):
            assert ears[0].image == image
            assert image.with_suffix("").as_posix().endswith(expected or ears[0].id)
    with pytest.raises(UserError, match="--data_root nowhere: no such folder"):
        read_manifest(saved(tmp_path, image_paths=["x.png"]), "nowhere")


def test_lists_of_other_lengths_or_kinds(tmp_path, pictures):
    with pytest.raises(UserError, match=r"m\.npy: its lists differ in length: 3 image_paths, 2 bboxes, 3 sides"):
        read_manifest(saved(tmp_path, image_paths=pictures, bboxes=[BOX, BOX], sides=["", "", ""]))
    with pytest.raises(UserError, match=r"m\.npy holds no image_paths, but 'images', 'bboxes'"):
        read_manifest(saved(tmp_path, images=pictures, bboxes=[BOX]))
    with pytest.raises(UserError, match="image_paths is no list"):
        read_manifest(saved(tmp_path, image_paths="a_L.png"))
    with pytest.raises(UserError, match="bboxes is no list"):
        read_manifest(saved(tmp_path, image_paths=pictures, bboxes=np.array(3.0)))


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_box_formats(tmp_path, pictures, box_format):
    boxes = {"xyxy": BOX, "xywh": (10, 20, 30, 50), "cxcywh": (25, 45, 30, 50)}
    ears = read_manifest(saved(tmp_path, image_paths=pictures[:1], bboxes=[boxes[box_format]]), box_format=box_format)
    assert ears[0].box == BOX


def test_boxes_that_are_shares_are_refused(tmp_path, pictures):
    shares = {"xyxy": (0.1, 0.2, 0.9, 1.0), "xywh": (0.1, 0.2, 0.9, 0.8), "cxcywh": (0.5, 0.5, 1.0, 1.02)}
    for box_format, box in shares.items():
        with pytest.raises(UserError, match=r"between 0 and 1.*multiply them by its width and height"):
            read_manifest(saved(tmp_path, image_paths=pictures, bboxes=[box] * 3), box_format=box_format)


def test_boxes_of_another_format_are_refused_although_some_would_fit(tmp_path):
    names = [picture(tmp_path / f"{i}.png").name for i in range(8)]
    boxes = [(5.0, 5.0, 40.0, 60.0)] * 6 + [(30.0, 25.0, 20.0, 40.0)] * 2  # x, y, width, height
    with pytest.raises(UserError, match=r"2 of 8 boxes end before they begin, read as xyxy.*--box_format"):
        read_manifest(saved(tmp_path, image_paths=names, bboxes=boxes))
    assert len(read_manifest(saved(tmp_path, image_paths=names, bboxes=boxes), box_format="xywh")) == 8


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 40), "box smaller than 2 px"),
        ((0, 0, 0, 0), "box smaller than 2 px"),
        ((0.2, 0.2, 0.9, 0.9), "box smaller than 2 px"),
        ((60, 10, 90, 40), "box outside the picture"),
        ((10, -50, 40, -10), "box outside the picture"),
        ((10, 10, np.nan, 40), "box is not four numbers"),
        ((10, 10, 30), "box is not four numbers"),
        ("abcd", "box is not four numbers"),
        (7, "box is not four numbers"),
        ([[10, 10], [30, 30], [1], [1]], "box is not four numbers"),
    ],
)
def test_a_bad_box_costs_its_ear_only(tmp_path, box, reason):
    names = [picture(tmp_path / f"{i}.png").name for i in range(12)]
    report = DataReport()
    ears = read_manifest(saved(tmp_path, image_paths=names, bboxes=[BOX] * 11 + [box]), report=report)
    assert len(ears) == 11
    assert problems(report) == [(reason, "left out")]
    assert report.problems[0].where == f"{tmp_path / 'm.npy'}, entry 11, 11.png"


def test_boxes_at_the_border(tmp_path, pictures):
    whole, beyond = (0.0, 0.0, 60.0, 80.0), (-7.0, 20.0, 40.0, 90.0)
    report = DataReport()
    ears = read_manifest(saved(tmp_path, image_paths=pictures[:2], bboxes=[whole, beyond]), report=report)
    assert [ear.box for ear in ears] == [whole, (-0.5, 20.0, 40.0, 79.5)]
    assert problems(report) == [("box partly outside the picture", "kept, box cut")]
    assert report.problems[0].detail == "-7, 20, 40, 90 in a picture of 60×80"


def test_bad_pictures_are_left_out(tmp_path, pictures):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    picture(tmp_path / "tiny.png", (1, 1))
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:20])
    names = [*pictures, "text.png", "gone.png", "folder.png", "tiny.png", "cut.png", "", None, "a\0b.png", 7]
    report = DataReport()
    ears = read_manifest(saved(tmp_path, image_paths=names), report=report)
    assert [ear.id for ear in ears] == ["a_L", "a_R", "b"]
    assert [problem.reason for problem in report.problems] == [
        "picture unreadable", "no such picture", "picture unreadable", "picture smaller than 8 px",
        "picture unreadable", "no such picture", "no such picture", "picture unreadable", "no such picture",
    ]  # fmt: skip
    assert all(problem.action == "left out" for problem in report.problems)
    assert report.problems[1].where == f"{tmp_path / 'm.npy'}, entry 4, gone.png"
    assert report.problems[1].detail == str(tmp_path / "gone.png")


def test_damaged_exif_costs_at_most_its_ear(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = bytearray(exif.tobytes())
    damaged[-8:] = b"\xff" * 8
    picture(tmp_path / "c.jpg", exif=bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of what it cannot read
        assert len(read_manifest(saved(tmp_path, image_paths=[*pictures, "c.jpg"]))) >= 3


def test_one_ear_twice_and_two_ears_in_one_picture(tmp_path, pictures):
    other = (30.0, 30.0, 50.0, 70.0)
    report = DataReport()
    paths = ["b.png", "b.png", "./b.png", "a_L.png", "a_L.png"]
    ears = read_manifest(saved(tmp_path, image_paths=paths, bboxes=[BOX, other, BOX, None, None]), report=report)
    assert [(ear.id, ear.box) for ear in ears] == [("b", BOX), ("b_2", other), ("a_L", None)]
    assert problems(report) == [("the same picture and box twice", "left out")] * 2
    assert report.problems[0].detail == f"as {tmp_path / 'm.npy'}, entry 0, b.png"


def test_ids_differ(tmp_path):
    names = [picture(tmp_path / name).name for name in ("b.png", "b.jpg", "b_2.png")]
    ids = [ear.id for ear in read_manifest(saved(tmp_path, image_paths=names))]
    assert len(set(ids)) == 3


def test_sides(tmp_path, pictures):
    report = DataReport()
    ears = read_manifest(saved(tmp_path, image_paths=pictures, sides=[None, "both", float("nan")]), report=report)
    assert [ear.side for ear in ears] == ["left", "", ""]
    assert problems(report) == [("side is neither left nor right", "kept, side unknown")]


# ------------------------------------------------------------------------------------------------------- landmarks


def test_landmarks_not_finite_or_far_outside_are_unknown(tmp_path, pictures):
    points = np.stack([points_of()] * 3)
    points[0, 1] = np.nan, 5  # one coordinate is not half a landmark
    points[1, 2] = np.inf, 5
    points[1, 3] = 82, 5  # far: more than a quarter of 80 px outside of 60
    points[2, 0] = -15, 99  # near enough: an ear that the picture cuts
    report = DataReport()
    file = saved(tmp_path, image_paths=pictures, landmarks=points, bboxes=[BOX] * 3)
    ears = read_manifest(file, report=report, landmarks=True)
    known = np.stack([np.isfinite(ear.landmarks).all(axis=1) for ear in ears])
    assert known.tolist() == [[True, False, True, True], [True, True, False, False], [True] * 4]
    assert np.isnan(ears[0].landmarks[1]).all()
    assert problems(report) == [
        ("landmarks not finite", "kept, these unknown"),
        ("landmarks not finite", "kept, these unknown"),
        ("landmarks far outside the picture", "kept, these unknown"),
    ]
    assert report.problems[2].detail == "index 3 of 4"


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (None, "no landmarks"),
        (points_of(5), "another number of landmarks"),
        (points_of().ravel(), "landmarks are not pairs of numbers"),
        (np.full((4, 2), np.nan), "no landmark known"),
        (points_of() + 1000, "no landmark known"),
        ([["a", "b"]] * 4, "landmarks are not pairs of numbers"),
        ([], "another number of landmarks"),
        ([[1, 2, 3]] * 4, "landmarks are not pairs of numbers"),
        ("text", "landmarks are not pairs of numbers"),
    ],
)
def test_bad_landmarks_cost_the_ear_only_where_landmarks_are_wanted(tmp_path, pictures, points, reason):
    file = saved(tmp_path, image_paths=pictures, landmarks=[points_of(), points_of(), points], bboxes=[BOX] * 3)
    report = DataReport()
    assert len(read_manifest(file, report=report, landmarks=True)) == 2
    assert problems(report)[-1] == (reason, "left out")
    report = DataReport()
    ears = read_manifest(file, report=report)
    assert [ear.landmarks is None for ear in ears] == [False, False, True]
    assert problems(report) == ([] if points is None else [(reason, "kept without landmarks")])


def test_the_extent_of_landmarks_is_the_box_where_none_is_given(tmp_path, pictures):
    points = np.stack([points_of()] * 3)
    points[1, 0] = np.nan
    points[2, 0] = -10, 5  # outside: the box ends at the picture
    ears = read_manifest(saved(tmp_path, image_paths=pictures, landmarks=points))
    assert ears[0].box == (12, 22, 30, 60)
    assert ears[1].box == pytest.approx((18, 22 + 38 / 3, 30, 60), abs=1e-4)
    assert ears[2].box == (-0.5, 5, 30, 60)


# ------------------------------------------------------------------------------------------------------------- .csv


def test_a_csv_with_everything(tmp_path, pictures):
    rows = [
        {"image": name, "x0": 10, "y0": 20, "x1": 40, "y1": 70, "subject": "s", "side": "r",
         "landmark_10_x": 30, "landmark_10_y": 31, "landmark_9_x": 28.5, "landmark_9_y": ""}
        for name in pictures
    ]  # fmt: skip
    rows[1] |= {"x0": "", "y0": "", "x1": "", "y1": ""}
    rows[2] |= {"x0": ""}
    report = DataReport()
    ears = read_manifest(table(tmp_path, rows), report=report)
    assert [ear.box for ear in ears] == [BOX, None]  # one landmark has no extent
    assert (ears[0].subject, ears[0].side, ears[0].subject_known) == ("s", "right", True)
    assert np.array_equal(ears[0].landmarks, [[np.nan, np.nan], [30, 31]], equal_nan=True)  # 9 before 10
    assert problems(report)[-1] == ("box is not four numbers", "left out")
    assert report.problems[-1].where == f"{tmp_path / 'm.csv'}, line 4, b.png"


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_the_columns_of_a_csv_say_their_format(tmp_path, pictures, box_format):
    columns = [{"x0": 10, "y0": 20, "x1": 40, "y1": 70}, {"x": 10, "y": 20, "width": 30, "height": 50},
               {"cx": 25, "cy": 45, "width": 30, "height": 50}]  # fmt: skip
    for box in columns:
        ears = read_manifest(table(tmp_path, [{"image": pictures[0], **box}]), box_format=box_format)
        assert ears[0].box == BOX


def test_columns_in_a_known_scheme_come_in_its_order(tmp_path, pictures):
    names = list(SCHEMAS["ear17"].names)
    places = {name: (i + 20.0, i + 30.0) for i, name in enumerate(names)}
    row = {"image": pictures[0], "width": 60, "height": 80}  # of the picture: no box
    for name in reversed(names):
        spelling = name.replace(" ", "_").title()
        row |= {f"{spelling}_x": places[name][0], f"{spelling}_y": places[name][1]}
    ear = read_manifest(table(tmp_path, [row]), landmarks=True)[0]
    assert ear.landmarks.tolist() == [list(places[name]) for name in names]
    own = {"image": pictures[0], "top_x": 20, "top_y": 30, "lobe_x": 25, "lobe_y": 60, "crop_x": 3}
    assert read_manifest(table(tmp_path, [own]))[0].landmarks.tolist() == [[20, 30], [25, 60]]


def test_mistakes_in_a_csv(tmp_path, pictures):
    with pytest.raises(UserError, match=r"has no column image; it needs the column image"):
        read_manifest(table(tmp_path, [{"picture": "a.png"}]))
    with pytest.raises(UserError, match=r"m\.csv has x0, y0, x1, no whole box; name its columns x0,y0,x1,y1 or"):
        read_manifest(table(tmp_path, [{"image": "b.png", "x0": 1, "y0": 1, "x1": 4}]))
    (tmp_path / "m.csv").write_text("image,x0,y0,x1,y1\n")
    with pytest.raises(UserError, match=r"m\.csv holds no ear"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("image,side\nb.png\na_L.png,left,surplus\n")  # rows too short and too long
    assert [ear.side for ear in read_manifest(tmp_path / "m.csv")] == ["", "left"]


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_subjects(tmp_path):
    """As AWE and EarVN1.0: a folder a person; names of files begin anew in each."""
    for name in (
        "train/001/01.png",
        "test/001/02_L.PNG",
        "train/002/01.jpg",
        "train/002/.hidden.png",
        "train/note.txt",
    ):
        picture(tmp_path / name.replace(".txt", ".png"))
    (tmp_path / "train/note.png").rename(tmp_path / "train/note.txt")
    ears = read_manifest(tmp_path)
    assert [(ear.id, ear.subject, ear.side) for ear in ears] == [
        ("test/001/02_L", "001", "left"), ("train/001/01", "001", ""), ("train/002/01", "002", ""),
    ]  # fmt: skip
    assert all(ear.subject_known and ear.box is None for ear in ears)


def test_a_flat_folder(tmp_path):
    for name in ("ann_L.png", "ann_right.png", "bob-LEFT.png", "carl.png", "images/dora_l.png"):
        picture(tmp_path / name)
    ears = {ear.id: (ear.subject, ear.side) for ear in read_manifest(tmp_path)}
    assert ears == {
        "ann_L": ("ann", "left"),
        "ann_right": ("ann", "right"),
        "bob-LEFT": ("bob", "left"),
        "carl": ("carl", ""),
        "images/dora_l": ("dora", "left"),
    }
    one = read_manifest(tmp_path / "images")
    assert (one[0].subject, one[0].subject_known) == ("dora", False)


def write_pts(file, points, count=None):
    lines = "\n".join(f"{x} {y}" for x, y in points)
    file.write_text(f"version: 1\nn_points:  {len(points) if count is None else count}\n{{\n{lines}\n}}\n")


def test_an_ibug_folder(tmp_path):
    """Its files count pixels from 1, and its folders train and test are no subjects."""
    for folder in ("collectionA/train", "collectionA/test"):
        for name in ("one", "two"):
            picture(tmp_path / folder / f"{name}.png")
            write_pts(tmp_path / folder / f"{name}.pts", points_of(55) + 1)
    ears = read_manifest(tmp_path, landmarks=True)
    assert len(ears) == 4
    assert {ear.subject for ear in ears} == {"one", "two"}
    assert not any(ear.subject_known for ear in ears)
    assert ears[0].landmarks == pytest.approx(points_of(55), abs=1e-4)
    assert ears[0].box == pytest.approx((12, 22, 30, 60), abs=1e-4)


def test_bad_pts_files(tmp_path):
    for name in "abcdef":
        picture(tmp_path / f"{name}.png")
        write_pts(tmp_path / f"{name}.pts", points_of(55))
    (tmp_path / "b.pts").write_text("no points")
    write_pts(tmp_path / "c.pts", points_of(54), 55)
    (tmp_path / "d.pts").unlink()
    (tmp_path / "e.pts").write_bytes(b"\xff\xfe{1 2\n3}")
    report = DataReport()
    assert [ear.id for ear in read_manifest(tmp_path, report=report, landmarks=True)] == ["a", "f"]
    assert [(problem.reason, os.path.basename(problem.where)) for problem in report.problems] == [
        ("landmarks unreadable", "b.png"), ("landmarks unreadable", "c.png"), ("no landmarks", "d.png"),
        ("landmarks unreadable", "e.png"),
    ]  # fmt: skip
    assert len(read_manifest(tmp_path)) == 6


def test_paths_that_are_no_manifest(tmp_path):
    with pytest.raises(UserError, match=r"gone: no such file; a manifest is a \.npy, a \.csv or a folder"):
        read_manifest(tmp_path / "gone")
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(UserError, match=r"list\.txt: not one of them"):
        read_manifest(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"holds no picture \(\.png, \.jpg"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="holds no ear"):
        read_manifest(saved(tmp_path, image_paths=[]))


# --------------------------------------------------------------------------------------------------- what is not read

UNREAD = "boxes or landmarks under another name"


@pytest.mark.parametrize(
    ("columns", "reasons"),
    [
        ("xmin ymin xmax ymax", [UNREAD] * 4),
        ("left top right bottom", [UNREAD] * 4),
        ("bbox", [UNREAD]),
        ("x0 y0 x1 y1 nose_x", [UNREAD]),  # without nose_y
        ("width height age", ["column not used"] * 3),
        ("x0 y0 x1 y1 subject side top_x top_y", []),
    ],
)
def test_columns_that_are_not_read_are_listed(tmp_path, pictures, columns, reasons):
    boxes = {"x0": 10, "y0": 20, "x1": 40, "y1": 70, "side": "left"}
    row = {name: boxes.get(name, 30) for name in columns.split()}
    report = DataReport()
    (ear,) = read_manifest(table(tmp_path, [{"image": "b.png"} | row]), report=report)
    assert ear.box == (BOX if "x0" in row else None)
    assert [problem.reason for problem in report.problems] == reasons
    for name, problem in zip([name for name in row if name not in boxes], report.problems, strict=False):
        assert (problem.where, problem.action) == (f"{tmp_path / 'm.csv'}, column '{name}'", "ignored")
        assert "x0,y0,x1,y1 or x,y,width,height or cx,cy,width,height, landmarks as NAME_x, NAME_y" in problem.detail


def test_keys_and_files_that_are_not_read_are_listed(tmp_path, pictures):
    report = DataReport()
    read_manifest(
        saved(tmp_path, image_paths=["b.png"], boxes=[BOX], keypoints=[[1]], ages=[3], none=None), report=report
    )
    assert problems(report) == [(UNREAD, "ignored")] * 2 + [("column not used", "ignored")]
    assert report.problems[0].where == f"{tmp_path / 'm.npy'}, key 'boxes'"
    assert report.problems[0].detail == "expected: image_paths, bboxes, landmarks, subjects, sides"
    for name in ("c.heic", "d.HEIC", "labels/a.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    report = DataReport()
    assert len(read_manifest(tmp_path, report=report)) == 3
    assert {problem.detail for problem in report.problems} == {"2 × .heic", "1 × .txt", "1 × .npy"}


@pytest.mark.parametrize("misspelt", ["Tragus ", "tagus"])
def test_landmarks_of_a_table_are_found_by_name(tmp_path, pictures, misspelt):
    """One that is misspelt is unknown, and listed; the others keep their places."""
    names = [name if name != "tragus" else misspelt for name in SCHEMAS["ear17"].names][::-1]
    points = dict(zip(names, points_of(17), strict=True))
    row = {f"{name}_{axis}": value for name, point in points.items() for axis, value in zip("xy", point, strict=True)}
    report = DataReport()
    (ear,) = read_manifest(table(tmp_path, [{"image": "b.png"} | row]), report=report, landmarks=True)
    np.testing.assert_allclose(ear.landmarks[:16], points_of(17)[::-1][:16], rtol=1e-6)
    assert np.isnan(ear.landmarks[16]).all() == (misspelt == "tagus")
    listed = [problem for problem in report.problems if problem.reason == "landmark of another name"]
    assert [problem.where for problem in listed] == [f"{tmp_path / 'm.csv'}, columns tagus_x, tagus_y"][: len(listed)]
    assert len(listed) == (misspelt == "tagus")


# ---------------------------------------------------------------------------------------- nothing left, report, pixels


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        (
            {"image_paths": ["x/a.png", "x/b.png"]},
            {},
            r"none of its 2 ears is usable; 2 × no such picture .*--data_root",
        ),
        ({"image_paths": ["b.png"]}, {"landmarks": True}, r"1 × no landmarks .*beside the pictures"),
        ({"image_paths": ["b.png"], "bboxes": [[0, 0, 0, 0]]}, {}, r"1 × box smaller than 2 px .*--box_format"),
        ({"image_paths": ["b.png"], "bboxes": [[90, 90, 99, 99]]}, {}, r"1 × box outside the picture .*correct"),
    ],
)
def test_nothing_usable_is_an_error_with_the_most_frequent_reason(tmp_path, pictures, content, options, match):
    report = DataReport()
    with pytest.raises(UserError, match=match) as caught:
        read_manifest(saved(tmp_path, **content), report=report, **options)
    assert str(tmp_path / "m.npy") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(report.problems) == len(content["image_paths"])  # for data_report.json, although the run ends


def test_the_report_keeps_what_others_said_and_can_be_written(tmp_path, pictures):
    report = DataReport()
    report.add("something before", "x", "kept")
    read_manifest(saved(tmp_path, image_paths=[*pictures, "gone.png"]), report=report)
    report.write(tmp_path / "data_report.json")
    written = json.loads((tmp_path / "data_report.json").read_text())["problems"]
    assert [problem["reason"] for problem in written] == ["something before", "no such picture"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("suffix", "options"), [("jpg", {}), ("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})]
)
def test_boxes_are_those_of_the_picture_as_shown(tmp_path, orientation, suffix, options):
    """The size by the header is that of the pixels as read_image gives them, turned by EXIF or not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = picture(tmp_path / f"a.{suffix}", (80, 40), exif=exif, **options)
    height, width = read_image(file, "RGB").pixels.shape[:2]
    assert (width, height) == ((80, 40) if orientation < 5 else (40, 80))
    report = DataReport()
    whole = (-0.5, -0.5, width - 0.5, height - 0.5)
    ears = read_manifest(saved(tmp_path, image_paths=[file.name], bboxes=[whole]), report=report)
    assert (ears[0].box, report.problems) == (whole, [])
    with pytest.raises(UserError, match="box outside the picture"):
        read_manifest(saved(tmp_path, image_paths=[file.name], bboxes=[(width, 1.0, width + 20.0, 20.0)]))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg"),
                         ("L", "jpg"), ("I;16", "png"), ("I;16", "tif"), ("F", "tif"), ("CMYK", "tif")],
)  # fmt: skip
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, suffix):
    file = picture(tmp_path / f"a.{suffix}", (40, 30), mode)
    ear = read_manifest(saved(tmp_path, image_paths=[file.name]))[0]
    pixels = read_image(ear.image, "RGB").pixels
    assert (pixels.shape, pixels.dtype) == ((30, 40, 3), np.uint8)


def test_sixteen_bits_keep_their_levels(tmp_path):
    levels = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    ear = read_manifest(tmp_path)[0]
    pixels = read_image(ear.image, "RGB").pixels
    assert np.abs(pixels[..., 1] - levels / 257).max() <= 0.5
    with pytest.raises(ImageError):
        read_image(tmp_path / "gone.png", "RGB")


# ------------------------------------------------------------------------------------------------------------ splits


def ear(subject, side="left", known=True):
    name = f"{subject}_{side}"
    return Ear(name, Path(f"{name}.png"), None, None, subject, side, known)


def test_both_ears_of_a_subject_are_in_one_split():
    ears = [ear(f"s{i}", side) for side in ("left", "right") for i in range(400)]
    splits = split_by_subject(ears, val_fraction=0.2, test_fraction=0.1)
    assert list(splits) == ["train", "val", "test"]
    assert sum(map(len, splits.values())) == 800
    refuse_shared_subjects(splits)
    assert 0.15 < len(splits["val"]) / 800 < 0.25
    assert 0.06 < len(splits["test"]) / 800 < 0.14
    fewer = split_by_subject(ears[:300], 0.2, 0.1)  # the rest changes nothing for those that are there
    assert {e.id for e in fewer["val"]} <= {e.id for e in splits["val"]}
    assert split_by_subject(ears, 0.2, 0)["test"] == []


def test_splits_that_cannot_be():
    with pytest.raises(UserError, match=r"2 subjects are too few for val"):
        split_by_subject([ear("a"), ear("b")], 0.001, 0)
    for fractions in ((0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(UserError, match="leave nothing to train on"):
            split_by_subject([ear("a")], *fractions)


def test_a_known_subject_in_two_splits_is_refused():
    splits = {"train": [ear("anna"), ear("bea")], "val": [ear("anna", "right")]}
    with pytest.raises(UserError, match=r"anna.*anna_left in train.*anna_right in val"):
        refuse_shared_subjects(splits)
    refuse_shared_subjects({"train": [ear("001", known=False)], "val": [ear("001", "right", known=False)]})


def test_an_ear_in_two_splits_is_refused_whoever_it_is_of(tmp_path):
    """Two ears in one picture are two; the same box of it twice is one."""
    file = picture(tmp_path / "scene.png")
    one, two, again = (
        read_manifest(saved(tmp_path, f"{i}.npy", image_paths=[file.name], bboxes=[box]))
        for i, box in enumerate((BOX, (30.0, 10.0, 50.0, 40.0), BOX))
    )
    refuse_shared_subjects({"train": one, "val": two})
    with pytest.raises(UserError, match=r"1 ears stand in two splits, .*scene.png for example \(test and train\)"):
        refuse_shared_subjects({"train": one, "val": two, "test": again})


def test_folders_name_subjects_that_count(tmp_path):
    for part in ("train", "val"):
        for subject in ("001", "002"):
            picture(tmp_path / part / subject / f"{part}.png")
    splits = {part: read_manifest(tmp_path / part) for part in ("train", "val")}
    with pytest.raises(UserError, match="2 patients stand in two splits, 001"):
        refuse_shared_subjects(splits)
    shutil.rmtree(tmp_path / "val" / "001")
    shutil.rmtree(tmp_path / "train" / "002")
    refuse_shared_subjects({part: read_manifest(tmp_path / part) for part in ("train", "val")})
