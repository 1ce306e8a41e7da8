"""Records of implants: what is read, what is skipped and why, and what must not stand in two splits."""

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import core.validation
from core.errors import UserError
from core.validation import DataReport, leave_out_unreadable
from implants.records import Record, convert_to_serializable, load_records, refuse_leaks

SIZE = (60, 80)  # width, height
BOX = (10.0, 20.0, 40.0, 70.0)
GOOD = {"company": "Acme", "model": "Screw", "length": 10.0, "diameter": 4.1}


def picture(file, level=0, size=SIZE, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(file, **options)
    return file


def entry(image="images/a.png", **changes):
    return {"image": image, **GOOD, **changes}


def written(folder, content, name="records.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def tree(tmp_path):
    for i, name in enumerate("abc"):
        picture(tmp_path / "images" / f"{name}.png", level=40 * i)
    return tmp_path


def only(folder, **changes):
    """The one record of a file, which has no problem."""
    records, problems = load_records(written(folder, [entry(**changes)]))
    assert problems == []
    return records[0]


def told(folder, **changes):
    """What is said of one record that is kept: reason and action."""
    records, problems = load_records(written(folder, [entry(**changes)]))
    return records[0], [(problem.reason, problem.action) for problem in problems]


# -------------------------------------------------------------------------------------------------------- what is read


def test_a_record_with_everything(tree):
    record, problems = told(
        tree, patient_id=7, bbox=BOX, pixel_spacing=[0.1, 0.05], modality="periapical", source_image="images/b.png",
        thread_type="v", platform=4, guided=True, note=None, score=float("nan"), tags=["x"],
    )  # fmt: skip
    assert record == Record(
        id="images/a", image=tree / "images" / "a.png", company="Acme", model="Screw", length=10.0, diameter=4.1,
        patient="7", bbox=BOX, mm_per_px=(0.05, 0.1), modality="periapical", origin="images/b",
        fields={"thread_type": "v", "platform": "4", "guided": "True"},
    )  # fmt: skip
    assert problems == [("unknown key in the records", "not used")] * 4  # thread_type, platform, guided, tags


def test_a_record_with_no_more_than_it_needs(tree):
    record = only(tree)
    assert (record.patient, record.bbox, record.mm_per_px, record.modality) == (None, None, None, "")
    assert (record.origin, record.fields) == ("images/a", {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(10, 10), (11.5, 11.5), ("10.0", 10), (" 12 mm", 12), ("8mm ", 8), ("9 MM", 9), ("1e1", 10), (4, 4), ("25", 25)],
)
def test_numbers_and_texts_of_numbers(tree, value, expected):
    length = only(tree, length=value).length
    assert (length, type(length)) == (expected, float)


def test_names_are_stripped_and_numbers_are_names(tree):
    record = only(tree, company="  Nobel \n Maker ", model=3.0, patient_id=" p 1 ")
    assert (record.company, record.model, record.patient) == ("Nobel Maker", "3", "p 1")


@pytest.mark.parametrize("unknown", [None, "", "  ", math.nan, "nan", "None"])
def test_unknown_patients_are_no_patient(tree, unknown):
    """A table's gaps must not become one patient that stands in every split."""
    record = only(tree, patient_id=unknown, modality=unknown, source_image=unknown)
    assert (record.patient, record.modality, record.origin) == (None, "", "images/a")


@pytest.mark.parametrize("key", ["records", "data", "annotations"])
def test_a_list_may_lie_in_an_object(tree, key):
    assert len(load_records(written(tree, {"version": 1, key: [entry()]}))[0]) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tree, encoding):
    (tree / "r.json").write_bytes(json.dumps([entry(company="Größe")], ensure_ascii=False).encode(encoding))
    assert load_records(tree / "r.json")[0][0].company == "Größe"


def test_paths_start_at_the_json_or_at_the_data_root(tree, monkeypatch):
    (tree / "lists").mkdir()
    monkeypatch.chdir(tree / "lists")
    for path, root, name in (
        ("../images/a.png", None, tree.relative_to("/").as_posix() + "/images/a"),
        ("a.png", tree / "images", "a"),
        ("./x/../a.png", "../images", "a"),
        (r"images\a.png", "..", "images/a"),  # a list from Windows
        (str(tree / "images" / "a.png"), tree, "images/a"),
    ):
        records, problems = load_records(Path(written(tree / "lists", [entry(path)]).name), root)
        assert (records[0].image, records[0].id, problems) == (tree / "images" / "a.png", name, [])
    with pytest.raises(UserError, match="--data_root nowhere: no such folder"):
        load_records("records.json", "nowhere")


def test_two_implants_in_one_picture(tree):
    other = (30.0, 10.0, 55.0, 60.0)
    content = [entry(bbox=BOX), entry("images/b.png"), entry(bbox=other, length=8), entry()]
    records, problems = load_records(written(tree, content))
    assert problems == []
    assert [record.id for record in records] == ["images/a", "images/b", "images/a_2", "images/a_3"]
    assert [record.bbox for record in records] == [BOX, None, other, None]
    assert [record.origin for record in records] == ["images/a", "images/b", "images/a", "images/a"]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [(0.1, (0.1, 0.1)), ("0.1", (0.1, 0.1)), ([0.2, 0.1], (0.1, 0.2)), (["0.2 mm", 0.1], (0.1, 0.2)), (1, (1, 1))],
)
def test_spacing_comes_as_row_and_column_and_goes_as_x_and_y(tree, spacing, expected):
    assert only(tree, pixel_spacing=spacing).mm_per_px == expected


