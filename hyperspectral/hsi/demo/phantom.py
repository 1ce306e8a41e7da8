"""A synthetic eye: its fundus through a round field of view, as a hyperspectral cube and a mask of what was drawn,
arrays or files.

These are phantoms, drawn by formulas; no patient is behind them. Light comes back from the choroid and from the retina
before it, and each pigment on its way takes its share by Beer and Lambert's law; optics.py has the spectra.

Frame: complex numbers x + iy whose unit is the radius of the field (about 6.5 mm), 0 its middle, y down. The eye is
drawn as a right one, with the nose and the optic disc to the right, and a left eye is mirrored at the end. All sizes
are in this unit, so that cubes of any size show the same eye.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from core.demo_data import write
from hsi.demo.optics import blood, lens, macular_pigment, melanin, power_law
from hsi.wavelengths import to_rgb

CLASSES = ("background", "retina", "vessel", "optic disc", "lesion")  # values of the mask
BACKGROUND, RETINA, VESSEL, DISC, LESION = range(len(CLASSES))
HALF_SIDE = 1.04  # of the picture; the rest is a dark border
FIELD_MM = 6.5  # radius of the field, about 45 degrees across
SHARPNESS = 0.006  # width of the camera's point spread
STEP = 0.004  # between points of a vessel
THINNEST = 0.0034  # radius of a vessel
CALIBRES = {"artery": 0.0115, "vein": 0.0155}  # radius of a trunk at the disc
VESSEL_DEPTH = 0.3  # share of a vessel's blood that light crosses; the rest is walls and light scattered around it

Blot = tuple[complex, float, np.ndarray]


@dataclass(frozen=True)
class Patient:
    """What both eyes of a patient have in common."""

    melanin: float  # absorbance at 550 nm, there and back
    choroid_blood: float  # mm of whole blood
    capillary_blood: float  # mm of whole blood before the retina's reflection
    retina: float  # reflectance of the retina at 550 nm
    lens: float  # absorbance at 450 nm, there and back; grows with age
    macula: float  # absorbance of the macular pigment in the fovea, there and back
    artery_oxygen: float  # saturation, 0-1
    vein_oxygen: float
    calibre: float  # factor on the radius of vessels
    scattering: float  # exponent of the choroid's power law


@dataclass(frozen=True)
class Vessel:
    """One branch: its middle line, and its radius along it."""

    points: np.ndarray  # (N,) complex
    radius: np.ndarray  # (N,)


@dataclass(frozen=True)
class Eye:
    """The places and forms of one eye."""

    fovea: complex
    disc: complex
    disc_radius: float
    cup: float  # radius as a share of the disc's
    vessels: dict[str, list[Vessel]]  # "artery" and "vein"


@dataclass(frozen=True)
class Lesions:
    """Blot haemorrhages, always; hard exudates in some eyes. A blot is its middle, radius, and waves of its outline
    (3,) complex."""

    blots: list[Blot]
    exudates: list[Blot]
    depth: float  # mm of blood


class Maps(NamedTuple):
    """What lies in each pixel: arrays (S, S) float32. Absorbances and mm of blood are as light meets them."""

    field: np.ndarray  # share of the pixel, as those down to exudates
    disc: np.ndarray
    cup: np.ndarray
    vessel: np.ndarray
    blots: np.ndarray
    exudates: np.ndarray
    pigment: np.ndarray  # absorbance of melanin at 550 nm, there and back
    choroid: np.ndarray  # mm of blood
    retina: np.ndarray  # reflectance at 550 nm
    reflex: np.ndarray  # the same of surfaces before the blood
    macula: np.ndarray  # absorbance at its peak, there and back
    arterial: np.ndarray  # mm of blood, with what a haemorrhage has
    venous: np.ndarray


# ------------------------------------------------------------------------------------------------------- what to draw


def sample_patient(rng: np.random.Generator) -> Patient:
    """Pigments as different as between people: these differences hide a lesion in the mean spectrum of an eye."""
    oxygen = rng.normal(0.96, 0.015)
    values = {
        "melanin": 1.0 * np.exp(0.45 * rng.standard_normal()),
        "choroid_blood": 0.045 * np.exp(0.35 * rng.standard_normal()),
        "capillary_blood": 0.0035 * np.exp(0.4 * rng.standard_normal()),
        "retina": 0.045 * np.exp(0.25 * rng.standard_normal()),
        "lens": rng.uniform(0.3, 1.5),
        "macula": rng.uniform(0.4, 1.1),
        "artery_oxygen": min(oxygen, 0.99),
        "vein_oxygen": oxygen - rng.normal(0.36, 0.05),
        "calibre": rng.normal(1, 0.14),
        "scattering": rng.normal(-0.4, 0.25),
    }
    return Patient(**{name: float(value) for name, value in values.items()})


def sample_eye(rng: np.random.Generator, patient: Patient) -> Eye:
    fovea = complex(rng.normal(-0.17, 0.03), rng.normal(0.03, 0.03))
    disc = fovea + rng.normal(0.66, 0.03) * np.exp(1j * np.deg2rad(rng.normal(-6, 3)))
    disc_radius, cup = rng.normal(0.135, 0.01), rng.uniform(0.3, 0.55)
    arcades = rng.normal(0, 0.035, (2, 2, 3, 2)) @ (1, 1j)  # each artery and its vein run side by side
    vessels = {}
    for kind, radius in CALIBRES.items():
        apart = (0.022 if kind == "artery" else -0.022) * np.array([-1j, 1j])[:, None, None]
        vessels[kind] = grow_tree(rng, fovea, disc, arcades + apart, radius * patient.calibre)
    return Eye(fovea, disc, disc_radius, cup, vessels)


def sample_lesions(rng: np.random.Generator, eye: Eye) -> Lesions:
    """Blots on 2 to 4.5 % of the field, clear of the disc, the fovea and each other."""
    share, blots = rng.uniform(0.02, 0.045), []
    while sum(radius**2 for _, radius, _ in blots) < share:
        radius = rng.uniform(0.045, 0.1)
        place = 0.88 * np.sqrt(rng.uniform()) * np.exp(2j * np.pi * rng.uniform())
        clear = abs(place - eye.disc) > eye.disc_radius + 1.3 * radius and abs(place - eye.fovea) > 0.12 + radius
        if clear and all(abs(place - other) > 1.3 * (radius + size) for other, size, _ in blots):
            blots.append((place, radius, outline(rng)))
    exudates = []
    if rng.uniform() < 0.5:
        ring = eye.fovea + rng.uniform(0.2, 0.34) * np.exp(2j * np.pi * rng.uniform())
        for _ in range(rng.integers(8, 20)):
            place = ring + complex(*rng.normal(0, 0.06, 2))
            exudates.append((place, rng.uniform(0.01, 0.028), outline(rng)))
    return Lesions(blots, exudates, rng.uniform(0.2, 0.45))


def outline(rng: np.random.Generator) -> np.ndarray:
    """Waves (3,) complex that make a circle a blot: of 2, 3 and 5 periods."""
    return np.array([0.16, 0.08, 0.04]) * np.exp(2j * np.pi * rng.uniform(size=3))


# -------------------------------------------------------------------------------------------------------- vessel tree


def grow_tree(
    rng: np.random.Generator, fovea: complex, disc: complex, arcades: np.ndarray, radius: float
) -> list[Vessel]:
    """The arteries or the veins of an eye: four trunks from the disc, two of them around the macula, and branches.

    `arcades` (2, 2, 3) complex moves the trunks' control points: (above or below, temporal or nasal, point).
    Vessels of one kind never cross each other, and none enters the fovea.
    """
    taken = np.zeros((88, 88), bool)  # cells of 0.026 where a vessel of this kind runs
    tree, queue = [], []

    def add(path: np.ndarray, size: float, level: int, start: int) -> None:
        """Keeps a path (N,) as far as it is free; `start`: how many of its points lie in its parent."""
        points = path[: first_true((abs(path) > 1.1) | (abs(path - fovea) < 0.1))]
        rows, columns = ((axis / 0.026 + 44).astype(int) for axis in (points.imag, points.real))
        length = start + first_true(taken[rows, columns][start:])
        if length < max(start + 4, 0.05 / STEP):
            return
        taken[rows[:length], columns[:length]] = True
        vessel = Vessel(points[:length], size * np.linspace(1, 0.4, len(path))[: len(points)][:length])
        tree.append(vessel)
        queue.append((vessel, level))

    for row, vertical in enumerate((-1, 1)):
        origin = disc + complex(rng.normal(0.01, 0.008), 0.004 * vertical)
        jitter = arcades[row] + rng.normal(0, 0.022, (2, 3, 2)) @ (1, 1j)
        temporal = disc + complex(0.03, 0.36 * vertical), fovea + complex(0.2, 0.7 * vertical)
        nasal = disc + complex(0.03, 0.2 * vertical), disc + complex(0.15, 0.45 * vertical)
        ends = fovea + complex(-0.8, 0.4 * vertical), disc + complex(0.5, 0.75 * vertical)
        for (first, second), end, moved, size in zip((temporal, nasal), ends, jitter, (1, 0.75), strict=True):
            path = curve((origin, first + moved[0] / 2, second + moved[1], end + 2 * moved[2]))
            add(wiggled(rng, path, 0.009, 2.5), size * radius, 0, 40)
        for angle, reach, size in ((180, 0.45, 0.4), (0, 0.45, 0.45)):  # twigs to the macula, and to the nose
            way = np.exp(1j * np.deg2rad(angle + vertical * rng.uniform(12, 28) * (1 if angle == 0 else -1)))
            add(wiggled(rng, curve((origin, disc + 0.2 * way, disc + reach * way)), 0.008), size * radius, 1, 40)
    while queue:
        parent, level = queue.pop(0)
        side, place = rng.choice((-1, 1)), int(rng.uniform(0.1, 0.2) / STEP)
        while place < len(parent.points) - 2:
            size = parent.radius[place] * rng.uniform(0.45, 0.85)
            if size > THINNEST and level < 4:
                add(branch(rng, parent, place, side, size, fovea), size, level + 1, 10)
            side = -side if rng.uniform() < 0.75 else side
            place += int(rng.uniform(0.07, 0.19) / STEP)
    return tree


def branch(rng: np.random.Generator, parent: Vessel, place: int, side: int, size: float, fovea: complex) -> np.ndarray:
    """The path (N,) of a branch that leaves `parent` at one of its points to one side, and turns to where blood is
    wanted: to the fovea from within the arcades, else away from it."""
    start = parent.points[place]
    along = parent.points[place + 1] - parent.points[place - 1]
    away = along / abs(along) * np.exp(1j * side * np.deg2rad(rng.uniform(30, 55)))
    inwards = (fovea - start) / abs(fovea - start)
    guide = inwards if (away * inwards.conjugate()).real > 0.2 and abs(fovea - start) < 0.75 else -inwards
    end = away + rng.uniform(0.3, 0.9) * guide + rng.uniform(0, 0.5) * along / abs(along)
    length = size * rng.uniform(60, 100)
    middle = start + 0.45 * length * away
    return wiggled(rng, curve((start, middle, middle + 0.6 * length * end / abs(end))), 0.006)


def curve(controls: Sequence[complex]) -> np.ndarray:
    """A Bézier curve (N,) of these control points, with about STEP between its points."""
    steps = max(int(sum(abs(np.diff(controls))) / STEP), 4)
    t, points = np.linspace(0, 1, steps), [np.full(steps, point) for point in controls]
    while len(points) > 1:  # de Casteljau
        points = [(1 - t) * one + t * two for one, two in pairwise(points)]
    return points[0]


def wiggled(rng: np.random.Generator, points: np.ndarray, amount: float, scale: float = 1) -> np.ndarray:
    """The path (N,) with bends to its left and right, `scale` times as long as those of a twig, none at its start."""
    way = np.arange(len(points)) * STEP / scale
    waves = sum(np.sin(2 * np.pi * (way / rng.uniform(*span) + rng.uniform())) for span in ((0.1, 0.2), (0.25, 0.5)))
    across = 1j * (points[-1] - points[0])
    return points + amount * waves * np.minimum(way / 0.15, 1) * across / abs(across)


def first_true(flags: np.ndarray) -> int:
    """The place of the first True in (N,), or N."""
    return int(flags.argmax()) if flags.any() else len(flags)


# ------------------------------------------------------------------------------------------------------------- layers


def pixels(size: int) -> np.ndarray:
    """Middles of the pixels (S, S), complex."""
    axis = (np.arange(size) + 0.5) * 2 * HALF_SIDE / size - HALF_SIDE
    return axis + 1j * axis[:, None]


def texture(rng: np.random.Generator, rows: int, columns: int, size: int) -> np.ndarray:
    """A smooth random field (S, S) of about unit variance, with so many bumps down and across the picture."""
    bumps = rng.standard_normal((rows + 3, columns + 3))
    axis = (np.arange(size) + 0.5) / size
    places = np.broadcast_arrays((axis * rows + 1)[:, None], axis * columns + 1)
    return (map_coordinates(bumps, places, order=3, prefilter=False) / 0.48).astype(np.float32)


def painted_vessels(vessels: list[Vessel], size: int) -> tuple[np.ndarray, np.ndarray]:
    """How far light runs through vessels (S, S), and how much of each pixel they cover (S, S), 0-1.

    Both are means over the width of a pixel or the point spread: a vessel thinner than a pixel still absorbs its share.
    """
    pixel = 2 * HALF_SIDE / size
    width = np.hypot(pixel, SHARPNESS)
    depth, cover = np.zeros((2, size, size), np.float32)
    points, radius = (np.concatenate([getattr(v, name) for v in vessels]) for name in ("points", "radius"))
    places = (points + HALF_SIDE * (1 + 1j)) / pixel  # in pixels
    reach = np.ceil((radius + width / 2) / pixel).astype(int)
    for number in np.unique(reach):
        here, r = places[reach == number, None], radius[reach == number, None]
        square = np.arange(-number, number + 1)
        offsets = (square + 1j * square[:, None]).ravel()
        nearest = np.floor(here.real) + 1j * np.floor(here.imag) + offsets  # (points, offsets)
        inside = (abs(nearest.real - (size - 1) / 2) < size / 2) & (abs(nearest.imag - (size - 1) / 2) < size / 2)
        distance = pixel * abs(nearest + 0.5 + 0.5j - here)
        near, far = np.clip(distance - width / 2, -r, r), np.clip(distance + width / 2, -r, r)
        chord = [t * np.sqrt(r**2 - t**2) + r**2 * np.arcsin(t / r) for t in (near, far)]  # twice half a circle's area
        rows, columns = nearest.imag[inside].astype(int), nearest.real[inside].astype(int)
        np.maximum.at(depth, (rows, columns), ((chord[1] - chord[0]) / width)[inside].astype(np.float32))
        np.maximum.at(cover, (rows, columns), ((far - near) / width)[inside].astype(np.float32))
    return depth, cover


def soft_disc(distance: np.ndarray, radius: float, edge: float) -> np.ndarray:
    """1 within `radius`, 0 beyond, with a smooth step `edge` wide between them."""
    t = np.clip((radius - distance) / edge + 0.5, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def painted_blots(blots: list[Blot], z: np.ndarray, edge: float) -> np.ndarray:
    """How much of each pixel blots cover (S, S), 0-1."""
    cover = np.zeros(z.shape, np.float32)
    for middle, radius, waves in blots:
        rows, columns = (np.flatnonzero(abs(axis) < 1.5 * radius + edge)
                         for axis in (z[:, 0].imag - middle.imag, z[0].real - middle.real))  # fmt: skip
        box = np.ix_(rows, columns)
        offset = z[box] - middle
        angle = np.angle(offset)
        bends = sum((wave * np.exp(1j * number * angle)).real for number, wave in zip((2, 3, 5), waves, strict=True))
        cover[box] = np.maximum(cover[box], soft_disc(abs(offset) / (1 + bends), radius, edge))
    return cover


# --------------------------------------------------------------------------------------------------------------- cube


def draw(
    patient: np.random.Generator, eye: np.random.Generator, lesion: bool, left: bool, size: int,
    wavelengths: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Reflectance (C, S, S) float32, 0-1, and mask (S, S) uint8 with values of CLASSES of one eye.

    `patient` and `eye` are streams of random numbers. Lesions and noise take streams of their own: the same streams
    draw the same eye with and without a lesion, and at whatever size.
    """
    person = sample_patient(patient)
    anatomy, background, camera, damage, noise = eye.spawn(5)
    form = sample_eye(anatomy, person)
    lesions = sample_lesions(damage, form) if lesion else Lesions([], [], 0.0)
    maps = lay_out(background, person, form, lesions, size)
    light, gain = lamp(camera, pixels(size), wavelengths)
    cube = measured(light * reflected(maps, person, gain, wavelengths), noise, wavelengths)
    mask = np.where(maps.field > 0.5, RETINA, BACKGROUND).astype(np.uint8)
    for number, cover in ((DISC, maps.disc), (VESSEL, maps.vessel), (LESION, np.maximum(maps.blots, maps.exudates))):
        mask[(maps.field > 0.5) & (cover >= 0.5)] = number
    return (cube[..., ::-1].copy(), mask[:, ::-1].copy()) if left else (cube, mask)


