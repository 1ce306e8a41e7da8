"""Demo data folders: identified by a recipe file, and replaced without deleting other files."""

import json
from collections.abc import Callable
from pathlib import Path

from core.args import ArgumentParser, at_least, non_negative_int, positive_int
from core.errors import UserError
from core.processes import cores

RECIPE = "demo_data.json"  # parameters that determine the list of written files


def demo_parser(
    description: str, counted: str, default: int, fewest: int, size: int | None = None, smallest: int = 1
) -> ArgumentParser:
    """The arguments of a make_demo_data.py: --output, --<counted> of at least `fewest`, --seed, --workers, --overwrite
    and, with a default, --size of at least `smallest` px."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="output folder of the data set")
    parser.add_argument(
        f"--{counted}", type=at_least(fewest), default=default, help=f"number of {counted} (>= {fewest})"
    )
    if size:
        parser.add_argument("--size", type=at_least(smallest), default=size, help=f"image size in px (>= {smallest})")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="random seed of the data set")
    parser.add_argument("--workers", type=positive_int, default=cores(), help="number of drawing processes")
    parser.add_argument("--overwrite", action="store_true", help="replace demo data that this script wrote before")
    return parser


def write(path: Path, content: bytes) -> None:
    """Writes a file and creates its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def dump(content: dict) -> bytes:
    """JSON text in UTF-8."""
    return (json.dumps(content, indent=1) + "\n").encode()


def start(output: Path, overwrite: bool, recipe: dict[str, int], files_of: Callable[[dict], set[Path]]) -> None:
    """Deletes earlier demo data (see `clear`) and writes the recipe first, which also identifies incomplete data."""
    clear(output, overwrite, files_of)
    write(output / RECIPE, dump({**recipe, "note": "synthetic phantoms, no patient"}))


def clear(output: Path, overwrite: bool, files_of: Callable[[dict], set[Path]]) -> None:
    """Deletes the demo data of an earlier run in `output`, unless the folder holds other files.

    `files_of`: recipe -> all files of the run, relative to `output`; computed, so that an edited recipe adds no path.
    Raises UserError for files of another origin, and for demo data without `overwrite`.
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
