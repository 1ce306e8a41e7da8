"""Detections drawn into pictures of ears."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from core.figures import figure
from core.landmarks import Schema
from core.windows import cut, square_window, to_window
from ear.manifest import Ear

SIDE = 320  # px of a drawn window
TRUTH, FOUND = "#06d6a0", "#ff4d5e"
Shown = tuple[np.ndarray, Ear, np.ndarray, np.ndarray, str]  # picture, ear, box (4,), landmarks (K, 2), title


def overlays(shown: Sequence[Shown], schema: Schema) -> Figure:
    """Windows that hold true box and landmarks (green) and those found (red), contours as lines, side by side."""
    fig = figure(3.2 * len(shown), 3.75)
    for column, (pixels, ear, box, points, title) in enumerate(shown):
        corners = np.array([ear.box, box])
        both = (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0))
        window = square_window(both, 0.25)
        ax = fig.add_subplot(1, len(shown), column + 1)
        ax.imshow(cut(pixels, window, SIDE))
        for colour, style, landmarks, frame in ((TRUTH, "-", ear.landmarks, ear.box), (FOUND, "--", points, box)):
            places = to_window(landmarks, window, SIDE)
            x0, y0, x1, y1 = to_window(np.reshape(frame, (2, 2)), window, SIDE).ravel()
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, ls=style, lw=1.2))
            for indices in schema.strips.values():
                ax.plot(*places[list(indices)].T, color=colour, lw=1.0, alpha=0.8)
            ax.scatter(*places.T, s=9, color=colour, zorder=3)
        ax.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
        ax.set_axis_off()
        ax.set_title(title, fontsize=9, loc="left")
    handles = [Rectangle((0, 0), 1, 1, fill=False, ec=TRUTH), Rectangle((0, 0), 1, 1, fill=False, ec=FOUND, ls="--")]
    fig.legend(handles, ["truth", "found"], loc="outside lower center", ncols=2, fontsize=9)
    return fig
