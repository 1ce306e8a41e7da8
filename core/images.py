"""One reader for every kind of picture."""

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
LARGEST = 112_000_000  # px: 20 × 25 cm at 1200 dpi; some copies of it, in colour, come to 2 GiB
LARGE, ONE_AT_A_TIME = 20_000_000, threading.Lock()  # px of a picture beside which no other large one is decoded
DEFLATED = b"1.2.840.10008.1.2.1.99"


class ImageError(ValueError):
    """A picture that cannot be read. The text names the file."""


class Picture(NamedTuple):
    """Pixels uint8, (H, W) grey or (H, W, 3) RGB, and mm per pixel (x, y) where the file knows it."""

    pixels: np.ndarray
    mm_per_px: tuple[float, float] | None


def read_image(path: Path, mode: str = "L") -> Picture:
    """Reads PNG, JPEG, BMP, TIFF or DICOM (known by suffix or content) as 8-bit grey (`mode` "L") or "RGB".

    EXIF orientation is applied, transparency is put on black, palettes are resolved. Deeper pictures are scaled by
    the bits they use (a 12-bit radiograph in a 16-bit file by 255/4095), so that grey levels stay comparable between
    pictures of one device. A resolution in dpi is no pixel size (most are a default of 72 or 96), so `mm_per_px` is
    given for DICOM only. Raises ImageError if the file is missing, truncated, no picture, or over 112 megapixels.
    """
    path = Path(path)
    try:
        if is_dicom(path):
            return _read_dicom(path, mode)
        # Given a path, Pillow (11 to 13, at least) maps an uncompressed TIFF into memory by the turned size, where an
        # EXIF orientation exchanges the sides: a scrambled picture. Given an open file, it does not map.
        with path.open("rb") as file:
            image = _open(file)
            # Threads that check a data set would unpack gigabytes together.
            with ONE_AT_A_TIME if math.prod(image.size) > LARGE else nullcontext():
                return Picture(_pixels(image, mode, path), None)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture (PNG, JPEG, BMP, TIFF, DICOM)") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # a damaged file fails in any way
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: {first_line(error)}") from error


def _open(file: BinaryIO) -> Image.Image:
    """The picture, not decoded yet. Raises ValueError if it would need too much memory."""
    with warnings.catch_warnings():
        # Pillow warns above 89 megapixels, where scanned cephalograms still are.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    if math.prod(image.size) > LARGEST:
        raise ValueError(f"{image.width}×{image.height} px are too many to read; make it smaller")
    return image


def _pixels(image: Image.Image, mode: str, path: Path) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)  # otherwise a copy, also of what needs no turning
    if image.mode.startswith(("I", "F")):
        pixels = _to_8_bit(np.asarray(image), path)
        return pixels if mode == "L" else np.repeat(pixels[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        picture = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", picture.size)
        image.paste(picture, mask=picture.getchannel("A"))
        picture.close()  # gives its memory back
    return np.array(image if image.mode == mode else image.convert(mode))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in px of a PNG, JPEG, BMP or TIFF as `read_image` shows it, from the header alone.

    Raises FileNotFoundError if there is no such file, and ImageError for a header that cannot be read.
    """
    try:
        require_file(path)
        with path.open("rb") as file:
            image = _open(file)
            # Asked for EXIF that is not in its header, Pillow decodes the whole of a PNG in search of it. The size of a
            # TIFF is that of the turned picture already.
            in_header = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = in_header and image.getexif().get(0x0112, 1) >= 5  # orientations 5-8 exchange the sides
            return image.size[::-1] if turned else image.size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except Exception as error:  # a damaged header, or EXIF in it, fails in any way
        raise ImageError(f"{path}: {first_line(error)}") from error


def _to_8_bit(pixels: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not math.isfinite(high - low):
        raise ImageError(f"{path}: holds values that are not numbers")
    if low < 0:
        raise ImageError(f"{path}: holds negative values; save it as 8 or 16 bit without sign")
    if high <= 1 and not float(high).is_integer():
        top = 1.0  # floating point in 0-1
    else:
        top = 2.0 ** max(8, math.ceil(math.log2(high + 1))) - 1
    grey = np.empty(pixels.shape, np.uint8)
    for row, values in enumerate(pixels):  # all at once would need several copies in floating point
        grey[row] = np.round(values.astype(np.float32) * np.float32(255 / top))
    return grey


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix or, as many have none, by the mark after the preamble.

    Raises OSError if it cannot be read.
    """
    require_file(path)
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def without_suffix(path: Path) -> Path:
    """The path without a picture's suffix. What follows the last dot of 1.2.840.5 is none."""
    return path.with_suffix("") if path.suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES) else path


def _read_dicom(path: Path, mode: str) -> Picture:
    """Grey as a viewer shows it: rescaled, through the VOI look-up table or the window where there is one (the first),
    bone bright; then stretched to 0-255, as a window may be far wider than the values."""
    import pydicom  # only where a DICOM file is read: the import takes half a second
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.uid import ImplicitVRLittleEndian

    try:
        with path.open("rb") as file:
            if DEFLATED in file.read(2**20):  # pydicom would unpack all of it, whatever that comes to
                raise ImageError(f"{path}: its file is deflated as a whole, which is not read; save it without")
        dataset = pydicom.dcmread(path, force=True)  # also without preamble, as older programs wrote them
        if "PixelData" not in dataset:
            raise ImageError(f"{path}: holds no picture, or is no DICOM file")
        if (dataset.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"{path}: holds several frames; give one picture")
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default, PS3.5 section 10.1
        count = dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1)
        if count > LARGEST:
            raise ImageError(f"{path}: {dataset.Columns}×{dataset.Rows} px are too many to read; make it smaller")
        values = dataset.pixel_array
        kind = dataset.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
        elif values.ndim == 2:
            values = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(np.float32)
    except (ImageError, OSError):
        raise
    except Exception as error:  # a damaged file fails in any way
        if "missing dependencies" in str(error):  # pydicom's list of what could decode it has several lines
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
    """mm per pixel (x, y) in the patient, where the file knows it; at the detector, where it knows only that.

    PixelSpacing, unless it is a copy of ImagerPixelSpacing: then the picture is not corrected for magnification
    (DICOM PS3.3, 10.7.1.1), and ImagerPixelSpacing, measured at the detector, is divided by
    EstimatedRadiographicMagnificationFactor, the distance from source to detector over that from source to patient.
    """
    patient, detector = (_pair(dataset.get(name)) for name in ("PixelSpacing", "ImagerPixelSpacing"))
    if detector is None or patient not in (None, detector):
        return patient
    magnification = max(1.0, float(dataset.get("EstimatedRadiographicMagnificationFactor") or 1))
    return detector[0] / magnification, detector[1] / magnification


def _pair(spacing) -> tuple[float, float] | None:
    """(x, y) of a DICOM spacing, which gives that of rows, y, first; None unless both are positive: some write 0."""
    try:
        y, x = map(float, spacing)
    except (TypeError, ValueError):
        return None
    return (x, y) if x > 0 and y > 0 else None
