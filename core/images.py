"""Reader for PNG, JPEG, BMP, TIFF and DICOM pictures."""

import math
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import first_line
from core.files import require_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom")
LARGEST = 112_000_000  # px: size limit, 20 × 25 cm at 1200 dpi; a few RGB copies take 2 GiB
LARGE, ONE_AT_A_TIME = 20_000_000, threading.Lock()  # px: larger pictures are decoded one at a time
DEFLATED = b"1.2.840.10008.1.2.1.99"


class ImageError(ValueError):
    """A picture that cannot be read. The text begins with the file."""


class Picture(NamedTuple):
    """Pixels (H, W) grey or (H, W, 3) RGB, uint8, and the pixel size (x, y) in mm, None if the file has none."""

    pixels: np.ndarray
    mm_per_px: tuple[float, float] | None


def read_image(path: Path, mode: str = "L") -> Picture:
    """Reads a PNG, JPEG, BMP, TIFF or DICOM file (by suffix or content) as 8-bit grey (`mode` "L") or "RGB".

    EXIF orientation and palettes are applied, and transparent areas become black. Higher bit depths are scaled by the
    number of bits in use (12-bit radiographs in 16-bit files by 255/4095), which keeps grey levels of one device
    comparable. Only DICOM files give `mm_per_px`: resolutions in dpi are mostly a default of 72 or 96.
    Raises ImageError if the file is missing, truncated, not a picture, or larger than 112 megapixels.
    """
    path = Path(path)
    try:
        if is_dicom(path):
            return _read_dicom(path, mode)
        # Given a path, Pillow (at least 11 to 13) memory-maps an uncompressed TIFF by its size after EXIF rotation,
        # which scrambles the picture. Open files are not memory-mapped.
        with path.open("rb") as file:
            image = _open(file)
            # Otherwise, threads that check a data set could decode gigabytes at once.
            with ONE_AT_A_TIME if math.prod(image.size) > LARGE else nullcontext():
                return Picture(_pixels(image, mode, path), None)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture (PNG, JPEG, BMP, TIFF, DICOM)") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # damaged files raise all kinds of exceptions
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: {first_line(error)}") from error


def _open(file: BinaryIO) -> Image.Image:
    """The picture, not decoded yet. Raises ValueError if it is larger than LARGEST."""
    with warnings.catch_warnings():
        # Pillow warns above 89 megapixels; scanned radiographs can be larger.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    if math.prod(image.size) > LARGEST:
        raise ValueError(f"{image.width}×{image.height} px exceed {LARGEST:,} px; downscale it")
    return image


