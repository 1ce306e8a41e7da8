"""Hostile files for tests of scripts: pictures, volumes, cubes, tables, annotations and models.

Each function writes into a folder and returns name -> file; the name describes the fault. Files are small: bombs of a
few kB to a few MB claim or expand to gigabytes. Pickles would create the folder `marker`.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from files import dicom, write_cube

MIB = 2**20
DEEP = 100_000  # brackets
TEXT = b"This is a text, and nothing else.\n" * 40


class Running:
    """An object whose pickle creates a folder when loaded without protection."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def spoil(good: Path, folder: Path) -> dict[str, Path]:
    """Faults of any kind of file, with the suffix of the good one."""
    content, suffix = good.read_bytes(), good.name[good.name.index(".") :]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("text.txt", TEXT)
    half = len(content) // 2
    contents = {"empty": b"", "one byte": content[:1], "tenth": content[: len(content) // 10], "half": content[:half]}
    contents |= {"text": TEXT, "zip": packed.getvalue(), "zeros": bytes(len(content))}
    contents |= {"start lost": content[64:], "start overwritten": b"\xff" * 64 + content[64:]}
    files = _write(folder, suffix, contents)
    places = {name: folder / f"{name}{suffix}".replace(" ", "_") for name in ("folder", "pipe", "loop", "dangling")}
    places["folder"].mkdir()
    os.mkfifo(places["pipe"])
    places["loop"].symlink_to(places["loop"].name)
    places["dangling"].symlink_to("gone" + suffix)
    return files | places


def _write(folder: Path, suffix: str, contents: dict[str, bytes]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}{suffix}".replace(" ", "_") for name in contents}
    for name, file in files.items():
        file.write_bytes(contents[name])
    return files


# ------------------------------------------------------------------------------------------------------------ pictures


def pictures(folder: Path) -> dict[str, Path]:
    """Hostile pictures of every format. One-pixel and constant pictures are valid."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8)
    files, good = {}, folder.with_name("good_inputs")
    good.mkdir(parents=True)
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        Image.fromarray(pixels).save(good / f"good{suffix}")
    dicom(good / "good.dcm", pixels.astype(np.uint16) * 16)
    for file in sorted(good.iterdir()):
        kind = file.suffix[1:]
        files |= {f"{kind}, {name}": spoilt for name, spoilt in spoil(file, folder / kind).items()}
    gif = io.BytesIO()
    Image.fromarray(pixels).save(gif, "GIF")
    files |= _write(folder, ".png", {
        "another kind": gif.getvalue(),
        "60000x60000": png(60_000, 60_000, 0, zlib.compress(bytes(4000))),
        "2147483647x1": png(2**31 - 1, 1, 0, b""),
        "no pixel": png(0, 80, 0, zlib.compress(b"")),
        "zeros 10500x10500 RGBA": png(10_500, 10_500, 6, zero_stream(10_500 * (10_500 * 4 + 1))),
        "zeros 13000x13000 16 bit": png(13_000, 13_000, 0, zero_stream(13_000 * (13_000 * 2 + 1)), bits=16),
        "text bomb": png(80, 80, 0, zlib.compress(bytes(80 * 81)), ("zTXt", b"a\0\0" + zero_stream(3000 * MIB))),
        "EXIF of noise": png(80, 80, 0, zlib.compress(bytes(80 * 81)), ("eXIf", b"MM\0*" + bytes(range(250)))),
    })  # fmt: skip
    Image.fromarray(np.full((80, 80), np.nan, np.float32)).save(folder / "not_a_number.tif")
    Image.fromarray(np.full((80, 80), -5.0, np.float32)).save(folder / "negative.tif")
    files |= {"not a number": folder / "not_a_number.tif", "negative": folder / "negative.tif"}
    return files | _dicoms(folder / "dcm", pixels.astype(np.uint16))


def png(width: int, height: int, colour: int, data: bytes, *chunks: tuple[str, bytes], bits: int = 8) -> bytes:
    """A PNG with an arbitrary header; `chunks` precede its `data`."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in (("IHDR", header), *chunks, ("IDAT", data), ("IEND", b"")):
        named = name.encode() + part
        content += struct.pack(">I", len(part)) + named + struct.pack(">I", zlib.crc32(named))
    return content


def zero_stream(count: int) -> bytes:
    """A zlib stream of `count` zeros, about 1/1000 as long, built from repeated blocks."""
    packing = zlib.compressobj(9)
    head = packing.compress(b"") + packing.flush(zlib.Z_FULL_FLUSH)
    block = packing.compress(bytes(MIB)) + packing.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    end = rest.compress(bytes(count % MIB)) + rest.flush()
    return head + block * (count // MIB) + end + struct.pack(">I", (count % 65521) << 16 | 1)


def _dicoms(folder: Path, pixels: np.ndarray) -> dict[str, Path]:
    """DICOM files with inconsistent headers, and bombs."""
    headers = {
        "claims 65535x65535": {"Rows": 65535, "Columns": 65535},
        "no rows": {"Rows": 0},
        "million frames": {"NumberOfFrames": 10**6},
        "frames in words": {"NumberOfFrames": "1"},
        "three samples": {"SamplesPerPixel": 3},
        "64 bits": {"BitsAllocated": 64},
        "negative spacing": {"PixelSpacing": [-1, -1]},
        "unequal spacing": {"PixelSpacing": [0.1, 5]},
        "slope nan": {"RescaleSlope": "1", "RescaleIntercept": "1e300"},
    }
    files = {
        f"dcm, {name}": dicom(folder / f"{name}.dcm".replace(" ", "_"), pixels, **h) for name, h in headers.items()
    }
    good = dicom(folder / "plain.dcm", pixels, Rows=65535, Columns=65535)
    content = good.read_bytes()
    good.unlink()
    # PS3.5 annex A: after the meta information, one deflate stream, or run lengths per frame.
    for name, syntax in (("deflate bomb", b"1.2.840.10008.1.2.1.99"), ("run length bomb", b"1.2.840.10008.1.2.5")):
        start = content.index(b"1.2.840.10008.1.2.1\0")
        file = folder / f"{name}.dcm".replace(" ", "_")
        meta_end = 132 + 12 + int.from_bytes(content[140:144], "little")
        syntax += b"\0" * (len(syntax) % 2)
        meta = content[132 : start - 2] + struct.pack("<H", len(syntax)) + syntax + content[start + 20 : meta_end]
        length = struct.pack("<I", int.from_bytes(meta[8:12], "little") + len(syntax) - 20)
        meta = meta[:8] + length + meta[12:]
        body = content[meta_end:]
        if "deflate" in name:
            packing = zlib.compressobj(9, wbits=-15)
            body = packing.compress(body) + packing.flush(zlib.Z_FULL_FLUSH) + zero_stream(3000 * MIB)[2:]
        else:
            data = body.index(b"\xe0\x7f\x10\x00")
            runs = struct.pack("<16I", 2, 64, 64 + 2**20, *[0] * 13) + b"\x81\0" * 2**20
            item = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(runs)) + runs
            end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            body = body[:data] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + end
        file.write_bytes(content[:132] + meta + body)
        files[f"dcm, {name}"] = file
    return files


# -------------------------------------------------------------------------------------------------- volumes and cubes


def volumes(folder: Path, good: Path) -> dict[str, Path]:
    """Hostile .nii.gz, .nii and .mha. `good`: a .nii.gz."""
    files = spoil(good, folder)
    image = nib.load(good)
    voxels = np.asarray(image.dataobj.get_unscaled())
    plain = folder / "plain.nii"
    nib.Nifti1Image(voxels, image.affine).to_filename(plain)
    content = plain.read_bytes()
    plain.unlink()

    def header(**fields) -> bytes:
        """The file with other fields in its header."""
        spoilt = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            spoilt[name] = value
        return spoilt.binaryblock + content[348:]

    zero_gib = gzip.compress(bytes(MIB)) * 1024  # gzip members of 1 MiB each
    side = [3, 1024, 1024, 2048, 1, 1, 1, 1]
    huge = header(dim=side)[:352]
    nan = np.full(voxels.shape, np.nan, np.float32)
    with_nan = nib.Nifti1Image(nan, image.affine).to_bytes()
    contents = {
        "claims 32767 cubed": header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        "no slice": header(dim=[3, 64, 64, 0, 1, 1, 1, 1]),
        "negative side": header(dim=[3, -64, 64, 64, 1, 1, 1, 1]),
        "nine axes": header(dim=[9, 2, 2, 2, 2, 2, 2, 2]),
        "four axes": header(dim=[4, 2, 2, 2, 2, 1, 1, 1]),
        "colour": header(datatype=128, bitpix=24),
        "unknown type": header(datatype=999),
        "zero spacing": header(pixdim=[1, 0, 0, 0, 0, 0, 0, 0], sform_code=0),
        "negative spacing": header(pixdim=[1, -1, -1, -1, 0, 0, 0, 0], sform_code=0, qform_code=1),
        "spacing nan": header(srow_x=[np.nan] * 4, srow_y=[np.nan] * 4, srow_z=[np.nan] * 4, sform_code=1),
        "spacing zero": header(srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4, sform_code=1),
        "slope nan": header(scl_slope=np.nan, scl_inter=np.inf),
        "slope huge": header(scl_slope=1e38, scl_inter=1e38),
        "data far away": header(vox_offset=1e12),
        "data before the start": header(vox_offset=-1e9),
        "values nan": with_nan,
        "values inf": nib.Nifti1Image(nan + np.inf, image.affine).to_bytes(),
        "values zero": nib.Nifti1Image(np.zeros_like(voxels), image.affine).to_bytes(),
        "one voxel": nib.Nifti1Image(np.ones((1, 1, 1), np.int16), image.affine).to_bytes(),
    }
    files |= _write(folder, ".nii", contents)
    files |= _write(folder, ".nii.gz", {"4 GiB of zeros": gzip.compress(huge) + zero_gib * 4})
    local = "ElementDataFile = LOCAL\n"
    meta = "ObjectType = Image\nNDims = 3\nDimSize = {}\nElementType = {}\nElementSpacing = 1 1 1\n"
    zeros = meta.format("1024 1024 2048", "MET_SHORT") + "CompressedData = True\n"
    files |= _write(folder, ".mha", {
        "mha, claims": (meta.format("60000 60000 60000", "MET_SHORT") + local).encode() + bytes(1000),
        "mha, 4 GiB of zeros": (zeros + local).encode() + zero_stream(4096 * MIB),
        "mha, text": TEXT,
        "mha, traversal": (meta.format("40 40 40", "MET_UCHAR") + "ElementDataFile = ../../../outside.raw\n").encode(),
        "mha, words for numbers": (meta.format("many 40 40", "MET_SHORT") + local).encode(),
    })  # fmt: skip
    return files


def cubes(folder: Path, good: Path) -> dict[str, Path]:
    """Hostile .h5 files. `good` holds a cube (bands, height, width)."""
    files, found = spoil(good, folder), []
    with h5py.File(good) as store:
        store.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        (key,) = [name for name in found if store[name].ndim == 3]
        values = store[key][...]
    bands, height, width = values.shape
    spoilt = {
        "nan": np.where(np.arange(width) == 3, np.nan, values),
        "inf": np.where(np.arange(width) == 3, np.inf, values),
        "zeros": np.zeros_like(values),
        "too large for float32": values.astype(np.float64) * 1e300,
        "two axes": values[0],
        "no rows": values[:, :0],
        "one pixel": values[:, :1, :1],
        "bands last": values.transpose(1, 2, 0),
        "fewer bands": values[:3],
        "text": np.array([b"text"] * 3),
        "complex": values.astype(np.complex64),
        "records": np.zeros((bands, height, width), [("a", "f4"), ("b", "i2")]),
    }
    for name, array in spoilt.items():
        files[f"cube, {name}"] = write_cube(folder / f"cube_{name}.h5".replace(" ", "_"), array, key)

    def store(name: str):
        files[f"cube, {name}"] = folder / f"cube_{name}.h5".replace(" ", "_")
        return h5py.File(files[f"cube, {name}"], "w")

    with store("claims gigabytes") as file:  # none is stored: fill values only
        file.create_dataset(key, (bands, 40_000, 40_000), "f4", chunks=(1, 200, 200), compression="gzip")
    with store("claims exabytes") as file:
        file.create_dataset(key, (bands, 2**28, 2**28), "f8", chunks=(1, 200, 200))
    with store("gzip bomb") as file:
        cube = file.create_dataset(key, (bands, 8000, 8000), "f4", chunks=(1, 8000, 8000), compression="gzip")
        packed = zero_stream(8000 * 8000 * 4)
        for band in range(bands):
            cube.id.write_direct_chunk((band, 0, 0), packed)
    with store("unknown filter") as file:
        chunked = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        chunked.set_chunk((1, height, width))
        chunked.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL, ())
        group, _, dataset = key.strip("/").rpartition("/")
        space = h5py.h5s.create_simple(values.shape)
        cube = h5py.h5d.create(file.create_group(group).id, dataset.encode(), h5py.h5t.IEEE_F32LE, space, chunked)
        cube.write_direct_chunk((0, 0, 0), b"unknown")
    with store("packed damaged") as file:
        cube = file.create_dataset(key, values.shape, "f4", chunks=(1, height, width), compression="gzip")
        cube.id.write_direct_chunk((0, 0, 0), b"\x78\x9cnothing of the kind")
    with store("a group") as file:
        file.create_group(key)
    with store("nothing") as file:
        file["other"] = 1
    with store("empty") as file:
        file[key] = h5py.Empty("f4")
    with store("link to itself") as file:
        file[key] = h5py.SoftLink(key)
    with store("link to a missing file") as file:
        file[key] = h5py.ExternalLink("../../gone.h5", key)
    with store("link to its own file") as file:
        file[key] = h5py.ExternalLink(files["cube, link to its own file"].name, key)
    return files


# ------------------------------------------------------------------------------------------------- tables and JSON


def tables(good: Path, folder: Path) -> dict[str, Path]:
    """Hostile CSV tables. `good`: a table with a header and rows."""
    files, text = spoil(good, folder), good.read_text(encoding="utf-8-sig")
    header, first, *_ = text.splitlines()
    columns, cells = header.split(","), first.split(",")
    return files | _write(folder, ".csv", {
        "only a header": header.encode(),
        "UTF-16": text.encode("utf-16"),
        "Latin-1": f"{header}\nM\u00fcller{first}".encode("latin-1"),
        "NUL": text.replace(first, f"\0{first}").encode(),
        "column missing": "\n".join([",".join(columns[1:]), ",".join(cells[1:])]).encode(),
        "columns twice": "\n".join([",".join(columns * 2), ",".join(cells * 2)]).encode(),
        "long cell": f"{header}\n{'x' * 3 * MIB}{first}\n".encode(),
        "long header": ("x" * 3 * MIB + header).encode(),
        "open quote": f'{header}\n"{text * 20}'.encode(),
        "cells missing": f"{header}\n{cells[0]}\n".encode(),
        "semicolons": text.replace(",", ";").encode(),
    })  # fmt: skip


def json_files(good: Path, folder: Path, **more: object) -> dict[str, Path]:
    """Hostile JSON. `good`: a JSON file; `more`: name -> content of further ones."""
    files, text = spoil(good, folder), good.read_text(encoding="utf-8-sig")
    contents = {
        "deep lists": "[" * DEEP + "]" * DEEP,
        "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
        "deep inside": text[:1] + '"deep": ' * text.startswith("{") + "[" * DEEP + "]" * DEEP + "," + text[1:],
        "nan": "NaN",
        "null": "null",
        "a number": "7",
        "long number": "9" * 100_000,
        "a text": '"text"',
        "no list": "[]",
        "no object": "{}",
        "numbers": json.dumps(list(range(1_500_000))),
        "lists in lists": "[[1], [2]]",
    }
    contents = {name: content.encode() for name, content in contents.items()}
    contents |= {name.replace("_", " "): json.dumps(content).encode() for name, content in more.items()}
    contents |= {"UTF-16": text.encode("utf-16-le"), "Latin-1": text[:1].encode() + b"\xfc" + text[1:].encode()}
    return files | _write(folder, ".json", contents)


PATHS = {  # entries of a manifest instead of a picture
    "nothing": "",
    "missing": "gone.png",
    "folder": "..",
    "NUL": "a\0b.png",
    "line end": "a\nb.png",
    "half a character": "\ud800.png",
    "long": "x" * 5000 + ".png",
    "long way": "a/" * 5000 + "b.png",
    "device": "/dev/zero",
    "device without end": "/dev/random",
    "escape sequence": "\x1b]0;title\x07.png",
    "address": "http://localhost:9/a.png",
    "home": "~/a.png",
}


# -------------------------------------------------------------------------------------------------- pickles and models


def pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that would run code or crash the reader."""
    deep = b"\x80\x04" + b"(" * DEEP + b"l" * DEEP + b"."
    as_key = _deep_key(DEEP)
    return {
        "runs code": pickle.dumps(Running(marker)),
        "runs code, protocol 0": pickle.dumps(Running(marker), 0),
        "runs code inside": pickle.dumps({"image_paths": [Running(marker)], "state_dict": {"a": Running(marker)}}),
        "by another name": b"cbuiltins\nexec\n(S'import os; os.mkdir(%r)'\ntR." % str(marker).encode(),
        "deep lists": deep,
        "deep keys": as_key,
        "memo far away": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
        "long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "persistent": b"\x80\x04X\x01\x00\x00\x00aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "no end": b"\x80\x04]",
    }


def _deep_key(depth: int) -> bytes:
    """A pickled dict whose key is a tuple of a tuple of a tuple …"""
    return b"\x80\x04}(K\x01" + b"\x85" * depth + b"K\x01u."


def npys(folder: Path, good: Path, marker: Path) -> dict[str, Path]:
    """Hostile .npy manifests. `good`: a valid one."""
    header = b"\x93NUMPY\x01\x00"

    def described(text: bytes) -> bytes:
        return header + struct.pack("<H", len(text)) + text

    start = described(b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n")
    shape = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }\n"
    contents = {f"pickle, {name}": start + content for name, content in pickles(marker).items()} | {
        "pickle, deepest keys": start + _deep_key(30 * DEEP),
        "pickle, too many tuples": start + _deep_key(50 * DEEP),
        "claims terabytes": described(shape % b"1000000, 1000000,"),
        "object terabytes": described(b"{'descr': '|O', 'fortran_order': False, 'shape': (10000000000000,), }\n"),
        "negative side": described(shape % b"-5,"),
        "header runs code": described(b"__import__('os').mkdir('%s')\n" % str(marker).encode()),
        "deep header": described(b"(" * 9000 + b")" * 9000),
        "long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}",
        "records": described(b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (), }\n" + bytes(8)),
    }
    return spoil(good, folder) | _write(folder, ".npy", contents)


def weights(folder: Path, marker: Path) -> dict[str, Path]:
    """Hostile .pth and .safetensors files."""
    folder.mkdir(parents=True)
    good = folder / "good.pth"
    torch.save({"weight": torch.zeros(3, 3)}, good)
    tensors = folder / "good.safetensors"
    tensors.write_bytes(save({"weight": torch.zeros(3, 3)}))
    files = {f"pth, {name}": file for name, file in spoil(good, folder / "pth").items()}
    files |= {f"safetensors, {name}": file for name, file in spoil(tensors, folder / "safetensors").items()}
    contents = {f"pickle, {name}": content for name, content in pickles(marker).items()}
    for name, content in list(contents.items()):
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
        contents[f"{name}, zipped"] = zipped.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w") as data:
            for _ in range(200):
                data.write(bytes(MIB))
    contents["zip bomb"] = packed.getvalue()
    torch.save([1, 2, 3], good)
    contents["no tensor"] = good.read_bytes()
    torch.save({"weight": torch.full((3, 3), torch.nan)}, good)
    contents["other weights"] = good.read_bytes()
    files |= _write(folder, ".pth", contents)
    headers = {
        "claims exabytes": struct.pack("<Q", 2**60) + b"{}",
        "deep header": struct.pack("<Q", 2 * DEEP) + b"[" * DEEP + b"]" * DEEP,
        "offsets outside": _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**50]}}),
        "shape of terabytes": _safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}),
        "shape that overflows": _safetensors({"a": {"dtype": "F32", "shape": [2**63, 4], "data_offsets": [0, 16]}}),
        "negative shape": _safetensors({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        "pickle inside": pickle.dumps(Running(marker)),
    }
    good.unlink(), tensors.unlink()
    return files | {f"safetensors, {name}": file for name, file in _write(folder, ".safetensors", headers).items()}


def _safetensors(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def models(folder: Path, good: Path, marker: Path) -> dict[str, Path]:
    """Hostile model folders. `good`: best/ of a run. If only the content is bad, the checksums are correct."""
    weights, config = (good / "model.safetensors").read_bytes(), (good / "config.json").read_bytes()
    settings, arguments = json.loads(config), json.loads(config)["model"]
    found, digest = {}, hashlib.sha256(weights).hexdigest()

    def model(name: str, sealed: bool = True, **files: bytes | dict) -> Path:
        place = found[name] = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        seal = {}
        for file, content in {"model.safetensors": weights, "config.json": config, **files}.items():
            if content is weights:
                os.link(good / file, place / file)
                seal[file] = digest
            elif content is not None:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                (place / file).write_bytes(content)
                seal[file] = hashlib.sha256(content).hexdigest()
        if sealed:
            (place / "checksums.json").write_text(json.dumps(seal))
        return place

    for name in ("model.safetensors", "config.json", "checksums.json"):
        for fault, content in {"gone": None, "empty": b"", "text": TEXT, "deep": b"[" * DEEP + b"]" * DEEP}.items():
            model(f"{name} {fault}", **{name: content}, sealed=name != "checksums.json")
    model("weights cut off", **{"model.safetensors": weights[: len(weights) // 2]})
    model("weights of another model", **{"model.safetensors": save({"a": torch.zeros(2)})})
    model("weights a pickle", **{"model.safetensors": pickle.dumps(Running(marker))})
    model("not sealed", sealed=False)
    model("seal of others", sealed=False, **{"checksums.json": {"model.safetensors": "0"}})
    model("seal of nothing", sealed=False, **{"checksums.json": {}})
    model("seal of devices", sealed=False, **{"checksums.json": {"/dev/zero": "0"}})
    model("seal of outside", sealed=False, **{"checksums.json": {"../../../../../../../dev/zero": "0"}})
    model("seal of lists", sealed=False, **{"checksums.json": [1, 2]})
    model("seal of numbers", sealed=False, **{"checksums.json": {"model.safetensors": 7}})
    for fault in ("text", 7, None, [], {}, {"no_such": 1}):
        name = re.sub(r"\W+", " ", json.dumps(fault)).strip() or type(fault).__name__
        model(f"config model {name}", **{"config.json": settings | {"model": fault}})
    for name in settings:
        model(f"config without {name}", **{"config.json": {key: settings[key] for key in settings if key != name}})
    for name, value in arguments.items():
        for fault in ("../../../outside", -1, [[]]):
            if fault != value and not isinstance(value, bool):
                model(f"config {name} {json.dumps(fault).strip('[]')}".replace('"', "").replace("/", "-"),
                      **{"config.json": settings | {"model": arguments | {name: fault}}})  # fmt: skip
    model("config 10 MB", **{"config.json": settings | {"model": list(range(1_500_000))}})
    model("config of another kind", **{"config.json": settings | {"kind": "other"}})
    model("config nan", **{"config.json": config.replace(b"1", b"NaN", 1)})
    loop = found["config loop"] = model("loop")
    (loop / "config.json").unlink(), (loop / "config.json").symlink_to("config.json")
    pipe = found["config a pipe"] = model("pipe")
    (pipe / "config.json").unlink(), os.mkfifo(pipe / "config.json")
    return found
