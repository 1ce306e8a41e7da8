"""A synthetic ear: its shape parameters, the curves that follow from them, the landmarks, and its relief.

These are phantoms, drawn by formulas; no person is behind them. The curves that carry the landmarks are the curves that
draw: the helix rises between the outer and the inner helix, the concha lies behind its rim, and so on. The relief is a
height field, to be lit by scene.py.

Frame: x towards the face, y down, z towards the viewer; the unit is the length of the ear, from superaurale (y = -0.5)
to subaurale (y = 0.5). A right ear is seen with the face to the right, as a person is seen from their right side; a
left ear is drawn as a right one, and the finished picture is mirrored.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import cv2
import numpy as np
from scipy.interpolate import CubicSpline


@dataclass(frozen=True)
class EarShape:
    """One ear. The defaults are the mean ear; SPREAD says how much people differ. Lengths in ear lengths."""

    width: float = 0.60  # from the rim at the back to the root of the tragus
    top: float = 0.0  # superaurale towards the face
    back: float = 0.0  # backmost point of the helix downwards
    fullness: float = 0.0  # helix below that point backwards
    lobe: float = 0.0  # lobe longer, all above it shorter
    lobe_width: float = 0.0  # lobe wider
    attachment: float = 0.5  # 0: the lobe hangs free, 1: its edge runs straight into the cheek
    helix_width: float = 0.078  # of the rolled rim at the top
    helix_roll: float = 1.0  # height of the rim, as a factor like those below
    antihelix: float = 1.0  # prominence
    antihelix_back: float = 0.0  # its body towards the rim: a wider concha, a narrower scapha
    fork: float = 0.0  # where the antihelix divides, downwards
    superior_crus: float = 0.0  # its upper end towards the face
    inferior_crus: float = 0.0  # its front end downwards
    concha: float = 1.0  # depth
    tragus: float = 1.0  # size
    tragus_low: float = 0.0  # downwards
    antitragus: float = 1.0  # size
    crus: float = 0.0  # of the helix: its end further back into the concha
    protrusion: float = 0.5  # tangent of the angle between ear and head


SPREAD = EarShape(
    width=0.05, top=0.045, back=0.035, fullness=0.022, lobe=0.042, lobe_width=0.024, attachment=0.35, helix_width=0.016,
    helix_roll=0.2, antihelix=0.25, antihelix_back=0.027, fork=0.036, superior_crus=0.035, inferior_crus=0.02,
    concha=0.2, tragus=0.25, tragus_low=0.018, antitragus=0.3, crus=0.035, protrusion=0.15,
)  # fmt: skip
ASYMMETRY = 0.2  # between the ears of one person, as a share of SPREAD
EXTREME = 2.2  # no parameter is further from the mean, in SPREADs


def sample_shape(rng: np.random.Generator, around: EarShape | None = None) -> EarShape:
    """A person's ear; or one that differs from `around` as two ears of one person do."""
    mean, spread = np.array(astuple(EarShape())), np.array(astuple(SPREAD))
    change = np.clip(rng.standard_normal(len(mean)), -EXTREME, EXTREME)  # in SPREADs
    if around is not None:
        change = np.clip((astuple(around) - mean) / spread + ASYMMETRY * change, -EXTREME, EXTREME)
    shape = EarShape(*(mean + change * spread).tolist())
    return replace(shape, attachment=min(max(shape.attachment, 0.0), 1.0))


# ------------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curves:
    """The lines of one ear, each (N, 2) in the ear's frame, and the landmarks of both schemas."""

    outer: np.ndarray  # the rim, from otobasion superius over the back to otobasion inferius
    front: np.ndarray  # where the ear grows out of the cheek, from otobasion inferius up to superius
    inner: np.ndarray  # inner edge of the helix, from the front over the back to its tail
    band: np.ndarray  # the part of `outer` that `inner` runs along
    crus: np.ndarray  # of the helix, to its end in the concha
    rim: np.ndarray  # of the concha: tragus, notch, antitragus, antihelix, inferior crus
    body: np.ndarray  # the part of `rim` that is a ridge: antitragus to the front end of the inferior crus
    superior: np.ndarray  # crus of the antihelix, from the fork upwards
    concha: np.ndarray  # closed
    tragus: np.ndarray  # closed
    ear17: np.ndarray  # (17, 2)
    ibug55: np.ndarray  # (55, 2)


