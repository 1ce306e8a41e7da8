"""The demo data's files: records that implants.records reads, unseen combinations, pictures by their number."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

import demo_refusals
from conftest import load_script
from core.demo_data import RECIPE
from files import read_json
from implants.demo.phantom import CATALOGUE, COMPANIES
from implants.records import load_records, refuse_leaks

ARGUMENTS = ["--patients", "10", "--size", "64", "--seed", "3"]
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def script():
    return load_script("implant/make_demo_data.py")


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """Ten patients, small, drawn by two processes."""
    output = tmp_path_factory.mktemp("demo") / "implants"
    script.main(["--output", str(output), *ARGUMENTS, "--workers", "2"])
    return output


@pytest.fixture(scope="module")
def records(folder):
    return {split: read_json(folder / f"{split}.json") for split in SPLITS}


def everyone(script, patients, seed=0):
    """(case, implant) of all patients, not drawn."""
    return [
        pair
        for patient in range(patients)
        for pair in zip(script.cases_of(patient), script.implants_of(seed, patient), strict=True)
    ]


def test_files_are_the_ones_that_the_recipe_explains(script, folder):
    written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    recipe = read_json(folder / RECIPE)
    assert written - script.files_of(recipe) == {script.Path(RECIPE)}
    assert script.files_of(recipe) < written
    assert "synthetic" in recipe["note"]


def test_records_name_what_was_drawn(folder, records):
    truth = read_json(folder / "truth.json")
    listed = [record for split in SPLITS for record in records[split]]
    assert len(listed) == len({record["image"] for record in listed}) == len(truth) == 29
    needed = ["image", "company", "model", "length", "diameter", "patient_id", "bbox", "pixel_spacing", "modality"]
    for record in listed:
        assert [key for key in record if key != "pixel_spacing"] == [
            *(key for key in needed if key != "pixel_spacing"),
            "thread_type",
            "connection",
        ]
        known = truth[record["image"].removeprefix("images/").removesuffix(".png")]
        assert (record["length"], record["diameter"]) == (known["length"], known["diameter"])
        assert record.get("pixel_spacing", known["mm_per_px"]) == known["mm_per_px"]
        lengths, diameters = CATALOGUE[record["company"], record["model"]]
        assert record["length"] in lengths
        assert record["diameter"] in diameters
        company = COMPANIES[record["company"]]
        assert (record["thread_type"], record["connection"]) == (company.thread, company.connection)
        with Image.open(folder / record["image"]) as picture:
            assert picture.mode == "L"
            width, height = picture.size
        x0, y0, x1, y1 = record["bbox"]
        assert -0.5 <= x0 < x1 <= width - 0.5
        assert -0.5 <= y0 < y1 <= height - 0.5


def test_readers_take_them(folder, records):
    loaded = {}
    for split in SPLITS:
        loaded[split], problems = load_records(folder / f"{split}.json", fields=["thread_type", "connection"])
        assert problems == []
        assert len(loaded[split]) == len(records[split])
        for record, content in zip(loaded[split], records[split], strict=True):
            assert (record.company, record.model, record.patient) == tuple(
                content[key] for key in ("company", "model", "patient_id")
            )
            assert (record.mm_per_px is None) == ("pixel_spacing" not in content)
            assert record.fields["thread_type"] == content["thread_type"]
            assert record.modality in ("periapical", "panoramic")
    refuse_leaks(loaded)


def test_splits_are_by_patient(script, records):
    patients = [{record["patient_id"] for record in records[split]} for split in SPLITS]
    assert [len(split) for split in patients] == [6, 2, 2]
    assert len(set.union(*patients)) == 10
    pairs = everyone(script, 300)
    of_split = Counter({case.patient: case.split for case, _ in pairs}.values())
    assert of_split == {"train": 180, "val": 60, "test": 60}
    assert len(pairs) == 900
    assert set(Counter(case.patient for case, _ in pairs).values()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("patients", "seed"), [(10, 0), (10, 3), (300, 0)])
def test_unseen_combinations_are_in_test_only(script, patients, seed):
    seen, tested = set(), Counter()
    for case, implant in everyone(script, patients, seed):
        if case.split == "test":
            tested[implant.company, implant.model] += 1
        else:
            seen.add((implant.company, implant.model))
    unseen = set(script.UNSEEN.items())
    assert unseen <= set(CATALOGUE)
    assert not seen & unseen
    assert unseen <= set(tested)
    if patients == 300:
        assert seen | unseen == set(CATALOGUE)
        share = sum(tested[combination] for combination in unseen) / tested.total()
        assert 0.1 < share < 0.35


def test_every_maker_and_model_is_trained_on(script):
    for seed in range(4):
        implants = [implant for case, implant in everyone(script, 30, seed) if case.split == "train"]
        assert {implant.company for implant in implants} == set(COMPANIES)
        assert {implant.model for implant in implants} == {model for _, model in CATALOGUE}


def test_patients_are_loyal_to_a_maker(script):
    pairs = everyone(script, 300)
    first = {case.patient: implant.company for case, implant in pairs if case.number == 0}
    assert set(Counter(first.values()).values()) == {60}
    further = [implant.company == first[case.patient] for case, implant in pairs if case.number]
    assert 0.8 < np.mean(further) < 0.95


def test_spacing_is_unknown_now_and_then(script):
    picture = script.Picture(None, "periapical", 0.08, (0, 0, 9, 9), {})
    known = [
        "pixel_spacing" in script.record(case, implant, picture, seed=0) for case, implant in everyone(script, 300)
    ]
    assert np.mean(known) == pytest.approx(0.85, abs=0.03)


def test_same_seed_same_bytes_with_any_number_of_workers(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--workers", "1"])
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 29 + 5
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_more_patients_only_append(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--patients", "12", "--workers", "1"])
    for file in folder.rglob("*.png"):
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes()
    for split in SPLITS:
        few, many = read_json(folder / f"{split}.json"), read_json(tmp_path / f"{split}.json")
        assert few == many[: len(few)]
    assert len(read_json(tmp_path / "truth.json")) == 29 + 2 + 5


def test_another_seed_draws_other_implants(script, folder, tmp_path):
    script.main(["--output", str(tmp_path), *ARGUMENTS, "--seed", "4", "--workers", "1"])
    for file in tmp_path.rglob("*.png"):
        assert file.read_bytes() != (folder / file.relative_to(tmp_path)).read_bytes()


def test_refuses_existing_data_and_foreign_files(script, folder, tmp_path):
    demo_refusals.refuses_existing_data_and_foreign_files(script, ARGUMENTS, folder, tmp_path, "images/mine.png")


def test_overwrite_replaces_only_what_the_recipe_explains(script, folder, tmp_path):
    demo_refusals.overwrites_only_what_the_recipe_explains(
        script, folder, tmp_path, {"patients": 8, "seed": 3, "size": 64}
    )


@pytest.mark.parametrize("arguments", [["--patients", "9"], ["--size", "63"]])
def test_impossible_numbers_end_with_one_line(script, tmp_path, arguments, capsys):
    demo_refusals.refuses_impossible_numbers(script, tmp_path, arguments, capsys)
