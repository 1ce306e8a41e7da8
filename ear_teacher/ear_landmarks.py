"""Schemes of ear landmarks: what each one is called, which lie along one contour, and what a mirror exchanges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.args import UserError, first_line
from core.files import read_json


@dataclass(frozen=True)
class Schema:
    """K landmarks by name. Indices count from 0.

    `strips`: name of a contour -> indices in order along it. `flip`: the landmark that stands at place i after a mirror
    is `points[flip[i]]`.
    """

    name: str
    names: tuple[str, ...]
    strips: dict[str, tuple[int, ...]]
    flip: tuple[int, ...]


# Both are anatomical: a mirrored left ear is labelled like a right ear, so that the flip is the identity.

EAR17 = Schema(
    "ear17",
    (
        "otobasion superius",
        "ascending helix",
        "superaurale",
        "posterosuperior helix",
        "postaurale",
        "posteroinferior helix",
        "lobe posterior",
        "subaurale",
        "otobasion inferius",
        "crus of helix",
        "superior crus of antihelix",
        "inferior crus of antihelix",
        "antihelix bifurcation",
        "antihelix middle",
        "antitragus",
        "intertragic notch",
        "tragus",
    ),
    {
        "outer helix": tuple(range(9)),
        "antihelix": (10, 12, 13, 14),
        "inferior crus": (11, 12),
        "tragus to antitragus": (16, 15, 14),
    },
    tuple(range(17)),
)

# Zhou & Zafeiriou 2017, "Deformable Models of Ears in-the-wild for Alignment and Recognition": its 55 points have
# numbers, no names of their own.
_IBUG_STRIPS = {
    "outer helix": tuple(range(20)),
    "inner helix": tuple(range(20, 35)),
    "tragus to inferior crus": tuple(range(35, 50)),
    "superior crus": tuple(range(50, 55)),
}
IBUG55 = Schema(
    "ibug55",
    tuple(f"{strip} {place + 1}" for strip, indices in _IBUG_STRIPS.items() for place in range(len(indices))),
    _IBUG_STRIPS,
    tuple(range(55)),
)

SCHEMAS = {schema.name: schema for schema in (EAR17, IBUG55)}


def schema_for(count: int) -> Schema:
    """The known scheme of `count` landmarks, or a plain one: names "1" to "K", no strips, identity flip."""
    known = {len(schema.names): schema for schema in SCHEMAS.values()}
    return known.get(count) or make_schema({"name": f"plain{count}", "names": [str(i + 1) for i in range(count)]}, "")


def schema_from(text: str) -> Schema:
    """The scheme of a known name, or of a JSON file {"name", "names", "strips", "flip"}, of which only "names" must be
    there. Raises UserError if there is no such file, or if it is no scheme."""
    if text in SCHEMAS:
        return SCHEMAS[text]
    file = Path(text)
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise UserError(f"{text}: no such scheme or file; give {', '.join(SCHEMAS)}, or a JSON file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no JSON file of a landmark scheme: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f'{file}: not an object; write {{"name": …, "names": […], "strips": {{…}}, "flip": […]}}')
    return make_schema({"name": file.stem, **content}, f"{file}: ")


def make_schema(content: Mapping[str, object], where: str) -> Schema:
    """A scheme from plain lists, as they stand in a JSON file: `dataclasses.asdict` and back.

    Raises UserError that begins with `where` if a name is empty or stands twice, a strip names no landmark, or the flip
    is no permutation that undoes itself.
    """
    unknown = set(content) - {"name", "names", "strips", "flip"}
    if unknown:
        raise UserError(f"{where}unknown key {min(unknown)!r}; a scheme has name, names, strips and flip")
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
    strips = content.get("strips", {})
    if not isinstance(strips, dict) or not all(_list_of(indices, int) for indices in strips.values()):
        raise UserError(f'{where}strips is no object of lists; write {{"outer helix": [0, 1, 2], …}}')
    for strip, indices in strips.items():
        outside = [index for index in indices if not 0 <= index < count]
        if outside:
            raise UserError(f"{where}strip {strip!r} names landmark {outside[0]}; there are 0 to {count - 1}")
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
    return Schema(name, tuple(names), {strip: tuple(indices) for strip, indices in strips.items()}, tuple(flip))


def column_name(landmark: str) -> str:
    """How a table may spell a landmark: "Otobasion superius" and "otobasion_superius" are one."""
    return "_".join(landmark.casefold().split())


def _list_of(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is kind for value in values)