@pytest.mark.parametrize("spacing", [0, -0.1, 0.004, 1.5, [0.1, 0], [0.1, 50], [0.1, math.nan], 1e400, "1e400"])
def test_spacing_out_of_bounds_is_told(tree, spacing):
    record, problems = told(tree, pixel_spacing=spacing)
    assert record.mm_per_px is None
    assert problems == [("pixel_spacing outside 0.005–1 mm", "kept without spacing")]


@pytest.mark.parametrize("spacing", ["wide", True, [0.1], [0.1, 0.1, 0.1], [0.1, None], {"x": 0.1}, [[0.1], 0.1]])
def test_spacing_that_is_none_is_told(tree, spacing):
    record, problems = told(tree, pixel_spacing=spacing)
    assert record.mm_per_px is None
    assert problems == [("pixel_spacing is not one or two numbers", "kept without spacing")]


def test_what_is_wrong_with_optional_names_is_told(tree):
    record, problems = told(tree, patient_id=["p"], modality=True)
    assert (record.patient, record.modality) == (None, "")
    assert problems == [("patient_id is not a text", "kept without patient"),
                        ("modality is not a text", "kept without modality")]  # fmt: skip


def test_what_is_not_needed_may_be_unknown(tree):
    bare = [{"image": "images/a.png", "length": 0, "model": ["x"]}]
    record = load_records(written(tree, bare), needs=())[0][0]
    assert (record.company, record.model) == ("", "")
    assert math.isnan(record.length)
    assert math.isnan(record.diameter)
    only_company = [{"image": "images/a.png", "company": "Acme", "length": "9"}]
    assert load_records(written(tree, only_company), needs=("company",))[0][0].length == 9
    with pytest.raises(UserError, match="model is missing or empty"):
        load_records(written(tree, only_company), needs=("company", "model"))


def test_other_limits(tree):
    file = written(tree, [entry(length=3), entry("images/b.png", length=30, diameter=9)])
    records, problems = load_records(file, limits={"length": (2, 40)})
    assert [record.length for record in records] == [3]
    assert problems[0].reason == "diameter outside 1.5–8 mm"


def test_unknown_keys_are_counted_once_with_those_that_were_expected(tree):
    rows = [entry(lenght=9, Hersteller="A"), entry("images/b.png", Hersteller="B", thread_type="v", note=None)]
    report = DataReport()
    _, problems = load_records(written(tree, rows), fields=["thread_type"], report=report)
    assert [(p.reason, p.action) for p in problems] == [("unknown key in the records", "not used")] * 2
    assert [p.detail.split(";")[0] for p in problems] == ["lenght (1 records)", "Hersteller (2 records)"]
    for name in ("length", "company", "thread_type"):
        assert name in problems[0].detail.split("expected: ")[1].split(", ")
    assert report.problems == problems


