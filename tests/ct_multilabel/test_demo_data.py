"""The demo data: synthetic phantoms, no patient. The tree is CT-RATE's, affines are true, findings leave a trace."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

import demo_refusals
from conftest import load_script
from core.validation import DataReport
from ct import ct_rate
from ct.demo.anatomy import Canvas, sample_chest
from ct.demo.phantom import Scan, draw, nifti, write_phantom
from ct.labels import LABELS
from ct.volumes import load_volume, read_volume

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
    report = DataReport()
    _, volumes = ct_rate.find_volumes(tree, report)
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
    _, volumes = ct_rate.find_volumes(tree, DataReport())
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


@pytest.mark.parametrize("orientation", ["LPS", "LAS", "RAS", "LPI", "PIR"])
def test_affines_are_true(orientation, normal):
    """nibabel turns the file to RAS by its affine, and there the organs lie where they do in a patient."""
    image = nifti(normal.astype(np.int16), COARSE, orientation)
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    ras = nib.as_closest_canonical(image)
    data = np.asarray(ras.dataobj).astype(int)

    def at(right, front, head):
        """HU at a place, mm from the middle of the chest."""
        i, j, k = np.rint(np.linalg.inv(ras.affine) @ [right, front, head, 1])[:3].astype(int)
        return np.median(data[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2])

    assert at(60, 0, -95) > 30  # liver on the right
    assert at(-55, 40, -30) > 0 > -700 > at(55, 40, -30)  # the heart's apex on the left, in front
    assert at(0, -62, 0) > 120 > at(0, 62, 0)  # spine at the back
    assert at(50, -8, 95) < -700  # lungs reach up
    assert at(50, 0, -120) > 0  # and not down


def test_version_1_is_hu_only_with_its_metadata(script, tree, tmp_path):
    demo = {volume.name: volume for volume in script.demo_volumes(3, 8)}["train_2_a_1"]
    _, found = ct_rate.find_volumes(tree, DataReport())
    v1 = [volume for volume in found if not volume.path.is_relative_to(ct_rate.split_folder(tree, volume.split))]
    assert [volume.name for volume in v1] == [demo.name]
    image, row = nib.load(v1[0].path), v1[0].metadata
    write_phantom(tmp_path / "fixed.nii.gz", replace(demo.phantom, intercept=None))
    fixed = nib.load(tmp_path / "fixed.nii.gz")
    stored = np.asarray(image.dataobj.get_unscaled()).astype(int)
    assert stored.min() >= 0
    assert row["RescaleSlope"] == "1"
    np.testing.assert_array_equal(stored + int(row["RescaleIntercept"]), np.asarray(fixed.dataobj))
    np.testing.assert_array_equal(image.affine, fixed.affine)
    assert abs(image.get_fdata() - fixed.get_fdata()).mean() > 300  # the header misleads
    np.testing.assert_array_equal(read_volume(v1[0].path, row)[0], read_volume(tmp_path / "fixed.nii.gz", row)[0])


def test_chests_have_lungs_and_thighs_have_none(tree):
    _, volumes = ct_rate.find_volumes(tree, DataReport())
    for volume in volumes:
        chest = load_volume(volume.path, volume.metadata)
        assert chest.hu.shape[1:] == (128, 128)
        assert chest.warnings == [], (volume.name, chest.warnings)
        assert 1500 < chest.chest.lung_ml < 8000, (volume.name, chest.chest.lung_ml)
    for split in ct_rate.SPLITS:
        (name,) = ct_rate.read_names(ct_rate.no_chest_file(tree, split))
        thighs = load_volume(ct_rate.volume_file(tree, name))
        assert thighs.chest.lung_ml < 100
        assert "hardly any lung" in " ".join(thighs.warnings)


def test_both_intercepts_occur_and_about_5_percent_are_version_1(script):
    train = [volume for volume in script.demo_volumes(0, 100) if volume.split == "train"]
    v1 = [volume for volume in train if volume.phantom.intercept]
    assert {volume.row["RescaleIntercept"] for volume in v1} == {"-1024", "-8192"}
    assert 0.03 < len(v1) / len(train) < 0.08
    assert not [v for v in script.demo_volumes(0, 100) if v.split == "valid" and v.phantom.intercept]


@pytest.mark.parametrize("seed", [0, 1])
def test_prevalence_and_unknown_labels(script, seed):
    volumes = [volume for volume in script.demo_volumes(seed, 160) if volume.phantom.findings is not None]
    for split, number in (("train", 120), ("valid", 40)):
        first = {v.name: v.labels for v in volumes if v.split == split and v.name.endswith("_a_1")}
        labels = np.array(list(first.values()))
        assert len(labels) == number
        assert ((labels == 1).mean(0) > 0.13).all()
        assert ((labels == 1).mean(0) < 0.22).all()
        cells = np.array([v.labels for v in volumes if v.split == split])
        assert (0.005 < (cells == -1).mean() < 0.02) if split == "train" else (cells >= 0).all()
    for volume in volumes:
        for label, value in zip(LABELS, volume.labels, strict=True):
            assert value in (-1, int(label in volume.phantom.findings))
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
            assert one.labels == two.labels
            assert one.phantom.findings == two.phantom.findings
            assert one.phantom.stream == two.phantom.stream
            assert one.phantom.scan.spacing[0] != two.phantom.scan.spacing[0]
            assert one.phantom.scan.kernel > two.phantom.scan.kernel
        if "b_1" in volumes:
            second += 1
            assert len(set(volumes["a_1"].phantom.findings) ^ set(volumes["b_1"].phantom.findings)) <= 1
    assert 12 <= second <= 28


# What a finding does to the voxels that it changes by more than 100 HU: the direction, and where their middle lies, mm
# to the left, to the back and to the head, each from … to (None: anywhere, since the place varies).
ANYWHERE = (-60, 60, -60, 60, -80, 80)
TRACES = {
    "Medical material": (1, (-70, 90, -120, 0, -20, 90)),
    "Arterial wall calcification": (1, (-5, 40, -20, 50, -60, 60)),
    "Cardiomegaly": (1, (5, 60, -50, 20, -60, -5)),
    "Pericardial effusion": (1, (5, 60, -50, 20, -60, -5)),
    "Coronary artery wall calcification": (1, (0, 60, -60, 10, -50, 0)),
    "Hiatal hernia": (-1, (-20, 30, 5, 45, -80, -30)),
    "Lymphadenopathy": (1, (-25, 25, -40, 30, 10, 80)),
    "Lung nodule": (1, ANYWHERE),
    "Lung opacity": (1, ANYWHERE),
    "Pulmonary fibrotic sequela": (1, (-25, 25, -30, 40, 60, 110)),
    "Pleural effusion": (1, (-80, 80, 25, 85, -80, 10)),
    "Mosaic attenuation pattern": (0, ANYWHERE),
    "Peribronchial thickening": (1, (-30, 30, -25, 35, -40, 60)),
    "Consolidation": (1, (-80, 80, -50, 30, 0, 80)),
    "Bronchiectasis": (0, ANYWHERE),
    "Interlobular septal thickening": (1, ANYWHERE),
}


@pytest.mark.parametrize("label", TRACES)
def test_every_finding_leaves_its_trace(label, normal):
    """The same phantom with and without: voxels change over many slices, in the finding's direction, in its place."""
    change = draw([label], np.random.default_rng(8), COARSE)[0] - normal
    changed = abs(change) > 100
    assert changed.sum() > 150
    assert (changed.sum((1, 2)) > 2).sum() >= 8  # slices of 7 mm
    assert changed.mean() < 0.1
    direction, (right, left, front, back, foot, head) = TRACES[label]
    darker = (change[changed] < 0).mean()
    assert (darker < 0.35, 0.1 < darker < 0.8, darker > 0.5)[1 - direction]
    z, y, x = (
        (index.mean() - (number - 1) / 2) * side + middle
        for index, number, side, middle in zip(
            np.nonzero(changed), COARSE.shape, COARSE.spacing, COARSE.centre, strict=True
        )
    )
    assert right < x < left
    assert front < y < back
    assert foot < z < head


