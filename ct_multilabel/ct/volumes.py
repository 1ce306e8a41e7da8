"""Reading CT volumes: orientation, Hounsfield units (HU), and slices of the chest.

NIfTI is read by nibabel, MetaImage and DICOM series by SimpleITK. Arrays are (Z, Y, X) in LPS order: x increases to the
patient's left, y to the back, z to the head. Slices are in radiological orientation: front on top, the patient's right
on the left.

`detect_hu` determines from the values whether they are HU. Version 1 of CT-RATE has invalid headers: its slope,
intercept, spacing and direction come from the metadata table, as in the fixed version.
"""

import ast
import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from core.errors import UserError, first_line
from ct.lungs import Chest, find_chest

WINDOWS = {"lung": (-600, 1500), "mediastinum": (40, 400), "bone": (400, 1800)}  # centre, width in HU
CHANNELS = ("windows", "adjacent")  # the three windows of a slice, or the lung window of a slice and its neighbours

HU_RANGE = (-1024, 3071)  # 12 bits with the usual intercept
SPACING_MM = (0.2, 12.0)  # range of valid voxel sides
MIN_SLICES, MIN_SIDE = 20, 32  # along the body; rows and columns
LARGEST, MOST_PACKED = 1.5 * 2**30, 300  # limits: bytes of a stored volume, compression ratio
INTERCEPTS = (-1024, -8192)  # written by CT scanners


class VolumeError(UserError):
    """An unusable volume. The message is one line: file, reason, details."""


@dataclass
class CtVolume:
    """A CT in HU with its geometry and warnings."""

    path: Path
    hu: np.ndarray  # (Z, Y, X) float32 in HU_RANGE, LPS order
    spacing: tuple[float, float, float]  # mm (z, y, x)
    hu_source: str  # source of slope and intercept: "header", "metadata" or "stored"
    chest: Chest
    warnings: list[str]  # "reason: detail"


