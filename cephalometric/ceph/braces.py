"""Synthetic fixed orthodontic appliances on a cephalogram: steel brackets, molar bands and archwires.

Steel of thickness t transmits exp(-μt). The difference of each pixel to white is multiplied by it, so that tooth and
film noise remain visible, and the brackets of both sides add up.
"""

import itertools
import math
from collections.abc import Mapping

import cv2
import numpy as np

IRON = 0.95  # μ per mm at 60 keV: 1.205 cm²/g (NIST XCOM) · 7.87 g/cm³
SELLA_NASION = 72.0  # mm, assumed for uncalibrated pictures; it varies less between patients than face heights
UNSHARPNESS = 0.2  # mm, SD: focal spot and movement
FINE = 8  # supersampling factor per axis
JAWS = {"upper": ("UMT", "UPM", "UIT", "UIA"), "lower": ("LMT", "LPM", "LIT", "LIA")}
NEEDED = ("S", "N", *JAWS["upper"], *JAWS["lower"])  # landmarks

# Steel around the slot, mm: thickness along the beam, (from, to) along the arch, (from, to) along the tooth; positive
# towards face and root. Incisor brackets are in profile, the others face on; walls of molar bands parallel to the beam
# are brighter.
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
WIRE = (0.65, 0.5)  # mm along and across the beam
PAIRED = (1.0, 1.0, 0.3, 0.3)  # share of the distance between the sides: central incisors nearly coincide
BEFORE_AXIS, BEHIND_CUSP = 3.1, 2.7  # mm: slot in front of the incisor axis, and behind the mesial cusp of a molar
BETWEEN = (0.31, 0.62, 0.9)  # first premolar, canine, lateral incisor: shares of the way from premolar to incisor


def draw_braces(
    image: np.ndarray, at: Mapping[str, np.ndarray], mm_per_px: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Frame uint8 (H, W) with braces drawn on the teeth. `at`: symbol -> (2,) px, for all landmarks NEEDED.

    `mm_per_px`: of the frame; None = from the length of S-N. The head may face either way. Size, metal, wire height and
    the distance between the sides vary; one head in five has braces in one jaw only. Teeth that are NaN have none; no
    tooth has any without S and N.
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
        apart = rng.normal(0, (0.5, 0.3))  # mm, offset of each side from the landmarks
        for side in (-1, 1):
            teeth = [at[symbol] / px + side * part * apart for symbol, part in zip(symbols, PAIRED, strict=True)]
            parts = appliance(teeth, turn, height, rng)
            steel += [(mm, corners * px) for mm, corners in parts if jaw != left_out]
    return cast_shadow(image, steel, metal, UNSHARPNESS / mm_per_px) if steel else image


def appliance(
    teeth: list[np.ndarray], turn: int, height: float, rng: np.random.Generator
) -> list[tuple[float, np.ndarray]]:
    """Steel of one side of a jaw: pairs (thickness along the beam in mm, corners (4, 2) in mm).

    `teeth`: cusp of the first molar, cusp of the second premolar, tip and apex of the incisor, each (2,) in mm.
    `height`: distance of the wire from the cusps in mm. `turn`: 1 if the quarter turn from x to y takes the direction
    of the root to that of the face, as in the upper jaw of a head that faces larger x; otherwise -1.
    """
    molar, premolar, tip, apex = teeth
    known = [cusp for cusp in (molar, premolar, tip) if np.isfinite(cusp).all()]
    if len(known) < 2:
        return []  # no arch

    def to_face(root: np.ndarray) -> np.ndarray:
        return turn * np.array([-root[1], root[0]])

    arch, axis = unit(known[-1] - known[0]), unit(apex - tip)
    root = -to_face(arch)
    first, last = premolar + height * root, tip + height * axis + BEFORE_AXIS * to_face(axis)
    fitted = [(molar + height * root - BEHIND_CUSP * arch, root, 1.0, MOLAR), (first, root, 1.0, PREMOLAR)]
    for share in BETWEEN:  # foreshortening along the arch
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
    """Unit vector (2,); NaN for length 0."""
    length = np.linalg.norm(vector)
    return vector / length if length else np.full(2, np.nan)


def cast_shadow(image: np.ndarray, steel: list[tuple[float, np.ndarray]], metal: float, blur: float) -> np.ndarray:
    """Frame uint8 (H, W) attenuated by `steel`, pairs (thickness along the beam in mm, corners (4, 2) in px).

    `metal`: μ per mm; `blur`: SD of the unsharpness in px.
    """
    corners = np.concatenate([quadrilateral for _, quadrilateral in steel])
    margin = 2 + math.ceil(3 * blur)
    height, width = image.shape
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + margin + 1, (width, height))
    if left >= right or top >= bottom:
        return image  # all teeth are outside the frame
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
