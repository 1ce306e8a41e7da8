"""Synthetic radiographs of dental implants: makers, model lines, catalogue sizes, and pictures with their truth.

These are phantoms, drawn by formulas; no patient is behind them, and the makers and their catalogues are invented. All
that is drawn is a turned body or a layer: a picture adds up how much of the beam titanium, crowns, teeth and bone take
away, and shows it as film does. Length is from the platform to the apex, diameter that of the outer thread; a collar
may be wider.

Frame: the implant's own, in mm. x across, 0 on the axis; y down the axis, 0 at the platform, `length` at the apex.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator

from core.demo_data import write


@dataclass(frozen=True)
class Company:
    """What all implants of a maker have in common."""

    thread: str  # its form, a key of THREADS
    pitch: float  # mm from crest to crest
    depth: float  # of the thread, mm
    neck: str
    apex: str
    connection: str


COMPANIES = {
    "Alvento": Company("V", 0.8, 0.32, "micro-threads", "round", "internal conical"),
    "Brakka": Company("buttress", 1.25, 0.45, "polished collar", "flat with flutes", "internal hex"),
    "Corvane": Company("square", 1.0, 0.38, "machined", "open chamber", "external hex"),
    "Dromund": Company("reverse buttress", 1.6, 0.52, "none", "pointed", "trilobe"),
    "Eskilo": Company("rounded", 0.6, 0.25, "scalloped", "domed", "internal octagon"),
}
# (company, model) -> lengths and diameters on sale, mm; the middle ones are the most frequent.
CATALOGUE = {
    ("Alvento", "Straight"): ((8, 10, 11.5, 13, 14.5), (3.3, 3.75, 4.1, 4.8)),
    ("Alvento", "Tapered"): ((8.5, 10, 11.5, 13, 16), (3.3, 3.75, 4.5)),
    ("Alvento", "TissueLevel"): ((8, 10, 11.5, 13), (3.3, 4.1, 4.8)),
    ("Alvento", "Short"): ((6, 7, 8), (4.1, 4.8)),
    ("Brakka", "Straight"): ((8.5, 10, 11.5, 13), (3.75, 4.1, 4.5, 5.5)),
    ("Brakka", "Tapered"): ((8, 10, 11.5, 13, 14.5), (3.3, 4.1, 4.8)),
    ("Brakka", "Short"): ((6, 7, 8.5), (4.5, 5.5, 6.0)),
    ("Corvane", "Straight"): ((7, 8.5, 10, 11.5, 13), (3.3, 4.1, 4.8, 5.5)),
    ("Corvane", "Tapered"): ((8.5, 10, 11.5, 13, 14.5), (3.75, 4.1, 4.8)),
    ("Corvane", "TissueLevel"): ((8.5, 10, 11.5, 13), (3.75, 4.5, 5.5)),
    ("Dromund", "Straight"): ((8, 10, 11.5, 13), (3.0, 3.75, 4.5)),
    ("Dromund", "Tapered"): ((8.5, 10, 11.5, 13, 16), (3.0, 3.75, 4.1, 4.8)),
    ("Dromund", "TissueLevel"): ((7, 8.5, 10, 11.5), (4.1, 4.8)),
    ("Eskilo", "Straight"): ((8.5, 10, 11.5, 13, 14.5), (3.3, 3.75, 4.5)),
    ("Eskilo", "Tapered"): ((8, 10, 11.5, 13), (3.0, 3.3, 3.75, 4.5)),
    ("Eskilo", "TissueLevel"): ((6, 8, 10, 11.5), (3.3, 4.1, 4.8)),
    ("Eskilo", "Short"): ((6, 7, 8), (4.1, 4.8, 6.0)),
}
SPACINGS = {"periapical": (0.058, 0.1), "panoramic": (0.09, 0.12)}  # mm per px in pictures of DEFAULT_SIZE
DEFAULT_SIZE = 224
RESTORATIONS = {"crown": 0.65, "healing abutment": 0.2, "cover screw": 0.15}  # and how often they are seen
NECKS = {"micro-threads": 2.1, "polished collar": 1.9, "machined": 0.9, "scalloped": 2.0, "none": 0.0}  # heights, mm
COLLAR = 2.2  # mm, height of the flared collar of a TissueLevel implant
SHOULDER, PLATFORM = 0.9, 0.72  # of a Short implant: mm from the platform to the full radius, share of it at the top
TITANIUM, CERAMIC, DENTIN, ENAMEL = 0.42, 0.2, 0.14, 0.22  # attenuation a mm
BONE, GUM = 0.5, 0.13  # attenuation of what lies before and behind the implant


def _threads() -> dict[str, np.ndarray]:
    """Form -> 256 heights, 0 at the core to 1 at the crest, along one pitch towards the apex."""
    u = (np.arange(256) + 0.5) / 256
    ramp = np.minimum(u / 0.75, (1 - u) / 0.12)
    forms = {
        "V": 1.15 * (1 - abs(2 * u - 1)),
        "buttress": ramp,
        "square": 4 - 14 * abs(u - 0.5),
        "reverse buttress": ramp[::-1],
        "rounded": 0.5 - 0.5 * np.cos(2 * np.pi * u),
    }
    return {name: np.clip(heights, 0, 1).astype(np.float32) for name, heights in forms.items()}


THREADS = _threads()
Profile = list[tuple[float, float]]  # (height, radius) of a turned body, mm, from its upper to its lower end


@dataclass(frozen=True)
class Implant:
    company: str
    model: str
    length: float  # mm
    diameter: float  # mm


@dataclass(frozen=True)
class Picture:
    """A finished picture and its truth; positions in px with pixel centres at integers."""

    pixels: np.ndarray | None  # uint8 (H, W); None: it is in a file by now
    modality: str
    mm_per_px: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1, loosely around implant and restoration
    scene: dict  # what else was drawn: platform and apex in px, restoration, angles


def sample_implant(rng: np.random.Generator, company: str, model: str) -> Implant:
    lengths, diameters = CATALOGUE[company, model]
    return Implant(company, model, _middling(rng, lengths), _middling(rng, diameters))


def _middling(rng: np.random.Generator, sizes: tuple[float, ...]) -> float:
    return float(sizes[rng.binomial(len(sizes) - 1, 0.5)])


# -------------------------------------------------------------------------------------------------------- the implant


def outline_of(implant: Implant, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radius over the thread and depth of the thread, 0 where the implant is smooth, each (N,) in mm, at the heights
    `y` (N,), 0 at the platform and `length` at the apex.

    Makers differ in neck, thread and apex. Model lines are common to them: Straight, Tapered towards the apex,
    TissueLevel with a flared collar, and Short with a narrow platform, a shoulder and a deeper thread.
    """
    company, length, radius = COMPANIES[implant.company], implant.length, implant.diameter / 2
    crest = np.full_like(y, radius)
    neck = NECKS[company.neck]
    if implant.model == "TissueLevel":  # its collar takes the place of the neck
        neck = COLLAR
        crest *= 1 + 0.3 * np.clip(1 - y / COLLAR, 0, 1) ** 2
    else:
        rings = {
            "micro-threads": 0.1 + 0.1 * np.cos(2 * np.pi * y / 0.35),
            "machined": 0.22,
            "scalloped": 0.28 * abs(np.sin(np.pi * y)),
        }
        crest -= np.where(y < neck, rings.get(company.neck, 0.0), 0.0)
    if implant.model == "Short":
        crest *= np.interp(y, [0, SHOULDER], [PLATFORM, 1])
        neck = max(neck, SHOULDER)
    elif implant.model == "Tapered":
        crest *= 1 - 0.45 * np.clip((y / length - 0.3) / 0.7, 0, 1) ** 1.2

    left = length - y  # to the apex
    if company.apex == "round":
        crest *= np.sqrt(np.clip(1 - (1 - left / (0.8 * radius)).clip(0) ** 2, 0, 1))
    elif company.apex == "domed":
        crest *= (1 - (1 - left / 0.9).clip(0, 1) ** 3) ** (1 / 3)
    elif company.apex == "pointed":
        crest *= np.interp(left, [0, 2.6], [0.4, 1])
    else:
        crest *= np.interp(left, [0, 0.35], [0.88, 1])
    depth = min(company.depth * (1.25 if implant.model == "Short" else 1), 0.3 * radius)
    return crest, depth * np.clip((y - neck) / 0.4, 0, 1) * np.clip(left / 1.2, 0, 1)


