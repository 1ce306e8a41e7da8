"""The expansion of the training split: of each original mirrored, tilted, brighter and darker ones, and braces.

The reference counts 6500 pictures for 1000 originals; its parts sum to 5500. With brightness both up and down they give
the total. Nothing is written to disk: a picture is drawn when it is asked for, with other numbers in each epoch.
"""

import cv2
import numpy as np

from ceph.anatomy import ANATOMY, Anatomy
from ceph.braces import NEEDED, draw_braces

KINDS = {  # of each original; half of the originals are drawn with braces, too, where landmarks say where
    "6500": ("original", "flipped", "tilted left", "tilted right", "brighter", "darker"),
    "5500": ("original", "flipped", "tilted left", "tilted right", "brightness"),
}
EXPANSIONS = (*KINDS, "none")
TILT = 7.0  # degrees, largest
GAMMA = (1.15, 1.45)  # of brightness: middle grey changes by 10 to 27 %; black and white stay, bone does not burn out


def expand(originals: int, expansion: str, anatomy: Anatomy = ANATOMY) -> list[tuple[int, str]]:
    """The samples of an expanded split: pairs (number of the original, kind).

    Every second original, from the second on, has one with braces: of an odd number, the smaller half. None has where
    the landmarks say nothing of teeth.
    """
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
    """The frame uint8 (H, W) and the points (K, 2) px, NaN = unknown, of one kind. `mm_per_px` is the frame's.

    A mirror exchanges landmarks by the anatomy's flip. "tilted left" is counter-clockwise.
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
    """The frame (H, W) and the points (N, 2) px turned counter-clockwise about the frame's centre."""
    height, width = image.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)  # (2, 3)
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR), points @ turn[:, :2].T + turn[:, 2]
