"""A radiograph of a synthetic head: painting by attenuation, devices, exposure.

`paint_head` adds up what each structure takes from the beam, so that bones show through one another; `expose` turns
that into the grey values of one of five invented devices. `draw_case(seed, case)` does it all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from ceph.anatomy import SCHEMA
from ceph.demo import phantom as atlas
from ceph.demo.phantom import Head, cervical_spine, dentition, sample_anatomy, smooth

# ------------------------------------------------------------------------------------------------------------- painting


class Film:
    """A sheet of attenuation (H, W) that is drawn on in head millimetres. Everything adds: bones show through bones."""

    def __init__(self, height: int, width: int, to_px: np.ndarray, mm_per_px: float):
        self.density = np.zeros((height, width), np.float32)
        self.to_px = to_px  # (2, 3) affine, head mm -> px, pixel centres at integers
        self.mm_per_px = mm_per_px

    def px(self, points: np.ndarray) -> np.ndarray:
        """Head mm (..., 2) to px."""
        return points @ self.to_px[:, :2].T + self.to_px[:, 2]

    def _add(self, points: np.ndarray, reach: float, soft: float, amount: float, draw: Callable) -> None:
        """Let `draw(mask, xy in 1/16 px)` draw in the box around `points`; blur that by `soft` mm and add it."""
        pixels, pad = self.px(points), (reach + 3 * soft) / self.mm_per_px + 2
        height, width = self.density.shape
        left, top = np.maximum(np.floor(pixels.min(0) - pad), 0).astype(int)
        right, bottom = np.minimum(np.ceil(pixels.max(0) + pad), (width, height)).astype(int)
        if right - left < 2 or bottom - top < 2:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        draw(mask, np.rint((pixels - [left, top]) * 16).astype(np.int32))
        self.density[top:bottom, left:right] += amount * blur(mask.astype(np.float32) / 255, soft / self.mm_per_px)

    def fill(self, outline: np.ndarray, amount: float, soft: float = 0.3) -> None:
        """Add `amount` inside a closed outline (n, 2) mm, its edge softened by `soft` mm."""
        self._add(outline, 0, soft, amount, lambda mask, xy: cv2.fillPoly(mask, [xy], 255, cv2.LINE_AA, 4))

    def stroke(self, curve: np.ndarray, width: float, amount: float, soft: float = 0.25, closed: bool = False) -> None:
        """Add `amount` along a curve (n, 2) mm, `width` mm wide. The ends of an open curve fade out."""
        pixels = max(1, round(width / self.mm_per_px))

        def draw(mask: np.ndarray, xy: np.ndarray) -> None:
            if closed or len(xy) < 12:
                cv2.polylines(mask, [xy], closed, 255, pixels, cv2.LINE_AA, 4)
            else:
                for grey, trim in ((90, 0), (170, 2), (255, 4)):
                    cv2.polylines(mask, [xy[trim : len(xy) - trim]], False, grey, pixels, cv2.LINE_AA, 4)

        self._add(curve, width, soft, amount, draw)

    def depth(self, outline: np.ndarray, grid: float = 0.35) -> np.ndarray:
        """(H, W) distance in mm of each pixel inside a closed outline to its edge, 0 outside."""
        low = outline.min(0) - 2 * grid
        cells = np.rint((outline - low) / grid * 16).astype(np.int32)
        size = np.ceil((outline.max(0) - low) / grid).astype(int) + 3
        mask = cv2.fillPoly(np.zeros((size[1], size[0]), np.uint8), [cells], 255, cv2.LINE_8, 4)
        distance = blur(cv2.distanceTransform(mask, cv2.DIST_L2, 5) * grid, 0.8)
        grid_to_px = np.column_stack([self.to_px[:, :2] * grid, self.px(low)])
        return cv2.warpAffine(distance, grid_to_px, self.density.shape[::-1], flags=cv2.INTER_LINEAR)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, `sigma` in px; wide ones on a smaller copy."""
    if sigma < 0.3:
        return image
    shrink = int(max(1, min(sigma / 3, min(image.shape) / 8)))
    if shrink == 1:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    small = cv2.resize(image, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / shrink, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_CUBIC)


def chord(depth: np.ndarray, radius: float) -> np.ndarray:
    """Path length of a ray, in parts of the diameter, through a round body `depth` mm inside its silhouette."""
    inside = np.clip(depth, 0, radius)
    return np.sqrt(inside * (2 * radius - inside)) / radius


