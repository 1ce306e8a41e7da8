"""Landmark schemes: names, contours, lines and horizontal flip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from core.errors import UserError, first_line
from core.files import read_json


@dataclass(frozen=True)
class Schema:
    """K landmarks; indices count from 0.

    `strips`: contour -> indices in order along it. `flip` (K,): after a horizontal flip, landmark i is
    `points[flip[i]]`. `lines`: straight line -> indices of its two landmarks. `titles` (K,): full names, () = none.
    """

    name: str
    names: tuple[str, ...]
    strips: dict[str, tuple[int, ...]]
    flip: tuple[int, ...]
    lines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    titles: tuple[str, ...] = ()


def read_schema(text: str, known: Mapping[str, Schema]) -> Schema:
    """A `known` scheme by name, or the scheme of a JSON file {"name", "names", "titles", "strips", "lines", "flip"}, of
    which only "names" is required. Raises UserError if the file is missing or not a scheme."""
    if text in known:
        return known[text]
    file = Path(text)
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise UserError(f"{text}: no such scheme or file; give {', '.join(known)}, or a JSON file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a JSON file of a landmark scheme ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f'{file}: not an object; use {{"name": …, "names": […], "strips": {{…}}, "flip": […]}}')
    return make_schema({"name": file.stem, **content}, f"{file}: ")


def make_schema(content: Mapping[str, object], where: str) -> Schema:
    """Scheme from plain lists, as in JSON or by `dataclasses.asdict`; strips and lines hold landmark indices or names.

    Raises UserError, beginning with `where`, for empty or repeated names, strips and lines of unknown landmarks, lines
    of other than two landmarks, and a flip that is not its own inverse.
    """
    keys = [key.name for key in fields(Schema)]
    unknown = set(content) - set(keys)
    if unknown:
        raise UserError(f"{where}unknown key {min(unknown)!r}; a scheme has {', '.join(keys)}")
    name, names = content.get("name", ""), content.get("names")
    if not isinstance(name, str):
        raise UserError(f"{where}name is not a string; write it in quotes")
    if not _list_of(names, str) or not names or not all(names):
        raise UserError(f"{where}names is not a list of strings; list the landmark names in order")
    spelled = [column_name(landmark) for landmark in names]
    twice = [landmark for landmark, spelling in zip(names, spelled, strict=True) if spelled.count(spelling) > 1]
    if twice:
        raise UserError(f"{where}two landmarks are called {twice[-1]!r}; names must be unique")
    count = len(names)
    titles = content.get("titles", ())
    if not _list_of(titles, str) or len(titles) not in (0, count):
        raise UserError(f"{where}titles is not a list of {count} strings; give one per landmark, or none")
    strips, lines = (_places(content.get(kind, {}), names, f"{where}{kind}") for kind in ("strips", "lines"))
    for line, indices in lines.items():
        if len(indices) != 2:
            raise UserError(f"{where}line {line!r} has {len(indices)} landmarks; a line has two")
    flip = content.get("flip", list(range(count)))
    if not _list_of(flip, int) or sorted(flip) != list(range(count)):
        raise UserError(f"{where}flip is not a permutation of 0 to {count - 1}; list every landmark once")
    for place, source in enumerate(flip):
        if flip[source] != place:
            pairs = f"{place} to {source}, but {source} to {flip[source]}"
            raise UserError(f"{where}flip maps {pairs}; it must swap landmarks in pairs")
    return Schema(name, tuple(names), strips, tuple(flip), lines, tuple(titles))


def _places(content: object, names: Sequence[str], where: str) -> dict[str, tuple[int, ...]]:
    """Name -> landmark indices, from name -> list of landmark indices or names."""
    if not isinstance(content, dict) or not all(isinstance(row, list | tuple) for row in content.values()):
        raise UserError(f'{where} is not an object of lists, such as {{"outer helix": [0, 1, 2]}}')
    result = {}
    for key, row in content.items():
        indices = [names.index(landmark) if landmark in names else landmark for landmark in row]
        for index in indices:
            if type(index) is not int or not 0 <= index < len(names):
                raise UserError(f"{where}: {key!r} names landmark {index}; there are 0 to {len(names) - 1}")
        result[key] = tuple(indices)
    return result


def column_name(landmark: str) -> str:
    """Normalised name of a landmark in a table: "otobasion_superius" for "Otobasion superius"."""
    return "_".join(landmark.casefold().split())


def _list_of(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is kind for value in values)
