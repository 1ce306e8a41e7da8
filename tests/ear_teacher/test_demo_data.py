"""The demo data's files: manifests that the readers of ear_teacher take, pictures that follow from their number."""

import numpy as np
import pytest
from PIL import Image

import demo_refusals
from conftest import load_script
from core.demo_data import RECIPE
from ear.manifest import read_manifest
from files import read_json

ARGUMENTS = ["--images", "24", "--size", "96", "--seed", "3"]


@pytest.fixture(scope="module")
def script():
    return load_script("ear_teacher/make_demo_data.py")


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """Twelve persons, small, drawn by two processes."""
    output = tmp_path_factory.mktemp("demo") / "ears"
    script.main(["--output", str(output), *ARGUMENTS, "--workers", "2"])
    return output


def content(file):
    return np.load(file, allow_pickle=True).item()


def test_files_are_the_ones_that_the_recipe_explains(script, folder):
    written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    recipe = read_json(folder / RECIPE)
    assert written - script.files_of(recipe) == {script.Path(RECIPE)}
    assert script.files_of(recipe) < written
    assert "synthetic" in recipe["note"]


def test_manifests_are_as_the_reference_says(folder):
    truth = read_json(folder / "truth.json")
    listed = {}
    for split in ("train", "val", "test"):
        teacher, detector = (content(folder / f"{split}_{model}.npy") for model in ("teacher", "detector"))
        assert list(teacher) == ["image_paths", "bboxes", "subjects", "sides"]
        assert list(detector) == [*teacher, "landmarks"]
        assert (
            len({len(column) for column in teacher.values()}) == len({len(column) for column in detector.values()}) == 1
        )
        assert set(detector["image_paths"]) <= set(teacher["image_paths"])
        assert (split == "train") == (len(detector["image_paths"]) < len(teacher["image_paths"]))
        for file, box, points in zip(detector["image_paths"], detector["bboxes"], detector["landmarks"], strict=True):
            known = truth[script_id(file)]
            assert known["split"] == split
            assert box == known["box"]
            assert points.dtype == np.float32
            np.testing.assert_allclose(points, known["ear17"], atol=1e-3)
        listed[split] = teacher
    files = [file for teacher in listed.values() for file in teacher["image_paths"]]
    assert len(files) == len(set(files)) == len(truth) == 24
    subjects = [set(teacher["subjects"]) for teacher in listed.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 12
    for teacher in listed.values():
        assert teacher["sides"] == ["right", "left"] * (len(teacher["sides"]) // 2)
        assert teacher["subjects"][::2] == teacher["subjects"][1::2]


def script_id(file):
    return file.removeprefix("images/").removesuffix(".jpg")


def test_readers_take_them(folder):
    ears = read_manifest(folder / "train_detector.npy", landmarks=True)
    assert len(ears) == 4
    for ear in ears:
        width, height = Image.open(ear.image).size
        assert 90 <= min(width, height) <= max(width, height) <= 108
        assert ear.landmarks.shape == (17, 2)
        assert 0 <= ear.box[0] < ear.box[2] < width
        assert 0 <= ear.box[1] < ear.box[3] < height
        assert (ear.landmarks >= np.array(ear.box[:2]) - 0.01).all()
        assert (ear.landmarks <= np.array(ear.box[2:]) + 0.01).all()
    assert {ear.side for ear in ears} == {"left", "right"}
    assert len(read_manifest(folder / "train_teacher.npy")) == 16


def test_ibug_folder(folder):
    truth = read_json(folder / "truth.json")
    for split in ("train", "test"):
        files = sorted((folder / "ibug" / split).glob("*.pts"))
        detector = content(folder / f"{split}_detector.npy")["image_paths"]
        assert {file.stem for file in files} == set(map(script_id, detector))
        for file in files:
            lines = file.read_text().splitlines()
            assert lines[:3] == ["version: 1", "n_points: 55", "{"]
            assert lines[-1] == "}"
            points = np.array([line.split() for line in lines[3:-1]], float)
            np.testing.assert_allclose(points - 1, truth[file.stem]["ibug55"], atol=2e-3)
            assert file.with_suffix(".jpg").read_bytes() == (folder / "images" / f"{file.stem}.jpg").read_bytes()
    ears = read_manifest(folder / "ibug" / "test", landmarks=True)
    assert {ear.landmarks.shape for ear in ears} == {(55, 2)}
    for ear in ears:
        np.testing.assert_allclose(ear.landmarks, truth[ear.image.stem]["ibug55"], atol=2e-3)


def test_same_seed_same_bytes_with_any_number_of_workers(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--workers", "1"])
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_more_images_only_append(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--images", "10", "--workers", "1"])
    for file in tmp_path.rglob("*.jpg"):
        assert file.read_bytes() == (folder / file.relative_to(tmp_path)).read_bytes()
    longer = read_json(folder / "truth.json")
    assert read_json(tmp_path / "truth.json") == dict(list(longer.items())[:10])
    for name in ("train_teacher.npy", "val_detector.npy"):
        few, many = content(tmp_path / name), content(folder / name)
        assert few["image_paths"] == many["image_paths"][: len(few["image_paths"])]


def test_another_seed_draws_other_ears(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--images", "6", "--seed", "4", "--workers", "1"])
    for file in tmp_path.rglob("*.jpg"):
        assert file.read_bytes() != (folder / file.relative_to(tmp_path)).read_bytes()


def test_shares_of_the_splits(script):
    cases = [script.Case(number) for number in range(400)]
    share = {split: sum(case.split == split for case in cases) / 400 for split in script.SPLITS}
    assert share == {"train": 0.7, "val": 0.15, "test": 0.15}
    labelled = sum(case.labelled for case in cases if case.split == "train") / 280
    assert 1 / 8 < labelled < 1 / 5
    assert {case.split for case in cases[: script.FEWEST]} == set(script.SPLITS)
    assert all(members for members in script.manifests(cases[: script.FEWEST]).values())


def test_refuses_existing_data_and_foreign_files(script, folder, tmp_path):
    demo_refusals.refuses_existing_data_and_foreign_files(script, ARGUMENTS, folder, tmp_path, "images/mine.jpg")


def test_overwrite_replaces_only_what_the_recipe_explains(script, folder, tmp_path):
    demo_refusals.overwrites_only_what_the_recipe_explains(
        script, folder, tmp_path, {"images": 6, "seed": 3, "size": 96}
    )


@pytest.mark.parametrize("arguments", [["--images", "5"], ["--size", "95"]])
def test_impossible_numbers_end_with_one_line(script, tmp_path, arguments, capsys):
    demo_refusals.refuses_impossible_numbers(script, tmp_path, arguments, capsys)
