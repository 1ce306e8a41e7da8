"""A synthetic side view of a head with its ear: person, light, camera, and the finished picture with its truth.

These are phantoms, drawn by formulas; no person is behind them. A picture is drawn with the face to the right, which
shows a right ear; a left one is its mirror image, with the face to the left. Colours are linear light (0 black, 1
white) until the camera makes them 8 bits of about sRGB, by a square root.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from core.demo_data import write
from ear.demo.phantom import (
    Curves,
    EarShape,
    Relief,
    blur,
    box_of,
    ear_curves,
    px,
    relief_of,
    ribbon,
    sample_shape,
    spline,
)

SIDES = ("right", "left")
SKIN_TONES = ("#f5ceb4", "#e6b492", "#cd9a74", "#a87450", "#7c5035", "#412819")  # sRGB, light to dark
HAIR_COLOURS = ("#16110f", "#2b1e17", "#453022", "#6e5036", "#a88558")
CLOTHES = ("#2c3e57", "#6b2f35", "#3d4b3c", "#8a8f96", "#1f1f24", "#b9ad97")

# Outlines in the ear's frame, whose unit is an ear's length: a head is about three wide and four high.
HEAD, _ = spline([
    (-0.95, 3.2), (-0.92, 1.5), (-1.02, 1.0), (-1.35, 0.4), (-1.5, -0.4), (-1.3, -1.35), (-0.6, -1.95), (0.3, -2.05),
    (1.05, -1.75), (1.45, -1.2), (1.5, -0.8), (1.46, -0.55), (1.62, -0.2), (1.8, 0.1), (1.62, 0.22), (1.66, 0.42),
    (1.58, 0.55), (1.6, 0.8), (1.5, 1.05), (1.2, 1.15), (0.85, 1.2), (0.72, 1.6), (0.75, 3.2),
], 300)  # fmt: skip
UNDER_JAW = [(0.12, 0.45), (0.2, 0.75), (0.55, 0.98), (1.1, 1.12), (1.7, 1.2), (1.7, 3.5), (-2, 3.5), (-2, 1.6),
             (-0.3, 0.5)]  # fmt: skip
BROW = ribbon(spline([(0.98, -0.62), (1.2, -0.74), (1.42, -0.66)], 20)[0], 0.035)
EYE = [(1.1, -0.4), (1.25, -0.47), (1.4, -0.42), (1.38, -0.34), (1.22, -0.33)]
SIDEBURN = [(0.38, -0.7), (0.68, -0.7), (0.58, -0.2), (0.52, -0.05), (0.44, -0.08)]


@dataclass(frozen=True)
class Light:
    """A lamp, and light from everywhere."""

    towards: tuple[float, float, float]  # unit vector from the ear to the lamp: x to the face, y down, z to the viewer
    strength: float  # of the lamp; the rest of 1 comes from everywhere
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Person:
    """What both ears of a person have in common, and both shapes."""

    ears: dict[str, EarShape]  # side -> shape
    tone: float  # of the skin, 0 light to 1 dark
    redness: float
    hair: float  # index into HAIR_COLOURS, colours between them are mixed
    hair_gap: float  # ear lengths between the ear and the hair; 0 and less: it lies behind the ear
    long_hair: bool  # below the nape
    lock: float  # how far hair hangs over the top of the ear, in ear lengths; 0 = not at all
    light: Light


@dataclass(frozen=True)
class Scene:
    """A finished picture: uint8 (H, W, 3) RGB; its truth in px."""

    image: np.ndarray | None  # None: it is in a file by now
    side: str
    box: np.ndarray  # (4,) x0, y0, x1, y1
    ear17: np.ndarray  # (17, 2)
    ibug55: np.ndarray  # (55, 2)
    parameters: dict  # what was drawn: shape, skin, hair, light, pose


# ------------------------------------------------------------------------------------------------------- what to draw


def sample_light(rng: np.random.Generator) -> Light:
    """Lamps stand in front and above, more often than not."""
    turn, rise = np.deg2rad(-65 + 20 * clipped(rng)), np.deg2rad(42 + 5 * clipped(rng))
    towards = np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)
    warm = 0.03 * clipped(rng)
    return Light(tuple(map(float, towards)), 0.66 + 0.04 * clipped(rng), (1 + warm, 1.0, 1 - warm))


def sample_person(rng: np.random.Generator) -> Person:
    right = sample_shape(rng)
    tone = float(rng.beta(1.7, 2.0))
    return Person(
        ears={"right": right, "left": sample_shape(rng, right)},
        tone=tone,
        redness=float(np.clip(0.5 + 0.2 * clipped(rng), 0, 1)),
        hair=float(4 * rng.beta(1.1, 2.0) * (1 - 0.8 * tone)),
        hair_gap=float(rng.uniform(-0.07, 0.02)),
        long_hair=bool(rng.random() < 0.35),
        lock=float(rng.uniform(0.03, 0.12) * (rng.random() < 0.1)),
        light=sample_light(rng),
    )


def clipped(rng: np.random.Generator) -> float:
    return float(np.clip(rng.standard_normal(), -2, 2))


def draw_scene(person: Person, side: str, rng: np.random.Generator, size: int = 256) -> Scene:
    """One ear of a person. `rng` decides about the camera: height and width near `size` px, place, scale, tilt, yaw,
    small changes of the light, exposure, noise; and about the background."""
    height, width = (round(size * rng.uniform(0.94, 1.125)) for _ in range(2))
    shape = person.ears[side]
    yaw, tilt = np.deg2rad(8 * clipped(rng)), np.deg2rad(8 * clipped(rng))
    curves = ear_curves(shape, yaw)
    to_px = sample_camera(curves, tilt, height, width, rng)
    wobble = np.array(person.light.towards) + 0.08 * rng.standard_normal(3)
    light = replace(person.light, towards=tuple((wobble / np.linalg.norm(wobble)).tolist()))

    skin = mixed(SKIN_TONES, person.tone * (len(SKIN_TONES) - 1))
    skin = skin * [1, 1 - 0.10 * (person.redness - 0.5), 1 - 0.06 * (person.redness - 0.5)]
    canvas = Canvas((height, width), to_px)
    paint_head(canvas, person, skin, light, rng)
    paint_ear(canvas, shape, curves, skin, light)
    if person.lock:
        paint_lock(canvas, person, rng)
    image = photograph(canvas, skin, light, rng)
    box, ear17, ibug55 = box_of(curves, to_px), px(curves.ear17, to_px), px(curves.ibug55, to_px)
    if side == "left":
        image = np.ascontiguousarray(image[:, ::-1])
        box = np.array([width - 1 - box[2], box[1], width - 1 - box[0], box[3]])
        ear17, ibug55 = mirrored(ear17, width), mirrored(ibug55, width)
    hair = {name: getattr(person, name) for name in ("hair", "hair_gap", "long_hair", "lock")}
    parameters = {"shape": asdict(shape), "tone": person.tone, "redness": person.redness, "hair": hair,
                  "light": asdict(light), "yaw": float(yaw), "tilt": float(tilt)}  # fmt: skip
    return Scene(image, side, box, ear17, ibug55, parameters)


def sample_camera(curves: Curves, tilt: float, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(2, 3) affine, ear's frame -> px. The ear takes 30 to 60 % of the height and lies wholly inside."""
    scale = rng.uniform(0.33, 0.56) * height
    turn = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    x0, y0, x1, y1 = box_of(curves, np.column_stack([turn, [0, 0]]))
    room = np.array([width, height]) - 1 - [x1 - x0, y1 - y0]
    share = np.clip(0.5 + 0.2 * rng.standard_normal(2), 0.08, 0.92)
    return np.column_stack([turn, share * room - [x0, y0]])