def window(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """HU (any shape) to [0, 1]: `clip((hu − (centre − width/2)) / width, 0, 1)`."""
    return np.clip((hu - (centre - width / 2)) / width, 0, 1)


# --------------------------------------------------------------------------------------------------------- Hounsfield


def detect_hu(values: np.ndarray) -> str:
    """Scale of CT values (any shape): "hu", "stored" (HU minus an intercept), "rescaled twice", or "unknown".

    HU have tissue within ±200, air or lungs in −1100…−500, and few values above 800, with any padding below air, and
    also in crops without air around the body. Stored and twice rescaled values resemble HU after adding or subtracting
    a usual intercept.
    """
    values = np.asarray(values, np.float32)
    if _looks_like_hu(values):
        return "hu"
    if any(_looks_like_hu(values + intercept) for intercept in INTERCEPTS):
        return "stored"
    if any(_looks_like_hu(values - intercept) for intercept in INTERCEPTS):
        return "rescaled twice"
    return "unknown"


def _looks_like_hu(values: np.ndarray) -> bool:
    tissue = np.mean(np.abs(values) < 200)
    air = np.mean((values > -1100) & (values < -500))
    dense = np.mean(values > 800)
    return bool(tissue > 0.05 and air > 0.01 and dense < 0.05)


def _sample(voxels: np.ndarray, number: int = 400_000) -> np.ndarray:
    """About `number` evenly spaced voxels, float32."""
    step = max(1, int(np.cbrt(voxels.size / number)))
    return voxels[::step, ::step, ::step].astype(np.float32)


def _find_scale(stored: np.ndarray, scales: dict[str, tuple[float, float]]) -> str:
    """Name of the first of `scales` (name -> slope, intercept) that gives HU. Raises VolumeError if none does."""
    sample = _sample(stored)
    verdicts = {name: detect_hu(sample * slope + intercept) for name, (slope, intercept) in scales.items()}
    for name, verdict in verdicts.items():
        if verdict == "hu":
            return name
    low, middle, high = np.percentile(sample, (1, 50, 99))
    found = f"1 % of the stored values lie below {low:g}, half below {middle:g}, 99 % below {high:g}"
    if "rescaled twice" in verdicts.values():
        raise VolumeError(f"rescaled twice: the intercept was subtracted from HU; {found}")
    if "stored" in verdicts.values():
        raise VolumeError(f"not HU: an intercept is missing that neither header nor metadata give; {found}")
    raise VolumeError(f"not HU: no scale gives air near -1000 and tissue near 0; {found}")


# ------------------------------------------------------------------------------------------------------------- reading


def read_volume(path: Path, metadata: dict[str, str] | None = None) -> tuple[np.ndarray, tuple[float, float, float]]:
    """HU (Z, Y, X) float32 in LPS order and spacing in mm (z, y, x), of `load_volume`."""
    volume = load_volume(path, metadata)
    return volume.hu, volume.spacing


def load_volume(path: Path, metadata: dict[str, str] | None = None) -> CtVolume:
    """Reads .nii, .nii.gz, .mha, .mhd, or a DICOM series (a folder, or one of its files).

    `metadata`: row of CT-RATE's table, as text (RescaleSlope, RescaleIntercept, XYSpacing, ZSpacing,
    ImageOrientationPatient). Oblique volumes are reoriented to the closest axes, not resampled. Memory: stored voxels
    and one float32 copy. Raises VolumeError, with file and reason, if it is not a complete CT in HU.
    """
    path, warnings = Path(path), []
    try:
        stored, affine, slope, intercept = _read_stored(path, warnings)
        scales = {"header": (slope, intercept)}
        known = {column: text for column, text in (metadata or {}).items() if text not in ("", "nan", None)}
        hu, spacing, hu_source = _to_hu(stored, affine, scales, known, warnings)
        del stored  # frees memory for the lung search
        return CtVolume(path, hu, spacing, hu_source, find_chest(hu, spacing, warnings), warnings)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error.__cause__
    except MemoryError as error:
        raise VolumeError(f"{path}: too large for this machine's memory") from error


def _read_stored(path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Voxels (I, J, K) as stored, affine (4, 4) from indices to mm in RAS, slope and intercept."""
    if not path.is_dir() and not path.is_file():  # reading a pipe would block
        raise VolumeError("no such file")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti(path, warnings)
    if name.endswith((".mha", ".mhd")):
        return *_read_metaimage(path), 1.0, 0.0
    return *_read_dicom(path, warnings), 1.0, 0.0


def _to_hu(
    stored: np.ndarray,
    affine: np.ndarray,
    scales: dict[str, tuple[float, float]],
    metadata: dict[str, str],
    warnings: list[str],
) -> tuple[np.ndarray, tuple[float, float, float], str]:
    """`hu`, `spacing` and `hu_source` of CtVolume. `scales`: name -> slope and intercept, tried first."""
    if stored.ndim > 3 and stored.shape[3:] == (1,) * (stored.ndim - 3):
        stored = stored.reshape(stored.shape[:3], order="A")
    if stored.ndim != 3 or stored.dtype.kind not in "iuf":
        raise VolumeError(f"no single volume of grey levels: {'×'.join(map(str, stored.shape))}, {stored.dtype}")
    low, high = (float(stored.min()), float(stored.max())) if stored.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeError(f"values that are no numbers: {int((~np.isfinite(stored)).sum())} voxels")
    if low == high:
        raise VolumeError(f"empty: all voxels are {low:g}")

    if {"RescaleSlope", "RescaleIntercept"} <= metadata.keys():
        scales = scales | {"metadata": _numbers(metadata, "RescaleSlope", "RescaleIntercept")}
    scales = scales | {"stored": (1.0, 0.0)}
    source = _find_scale(stored, scales)
    slope, intercept = scales[source]
    affine = _check_geometry(affine, metadata, unreliable=source == "metadata")
    to_lps = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    spacing = nib.affines.voxel_sizes(affine)[np.argsort(to_lps[:, 0])]
    voxels = apply_orientation(stored, to_lps).transpose(2, 1, 0)  # a view (Z, Y, X)
    if voxels.shape[0] < MIN_SLICES:
        raise VolumeError(f"{voxels.shape[0]} slices along the body axis; a chest CT has {MIN_SLICES} or more")
    if min(voxels.shape[1:]) < MIN_SIDE:
        raise VolumeError(f"slices of {voxels.shape[2]}×{voxels.shape[1]} px; a CT has {MIN_SIDE} or more each way")

    hu = voxels.astype(np.float32, order="C")
    if (slope, intercept) != (1, 0):
        hu *= slope
        hu += intercept
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    if low < HU_RANGE[0] or high > HU_RANGE[1]:
        warnings.append(f"values outside {HU_RANGE[0]}…{HU_RANGE[1]} HU, clipped: {low:g}…{high:g}")
        np.clip(hu, *HU_RANGE, out=hu)
    return hu, tuple(float(side) for side in spacing[::-1]), source


def _numbers(metadata: dict[str, str], *columns: str) -> tuple[float, ...]:
    """Numbers in columns of a row of the metadata table; lists such as "[0.7, 0.7]" are flattened."""
    numbers = []
    for column in columns:
        try:
            value = ast.literal_eval(str(metadata[column]).strip())
            numbers += [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]
        except (ValueError, SyntaxError, TypeError) as error:
            raise VolumeError(f"the metadata table gives {column} {metadata[column]!r}, no number") from error
    return tuple(numbers)


def _check_geometry(affine: np.ndarray, metadata: dict[str, str], unreliable: bool) -> np.ndarray:
    """The header's affine (4, 4), or that of the metadata table if the header is `unreliable` or its spacing invalid.

    The table's direction is preferred; z is right-handed, as in CT-RATE's fixed volumes. Raises VolumeError if neither
    has a valid geometry.
    """
    sides = nib.affines.voxel_sizes(affine)
    possible = all(SPACING_MM[0] <= side <= SPACING_MM[1] for side in sides)  # False for NaN
    if possible and not (unreliable and {"XYSpacing", "ZSpacing"} <= metadata.keys()):
        return affine
    text = "×".join(f"{side:g}" for side in sides)
    if not {"XYSpacing", "ZSpacing"} <= metadata.keys():
        raise VolumeError(f"no voxel size: the header says {text} mm")
    columns, rows, slices = (*_numbers(metadata, "XYSpacing", "ZSpacing"), np.nan)[:3]
    if "ImageOrientationPatient" in metadata:
        cosines = _numbers(metadata, "ImageOrientationPatient")
        if len(cosines) != 6:
            raise VolumeError(f"the metadata table gives {len(cosines)} numbers as ImageOrientationPatient, not 6")
        cosines = np.reshape(cosines, (2, 3))
        direction = np.diag([-1.0, -1.0, 1.0]) @ np.column_stack([*cosines, np.cross(*cosines)])  # DICOM's LPS to RAS
    elif np.isfinite(sides).all() and (sides > 0).all():
        direction = affine[:3, :3] / sides
    else:
        raise VolumeError(f"no direction: the header says {text} mm, the metadata table has no ImageOrientationPatient")
    body = int(np.abs(direction[2]).argmax())  # the stored axis along the body
    spacing = np.insert([columns, rows], body, slices)
    if not all(SPACING_MM[0] <= side <= SPACING_MM[1] for side in spacing):
        raise VolumeError(f"no voxel size: the metadata table says {columns:g}×{rows:g}×{slices:g} mm")
    return nib.affines.from_matvec(direction * spacing)


def _read_nifti(path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray, float, float]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            start = file.read(4)
            if not start:
                raise VolumeError("empty: no byte in it")
            file.seek(0)
            nifti2 = 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
            kind = nib.Nifti2Image if nifti2 else nib.Nifti1Image
            # When it checks the header, nibabel replaces voxel sizes of 0 by 1.
            header = kind.header_class.from_fileobj(file, check=False)
            pixdim, sform, qform = header["pixdim"][1:4], int(header["sform_code"]), int(header["qform_code"])
            if not sform and not (pixdim != 0).all():
                raise VolumeError(f"no voxel size: the header says {'×'.join(f'{side:g}' for side in pixdim)} mm")
            _check_size(header["dim"][1 : 1 + int(header["dim"][0])], int(header["bitpix"]) / 8, path)
            file.seek(0)
            image = kind.from_stream(file)
            stored = image.dataobj.get_unscaled()
            file.read(1)  # gzip verifies its checksum at the end of the file
    except EOFError as error:
        raise VolumeError("cut off: the compressed file ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"damaged: {first_line(error)}") from error
    except OSError as error:
        raise VolumeError(f"cut off: {first_line(error)}" if error.errno is None else first_line(error)) from error
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OverflowError) as error:
        raise VolumeError(f"no NIfTI volume: {first_line(error)}") from error
    if not sform and not qform:
        warnings.append("no direction in the header: rows and slices are taken to run to the front and to the head")
    return stored, image.affine, image.dataobj.slope, image.dataobj.inter


def _check_size(sides: Sequence[int], voxel: float, path: Path) -> None:
    """Raises VolumeError for too many voxels, of `voxel` bytes each, or too many for the size of the file: a few MB of
    compressed zeros expand to gigabytes."""
    size, file = math.prod(map(int, sides)) * voxel, path.stat().st_size
    most = LARGEST if path.suffix.lower() == ".mhd" else min(LARGEST, MOST_PACKED * file)
    if not 0 <= size <= most:
        shape = "×".join(map(str, sides))
        raise VolumeError(f"no CT: its header claims {shape} voxels, in a file of {file / 2**20:.3g} MiB")


def _read_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
        _check_size(reader.GetSize(), 2 * reader.GetNumberOfComponents(), path)
        image = reader.Execute()  # raises for a file that is cut off
        _check_packed(path)
    except (RuntimeError, zlib.error) as error:
        raise VolumeError("cut off or damaged: SimpleITK cannot read it") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError(f"no single volume of grey levels: {'×'.join(map(str, image.GetSize()))}")
    return _itk_voxels(image)


def _check_packed(path: Path) -> None:
    """Raises zlib.error if the compressed voxels of a MetaImage are damaged, which SimpleITK does not check."""
    header = {}
    with open(path, "rb") as file:
        while "ElementDataFile" not in header:  # the header's last line
            key, _, value = file.readline().decode("latin-1").partition("=")
            header[key.strip()] = value.strip()
        if header.get("CompressedData", "").lower() != "true":
            return
        data = file if header["ElementDataFile"] == "LOCAL" else open(path.parent / header["ElementDataFile"], "rb")
        with data:
            unpacking = zlib.decompressobj(wbits=47)  # zlib or gzip
            while packed := unpacking.unconsumed_tail or data.read(1 << 20):
                unpacking.decompress(packed, 1 << 24)  # 1 MiB may expand to 1 GiB


def _itk_voxels(image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and affine (4, 4) in RAS of a SimpleITK image."""
    import SimpleITK as sitk

    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = nib.affines.from_matvec(np.diag([-1.0, -1.0, 1.0]) @ direction)
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine


def _read_dicom(path: Path, warnings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Series of a file, or the largest series of a folder, with slope and intercept of each slice applied."""
    import SimpleITK as sitk

    sitk.ProcessObject.GlobalWarningDisplayOff()  # uneven slices are reported below
    folder = path if path.is_dir() else path.parent
    reader = sitk.ImageSeriesReader()
    series = [reader.GetGDCMSeriesFileNames(str(folder), name) for name in reader.GetGDCMSeriesIDs(str(folder))]
    if path.is_file():
        series = [files for files in series if path.resolve() in {Path(file).resolve() for file in files}]
    if not series:
        raise VolumeError("no CT volume: neither NIfTI nor MetaImage, and no DICOM series")
    files = max(series, key=len)
    if len(series) > 1:
        warnings.append(f"several DICOM series, the largest is read: {len(files)} of {sum(map(len, series))} files")
    if len(files) < MIN_SLICES:
        raise VolumeError(f"{len(files)} slices along the body axis; a chest CT has {MIN_SLICES} or more")
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    reader.SetOutputPixelType(sitk.sitkFloat32)  # float64 otherwise, for fractional slopes
    try:
        image = reader.Execute()
        origins = [reader.GetMetaData(number, "0020|0032").split("\\") for number in range(len(files))]
        origins = np.array(origins, float)  # (slices, 3) mm
    except (RuntimeError, ValueError) as error:
        raise VolumeError("damaged: SimpleITK cannot read every file of the DICOM series") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError("no single volume of grey levels: a DICOM series in colour")
    rows, columns = np.reshape(image.GetDirection(), (3, 3)).T[:2]
    steps = np.diff(np.sort(origins @ np.cross(rows, columns)))  # GDCM does not sort equal positions
    usual = float(np.median(steps))
    if steps.min() <= 0.1 * usual:
        raise VolumeError("two slices at one place: the DICOM series holds more than one volume")
    if steps.max() > 1.5 * usual:
        raise VolumeError(f"slices missing: a gap of {steps.max():.2f} mm where others are {usual:.2f} mm apart")
    if steps.max() - steps.min() > 0.1 * usual:
        warnings.append(f"uneven slices: {steps.min():.2f} to {steps.max():.2f} mm apart")
    return _itk_voxels(image)


# -------------------------------------------------------------------------------------------------------------- slices


def slice_stack(
    volume: CtVolume, slices: int = 32, size: int = 224, field_mm: float = 360.0, channels: str = "windows"
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (S, 3, size, size) uint8 from foot to head, and positions (S,) in mm above the lowest slice of the volume.

    S = `slices`, evenly spaced in the chest, or all if it has fewer. The field of view of `field_mm` is centred on the
    body, resampled by area averaging and padded with air. `channels`: one of CHANNELS.
    """
    first, last = volume.chest.first, volume.chest.last
    numbers = np.unique((first + (np.arange(slices) + 0.5) / slices * (last - first + 1)).astype(int))
    pixels = np.empty((len(numbers), 3, size, size), np.uint8)
    for row, number in enumerate(numbers):
        if channels == "adjacent":
            around = np.clip([number - 1, number, number + 1], 0, len(volume.hu) - 1)
            shown = [window(_field(volume, n, size, field_mm), *WINDOWS["lung"]) for n in around]
        else:
            hu = _field(volume, number, size, field_mm)
            shown = [window(hu, *limits) for limits in WINDOWS.values()]
        pixels[row] = np.rint(np.stack(shown) * 255)
    return pixels, numbers * volume.spacing[0]


def _field(volume: CtVolume, number: int, size: int, field_mm: float) -> np.ndarray:
    """HU (size, size) of slice `number`, cut out at about its own resolution and averaged over areas."""
    (centre_y, centre_x), (side_y, side_x) = volume.chest.centre, volume.spacing[1:]
    rows, columns = max(size, int(np.ceil(field_mm / side_y))), max(size, int(np.ceil(field_mm / side_x)))
    scale_y, scale_x = field_mm / rows / side_y, field_mm / columns / side_x
    # Pixel i spans i to i + 1 times its side; its centre, the coordinate of cv2, is at i + 0.5.
    top, left = (centre_y - field_mm / 2) / side_y, (centre_x - field_mm / 2) / side_x
    to_source = np.array([[scale_x, 0, left + scale_x / 2 - 0.5], [0, scale_y, top + scale_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(volume.hu[number], to_source, (columns, rows), flags=flags, borderValue=HU_RANGE[0])
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA)