class Brush:
    """Draws the atlas on a film: outlines of one head, displaced by `shift` mm (one of the two sides of the head)."""

    def __init__(self, film: Film, head: Head, shift: np.ndarray | None = None):
        self.film, self.head, self.shift = film, head, np.zeros(2) if shift is None else shift

    def trace(self, outline: list, closed: bool = True) -> np.ndarray:
        """An outline of the atlas in this head, (n, 2) mm."""
        return self.head.trace(outline, closed) + self.shift

    def draw(self, rows: Iterable[tuple]) -> None:
        """Draws outlines: ("fill", outline, amount, softness), or ("rim", closed, or "line", open, outline, width,
        amount, softness). All are mm but the amount; without a softness it is 0.4 or 0.25 mm."""
        for how, outline, *numbers in rows:
            if how == "fill":
                self.film.fill(self.trace(outline), *(*numbers, 0.4)[:2])
            else:
                closed = how == "rim"
                self.film.stroke(self.trace(outline, closed), *(*numbers, 0.25)[:3], closed=closed)


# What is drawn, in this order; see `Brush.draw`.
SOFT_TISSUE = (
    ("fill", atlas.SOFT_PALATE, 0.08, 0.8), ("fill", atlas.TONGUE, 0.06, 2.5),
    ("line", atlas.ORAL_GAP, 2, -0.06, 0.8), ("fill", atlas.NASAL_CAVITY, -0.10, 2.5),
    ("fill", atlas.TURBINATE, 0.06, 1.5), ("fill", atlas.EAR, 0.03, 1.0), ("rim", atlas.EAR, 3, 0.03, 1.0),
)  # fmt: skip
PAIRED = (
    ("fill", atlas.BODY, 0.05, 3.5), ("line", atlas.OBLIQUE_LINE, 2.0, 0.04, 0.8),
    ("line", atlas.MANDIBULAR_CANAL, 2.6, -0.02, 0.5), ("line", atlas.ORBIT_RIM, 1.4, 0.17),
    ("fill", atlas.LATERAL_RIM, 0.06, 1.0), ("line", atlas.ORBITAL_ROOF, 0.9, 0.10),
    ("line", atlas.SPHENOID_WING, 0.9, 0.09), ("fill", atlas.ZYGOMA, 0.08, 1.5),
    ("line", atlas.KEY_RIDGE, 1.2, 0.10, 0.35), ("line", atlas.ZYGOMATIC_ARCH, 4.5, 0.035, 1.0),
    ("fill", atlas.MAXILLARY_SINUS, -0.04, 1.2), ("rim", atlas.MAXILLARY_SINUS, 0.7, 0.04),
    ("fill", atlas.PTERYGOID_PLATES, 0.06, 1.0), ("fill", atlas.PTERYGOID_FISSURE, -0.08, 0.5),
    ("rim", atlas.PTERYGOID_FISSURE, 0.8, 0.06), ("line", atlas.TUBEROSITY, 0.9, 0.06),
    ("fill", atlas.PETROUS, 0.16, 2.2), ("line", atlas.PETROUS_RIDGE, 2.2, 0.05, 0.8),
    ("fill", atlas.MASTOID, 0.10, 3.5), ("line", atlas.GLENOID_FOSSA, 1.0, 0.13),
    ("fill", atlas.EAR_CANAL, -0.20, 0.4), ("rim", atlas.EAR_CANAL, 0.9, 0.15),
)  # fmt: skip
MIDLINE = (
    ("fill", atlas.MIDFACE, 0.10, 4), ("fill", atlas.FRONTAL_SINUS, -0.22, 0.6),
    ("rim", atlas.FRONTAL_SINUS, 0.8, 0.12), ("fill", atlas.CLIVUS, 0.20, 0.8),
    *(("line", vessel, 1.6, -0.03, 0.8) for vessel in atlas.VESSELS), ("line", atlas.SELLA, 1.3, 0.34, 0.3),
    ("line", atlas.CLIVUS_LINE, 1.3, 0.14, 0.4), ("fill", atlas.SELLA_CUP, -0.06, 0.6),
    ("fill", atlas.CLINOID, 0.16, 0.5), ("line", atlas.SKULL_BASE, 1.4, 0.20, 0.35),
    ("line", atlas.ANTERIOR_FOSSA, 1.2, 0.24, 0.3), ("fill", atlas.SPHENOID_SINUS, -0.12, 0.8),
    ("rim", atlas.SPHENOID_SINUS, 0.8, 0.10), *(("line", septum, 0.8, 0.09, 0.4) for septum in atlas.ETHMOID),
    ("fill", atlas.FRONTAL_PROCESS, 0.07, 1.5), ("fill", atlas.NASAL_BONE, 0.30, 0.35),
    ("line", atlas.NASOFRONTAL_SUTURE, 0.8, -0.34, 0.2), ("fill", atlas.PALATE, 0.14, 0.3),
    ("line", atlas.NASAL_FLOOR, 1.0, 0.20), ("line", atlas.ORAL_PALATE, 0.9, 0.14),
    ("line", atlas.ANTERIOR_MAXILLA, 0.9, 0.16), ("fill", atlas.MAXILLA, 0.17, 0.8),
    ("fill", atlas.SYMPHYSIS, 0.12, 0.6), ("rim", atlas.SYMPHYSIS, 1.4, 0.20), ("fill", atlas.HYOID, 0.22),
    ("line", atlas.HYOID_HORN, 2.0, 0.12, 0.5),
)  # fmt: skip


