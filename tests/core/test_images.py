import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from core.images import ImageError, Letterbox, picture_size, read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 60), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(GREY))
    assert np.array_equal(read_image(path).pixels, GREY)
    assert read_image(path).mm_per_px is None
    assert np.array_equal(read_image(path, "RGB").pixels, np.repeat(GREY[..., None], 3, axis=2))


def test_jpeg_comes_back_nearly(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 60), (40, 1)).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(smooth), quality=95)
    assert np.abs(read_image(path).pixels.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(("top", "suffix"), [(65535, "png"), (65535, "tif"), (4095, "png"), (1023, "tif")])
def test_deep_pictures_are_scaled_by_the_bits_they_use(tmp_path, top, suffix):
    deep = np.linspace(0, top, 2400).reshape(40, 60).astype(np.uint16)
    path = saved(tmp_path / f"deep.{suffix}", Image.fromarray(deep))
    assert np.array_equal(read_image(path).pixels, np.round(deep * (255 / top)).astype(np.uint8))


def test_floating_point_tiff(tmp_path):
    path = saved(tmp_path / "f.tif", Image.fromarray(np.linspace(0, 0.9, 2400, dtype=np.float32).reshape(40, 60)))
    assert read_image(path).pixels.max() == round(0.9 * 255)
    broken = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(ImageError, match="not numbers"):
        read_image(saved(tmp_path / "nan.tif", Image.fromarray(broken)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_header_tells_the_size(tmp_path, suffix, orientation):
    smooth = np.add.outer(np.arange(40) * 2, np.arange(60)).astype(np.uint8)  # no corner like another; JPEG keeps it
    image = Image.fromarray(smooth)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif)
    # The EXIF standard: what the first row and the first column of the file are in the shown picture.
    shown = {
        1: smooth, 2: smooth[:, ::-1], 3: smooth[::-1, ::-1], 4: smooth[::-1],
        5: smooth.T, 6: smooth[::-1].T, 7: smooth[::-1, ::-1].T, 8: smooth[:, ::-1].T,
    }[orientation]  # fmt: skip
    pixels = read_image(path).pixels
    assert pixels.shape == shown.shape
    assert np.abs(pixels.astype(int) - shown).max() <= (3 if suffix == "jpg" else 0)
    assert picture_size(path) == shown.shape[::-1]


def test_a_header_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        picture_size(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png"):
        picture_size(tmp_path / "text.png")
    with pytest.raises(ImageError):
        picture_size(tmp_path)


def test_transparency_is_put_on_black(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., :3] = 200  # white-ish under full transparency: must not show
    rgba[:4, :, 3] = 255
    path = saved(tmp_path / "a.png", Image.fromarray(rgba))
    pixels = read_image(path).pixels
    assert (pixels[:4] == 200).all()
    assert (pixels[4:] == 0).all()


def test_palettes_are_resolved(tmp_path):
    path = saved(tmp_path / "p.png", Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE, colors=256))
    assert Image.open(path).mode == "P"
    assert np.abs(read_image(path).pixels.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((32, 48), np.uint8)
    upright[:16, :24] = 255  # bright corner at the top left
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "e.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(read_image(path).pixels, upright)


def test_cmyk_and_bilevel(tmp_path):
    cmyk = saved(tmp_path / "c.jpg", Image.new("CMYK", (20, 10), (0, 0, 0, 255)))
    assert read_image(cmyk, "RGB").pixels.max() < 30
    bilevel = saved(tmp_path / "b.png", Image.new("1", (20, 10), 1))
    assert (read_image(bilevel).pixels == 255).all()


def test_broken_files_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(GREY).save(whole, "PNG")
    files = {"truncated.png": whole.getvalue()[:-600], "empty.png": b"", "text.jpg": b"hello", "text.dcm": b"hello"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "missing.png")


def test_a_bomb_is_refused_and_95_megapixels_are_not(tmp_path):
    large = saved(tmp_path / "large.png", Image.new("L", (10000, 9500), 7))
    assert read_image(large).pixels.shape == (9500, 10000)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(saved(tmp_path / "bomb.png", Image.new("1", (20000, 20000))))


def dicom(path, pixels, **attributes):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_polarity_and_spacing(tmp_path):
    ramp = np.linspace(0, 4095, 2400).reshape(40, 60).astype(np.uint16)
    plain = read_image(dicom(tmp_path / "a.dcm", ramp, PixelSpacing=[0.2, 0.1]))
    assert plain.mm_per_px == (0.1, 0.2)  # DICOM names the row spacing first; we give x, y
    assert plain.pixels[0, 0] == 0
    assert plain.pixels[-1, -1] == 255
    inverse = read_image(dicom(tmp_path / "b.dcm", ramp, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverse.pixels, 255 - plain.pixels)
    assert inverse.mm_per_px is None
    detector = read_image(dicom(tmp_path / "c.dcm", ramp, ImagerPixelSpacing=[0.143, 0.143]))
    assert detector.mm_per_px == (0.143, 0.143)


def test_a_real_dicom_file():
    picture = read_image(get_testdata_file("CT_small.dcm"))
    assert picture.pixels.shape == (128, 128)
    assert picture.mm_per_px == pytest.approx((0.661468, 0.661468))
    assert picture.pixels.std() > 20


@pytest.mark.parametrize("size", [(2400, 1935), (777, 1001), (512, 512), (30, 1000), (1, 1)])
def test_letterbox_coordinates_follow_the_pixels(size):
    """A bright blob drawn natively has its centre of mass where `to_frame` says."""
    box = Letterbox(size, (256, 192))
    width, height = size
    x, y = 0.3 * (width - 1), 0.6 * (height - 1)
    sigma = max(4.0, 3 / box.scale)
    ys, xs = np.mgrid[:height, :width]
    blob = (255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))).astype(np.uint8)
    frame = box.draw(blob)
    assert frame.shape == (192, 256)
    expected = box.to_frame(np.array([x, y]))
    assert np.allclose(box.to_picture(expected), [x, y])
    if min(size) > 100:
        rows, columns = np.mgrid[:192, :256]
        mass = frame.astype(float)
        centre = np.array([(columns * mass).sum(), (rows * mass).sum()]) / mass.sum()
        assert np.abs(centre - expected).max() < 0.06


def test_letterbox_never_squashes():
    box = Letterbox((1000, 333), (512, 512))
    points = box.to_frame(np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]]))
    lengths = np.linalg.norm(points[1:] - points[0], axis=1)
    assert lengths[0] == pytest.approx(lengths[1])
    frame = box.draw(np.full((333, 1000), 255, np.uint8))
    assert (frame[frame.any(axis=1)] == 255).all()
    assert frame.any(axis=1).sum() == int(333 * 0.512)
