"""THE SUBJECT: the landmarks, the measurements between them and the stages of a lateral cephalogram.

All else in this package takes its K landmarks, M measurements and S stages from an `Anatomy`: this one, or what is left
of it with a scheme of other landmarks (`train.py --landmarks FILE.json`). A checkpoint carries its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from core.errors import UserError, first_line
from core.files import read_json
from core.landmarks import Schema, make_schema

# In the order of the data set (Khalid et al. 2022, "Aariz"; its files are keyed by symbol, never by position). All are
# midline or merged bilateral points: a mirrored head keeps its labels, and the flip is the identity.
TITLES = {
    "A": "A-point", "ANS": "Anterior Nasal Spine", "B": "B-point", "Me": "Menton", "N": "Nasion", "Or": "Orbitale",
    "Pog": "Pogonion", "PNS": "Posterior Nasal Spine", "Pn": "Pronasale", "R": "Ramus", "S": "Sella",
    "Ar": "Articulare", "Co": "Condylion", "Gn": "Gnathion", "Go": "Gonion", "Po": "Porion",
    "LPM": "Lower 2nd PM Cusp Tip", "LIT": "Lower Incisor Tip", "LMT": "Lower Molar Cusp Tip",
    "UPM": "Upper 2nd PM Cusp Tip", "UIA": "Upper Incisor Apex", "UIT": "Upper Incisor Tip",
    "UMT": "Upper Molar Cusp Tip", "LIA": "Lower Incisor Apex", "Li": "Labrale inferius", "Ls": "Labrale superius",
    "N`": "Soft Tissue Nasion", "Pog`": "Soft Tissue Pogonion", "Sn": "Subnasale",
}  # fmt: skip
LINES = {"SN": ("S", "N"), "FH": ("Po", "Or"), "PP": ("PNS", "ANS"), "MP": ("Go", "Me")}  # each from back to front
SCHEMA = make_schema(
    {"name": "aariz29", "names": tuple(TITLES), "titles": tuple(TITLES.values()), "lines": LINES}, "anatomy.py: "
)
STAGES = (1, 2, 3, 4, 5, 6)  # of cervical vertebral maturation (CVM)


@dataclass(frozen=True)
class Measurement:
    """One measurement, with the norm (mean, standard deviation) where one holds for both sexes and all ages.

    `landmarks`, of which each must be known: two, whose distance it is; four, the ratio of two distances in %; three,
    the angle at the second in °; six, the angle in ° from the second line to the first, positive where the first falls
    away to the front, which is where the third line points.
    """

    name: str
    unit: str  # mm, °, %
    landmarks: tuple[str, ...]
    title: str
    norm: tuple[float, float] | None = None
    source: str = ""


def _angle(first: str, second: str) -> tuple[str, ...]:
    """The landmarks of the angle between two `LINES` of a head, which looks from S to N."""
    return *LINES[first], *LINES[second], *LINES["SN"]


NO_NORM = "depends on sex, age and population: give --norms"
JARABAK, EASTMAN, STEINER = "Jarabak & Fizzell 1972", "Eastman standard", "Steiner 1953; SD as in common use"
MEASUREMENTS = (
    Measurement("N-Me", "mm", ("N", "Me"), "total anterior face height", None, NO_NORM),
    Measurement("N-ANS", "mm", ("N", "ANS"), "upper anterior face height", None, NO_NORM),
    Measurement("ANS-Me", "mm", ("ANS", "Me"), "lower anterior face height", None, NO_NORM),
    Measurement("ANS-Me/N-Me", "%", ("ANS", "Me", "N", "Me"), "lower to total anterior face height", (55, 2), EASTMAN),
    Measurement("S-Go", "mm", ("S", "Go"), "posterior face height", None, NO_NORM),
    Measurement("S-Go/N-Me", "%", ("S", "Go", "N", "Me"), "Jarabak ratio", (63.5, 1.5), f"{JARABAK}, 62-65 %"),
    Measurement("SN-MP", "°", _angle("MP", "SN"), "mandibular plane to anterior skull base", (32, 5), STEINER),
    Measurement("FH-MP", "°", _angle("MP", "FH"), "FMA, mandibular plane to Frankfort plane", (25, 3), "Tweed 1954"),
    Measurement("PP-MP", "°", _angle("MP", "PP"), "mandibular plane to palatal plane", (27, 4), EASTMAN),
    Measurement("Ar-Go-Me", "°", ("Ar", "Go", "Me"), "gonial angle", (130, 7), JARABAK),
)


@dataclass(frozen=True)
class Anatomy:
    """What a model says of a picture: K landmarks of a scheme, M measurements between them, S stages. M or S may be
    0."""

    schema: Schema
    measurements: tuple[Measurement, ...] = ()
    stages: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The landmarks' names, (K,)."""
        return self.schema.names

    @property
    def flip(self) -> list[int]:
        """(K,): the landmark that stands at place i of a mirrored picture is `points[flip[i]]`."""
        return list(self.schema.flip)

    @property
    def is_length(self) -> np.ndarray:
        """Bool (M,): which measurements are lengths, and scale with the picture."""
        return np.array([measurement.unit == "mm" for measurement in self.measurements], bool)

    @property
    def is_built_in(self) -> bool:
        """Whether the landmarks are those of a cephalogram, as this file has them."""
        return self.schema == SCHEMA

    def measure(self, points: np.ndarray) -> np.ndarray:
        """The measurements (..., M) of points (..., K, 2): lengths in the points' unit, ratios in %, angles in °.

        NaN where a landmark is NaN.
        """
        place = {name: points[..., i, :] for i, name in enumerate(self.names)}
        columns = [_value(*(place[name] for name in m.landmarks)) for m in self.measurements]
        return np.stack(columns, axis=-1) if columns else np.zeros((*points.shape[:-2], 0))

    def taught(self, points: np.ndarray, stages: Sequence[int | None]) -> dict[str, dict[str, int]]:
        """Kind of output -> name -> number of cases that have a truth, of points (N, K, 2) and N stages."""
        known = {"landmarks": np.isfinite(points).all(axis=-1), "measurements": np.isfinite(self.measure(points))}
        names = {"landmarks": self.names, "measurements": [m.name for m in self.measurements]}
        counts = {kind: dict(zip(names[kind], known[kind].sum(axis=0).tolist(), strict=True)) for kind in names}
        counts["stage"] = {"stage": sum(stage in self.stages for stage in stages)} if self.stages else {}
        return {kind: found for kind, found in counts.items() if found}

    def only(self, taught: Mapping[str, Mapping[str, int]]) -> "Anatomy":
        """The same without measurements and stages that no training case had. All landmarks stay."""
        kept = tuple(m for m in self.measurements if taught["measurements"][m.name] > 0)
        return replace(self, measurements=kept, stages=self.stages if taught.get("stage", {}).get("stage") else ())

    def config(self) -> dict:
        """Plain JSON for a model's config; of what there is none, there is no key."""
        content = {"measurements": [m.name for m in self.measurements], "cvm_stages": list(self.stages)}
        return {"schema": asdict(self.schema), **{name: values for name, values in content.items() if values}}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Anatomy":
        """The anatomy of a checkpoint. Raises UserError for a scheme that is none, KeyError for measurements that this
        file does not know."""
        known, schema = {m.name: m for m in MEASUREMENTS}, make_schema(config["schema"], "schema: ")
        measurements = tuple(known[name] for name in config.get("measurements", ()))
        return cls(schema, measurements, tuple(config.get("cvm_stages", ())))


