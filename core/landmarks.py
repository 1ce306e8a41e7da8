"""Schemes of landmarks: what each one is called, which lie along one contour, and what a mirror exchanges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from core.errors import UserError, first_line
from core.files import read_json


@dataclass(frozen=True)
class Schema:
    """K landmarks by name. Indices count from 0.

    `strips`: name of a contour -> indices in order along it. `flip`: the landmark that stands at place i after a mirror
    is `points[flip[i]]`. `lines`: name of a straight line -> the indices of the two landmarks that it runs through.
    `titles`: the landmarks' full names, () = none.
    """

    name: str
    names: tuple[str, ...]
    strips: dict[str, tuple[int, ...]]
    flip: tuple[int, ...]
    lines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    titles: tuple[str, ...] = ()


def read_schema(text: str, known: Mapping[str, Schema]) -> Schema:
    """The scheme of one of the `known` names, or of a JSON file {"name", "names", "titles", "strips", "lines", "flip"},
    of which only "names" must be there. Raises UserError if there is no such file, or if it is no scheme."""
    if text in known:
        return known[text]
    file = Path(text)
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise UserError(f"{text}: no such scheme or file; give {', '.join(known)}, or a JSON file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no JSON file of a landmark scheme: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f'{file}: not an object; write {{"name": …, "names": […], "strips": {{…}}, "flip": […]}}')
    return make_schema({"name": file.stem, **content}, f"{file}: ")


def make_schema(content: Mapping[str, object], where: str) -> Schema:
    """A scheme from plain lists, as they stand in a JSON file: `dataclasses.asdict` and back. Strips and lines hold
    landmarks by index or by name.

    Raises UserError that begins with `where` if a name is empty or stands twice, a strip or line names no landmark, a
    line has other than two, or the flip is no permutation that undoes itself.
    """
    keys = [key.name for key in fields(Schema)]
    unknown = set(content) - set(keys)
    if unknown:
        raise UserError(f"{where}unknown key {min(unknown)!r}; a scheme has {', '.join(keys)}")
    name, names = content.get("name", ""), content.get("names")
    if not isinstance(name, str):
        raise UserError(f"{where}name is no text")
    if not _list_of(names, str) or not names or not all(names):
        raise UserError(f"{where}names is no list of texts; give each landmark its name, in order")
    spelled = [column_name(landmark) for landmark in names]
    twice = [landmark for landmark, spelling in zip(names, spelled, strict=True) if spelled.count(spelling) > 1]
    if twice:
        raise UserError(f"{where}two landmarks are called {twice[-1]!r}; give each a name of its own")
    count = len(names)
    titles = content.get("titles", ())
    if not _list_of(titles, str) or len(titles) not in (0, count):
        raise UserError(f"{where}titles is no list of {count} texts; give one to each landmark, or none")
    strips, lines = (_places(content.get(kind, {}), names, f"{where}{kind}") for kind in ("strips", "lines"))
    for line, indices in lines.items():
        if len(indices) != 2:
            raise UserError(f"{where}line {line!r} has {len(indices)} landmarks; give the two that it runs through")
    flip = content.get("flip", list(range(count)))
    if not _list_of(flip, int) or sorted(flip) != list(range(count)):
        raise UserError(
            f"{where}flip is no order of 0 to {count - 1}; list the landmark that a mirror puts at each place"
        )
    for place, source in enumerate(flip):
        if flip[source] != place:
            raise UserError(
                f"{where}flip takes {source} for {place}, but {flip[source]} for {source}; a second mirror must undo it"
            )
    return Schema(name, tuple(names), strips, tuple(flip), lines, tuple(titles))


def _places(content: object, names: Sequence[str], where: str) -> dict[str, tuple[int, ...]]:
    """Name -> indices, of an object of lists that hold landmarks by index or by name."""
    if not isinstance(content, dict) or not all(isinstance(row, list | tuple) for row in content.values()):
        raise UserError(f'{where} is no object of lists; write {{"outer helix": [0, 1, 2], …}}')
    result = {}
    for key, row in content.items():
        indices = [names.index(landmark) if landmark in names else landmark for landmark in row]
        for index in indices:
            if type(index) is not int or not 0 <= index < len(names):
                raise UserError(f"{where}: {key!r} names landmark {index}; there are 0 to {len(names) - 1}")
        result[key] = tuple(indices)
    return result


def column_name(landmark: str) -> str:
    """How a table may spell a landmark: "Otobasion superius" and "otobasion_superius" are one."""
    return "_".join(landmark.casefold().split())


def _list_of(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is kind for value in values)