def titanium(implant: Implant, step: float, screw: float = 0.0) -> np.ndarray:
    """Thickness (H, W) float32 in mm of the titanium in a beam across the axis, on a grid of about `step` mm.

    The thread winds: its crests lie half a pitch higher on one side than on the other, and those of the near and of the
    far side cross. The rows divide the length evenly; the axis runs through the middle of the columns. `screw` is how
    deep the bore is filled, as a share of the implant's length.
    """
    company, length = COMPANIES[implant.company], implant.length
    rows = round(length / step)
    y = (np.arange(rows) + 0.5) * length / rows
    crest, depth = outline_of(implant, y)
    half = int(np.ceil(crest.max() / step)) + 1
    x = ((np.arange(2 * half) + 0.5 - half) * step).astype(np.float32)
    crest, depth = (values.astype(np.float32)[:, None] for values in (crest, depth))
    y = y.astype(np.float32)[:, None]

    def solid(radius: np.ndarray) -> np.ndarray:
        """Thickness of one half of a turned body, the near or the far one."""
        return np.sqrt(np.maximum(radius * radius - x * x, 0))

    turn = np.arcsin(np.clip(x / (implant.diameter / 2), -1, 1)) / (2 * np.pi)  # of the near side, in full turns
    winding = (y / company.pitch * 256).astype(np.int32)
    thickness = np.zeros((rows, len(x)), np.float32)
    for side in (turn, 0.5 - turn):
        height = THREADS[company.thread][(winding - (256 * side).astype(np.int32)) & 255]
        thickness += solid(crest - depth * (1 - height))
    hole = bore(implant, y)
    thickness -= 2 * solid(hole) - 2 * solid(np.where(y < screw * length, 0.72 * hole, 0))

    if company.apex == "open chamber":
        window = (x / (0.62 * crest)) ** 2 + ((y - length + 1.8) / 1.4) ** 2 < 1
        thickness[window] *= 0.3
    elif company.apex == "flat with flutes":
        flute = (x / crest / 0.3 - 0.87) ** 2 + ((y - length) / min(4.2, 0.45 * length)) ** 4 < 1
        thickness[flute] *= 0.5
    return np.maximum(thickness, 0)


