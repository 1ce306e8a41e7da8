"""The ISBI 2015 reader, and the choice of the reader, on small trees of blank synthetic pictures."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from ceph.anatomy import SCHEMA
from ceph.cases import FORMATS
from ceph.isbi2015 import SIZE
from ceph_training import decoded, read_tree, train
from core.errors import UserError
from files import logged, read_csv, read_json
from launch import run

NUMBERS = {"TrainingData": (1, 150), "Test1Data": (151, 300), "Test2Data": (301, 400)}
POINTS = np.stack([np.arange(19) * 50 + 100, np.arange(19) * 70 + 200], axis=1)  # junior's; senior's are 1 px right
KNOWN = [
    "S", "N", "Or", "Po", "A", "B", "Pog", "Me", "Gn", "Go", "LIT", "UIT", "Ls", "Li", "Sn", "Pog`", "PNS", "ANS", "Ar"
]  # fmt: skip


def lines_of(points):
    return [f"{x},{y}" for x, y in points] + ["2", "3", "1", "1", "2", "1", "1", "3"]  # classes follow the points


def picture(file, number, size=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("1", size)
    image.putpixel((number, 0), 1)  # no two pictures are equal
    image.save(file)


def annotation(root, reader, number):
    return root / f"AnnotationsByMD/400_{reader}/{number:03d}.txt"


def image(root, folder, number):
    return root / f"RawImage/{folder}/{number:03d}.bmp"


@pytest.fixture
def root(tmp_path):
    """The first and the last number of each split, in order."""
    root = tmp_path / "ISBI"
    for folder, numbers in NUMBERS.items():
        for number in numbers:
            picture(image(root, folder, number), number)
            for shift, reader in enumerate(("junior", "senior")):
                file = annotation(root, reader, number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("\n".join(lines_of(POINTS + [shift, 0])) + "\n")
    return root


def spoil(root, number, row, line, reader="senior"):
    """Replaces a line of an annotation; None takes it out."""
    file = annotation(root, reader, number)
    lines = file.read_text().splitlines()
    lines[row : row + 1] = [] if line is None else [line]
    file.write_text("\n".join(lines))


def problems(report):
    return {(p.reason, p.action) for p in report.problems}


def ids(cases):
    return {split: [case.id for case in found] for split, found in cases.items()}


IN_ORDER = {"train": ["001", "150"], "valid": ["151", "300"], "test": ["301", "400"]}


def test_a_tree_in_order(root):
    cases, report = read_tree(root)
    assert ids(cases) == IN_ORDER
    assert report.problems == []
    assert report.cases == {"train": 2, "valid": 2, "test": 2}
    case = cases["train"][0]
    assert (case.size, case.mm_per_px, case.cvm_stage) == ((1935, 2400), 0.1, None)
    rows = [SCHEMA.names.index(symbol) for symbol in KNOWN]
    assert np.array_equal(case.points[rows], POINTS + [0.5, 0])  # the mean of both doctors, not rounded
    assert np.isnan(np.delete(case.points, rows, axis=0)).all()
    assert len(case.points) == 29


@pytest.mark.parametrize(("ground_truth", "shift"), [("mean", 0.5), ("junior", 0), ("senior", 1)])
def test_ground_truths(root, ground_truth, shift):
    cases, _ = read_tree(root, ground_truth=ground_truth, splits=("test",))
    assert np.array_equal(cases["test"][1].points[SCHEMA.names.index("S")], POINTS[0] + [shift, 0])
    assert list(cases) == ["test"]


def test_the_ceiling_is_of_the_other_data_set(root):
    with pytest.raises(UserError, match="official_ceil is not for ISBI 2015; choose mean, senior or junior"):
        read_tree(root, ground_truth="official_ceil")


def beside(root):
    for reader in ("junior", "senior"):
        (root / f"AnnotationsByMD/400_{reader}").rename(root / f"400_{reader}")


def other_case(root):
    (root / "AnnotationsByMD/400_junior").rename(root / "AnnotationsByMD/400_Junior")
    (root / "AnnotationsByMD").rename(root / "annotationsbymd")
    (root / "RawImage/Test1Data").rename(root / "RawImage/test1data")
    (root / "RawImage").rename(root / "rawimage")


def one_folder(root):
    for file in sorted(root.glob("RawImage/*/*.bmp")):
        file.rename(root / "RawImage" / file.name)


def no_raw_image(root):
    for folder in sorted((root / "RawImage").iterdir()):
        folder.rename(root / folder.name)
    (root / "RawImage").rmdir()


def pictures_as_png(root):
    (root / "png").mkdir()
    for file in sorted(root.glob("RawImage/*/*.bmp")):
        Image.open(file).save(root / "png" / f"{int(file.stem)}.png")
    shutil.rmtree(root / "RawImage")


def twice_below(root):
    (root / "all").mkdir()
    (root / "RawImage").rename(root / "all/RawImage")


@pytest.mark.parametrize("change", [beside, other_case, one_folder, no_raw_image, pictures_as_png, twice_below])
def test_folders_may_vary(root, change):
    change(root)
    cases, report = read_tree(root)
    assert ids(cases) == IN_ORDER
    assert report.problems == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("many,4", "coordinate is no number"),
        ("4,", "coordinate is no number"),
        ("nan,5", "coordinate is no number"),
        ("1934.6,5", "landmark outside the picture"),
        ("5,-1", "landmark outside the picture"),
    ],
)
def test_a_bad_landmark_is_left_out_and_the_case_stays(root, line, reason):
    spoil(root, 1, 3, line)
    cases, report = read_tree(root)
    points = cases["train"][0].points
    assert np.isnan(points[SCHEMA.names.index("Po")]).all()
    assert np.isfinite(points).all(axis=1).sum() == 18
    assert problems(report) == {(reason, "landmark left out")}
    assert report.problems[0].detail.startswith("Po: ")
    assert report.problems[0].where.endswith("400_senior/001.txt")


@pytest.mark.parametrize(("line", "found"), [(None, 18), ("7", 4), ("7 8", 4), ("7,8,9", 4)])
def test_without_19_points_it_is_unknown_which_they_are(root, line, found):
    spoil(root, 1, 4, line)
    cases, report = read_tree(root)
    assert np.array_equal(cases["train"][0].points[SCHEMA.names.index("S")], POINTS[0])  # of the other doctor alone
    assert problems(report) == {("annotation unreadable", "annotation left out"), ("one reader only", "kept")}
    assert report.problems[0].detail == f"{found} lines x,y, not 19"


def test_blank_lines_and_classes_do_not_matter(root):
    file = annotation(root, "junior", 1)
    file.write_text("\ufeff\r\n" + "\r\n\r\n".join(f" {x} , {y} " for x, y in POINTS))
    cases, report = read_tree(root)
    assert report.problems == []
    assert np.array_equal(cases["train"][0].points[SCHEMA.names.index("Ar")], POINTS[18] + [0.5, 0])


def test_missing_halves_are_listed(root):
    image(root, "TrainingData", 1).unlink()
    annotation(root, "senior", 151).unlink()
    for reader in ("junior", "senior"):
        annotation(root, reader, 301).unlink()
    annotation(root, "junior", 300).write_bytes(b"\xff\xfe\xff")
    image(root, "TrainingData", 150).with_name("mask.bmp").write_bytes(b"")
    picture(image(root, "TrainingData", 149), 149)
    cases, report = read_tree(root)
    assert ids(cases) == {"train": ["150"], "valid": ["151", "300"], "test": ["400"]}
    assert problems(report) == {
        ("annotation without picture", "annotation left out"),
        ("one reader only", "kept"),
        ("picture without annotation", "case left out"),
        ("annotation unreadable", "annotation left out"),
        ("not a name of the data set", "file left out"),
    }


def test_another_size_has_another_scale(root):
    picture(image(root, "TrainingData", 1), 1, size=(1500, 1700))
    cases, report = read_tree(root)
    assert [case.mm_per_px for case in cases["train"]] == [None, 0.1]
    assert problems(report) == {("not 1935×2400 px", "kept, uncalibrated, px only")}


def test_broken_pictures(root, tmp_path):
    image(root, "TrainingData", 1).write_bytes(b"no picture")
    file = image(root, "Test1Data", 151)
    file.write_bytes(file.read_bytes()[:2000])  # the header is whole
    cases, report = read_tree(root, splits=("train", "valid"))
    cases = decoded(cases, report, tmp_path / "cache")
    assert ids(cases) == {"train": ["150"], "valid": ["300"]}
    assert problems(report) == {("picture unreadable", "left out")}


def test_a_picture_in_two_splits(root):
    shutil.copy(image(root, "Test1Data", 151), image(root, "TrainingData", 151))  # by its name
    shutil.copy(image(root, "Test2Data", 400), image(root, "TrainingData", 150))  # by its content
    cases, report = read_tree(root)
    assert ids(cases) == {"train": ["001"], "valid": ["151", "300"], "test": ["301", "400"]}
    assert problems(report) == {
        ("picture in another split's folder", "file left out"),
        ("picture in two splits", "left out of train"),
    }


def test_two_files_of_one_number(root):
    Image.open(image(root, "TrainingData", 1)).save(root / "RawImage/TrainingData/1.png")
    cases, report = read_tree(root)
    assert cases["train"][0].image.name == "001.bmp"
    assert problems(report) == {("duplicate id", "file left out")}


def test_a_split_without_cases_is_one_line(root):
    for number in (301, 400):
        image(root, "Test2Data", number).unlink()
    with pytest.raises(UserError, match=r"no usable case in test/ \(2 × annotation without picture\)"):
        read_tree(root)
    assert ids(read_tree(root, splits=("train",))[0]) == {"train": ["001", "150"]}


def test_the_format_is_recognised(root, tree):
    assert ids(read_tree(root)[0]) == ids(read_tree(root, "isbi2015")[0]) == IN_ORDER
    assert ids(read_tree(tree.root)[0]) == ids(read_tree(tree.root, "aariz")[0])
    assert [case.id for case in read_tree(tree.root, splits=("valid",))[0]["valid"]] == ["d", "e"]
    assert FORMATS == ("auto", "aariz", "isbi2015")


def test_neither_format(root, tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: neither Aariz \(train/.*nor ISBI 2015 \(RawImage/.*400_senior"):
        read_tree(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_tree(tmp_path / "nowhere")
    with pytest.raises(UserError, match="none of train/"):
        read_tree(root, "aariz")
    with pytest.raises(UserError, match="400_senior or 400_junior"):
        read_tree(tree.root, "isbi2015")


def test_what_is_trained_on_19_landmarks_tells_19(root, tmp_path):
    """The ten that the data set lacks are in no result, and do not break a loss."""
    for number in (1, 150):
        other = number + 1
        shutil.copy(image(root, "TrainingData", number), image(root, "TrainingData", other))
        picture(image(root, "TrainingData", other), other)
        for reader in ("junior", "senior"):
            shutil.copy(annotation(root, reader, number), annotation(root, reader, other))
    done = train(root, tmp_path / "run", "--epochs", 1, "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(logged(tmp_path / "run")[0]["val/mre_mm"])
    model = ["--checkpoint", tmp_path / "run"]
    done = run("cephalometric/evaluate.py", *model, "--dataset_path", root, "--split", "valid", "--output", tmp_path,
               "--cache_dir", root.parent / "cache", "--bootstrap", 20, "--num_workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["data"]["cases"] == 2
    assert {row["landmark"] for row in metrics["by_landmark"]} == set(KNOWN)
    assert "cvm_stage" not in metrics
    done = run(
        "cephalometric/predict.py", *model, "--image", image(root, "Test1Data", 151), "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert "stage" not in done.stdout.lower()  # a maturation stage was never taught
    assert set(read_json(tmp_path / "out" / "151.json")) == {"ceph_id", "landmarks", "pixel_size"}
    with open(tmp_path / "predictions.csv") as table:
        columns = next(csv.reader(table))
    assert not [name for name in columns if name.startswith(("cvm", "Co_", "R_"))]
    assert {"S_x", "S_error_mm", "N-Me"} < set(columns)
    assert "Maturation" not in (tmp_path / "report.html").read_text()
    taught = read_json(tmp_path / "run" / "best" / "config.json")["taught"]
    assert taught["stage"] == {"stage": 0}
    assert {name: count for name, count in taught["landmarks"].items() if count} == dict.fromkeys(KNOWN, 3)
    landmarks = read_json(tmp_path / "out" / "151.json")["landmarks"]
    assert {entry["symbol"] for entry in landmarks} == set(KNOWN)
    (row,) = read_csv(tmp_path / "out" / "landmarks.csv")
    assert [symbol for symbol in SCHEMA.names if f"{symbol}_x" in row] == [s for s in SCHEMA.names if s in KNOWN]
    assert (tmp_path / "out" / "151_tracing.png").is_file()