def test_what_no_record_gives_may_be_dropped(tree):
    rows = [{"image": f"images/{name}.png", "length": length} for name, length in (("a", 9), ("b", ""))]
    file, needs = written(tree, rows), ("length", "diameter")
    with pytest.raises(UserError, match="diameter is missing"):
        load_records(file, needs=needs)
    records, problems = load_records(file, needs=needs, drop_absent=True)
    assert [record.id for record in records] == ["images/a"]
    assert [(p.reason, p.action) for p in problems] == [
        ("no usable diameter in any record", "diameter left out"), ("length is empty", "record skipped")
    ]  # fmt: skip
    with pytest.raises(UserError, match="diameter is missing"):
        load_records(file, needs=("diameter",), drop_absent=True)


# ----------------------------------------------------------------------------------------------------- what is skipped

GONE = "gone"  # the field is not there at all


@pytest.mark.parametrize("name", ["length", "diameter"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (GONE, "is missing"),
        (None, "is missing"),
        ("", "is empty"),
        ("  ", "is empty"),
        (math.nan, "is not finite"),
        ("NaN", "is not finite"),
        (math.inf, "is not finite"),
        ("-inf", "is not finite"),
        ("1e400", "is not finite"),
        (10**400, "is not finite"),
        (0, "is zero"),
        ("0.0", "is zero"),
        (-0.0, "is zero"),
        (-4, "is negative"),
        ("-4 mm", "is negative"),
        (1e-9, "outside"),
        (10**200, "outside"),
        ("41", "outside"),
        (True, "is not a number"),
        (False, "is not a number"),
        ([5], "is not a number"),
        ([], "is not a number"),
        ({"mm": 5}, "is not a number"),
        ("five", "is not a number"),
        ("mm", "is not a number"),
        ("5 cm", "is not a number"),
        ("5,0", "is not a number"),  # 5.0 or 50, who knows
        ("0_5", "is not a number"),
        ("0x5", "is not a number"),
    ],
)
def test_bad_sizes_are_skipped(tree, name, value, reason):
    bad = {key: content for key, content in entry(**{name: value}).items() if content != GONE}
    records, problems = load_records(written(tree, [entry("images/b.png"), bad, entry("images/c.png")]))
    assert [record.id for record in records] == ["images/b", "images/c"]
    assert len(problems) == 1
    limits = {"length": " 4–25 mm", "diameter": " 1.5–8 mm"}[name] if reason == "outside" else ""
    assert (problems[0].reason, problems[0].action) == (f"{name} {reason}{limits}", "record skipped")
    assert problems[0].where == f"{tree / 'records.json'}, entry 1, images/a.png"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"company": None}, "company is missing or empty"),
        ({"company": " "}, "company is missing or empty"),
        ({"company": math.nan}, "company is missing or empty"),
        ({"model": "nan"}, "model is missing or empty"),
        ({"model": ["x"]}, "model is not a text"),
        ({"company": True}, "company is not a text"),
        ({"image": None}, "no image named"),
        ({"image": ""}, "no image named"),
        ({"image": 3}, "no image named"),
        ({"image": ["images/a.png"]}, "no image named"),
        ({"image": "images/gone.png"}, "no such picture"),
        ({"image": "images/gone.dcm"}, "no such picture"),
        ({"image": "images"}, "no such picture"),
        ({"image": "/"}, "no such picture"),
        ({"image": "/dev/zero"}, "no such picture"),
        ({"image": "x" * 5000}, "no such picture"),
        ({"image": "a\x00b.png"}, "no such picture"),
        ({"image": "\ud800.png"}, "no such picture"),
        ({"image": "https://example.org/a.png"}, "no such picture"),
        ({"image": "records.json"}, "picture unreadable"),
        ({"image": "images/cut.png"}, "picture unreadable"),
        ({"image": "images/tiny.png"}, "picture smaller than 4 px"),
        ({"bbox": [10, 10, 30]}, "bbox is not four numbers"),
        ({"bbox": []}, "bbox is not four numbers"),
        ({"bbox": [10, 10, 30, None]}, "bbox is not four numbers"),
        ({"bbox": [10, 10, 30, math.nan]}, "bbox is not four numbers"),
        ({"bbox": [10, 10, 30, 1e400]}, "bbox is not four numbers"),
        ({"bbox": [0, 0, 30, True]}, "bbox is not four numbers"),
        ({"bbox": "1059"}, "bbox is not four numbers"),
        ({"bbox": {"x0": 1}}, "bbox is not four numbers"),
        ({"bbox": 7}, "bbox is not four numbers"),
        ({"bbox": [[10], 10, 30, 40]}, "bbox is not four numbers"),
        ({"bbox": [0, 0, 0, 0]}, "bbox smaller than 4 px"),
        ({"bbox": [0.1, 0.1, 0.9, 0.9]}, "bbox smaller than 4 px"),
        ({"bbox": [10, 10, 13, 50]}, "bbox smaller than 4 px"),
        ({"bbox": [40, 10, 30, 50]}, "bbox ends before it begins"),
        ({"bbox": [60, 10, 90, 50]}, "bbox outside the picture"),
        ({"bbox": [10, -50, 40, 2]}, "bbox outside the picture"),
    ],
)
def test_bad_records_are_skipped(tree, changes, reason):
    (tree / "images" / "cut.png").write_bytes((tree / "images" / "a.png").read_bytes()[:20])
    picture(tree / "images" / "tiny.png", size=(3, 60))
    good = [entry("images/b.png", bbox=[0, i, 40, 50]) for i in range(12)]
    records, problems = load_records(written(tree, [*good, entry(**changes)]))
    assert len(records) == 12
    assert [(problem.reason, problem.action) for problem in problems] == [(reason, "record skipped")]
    report = DataReport({"train": 12}, problems)
    report.write(tree / "data_report.json")  # halves of characters would end it here
    assert report.counts() == {(reason, "record skipped"): 1}