def bore(implant: Implant, y: np.ndarray) -> np.ndarray:
    """Radius in mm, at the heights `y`, of the hole for the abutment and its screw."""
    mouth = 0.34 if COMPANIES[implant.company].connection == "external hex" else 0.62
    depth = min(5.5, 0.55 * implant.length)
    shares = np.interp(y, [0, 0.4 * depth, 0.45 * depth, depth - 0.3, depth], [mouth, 0.75 * mouth, 0.34, 0.3, 0])
    return (0.5 * implant.diameter * shares).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- the picture


class Film:
    """Attenuation (H, W) that bodies and layers are added to, in the implant's frame."""

    def __init__(self, size: tuple[int, int], to_px: np.ndarray, mm_per_px: float):
        self.size, self.to_px, self.mm_per_px = size, to_px, mm_per_px
        self.attenuation = np.zeros(size, np.float32)
        back = cv2.invertAffineTransform(to_px).astype(np.float32)
        columns, rows = np.arange(size[1], dtype=np.float32), np.arange(size[0], dtype=np.float32)[:, None]
        self.x, self.y = (row[0] * columns + row[1] * rows + row[2] for row in back)  # of each pixel, mm

    def px(self, points) -> np.ndarray:
        """Points (N, 2) of the frame in px."""
        return np.asarray(points, float) @ self.to_px[:, :2].T + self.to_px[:, 2]

    def body(self, profile: Profile, middle: float | np.ndarray = 0.0, cusps: float | np.ndarray = 0.0) -> np.ndarray:
        """(H, W) thickness in mm of a turned body whose axis is at x = `middle`; `cusps` mm are cut off its top."""
        radius = radius_at(profile, self.y - cusps)
        return 2 * np.sqrt(np.maximum(radius**2 - (self.x - middle) ** 2, 0))

    def add_implant(self, implant: Implant, screw: float, platform: tuple[float, float] = (0.0, 0.0)) -> None:
        """Adds an implant whose platform is at a point of the frame; see `titanium` for `screw`."""
        fine = titanium(implant, self.mm_per_px / 3, screw)
        step_x, step_y = self.mm_per_px / 3, implant.length / len(fine)
        fine = cv2.GaussianBlur(fine, (0, 0), 1.0, borderType=cv2.BORDER_CONSTANT)  # its cells are a third of a pixel
        to_mm = np.array([[step_x, 0, (0.5 - fine.shape[1] / 2) * step_x], [0, step_y, step_y / 2], [0, 0, 1]])
        to_mm[:2, 2] += platform
        to_px = np.vstack([self.to_px, [0, 0, 1]])
        self.attenuation += TITANIUM * cv2.warpAffine(fine, (to_px @ to_mm)[:2], self.size[::-1])


