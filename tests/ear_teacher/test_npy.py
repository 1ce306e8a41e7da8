"""The restricted reader of pickled dicts: what np.save writes comes back, and nothing in a hostile file is run."""

import contextlib
import copyreg
import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest

from core.errors import UserError
from ear.npy import ADMITTED, read_npy

HEADER = io.BytesIO()
np.lib.format.write_array_header_1_0(HEADER, {"descr": "|O", "fortran_order": False, "shape": ()})
HEADER = HEADER.getvalue()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train_teacher.npy"


def with_pickle(file, payload):
    file.write_bytes(HEADER + payload)
    return file


def of_protocol(file, content, protocol):
    """As np.save writes it, which is protocol 3 in NumPy 1 and 4 in NumPy 2."""
    array = np.empty((), object)
    array[()] = content
    return with_pickle(file, pickle.dumps(array, protocol=protocol))


CONTENT = {
    "image_paths": ["a/ä.png", np.str_("b.png"), np.str_(""), b"c.png"],
    "bboxes": np.arange(12.0, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big_endian": np.array([1, -2], ">i4"),
    "mixed": [np.array([1.5, 2]), [1, None, True], (2, 3.5), np.float32(0.5), np.int64(7), np.bool_(True)],
    "texts": np.array(["left", "r", ""]),
    "bytes": np.array([b"x", b"yz"]),
    "objects": np.array([None, "a", [1, 2]], object),
    "sets": [{1, 2}, frozenset("ab")],
    "ordered": OrderedDict(b=1, a=2),
    "nothing": np.zeros((0, 4)),
    "number": np.array(3.5),
}


def assert_same(found, expected):
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype.newbyteorder("=")  # NumPy turns them as it reads
        assert found.shape == expected.shape
        assert found.tolist() == expected.tolist()
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected
        assert type(found) is (dict if isinstance(expected, OrderedDict) else type(expected))


def test_what_np_save_wrote_comes_back(file):
    np.save(file, CONTENT, allow_pickle=True)
    found = read_npy(file)
    assert list(found) == list(CONTENT)
    for name, expected in CONTENT.items():
        assert_same(found[name], expected)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core."])
def test_files_of_both_numpys_and_every_protocol(file, protocol, core):
    """NumPy 1 names numpy.core, one letter less: the lengths in the pickle are those of its own names."""
    of_protocol(file, CONTENT, protocol)
    old = file.read_bytes()
    if core == b"numpy.core.":
        for name in (b"multiarray", b"numeric"):
            new_name, old_name = b"numpy._core." + name, b"numpy.core." + name
            old = old.replace(bytes([len(new_name)]) + new_name, bytes([len(old_name)]) + old_name)
            old = old.replace(b"c" + new_name, b"c" + old_name)
        assert b"_core" not in old
        if protocol > 3:  # frames say how long they are
            old = without_frames(old)
        file.write_bytes(old)
    for name, expected in CONTENT.items():
        assert_same(read_npy(file)[name], expected)


def without_frames(content):
    at = content.index(b"\x95", len(HEADER))
    return content[:at] + content[at + 9 :]


def test_paths_of_pathlib_come_as_texts(file):
    paths = [Path("a") / "b.png", PurePosixPath("/c/d.png"), PureWindowsPath(r"e\f.png")]
    np.save(file, {"image_paths": paths}, allow_pickle=True)
    assert read_npy(file)["image_paths"] == ["a/b.png", "/c/d.png", "e/f.png"]


# ------------------------------------------------------------------------------------------------------ hostile files


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (
            (self.function, self.arguments, self.state) if self.state is not None else (self.function, self.arguments)
        )


def refused(file, name):
    with pytest.raises(UserError) as caught:
        read_npy(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: refused, it would load {name}, ")
    assert "\n" not in text
    assert text.endswith("save the dict with plain lists and arrays, or the list as a CSV")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_command_is_not_run(file, tmp_path, protocol):
    mark = tmp_path / "mark"
    of_protocol(file, {"image_paths": ["a.png", Call(os.system, f"touch {mark}")]}, protocol)
    refused(file, f"{os.name}.system")
    assert not mark.exists()
    np.load(file, allow_pickle=True)  # the file works: it does run where nobody looks
    assert mark.exists()


def test_python_code_is_not_run(file, tmp_path):
    code = f"open({str(tmp_path / 'mark')!r}, 'w')"
    for function, name in ((eval, "builtins.eval"), (exec, "builtins.exec"), (getattr, "builtins.getattr")):
        of_protocol(file, {"image_paths": [[Call(function, code, "x")]]}, 4)
        refused(file, name)
    nested = Call(map, Call(eval, code), [1])
    of_protocol(file, {"a": np.array([{"b": (nested,)}], object)}, 4)
    refused(file, "builtins.map")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.testing", "runstring"),
        ("numpy.f2py", "compile"),
        ("numpy.lib.npyio", "load"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy", "ndarray.tofile"),  # protocol 4 walks along dots
        ("numpy.core.multiarray", "scalar.__class__"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("numpy._core", "multiarray._reconstruct"),
        ("numpy._core.multiarray", "fromfile"),
        ("builtins", "bytearray"),  # a number makes gigabytes of it
        ("copyreg", "_reconstructor"),
        ("npy_manifest", "ADMITTED"),
        ("__main__", "x"),
        ("no such module", "x"),
        ("os\n\x1b[31m", "sys\u202etem"),
    ],
)
def test_names_are_refused_unseen(file, module, name):
    before = set(sys.modules)
    texts = b"".join(b"\x8c" + bytes([len(text.encode())]) + text.encode() for text in (module, name))
    with_pickle(file, b"\x80\x04" + texts + b"\x93.")  # STACK_GLOBAL
    refused(file, ascii(f"{module}.{name}")[1:-1])
    assert set(sys.modules) <= before | {"numpy.core"}


def test_old_opcodes_are_refused_alike(file):
    with_pickle(file, b"(S'echo'\niposix\nsystem\n.")  # INST
    refused(file, "posix.system")
    with_pickle(file, b"cposix\nsystem\n(S'echo'\ntR.")  # GLOBAL, REDUCE
    refused(file, "posix.system")
    with_pickle(file, b"(cposix\nsystem\nS'echo'\no.")  # OBJ
    refused(file, "posix.system")


def test_the_extension_registry_is_no_way_round(file, monkeypatch):
    copyreg.add_extension("posix", "system", 200)
    try:
        with_pickle(file, b"\x80\x02\x82\xc8.")  # EXT1 200
        refused(file, "posix.system")
        assert pickle.loads(b"\x80\x02\x82\xc8.") is os.system  # and stays in a cache that pickle looks at first
        refused(file, "posix.system")
    finally:
        copyreg.remove_extension("posix", "system", 200)


def damaged(file, payload, match="pickle is damaged"):
    with_pickle(file, payload)
    with pytest.raises(UserError, match=match) as caught:
        read_npy(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_persistent_ids_lead_nowhere(file):
    damaged(file, b"Pname\n.")
    damaged(file, b"\x80\x02K\x01Q.")


def protocol_2(module, name):
    return f"c{module}\n{name}\n".encode()


def test_what_stands_for_numpy_cannot_be_changed(file):
    """BUILD would set the attributes of a function or class; NEWOBJ would make another instance of it."""
    before = dict(ADMITTED)
    for (module, name), value in before.items():
        for tail in (b"}\x8c\x01a\x8c\x01bsb.", b"N}\x8c\x08__call__\x8c\x01bs\x86b.", b")\x81.", b")}\x92."):
            damaged(file, b"\x80\x04" + protocol_2(module, name) + tail)
        assert not hasattr(value, "a")
    assert before == ADMITTED
    damaged(file, b"\x80\x04" + protocol_2("numpy", "ndarray") + b"K\x05\x85R.")  # ndarray is named, never called


DTYPE = protocol_2("numpy", "dtype")
ARRAY = protocol_2("numpy._core.multiarray", "_reconstruct") + b")R"


def dumped(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def state_of_array(shape, code, content, flags=None):
    dtype = DTYPE + dumped((code, False, True)) + b"R"
    if flags is not None:
        dtype += dumped((3, "|", None, None, None, -1, -1, flags)) + b"b"
    return b"(K\x01" + dumped(shape) + dtype + b"\x89" + content + b"tb"


@pytest.mark.parametrize(
    ("shape", "code", "content"),
    [
        ((10**15,), "f8", b"C\x00"),  # a petabyte by its shape
        ((2**62, 4), "f8", b"C\x00"),  # whose product overflows to 0
        ((0, 2**62, 2**62), "f8", b"C\x00"),
        ((-1, -1), "u1", b"C\x01a"),
        ((3,), "O8", b"]"),  # NumPy reads on past the end of the list
        ((1,), "O8", b"C\x08abcdefgh"),  # bytes as pointers
        ((3,), "f8", b"C\x08abcdefgh"),
        ((1,), "f8", b"](K\x01e"),
        ((10**9,), "S0", b"C\x00"),
        ((1,), "U1", b"C\x04\xff\xff\xff\xff"),  # no Unicode
        (("a",), "u1", b"C\x01a"),
        (7, "u1", b"C\x01a"),
        ((1,), "M8", b"C\x08abcdefgh"),
        ((1,), "f8,O", b"C\x10abcdefghabcdefgh"),
        ((1,), "V8", b"C\x08abcdefgh"),
    ],
)
def test_arrays_that_lie_about_their_content(file, shape, code, content):
    damaged(file, b"\x80\x03" + ARRAY + state_of_array(shape, code, content) + b".")


def test_an_array_cannot_hide_its_objects(file):
    """dtype.__setstate__ takes flags; without that of objects NumPy would take bytes for pointers."""
    damaged(file, b"\x80\x03" + ARRAY + state_of_array((1,), "O8", b"C\x08abcdefgh", flags=0) + b".")
    fields = DTYPE + dumped(("V8", False, True)) + b"R"
    damaged(file, b"\x80\x03" + fields + b".", "type 'V8'")


def test_buffers_and_numbers_are_checked_alike(file):
    dtype = {code: DTYPE + dumped((code, False, True)) + b"R" for code in ("f8", "O8", "u1")}
    scalar, buffer = (
        protocol_2("numpy._core." + place, name)
        for place, name in (("multiarray", "scalar"), ("numeric", "_frombuffer"))
    )
    damaged(file, b"\x80\x03" + scalar + b"(" + dtype["O8"] + b"C\x08abcdefghtR.")
    damaged(file, b"\x80\x03" + scalar + b"(" + dtype["f8"] + b"C\x04abcdtR.")
    damaged(file, b"\x80\x03" + buffer + b"(C\x08abcdefgh" + dtype["O8"] + b"K\x01\x85X\x01\x00\x00\x00CtR.")
    damaged(file, b"\x80\x03" + buffer + b"(" + dumped(10**12) + dtype["u1"] + b"K\x01\x85X\x01\x00\x00\x00CtR.")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # LONG_BINPUT: a memo of 4 thousand million places
        b"]p4000000000\n.",  # PUT
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",  # BINBYTES8
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",  # BYTEARRAY8
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",  # FRAME
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",  # LONG4
    ],
)
def test_sizes_that_a_file_only_claims(file, payload):
    damaged(file, payload)


# ---------------------------------------------------------------------------------------------------------- bad files


def test_every_truncation_is_said_to_be_one(file):
    np.save(file, {"image_paths": ["a.png"], "bboxes": np.zeros((1, 4))}, allow_pickle=True)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged") as caught:
            read_npy(file)
        assert "\n" not in str(caught.value)


def test_every_changed_byte_is_read_or_refused(file):
    np.save(file, {"image_paths": ["a.png"], "bboxes": np.zeros((1, 4))}, allow_pickle=True)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(HEADER), len(whole)):
        file.write_bytes(whole[:place] + rng.bytes(1) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            assert isinstance(read_npy(file), dict)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (np.zeros((3, 4)), r"holds an array \(3, 4\) of float64, not a dict"),
        (np.array([{"image_paths": []}]), r"holds an array \(1,\) of objects"),
        (["a.png"], r"holds an array \(1,\) of <U5"),
        (np.array(None, dtype=object), "holds no dict"),
        (np.array("a.png", dtype=object), "holds no dict"),
    ],
)
def test_other_contents_of_a_npy(file, content, match):
    np.save(file, content, allow_pickle=True)
    with pytest.raises(UserError, match=match):
        read_npy(file)


def test_other_files(file, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_npy(file)
    with pytest.raises(UserError, match="directory"):
        read_npy(tmp_path)
    file.write_text("image,x0\n")
    with pytest.raises(UserError, match=r"no \.npy file"):
        read_npy(file)
    with open(file, "wb") as archive:
        np.savez(archive, a=np.zeros(3))
    with pytest.raises(UserError, match=r"no \.npy file"):
        read_npy(file)
    file.write_bytes(pickle.dumps({"image_paths": []}))
    with pytest.raises(UserError, match=r"no \.npy file"):
        read_npy(file)
    with_pickle(file, pickle.dumps({"image_paths": []}))  # a dict that no array holds
    with pytest.raises(UserError, match="holds no dict"):
        read_npy(file)


def test_the_header_promises_no_memory(file):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    file.write_bytes(header.getvalue())
    with pytest.raises(UserError, match="not a dict"):
        read_npy(file)