def test_emphysema_overinflates_and_atelectasis_takes_volume(normal):
    """Litres of voxels that are aired as a lung is, in the middle of the field; the diaphragm goes down, or up."""
    litre = np.prod(COARSE.spacing) / 1e6

    def aired(hu):
        return (hu < -600)[:, 15:70, 12:78].sum() * litre

    emphysema, atelectasis = (
        draw([label], np.random.default_rng(8), COARSE)[0] for label in ("Emphysema", "Atelectasis")
    )
    assert aired(emphysema) > 1.1 * aired(normal)
    assert aired(normal) > 1.05 * aired(atelectasis)
    assert ((emphysema < -950)[:, 30:60, 20:70].sum() - (normal < -950)[:, 30:60, 20:70].sum()) * litre > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_cardiothoracic_ratio(seed):
    """At most 0.5 in a normal heart, well above it in cardiomegaly."""
    for findings, low, high in (((), 0.39, 0.49), (["Cardiomegaly"], 0.58, 0.72)):
        chest = sample_chest(np.random.default_rng(seed), findings)
        canvas = Canvas((60, 140, 140), (5, 2.5, 2.5))
        canvas.ellipsoid(chest.heart, chest.heart_radii, 0, turn=chest.heart_turn)
        heart = (canvas.hu > -500).any((0, 1)).sum() * 2.5
        assert low < heart / (2 * chest.width) < high


def test_grids_show_the_same_anatomy():
    """A finding's place is in mm, whatever the voxels: two grids agree once one is brought to the other."""
    findings, coarse = ["Consolidation", "Mosaic attenuation pattern"], Scan((30, 64, 64), (9, 5.6, 5.6), noise=0)
    fine = Scan((90, 128, 128), (3, 2.8, 2.8), noise=0)
    one, two = (draw(findings, np.random.default_rng(4), scan)[0].astype(float) for scan in (coarse, fine))
    two = two.reshape(30, 3, 64, 2, 64, 2).mean((1, 3, 5))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.985
    assert np.median(abs(one - two)) < 30


def test_noise_is_as_asked():
    """20 HU asked for, measured in the chest as the difference from a volume without noise."""
    silent, noisy = (
        draw((), np.random.default_rng(0), Scan(noise=noise))[0][10:20, 60:70, 40:52].astype(float) for noise in (0, 20)
    )
    assert 15 < (noisy - silent).std() < 25


def test_unknown_finding_is_refused():
    with pytest.raises(ValueError, match="Pneumonia"):
        draw(["Pneumonia"], np.random.default_rng(0), COARSE)


def test_refuses_existing_data_and_foreign_files(script, tree, tmp_path):
    demo_refusals.refuses_existing_data_and_foreign_files(
        script, ["--patients", "4"], tree, tmp_path, "dataset/mine.txt"
    )


def test_overwrite_replaces_only_what_the_recipe_explains(script, tree, tmp_path):
    smaller = {"patients": 4, "seed": 3, "files": ["../../etc"]}
    demo_refusals.overwrites_only_what_the_recipe_explains(script, tree, tmp_path, smaller)


def test_too_few_patients_end_with_one_line(script, tmp_path, capsys):
    demo_refusals.refuses_impossible_numbers(script, tmp_path, ["--patients", "3"], capsys)
