"""Square windows and letterboxing of pictures, with coordinate transforms in both directions.

Pixel centres are at integers: a picture spans [-0.5, width - 0.5], and resizing by `scale` maps x to
(x + 0.5) · scale - 0.5. Without the offsets, the error is up to half a pixel of the coarser grid.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Window = tuple[float, float, float]  # square in px: x, y of the upper left corner, side; x = -0.5 is the left edge


def square_window(box: tuple[float, float, float, float], margin: float) -> Window:
    """Square with the centre of a box (x0, y0, x1, y1) in px and `1 + margin` times its longer side."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + margin)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side


def cut(pixels: np.ndarray, window: Window, size: int) -> np.ndarray:
    """The window of a picture (H, W[, 3]) uint8 as (size, size[, 3]), antialiased; the border pixels are repeated
    outside the picture."""
    x, y, side = window
    corners = np.array([x, y, x + side, y + side]) + 0.5  # the first pixel spans [0, 1] here
    reach = math.ceil(max(1, side / size))  # of the resampling filter beyond the window
    left, top = np.floor(corners[:2]).astype(int) - reach
    right, bottom = np.ceil(corners[2:]).astype(int) + reach
    rows = np.arange(top, bottom).clip(0, pixels.shape[0] - 1)
    columns = np.arange(left, right).clip(0, pixels.shape[1] - 1)
    region = Image.fromarray(pixels[rows[:, None], columns])
    box = tuple(corners - (left, top, left, top))
    return np.asarray(region.resize((size, size), Image.Resampling.BILINEAR, box=box))


def to_window(points: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Points (…, 2) xy from px of the picture to px of the window resized to `size`."""
    x, y, side = window
    return (points - np.array([x, y])) * (size / side) - 0.5


def to_picture(points: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Points (…, 2) xy from px of the window resized to `size` to px of the picture."""
    x, y, side = window
    return (points + 0.5) * (side / size) + np.array([x, y])


def box_to(box: np.ndarray, convert, window: Window, size: int) -> np.ndarray:
    """A box (4,) x0, y0, x1, y1 transformed by `convert`: `to_window` or `to_picture`."""
    return convert(np.reshape(box, (2, 2)), window, size).reshape(4)


@dataclass(frozen=True)
class Letterbox:
    """A picture resized into a frame with its aspect ratio, centred and padded; coordinates map exactly."""

    picture: tuple[int, int]  # width, height
    frame: tuple[int, int]  # width, height

    @property
    def scale(self) -> float:
        """Frame px per picture px, in x and y."""
        return min(self.frame[0] / self.picture[0], self.frame[1] / self.picture[1])

    @property
    def content(self) -> tuple[int, int]:
        """(columns, rows) of the frame filled by the picture, rounded down."""
        return tuple(max(1, math.floor(side * self.scale + 1e-6)) for side in self.picture)

    @property
    def offset(self) -> tuple[int, int]:
        """(columns, rows) of padding to the left and above."""
        return tuple((side - filled) // 2 for side, filled in zip(self.frame, self.content, strict=True))

    def to_frame(self, points):
        """Points (…, 2) xy, NumPy or torch, from px of the picture to px of the frame."""
        return (points + 0.5) * self.scale - 0.5 + self._like(points)

    def to_picture(self, points):
        """Points (…, 2) xy, NumPy or torch, from px of the frame to px of the picture."""
        return (points - self._like(points) + 0.5) / self.scale - 0.5

    def _like(self, points):
        return np.array(self.offset) if isinstance(points, np.ndarray) else points.new_tensor(self.offset)

    def draw(self, pixels: np.ndarray, fill: int = 0) -> np.ndarray:
        """The frame (height, width[, 3]) uint8 with the resized picture `pixels` (H, W[, 3]) uint8, antialiased."""
        (columns, rows), (left, top) = self.content, self.offset
        box = (0, 0, min(self.picture[0], columns / self.scale), min(self.picture[1], rows / self.scale))
        content = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR, box=box)
        frame = np.full((self.frame[1], self.frame[0], *pixels.shape[2:]), fill, np.uint8)
        frame[top : top + rows, left : left + columns] = np.asarray(content)
        return frame