def mirrored(points: np.ndarray, width: int) -> np.ndarray:
    """Points (N, 2) of a picture that is mirrored left to right."""
    return np.column_stack([width - 1 - points[:, 0], points[:, 1]])


# ------------------------------------------------------------------------------------------------------------ painting


def linear(colour: str) -> np.ndarray:
    """An sRGB colour #rrggbb as linear light (3,)."""
    return (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255) ** 2


def mixed(colours: Sequence[str], place: float) -> np.ndarray:
    """The colour at `place` between the listed ones, 0 the first."""
    low = min(int(place), len(colours) - 2)
    return linear(colours[low]) * (1 - place + low) + linear(colours[low + 1]) * (place - low)


class Canvas:
    """Linear light (3, H, W) that is painted on in the ear's frame."""

    def __init__(self, size: tuple[int, int], to_px: np.ndarray):
        self.colour = np.zeros((3, *size), np.float32)
        self.to_px = to_px
        self.scale = float(np.sqrt(abs(np.linalg.det(to_px[:, :2]))))  # px a length

    @property
    def size(self) -> tuple[int, int]:
        return self.colour.shape[1:]

    def share(self, outline: np.ndarray | Sequence, soft: float = 0.01) -> np.ndarray:
        """(H, W) 0-1 inside a closed outline (N, 2), its edge softened by `soft` ear lengths."""
        mask = np.zeros(self.size, np.uint8)
        pixels = np.rint(px(np.asarray(outline, float), self.to_px) * 16).astype(np.int32)
        cv2.fillPoly(mask, [pixels], 255, cv2.LINE_AA, 4)
        return blur(mask.astype(np.float32) / 255, soft * self.scale)

    def paint(self, share: np.ndarray, colour: np.ndarray, brightness: float | np.ndarray = 1.0) -> None:
        """Lays `colour` (3,) times `brightness`, a number or (H, W), over what is there."""
        for plane, value in zip(self.colour, map(float, colour), strict=True):
            plane += share * (value * brightness - plane)

    def shade(self, share: np.ndarray, factors: Sequence[float]) -> None:
        """Multiplies by `factors` (3,) where `share` is 1."""
        for plane, factor in zip(self.colour, factors, strict=True):
            plane *= 1 - (1 - factor) * share

    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y, each (H, W), of each pixel in the ear's frame."""
        (a, b), (c, d) = np.linalg.inv(self.to_px[:, :2]).tolist()
        height, width = self.size
        x = np.arange(width, dtype=np.float32) - np.float32(self.to_px[0, 2])
        y = (np.arange(height, dtype=np.float32) - np.float32(self.to_px[1, 2]))[:, None]
        return a * x + b * y, c * x + d * y


