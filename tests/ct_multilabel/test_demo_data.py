"""The demo data: synthetic phantoms, no patient. The tree is CT-RATE's, affines are true, every finding leaves a trace."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script

import chest_phantom
import ct_rate
from chest_phantom import Scan, draw
from core.args import UserError
from ct_volumes import LABELS

COARSE = Scan(shape=(40, 90, 90), spacing=(7.0, 4.0, 4.0), noise=0)  # cheap, and without noise


@pytest.fixture(scope="module")
def script():
    return load_script("ct_multilabel/make_demo_data.py")


@pytest.fixture(scope="module")
def tree(script, tmp_path_factory):
    """Eight phantoms, drawn by two processes."""
    folder = tmp_path_factory.mktemp("demo") / "CT-RATE"
    script.main(["--output", str(folder), "--patients", "8", "--seed", "3", "--workers", "2"])
    return folder


@pytest.fixture(scope="module")
def normal():
    """HU of a chest without findings, LPS."""
    return draw((), np.random.default_rng(8), COARSE)[0].astype(int)


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_find_volumes_reads_the_tree_and_leaves_out_no_chest_alone(tree):
    volumes, report = ct_rate.find_volumes(tree)
    assert [problem.reason for problem in report.problems] == ["in the no_chest list"] * 2
    names = {volume.name for volume in volumes}
    for split in ct_rate.SPLITS:
        left_out = ct_rate.read_names(ct_rate.no_chest_file(tree, split))
        labels = rows_of(ct_rate.labels_file(tree, split))
        assert list(labels[0]) == ["VolumeName", *LABELS]
        assert len(left_out) == 1
        assert {ct_rate.stem(row["VolumeName"]) for row in labels} == {n for n in names if split in n} | set(left_out)
    by_patient = {volume.patient: volume.split for volume in volumes}
    assert len(by_patient) == len({(volume.patient, volume.split) for volume in volumes}) == 8
    assert list(by_patient.values()).count("valid") == 2
    assert report.cases["valid"] >= 4
    assert {volume.name.split("_")[-1] for volume in volumes} == {"1", "2"}


def test_metadata_tell_the_truth(tree):
    volumes, _ = ct_rate.find_volumes(tree)
    for volume in volumes:
        image, row = nib.load(volume.path), volume.metadata
        assert image.get_data_dtype() == np.int16
        rows, columns, slices = (int(row[name]) for name in ("Rows", "Columns", "NumberofSlices"))
        assert image.shape == (columns, rows, slices)
        assert 48 <= slices <= 60
        spacing = [*json.loads(row["XYSpacing"]), float(row["ZSpacing"])]
        np.testing.assert_allclose(image.header.get_zooms(), spacing, rtol=1e-6)


def test_same_seed_same_bytes_whatever_the_number(script, tree, tmp_path):
    """Four patients drawn in this process equal the first four of eight that two processes drew."""
    script.main(["--output", str(tmp_path), "--patients", "4", "--seed", "3", "--workers", "1"])
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.nii.gz"))
    assert len(files) >= 10
    for file in files:
        assert (tmp_path / file).read_bytes() == (tree / file).read_bytes(), file
    for table in (ct_rate.labels_file, ct_rate.metadata_file, ct_rate.no_chest_file):
        few = table(tmp_path, "train").read_text().splitlines()
        assert set(few) <= set(table(tree, "train").read_text().splitlines())
    assert script.patient_volumes(3, 0) == script.patient_volumes(3, 0) != script.patient_volumes(4, 0)


def test_affines_are_true(script):
    """In each orientation: nibabel turns the file to RAS, and there the organs lie where they do in a patient."""
    for orientation in {"PIR", *script.ORIENTATIONS}:
        hu, spacing = draw((), np.random.default_rng(1), COARSE)
        image = script.nifti(hu, spacing, COARSE.centre, orientation)
        assert nib.aff2axcodes(image.affine) == tuple(orientation)
        ras = nib.as_closest_canonical(image)
        data = np.asarray(ras.dataobj).astype(int)

        def at(x, y, z, data=data, ras=ras):
            """HU at a place, mm in RAS from the middle of the chest."""
            i, j, k = np.rint(np.linalg.inv(ras.affine) @ [x, y, z, 1])[:3].astype(int)
            return np.median(data[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2])

        assert at(62, 10, -110) > 30  # liver: right
        assert at(-50, 40, -90) < -800  # stomach's air: left, in front
        assert at(-42, 50, -35) > 0 > at(55, 50, -35)  # the heart's apex: left, in front
        assert at(0, -62, 0) > 120 > at(0, -12, 0)  # spine: at the back
        assert at(62, -10, 100) < -700 or at(50, -10, 90) < -700  # apex of the lung: up
        assert at(62, -10, -120) > -200


def test_version_1_is_hu_only_with_its_metadata(script, tree):
    volumes = {volume.name: volume for volume in script.demo_volumes(3, 8)}
    found, _ = ct_rate.find_volumes(tree)
    v1 = [volume for volume in found if not volume.path.is_relative_to(tree / "dataset" / f"{volume.split}_fixed")]
    assert [volume.name for volume in v1] == ["train_2_a_1"]
    row = v1[0].metadata
    raw = np.asarray(nib.load(v1[0].path).dataobj.get_unscaled()).astype(int)
    assert raw.min() >= 0
    assert row["RescaleSlope"] == "1"
    demo = volumes["train_2_a_1"]
    hu, spacing = draw(demo.findings, np.random.default_rng(demo.stream), demo.scan)
    fixed = script.nifti(hu, spacing, demo.scan.centre, demo.orientation)
    np.testing.assert_array_equal(raw + int(row["RescaleIntercept"]), np.asarray(fixed.dataobj))
    np.testing.assert_array_equal(nib.load(v1[0].path).affine, fixed.affine)
    assert abs(nib.load(v1[0].path).get_fdata() - np.asarray(fixed.dataobj)).mean() > 300  # its header misleads


def test_both_intercepts_occur_and_about_5_percent_are_version_1(script):
    train = [volume for volume in script.demo_volumes(0, 100) if script.split_of(volume) == "train"]
    v1 = [volume for volume in train if volume.version == "v1"]
    assert {volume.row["RescaleIntercept"] for volume in v1} == {"-1024", "-8192"}
    assert 0.03 < len(v1) / len(train) < 0.08
    assert not [v for v in script.demo_volumes(0, 100) if script.split_of(v) == "valid" and v.version == "v1"]


@pytest.mark.parametrize("seed", [0, 1])
def test_prevalence_and_unknown_labels(script, seed):
    volumes = [volume for volume in script.demo_volumes(seed, 160) if volume.findings is not None]
    for split, number in (("train", 120), ("valid", 40)):
        first = {v.name: v.labels for v in volumes if script.split_of(v) == split and v.name.endswith("_a_1")}
        labels = np.array(list(first.values()))
        assert len(labels) == number
        assert ((labels == 1).mean(0) > 0.13).all()
        assert ((labels == 1).mean(0) < 0.22).all()
        cells = np.array([v.labels for v in volumes if script.split_of(v) == split])
        assert (0.005 < (cells == -1).mean() < 0.02) if split == "train" else (cells >= 0).all()
    for volume in volumes:
        for label, value in zip(LABELS, volume.labels, strict=True):
            assert value in (-1, int(label in volume.findings))
    together = np.corrcoef(np.array([v.labels for v in volumes]).T) - np.eye(len(LABELS))
    assert abs(together).max() < 0.35  # drawn independently


def test_forty_patients_have_both_classes_in_both_splits(script):
    for seed in range(5):
        findings = [script.patient_findings(seed, patient) for patient in range(40)]
        for split in ct_rate.SPLITS:
            members = [found for patient, found in enumerate(findings) if script.patient_split(patient) == split]
            for label in LABELS:
                assert 2 <= sum(label in found for found in members) <= len(members) - 2, label


def test_scans_and_reconstructions(script):
    """Reconstructions of a scan share anatomy and labels; the second scan differs in one finding at most."""
    second = 0
    for patient in range(60):
        volumes = {volume.name.split("_", 2)[2]: volume for volume in script.patient_volumes(5, patient)}
        for scan in {name[0] for name in volumes}:
            one, two = volumes[f"{scan}_1"], volumes[f"{scan}_2"]
            assert (one.findings, one.labels, one.stream) == (two.findings, two.labels, two.stream)
            assert one.scan.spacing[0] != two.scan.spacing[0]
            assert one.scan.kernel > two.scan.kernel
        if "b_1" in volumes:
            second += 1
            assert len(set(volumes["a_1"].findings) ^ set(volumes["b_1"].findings)) <= 1
    assert 12 <= second <= 28


# (HU of most of what changes, in what direction; where it lies on average: mm to the left, to the back, to the head)
TRACES = {
    "Medical material": ("brighter", 1500, None),
    "Arterial wall calcification": ("brighter", 500, None),
    "Cardiomegaly": ("brighter", 600, (30, -20, -35)),
    "Pericardial effusion": ("brighter", 500, (20, -20, -35)),
    "Coronary artery wall calcification": ("brighter", 400, (20, -25, -25)),
    "Hiatal hernia": ("darker", -300, (5, 25, -55)),
    "Lymphadenopathy": ("brighter", 100, (0, 0, 50)),
    "Emphysema": ("darker", -80, None),
    "Atelectasis": ("brighter", 500, None),
    "Lung nodule": ("brighter", 600, None),
    "Lung opacity": ("brighter", 150, None),
    "Pulmonary fibrotic sequela": ("brighter", 400, (0, 5, 95)),
    "Pleural effusion": ("brighter", 700, None),
    "Mosaic attenuation pattern": ("both", 80, None),
    "Peribronchial thickening": ("brighter", 300, (0, 5, 10)),
    "Consolidation": ("brighter", 600, None),
    "Bronchiectasis": ("both", 80, None),
    "Interlobular septal thickening": ("brighter", 250, None),
}


@pytest.mark.parametrize("label", LABELS)
def test_every_finding_leaves_its_trace(label, normal):
    """The same phantom with and without: many voxels change, over many slices, in the direction of the finding."""
    hu = draw([label], np.random.default_rng(8), COARSE)[0].astype(int)
    change = hu - normal
    print(label, (abs(change) > 100).sum(), np.percentile(change[abs(change) > 100], [10, 50, 90]),
          [round(float((w - (n - 1) / 2) * s + c)) for w, n, s, c in zip(
              [i.mean() for i in np.nonzero(abs(change) > 100)], COARSE.shape, COARSE.spacing, COARSE.centre)],
          ((abs(change) > 100).sum((1, 2)) > 3).sum())
    direction, size, place = TRACES[label]


def test_unknown_finding_is_refused():
    with pytest.raises(ValueError, match="Pneumonia"):
        draw(["Pneumonia"], np.random.default_rng(0), COARSE)