def ear_curves(shape: EarShape, yaw: float = 0.0) -> Curves:
    """All lines of an ear. `yaw`, in radians, is how far the camera stands in front of the ear: what stands off the
    head moves back."""
    s = shape

    def seen(points: np.ndarray, lift: float) -> np.ndarray:
        """The points lie on a plate that rises from the cheek towards the back, `lift` of the way up to the rim."""
        x = points[:, 0] * s.width / 0.55
        z = lift * s.protrusion * (0.2 * s.width / 0.55 - x)
        return np.column_stack([x * np.cos(yaw) - z * np.sin(yaw), points[:, 1]])

    outer, at = spline(outer_knots(s), 400)
    band = outer[: at[9] + 1]
    thickness = np.interp(np.arange(len(band)), at[:10], [0.7, 0.85, 1, 1.05, 1.0, 0.9, 0.8, 0.7, 0.5, 0.12])
    inner = band - normals(band) * (s.helix_width * thickness)[:, None]
    front, _ = spline([outer[-1], *front_knots(s), outer[0]], 60)
    crus, _ = spline([(0.158, -0.27), (0.150, -0.19), (0.112, -0.11), (0.05, -0.065), (-0.03 - s.crus, -0.045)], 80)
    rim, fold = spline(rim_knots(s), 240)
    body = rim[fold[4] :]
    superior, _ = spline(superior_knots(s), 60)
    lip = body + normals(body) * body_half_width(len(body))[:, None]
    tip, notch = rim[0], rim[fold[2]]
    concha = np.vstack([(0.12, -0.10), (0.138, tip[1] - 0.07), tip + [0.01, 0], rim[fold[1]], notch + [0.008, 0.03],
                        notch + [-0.02, 0.01], lip, (0.14, -0.18)])  # fmt: skip
    tragus, _ = spline(tragus_knots(s), 50)

    outer, inner = seen(outer, 1), seen(inner, 1)
    rim, superior, concha = seen(rim, 0.8), seen(superior, 0.8), seen(concha, 0.8)
    front, crus, tragus = seen(front, 0), seen(crus, 0.3), seen(tragus, 0.3)

    top, back, bottom = outer[:, 1].argmin(), outer[: at[8], 0].argmin(), outer[:, 1].argmax()
    ear17 = [*outer[[0, at[1], top, at[4], back, at[8], at[10], bottom, -1]], crus[-1], superior[-1], rim[-1],
             *rim[fold[[8, 7, 4, 2, 0]]]]  # fmt: skip
    ibug55 = [equidistant(outer, 20), equidistant(inner, 15), equidistant(rim, 15), equidistant(superior, 5)]
    return Curves(
        outer, front, inner, outer[: len(inner)], crus, rim, rim[fold[4] :], superior, concha, tragus,
        np.array(ear17), np.vstack(ibug55),
    )  # fmt: skip


def outer_knots(s: EarShape) -> list[tuple[float, float]]:
    """From otobasion superius (0) over the top (3), the back (6) and the lobe (12) to otobasion inferius (15)."""
    free = 1 - s.attachment
    return [
        (0.185, -0.25),
        (0.170 + 0.3 * s.top, -0.375),
        (0.085 + 0.8 * s.top, -0.470),
        (-0.04 + s.top, -0.5),
        (-0.215 + 0.8 * s.top, -0.425 + 0.2 * s.back),
        (-0.318 + 0.3 * s.top, -0.285 + 0.6 * s.back),
        (-0.350, -0.12 + s.back),
        (-0.328 - 0.7 * s.fullness, 0.03 + 0.7 * s.back - 0.3 * s.lobe),
        (-0.268 - s.fullness, 0.16 + 0.4 * s.back - 0.8 * s.lobe),
        (-0.207 - 0.8 * s.fullness - 0.4 * s.lobe_width, 0.285 - s.lobe),
        (-0.165 - 0.3 * s.fullness - 0.9 * s.lobe_width, 0.385 - 0.5 * s.lobe),
        (-0.105 - 0.8 * s.lobe_width, 0.470),
        (-0.005 - 0.02 * s.attachment, 0.5),
        (0.075 + 0.6 * s.lobe_width - 0.01 * s.attachment, 0.475 - 0.016 * s.attachment),
        (0.115 + 0.3 * s.lobe_width * free + 0.015 * s.attachment, 0.415 - 0.035 * free),
        (0.125 + 0.015 * s.attachment, 0.37 - 0.6 * s.lobe - 0.06 * free),
    ]