def paint_head(canvas: Canvas, person: Person, skin: np.ndarray, light: Light, rng: np.random.Generator) -> None:
    """Background, neck and shoulder, head, face, hair: all that lies behind the ear."""
    x, y = canvas.frame()
    wall = rng.uniform(0.15, 0.6) * (1 + 0.08 * rng.standard_normal(3))
    slope = 0.12 * rng.standard_normal(2)
    canvas.paint(np.float32(1), wall, np.clip(1 + float(slope[0]) * x + float(slope[1]) * y, 0.5, 1.5))
    head = canvas.share(HEAD, 0.012)
    canvas.paint(head, skin, lambert((x - 0.15) / 2.4, (y + 0.3) / 2.9, light))
    canvas.shade(head * canvas.share(UNDER_JAW, 0.07), (0.72, 0.66, 0.64))
    canvas.shade(canvas.share(BROW, 0.02), (0.35, 0.35, 0.35))
    canvas.shade(canvas.share(EYE, 0.02), (0.25, 0.25, 0.25))
    collar = rng.uniform(1.5, 1.9)
    shirt = [(-3, collar), (-0.9, collar - 0.15), (0.2, collar + 0.25), (1.2, collar + 0.1), (3, 2.6), (3, 4), (-3, 4)]
    canvas.paint(canvas.share(shirt), linear(CLOTHES[rng.integers(len(CLOTHES))]))
    paint_hair(canvas, person, rng)