def lay_out(rng: np.random.Generator, person: Patient, eye: Eye, lesions: Lesions, size: int) -> Maps:
    """What lies in each pixel of an eye; `rng` draws the textures of retina, pigment and choroid."""
    z, pixel = pixels(size), 2 * HALF_SIDE / size
    from_fovea = abs(z - eye.fovea).astype(np.float32)
    from_disc = z - eye.disc
    from_disc = np.hypot(from_disc.real, from_disc.imag / 1.08)  # a little higher than wide
    disc = soft_disc(from_disc, eye.disc_radius, 0.03)
    cup = soft_disc(from_disc, eye.cup * eye.disc_radius, 0.05)
    rim = soft_disc(abs(from_disc - eye.disc_radius - 0.015), 0.012, 0.02)
    pit = np.exp(-0.5 * (from_fovea / 0.1) ** 2)

    coarse, middle, fine, finest = (texture(rng, cells, cells, size) for cells in (6, 16, 60, 130))
    network = texture(rng, 30, 13, size) + 0.8 * texture(rng, 40, 36, size)
    channels = np.exp(-((network / 0.5) ** 2)) - 0.4  # vessels of the choroid
    mottling = np.exp(0.12 * coarse + 0.08 * middle + 0.06 * fine + 0.05 * finest + 0.55 * pit)
    capillaries = person.capillary_blood * (1 - 0.8 * pit) * (1 - 0.8 * cup)

    edge = max(1.5 * pixel, 0.03)
    blots, exudates = (painted_blots(group, z, edge) for group in (lesions.blots, lesions.exudates))
    (artery, over_artery), (vein, over_vein) = (painted_vessels(eye.vessels[kind], size) for kind in CALIBRES)
    clots = lesions.depth * blots**2 * np.clip(1 + 0.25 * middle + 0.2 * fine, 0.3, None)
    mm = FIELD_MM * VESSEL_DEPTH
    return Maps(
        field=soft_disc(abs(z), 1.0, max(pixel, 0.008)),
        disc=disc,
        cup=cup,
        vessel=np.maximum(over_artery, over_vein),
        blots=blots,
        exudates=exudates,
        pigment=person.melanin * (mottling + 0.25 * rim),
        choroid=person.choroid_blood * np.clip(1 + 0.35 * channels + 0.1 * coarse, 0.2, None),
        retina=person.retina * np.exp(0.1 * middle + 0.05 * fine + 0.04 * finest) * (1 - 0.25 * pit),
        reflex=0.2 * person.retina * (1 + 1.5 * over_artery**8),
        macula=person.macula * np.exp(-from_fovea / 0.11),
        arterial=mm * artery + capillaries / 2 + clots,
        venous=mm * vein + capillaries / 2,
    )


