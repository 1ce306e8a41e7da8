"""Volumes in every form that CTs come in, whole and broken: the same HU in the same orientation, or a plain refusal.

The chests are synthetic: ellipsoids of tissue, lung and bone with noise.
"""

import itertools
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from conftest import ROOT
from ct.lungs import AIR_HU
from ct.volumes import (
    HU_RANGE,
    WINDOWS,
    VolumeError,
    detect_hu,
    load_volume,
    read_volume,
    slice_stack,
    window,
)

REAL = Path(ROOT).parent / "shared/data/ct"
SPACING = (6.0, 4.0, 4.5)  # mm (z, y, x)
LPS = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])  # indices (x, y, z) of an LPS array to mm in RAS


def synthetic_chest(shape=(50, 80, 96), spacing=SPACING, seed=0) -> np.ndarray:
    """HU int16 (Z, Y, X) in LPS order: body, two lungs, spine at the back, liver low on the right, noise."""
    z, y, x = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")

    def ellipsoid(cz, cy, cx, rz, ry, rx):
        return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    hu = np.full(shape, -1000.0)
    hu[(y / 110) ** 2 + (x / 170) ** 2 < 1] = 40
    hu[(y / 110) ** 2 + (x / 170) ** 2 > 0.85] += -120 * (hu[(y / 110) ** 2 + (x / 170) ** 2 > 0.85] > -500)
    for side in (-80, 80):
        hu[ellipsoid(10, 0, side, 100, 80, 55)] = -850
    hu[ellipsoid(-70, -10, -80, 50, 60, 60)] = 60  # liver: on the patient's right, x < 0
    hu[(y - 85) ** 2 + x**2 < 18**2] = 400
    hu += np.random.default_rng(seed).normal(0, 15, shape)
    return hu.clip(*HU_RANGE).astype(np.int16)


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return synthetic_chest()


def write_nifti(file: Path, hu: np.ndarray, affine=LPS, slope=None, inter=None) -> Path:
    """Writes a (Z, Y, X) array; `slope` and `inter` stand in the header only."""
    image = nib.Nifti1Image(np.asfortranarray(hu.transpose(2, 1, 0)), affine)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, file)
    if slope is not None:  # nibabel scales what it writes: put the stored values back
        raw = nib.load(file).dataobj.get_unscaled()
        assert np.array_equal(raw, hu.transpose(2, 1, 0)), "the test needs these very values in the file"
    return file


def write_mha(file: Path, hu: np.ndarray, compressed=False) -> Path:
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(file), compressed)
    return file


