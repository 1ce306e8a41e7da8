"""Reads the dict in a .npy file that `np.save(file, {...}, allow_pickle=True)` wrote, without running code in it.

A pickle is a program: it names functions of any installed module and calls them. Here every name that it may use stands
for a function of this file, which builds plain data and checks its arguments; no other name is ever looked up. NumPy's
own functions are not among them: `dtype.__setstate__` believes flags from the file, by which bytes become pointers, and
`ndarray.__setstate__` reads past the end of a list that is shorter than its shape (both in NumPy 2.4).
"""

import copyreg
import io
import math
import pickle
import pickletools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from core.errors import UserError, first_line
from core.files import read_bytes

MOST_TUPLES = 2**22  # of a manifest of a million pictures
WAY_OUT = "save the dict with plain lists and arrays, or the list as a CSV"


def read_npy(file: Path) -> dict:
    """The dict in `file`: lists, tuples, sets, texts, numbers and NumPy arrays of these, of NumPy 1.x and 2.x.

    Paths of pathlib come as texts. Raises UserError if it is no .npy file, a damaged one, holds no dict, or its pickle
    names anything else, which is then neither imported nor called.
    """
    file = Path(file)
    try:
        content = read_bytes(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except Exception as error:  # the header is parsed as Python text, and a damaged one fails in any way
        raise UserError(f"{file}: no .npy file, or a damaged one: {first_line(error)}") from error
    if not dtype.hasobject:
        raise UserError(f"{file} holds an array {shape} of {dtype}, not a dict; {WAY_OUT}")
    if shape != ():
        raise UserError(f"{file} holds an array {shape} of objects, not a dict; np.save the dict itself")
    try:
        return _unpickle(file, content[stream.tell() :])
    except UserError:
        raise
    except Exception as error:  # the pickle module promises no kind of error for a damaged file
        raise UserError(f"{file}: its pickle is damaged: {first_line(error)}; save it again") from error


def _unpickle(file: Path, payload: bytes) -> dict:
    tuples = 0
    for opcode, argument, _ in pickletools.genops(payload):
        # The memo is a list in C, as long as the highest index: a file of 20 bytes could ask for gigabytes.
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(payload):
            raise pickle.UnpicklingError(f"memo index {argument} in {len(payload)} bytes")
        tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
    if tuples > MOST_TUPLES:
        raise pickle.UnpicklingError(f"{tuples} tuples in it")
    copyreg.clear_extension_cache()  # what it holds is handed out without a call of find_class
    # As a key, a tuple of tuples of tuples … is hashed in C by calls inside each other, of less than 100 bytes each:
    # without room for them on the stack the process would die.
    usual = threading.stack_size(2**23 + 2**12 * (tuples // 16))
    try:
        with ThreadPoolExecutor(1) as pool:
            array = pool.submit(_Unpickler(file, io.BytesIO(payload)).load).result()
    finally:
        threading.stack_size(usual)
    if not isinstance(array, _Array) or array.shape != () or not isinstance(array.item(), dict):
        raise UserError(f"{file} holds no dict; {WAY_OUT}")
    return array.item()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Path, stream: io.BytesIO):
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str) -> object:
        try:
            return ADMITTED[module, name]
        except KeyError:
            refused = ascii(f"{module}.{name}")[1:-1]  # the name is the file's: no control characters on the terminal
            raise UserError(
                f"{self.file}: refused, it would load {refused}, which is neither a plain container nor a NumPy array; "
                f"nothing of it was run; {WAY_OUT}"
            ) from None


class _Function:
    """What a pickle may call: no class, so that it makes no other instance, and without a state that it could set."""

    __slots__ = ("_build",)

    def __init__(self, build):
        self._build = build

    def __call__(self, *arguments):
        return self._build(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it sets the state of a function")


class _Dtype:
    """Stands in for numpy.dtype: numbers, texts, bytes and objects, nothing structured."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r"[biufSUO]\d{1,9}", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest of the state follows from the code


class _Array(np.ndarray):
    """An array whose content is checked against its shape and type before NumPy takes it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, in_columns, content = state
        dtype = kind.dtype
        if not all(type(side) is int and side >= 0 for side in shape) or (
            math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 2**63  # which an empty side hides
        ):
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        expected = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if type(content) is not (list if dtype.hasobject else bytes) or len(content) != expected or not dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype} has another content")
        super().__setstate__((1, shape, dtype, bool(in_columns), content))
        if dtype.kind == "U":
            self.tolist()  # raises for what is no Unicode, here and not where a text is used


def _empty(*_) -> _Array:
    return np.zeros(0).view(_Array)


def _from_buffer(content: bytes | bytearray, kind: _Dtype, shape: tuple, order: str) -> _Array:
    if not isinstance(content, bytes | bytearray):  # bytes(10**12) is a bomb
        raise pickle.UnpicklingError("an array from something other than bytes")
    array = _empty()
    array.__setstate__((1, shape, kind, order == "F", bytes(content)))
    return array


def _scalar(kind: _Dtype, content: bytes) -> np.generic:
    if kind.dtype.hasobject or type(content) is not bytes or len(content) != kind.dtype.itemsize:
        raise pickle.UnpicklingError(f"a number of type {kind.dtype} has another content")
    return np.ndarray((), kind.dtype, content)[()]


ADMITTED = {
    ("numpy", "ndarray"): "numpy.ndarray",  # only named in a call of _reconstruct, never called
    ("numpy", "dtype"): _Function(_Dtype),
    ("builtins", "set"): _Function(set),
    ("builtins", "frozenset"): _Function(frozenset),
    ("collections", "OrderedDict"): _Function(dict),
}
for package in ("numpy.core", "numpy._core"):  # before NumPy 2, and from it on
    ADMITTED[f"{package}.multiarray", "_reconstruct"] = _Function(_empty)
    ADMITTED[f"{package}.multiarray", "scalar"] = _Function(_scalar)
    ADMITTED[f"{package}.numeric", "_frombuffer"] = _Function(_from_buffer)
for module in ("pathlib", "pathlib._local"):  # up to Python 3.12, and in 3.13
    for name in ("PosixPath", "PurePosixPath"):
        ADMITTED[module, name] = _Function(lambda *parts: str(PurePosixPath(*parts)))
    for name in ("WindowsPath", "PureWindowsPath"):
        ADMITTED[module, name] = _Function(lambda *parts: PureWindowsPath(*parts).as_posix())