def radius_at(profile: Profile, y: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """Radius in mm of a turned body at the heights `y`: a smooth curve through `profile`, `beyond` outside of it."""
    heights, radii = np.array(profile).T
    top, bottom = heights[[0, -1]].tolist()
    table = np.full(514, beyond, np.float32)  # by rows of the body, which is quicker than to interpolate each pixel
    table[1:-1] = PchipInterpolator(heights, radii)(np.linspace(top, bottom, 512))
    return table[np.clip((y - top) * (512 / (bottom - top)) + 1, 0, 513).astype(np.int16)]


def draw_picture(implant: Implant, rng: np.random.Generator, size: int = DEFAULT_SIZE) -> Picture:
    """A radiograph's crop around an implant. `rng` decides about the camera, the surroundings, and the restoration.

    `size` is about the height of a picture in px: at half the size, pixels are twice as wide, and the same is seen.
    """
    modality = "panoramic" if rng.random() < 0.25 else "periapical"
    mm_per_px = round(rng.uniform(*SPACINGS[modality]) * DEFAULT_SIZE / size, 4)
    restoration = str(rng.choice(list(RESTORATIONS), p=list(RESTORATIONS.values())))
    turn = np.deg2rad(np.clip(6 * rng.standard_normal(), -15, 15))
    foreshortening = np.cos(np.deg2rad(rng.uniform(0, 14)))
    along = np.array([-np.sin(turn), np.cos(turn)]) * foreshortening  # of the axis in the picture
    across = np.array([np.cos(turn), np.sin(turn)])

    top, bottom = rng.uniform(4.0, 8.5), rng.uniform(2.0, 5.5)  # mm of picture above the platform, below the apex
    left, right = implant.diameter / 2 + rng.uniform(2.5, 5.5, 2) + abs(along[0]) * implant.length / 2
    height = round((top + along[1] * implant.length + bottom) / mm_per_px)
    width = round((left + right) / mm_per_px)
    platform = (np.array([left, top]) - [along[0] * implant.length / 2, 0]) / mm_per_px - 0.5
    film = Film((height, width), np.column_stack([across / mm_per_px, along / mm_per_px, platform]), mm_per_px)

    bone_loss = rng.gamma(1.5, 0.5)
    lay_jaw(film, implant, bone_loss, rng)
    for side in (-1, 1):
        gap = rng.uniform(1.0, 3.0)
        beside = rng.choice(["nothing", "tooth", "implant"], p=[0.45, 0.42, 0.13])
        if beside == "tooth":
            lay_tooth(film, side, implant.diameter / 2 + gap, rng)
        elif beside == "implant":
            lay_neighbour(film, side, implant, gap, rng)
    film.add_implant(implant, screw=0.2 if restoration == "cover screw" else 0.45)
    tall = lay_restoration(film, restoration, implant, rng)

    radius = implant.diameter / 2
    outline = film.px([(x, y) for x in (-radius, radius) for y in (-tall, implant.length)])
    margin = rng.uniform(0.2, 2.4, 4) / mm_per_px
    box = [*np.maximum(outline.min(0) - margin[:2], -0.5)]
    box += [*np.minimum(outline.max(0) + margin[2:], [width - 0.5, height - 0.5])]
    scene = {
        "platform": film.px([(0, 0)])[0].round(3).tolist(),
        "apex": film.px([(0, implant.length)])[0].round(3).tolist(),
        "turn": round(float(np.rad2deg(turn)), 3),
        "foreshortening": round(float(foreshortening), 4),
        "bone_loss": round(float(bone_loss), 3),
        "restoration": restoration,
    }
    pixels = exposed(film, modality, rng)
    return Picture(pixels, modality, mm_per_px, tuple(round(float(side), 1) for side in box), scene)


def rising(distance: np.ndarray, over: float) -> np.ndarray:
    """0 to 1 where `distance` rises through 0, over `over` mm."""
    return np.clip(distance / over + 0.5, 0, 1)


def line(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where `distance` is 0, falling to either side as a Gaussian with the deviation `width`."""
    return np.exp(-((distance / width) ** 2) / 2)


def noise(film: Film, detail: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) smooth noise of about unit strength with detail of about `detail` mm."""
    cell = max(detail / film.mm_per_px, 1)
    rough = rng.standard_normal([int(side / cell) + 2 for side in film.size], dtype=np.float32)
    fine = cv2.resize(rough, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return fine[: film.size[0], : film.size[1]]


def lay_jaw(film: Film, implant: Implant, bone_loss: float, rng: np.random.Generator) -> None:
    """Bone with its crest, which dips by `bone_loss` mm at the implant, and the gum above it."""
    coarse = rng.uniform(0.75, 1.35)
    struts = sum(share * (0.55 - abs(noise(film, detail * coarse, rng))) for detail, share in ((0.9, 0.6), (0.5, 0.5)))
    cancellous = rng.uniform(0.13, 0.26) * (struts + 0.25 * noise(film, 3.5, rng))

    beside = np.maximum(abs(film.x) - implant.diameter / 2, 0)
    level = COLLAR if implant.model == "TissueLevel" else 0.1
    wave = rng.uniform(0.1, 0.35) * np.sin(film.x / rng.uniform(1.2, 2.2) + rng.uniform(0, 6.3))
    crest = level + bone_loss * line(beside, rng.uniform(0.6, 1.3)) + rng.normal(0, 0.06) * film.x + wave
    deep = film.y - crest
    cortex = rng.uniform(0.05, 0.25) * line(deep - 0.35, 0.25)
    film.attenuation += GUM * rising(deep + rng.uniform(2.0, 3.5), 0.8) + rising(deep, 0.5) * (
        BONE + cancellous + cortex
    )


def lay_tooth(film: Film, side: int, start: float, rng: np.random.Generator) -> None:
    """A neighbouring tooth on the `side` -1 or 1 from x = `start`: dentin, enamel, pulp, ligament, lamina dura."""
    neck, root, wide = rng.uniform(-2.2, -0.8), rng.uniform(9, 15), rng.uniform(2.2, 2.9)
    lean = rng.uniform(-0.03, 0.08)
    middle = side * (start + 1.3 * wide + lean * film.y)
    tip, top = neck + root, neck - 6.5
    crown = [(top, 0.6), (top + 0.6, 0.95), (neck - 4.2, 1.3), (neck - 1.2, 1.12), (neck, 0.98)]
    crown = [(y, wide * share) for y, share in crown]
    roots = [(neck + 0.3 * root, 0.92), (neck + 0.7 * root, 0.66), (neck + 0.93 * root, 0.33), (tip, 0.02)]
    whole = [*crown, *((y, wide * share) for y, share in roots)]
    inner = [(y + 0.9 * (y < neck - 5), max(radius - layer, 0.1))
             for (y, radius), layer in zip(crown, (0.9, 0.9, 0.9, 0.5, 0.0), strict=True)]  # fmt: skip
    cusps = cusp_shape(film.x - middle, wide) * rising(neck - 3 - film.y, 4)

    tooth = film.body(whole, middle, cusps)
    pulp = film.body([(neck - 3, 0.1), (neck - 1.5, 0.65), (neck, 0.45), (tip - 1, 0.14), (tip - 0.2, 0.05)], middle)
    enamel = np.maximum(film.body(crown, middle, cusps) - film.body(inner, middle, cusps), 0)
    off = abs(film.x - middle) - radius_at(whole, film.y, beyond=-0.6)  # mm outside the root's surface
    socket = rising(film.y - 0.8, 0.6) * rising(tip + 0.6 - film.y, 0.4)
    film.attenuation *= 1 - 0.3 * rising(tooth - 1, 2)  # where a root is, there is less bone
    film.attenuation += socket * (0.16 * line(off - 0.5, 0.14) - 0.2 * line(off - 0.17, 0.11))
    film.attenuation += DENTIN * (tooth - 0.8 * pulp) + ENAMEL * enamel


def cusp_shape(x: np.ndarray, half_width: float) -> np.ndarray:
    """mm to cut off a crown's top: least at two cusps."""
    return 0.4 * np.cos(2 * np.pi * x / (1.3 * half_width)).astype(np.float32)


def lay_neighbour(film: Film, side: int, implant: Implant, gap: float, rng: np.random.Generator) -> None:
    """The same implant once more, `gap` mm away on the `side` -1 or 1, with an abutment."""
    x, y = side * (implant.diameter + gap + 0.5), rng.normal(0, 0.7)
    film.add_implant(implant, 0.45, (x, y))
    shape = [(y - 3.5, 0.8), (y - 1, 1.0), (y, 0.7)]
    film.attenuation += TITANIUM * film.body([(at, implant.diameter / 2 * share) for at, share in shape], x)


def lay_restoration(film: Film, restoration: str, implant: Implant, rng: np.random.Generator) -> float:
    """What stands on the implant. Returns how high it is above the platform, mm."""
    radius = implant.diameter / 2 * (PLATFORM if implant.model == "Short" else 1)  # of the platform
    if restoration == "cover screw":
        film.attenuation += TITANIUM * film.body([(-0.6, 0.55 * radius), (-0.35, 0.8 * radius), (0, 0.85 * radius)])
        return 0.6
    if restoration == "healing abutment":
        tall, wide = rng.uniform(2.5, 4.5), radius * rng.uniform(1.0, 1.35)
        shape = [(-tall, 0.6 * wide), (-tall + 0.25, 0.95 * wide), (-0.5 * tall, wide), (0, 0.8 * radius)]
        film.attenuation += TITANIUM * film.body(shape)
        return tall
    margin, tall, wide = rng.uniform(-0.4, 1.8), rng.uniform(6.5, 9), rng.uniform(3.2, 4.6)
    shape = [(1.0, 0.7), (0.92, 0.92), (0.55, 1.0), (0.2, 0.78), (0.0, max(0.95 * radius / wide, 0.45))]
    crown = [(-margin - tall * share, wide * width) for share, width in shape]
    coping = [(-margin - 0.85 * tall * share, max(wide * width - 0.9, 0.5 * radius)) for share, width in shape]
    abutment = [(-margin - 0.55 * tall, 0.5 * radius), (-margin, 0.7 * radius), (0, 0.8 * radius)]
    if margin < 0:  # the crown's rim hides the platform
        abutment = [abutment[0], abutment[2]]
    cusps = cusp_shape(film.x, wide) * rising(-margin - 0.6 * tall - film.y, 3)
    film.attenuation += CERAMIC * (film.body(crown, 0, cusps) + 1.5 * film.body(coping, 0, cusps))
    film.attenuation += TITANIUM * film.body(abutment)
    return margin + tall


def exposed(film: Film, modality: str, rng: np.random.Generator) -> np.ndarray:
    """Attenuation -> uint8 (H, W) as the film shows it: bright where little of the beam came through."""
    panoramic = modality == "panoramic"
    sigma = rng.uniform(0.09, 0.15) if panoramic else rng.uniform(0.04, 0.08)  # mm
    veil = rng.uniform(0.1, 0.35) if panoramic else 0.03  # of what lies outside the focal trough
    gain, gamma = np.exp([0.13, 0.1] * rng.standard_normal(2)).tolist()
    black, white = rng.uniform(4, 30), rng.uniform(215, 250)
    slope_x, slope_y = (rng.normal(0, 0.08) * np.linspace(-1, 1, side, dtype=np.float32) for side in film.size[::-1])
    stopped = 1 - np.exp(-gain * (film.attenuation * (1 + slope_x + slope_y[:, None]) + veil).clip(0))
    shown = black + (white - black) * stopped**gamma
    shown = cv2.GaussianBlur(shown, (0, 0), max(sigma / film.mm_per_px, 0.2))
    grain = cv2.GaussianBlur(rng.standard_normal(film.size, dtype=np.float32), (0, 0), 0.55)
    shown += (rng.uniform(5, 9) if panoramic else rng.uniform(3, 8)) * grain
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def write_picture(file: Path, implant: Implant, stream: tuple[int, ...], size: int) -> Picture:
    """Writes a picture that follows from the numbers in `stream` as a PNG; returns it without its pixels. A job for a
    process pool."""
    cv2.setNumThreads(1)  # the processes already fill the cores
    picture = draw_picture(implant, np.random.default_rng(stream), size)
    done, data = cv2.imencode(".png", picture.pixels)
    if not done:
        raise RuntimeError("OpenCV could not encode a PNG")
    write(file, data.tobytes())
    return replace(picture, pixels=None)