def paint_head(film: Film, head: Head, rng: np.random.Generator) -> None:
    """Add up the attenuation of one head: soft tissue, then bone (with its grain), then teeth."""
    paint_soft_tissue(film, head)
    soft, film.density = film.density, np.zeros_like(film.density)
    for shift in (head.asymmetry, -head.asymmetry):  # the two sides of the head, half of the attenuation each
        paint_paired_bones(Brush(film, head, shift))
    paint_midline_bones(Brush(film, head))
    paint_spine(film, head)
    bone, film.density = np.maximum(film.density, 0), np.zeros_like(film.density)
    Brush(film, head).draw([("fill", atlas.MASTOID, 1, 3)])
    bone *= 1 + bone_texture(film, rng) + film.density * noise_field(film, 2.2, 0.16, rng)  # mastoid air cells
    film.density = soft + bone
    paint_teeth(film, head)


def paint_soft_tissue(film: Film, head: Head) -> None:
    """Skin, pharynx, tongue, soft palate, nasal cavity, ears."""
    skin = film.depth(head.trace(atlas.SKIN, closed=True))
    film.density += 0.42 * chord(skin, 45) + 0.27 * np.clip(skin / 2.5, 0, 1) ** 0.6
    spine = cervical_spine(head)
    wall = [spine[name][np.argmax(spine[name][:, 0])] + [4.6, 0] for name in ("C2", "C3", "C4", "C5")]
    knots = [(15, 27), (6, 32), (0, 41), (-5, 53)], [(9, 150), (7, 118), (9.5, 102), (9, 88), (6, 76), (2, 67), (0, 60),
                                                    (8, 49), (17, 43), (19, 34)]  # fmt: skip
    behind, before = (head.warp(np.array(side, float)) for side in knots)
    airway = smooth(np.vstack([behind, wall, wall[-1] + [1, 30], before]), closed=True)
    film.fill(airway, -0.12, soft=1.0)
    film.fill(airway, -0.10, soft=3.5)
    Brush(film, head).draw(SOFT_TISSUE)


def paint_paired_bones(brush: Brush) -> None:
    """One side of the mandible, orbit, zygoma, maxillary sinus, pterygoids and temporal bone."""
    film, mandible = brush.film, brush.trace(atlas.MANDIBLE)
    depth = film.depth(mandible)
    film.density += 0.09 * chord(depth, 6) + 0.05 * chord(depth, 2.2)
    film.stroke(mandible, 1.1, 0.10, closed=True)
    brush.draw(PAIRED)


def paint_midline_bones(brush: Brush) -> None:
    """Vault, skull base, sella, sinuses, nasal bone, palate, symphysis, hyoid."""
    film, before = brush.film, brush.film.density
    cranium = film.depth(brush.trace(atlas.CRANIUM))
    film.density = np.zeros_like(before)
    brush.draw([("fill", atlas.BASE_ZONE, 1, 3)])
    base = np.clip(film.density, 0, 1)
    outer, diploe, inner = (chord(cranium - d, 75) - chord(cranium - e, 75) for d, e in ((0, 1.8), (1.8, 5), (5, 6.6)))
    vault = 2.2 * outer + 0.9 * diploe + 1.9 * inner
    film.density = before + (1 - base) * vault + base * 0.14 * np.clip(cranium / 3, 0, 1)
    brush.draw(MIDLINE)


def paint_spine(film: Film, head: Head) -> None:
    """The cervical vertebrae."""
    for name, outline in cervical_spine(head).items():
        body = name in {"C2", "C3", "C4", "C5", "C6", "atlas front"}
        film.fill(outline, 0.24 if body else 0.09, 0.4 if body else 1.0)
        film.stroke(outline, 1.0, 0.17 if body else 0.05, 0.25 if body else 0.5, closed=True)


