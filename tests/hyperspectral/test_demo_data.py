"""The demo data: synthetic eyes, no patient. Files are as real ones, spectra are blood's, masks tell the truth."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

import demo_refusals
from conftest import load_script
from core.demo_data import RECIPE
from hsi.demo import optics as retina_optics
from hsi.demo import phantom as phantom
from hsi.wavelengths import DEFAULT_WAVELENGTHS, to_rgb

NM = np.array(DEFAULT_WAVELENGTHS)


@pytest.fixture(scope="module")
def script():
    return load_script("hyperspectral/make_demo_data.py")


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """Nine small eyes, drawn by two processes."""
    output = tmp_path_factory.mktemp("demo") / "retina"
    script.main(["--output", str(output), "--cases", "9", "--size", "60", "--seed", "3", "--workers", "2"])
    return output


def rows_of(folder):
    with open(folder / "dataset.csv", newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def images(file):
    with h5py.File(file) as cube:
        return cube["Cube/Images"][()]


def streams(number):
    """Of a patient and an eye."""
    return np.random.default_rng([number, 0]), np.random.default_rng([number, 1])


def drawn(number, lesion=False, left=False, size=120, wavelengths=DEFAULT_WAVELENGTHS):
    return phantom.draw(*streams(number), lesion, left, size, wavelengths)


def maps_of(number, size):
    """What `drawn` lays out for an eye without lesions."""
    patient, eye = streams(number)
    person = phantom.sample_patient(patient)
    anatomy, background, *_ = eye.spawn(5)
    form = phantom.sample_eye(anatomy, person)
    return person, form, phantom.lay_out(background, person, form, phantom.Lesions([], [], 0.0), size)


def band(cube, nm):
    return cube[list(NM).index(nm)]


# ------------------------------------------------------------------------------------------------------------- files


def test_files_are_as_the_table_says(script, folder):
    rows = rows_of(folder)
    assert list(rows[0]) == ["ID", "label", "hs_file", "rgb_file", "mask_file", "patient", "split"]
    assert len({row["ID"] for row in rows}) == 9
    for row in rows:
        assert row["hs_file"].removeprefix("cubes/")[:5] == row["patient"] == row["ID"][:5]
        with h5py.File(folder / row["hs_file"]) as file:
            dataset = file["Cube/Images"]
            assert (dataset.shape, dataset.dtype, dataset.chunks) == ((30, 60, 60), np.float32, None)
            assert dataset.compression is None
            cube = dataset[()]
        assert 0 <= cube.min() < 0.01
        assert 0.2 < cube.max() <= 1
        picture, mask = (np.asarray(Image.open(folder / row[column])) for column in ("rgb_file", "mask_file"))
        np.testing.assert_array_equal(picture, to_rgb(cube, NM))
        assert (mask.shape, mask.dtype) == ((60, 60), np.uint8)
        assert (phantom.LESION in mask) == (row["label"] == "lesion")
        assert set(range(4)) <= set(np.unique(mask)) <= set(range(len(phantom.CLASSES)))
    listed = {row[column] for row in rows for column in ("hs_file", "rgb_file", "mask_file")}
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == listed | {"dataset.csv", RECIPE}
    known = {path.as_posix() for path in script.files_of(json.loads((folder / RECIPE).read_text()))}
    assert known == written - {RECIPE} | {"dataset_stats.json"}  # which cubes.py writes there
    assert "synthetic" in (folder / RECIPE).read_text()


def test_same_seed_same_bytes_whatever_the_number(script, folder, tmp_path):
    """Six eyes drawn in this process equal the first six of nine that two processes drew."""
    script.main(["--output", str(tmp_path), "--cases", "6", "--size", "60", "--seed", "3", "--workers", "1"])
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.suffix in (".h5", ".png")]
    assert len(files) == 18
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file
    assert rows_of(tmp_path) == rows_of(folder)[:6]


def test_another_seed_draws_other_eyes(folder, script, tmp_path):
    script.main(["--output", str(tmp_path), "--cases", "6", "--size", "60", "--seed", "4", "--workers", "1"])
    ours = {row["ID"]: row["hs_file"] for row in rows_of(folder)}
    shared = [row for row in rows_of(tmp_path) if row["ID"] in ours]
    assert shared
    for row in shared:
        assert not np.array_equal(images(tmp_path / row["hs_file"]), images(folder / ours[row["ID"]]))


@pytest.mark.parametrize("seed", range(3))
def test_splits(script, seed):
    """No patient in two splits, each split near its share, both labels everywhere, even among the fewest cases."""
    cases = script.demo_cases(seed, 120)
    split_of = {case.patient: case.split for case in cases}
    assert all(split_of[case.patient] == case.split for case in cases)
    assert len({case.id for case in cases}) == 120
    for split, share in (("train", 0.65), ("valid", 0.1), ("test", 0.25)):
        labels = [case.label for case in cases if case.split == split]
        assert abs(len(labels) / 120 - share) < 0.04
        assert abs(list(split_of.values()).count(split) / len(split_of) - share) < 0.03
        assert abs(labels.count("lesion") - labels.count("normal")) <= 1
        assert len({case.label for case in cases[: script.FEWEST] if case.split == split}) == 2
    eyes = [sum(case.patient == patient for case in cases) for patient in split_of]
    assert set(eyes) == {1, 2}


def test_wavelengths_are_the_bands(script, tmp_path):
    arguments = ["--cases", "6", "--size", "40", "--workers", "1", "--wavelengths", "500:600:20"]
    script.main(["--output", str(tmp_path), *arguments])
    assert images(tmp_path / rows_of(tmp_path)[0]["hs_file"]).shape == (6, 40, 40)


def test_refuses_existing_data_and_foreign_files(script, folder, tmp_path):
    demo_refusals.refuses_existing_data_and_foreign_files(script, ["--cases", "6"], folder, tmp_path, "cubes/mine.txt")


def test_overwrite_replaces_only_what_the_recipe_explains(script, folder, tmp_path):
    measured = shutil.copytree(folder, tmp_path / "measured")
    (measured / "dataset_stats.json").write_text("{}")  # of cubes that will be gone
    demo_refusals.overwrites_only_what_the_recipe_explains(script, measured, tmp_path, {"cases": 6, "seed": 3})


@pytest.mark.parametrize(
    "arguments", [["--cases", "5"], ["--size", "19"], ["--wavelengths", "300,500"], ["--wavelengths", "550,1100"]]
)
def test_impossible_numbers_end_with_one_line(script, tmp_path, arguments, capsys):
    demo_refusals.refuses_impossible_numbers(script, tmp_path, arguments, capsys)


# ------------------------------------------------------------------------------------------------------------ optics


def test_haemoglobin():
    """Peaks at 540 and 580 (577) nm with oxygen, one near 555 without; equal at the isosbestic points; Hb's 760 nm."""
    nm = np.arange(500.0, 621, 10)
    oxygenated, deoxygenated = retina_optics.blood(nm, 1), retina_optics.blood(nm, 0)
    peaks = [float(nm[i]) for i in range(1, 12) if oxygenated[i] > max(oxygenated[i - 1], oxygenated[i + 1])]
    assert peaks == [540, 580]
    assert 545 <= nm[deoxygenated.argmax()] <= 565
    for isosbestic in (500, 530, 570, 800):
        one, other = (retina_optics.blood([isosbestic], oxygen)[0] for oxygen in (1, 0))
        assert abs(one / other - 1) < 0.08, isosbestic
    assert oxygenated[4] == pytest.approx(28.5, rel=0.01)  # 1/mm at 540 nm: 53 200 · ln 10 · 150/64 500 / 10
    assert retina_optics.blood([760], 0) > 1.1 * retina_optics.blood([730], 0)
    np.testing.assert_allclose(retina_optics.blood(nm, 0.3), 0.3 * oxygenated + 0.7 * deoxygenated)


