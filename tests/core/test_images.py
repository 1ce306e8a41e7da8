import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset

from core.images import ImageError, is_dicom, picture_size, read_image, without_suffix
from core.windows import Letterbox
from files import dicom

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


RAMP = np.linspace(0, 4095, 2400).reshape(40, 60).astype(np.uint16)


def test_dicom_polarity_and_spacing(tmp_path):
    plain = read_image(dicom(tmp_path / "a.dcm", RAMP, PixelSpacing=[0.2, 0.1]))
    assert plain.mm_per_px == (0.1, 0.2)  # DICOM names the row spacing first; we give x, y
    assert plain.pixels[0, 0] == 0
    assert plain.pixels[-1, -1] == 255
    inverse = read_image(
        dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    assert np.array_equal(inverse.pixels, 255 - plain.pixels)  # once: the shape says it again
    assert inverse.mm_per_px is None
    assert np.array_equal(read_image(tmp_path / "a.dcm", "RGB").pixels, np.repeat(plain.pixels[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ImagerPixelSpacing": [0.15, 0.143]}, (0.143, 0.15)),
        ({"ImagerPixelSpacing": [0.143, 0.143], "EstimatedRadiographicMagnificationFactor": 1.1}, (0.13, 0.13)),
        ({"ImagerPixelSpacing": [0.143, 0.143], "EstimatedRadiographicMagnificationFactor": 0}, (0.143, 0.143)),
        # Calibrated: not corrected again.
        (
            {
                "PixelSpacing": [0.12, 0.12],
                "ImagerPixelSpacing": [0.143, 0.143],
                "EstimatedRadiographicMagnificationFactor": 1.1,
            },
            (0.12, 0.12),
        ),
        # A copy of the detector's says nothing of the patient (DICOM PS3.3, 10.7.1.1).
        (
            {
                "PixelSpacing": [0.143, 0.143],
                "ImagerPixelSpacing": [0.143, 0.143],
                "EstimatedRadiographicMagnificationFactor": 1.1,
            },
            (0.13, 0.13),
        ),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": 0.1}, None),
        ({"PixelSpacing": None}, None),
    ],
)
def test_the_spacing_of_a_dicom_file_is_that_in_the_patient(tmp_path, attributes, expected):
    assert read_image(dicom(tmp_path / "a.dcm", RAMP, **attributes)).mm_per_px == (expected and pytest.approx(expected))


def test_a_dicom_window_clips(tmp_path):
    """PS3.3, C.11.2.1.2: from centre - 0.5 - (width - 1) / 2 black, to centre - 0.5 + (width - 1) / 2 white."""
    grey = np.clip((RAMP - 499.5 + 100) / 200, 0, 1) * 255
    window = {"WindowCenter": 500, "WindowWidth": 201}
    shown = read_image(dicom(tmp_path / "a.dcm", RAMP, **window)).pixels
    assert np.abs(shown - grey).max() <= 0.51
    dark = read_image(dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **window)).pixels
    assert np.array_equal(dark, 255 - shown)
    several = {"WindowCenter": [500, 2000], "WindowWidth": [201, 4000]}
    assert np.array_equal(read_image(dicom(tmp_path / "c.dcm", RAMP, **several)).pixels, shown)  # the first
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": -0.5, "WindowWidth": 401}
    assert np.abs(read_image(dicom(tmp_path / "d.dcm", RAMP, **rescaled)).pixels - grey).max() <= 0.51 + 255 / 400
    wide = read_image(dicom(tmp_path / "e.dcm", RAMP, WindowCenter=2048, WindowWidth=65536)).pixels
    assert np.array_equal(wide, read_image(dicom(tmp_path / "f.dcm", RAMP)).pixels)
    with pytest.raises(ImageError, match=r"g\.dcm.*Window Width"):
        read_image(dicom(tmp_path / "g.dcm", RAMP, WindowCenter=0, WindowWidth=0))


def test_a_dicom_look_up_table_comes_before_the_window(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.linspace(0, 1, 4096) ** 2 * 65535).astype("<u2").tobytes()
    attributes = {"VOILUTSequence": [table], "WindowCenter": 500, "WindowWidth": 201}
    shown = read_image(dicom(tmp_path / "a.dcm", RAMP, **attributes)).pixels
    assert np.abs(shown - (RAMP / 4095.0) ** 2 * 255).max() <= 0.51


def test_signed_and_constant_dicom_values(tmp_path):
    signed = (RAMP.astype(np.int16) - 2048).view(np.uint16)
    shown = read_image(dicom(tmp_path / "a.dcm", signed, PixelRepresentation=1, BitsStored=16, HighBit=15)).pixels
    assert np.array_equal(shown, read_image(dicom(tmp_path / "b.dcm", RAMP)).pixels)
    flat = np.full((4, 6), 7, np.uint16)
    assert (read_image(dicom(tmp_path / "c.dcm", flat)).pixels == 0).all()
    window = {"WindowCenter": 7, "WindowWidth": 1}
    assert len(np.unique(read_image(dicom(tmp_path / "d.dcm", flat, **window)).pixels)) == 1


def test_dicom_palettes_are_resolved(tmp_path):
    palette = RNG.permutation(256).astype(np.uint16) * 257  # 16 bit; an index says nothing of its grey
    tables = {f"{colour}PaletteColorLookupTableData": palette.tobytes() for colour in ("Red", "Green", "Blue")}
    tables |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")}
    path = dicom(tmp_path / "a.dcm", GREY.astype(np.uint16), PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.array_equal(read_image(path).pixels, palette[GREY] // 257)


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2.5", "a.ima"])
def test_dicom_is_known_by_its_content(tmp_path, name):
    path = dicom(tmp_path / name, RAMP, PixelSpacing=[0.1, 0.1])
    assert is_dicom(path)
    assert read_image(path).mm_per_px == (0.1, 0.1)
    assert not is_dicom(saved(tmp_path / "a.png", Image.fromarray(GREY)))


@pytest.mark.parametrize(
    ("name", "stem"), [("a/b.PNG", "a/b"), ("a/1.2.840.5", "a/1.2.840.5"), ("x.tar.dcm", "x.tar"), ("plain", "plain")]
)
def test_what_is_a_suffix(name, stem):
    assert without_suffix(Path(name)) == Path(stem)


def test_dicom_without_a_preamble(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    whole = read_image(path).pixels
    dataset = pydicom.dcmread(path)
    for implicit in (True, False):
        dataset.file_meta = FileMetaDataset()
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        dataset.preamble = None
        assert np.array_equal(read_image(path).pixels, whole)
    assert path.read_bytes()[128:132] != b"DICM"


def test_dicom_files_that_hold_no_single_picture(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames, dataset.Rows = 2, 20
    dataset.save_as(path)
    with pytest.raises(ImageError, match=r"a\.dcm: holds several frames"):
        read_image(path)
    dataset.NumberOfFrames, dataset.Rows = None, 40
    dataset.save_as(path)
    with pytest.warns(UserWarning, match="Number of Frames"):
        assert read_image(path).pixels.shape == (40, 60)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(ImageError, match=r"a\.dcm: holds no picture"):
        read_image(path)
    with pytest.raises(ImageError, match=r"b\.dcm: no such file"):
        read_image(tmp_path / "b.dcm")


def test_compressed_dicom(monkeypatch):
    """JPEG 2000 is read with Pillow alone; a plugin that is missing is named in one line."""
    uncompressed = read_image(get_testdata_file("MR_small.dcm"))
    compressed = read_image(get_testdata_file("MR_small_jp2klossless.dcm"))
    assert np.array_equal(compressed.pixels, uncompressed.pixels)
    assert compressed.mm_per_px == uncompressed.mm_per_px
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(ImageError, match=r"jpeg_ls.*\.dcm: to read its JPEG-LS.*pip install \"pylibjpeg\[all\]\"$"):
        read_image(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))


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