def paint_teeth(film: Film, head: Head) -> None:
    """Each tooth twice, as the two sides' shadows."""
    for tooth in dentition(head.points):
        for shift in (head.asymmetry, -head.asymmetry):
            offset = shift * (1.0 if tooth.paired else 0.3)
            film.fill(tooth.outline + offset, 0.19 * tooth.weight, 0.2)
            film.stroke(tooth.outline + offset, 0.4, -0.06 * tooth.weight, 0.15, closed=True)
            film.fill(tooth.enamel + offset, 0.22 * tooth.weight, 0.3)
            film.stroke(tooth.pulp + offset, 1.1, -0.09 * tooth.weight, 0.25)


def noise_field(film: Film, grain: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) smooth noise of standard deviation `strength` whose grains measure about `grain` mm."""
    cell = max(grain / film.mm_per_px / 2, 1)
    shape = [int(size / cell) + 2 for size in film.density.shape]
    noise = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), 1.2)
    return strength / noise.std() * cv2.resize(noise, film.density.shape[::-1], interpolation=cv2.INTER_CUBIC)


def bone_texture(film: Film, rng: np.random.Generator) -> np.ndarray:
    """(H, W) relative density: trabeculae of about 0.4 and 1.2 mm, clouds of 6 mm."""
    return sum(noise_field(film, grain, strength, rng) for grain, strength in ((0.4, 0.07), (1.2, 0.10), (6, 0.11)))


# ---------------------------------------------------------------------------------------------------- devices, exposure


@dataclass(frozen=True)
class Device:
    """An invented cephalostat. Sizes and pixel sizes lie in the range of Aariz's seven machines."""

    name: str
    mm_per_px: float
    height: int  # px
    width: int
    suffix: str
    mode: str  # "L" grey, "RGB" the same grey three times
    anchor: tuple[float, float]  # where in its free room the face lies: 0 left/top, 1 right/bottom
    gamma: float  # > 1 darkens soft tissue
    window: float  # attenuation that becomes white
    sharpen: float
    noise: float  # of the transmitted beam, relative
    blur: float  # mm, focal spot and detector
    furniture: tuple[str, ...] = ()


DEVICES = (
    Device("Phantom CR-125", 0.125, 1640, 1480, "png", "L", (0.62, 0.80), 0.95, 1.75, 0.5, 0.012, 0.16,
           ("rods", "ruler")),
    Device("Phantom DX-100", 0.100, 1720, 1600, "bmp", "L", (0.60, 0.72), 1.00, 1.65, 0.8, 0.016, 0.12, ("rods",)),
    Device("Phantom Scan-144", 0.144, 1340, 1500, "jpg", "RGB", (0.60, 0.78), 0.92, 1.85, 0.3, 0.024, 0.24, ("ruler",)),
    Device("Phantom CMOS-089", 0.089, 1960, 1800, "png", "L", (0.58, 0.70), 1.05, 1.70, 1.0, 0.014, 0.10,
           ("collimator",)),
    Device("Phantom Film-132", 0.132, 1500, 1260, "jpg", "L", (0.60, 0.75), 0.85, 1.75, 0.2, 0.030, 0.28,
           ("collimator", "rods")),
)  # fmt: skip


@dataclass
class Case:
    """A finished phantom: `image` (H, W) uint8, `truth` symbol -> (x, y) px with pixel centres at integers."""

    image: np.ndarray
    truth: dict[str, np.ndarray]
    stage: int
    device: Device


def case_stream(seed: int, case: int) -> tuple[np.random.Generator, Device]:
    """The case's random numbers and its device: the first draw, so that it is known without painting."""
    rng = np.random.default_rng([seed, case])
    return rng, DEVICES[int(rng.integers(len(DEVICES)))]


def draw_case(seed: int, case: int) -> Case:
    """Draw case number `case`; depends on (seed, case) alone."""
    rng, device = case_stream(seed, case)
    head = sample_anatomy(rng)
    film = Film(device.height, device.width, sample_pose(head, device, rng), device.mm_per_px)
    paint_head(film, head, rng)
    paint_furniture(film, head, device, rng)
    truth = {symbol: film.px(head.points[symbol]) for symbol in SCHEMA.names}
    return Case(expose(film, device, rng), truth, head.stage, device)


