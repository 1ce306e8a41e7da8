"""Folders of demo data: known as ours by their recipe, and replaced without a risk."""

import json
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError

RECIPE = "demo_data.json"  # the numbers from which the list of all written files follows


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def dump(content: dict) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def start(output: Path, overwrite: bool, recipe: dict[str, int], files_of: Callable[[dict], set[Path]]) -> None:
    """Makes way for new data in `output`, and writes the recipe first: a run that is cut short is known as ours.

    See `clear` for `files_of` and the errors.
    """
    clear(output, overwrite, files_of)
    write(output / RECIPE, dump({**recipe, "note": "synthetic phantoms, no patient"}))


def clear(output: Path, overwrite: bool, files_of: Callable[[dict], set[Path]]) -> None:
    """Deletes what an earlier run wrote to `output`, and only where no other file lies.

    `files_of` gives all files, relative to `output`, that a run with a recipe writes. They are worked out, not listed
    in it: nobody can add a path. Raises UserError for files of another origin, and for ours without `overwrite`.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    found = {path.relative_to(output) for path in output.rglob("*") if path.is_symlink() or not path.is_dir()}
    if not found:
        return
    try:
        ours = files_of(json.loads((output / RECIPE).read_text())) | {Path(RECIPE)}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    foreign = sorted(found - ours) + sorted(file for file in found if (output / file).is_symlink())
    if foreign:
        raise UserError(f"--output {output} holds files of another origin ({foreign[0]}); name an empty or new folder")
    if not overwrite:
        raise UserError(f"--output {output} already holds demo data; add --overwrite, or name another folder")
    for path in found:
        (output / path).unlink()
    for folder in sorted((path for path in output.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