def streaks(canvas: Canvas, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) smooth noise of about unit strength, drawn out along `degrees`: the run of hair."""
    height, width = canvas.size
    side = int(np.hypot(height, width)) + 2
    rough = rng.standard_normal((side // 3, 8), dtype=np.float32)
    straight = cv2.resize(rough, (side, side), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 1)
    turn[:, 2] += (width - side) / 2, (height - side) / 2
    return cv2.warpAffine(straight, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


def lay_hair(canvas: Canvas, person: Person, outline: np.ndarray, degrees: float, rng: np.random.Generator) -> None:
    """Hair inside a closed outline (N, 2), with a fringed edge and a soft shadow."""
    run = streaks(canvas, degrees, rng)
    share = np.clip((canvas.share(outline, 0.03) - 0.5) * 3 + 0.5 + 0.2 * run, 0, 1)
    canvas.shade(canvas.share(outline + np.array([-0.01, 0.04]), 0.04) * (1 - share), (0.66, 0.62, 0.6))
    canvas.paint(share, mixed(HAIR_COLOURS, person.hair), np.clip(1 + 0.18 * run, 0.3, 2))


def paint_hair(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    """Hair above and behind the ear, close to its rim, and a sideburn."""
    gap = person.hair_gap
    around = [(0.62, -0.52), (0.48, -0.47), (0.34, -0.54 - 0.7 * gap), (0.15, -0.58 - gap), (-0.1, -0.58 - gap),
              (-0.34 - gap, -0.42), (-0.40 - gap, -0.1), (-0.38 - gap, 0.25)]  # fmt: skip
    if person.long_hair:
        below = [(-0.42 - 0.5 * gap, 0.6), (-0.3, 1.2), (-0.3, 2.2), (-1.5, 2.3)]
    else:
        below = [(-0.48 - 0.5 * gap, 0.6), (-0.72, 1.05), (-1.1, 1.0)]
    outside = [(-1.5, 0.5), (-1.68, -0.4), (-1.45, -1.45), (-0.65, -2.15), (0.35, -2.25), (1.15, -1.9), (1.42, -1.5)]
    temple = [(1.2, -1.35), (0.95, -1.05), (0.84, -0.75), (0.62, -0.52)]
    outline = spline([*around, *below, *outside, *temple], 300)[0]
    stubble = 0.4 * np.maximum(canvas.share(SIDEBURN, 0.04), canvas.share(outline, 0.07))
    canvas.paint(stubble, mixed(HAIR_COLOURS, person.hair))
    lay_hair(canvas, person, outline, 25, rng)


def paint_lock(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    """Hair that hangs over the top of the ear."""
    low = -0.5 + person.lock
    outline, _ = spline([(0.5, -0.75), (0.3, low - 0.1), (0.05, low), (-0.2, low + 0.03), (-0.45, low + 0.12),
                         (-0.6, low), (-0.5, -0.7), (0, -0.9), (0.5, -0.75)], 120)  # fmt: skip
    lay_hair(canvas, person, outline, 12, rng)


def cast_shadow(height: np.ndarray, light: Light, scale: float) -> np.ndarray:
    """(H, W) 0-1, where the relief hides the lamp: heights on the way to it are compared with its ray."""
    x, y, z = light.towards
    above = np.zeros_like(height)
    for reach in (0.015, 0.03, 0.05, 0.075, 0.11):
        step = np.array([[1, 0, -reach * x * scale], [0, 1, -reach * y * scale]], np.float32)
        ahead = cv2.warpAffine(height, step, height.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        above = np.maximum(above, ahead - height - reach * z)
    return blur(np.clip(above / 0.02, 0, 1), 0.008 * scale)


def lambert(across: np.ndarray, down: np.ndarray, light: Light, occlusion=1.0, lit=1.0) -> np.ndarray:
    """(H, W) brightness of a matt surface, 1 where it faces the lamp. Its normals are (across, down, 1); `occlusion` is
    the share of the light from everywhere that reaches it, `lit` that of the lamp, each a number or (H, W)."""
    lamp = np.clip(facing(across, down, light.towards), 0, None) * np.sqrt(occlusion) * lit
    return light.strength * lamp + (1 - light.strength) * occlusion


def facing(across: np.ndarray, down: np.ndarray, towards: Sequence[float]) -> np.ndarray:
    """(H, W) cosine between the normals (across, down, 1) and the unit vector `towards`."""
    x, y, z = map(float, towards)
    return (across * x + down * y + z) / np.sqrt(across * across + down * down + 1)


def paint_ear(canvas: Canvas, shape: EarShape, curves: Curves, skin: np.ndarray, light: Light) -> None:
    """Draws the ear in a window around its box and lays it over the head, on which it casts a shadow."""
    x0, y0, x1, y1 = box_of(curves, canvas.to_px)
    pad = 0.25 * canvas.scale
    left, top = (int(max(0, np.floor(low - pad))) for low in (x0, y0))
    right, bottom = (int(min(side, np.ceil(high + pad))) for side, high in ((canvas.size[1], x1), (canvas.size[0], y1)))
    to_window = canvas.to_px - [[0, 0, left], [0, 0, top]]
    relief = relief_of(shape, curves, to_window, (bottom - top, right - left))
    cover = relief.cover
    offset = -np.array(light.towards[:2]) * 0.16 * shape.protrusion * canvas.scale
    shadow = cv2.warpAffine(cover, np.array([[1, 0, offset[0]], [0, 1, offset[1]]]), cover.shape[::-1])
    shadow = np.maximum(blur(shadow, 0.03 * canvas.scale) * 0.6, blur(cover, 0.05 * canvas.scale) * 0.45)
    colour = shade_relief(relief, skin, light, canvas.scale)
    for behind, ear, share in zip(canvas.colour, colour, (0.85, 0.95, 1.0), strict=True):
        window = behind[top:bottom, left:right]
        window *= 1 - share * shadow
        window += cover * (ear - window)


def shade_relief(relief: Relief, skin: np.ndarray, light: Light, scale: float) -> list[np.ndarray]:
    """Linear light, three times (H, W), that comes back from the relief; `scale` px a length."""
    height = relief.height
    across, down = (-cv2.Sobel(height, cv2.CV_32F, *axis, scale=scale / 8) for axis in ((1, 0), (0, 1)))
    near, far = (np.clip(blur(height, reach * scale) - height, 0, None) for reach in (0.04, 0.12))
    occlusion = np.exp(-11 * near - 8 * far)
    lit = 1 - 0.75 * cast_shadow(height, light, scale)
    brightness = lambert(across, down, light, occlusion, lit) * (1 - 0.75 * relief.canal)
    half = np.array(light.towards) + [0, 0, 1]
    gloss = 0.05 * np.clip(facing(across, down, half / np.linalg.norm(half)), 0, 1) ** 24 * occlusion
    # Light that has gone through skin is red: deep in folds, and in thin parts.
    tint = 0.10 * relief.blood + 0.25 * (1 - occlusion)
    return [albedo * (1 - share * tint) * brightness + gloss
            for albedo, share in zip(map(float, skin), (0.0, 1.0, 1.3), strict=True)]  # fmt: skip


def photograph(canvas: Canvas, skin: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Linear light -> uint8 (H, W, 3) sRGB. The camera's automatic exposure evens out most of the skin's lightness."""
    exposure = 1.2 * (0.42 / float(skin.mean())) ** 0.58 * np.exp(0.04 * clipped(rng))
    grain = 3 * blur(rng.standard_normal(canvas.size, dtype=np.float32), 0.7)
    planes = [
        np.sqrt(np.clip(plane, 0, None) * float(255**2 * exposure * share)) + grain
        for plane, share in zip(canvas.colour, light.colour, strict=True)
    ]
    return cv2.merge([cv2.convertScaleAbs(np.clip(plane, 0, 255)) for plane in planes])


# ------------------------------------------------------------------------------------------------------------- files


def scene_of(seed: int, number: int, size: int) -> Scene:
    """Picture `number` of a data set; depends on the arguments alone. Pictures 2n and 2n + 1 show both ears of one
    person."""
    person, side = divmod(number, 2)
    looks = sample_person(np.random.default_rng([seed, 0, person]))
    return draw_scene(looks, SIDES[side], np.random.default_rng([seed, 1, number]), size)


def write_scene(files: list[Path], seed: int, number: int, size: int) -> Scene:
    """Writes picture `number` as a JPEG to all `files`; returns it without its pixels. A job for a process pool."""
    cv2.setNumThreads(1)  # the processes already fill the cores
    scene = scene_of(seed, number, size)
    done, data = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    for file in files:
        write(file, data.tobytes())
    return replace(scene, image=None)