def anatomy_of(schema: Schema) -> Anatomy:
    """What a scheme allows: the measurements whose landmarks it has, and the stages if it is the built-in one."""
    measurements = tuple(m for m in MEASUREMENTS if set(m.landmarks) <= set(schema.names))
    return Anatomy(schema, measurements, STAGES if schema == SCHEMA else ())


ANATOMY = anatomy_of(SCHEMA)


def _value(*places: np.ndarray) -> np.ndarray:
    """One measurement (...) of the places (..., 2) of its landmarks; see `Measurement`."""

    def length(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(b - a, axis=-1)

    if len(places) == 2:
        return length(*places)
    if len(places) == 4:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100 * length(*places[:2]) / length(*places[2:])
    if len(places) == 3:
        up, along = places[0] - places[1], places[2] - places[1]
        cross = up[..., 0] * along[..., 1] - up[..., 1] * along[..., 0]
        return np.degrees(np.arctan2(np.abs(cross), (up * along).sum(-1)))

    ahead = places[5][..., 0] - places[4][..., 0]
    facing = np.select([ahead >= 0, ahead < 0], [1.0, -1.0], np.nan)  # +1: the front is at larger x

    def slope(back: np.ndarray, front: np.ndarray) -> np.ndarray:
        """Angle of a line in degrees, positive where it falls to the front (y points down)."""
        run, fall = np.moveaxis(front - back, -1, 0)
        return np.degrees(np.arctan2(fall, run * facing))

    return (slope(*places[:2]) - slope(*places[2:4]) + 180) % 360 - 180


def vertical_measurements(points: np.ndarray, mm_per_px: float | None, anatomy: Anatomy = ANATOMY) -> dict[str, float]:
    """Name -> value for points (K, 2) in native px. Lengths are in mm, or NaN without a pixel size."""
    values = anatomy.measure(np.asarray(points, dtype=float))
    scale = np.where(anatomy.is_length, np.nan if mm_per_px is None else mm_per_px, 1.0)
    return {m.name: value for m, value in zip(anatomy.measurements, (values * scale).tolist(), strict=True)}


def read_norms(file: Path | None = None) -> dict[str, tuple[float, float] | None]:
    """Name -> (mean, SD). A JSON file {"N-Me": [118, 6], …} overrides the built-in ones, or adds to them."""
    norms = {measurement.name: measurement.norm for measurement in MEASUREMENTS}
    if file is None:
        return norms
    try:
        given = read_json(file)
        given = {name: (float(mean), float(sd)) for name, (mean, sd) in given.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f'{file}: {first_line(error)}; norms look like {{"N-Me": [118, 6]}}') from error
    if unknown := set(given) - set(norms):
        raise UserError(f"{file}: no measurement is called {', '.join(sorted(unknown))}; they are {', '.join(norms)}")
    return norms | given


def assess(value: float, norm: tuple[float, float] | None) -> tuple[float, str]:
    """(z-score, status) of a value by its norm (mean, SD): "normal" within one SD, else "low" or "high"; "uncalibrated"
    for an unknown length."""
    if np.isnan(value):
        return np.nan, "uncalibrated"
    if norm is None:
        return np.nan, "no norm"
    z = (value - norm[0]) / norm[1]
    return z, "normal" if abs(z) <= 1 else ("high" if z > 0 else "low")
