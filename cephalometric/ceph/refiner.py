"""Stage 2: a network that looks at native pixels around each landmark, in crops of one physical scale.

Stage 1 sees the whole head, at about 0.5 mm a pixel. A crop has 0.1, and the network only has to tell where in it the
landmark is. Two windows a little apart err differently: five of them are averaged.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ceph.heatmaps import decode_dark, to_input
from ceph.hrnet import HeatmapHRNet
from core.windows import Window, cut, to_picture

MM_PER_PX = 0.1  # of the crops
SHIFT = 1 / 8  # of a crop's side: how far the four other windows are moved
SHIFTS = {1: ((0, 0),), 5: ((0, 0), (-SHIFT, 0), (SHIFT, 0), (0, -SHIFT), (0, SHIFT))}
AT_A_TIME = 64  # crops through the network, so that memory does not grow with their number


class LandmarkRefiner(HeatmapHRNet):
    """Grey crops (B, 1, S, S) in 0-1 to heatmaps (B, 29, S/stride, S/stride); see `HeatmapHRNet`."""

    kind, trained_by = "refiner", "train_refiner.py"
    needed: ClassVar = {"sigma": int | float, "mm_per_px": int | float}  # by inference, by its type

    def __init__(
        self,
        backbone: str = "hrnet_w32",
        image_size: tuple[int, int] = (256, 256),
        heatmap_size: int = 64,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
    ):
        super().__init__(backbone, image_size, heatmap_size, pretrained, backbone_weights)


def window_around(centre: np.ndarray, side: float) -> Window:
    """The square of `side` native px around a point."""
    return float(centre[0] - side / 2), float(centre[1] - side / 2), side


def peaks(
    heatmaps: torch.Tensor, landmarks: torch.Tensor, model: LandmarkRefiner, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(points (N, 2) crop px, confidence (N,)) of the one landmark (N,) that each crop is about, from its heatmaps
    (N, 29, H, W)."""
    own = heatmaps[torch.arange(len(landmarks), device=heatmaps.device), landmarks]
    points, confidence = decode_dark(own[:, None], sigma)
    return to_input(points[:, 0], model.stride), confidence[:, 0]


@torch.no_grad()
def refine(
    model: LandmarkRefiner, config: dict, pixels: np.ndarray, points: np.ndarray, mm_per_px: float, crops: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """(points (29, 2) native px, confidence (29,)) from `points` (29, 2) of stage 1, in a grey picture uint8 (H, W).

    `crops` is 1 or 5 a landmark. NaN stays NaN. Only the windows are read: nothing of the picture's size is made.
    """
    size, device = config["model"]["image_size"][0], next(model.parameters()).device
    side = size * config["mm_per_px"] / mm_per_px
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    landmarks = np.repeat(known, crops)
    windows = [window_around(points[k] + np.array(shift) * side, side) for k in known for shift in SHIFTS[crops]]
    found, confidence = np.full((len(landmarks), 2), np.nan), np.full(len(landmarks), np.nan)
    for start in range(0, len(landmarks), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        images = np.stack([cut(pixels, window, size) for window in windows[part]])
        heatmaps = model(torch.from_numpy(images)[:, None].to(device).float() / 255)
        own = torch.from_numpy(landmarks[part]).to(device)
        places, heights = (values.cpu().double().numpy() for values in peaks(heatmaps, own, model, config["sigma"]))
        found[part] = [to_picture(p, window, size) for p, window in zip(places, windows[part], strict=True)]
        confidence[part] = heights
    refined, sure = np.full(points.shape, np.nan), np.full(len(points), np.nan)
    refined[known] = found.reshape(-1, crops, 2).mean(axis=1)
    sure[known] = confidence.reshape(-1, crops).mean(axis=1)
    return refined, sure
