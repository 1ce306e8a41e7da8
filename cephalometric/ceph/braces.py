"""Fixed orthodontic appliances drawn onto a cephalogram: steel brackets, molar bands and archwires.

Steel of thickness t lets exp(-μt) of the rays through. What a film lacks to white is multiplied by that: a bracket is
bright, but the tooth's shadow and the film's noise stay, and the left and right side's brackets add up.
"""

import itertools
import math
from collections.abc import Mapping

import cv2
import numpy as np

IRON = 0.95  # μ per mm at 60 keV: 1.205 cm²/g (NIST XCOM) · 7.87 g/cm³
SELLA_NASION = 72.0  # mm, of an uncalibrated head: it differs less between heads than face heights do
UNSHARPNESS = 0.2  # mm, SD: focal spot and movement
FINE = 8  # steps a px in which steel is drawn before they are averaged
JAWS = {"upper": ("UMT", "UPM", "UIT", "UIA"), "lower": ("LMT", "LPM", "LIT", "LIA")}
NEEDED = ("S", "N", *JAWS["upper"], *JAWS["lower"])  # landmarks

# Steel around the slot for the wire: mm in the rays' way, (from, to) along the arch, (from, to) along the tooth; mm,
# positive to the face and to the root. An incisor's bracket is seen in profile, the others face on. The walls of a
# molar's band that are seen along their length are whiter than those seen across.
INCISOR = (
    (1.8, (-1.2, -0.2), (-1.6, 1.6)), (1.4, (-0.2, 0.8), (0.35, 1.4)), (1.4, (-0.2, 0.8), (-1.4, -0.35)),
)  # pad and body, wings  # fmt: skip
PREMOLAR = (
    (0.5, (-1.6, 1.6), (-1.75, 1.75)), (1.0, (-1.5, -0.4), (0.3, 1.65)), (1.0, (0.4, 1.5), (0.3, 1.65)),
    (1.0, (-1.5, -0.4), (-1.65, -0.3)), (1.0, (0.4, 1.5), (-1.65, -0.3)),
)  # pad, wings  # fmt: skip
MOLAR = (
    (0.3, (-4.8, 4.8), (-2.0, 2.0)), (0.8, (-4.8, -4.2), (-2.0, 2.0)), (0.8, (4.2, 4.8), (-2.0, 2.0)),
    (1.4, (-2.1, 2.1), (-1.1, 1.1)),
)  # band, its walls behind and in front, tube  # fmt: skip
WIRE = (0.65, 0.5)  # mm in the rays' way, and across
PAIRED = (1.0, 1.0, 0.3, 0.3)  # of the distance between the sides: the shadows of central incisors nearly coincide
BEFORE_AXIS, BEHIND_CUSP = 3.1, 2.7  # mm: the slot of an incisor, and of a molar, whose landmark is its mesial cusp
BETWEEN = (0.31, 0.62, 0.9)  # first premolar, canine, lateral incisor: parts of the way from premolar to incisor


def draw_braces(
    image: np.ndarray, at: Mapping[str, np.ndarray], mm_per_px: float | None, rng: np.random.Generator
) -> np.ndarray:
    """The frame uint8 (H, W) with braces on the teeth, nowhere darker than it was. `at`: symbol -> (2,) px, of all that
    is NEEDED.

    `mm_per_px` is the frame's; None: by the length of S-N. The head may face either way. Size, metal, height of the
    wire and the distance between left and right side vary; one head in five has braces in one jaw only. A tooth that is
    NaN gets none; neither does any without S or N.
    """
    base = at["N"] - at["S"]
    if not np.isfinite(base).all() or not base.any():
        return image
    mm_per_px = mm_per_px or SELLA_NASION / np.linalg.norm(base)
    size, metal, height = rng.uniform(0.92, 1.08), IRON * rng.uniform(0.8, 1.4), rng.uniform(3.5, 4.5)
    left_out = rng.choice(["", "lower", "upper"], p=[0.8, 0.12, 0.08])
    px = size / mm_per_px  # of a mm of the appliance
    steel = []
    for jaw, symbols in JAWS.items():
        turn = 1 if (jaw == "upper") == (base[0] >= 0) else -1
        apart = rng.normal(0, (0.5, 0.3))  # mm, from the landmarks to the shadows of the left and of the right side
        for side in (-1, 1):
            teeth = [at[symbol] / px + side * part * apart for symbol, part in zip(symbols, PAIRED, strict=True)]
            parts = appliance(teeth, turn, height, rng)
            steel += [(mm, corners * px) for mm, corners in parts if jaw != left_out]
    return cast_shadow(image, steel, metal, UNSHARPNESS / mm_per_px) if steel else image


