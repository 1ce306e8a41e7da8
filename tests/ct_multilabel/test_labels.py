"""Labels as data: any table's, in its order; what is misspelt, unused or untaught is named, and said nowhere else."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT
from core.errors import UserError
from core.losses.classification import UNKNOWN as UNKNOWN_IN_LOSSES
from core.validation import DataReport
from ct import store as slice_store
from ct.ct_rate import find_volumes, labels_file, read_labels
from ct.labels import LABELS, UNKNOWN, in_order, nearest, official, with_labels
from ct.store import StoredVolume, check_files, read_manifest, write_manifest
from files import read_csv, read_json
from launch import run

spec = importlib.util.spec_from_file_location("knees", Path(__file__).with_name("other_subject.py"))
knees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(knees)


def problems(report) -> list[tuple[str, str, str]]:
    """(column, action, detail) of each problem of label tables."""
    return [(p.where.rpartition(", column ")[2], p.action, p.detail) for p in report.problems]


def table(file: Path, *rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return file


# --------------------------------------------------------------------------------------------------------------- names


def test_the_order_of_the_18_and_what_is_official():
    assert UNKNOWN == UNKNOWN_IN_LOSSES
    assert in_order(reversed(LABELS)) == LABELS
    assert in_order(["b", "a", "b"]) == ("b", "a")
    assert official(list(LABELS))
    assert not official(LABELS[1:])
    assert not official(("b", "a"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Lung nodules", "Lung nodule"), ("cardiomegaly", "Cardiomegaly"), ("Hiatal_hernia", "Hiatal hernia"),
     ("Cardiomegaly", None), ("Joint effusion", None), ("Patient age", None)],
)  # fmt: skip
def test_a_misspelt_name_is_recognised(name, expected):
    assert nearest(name, LABELS) == expected


def test_labels_in_another_order_with_gaps():
    volume = StoredVolume(Path("x"), "x", "p", "s", "train", 4, np.array([1, 0, -1], np.int8))
    (changed,) = with_labels([volume], ("a", "b", "c"), ("c", "d", "a"))
    assert changed.labels.tolist() == [-1, -1, 1]
    assert changed.labels.dtype == np.int8
    assert with_labels([volume], ["a", "b", "c"], ("a", "b", "c"))[0] is volume


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_table_of_ones_own_labels(tmp_path):
    header = ["VolumeName", "Stone ", "Sex", "lung nodules", "Scar", "split"]
    file = table(tmp_path / "t.csv", header, ["a.mha", 1, "F", 0, -1, 1], ["b.mha", "0.0", "M", 1, 0, 1])
    report = DataReport()
    labels, found = read_labels(file, report)
    assert labels == ("Stone", "lung nodules", "Scar")
    assert {name: values.tolist() for name, values in found.items()} == {"a": [1, 0, -1], "b": [0, 1, 0]}
    assert problems(report) == [
        ("'Sex'", "left out", "holds 'F'"),
        ("'lung nodules'", "not renamed", "expected 'Lung nodule'"),
        ("'split'", "left out", "rename it if it is a label"),  # a column of the manifest
    ]


def test_a_slip_in_a_column_of_labels_is_an_error(tmp_path):
    rows = [["a", 1, 40], ["b", 0, 41], ["c", "x", 0]]
    with pytest.raises(UserError, match=r"line 4, c: Stone is 'x'; write 0, 1 or -1"):
        read_labels(table(tmp_path / "t.csv", ["VolumeName", "Stone", "Age"], *rows), DataReport())
    with pytest.raises(UserError, match="several columns Stone"):
        read_labels(table(tmp_path / "t.csv", ["VolumeName", "Stone", "Stone "], ["a", 1, 1]), DataReport())


def test_tables_of_two_splits_with_different_labels(tmp_path):
    for split, label in (("train", "Meniscus tear"), ("valid", "Meniscus tears")):
        file = tmp_path / "dataset" / f"{split}_fixed" / f"{split}_knee" / f"{split}_knee.mha"
        file.parent.mkdir(parents=True)
        file.touch()
        table(labels_file(tmp_path, split), ["VolumeName", "Scar", label], [file.name, 0, 1])
    report = DataReport()
    labels, (train, valid) = find_volumes(tmp_path, report)
    assert labels == ("Scar", "Meniscus tear", "Meniscus tears")
    assert (train.labels.tolist(), valid.labels.tolist()) == ([0, 1, -1], [0, -1, 1])
    assert problems(report) == [
        ("'Meniscus tears'", "unknown in this split", "it has 'Meniscus tear'"),
        ("'Meniscus tear'", "unknown in this split", "it has 'Meniscus tears'"),
    ]
    table(labels_file(tmp_path, "train"), ["VolumeName", "Sex"], ["train_knee.mha", "F"])
    table(labels_file(tmp_path, "valid"), ["VolumeName", "Sex"], ["valid_knee.mha", "F"])
    with pytest.raises(UserError, match="no column of the label tables holds 0, 1 and -1"):
        find_volumes(tmp_path, DataReport())


# ------------------------------------------------------------------------------------------------------------- workers


def test_processes_that_extract_slices_load_no_torch():
    code = f"import sys; sys.path[:0] = {[str(ROOT / 'ct_multilabel'), str(ROOT)]}\n"
    code += "import ct.volumes, ct.extraction, extract_slices\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_processes_open_each_file_once_between_them(tmp_path, monkeypatch):
    opened, report = [], DataReport()
    volumes = [StoredVolume(tmp_path / f"{i}.h5", f"{i}", "p", "s", "train", 4, np.zeros(1)) for i in range(5)]
    monkeypatch.setattr(slice_store, "holds_slices", lambda file: opened.append(file) or file.stem != "3")
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [[True] * 3, *mine])
    with pytest.raises(UserError, match=r"3\.h5: missing or damaged"):
        check_files(volumes, report, SimpleNamespace(process_index=1, num_processes=2))
    assert sorted(file.stem for file in opened) == ["1", "3"]
    assert [p.where for p in report.problems] == [str(tmp_path / "3.h5")]


# ------------------------------------------------------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """What the scripts write for three labels of knees."""
    folder = tmp_path_factory.mktemp("clinic")
    knees.draw(folder / "data")
    for line in knees.COMMANDS:
        script, *arguments = line.format(data=folder / "data", out=folder).split()
        done = run(f"ct_multilabel/{script}", *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_model_has_the_labels_that_it_was_taught(clinic):
    labels, volumes = read_manifest(clinic / "slices")
    assert labels == (*knees.LABELS, "Meniscus tears")
    assert {(volume.split, volume.labels[3] == -1) for volume in volumes} == {("train", True), ("valid", False)}
    config = read_json(clinic / "run" / "best" / "config.json")
    assert config["kind"] == "slice classifier"
    assert config["labels"] == list(config["prevalence"]) == list(config["calibration"]["thresholds"])
    assert config["labels"] == list(knees.LABELS)
    cases = read_json(clinic / "run" / "data_report.json")["cases"]
    assert config["taught"] == {"labels": dict.fromkeys(knees.LABELS, cases["train"]) | {"Meniscus tears": 0}}
    assert "val/crg" not in (clinic / "run" / "metrics.jsonl").read_text()


def test_evaluation_and_prediction_follow_the_model(clinic):
    metrics = read_json(clinic / "evaluation" / "metrics.json")
    assert list(metrics["metrics"]["per_label"]) == list(knees.LABELS)
    assert "crg" not in (clinic / "evaluation" / "metrics.json").read_text()
    tear = metrics["by_label"][2]
    assert (tear["cases"], tear["auroc"]["estimate"]) == (0, None)  # the table of valid spells it in another way
    known = [row["auroc"]["estimate"] for row in metrics["by_label"][:2]]
    assert metrics["metrics"]["macro"]["auroc"] == pytest.approx(np.mean(known))
    told = read_json(clinic / "evaluation" / "data_report.json")["problems"]
    assert [(p["reason"], p["detail"]) for p in told] == [
        ("label that the model does not know", "the model knows 'Meniscus tear'"),
        ("label of the model without a known case", ""),
    ]
    rows = read_csv(clinic / "predictions" / "predictions.csv")
    assert [row["label"] for row in rows] == list(knees.LABELS)
    assert not list(clinic.rglob("results.json"))


def test_an_untaught_label_of_the_18_is_said_nowhere(train, store, demo_tree, tmp_path):
    """17 labels remain: without CRG, and without a submission, which needs them all."""
    labels, volumes = read_manifest(store)
    for volume in volumes:
        volume.labels[3] = UNKNOWN if volume.split == "train" else volume.labels[3]
    copy = tmp_path / "slices"
    copy.mkdir()
    (copy / "settings.json").write_bytes((store / "settings.json").read_bytes())
    for split in ("train", "valid"):
        (copy / split).symlink_to(store / split)
    for volume in volumes:
        volume.file = copy / volume.file.relative_to(store)
    write_manifest(copy, labels, volumes)
    out, results = tmp_path / "out", tmp_path / "out" / "results.json"
    out.mkdir()
    results.write_text("of another model")
    done = train(tmp_path / "run", "--slices_path", copy, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    config = read_json(tmp_path / "run" / "best" / "config.json")
    assert config["taught"]["labels"][LABELS[3]] == 0
    kept = [label for label in LABELS if label != LABELS[3]]
    assert config["labels"] == kept
    model = ("--checkpoint", tmp_path / "run", "--output", out)
    scan = demo_tree / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz"
    for script, arguments in (("evaluate", ("--slices_path", copy, "--bootstrap", 20)), ("predict", ("--input", scan))):
        done = run(f"ct_multilabel/{script}.py", *model, *arguments)
        assert done.returncode == 0, done.stderr
        assert f"no results.json: it needs all 18 labels; not taught: {LABELS[3]}" in done.stdout
        assert not results.exists()
        if script == "evaluate":
            assert [row["label"] for row in read_json(out / "metrics.json")["by_label"]] == kept
            assert LABELS[3] not in (out / "report.html").read_text(encoding="utf-8")
            assert LABELS[3] not in (out / "predictions.csv").read_text(encoding="utf-8")
    assert [row["label"] for row in read_csv(out / "predictions.csv")] == kept