def _pixels(image: Image.Image, mode: str, path: Path) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)  # avoids a copy
    if image.mode.startswith(("I", "F")):
        pixels = _to_8_bit(np.asarray(image), path)
        return pixels if mode == "L" else np.repeat(pixels[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        picture = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", picture.size)
        image.paste(picture, mask=picture.getchannel("A"))
        picture.close()  # frees its memory
    return np.array(image if image.mode == mode else image.convert(mode))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in px of a PNG, JPEG, BMP or TIFF as returned by `read_image`, from the header alone.

    Raises FileNotFoundError for a missing file, and ImageError for an unreadable header.
    """
    try:
        require_file(path)
        with path.open("rb") as file:
            image = _open(file)
            # Without EXIF in the header, Pillow decodes a whole PNG to find it. The size of a TIFF includes rotation.
            in_header = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = in_header and image.getexif().get(0x0112, 1) >= 5  # orientations 5-8 swap the sides
            return image.size[::-1] if turned else image.size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except Exception as error:  # damaged headers raise all kinds of exceptions
        raise ImageError(f"{path}: {first_line(error)}") from error


def _to_8_bit(pixels: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not math.isfinite(high - low):
        raise ImageError(f"{path}: holds values that are not numbers")
    if low < 0:
        raise ImageError(f"{path}: holds negative values; save it as unsigned 8 or 16 bit")
    if high <= 1 and not float(high).is_integer():
        top = 1.0  # floating point in 0-1
    else:
        top = 2.0 ** max(8, math.ceil(math.log2(high + 1))) - 1
    grey = np.empty(pixels.shape, np.uint8)
    for row, values in enumerate(pixels):  # row by row: saves several copies in floating point
        grey[row] = np.round(values.astype(np.float32) * np.float32(255 / top))
    return grey


def is_dicom(path: Path) -> bool:
    """True for a DICOM file, by its suffix or by the prefix after the preamble. Raises OSError if it is unreadable."""
    require_file(path)
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def without_suffix(path: Path) -> Path:
    """The path without the suffix of a picture format; names like 1.2.840.5 have none."""
    return path.with_suffix("") if path.suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES) else path


def _read_dicom(path: Path, mode: str) -> Picture:
    """Grey as in a viewer: rescaled, with the first VOI look-up table or window, bone bright; then stretched to 0-255,
    because a window may be far wider than the range of values."""
    import pydicom  # imported on use: takes half a second
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.uid import ImplicitVRLittleEndian

    try:
        with path.open("rb") as file:
            if DEFLATED in file.read(2**20):  # pydicom would inflate it without a size limit
                raise ImageError(f"{path}: deflated DICOM is not supported; save it without deflate")
        dataset = pydicom.dcmread(path, force=True)  # also without preamble, as written by older programs
        if "PixelData" not in dataset:
            raise ImageError(f"{path}: holds no picture, or is not a DICOM file")
        if (dataset.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"{path}: holds several frames; give one picture")
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default, PS3.5 section 10.1
        count = dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1)
        if count > LARGEST:
            raise ImageError(f"{path}: {dataset.Columns}×{dataset.Rows} px exceed {LARGEST:,} px; downscale it")
        values = dataset.pixel_array
        kind = dataset.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
        elif values.ndim == 2:
            values = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(np.float32)
    except (ImageError, OSError):
        raise
    except Exception as error:  # damaged files raise all kinds of exceptions
        if "missing dependencies" in str(error):  # pydicom's list of decoders has several lines
            compression = dataset.file_meta.TransferSyntaxUID.name
            raise ImageError(f'{path}: to read its {compression}, pip install "pylibjpeg[all]"') from error
        raise ImageError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if values.ndim == 3:  # colour, converted to RGB by pydicom
        image = Image.fromarray(_to_8_bit(values, path)).convert(mode)
        return Picture(np.array(image), _dicom_spacing(dataset))
    low, high = float(values.min()), float(values.max())
    values = (values - low) / max(high - low, 1e-6)
    if kind == "MONOCHROME1":  # high values are dark
        values = 1 - values
    pixels = np.round(values * 255).astype(np.uint8)
    return Picture(pixels if mode == "L" else np.repeat(pixels[..., None], 3, axis=2), _dicom_spacing(dataset))


def _dicom_spacing(dataset) -> tuple[float, float] | None:
    """Pixel size (x, y) in mm in the patient or, without a magnification factor, at the detector; None if unknown.

    PixelSpacing, unless it equals ImagerPixelSpacing: then the picture is not corrected for magnification (DICOM PS3.3,
    10.7.1.1), and ImagerPixelSpacing (at the detector) is divided by EstimatedRadiographicMagnificationFactor (source-
    detector over source-patient distance).
    """
    patient, detector = (_pair(dataset.get(name)) for name in ("PixelSpacing", "ImagerPixelSpacing"))
    if detector is None or patient not in (None, detector):
        return patient
    magnification = max(1.0, float(dataset.get("EstimatedRadiographicMagnificationFactor") or 1))
    return detector[0] / magnification, detector[1] / magnification


def _pair(spacing) -> tuple[float, float] | None:
    """(x, y) of a DICOM spacing (y, x); None unless both are positive, since some files hold 0."""
    try:
        y, x = map(float, spacing)
    except (TypeError, ValueError):
        return None
    return (x, y) if x > 0 and y > 0 else None