def appliance(
    teeth: list[np.ndarray], turn: int, height: float, rng: np.random.Generator
) -> list[tuple[float, np.ndarray]]:
    """The steel of one side of a jaw: pairs (mm in the rays' way, corners (4, 2) in mm).

    `teeth` are cusp of the first molar, cusp of the second premolar, tip and apex of the incisor, (2,) mm each. The
    wire passes `height` mm from the cusps. `turn` is 1 where a quarter turn takes x to y and the root's direction to
    the face's, as in the upper jaw of a head that looks to larger x, and -1 where the opposite turn does.
    """
    molar, premolar, tip, apex = teeth
    known = [cusp for cusp in (molar, premolar, tip) if np.isfinite(cusp).all()]
    if len(known) < 2:
        return []  # no arch that a wire could follow

    def to_face(root: np.ndarray) -> np.ndarray:
        return turn * np.array([-root[1], root[0]])

    arch, axis = unit(known[-1] - known[0]), unit(apex - tip)
    root = -to_face(arch)
    first, last = premolar + height * root, tip + height * axis + BEFORE_AXIS * to_face(axis)
    fitted = [(molar + height * root - BEHIND_CUSP * arch, root, 1.0, MOLAR), (first, root, 1.0, PREMOLAR)]
    for share in BETWEEN:  # the arch turns away from the rays' way: brackets get narrower
        fitted.append((first + share * (last - first), unit(root + share * (axis - root)), 1 - 0.5 * share, PREMOLAR))
    fitted.append((last, axis, 1.0, INCISOR))

    steel, slots = [], []
    for slot, up, narrowing, boxes in fitted:
        slot = slot + rng.normal(0, 0.2, 2)
        if not np.isfinite([slot, up]).all():
            continue
        slots.append(slot)
        axes = np.stack([narrowing * to_face(up), up])  # (2, 2)
        for mm, (back, front), (low, high) in boxes:
            corners = np.array([(back, low), (front, low), (front, high), (back, high)])
            steel.append((mm, slot + corners @ axes))
    for start, end in itertools.pairwise(slots):
        half = WIRE[1] / 2 * to_face(unit(end - start))
        steel.append((WIRE[0], np.array([start - half, start + half, end + half, end - half])))
    return steel


def unit(vector: np.ndarray) -> np.ndarray:
    """`vector` (2,) at length 1; NaN where it has none."""
    length = np.linalg.norm(vector)
    return vector / length if length else np.full(2, np.nan)


def cast_shadow(image: np.ndarray, steel: list[tuple[float, np.ndarray]], metal: float, blur: float) -> np.ndarray:
    """The frame uint8 (H, W) behind `steel`, pairs (mm in the rays' way, corners (4, 2) in px); `metal` is μ per mm,
    `blur` the shadow's SD in px."""
    corners = np.concatenate([quadrilateral for _, quadrilateral in steel])
    margin = 2 + math.ceil(3 * blur)
    height, width = image.shape
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + margin + 1, (width, height))
    if left >= right or top >= bottom:
        return image  # all teeth lie out of the frame
    thickness = np.zeros(((bottom - top) * FINE, (right - left) * FINE), np.float32)  # mm
    for mm, quadrilateral in steel:
        fine = (quadrilateral + 0.5 - (left, top)) * FINE - 0.5
        x, y = np.maximum(np.floor(fine.min(axis=0)).astype(int) - 1, 0)
        end_x, end_y = np.maximum(np.ceil(fine.max(axis=0)).astype(int) + 2, 0)
        window = thickness[y:end_y, x:end_x]
        mask = np.zeros(window.shape, np.uint8)
        if mask.size:
            cv2.fillConvexPoly(mask, np.rint((fine - (x, y)) * 16).astype(np.int32), 1, shift=4)
            window += np.float32(mm) * mask
    thickness = cv2.resize(thickness, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    thickness = cv2.GaussianBlur(thickness, (0, 0), max(blur, 0.1))
    shadowed = image.copy()
    window = shadowed[top:bottom, left:right]
    window[:] = np.rint(255 - (255 - window) * np.exp(-metal * thickness))
    return shadowed