@pytest.mark.parametrize("content", [None, 3, "a.png", ["a.png"], True])
def test_what_is_no_object_is_skipped(tree, content):
    records, problems = load_records(written(tree, [content, entry()]))
    assert len(records) == 1
    assert problems[0].reason == "record is not an object"


def test_nothing_is_silently_zero(tree):
    bad = [None, "", "NaN", math.nan, 0, -1, True, False, [], {}, "x", 1e400, 10**400]
    content = [entry("images/b.png")]
    content += [entry(**{name: value}) for value in bad for name in ("length", "diameter")]
    records, problems = load_records(written(tree, content))
    assert [(record.length, record.diameter) for record in records] == [(10.0, 4.1)]
    assert len(problems) == 2 * len(bad)


@pytest.mark.parametrize(
    ("box", "expected", "cut"),
    [
        ([-20, 10, 30, 50], (-0.5, 10, 30, 50), True),
        ([30, 40, 70, 100], (30, 40, 59.5, 79.5), True),
        ([0, 0, 60, 80], (0, 0, 59.5, 79.5), False),  # the whole picture, counted from corner to corner
        ([-0.5, -0.5, 59.5, 79.5], (-0.5, -0.5, 59.5, 79.5), False),
        (["10", 20, "40", 70], BOX, False),
    ],
)
def test_boxes_partly_outside_are_cut_and_told(tree, box, expected, cut):
    record, problems = told(tree, bbox=box)
    assert record.bbox == expected
    assert problems == [("bbox partly outside the picture", "kept, bbox cut")] * cut


def test_boxes_are_of_the_picture_as_shown(tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tree / "images" / "turned.jpg", size=(80, 60), exif=exif)
    assert only(tree, image="images/turned.jpg", bbox=[5, 5, 50, 78]).bbox == (5, 5, 50, 78)


def test_dicom_is_admitted_by_its_name(tree):
    (tree / "images" / "x.DCM").write_bytes(b"not looked at")
    record = only(tree, image="images/x.DCM", bbox=[5, 5, 5000, 5000])
    assert (record.id, record.bbox) == ("images/x", (5, 5, 5000, 5000))


