"""The CT-RATE tree and its tables: what is found, what is refused, and that no patient stands in two splits."""

import csv
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.validation import DataReport
from ct.ct_rate import (
    find_files,
    find_volumes,
    labels_file,
    metadata_file,
    no_chest_file,
    patient_of,
    read_labels,
    stem,
    volume_file,
)
from ct.labels import LABELS


def write_labels(file, rows, columns=("VolumeName", *LABELS)):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(columns)
        writer.writerows(rows)


def make_tree(root, names, version="fixed", labelled=None):
    for name in names:
        file = volume_file(root, name, version)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    for split in ("train", "valid"):
        rows = [[f"{n}.nii.gz", *[0] * 18] for n in (labelled or names) if n.startswith(split)]
        write_labels(labels_file(root, split), rows)


def test_names():
    assert stem("a/b/train_1_a_1.nii.gz") == "train_1_a_1"
    assert stem("x.mha") == "x"
    assert patient_of("train_12_b_2.nii.gz") == "train_12"
    assert patient_of("somebody.nii.gz") is None
    file = volume_file(Path("r"), "valid_7_c_2")
    assert file == Path("r/dataset/valid_fixed/valid_7/valid_7_c/valid_7_c_2.nii.gz")
    assert volume_file(Path("r"), "train_7_c_2.nii.gz", "v1").parts[2] == "train"
    with pytest.raises(ValueError, match="no CT-RATE name"):
        volume_file(Path("r"), "somebody")


def test_labels_are_matched_by_name_and_minus_one_is_kept(tmp_path):
    file = tmp_path / "labels.csv"
    columns = ["VolumeName", *reversed(LABELS)]
    write_labels(file, [["v.nii.gz", *[1, "0", "-1", "1.0"], *[0] * 14]], columns)
    labels, found = read_labels(file, DataReport())
    assert labels == LABELS
    assert list(found["v"]) == [0] * 14 + [1, -1, 0, 1]


@pytest.mark.parametrize("value", ["", "2", "yes", "nan", "0.5"])
def test_an_absent_or_odd_label_is_an_error_that_names_it(tmp_path, value):
    write_labels(tmp_path / "labels.csv", [["v.nii.gz", 0, value, *[0] * 16]])
    with pytest.raises(UserError, match=r"labels\.csv, line 2, v\.nii\.gz: Arterial wall calcification is"):
        read_labels(tmp_path / "labels.csv", DataReport())


def test_a_missing_column_a_short_row_and_a_contradiction_are_errors(tmp_path):
    file = tmp_path / "labels.csv"
    write_labels(file, [], LABELS)
    with pytest.raises(UserError, match="no column VolumeName"):
        read_labels(file, DataReport())
    write_labels(file, [["v.nii.gz", *[0] * 17]])
    with pytest.raises(UserError, match=r"line 2.*Interlobular septal thickening is ''"):
        read_labels(file, DataReport())
    write_labels(file, [["v.nii.gz", *[0] * 18], ["v.nii.gz", *[1] * 18]])
    with pytest.raises(UserError, match="v has two lines"):
        read_labels(file, DataReport())
    with pytest.raises(UserError, match="no such file; check the path"):
        read_labels(tmp_path / "none.csv", DataReport())


def test_the_tree(tmp_path):
    make_tree(tmp_path, ["train_10_a_1", "train_2_a_1", "valid_1_a_1", "valid_1_a_2"])
    metadata_file(tmp_path, "valid").parent.mkdir(parents=True)
    metadata_file(tmp_path, "valid").write_text("VolumeName,RescaleSlope\nvalid_1_a_1.nii.gz,1\n")
    report = DataReport()
    _, volumes = find_volumes(tmp_path, report)
    assert [v.name for v in volumes] == ["train_2_a_1", "train_10_a_1", "valid_1_a_1", "valid_1_a_2"]
    assert [v.patient for v in volumes] == ["train_2", "train_10", "valid_1", "valid_1"]
    assert volumes[2].metadata["RescaleSlope"] == "1"
    assert volumes[3].metadata is None
    assert report.cases == {"train": 2, "valid": 2}
    assert not report.problems


def test_fixed_before_v1_and_what_is_left_out(tmp_path):
    names = ["train_1_a_1", "train_2_a_1", "train_3_a_1", "valid_1_a_1"]
    make_tree(tmp_path, names, labelled=[n for n in names if n != "train_3_a_1"])
    for name in ("train_1_a_1", "train_4_a_1"):
        file = volume_file(tmp_path, name, "v1")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    rows = [[f"{n}.nii.gz", *[0] * 18] for n in ("train_1_a_1", "train_2_a_1", "train_4_a_1")]
    write_labels(labels_file(tmp_path, "train"), rows)
    no_chest_file(tmp_path, "train").parent.mkdir(parents=True, exist_ok=True)
    no_chest_file(tmp_path, "train").write_text("train_2_a_1.nii.gz\n")
    report = DataReport()
    _, volumes = find_volumes(tmp_path, report)
    assert [v.name for v in volumes] == ["train_1_a_1", "train_4_a_1", "valid_1_a_1"]
    assert "train_fixed" in volumes[0].path.parts
    assert set(report.counts()) == {("in the no_chest list", "left out"), ("no labels", "left out")}


def test_a_patient_in_both_splits_stays_in_valid_only(tmp_path):
    """Trees of other data sets name patients by folder, and one may stand in both."""
    for split, patient in (("train", "anna"), ("train", "bert"), ("valid", "anna")):
        folder = tmp_path / "dataset" / f"{split}_fixed" / patient
        folder.mkdir(parents=True)
        (folder / f"{split}_{patient}.mha").write_bytes(b"")
    write_labels(labels_file(tmp_path, "train"), [["train_anna.mha", *[0] * 18], ["train_bert.mha", *[0] * 18]])
    write_labels(labels_file(tmp_path, "valid"), [["valid_anna.mha", *[1] * 18]])
    report = DataReport()
    _, volumes = find_volumes(tmp_path, report)
    assert [(v.name, v.patient, v.split) for v in volumes] == [
        ("train_bert", "bert", "train"),
        ("valid_anna", "anna", "valid"),
    ]
    assert report.counts() == {("patient also in valid", "left out of train"): 1}
    assert np.all(volumes[1].labels == 1)


def test_an_empty_tree_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_volumes(tmp_path / "none", DataReport())
    with pytest.raises(UserError, match="holds no labelled volume"):
        find_volumes(tmp_path, DataReport())


def test_files_and_dicom_folders(tmp_path):
    for name in ("b/x.nii.gz", "a/y.MHA", "c/series/1.dcm", "c/series/2.dcm", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    assert find_files(tmp_path) == [tmp_path / "a/y.MHA", tmp_path / "b/x.nii.gz", tmp_path / "c/series"]
    assert find_files(tmp_path / "b/x.nii.gz") == [tmp_path / "b/x.nii.gz"]
