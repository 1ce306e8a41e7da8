"""The subject: K landmarks, M measurements and S maturation stages of a lateral cephalogram.

The other modules take them from an `Anatomy`: `ANATOMY`, one for other landmarks (`train.py --landmarks FILE.json`), or
that of a checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from core.errors import UserError, first_line
from core.files import read_json
from core.landmarks import Schema, make_schema

# In the order of Aariz (Khalid et al. 2022), whose files are keyed by symbol. All are midline or merged bilateral
# points, so the flip is the identity.
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
    """A measurement, with a norm (mean, SD) if one is valid for both sexes and all ages.

    `landmarks`: two = distance; three = angle at the second in °; four = ratio of two distances in %; six = angle in °
    from the second line to the first, positive if the first descends to the front, the direction of the third line.
    """

    name: str
    unit: str  # mm, °, %
    landmarks: tuple[str, ...]
    title: str
    norm: tuple[float, float] | None = None
    source: str = ""


def _angle(first: str, second: str) -> tuple[str, ...]:
    """Landmarks of the angle between two `LINES` of a head that faces from S to N."""
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
    """Outputs of a model: K landmarks of a scheme, M ≥ 0 measurements between them, S ≥ 0 stages."""

    schema: Schema
    measurements: tuple[Measurement, ...] = ()
    stages: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Landmark names (K,)."""
        return self.schema.names

    @property
    def flip(self) -> list[int]:
        """Indices (K,): after a horizontal flip, landmark i is `points[flip[i]]`."""
        return list(self.schema.flip)

    @property
    def is_length(self) -> np.ndarray:
        """Bool (M,): True for lengths, which scale with the picture."""
        return np.array([measurement.unit == "mm" for measurement in self.measurements], bool)

    @property
    def is_built_in(self) -> bool:
        """Whether the landmarks are those of `SCHEMA`."""
        return self.schema == SCHEMA

    def measure(self, points: np.ndarray) -> np.ndarray:
        """Measurements (..., M) of points (..., K, 2): lengths in the unit of the points, ratios in %, angles in °; NaN
        if a landmark is NaN."""
        place = {name: points[..., i, :] for i, name in enumerate(self.names)}
        columns = [_value(*(place[name] for name in m.landmarks)) for m in self.measurements]
        return np.stack(columns, axis=-1) if columns else np.zeros((*points.shape[:-2], 0))

    def taught(self, points: np.ndarray, stages: Sequence[int | None]) -> dict[str, dict[str, int]]:
        """Kind of output -> name -> number of cases with ground truth, for points (N, K, 2) and N stages."""
        known = {"landmarks": np.isfinite(points).all(axis=-1), "measurements": np.isfinite(self.measure(points))}
        names = {"landmarks": self.names, "measurements": [m.name for m in self.measurements]}
        counts = {kind: dict(zip(names[kind], known[kind].sum(axis=0).tolist(), strict=True)) for kind in names}
        counts["stage"] = {"stage": sum(stage in self.stages for stage in stages)} if self.stages else {}
        return {kind: found for kind, found in counts.items() if found}

    def only(self, taught: Mapping[str, Mapping[str, int]]) -> "Anatomy":
        """The anatomy without measurements and stages of which no training case had a ground truth."""
        kept = tuple(m for m in self.measurements if taught["measurements"][m.name] > 0)
        return replace(self, measurements=kept, stages=self.stages if taught.get("stage", {}).get("stage") else ())

    def config(self) -> dict:
        """Entries of a model's config.json, without keys for absent outputs."""
        content = {"measurements": [m.name for m in self.measurements], "cvm_stages": list(self.stages)}
        return {"schema": asdict(self.schema), **{name: values for name, values in content.items() if values}}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Anatomy":
        """Anatomy of a checkpoint. Raises UserError for an invalid scheme, KeyError for unknown measurements."""
        known, schema = {m.name: m for m in MEASUREMENTS}, make_schema(config["schema"], "schema: ")
        measurements = tuple(known[name] for name in config.get("measurements", ()))
        return cls(schema, measurements, tuple(config.get("cvm_stages", ())))


def anatomy_of(schema: Schema) -> Anatomy:
    """Anatomy of a scheme: the measurements whose landmarks it has, and the stages if it is the built-in one."""
    measurements = tuple(m for m in MEASUREMENTS if set(m.landmarks) <= set(schema.names))
    return Anatomy(schema, measurements, STAGES if schema == SCHEMA else ())


ANATOMY = anatomy_of(SCHEMA)


def _value(*places: np.ndarray) -> np.ndarray:
    """Value (...) of one measurement from its landmarks (..., 2); see `Measurement`."""

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
        """Angle of a line in °, positive if it descends to the front (y points down)."""
        run, fall = np.moveaxis(front - back, -1, 0)
        return np.degrees(np.arctan2(fall, run * facing))

    return (slope(*places[:2]) - slope(*places[2:4]) + 180) % 360 - 180


def vertical_measurements(points: np.ndarray, mm_per_px: float | None, anatomy: Anatomy = ANATOMY) -> dict[str, float]:
    """Name -> value of each measurement, from points (K, 2) in native px; lengths in mm, NaN without pixel size."""
    values = anatomy.measure(np.asarray(points, dtype=float))
    scale = np.where(anatomy.is_length, np.nan if mm_per_px is None else mm_per_px, 1.0)
    return {m.name: value for m, value in zip(anatomy.measurements, (values * scale).tolist(), strict=True)}


def read_norms(file: Path | None = None) -> dict[str, tuple[float, float] | None]:
    """Name -> (mean, SD), or None without norm. A JSON file {"N-Me": [118, 6], …} overrides the built-in norms.

    Raises UserError for an invalid file and for unknown measurements.
    """
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
    """(z-score, status) of a value: "normal" within one SD of the mean, else "low" or "high"; "no norm" without norm,
    "uncalibrated" for NaN."""
    if np.isnan(value):
        return np.nan, "uncalibrated"
    if norm is None:
        return np.nan, "no norm"
    z = (value - norm[0]) / norm[1]
    return z, "normal" if abs(z) <= 1 else ("high" if z > 0 else "low")