def reflected(maps: Maps, person: Patient, gain: np.ndarray, wavelengths: Sequence[float]) -> np.ndarray:
    """Reflectance (C, S, S) float32 under even light: for each band what comes back from choroid, retina, disc and
    exudates, through blood and macular pigment, and from surfaces before them, all through the lens.

    After Delori and Pflibsen 1989, "Spectral reflectance of the human ocular fundus", with fewer layers.
    """
    nm = np.asarray(wavelengths)
    bands = np.stack([
        gain * np.exp(-person.lens * lens(nm)),
        melanin(nm), macular_pigment(nm), blood(nm, person.artery_oxygen), blood(nm, person.vein_oxygen),
        0.24 * power_law(nm, person.scattering), power_law(nm, 2.2), 0.58 * power_law(nm, 0.2),
    ], axis=1).tolist()  # fmt: skip  # plain numbers leave float32 maps float32
    cube = np.empty((len(nm), *maps.field.shape), np.float32)
    for band, (front, dark, yellow, oxygenated, used, sclera, grain, nerve) in enumerate(bands):
        tissue = sclera * np.exp(-dark * maps.pigment - 2 * oxygenated * maps.choroid) + grain * maps.retina
        head = nerve * (0.65 + 0.35 * maps.cup) * np.exp(-2 * oxygenated * 0.009 * (1 - maps.cup))
        tissue += maps.disc * (head - tissue)
        tissue += maps.exudates * (0.75 * nerve * np.exp(-0.8 * yellow) - tissue)  # fat is yellow, too
        through = np.exp(-yellow * maps.macula - 2 * (oxygenated * maps.arterial + used * maps.venous))
        cube[band] = front * maps.field * (grain * maps.reflex + tissue * through)
    return cube


