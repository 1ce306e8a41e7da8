"""Single files that are whole or absent, their names, and how they are read when nobody knows what they hold. Imports
no torch: workers start faster without."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType

LARGEST_TEXT = 2**28  # bytes of a table, or of another file that is held in memory as a whole


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A temporary name to write a file under; when the block ends well it is flushed to the disk and becomes `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Writes `text` in UTF-8; the file is whole or absent at any moment."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_file(path: Path) -> os.stat_result:
    """The status of a plain file. Raises OSError for what is none: a pipe would keep us waiting, a device has no
    end."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL in it
        raise OSError(errno.EINVAL, "not a name that files have", str(path)) from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, no file", str(path))
    return status


def read_bytes(file: Path) -> bytes:
    """The content of a plain file of at most 256 MiB. Raises OSError for another."""
    if require_file(file).st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    with open(file, "rb") as opened:  # pathlib takes as long as the reading, where files are small
        return opened.read()


def read_json(file: Path) -> object:
    """What a JSON file in UTF-8 holds, with or without a byte order mark. Raises OSError or ValueError."""
    content = read_bytes(file)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def must_hold(content: object, **needed: type | UnionType) -> None:
    """Raises ValueError unless what a JSON file holds is an object with all that is `needed`, by its type."""
    if not isinstance(content, dict):
        raise ValueError("no object")
    for name, kind in needed.items():
        if name not in content or not isinstance(content[name], kind):
            raise ValueError(f"no {name}")


def distinct_names(names: Iterable[str]) -> list[str]:
    """Names that files may have, no two alike even where case does not count: LEFT after left becomes LEFT_2."""
    return distinct((re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name) for name in names), str.casefold)


def distinct(names: Iterable[str], compared: Callable[[str], str] = str) -> list[str]:
    """The names, with a number where one comes again: a, a, b become a, a_2, b. `compared` gives what must differ."""
    result, last = {}, {}  # what is compared -> the name; name -> the last number that it got
    for name in names:
        free = name
        while compared(free) in result:
            last[name] = last.get(name, 1) + 1
            free = f"{name}_{last[name]}"
        result[compared(free)] = free
    return list(result.values())
