"""The subject: the built-in landmark schemes of the ear. Others are JSON files, see `core.landmarks`."""

from collections.abc import Sequence
from dataclasses import replace

from core.landmarks import Schema, make_schema

# Both are anatomical: a mirrored left ear has the landmarks of a right ear, so the flip is the identity.

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

# Zhou & Zafeiriou 2017, "Deformable Models of Ears in-the-wild for Alignment and Recognition": 55 numbered points.
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
    """Built-in scheme of `count` landmarks, or one with names "1" to "K", without strips, with identity flip."""
    known = {len(schema.names): schema for schema in SCHEMAS.values()}
    return known.get(count) or make_schema({"name": f"plain{count}", "names": [str(i + 1) for i in range(count)]}, "")


def part_of(schema: Schema, places: Sequence[int]) -> Schema:
    """Scheme of the landmarks with indices `places`, a set that the flip maps onto itself."""
    new = {old: place for place, old in enumerate(places)}
    strips = {name: tuple(new[i] for i in indices if i in new) for name, indices in schema.strips.items()}
    return replace(
        schema,
        names=tuple(schema.names[i] for i in places),
        strips={name: indices for name, indices in strips.items() if len(indices) > 1},
        flip=tuple(new[schema.flip[i]] for i in places),
        lines={},
        titles=(),
    )