def lamp(rng: np.random.Generator, z: np.ndarray, wavelengths: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Uneven illumination (S, S), and what is left of the lamp's spectrum (C,) after calibration."""
    middle = complex(*rng.normal(0, 0.2, 2))
    light = np.exp(-rng.uniform(0.2, 0.5) * abs(z - middle) ** 2, dtype=np.float32)
    periods = np.geomspace(45, 600, 10)[:, None]  # nm
    waves = np.sin(2 * np.pi * (np.asarray(wavelengths) / periods + rng.uniform(size=(10, 1))))
    gain = 1.1 * np.exp(0.1 * rng.standard_normal() + 0.02 * (rng.standard_normal((10, 1)) * waves).sum(axis=0))
    return light, gain


def measured(cube: np.ndarray, rng: np.random.Generator, wavelengths: Sequence[float]) -> np.ndarray:
    """What the sensor makes of reflectances (C, S, S): shot noise and read noise, more of both at the ends of the
    spectrum, where lamp and sensor are weak."""
    u = np.abs(np.asarray(wavelengths) - 600) / 150
    weakness = (1 + 0.5 * np.minimum(u, 2) ** 2).astype(np.float32)[:, None, None]
    deviation = np.sqrt(weakness * (1e-3**2 + 4e-5 * cube))
    return np.clip(cube + deviation * rng.standard_normal(cube.shape, np.float32), 0, 1)


# -------------------------------------------------------------------------------------------------------------- files


def write_eye(
    output: Path, seed: int, size: int, wavelengths: Sequence[float], patient: int, eye: str, lesion: bool,
    files: dict[str, str],
) -> None:  # fmt: skip
    """Draws a patient's eye ("R" or "L"), and writes its cube, picture and mask to `files` ("hs_file", "rgb_file" and
    "mask_file", relative to `output`)."""
    left = eye == "L"
    streams = np.random.default_rng([seed, 2, patient]), np.random.default_rng([seed, 3, patient, int(left)])
    cube, mask = draw(*streams, lesion, left, size, wavelengths)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["Cube/Images"] = cube
    write(output / files["hs_file"], content.getvalue())
    write(output / files["rgb_file"], png(to_rgb(cube, wavelengths)))
    write(output / files["mask_file"], png(mask))


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
