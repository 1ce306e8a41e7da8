"""Safe reading of a dict in a .npy file written by `np.save(file, {...}, allow_pickle=True)`.

A pickle can call any function of any installed module. Here each allowed name is mapped to a function of this module
that builds plain data and checks its arguments; all other names are refused. NumPy's own functions are not safe:
`dtype.__setstate__` trusts flags of the file that turn bytes into pointers, and `ndarray.__setstate__` reads beyond the
end of a list that is shorter than its shape (both in NumPy 2.4).
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

MOST_TUPLES = 2**22  # enough for a million pictures
WAY_OUT = "save the dict with plain lists and arrays, or the list as a CSV"


def read_npy(file: Path) -> dict:
    """Dict in `file`, of lists, tuples, sets, strings, numbers and NumPy arrays, written by NumPy 1.x or 2.x.

    Paths of pathlib become strings. Raises UserError if `file` is no .npy file, is damaged, holds no dict, or its
    pickle refers to anything else, which is neither imported nor called.
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
    except Exception as error:  # any type: the header is parsed as Python source
        raise UserError(f"{file}: no .npy file, or a damaged one: {first_line(error)}") from error
    if not dtype.hasobject:
        raise UserError(f"{file} holds an array {shape} of {dtype}, not a dict; {WAY_OUT}")
    if shape != ():
        raise UserError(f"{file} holds an array {shape} of objects, not a dict; np.save the dict itself")
    try:
        return _unpickle(file, content[stream.tell() :])
    except UserError:
        raise
    except Exception as error:  # any type, by the documentation of pickle
        raise UserError(f"{file}: its pickle is damaged: {first_line(error)}; save it again") from error


def _unpickle(file: Path, payload: bytes) -> dict:
    tuples = 0
    for opcode, argument, _ in pickletools.genops(payload):
        # The memo is a C array as long as the highest index: 20 bytes could allocate gigabytes.
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(payload):
            raise pickle.UnpicklingError(f"memo index {argument} in {len(payload)} bytes")
        tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
    if tuples > MOST_TUPLES:
        raise pickle.UnpicklingError(f"{tuples} tuples in it")
    copyreg.clear_extension_cache()  # its entries bypass find_class
    # Nested tuples as keys are hashed by recursion in C, under 100 bytes per level: a small stack would overflow and
    # kill the process.
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
            refused = ascii(f"{module}.{name}")[1:-1]  # without control characters of the file
            raise UserError(
                f"{self.file}: refused, it would load {refused}, which is neither a plain container nor a NumPy array; "
                f"nothing of it was run; {WAY_OUT}"
            ) from None


class _Function:
    """Callable for the pickle; not a class, so that it cannot be instantiated, and without settable state."""

    __slots__ = ("_build",)

    def __init__(self, build):
        self._build = build

    def __call__(self, *arguments):
        return self._build(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it sets the state of a function")


class _Dtype:
    """Replacement of numpy.dtype for numbers, strings, bytes and objects; no structured types."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r"[biufSUO]\d{1,9}", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the code determines the rest of the state


class _Array(np.ndarray):
    """Array with a check of its content against shape and type."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, in_columns, content = state
        dtype = kind.dtype
        if not all(type(side) is int and side >= 0 for side in shape) or (
            math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 2**63  # overflow hidden by a side of 0
        ):
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        expected = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if type(content) is not (list if dtype.hasobject else bytes) or len(content) != expected or not dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype} has another content")
        super().__setstate__((1, shape, dtype, bool(in_columns), content))
        if dtype.kind == "U":
            self.tolist()  # raises for invalid Unicode


def _empty(*_) -> _Array:
    return np.zeros(0).view(_Array)


def _from_buffer(content: bytes | bytearray, kind: _Dtype, shape: tuple, order: str) -> _Array:
    if not isinstance(content, bytes | bytearray):  # an integer would allocate memory
        raise pickle.UnpicklingError("an array from something other than bytes")
    array = _empty()
    array.__setstate__((1, shape, kind, order == "F", bytes(content)))
    return array


def _scalar(kind: _Dtype, content: bytes) -> np.generic:
    if kind.dtype.hasobject or type(content) is not bytes or len(content) != kind.dtype.itemsize:
        raise pickle.UnpicklingError(f"a number of type {kind.dtype} has another content")
    return np.ndarray((), kind.dtype, content)[()]


ADMITTED = {
    ("numpy", "ndarray"): "numpy.ndarray",  # argument of _reconstruct only, never called
    ("numpy", "dtype"): _Function(_Dtype),
    ("builtins", "set"): _Function(set),
    ("builtins", "frozenset"): _Function(frozenset),
    ("collections", "OrderedDict"): _Function(dict),
}
for package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    ADMITTED[f"{package}.multiarray", "_reconstruct"] = _Function(_empty)
    ADMITTED[f"{package}.multiarray", "scalar"] = _Function(_scalar)
    ADMITTED[f"{package}.numeric", "_frombuffer"] = _Function(_from_buffer)
for module in ("pathlib", "pathlib._local"):  # up to Python 3.12, and in 3.13
    for name in ("PosixPath", "PurePosixPath"):
        ADMITTED[module, name] = _Function(lambda *parts: str(PurePosixPath(*parts)))
    for name in ("WindowsPath", "PureWindowsPath"):
        ADMITTED[module, name] = _Function(lambda *parts: PureWindowsPath(*parts).as_posix())