def picture_file(seed: int, case: int) -> tuple[bytes, Case]:
    """The case, and its picture as a file in the format of its device. A job for a process pool."""
    cv2.setNumThreads(1)  # the processes already fill the cores
    drawn = draw_case(seed, case)
    image = drawn.image if drawn.device.mode == "L" else cv2.merge([drawn.image] * 3)
    options = {"png": [cv2.IMWRITE_PNG_COMPRESSION, 3], "jpg": [cv2.IMWRITE_JPEG_QUALITY, 93]}
    done, data = cv2.imencode(f".{drawn.device.suffix}", image, options.get(drawn.device.suffix, []))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {drawn.device.suffix} picture")
    return data.tobytes(), drawn


def sample_pose(head: Head, device: Device, rng: np.random.Generator, margin: float = 7.0) -> np.ndarray:
    """(2, 3) affine, head mm -> px: nodding by about 3.5 degrees SD, landmarks and C4 at least `margin` mm inside."""
    angle = np.deg2rad(float(np.clip(3.5 * rng.standard_normal(), -8, 8)))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inside = np.vstack([[head.points[symbol] for symbol in SCHEMA.names], cervical_spine(head)["C4"]]) @ rotation.T
    field = np.array([device.width, device.height]) * device.mm_per_px
    room = field - 2 * margin - np.ptp(inside, axis=0)
    share = np.clip(device.anchor + 0.15 * rng.standard_normal(2), 0, 1)
    shift = margin + share * room - inside.min(0)
    return np.column_stack([rotation, shift]) / device.mm_per_px


def paint_furniture(film: Film, head: Head, device: Device, rng: np.random.Generator) -> None:
    """Cephalostat: ear-rod ring around the ear canal, nasal rod, and a ruler with a dot every 10 mm before the face."""
    if "rods" in device.furniture:
        centre = head.points["Po"] + [0, 4.3] + rng.normal(0, 0.8, 2)
        turn = np.linspace(0, 2 * np.pi, 60)[:, None]
        film.stroke(centre + 7.5 * np.hstack([np.cos(turn), np.sin(turn)]), 1.0, 0.35, 0.1, closed=True)
        touch = head.points["N`"] + [1.0, rng.normal(0, 1.5)]
        film.stroke(touch + np.array([[1.5, 0], [150, -15.0]]), 4.0, 0.16, 0.2)
        film.stroke(touch + np.array([[0, -3.0], [0.6, 3.5]]), 1.6, 0.22, 0.2)
    if "ruler" in device.furniture:
        top = head.points["N`"] + [23 + rng.normal(0, 1.5), -42]
        film.stroke(top + np.array([[0, 0], [0, 70.0]]), 3.0, 0.10, 0.15)
        for mm in range(0, 71, 10):
            film.stroke(top + np.array([[-1.5, mm], [1.5, mm]]), 0.8, 0.9, 0.1)


def expose(film: Film, device: Device, rng: np.random.Generator) -> np.ndarray:
    """Attenuation -> (H, W) uint8: beam with scatter and quantum noise, log, sharpening, window, gamma, collimation."""

    def vary(sd: float) -> float:
        return float(np.exp(sd * np.clip(rng.standard_normal(), -2, 2)))

    mm = 1 / device.mm_per_px
    beam = np.exp(-blur(film.density, device.blur * mm))
    beam = beam + 0.05 * vary(0.3) * blur(beam, 18 * mm)
    grain = blur(rng.standard_normal(beam.shape, dtype=np.float32), 0.06 * mm)
    beam += device.noise * vary(0.25) * np.sqrt(beam) * grain / grain.std()
    grey = -np.log(np.maximum(beam, 0.02))
    grey += device.sharpen * ((grey - blur(grey, 0.9 * mm)) * 0.6 + (grey - blur(grey, 7 * mm)) * 0.4)
    grey = np.clip(grey / (device.window * vary(0.06)) + 0.03, 0, None)
    grey = np.tanh(1.15 * grey ** (device.gamma * vary(0.08))) / np.tanh(1.25)
    height, width = grey.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    grey *= 1 - 0.10 * vary(0.5) * (x * x + y * y) / 2
    if "collimator" in device.furniture:
        border = (rng.uniform(1.5, 4.0, 4) * mm).astype(int)
        grey[: border[0]] = grey[height - border[1] :] = grey[:, : border[2]] = grey[:, width - border[3] :] = 0
    image = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    corner = int(width - 45 * mm), int(height - 5 * mm)
    cv2.putText(image, "SYNTHETIC PHANTOM", corner, cv2.FONT_HERSHEY_SIMPLEX, 0.11 * mm, 150, 1, cv2.LINE_AA)
    return image