def test_other_spectra():
    assert retina_optics.melanin([550, 700]) == pytest.approx([1, (550 / 700) ** 3.3])
    yellow = retina_optics.macular_pigment(NM)
    assert NM[yellow.argmax()] in (450, 460, 470)
    assert yellow[NM >= 540].max() < 0.01
    assert (np.diff(retina_optics.lens(NM)) < 0).all()


def test_vessels_dip_twice_where_oxygenated_blood_absorbs():
    """Of each eye's vessels against the retina beside them: more is lost at 540 and 580 nm than between, far more than
    at 630 nm."""
    for number in range(3):
        cube, mask = drawn(number, size=200)
        vessel = mask == phantom.VESSEL
        beside = binary_dilation(vessel, iterations=3) & (mask == phantom.RETINA)
        loss = {
            nm: np.log(band(cube, nm)[beside].mean() / band(cube, nm)[vessel].mean()) for nm in (540, 560, 580, 630)
        }
        assert loss[540] > 1.08 * loss[560]
        assert loss[580] > 1.08 * loss[560]
        assert loss[560] > 3 * loss[630]


def test_arteries_hold_more_oxygen_and_less_blood_than_veins():
    """Optical density at 650 nm over that at 850 nm, from the same eye with and without its vessels: both are so weak
    that the ratio is the blood's own, whatever a vessel's width."""
    for number in range(3):
        person, form, maps = maps_of(number, 200)
        bare = maps._replace(arterial=0 * maps.arterial, venous=0 * maps.venous)
        gain = np.ones(len(NM))
        cube, without = (phantom.reflected(each, person, gain, NM).astype(float) for each in (maps, bare))
        ratio, width = {}, {}
        for kind, other in (("artery", "vein"), ("vein", "artery")):
            cover, crossing = (phantom.painted_vessels(form.vessels[name], 200)[1] for name in (kind, other))
            inside = (cover > 0.95) & (crossing == 0) & (maps.disc == 0)
            lost = {nm: np.log(band(without, nm)[inside] / band(cube, nm)[inside]).mean() for nm in (650, 850)}
            ratio[kind] = lost[650] / lost[850]
            width[kind] = max(vessel.radius[0] for vessel in form.vessels[kind])
        assert ratio["vein"] > 1.8 * ratio["artery"]
        assert width["vein"] > 1.2 * width["artery"]