def test_a_record_that_comes_twice_is_skipped(tree):
    content = [
        entry(length=0),
        entry(bbox=BOX),
        entry(),
        entry(bbox=list(BOX), length=9),
        entry("images/../images/a.png"),
    ]
    records, problems = load_records(written(tree, content))
    assert [(record.id, record.length) for record in records] == [("images/a", 10), ("images/a_2", 10)]
    assert [(problem.reason, problem.detail) for problem in problems] == [
        ("length is zero", "0"),
        ("the same picture and box twice", "as entry 1"),
        ("the same picture and box twice", "as entry 2"),
    ]


def test_boxes_of_another_format_are_refused_although_some_would_fit(tree):
    boxes = [(5, 5 + i, 40, 60) for i in range(6)] + [(30, 25, 20, 40)]  # x, y, width, height
    with pytest.raises(UserError, match=r"1 of 7 boxes end before they begin; .*not x, y, width, height"):
        load_records(written(tree, [entry(bbox=box) for box in boxes]))


def test_several_spellings_are_told_once_and_kept(tree):
    companies = ["ABC", "abc", "ABC", "Other"]
    content = [entry(company=name, bbox=[0, i, 40, 60]) for i, name in enumerate(companies)]
    records, problems = load_records(written(tree, content))
    assert [record.company for record in records] == companies
    assert [(problem.reason, problem.detail) for problem in problems] == [
        ("company spelled in several ways", "ABC (2), abc (1)")
    ]


def test_a_picture_with_several_boxes_is_decoded_once(tree, monkeypatch):
    read, decoded = core.validation.read_image, []
    monkeypatch.setattr(core.validation, "read_image", lambda path: decoded.append(path.name) or read(path))
    (tree / "images" / "b.png").write_bytes((tree / "images" / "b.png").read_bytes()[:60])
    boxes = [[0, i, 40, 60] for i in range(3)]
    content = [entry(image, bbox=box) for box in boxes for image in ("images/a.png", "images/b.png", "images/c.png")]
    records, report = load_records(written(tree, content))[0], DataReport()
    one = SimpleNamespace(process_index=0, num_processes=1)
    kept = leave_out_unreadable({"train": records}, report, one)["train"]
    assert sorted(decoded) == ["a.png", "b.png", "c.png"]
    assert kept == [record for record in records if record.image.name != "b.png"]
    assert report.cases == {"train": 6}
    assert {p.reason for p in report.problems} == {"picture unreadable"}
    assert [p.where for p in report.problems] == ["images/b", "images/b_2", "images/b_3"]


# -------------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty; give a JSON list"),
        (" \n", "is empty; give a JSON list"),
        ('[{"image": "a.png",\n "length": }]', r"line 2, column 12: not JSON \(Expecting value\)"),
        ('{"image": 1}\n{"image": 2}', r"line 2, column 1: not JSON \(Extra data\)"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"image": ' + "[" * 100_000 + "]" * 100_000 + "}]", "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[]", "holds no record"),
        ("{}", r'is an object with nothing; give a list of records, or one under "records"'),
        ('{"images": [], "records": 3}', "is an object with 'images', 'records'; give a list"),
        ('{"data": [1], "records": [2]}', "is an object with 'data', 'records'; give a list"),
        ('"text"', "is no list but 'text'"),
        ("NaN", "is no list but nan"),
        ("1e400", "is no list but inf"),
        ("9" * 5000, "is no list but inf"),
        ("null", "is no list but None"),
    ],
)
def test_malformed_files_end_with_one_line(tmp_path, content, match):
    with pytest.raises(UserError, match=match) as caught:
        load_records(written(tmp_path, content))
    assert str(tmp_path / "records.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        load_records(tmp_path / "gone.json")
    with pytest.raises(UserError, match="directory"):
        load_records(tmp_path)
    (tmp_path / "x.json").write_bytes(b'[{"image": "\xff\xfe"}]')
    with pytest.raises(UserError, match=r"x\.json: not text in UTF-8 \(byte 12\)"):
        load_records(tmp_path / "x.json")


def test_one_hostile_number_does_not_cost_the_others(tree):
    """Python refuses whole numbers beyond 4300 digits, and with them the file."""
    text = json.dumps([entry("images/b.png"), entry(length="HUGE"), entry("images/c.png", length="BIG")])
    text = text.replace('"HUGE"', "9" * 5000).replace('"BIG"', "1e400")
    records, problems = load_records(written(tree, text))
    assert [record.id for record in records] == ["images/b"]
    assert [problem.reason for problem in problems] == ["length is not finite"] * 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"length": ""}, r"none of its 3 records is usable; 3 × length is empty \(.*entry 0, images/a\.png\)"),
        ({"image": "x\n/a.png"}, r"3 × no such picture .*relative to the JSON file, or .*--data_root"),
        ({"bbox": [0, 0, 1, 1]}, r"3 × bbox smaller than 4 px .*\[x0, y0, x1, y1\] in px"),
        ({"diameter": 41}, r"3 × diameter outside 1\.5–8 mm .*: 41\); .*in mm"),
    ],
)
def test_nothing_usable_is_an_error_with_the_most_frequent_reason(tree, changes, match):
    with pytest.raises(UserError, match=match) as caught:
        load_records(written(tree, [entry(**changes)] * 3))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- leaks