def front_knots(s: EarShape) -> list[tuple[float, float]]:
    """Between otobasion inferius and superius."""
    return [(0.165, 0.24 - s.lobe), (0.2, 0.05 - s.lobe + s.tragus_low), (0.195, -0.11)]


def rim_knots(s: EarShape) -> list[tuple[float, float]]:
    """Tragus (0), intertragic notch (2), antitragus (4), body (7), fork (8), front end of the inferior crus (10)."""
    back, low = s.antihelix_back, s.tragus_low - s.lobe
    return [
        (0.122 - 0.03 * (s.tragus - 1), 0.035 + low),
        (0.125, 0.095 + low),
        (0.088, 0.16 - s.lobe + 0.4 * s.tragus_low),
        (0.055, 0.178 - s.lobe),
        (0.012, 0.192 - s.lobe - 0.02 * (s.antitragus - 1)),
        (-0.07 - 0.4 * back, 0.180 - s.lobe),
        (-0.140 - 0.8 * back, 0.105 - 0.7 * s.lobe),
        (-0.172 - back, -0.3 * s.lobe),
        (-0.155 - 0.9 * back, -0.12 + s.fork),
        (-0.09 - 0.4 * back, -0.188 + 0.6 * s.fork + 0.4 * s.inferior_crus),
        (0.065, -0.215 + s.inferior_crus),
    ]


def superior_knots(s: EarShape) -> list[tuple[float, float]]:
    """From the fork to the upper end."""
    middle = -0.150 - 0.4 * s.antihelix_back + 0.3 * s.superior_crus, -0.22 + 0.5 * s.fork
    return [rim_knots(s)[8], middle, (-0.10 + s.superior_crus, -0.34)]


def tragus_knots(s: EarShape) -> list[tuple[float, float]]:
    """Around the flap, whose free edge reaches a little over the tragus point."""
    (x, y), low = rim_knots(s)[0], s.tragus_low - s.lobe
    return [(0.225, 0.03 + low), (0.205, -0.05 + low), (0.155, -0.04 + low), (x - 0.014, y), (0.130, 0.082 + low),
            (0.175, 0.10 + low), (0.225, 0.03 + low)]  # fmt: skip


def body_half_width(places: int) -> np.ndarray:
    """Half the width of the antihelix, from the antitragus to the end of the inferior crus."""
    return np.interp(np.linspace(0, 1, places), [0, 0.2, 0.6, 1], [0.018, 0.024, 0.03, 0.014])


