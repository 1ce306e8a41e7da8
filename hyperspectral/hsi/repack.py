"""Copies of cubes for faster reading, contiguous and uncompressed, and a CSV of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py

from core.errors import UserError
from core.files import read_json, whole_file
from core.results import write_json
from core.tables import read_table
from hsi.files import WAY_OUT, BadCube, Cube, absolute, check_header, open_dataset

REPACKED = "repack.json"  # marks an output folder of repack


def repack_cube(source: Path, target: Path, key: str, dtype: str, overwrite: bool) -> bool | str:
    """Copies a cube to `target`, contiguous and uncompressed, atomically. Values are not checked.

    Returns True if it was written, False if the copy of this source exists, and the problem if the source is unusable.
    """
    state = source.stat()
    attributes = {"source_size": state.st_size, "source_mtime_ns": state.st_mtime_ns, "key": key, "dtype": dtype}
    if not overwrite and _attributes(target) == attributes:
        return False
    try:
        with open_dataset(source, key) as dataset:
            check_header(source, dataset, None, None)
            values = dataset[...]
    except BadCube as error:
        return error.reason

    with whole_file(target) as unfinished, h5py.File(unfinished, "w") as store:
        store.create_dataset(key, data=values if dtype == "keep" else values.astype(dtype, copy=False))
        store.attrs.update(attributes)
    return True


def _attributes(file: Path) -> dict | None:
    try:
        with h5py.File(file, "r", locking=False) as store:
            return dict(store.attrs)
    except OSError:
        return None


def repack_targets(csv_file: Path, output: Path, cubes: Sequence[Cube]) -> dict[str, Path]:
    """ID -> path of the copy: below `output` as beside the CSV, or with its whole path if it lies elsewhere.

    File names are kept, as they may contain the patient. Raises UserError if an original lies at one of these paths.
    """
    base = Path(os.path.abspath(csv_file)).parent
    targets = {}
    for cube in cubes:
        inside = cube.file.is_relative_to(base)
        targets[cube.id] = output / (cube.file.relative_to(base) if inside else Path(*cube.file.parts[1:]))
    originals = {cube.file.resolve() for cube in cubes} | {csv_file.resolve()}
    if originals & {file.resolve() for file in [*targets.values(), output / csv_file.name]}:
        raise UserError(f"--output {output} holds the originals, which are never changed; name another folder")
    return targets


def claim(output: Path, settings: dict, overwrite: bool) -> None:
    """Marks `output` as a folder of repack. Raises UserError for other files, and for copies with other settings unless
    `overwrite`."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    mark = output / REPACKED
    try:
        found = read_json(mark)
    except (FileNotFoundError, ValueError):
        if output.exists() and any(output.iterdir()):
            raise UserError(f"--output {output} holds files of another origin; name an empty or new folder") from None
    else:
        if found != settings and not overwrite:
            raise UserError(f"--output {output} was made with other settings ({found}): name another, or --overwrite")
    write_json(mark, settings)


def repacked_table(csv_file: Path, output: Path, targets: Mapping[str, Path]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the CSV for the cubes of `targets`; paths are relative to `output`."""
    table, rows = [row for _, row in read_table(csv_file, ("ID", "hs_file"), WAY_OUT)], []
    columns = [column for column in table[0] if column is not None]
    for row in table:
        if (name := row["ID"].strip()) not in targets:
            continue
        row["hs_file"] = targets[name].relative_to(output).as_posix()
        for column in ("rgb_file", "mask_file"):
            if path := row.get(column, "").strip():
                row[column] = _path_from(output, absolute(csv_file, path))
        rows.append([row[column] for column in columns])
    return columns, rows


def _path_from(folder: Path, file: Path) -> str:
    try:  # resolved, as ".." of a linked folder is another one
        return Path(os.path.relpath(file.parent.resolve() / file.name, folder.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return str(file)