def loaded(folder, *entries, name="r.json"):
    """Records of pictures, which are drawn, each unlike the others, where they are not there."""
    for i, e in enumerate(entries):
        if not (folder / e["image"]).exists():
            picture(folder / e["image"], size=(20 + len(list(folder.rglob("*.png"))), 30 + i))
    return load_records(written(folder, list(entries), name))[0]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (entry("a_aug.png"), entry("a.png")),
        (entry("a_aug3.png"), entry("a.png")),
        (entry("a-aug-1.png"), entry("a.png")),
        (entry("a_augmented_2.png"), entry("a.png")),
        (entry("a_AUG_1_2.png"), entry("A.png")),
        (entry("a_aug1_aug2.png"), entry("a.png")),
        (entry("a.png"), entry("a_aug1.png")),
        (entry("a_aug1.png"), entry("a_aug2.png")),  # two copies of one picture that is in neither
        (entry("deep/a_aug1.png"), entry("deep/a.png")),
        (entry("new/1.png", source_image="old/a.png"), entry("old/a.png")),
        (entry("new/1.png", source_image=r".\old\a.PNG"), entry("old/a.png")),
        (entry("new/1.png", original_image="old/a"), entry("old/a.png")),
        (entry("new/A_aug.png"), entry("new/a.png")),
        (entry("new/1.png", augmented_from="a"), entry("old/a.png")),  # the one picture of this name
        (entry("new/1.png", augmented_from="a.png"), entry("new/a.png")),  # beside the copy
        (entry("new/1.png", source_image="old/a_aug1.png"), entry("old/a.png")),
        (entry("new/1.png", source_image="old/case.1"), entry("old/case.1.png")),
    ],
)
def test_augmented_copies_are_refused(tmp_path, train, val):
    splits = {"train": loaded(tmp_path, entry("other.png"), train), "val": loaded(tmp_path, val, entry("more.png"))}
    report = DataReport()
    with pytest.raises(UserError, match="1 pictures stand in two splits") as caught:
        refuse_leaks(splits, report)
    assert [(p.reason, p.action, p.detail) for p in report.problems] == [
        ("in two splits", "refused", "made of one picture")
    ]
    for name, record in (("train", train), ("val", val)):
        assert f"{tmp_path / record['image']} in {name}" in str(caught.value)
    assert "(made of one picture)" in str(caught.value)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (entry("p1/001_aug1.png"), entry("p2/001.png")),  # numbers begin anew in each folder
        (entry("a_august.png"), entry("a.png")),
        (entry("taug3.png"), entry("t.png")),
        (entry("aug3.png"), entry("aug4.png")),
        (entry("_aug3.png"), entry("_aug4.png")),
        (entry("x/1.png", source_image="old/b.png"), entry("old/a.png")),
        (entry("x/1.png", source_image=None), entry("y/1.png", source_image="nan")),
    ],
)
def test_what_only_looks_like_a_copy_is_none(tmp_path, train, val):
    refuse_leaks({"train": loaded(tmp_path, train), "val": loaded(tmp_path, val)})