def write_dicom(folder: Path, hu: np.ndarray, series=None, name="IM", missing=(), shift=0.0) -> Path:
    """A CT series, unsigned with an intercept of -1024, in files whose names say nothing about their order."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = series or generate_uid(), generate_uid(), generate_uid()
    order = np.random.default_rng(1).permutation(len(hu))
    for number, pixels in enumerate(hu):
        if number in missing:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, generate_uid(), "CT"
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, study, frame
        dataset.PatientID, dataset.InstanceNumber = "synthetic", int(order[number])
        dataset.ImagePositionPatient = [0, 0, number * SPACING[0] + shift * (number % 2)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{name}{order[number]:04d}.dcm", enforce_file_format=True)
    return folder


# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_follow_the_formula():
    hu = np.array([-2000, -1350, -600, 150, 160, 3000], np.float32)
    assert window(hu, *WINDOWS["lung"]) == pytest.approx([0, 0, 0.5, 1, 1, 1])
    assert window(hu, *WINDOWS["mediastinum"]) == pytest.approx([0, 0, 0, (150 + 160) / 400, (160 + 160) / 400, 1])
    assert window(np.array([-500.0, 400, 1300]), *WINDOWS["bone"]) == pytest.approx([0, 0.5, 1])


# ---------------------------------------------------------------------------------------------------------- HU or not


@pytest.mark.parametrize("padding", [None, -1024, -2000, -3024, -8192])
@pytest.mark.parametrize("part", ["whole", "crop"])
def test_hu_are_told_from_what_is_not(chest, padding, part):
    hu = chest.astype(np.float32)
    if part == "crop":
        hu = hu[10:40, 20:60, 20:76]  # lungs and mediastinum, no air around the body
    if padding:
        y, x = np.indices(hu.shape[1:])
        centre = (np.array(hu.shape[1:]) - 1) / 2
        outside = ((y - centre[0]) / centre[0]) ** 2 + ((x - centre[1]) / centre[1]) ** 2 > 1  # 21 %
        hu[:, outside] = padding
    assert detect_hu(hu) == "hu"
    for intercept in (-1024, -1000, -8192):
        assert detect_hu(hu - intercept) == "stored"
        assert detect_hu(hu + intercept) == "rescaled twice"


def test_what_is_no_ct_is_unknown(chest):
    rng = np.random.default_rng(0)
    assert detect_hu(rng.gamma(2, 150, 20000)) == "unknown"  # MR
    assert detect_hu(window(chest, *WINDOWS["lung"]) * 255) == "unknown"  # 8 bits
    assert detect_hu(rng.normal(-1000, 20, 20000)) == "unknown"  # an empty scanner


METADATA = {"RescaleSlope": "1", "RescaleIntercept": "-8192", "XYSpacing": "[4.5, 4.0]", "ZSpacing": "6.0"}


@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_version_1_and_fixed_files_are_the_same_volume(tmp_path, chest, intercept):
    metadata = METADATA | {"RescaleIntercept": str(float(intercept))}
    fixed = load_volume(write_nifti(tmp_path / "fixed.nii.gz", chest), metadata)
    stored = (chest.astype(np.int32) - intercept).astype(np.int16)
    # Its header claims another slope and other voxels.
    v1 = load_volume(write_nifti(tmp_path / "v1.nii.gz", stored, np.diag([-1, -1, 1, 1.0]), 2.0, 37.0), metadata)
    assert (fixed.hu_source, v1.hu_source) == ("header", "metadata")
    assert np.array_equal(v1.hu, fixed.hu)
    assert np.array_equal(fixed.hu, chest)
    assert v1.spacing == pytest.approx(SPACING)
    assert v1.spacing == pytest.approx(fixed.spacing)
    oriented = metadata | {"ImageOrientationPatient": "[-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]"}
    turned = load_volume(tmp_path / "v1.nii.gz", oriented)
    assert np.array_equal(turned.hu, fixed.hu[::-1, :, ::-1])  # x to the right; z by the right-hand rule down
    assert load_volume(tmp_path / "fixed.nii.gz", oriented).chest == fixed.chest  # where the header is right


def test_version_1_without_metadata_is_refused(tmp_path, chest):
    file = write_nifti(tmp_path / "v1.nii.gz", (chest + 1024).astype(np.uint16))
    with pytest.raises(VolumeError, match=r"v1\.nii\.gz: not HU: an intercept is missing"):
        load_volume(file)


def test_a_volume_that_was_rescaled_twice_is_refused(tmp_path, chest):
    file = write_nifti(tmp_path / "twice.nii.gz", (chest - 1024).astype(np.int16))
    for metadata in (None, METADATA | {"RescaleIntercept": "-1024"}, METADATA):
        with pytest.raises(VolumeError, match="rescaled twice"):
            load_volume(file, metadata)


def test_empty_cells_of_the_metadata_do_no_harm(tmp_path, chest):
    file = write_nifti(tmp_path / "fixed.nii.gz", chest)
    assert load_volume(file, dict.fromkeys(METADATA, "")).hu_source == "header"


def test_a_true_slope_in_the_header_is_applied(tmp_path, chest):
    file = write_nifti(tmp_path / "a.nii.gz", (chest.astype(int) + 1024).astype(np.uint16), slope=1.0, inter=-1024.0)
    volume = load_volume(file)
    assert volume.hu_source == "header"
    assert np.array_equal(volume.hu, chest)


def test_hu_under_a_false_slope_in_the_header(tmp_path, chest):
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", chest, slope=1.0, inter=-1024.0))
    assert volume.hu_source == "stored"
    assert np.array_equal(volume.hu, chest)


def test_other_types_of_numbers(tmp_path, chest):
    for dtype in (np.int32, np.float32, np.float64):
        assert np.array_equal(read_volume(write_nifti(tmp_path / "a.nii.gz", chest.astype(dtype)))[0], chest)


def test_values_out_of_range_are_clipped_and_said(tmp_path, chest):
    hu = chest.copy()
    hu[:, :3, :3], hu[20, 40, 40] = -3024, 8000
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", hu))
    assert (volume.hu.min(), volume.hu.max()) == HU_RANGE
    assert volume.warnings == ["values outside -1024…3071 HU, clipped: -3024…8000"]


# --------------------------------------------------------------------------------------------------------- orientation


def test_all_48_orientations_are_one_volume(tmp_path, chest):
    """Every order and direction of the axes, with the affine that says so."""
    expected = None
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            voxels, affine = chest.transpose(2, 1, 0), LPS.copy()
            for axis in range(3):
                if signs[axis] < 0:
                    voxels = np.flip(voxels, axis)
                    affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
                    affine[:3, axis] *= -1
            stored = nib.Nifti1Image(voxels.transpose(order), affine[:, [*order, 3]])
            nib.save(stored, tmp_path / "a.nii")
            volume = load_volume(tmp_path / "a.nii")
            assert np.array_equal(volume.hu, chest)
            assert volume.spacing == pytest.approx(SPACING)
            slices, _ = slice_stack(volume, 4, 32)
            expected = slices if expected is None else expected
            assert np.array_equal(slices, expected)


def test_an_oblique_volume_goes_by_its_closest_axes(tmp_path, chest):
    tilt = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    hu, spacing = read_volume(write_nifti(tmp_path / "a.nii.gz", chest, nib.affines.from_matvec(turn @ LPS[:3, :3])))
    assert np.array_equal(hu, chest)
    assert spacing == pytest.approx(SPACING)


def test_a_header_without_direction_is_said(tmp_path, chest):
    image = nib.Nifti1Image(chest.transpose(2, 1, 0), None)
    image.header.set_zooms(SPACING[::-1])
    nib.save(image, tmp_path / "a.nii.gz")
    assert load_volume(tmp_path / "a.nii.gz").warnings[0].startswith("no direction in the header")


# --------------------------------------------------------------------------------------------------------------- forms


def test_nifti_metaimage_and_dicom_agree(tmp_path, chest):
    folder = write_dicom(tmp_path / "series", chest)
    files = [write_nifti(tmp_path / "a.nii.gz", chest), write_nifti(tmp_path / "a.nii", chest), folder]
    files += [write_mha(tmp_path / "a.mha", chest), write_mha(tmp_path / "b.mha", chest, True), folder / "IM0003.dcm"]
    files += [write_mha(tmp_path / "a.mhd", chest)]
    nib.save(nib.Nifti2Image(chest.transpose(2, 1, 0), LPS), tmp_path / "n2.nii.gz")
    for file in [*files, tmp_path / "n2.nii.gz"]:
        hu, spacing = read_volume(file)
        assert hu.dtype == np.float32, file
        assert np.array_equal(hu, chest), file
        assert spacing == pytest.approx(SPACING), file


def test_the_largest_dicom_series_counts(tmp_path, chest):
    folder = write_dicom(tmp_path / "series", chest)
    write_dicom(folder, synthetic_chest(seed=1)[:30], name="other")
    volume = load_volume(folder)
    assert np.array_equal(volume.hu, chest)
    assert volume.warnings == ["several DICOM series, the largest is read: 50 of 80 files"]
    assert len(load_volume(folder / "other0003.dcm").hu) == 30  # unless a file of another one is named


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"missing": (20,)}, "slices missing: a gap of 12.00 mm where others are 6.00"),
        ({"missing": range(2, 50)}, "2 slices along the body axis"),
        ({"shift": -6.0}, "two slices at one place"),
    ],
)
def test_a_broken_dicom_series_is_refused(tmp_path, chest, options, reason):
    with pytest.raises(VolumeError, match=reason):
        load_volume(write_dicom(tmp_path / "series", chest, **options))


def test_uneven_dicom_slices_are_said(tmp_path, chest):
    assert load_volume(write_dicom(tmp_path / "s", chest, shift=1.0)).warnings == [
        "uneven slices: 5.00 to 7.00 mm apart"
    ]


# ------------------------------------------------------------------------------------------------------ what is broken


def cut(file: Path, share: float) -> Path:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return file


def broken(kind: str, folder: Path, hu: np.ndarray) -> Path:
    """A file that is broken in one way."""
    file = folder / ("a.mha" if "mha" in kind else "a.nii" if kind.endswith(".nii") else "a.nii.gz")
    match kind:
        case "cut off" | "cut off .nii":
            return cut(write_nifti(file, hu), 0.6)
        case "last bytes missing":
            return cut(write_nifti(file, hu), 0.99999)
        case "a bit turned":
            write_nifti(file, hu)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
        case "a bit turned in packed .mha":
            content = bytearray(write_mha(file, hu, True).read_bytes())
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
        case "cut off .mha" | "cut off packed .mha":
            return cut(write_mha(file, hu, "packed" in kind), 0.6)
        case "no bytes" | "no bytes .mha":
            file.write_bytes(b"")
        case "text":
            file.write_bytes(b"version https://git-lfs.example/spec/v1\n" * 20)
        case "zeros":
            write_nifti(file, np.zeros_like(hu))
        case "two slices":
            write_nifti(file, hu[20:22])
        case "NaN":
            hu = hu.astype(np.float32)
            hu[0, 0, :5] = np.nan
            write_nifti(file, hu)
        case "4-D":
            nib.save(nib.Nifti1Image(np.stack([hu.transpose(2, 1, 0)] * 2, axis=-1), LPS), file)
        case "no voxel size" | "no voxel size in sform":
            write_nifti(file.with_suffix(""), hu, LPS if "sform" in kind else None)
            content = bytearray(file.with_suffix("").read_bytes())
            places = {"no voxel size": (80, [4.5, 4, 0]), "no voxel size in sform": (312, [0, 0, 0])}  # pixdim, srow_z
            start, sides = places[kind]
            content[start : start + 12] = np.array(sides, "<f4").tobytes()
            file.with_suffix("").write_bytes(content)
            return file.with_suffix("")
        case "voxels of a metre":
            write_nifti(file, hu, LPS * [1000, 1000, 1000, 1])
        case "missing":
            return folder / "nowhere.nii.gz"
        case "a folder of something":
            (folder / "notes.txt").write_text("nothing")
            return folder
    return file


BROKEN = {
    "cut off": "cut off: ",
    "cut off .nii": "cut off: ",
    "last bytes missing": "cut off: ",
    "a bit turned": "damaged: ",
    "cut off .mha": "cut off or damaged",
    "cut off packed .mha": "cut off or damaged",
    "a bit turned in packed .mha": "cut off or damaged",
    "no bytes": "empty: no byte in it",
    "no bytes .mha": "cut off or damaged",
    "text": "damaged: Not a gzipped file",
    "zeros": "empty: all voxels are 0",
    "two slices": "2 slices along the body axis; a chest CT has 20 or more",
    "NaN": "values that are no numbers: 5 voxels",
    "4-D": "no single volume of grey levels: 96×80×50×2, int16",
    "no voxel size": "no voxel size: the header says 4.5×4×0 mm",
    "no voxel size in sform": "no voxel size: the header says 4.5×4×0 mm",
    "voxels of a metre": "no voxel size: the header says 4500×4000×6000 mm",
    "missing": "no such file",
    "a folder of something": "no CT volume",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_volume_is_one_line(tmp_path, chest, kind):
    file = broken(kind, tmp_path, chest)
    with pytest.raises(VolumeError) as caught:
        load_volume(file)
    assert str(caught.value).startswith(f"{file}: {BROKEN[kind]}")
    assert "\n" not in str(caught.value)


def test_a_single_fourth_dimension_is_no_harm(tmp_path, chest):
    nib.save(nib.Nifti1Image(chest.transpose(2, 1, 0)[..., None], LPS), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz")[0], chest)


def test_impossible_spacing_comes_from_the_metadata(tmp_path, chest):
    file = write_nifti(tmp_path / "a.nii.gz", chest, LPS * [1000, 1000, 1000, 1])
    hu, spacing = read_volume(file, METADATA)
    assert np.array_equal(hu, chest)
    assert spacing == pytest.approx(SPACING)
    with pytest.raises(VolumeError, match="gives 3 numbers as ImageOrientationPatient, not 6"):
        load_volume(file, METADATA | {"ImageOrientationPatient": "[1, 0, 0]"})
    with pytest.raises(VolumeError, match="gives ZSpacing 'six', no number"):
        load_volume(file, METADATA | {"ZSpacing": "six"})
    with pytest.raises(VolumeError, match=r"the metadata table says 4\.5×4×0 mm"):
        load_volume(file, METADATA | {"ZSpacing": "0"})


# --------------------------------------------------------------------------------------------------------------- chest


def test_the_range_is_that_of_the_lungs(tmp_path, chest):
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", chest))
    lungs = (chest < AIR_HU) & (chest > -920)
    levels = np.flatnonzero(lungs[:, 30:50].any(axis=(1, 2)))
    assert volume.warnings == []
    assert volume.chest.lung_ml == pytest.approx(lungs.sum() * np.prod(SPACING) / 1000, rel=0.1)
    margin = 10 / SPACING[0]
    assert volume.chest.first == pytest.approx(levels[0] - margin, abs=2)
    assert volume.chest.last == pytest.approx(levels[-1] + margin, abs=2)
    assert volume.chest.centre == pytest.approx((160, 216), abs=4)  # the middle of the volume


def test_a_body_beside_the_middle_is_centred(tmp_path, chest):
    moved = np.roll(chest, (5, -6), axis=(1, 2))  # 20 mm down, 27 mm to the left of the picture
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", moved))
    assert volume.chest.centre == pytest.approx((160 + 20, 216 - 27), abs=4)


def test_a_crop_and_another_part_of_the_body_are_said(tmp_path, chest):
    crop = load_volume(write_nifti(tmp_path / "a.nii.gz", chest[8:42, 22:58, 20:76]))
    assert crop.warnings == ["no whole chest: the picture's border cuts the lungs"]
    filled = np.where((chest < AIR_HU) & (chest > -920), 40, chest)
    filled[:, :, :3] = filled[:, :, -3:] = -1000
    belly = load_volume(write_nifti(tmp_path / "b.nii.gz", filled))
    assert [warning.split(":")[0] for warning in belly.warnings] == ["hardly any lung"]
    assert (belly.chest.first, belly.chest.last) == (0, 49)


def test_real_volumes(tmp_path):
    """Two files that nobody here drew: no chest, and a crop around the heart."""
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}")
    belly = load_volume(REAL / "abdomen_3mm.nii.gz")
    assert belly.hu.shape == (112, 101, 122)
    assert [w.split(":")[0] for w in belly.warnings] == ["values outside -1024…3071 HU, clipped", "hardly any lung"]
    bone, front, back = belly.hu > 250, np.s_[:, :50], np.s_[:, 50:]
    assert bone[back].sum() > 1.5 * bone[front].sum()  # the spine lies at the back
    liver = (np.abs(belly.hu[85:105] - 110) < 40).sum(axis=(0, 1))
    assert liver[:50].sum() > liver[-50:].sum()  # on the patient's right, shown on the left
    crop = load_volume(REAL / "chest_crop_1.5mm.nii.gz")
    assert crop.warnings[-1] == "no whole chest: the picture's border cuts the lungs"
    assert (crop.hu[:, 60:] > 200).mean(axis=(0, 1)).argmax() in range(40, 100)


# -------------------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize("spacing", [(8.0, 0.7, 0.7), (8.0, 0.9, 1.3), (6.0, 3.0, 3.0)])
def test_a_marker_lands_where_its_millimetres_say(tmp_path, spacing):
    shape = tuple(int(mm / side) for mm, side in zip((300, 320, 400), spacing, strict=True))
    hu = synthetic_chest(shape, spacing)
    hu = np.minimum(hu, 300)
    markers = [(100.0, 130.0), (215.0, 290.0)]  # mm (y, x) from the corner
    for y, x in markers:
        row, column = int(y / spacing[1]), int(x / spacing[2])
        side = max(1, round(3 / spacing[1])), max(1, round(3 / spacing[2]))
        hu[:, row : row + side[0], column : column + side[1]] = 3000
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1])
    volume = load_volume(write_nifti(tmp_path / "a.nii", hu, affine))
    pixels, positions = slice_stack(volume, 3, 224, 360.0)
    bone = pixels[1, 2].astype(float) * (pixels[1, 2] > 140)
    (cy, cx), px_mm = volume.chest.centre, 360 / 224
    for y, x in markers:
        row, column = int(y / spacing[1]), int(x / spacing[2])
        middle_y = (row + max(1, round(3 / spacing[1])) / 2) * spacing[1]
        middle_x = (column + max(1, round(3 / spacing[2])) / 2) * spacing[2]
        expected = (middle_y - cy + 180) / px_mm - 0.5, (middle_x - cx + 180) / px_mm - 0.5
        near = np.s_[int(expected[0]) - 6 : int(expected[0]) + 8, int(expected[1]) - 6 : int(expected[1]) + 8]
        weights, grid = bone[near], np.indices(bone[near].shape)
        found = [(grid[a] * weights).sum() / weights.sum() + near[a].start for a in (0, 1)]
        assert found == pytest.approx(expected, abs=0.5)
    assert np.allclose(positions / spacing[0], np.rint(positions / spacing[0]))


def test_slices_shrink_by_areas_and_are_padded_with_air(tmp_path, chest):
    """A fine checkerboard becomes grey, not a moiré; beside the volume there is air."""
    hu = synthetic_chest((50, 320, 384), (6.0, 1.0, 1.1))
    y, x = np.indices(hu.shape[1:])
    hu[:, 150:170, 180:210] = np.where((y + x) % 2, 200, -160)[150:170, 180:210]
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", hu, np.diag([-1.1, -1, 6, 1])))
    pixels, _ = slice_stack(volume, 3, 64, 500.0)
    centre = volume.chest.centre
    row, column = int((160 - centre[0] + 250) / 500 * 64), int((195 * 1.1 - centre[1] + 250) / 500 * 64)
    assert pixels[1, 1, row, column] == pytest.approx(255 * (20 + 160) / 400, abs=16)
    assert (pixels[:, 0, :3] == round(255 * (-1024 + 1350) / 1500)).all()
    assert (pixels[:, 1:, :3] == 0).all()


def test_slices_are_even_distinct_and_windowed(tmp_path, chest):
    volume = load_volume(write_nifti(tmp_path / "a.nii.gz", chest))
    span = volume.chest.last - volume.chest.first + 1
    pixels, positions = slice_stack(volume, 8, 64)
    assert pixels.shape == (8, 3, 64, 64)
    steps = np.diff(positions / SPACING[0])
    assert set(np.rint(steps)) <= {np.floor(span / 8), np.ceil(span / 8)}
    assert volume.chest.first <= positions[0] / SPACING[0] < positions[-1] / SPACING[0] <= volume.chest.last
    everything, positions = slice_stack(volume, 500, 64)
    assert len(everything) == len(set(positions)) == span
    lung, mediastinum, bone = pixels[4].astype(int)
    assert lung[30, 18] == pytest.approx(255 * (-850 + 1350) / 1500, abs=8)
    assert (mediastinum[30, 18], bone[30, 18]) == (0, 0)
    beside, _ = slice_stack(volume, 500, 64, channels="adjacent")
    assert np.array_equal(beside[5, 1], everything[5, 0])
    assert np.array_equal(beside[5, 0], everything[4, 0])
    assert np.array_equal(beside[5, 2], everything[6, 0])


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_memory_stays_at_two_volumes(tmp_path, dtype):
    """Reading and taking slices of 150×240×192 voxels: the stored voxels, a float32 copy, and little besides."""
    hu = synthetic_chest().repeat(3, axis=0).repeat(3, axis=1).repeat(2, axis=2).astype(dtype)
    file = write_nifti(tmp_path / "a.nii.gz", hu, LPS / [2, 3, 3, 1])
    tracemalloc.start()
    slice_stack(load_volume(file), 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hu.nbytes + 4 * hu.size < peak < 2.1 * 4 * hu.size
