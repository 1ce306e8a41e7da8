"""Single files that are whole or absent, and their names. Imports no torch: workers start faster without."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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


def flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
