"""Expansion of the training split: flipped, tilted, brighter and darker copies of each original, and braces.

The reference states 6500 pictures per 1000 originals, but its parts sum to 5500; separate brighter and darker copies
give 6500. Samples are drawn on demand, differently in each epoch.
"""

import cv2
import numpy as np

from ceph.anatomy import ANATOMY, Anatomy
from ceph.braces import NEEDED, draw_braces

KINDS = {  # of each original; half of them also with braces, if the landmarks include teeth
    "6500": ("original", "flipped", "tilted left", "tilted right", "brighter", "darker"),
    "5500": ("original", "flipped", "tilted left", "tilted right", "brightness"),
}
EXPANSIONS = (*KINDS, "none")
TILT = 7.0  # maximum, °
GAMMA = (1.15, 1.45)  # changes middle grey by 10 to 27 %, without saturation


def expand(originals: int, expansion: str, anatomy: Anatomy = ANATOMY) -> list[tuple[int, str]]:
    """Samples of an expanded split: pairs (index of the original, kind). Originals of odd index also have one with
    braces, if the landmarks include teeth."""
    if expansion == "none":
        return [(number, "original") for number in range(originals)]
    samples = []
    for number in range(originals):
        samples += [(number, kind) for kind in KINDS[expansion]]
        if number % 2 and set(NEEDED) <= set(anatomy.names):
            samples.append((number, "braces"))
    return samples


def draw_sample(
    kind: str,
    image: np.ndarray,
    points: np.ndarray,
    mm_per_px: float | None,
    rng: np.random.Generator,
    anatomy: Anatomy = ANATOMY,
) -> tuple[np.ndarray, np.ndarray]:
    """Frame uint8 (H, W) and points (K, 2) px (NaN = unknown) of a sample of `kind`. `mm_per_px`: of the frame.

    "flipped" exchanges landmarks by the anatomy's flip; "tilted left" is counter-clockwise.
    """
    if kind == "flipped":
        return np.ascontiguousarray(image[:, ::-1]), points[anatomy.flip] * (-1, 1) + (image.shape[1] - 1, 0)
    if kind in ("tilted left", "tilted right"):
        degrees = TILT * (1 - rng.random())  # in (0, 7]
        return tilt(image, points, degrees if kind == "tilted left" else -degrees)
    if kind in ("brighter", "darker", "brightness"):
        gamma = rng.uniform(*GAMMA)
        down = kind == "darker" or (kind == "brightness" and rng.random() < 0.5)
        levels = np.linspace(0, 1, 256) ** (gamma if down else 1 / gamma)
        return cv2.LUT(image, np.rint(255 * levels).astype(np.uint8)), points
    if kind == "braces":
        return draw_braces(image, dict(zip(anatomy.names, points, strict=True)), mm_per_px, rng), points
    return image, points


def tilt(image: np.ndarray, points: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Frame (H, W) and points (N, 2) px, rotated counter-clockwise about the centre of the frame."""
    height, width = image.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)  # (2, 3)
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR), points @ turn[:, :2].T + turn[:, 2]