def test_files_of_one_name_in_folders_of_their_own_are_no_copies(tmp_path):
    """train/records.json and val/records.json both begin at images/1.png."""
    train = loaded(tmp_path / "train", entry("images/1.png"), entry("images/1_aug.png"))
    size = (300, 300)
    picture(tmp_path / "val" / "images" / "1.png", size=size)
    val = loaded(tmp_path / "val", entry("images/1.png"))
    assert train[0].id == val[0].id
    refuse_leaks({"train": train, "val": val})
    inside = loaded(tmp_path, entry("x.png", source_image=str(tmp_path / "val" / "images" / "1.png")))
    with pytest.raises(UserError, match="made of one picture"):
        refuse_leaks({"train": inside, "val": val})


def test_the_same_picture_is_refused_by_path_and_by_content(tmp_path):
    train = loaded(tmp_path, entry("a.png", bbox=[0, 0, 15, 15]))
    val = loaded(tmp_path, entry("a.png", bbox=[2, 2, 18, 18]))
    with pytest.raises(UserError, match=r"a\.png in train and .*a\.png in val \(the same picture\)"):
        refuse_leaks({"train": train, "val": val})
    (tmp_path / "renamed.png").write_bytes((tmp_path / "a.png").read_bytes())
    renamed = loaded(tmp_path, entry("renamed.png"))
    with pytest.raises(UserError, match=r"a\.png in train and .*renamed\.png in test \(the same picture\)"):
        refuse_leaks({"train": train, "val": loaded(tmp_path, entry("b.png")), "test": renamed})
    refuse_leaks({"train": [*train, *renamed], "val": loaded(tmp_path, entry("b.png"))})  # twice in one split is none


def test_an_original_named_without_its_folder_is_the_one_beside_its_copy(tmp_path):
    train = loaded(tmp_path, entry("new/1.png", augmented_from="a.png"), entry("old/a.png"))
    refuse_leaks({"train": train, "val": loaded(tmp_path, entry("b.png"))})
    with pytest.raises(UserError, match=r"1\.png in train and .*new/a\.png in val"):
        refuse_leaks({"train": train, "val": loaded(tmp_path, entry("new/a.png"))})


def test_a_shared_patient_is_refused(tmp_path):
    train = loaded(tmp_path, entry("a.png", patient_id=7.0), entry("a.png", bbox=[0, 0, 9, 9]), entry("b.png"))
    val = loaded(tmp_path, entry("c.png", patient_id="7"), entry("d.png"))
    report = DataReport()
    with pytest.raises(UserError, match=r"1 patients stand in two splits, 7 .*a\.png in train.*c\.png in val"):
        refuse_leaks({"train": train, "val": val}, report)
    assert [(p.reason, p.detail) for p in report.problems] == [("in two splits", "patient 7")]
    refuse_leaks({"train": train, "val": [replace(record, patient=None) for record in val]})


def test_many_leaks_make_one_line(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    train, val = (loaded(tmp_path, *map(entry, names)) for _ in range(2))
    with pytest.raises(UserError, match=r"9 pictures stand in two splits.*; …; keep each") as caught:
        refuse_leaks({"train": train, "val": val})
    assert str(caught.value).count("(the same picture)") == 4
    assert "\n" not in str(caught.value)


def test_a_hostile_name_does_not_stall(tmp_path):
    started = time.process_time()
    for name in ("a_aug" + "1_" * 50_000 + "x", "a" + "_aug" * 50_000 + "x", "a_aug" + "1" * 50_000 + "x"):
        assert loaded(tmp_path, entry("a.png", source_image=name))[0].origin[0] == "a"
    assert time.process_time() - started < 10


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_everything_becomes_plain_json():
    value = {"mae": np.float32(0.5), "sizes": np.array([4, 5]), "n": np.int64(3), "ok": np.bool_(True), "r2": np.nan,
             "file": Path("a")}  # fmt: skip
    assert json.loads(json.dumps(convert_to_serializable(value), allow_nan=False)) == {
        "mae": 0.5, "sizes": [4, 5], "n": 3, "ok": True, "r2": None, "file": "a"
    }  # fmt: skip


def test_nothing_is_written(tree):
    file = written(tree, [entry(), entry("images/gone.png")])
    before = sorted(os.walk(tree))
    records, _ = load_records(file)
    refuse_leaks({"train": records})
    assert sorted(os.walk(tree)) == before
