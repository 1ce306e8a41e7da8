"""Atomic writes, safe reads and names of single files. Imports no torch, so that data loader workers start faster."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType

LARGEST_TEXT = 2**28  # bytes: size limit of files that are read into memory as a whole


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Temporary file for an atomic write: flushed to disk and renamed to `file` when the block succeeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Writes `text` in UTF-8, atomically."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def flush(path: Path) -> None:
    """Flushes a file or folder to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_file(path: Path) -> os.stat_result:
    """Status of a regular file. Raises OSError for folders, and for pipes and devices, which may block or never end."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a null character in the name
        raise OSError(errno.EINVAL, "not a valid file name", str(path)) from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return status


def read_bytes(file: Path) -> bytes:
    """Content of a regular file of at most 256 MiB. Raises OSError otherwise."""
    if require_file(file).st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    with open(file, "rb") as opened:  # pathlib doubles the time for small files
        return opened.read()


def read_json(file: Path) -> object:
    """Content of a JSON file in UTF-8, with or without byte order mark. Raises OSError or ValueError."""
    content = read_bytes(file)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def must_hold(content: object, **needed: type | UnionType) -> None:
    """Raises ValueError unless the content of a JSON file is an object with all `needed` keys, of these types."""
    if not isinstance(content, dict):
        raise ValueError("not an object")
    for name, kind in needed.items():
        if name not in content or not isinstance(content[name], kind):
            raise ValueError(f"no {name}")


def distinct_names(names: Iterable[str]) -> list[str]:
    """Valid file names, unique even on case-insensitive file systems: LEFT after left becomes LEFT_2."""
    return distinct((re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name) for name in names), str.casefold)


def distinct(names: Iterable[str], compared: Callable[[str], str] = str) -> list[str]:
    """Unique names, with repetitions numbered: a, a, b become a, a_2, b. `compared`: key of the comparison."""
    result, last = {}, {}  # key -> unique name; name -> its last number
    for name in names:
        free = name
        while compared(free) in result:
            last[name] = last.get(name, 1) + 1
            free = f"{name}_{last[name]}"
        result[compared(free)] = free
    return list(result.values())