def test_patients_differ_and_eyes_of_one_agree():
    people = [phantom.sample_patient(np.random.default_rng(number)) for number in range(60)]
    melanin, lens, blood = (
        np.array([getattr(p, name) for p in people]) for name in ("melanin", "lens", "choroid_blood")
    )
    assert np.quantile(melanin, 0.9) > 2 * np.quantile(melanin, 0.1)
    assert np.ptp(lens) > 1
    assert blood.std() / blood.mean() > 0.25
    assert all(0.4 < p.vein_oxygen < p.artery_oxygen - 0.15 < p.artery_oxygen <= 0.99 for p in people)
    right, left = (phantom.draw(np.random.default_rng(1), np.random.default_rng(eye), False, False, 60, NM)[0]
                   for eye in (2, 3))  # fmt: skip
    assert not np.array_equal(right, left)


# ----------------------------------------------------------------------------------------------------------- anatomy


@pytest.mark.parametrize("left", [False, True])
def test_disc_lies_towards_the_nose(left):
    """To the right in a right eye, as a photographer sees it; and it is the brightest part."""
    cube, mask = drawn(1, left=left)
    rows, columns = np.nonzero(mask == phantom.DISC)
    assert (columns.mean() < 60) == left
    assert abs(rows.mean() - 60) < 15
    assert band(cube, 540)[mask == phantom.DISC].mean() > 3 * band(cube, 540)[mask == phantom.RETINA].mean()


def test_fovea_is_dark_blue_free_of_vessels_and_opposite_of_the_disc():
    for number in range(4):
        person, form, maps = maps_of(number, 200)
        fovea = abs(phantom.pixels(200) - form.fovea) < 0.08
        assert maps.vessel[fovea].max() == 0
        assert form.fovea.real < form.disc.real - 0.5
        cube = phantom.reflected(maps, person, np.ones(len(NM)), NM)
        around = (abs(abs(phantom.pixels(200) - form.fovea) - 0.3) < 0.04) & (maps.vessel == 0)
        for nm, factor in ((460, 0.8), (540, 0.95)):
            assert band(cube, nm)[fovea].mean() < factor * band(cube, nm)[around].mean()