def spline(knots: Sequence, places: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A smooth curve through `knots` (K, 2): (places, 2) evenly along its parameter, and each knot's index."""
    knots = np.asarray(knots, float)
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    fine, index = np.linspace(0, at[-1], places), np.rint(at / at[-1] * (places - 1)).astype(int)
    fine[index] = at  # a knot is a landmark: it must be one of the points
    return CubicSpline(at, knots)(fine), index


def equidistant(curve: np.ndarray, number: int) -> np.ndarray:
    """`number` points at equal distances along `curve` (N, 2), with both ends."""
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    where = np.linspace(0, at[-1], number)
    return np.column_stack([np.interp(where, at, curve[:, axis]) for axis in range(2)])


def normals(curve: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 2) to the right-hand side of the way along `curve`, as seen on a screen (y down)."""
    along = np.gradient(curve, axis=0)
    return np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1, keepdims=True)


def ribbon(curve: np.ndarray, half_width) -> np.ndarray:
    """Outline of a band around `curve`; `half_width` is a number or (N,)."""
    side = normals(curve) * np.broadcast_to(half_width, len(curve))[:, None]
    return np.vstack([curve + side, (curve - side)[::-1]])


def box_of(curves: Curves, to_px: np.ndarray) -> np.ndarray:
    """(4,) x0, y0, x1, y1 of the whole outline in px."""
    outline = px(np.vstack([curves.outer, curves.front]), to_px)
    return np.concatenate([outline.min(0), outline.max(0)])


def px(points: np.ndarray, to_px: np.ndarray) -> np.ndarray:
    """Points (N, 2) of the ear's frame by the affine map `to_px` (2, 3)."""
    return points @ to_px[:, :2].T + to_px[:, 2]


# ------------------------------------------------------------------------------------------------------------- relief


@dataclass(frozen=True)
class Relief:
    """An ear as a height field in a picture; arrays (H, W) float32."""

    height: np.ndarray  # in ear lengths
    cover: np.ndarray  # share of the pixel that is ear, soft where it grows out of the cheek
    canal: np.ndarray  # 0-1, no light comes back from there
    blood: np.ndarray  # 0-1, thin parts through which light shines red


def relief_of(shape: EarShape, curves: Curves, to_px: np.ndarray, size: tuple[int, int]) -> Relief:
    """The relief in a picture of `size` (height, width) px, whose px follow from the ear's frame by `to_px` (2, 3)."""
    scale = float(np.sqrt(abs(np.linalg.det(to_px[:, :2]))))  # px a length

    def mask(outline: np.ndarray) -> np.ndarray:
        pixels = np.zeros(size, np.uint8)
        cv2.fillPoly(pixels, [np.rint(px(outline, to_px) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return pixels.astype(np.float32) / 255

    def soft(share: np.ndarray, sigma: float) -> np.ndarray:
        return blur(share, sigma * scale)

    s, c = shape, curves
    forward = np.outer(np.sin(np.linspace(0, np.pi, len(c.front))), [1, 0])  # into the cheek, but not at its ends
    plate = mask(np.vstack([c.outer, c.front + 0.15 * forward]))
    helix = mask(np.vstack([c.band, c.inner[::-1]])) * fading(c.band[-1, 1], to_px, size)
    helix = soft(np.maximum(helix, mask(ribbon(c.crus, np.linspace(0.028, 0.015, len(c.crus))))), 0.015)
    body = mask(ribbon(c.body, body_half_width(len(c.body))))
    superior = mask(ribbon(c.superior, np.linspace(0.034, 0.026, len(c.superior))))
    concha = mask(c.concha)
    fossa = mask(np.vstack([c.superior, c.body[::-1][: len(c.body) // 3]]))
    tragus = mask(c.tragus)
    antitragus = soft(mask(ellipse(c.ear17[14] + [0.0, 0.014], 0.05, 0.026)), 0.018)
    canal = soft(mask(ellipse(c.ear17[16] + [-0.030, 0.010], 0.026, 0.042)), 0.012)

    height = 0.09 * soft(plate, 0.025) + 0.09 * soft(plate, 0.07)  # a body with a round edge
    height += 0.075 * s.helix_roll * rounded(helix)
    ridges = np.maximum(body, 0.8 * superior)
    height += s.antihelix * (0.03 * rounded(soft(ridges, 0.014)) + 0.045 * soft(ridges, 0.03))
    height -= 0.025 * soft(fossa, 0.02)
    height -= s.concha * (0.08 * soft(concha, 0.016) + 0.06 * soft(concha, 0.05))
    height += s.tragus * (0.045 * rounded(soft(tragus, 0.018)) + 0.06 * soft(tragus, 0.035))
    height += 0.05 * s.antitragus * rounded(antitragus) - 0.06 * canal
    root = np.vstack([c.front + 0.06 * forward, c.outer[0] - [0, 0.2], [[-1, -1], [-1, 1]],
                      c.outer[-1] + [0, 0.2]])  # fmt: skip
    cover = plate * soft(mask(root), 0.028)
    blood = np.clip(helix + 0.6 * soft(mask(ellipse(c.ear17[7] - [0, 0.08], 0.1, 0.08)), 0.05), 0, 1)
    return Relief(height, cover, canal, blood)


def fading(end: float, to_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) from 1 to 0 on the way down to y = `end`: the rolled rim runs out towards the lobe."""
    across, down = map(float, np.linalg.inv(to_px[:, :2])[1])
    x = np.arange(size[1], dtype=np.float32) - np.float32(to_px[0, 2])
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(to_px[1, 2])
    return np.clip((float(end) - across * x - down * y) / 0.22, 0, 1)


def ellipse(middle: np.ndarray, across: float, down: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 40)
    return middle + np.column_stack([across * np.cos(turn), down * np.sin(turn)])


def rounded(share: np.ndarray) -> np.ndarray:
    """A blurred band as a round ridge: steeper at its foot, flatter on its back."""
    return share * (2 - share)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A blur of an (H, W) float32 image with a standard deviation of `sigma` px: Gaussian, or where that would take
    long, a triangle."""
    if sigma < 4:
        return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REPLICATE)
    side = 2 * round(np.sqrt(6 * sigma**2 + 1)) - 1  # whose triangle has the variance ((side + 1)² / 4 - 1) / 6
    return cv2.stackBlur(image, (side, side))