def test_vessels_of_a_kind_do_not_cross():
    """Points of different branches are apart, but for where one leaves the other."""
    _, form, _ = maps_of(5, 20)
    for tree in form.vessels.values():
        assert len(tree) > 15
        for number, vessel in enumerate(tree):
            for other in tree[:number]:
                away = abs(vessel.points[40:, None] - other.points[40:])
                assert not away.size or (away < 0.004).sum() <= 3


def test_the_border_is_dark_and_noisy():
    cube, mask = drawn(2)
    outside = cube[:, abs(phantom.pixels(120)) > 1.02]
    assert 0 < outside.std() < 0.005
    assert outside.mean() < 0.003
    assert cube.mean(axis=0)[mask > 0].min() > 5 * outside.mean()
    assert 0.55 < (mask > 0).mean() < 0.8


# ----------------------------------------------------------------------------------------------------------- lesions


def test_a_lesion_changes_what_its_mask_covers_and_nothing_else():
    seen = []
    for number in range(6):
        (normal, plain), (cube, mask) = drawn(number), drawn(number, lesion=True)
        lesion = mask == phantom.LESION
        assert phantom.LESION not in plain
        np.testing.assert_array_equal(mask[~lesion], plain[~lesion])
        far = ~binary_dilation(lesion, iterations=3)
        np.testing.assert_array_equal(cube[:, far], normal[:, far])
        assert 0.015 < lesion.sum() / (mask > 0).sum() < 0.07
        change = np.log((cube[:, lesion] + 0.003) / (normal[:, lesion] + 0.003))
        at_560, at_700 = (change[list(NM).index(nm)] for nm in (560, 700))
        assert (abs(at_560) > 0.25).mean() > 0.85  # of every part of a lesion, in the green
        assert abs(np.median(at_700)) < 0.35 < abs(np.median(at_560))
        seen.append((at_560 > 0.25).any())
    assert any(seen)  # exudates are brighter
    assert not all(seen)  # and not in every eye


def test_sizes_show_the_same_eye():
    (small, small_mask), (large, large_mask) = (drawn(4, lesion=True, size=size) for size in (60, 240))
    shrunk = large.reshape(30, 60, 4, 60, 4).mean((2, 4))
    inside = abs(phantom.pixels(60)) < 0.95
    for one, two in zip(small[5:, inside], shrunk[5:, inside], strict=True):
        assert np.corrcoef(one, two)[0, 1] > 0.93
    for part in (phantom.BACKGROUND, phantom.LESION):
        one, two = (small_mask == part).mean(), (large_mask == part).mean()
        assert abs(one - two) < 0.1 * two


def test_a_blot_shows_in_its_surroundings_and_hides_in_the_mean_spectrum():
    """What the labels are for: the darkest spot larger than a vessel tells lesions from normal eyes, and no band of the
    mean spectrum does."""
    spots, spectra = [], []
    for number in range(24):
        cube, mask = drawn(100 + number, lesion=number % 2 == 1, size=100)
        spectra.append(cube[:, mask > 0].mean(axis=1))
        ratio = np.log((band(cube, 560) + 0.003) / (band(cube, 640) + 0.003))
        z = phantom.pixels(100)
        ratio[abs(z) > 0.9] = np.nan
        windows = np.lib.stride_tricks.sliding_window_view(ratio, (5, 5)).reshape(96, 96, 25)
        spots.append(np.nanmin(np.quantile(windows, 0.8, axis=2)) - np.nanmedian(ratio))
    assert max(spots[1::2]) < min(spots[::2])
    spectra = np.log(spectra)
    difference = abs(spectra[1::2].mean(axis=0) - spectra[::2].mean(axis=0)) / spectra.std(axis=0)
    assert difference.max() < 1
