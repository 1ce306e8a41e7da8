"""Test-time augmentation: a picture is seen several times, mirrored, tilted, scaled, and the answers are averaged.

Points are xy in input px with pixel centres at integers.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from ceph.hrnet import decode


@dataclass(frozen=True)
class View:
    """A picture mirrored left to right, then turned by `tilt` degrees (clockwise as shown), then enlarged by `scale`,
    all about the centre of its frame. What this moves out of the frame is lost; what comes in is black."""

    scale: float = 1.0
    tilt: float = 0.0
    flip: bool = False

    def draw(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 1, H, W) as this view shows them.

        Plain bilinear sampling, as in training, also where the view shrinks: an antialiased reduction to 0.8 differs by
        0.7 of 255 grey levels (RMS) on drawn cephalograms, and points found with it were no better.
        """
        if self == View():
            return images
        height, width = images.shape[-2:]
        half = images.new_tensor([width, height]) / 2  # affine_grid measures from the centre, in halves of the frame
        back = self._matrix(images).T / self.scale**2 * half / half[:, None]
        theta = F.pad(back, (0, 1)).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    def to_view(self, points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Where points (..., 2) of the picture stand in the view. `centre` is xy of the frame's."""
        return (points - centre) @ self._matrix(points).T + centre

    def to_input(self, points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Points (..., 2) of the view back in the picture."""
        return (points - centre) @ self._matrix(points) / self.scale**2 + centre

    def _matrix(self, like: torch.Tensor) -> torch.Tensor:
        """(2, 2), takes xy from the centre in the picture to xy from the centre in the view. The inverse of such a turn
        times `scale` is its transpose over scale²."""
        cos, sin = self.scale * math.cos(math.radians(self.tilt)), self.scale * math.sin(math.radians(self.tilt))
        mirror = -1 if self.flip else 1
        return like.new_tensor([[mirror * cos, -sin], [mirror * sin, cos]])


SCALES, TILTS, FLIPS = (1.0, 0.8, 1.2), (0.0, -3.0, 3.0), (False, True)
# What --tta takes. The picture as it is comes first: it says which landmarks the other views still show.
VIEWS = {
    "none": (View(),),
    "10": tuple(View(s, t, flip) for flip in FLIPS for s, t in product(SCALES, TILTS) if s == 1 or t == 0),
    "18": tuple(View(s, t, flip) for flip in FLIPS for s, t in product(SCALES, TILTS)),
}


def predict_views(model, images: torch.Tensor, sigma: float, tta: str = "none") -> dict[str, torch.Tensor]:
    """What `model`, an HRNetLandmarks, says of pictures (B, 1, H, W) in 0-1: the mean over the views `VIEWS[tta]`.

    - `points` (B, K, 2), input px, and `confidence` (B, K): over the views in whose frame the landmark lies
    - `measurements` (B, M): lengths in input px, angles in °, ratios in %
    - `cvm_stage` (B, S): probabilities of the stages

    What the model's anatomy has none of is not there. In a mirrored view landmarks are exchanged by its flip.
    """
    height, width = images.shape[-2:]
    size = images.new_tensor([width, height])
    centre = (size - 1) / 2
    is_length, flip = torch.from_numpy(model.anatomy.is_length).to(images.device), model.anatomy.flip
    points, confidences, counts, measurements, stages = [], [], [], [], []
    for view in VIEWS[tta]:
        # In half precision a coordinate of 500 px is good to a quarter px only: the geometry stays in full.
        with torch.autocast(images.device.type, enabled=False):
            picture = view.draw(images)
        prediction = model(picture)
        with torch.autocast(images.device.type, enabled=False):
            seen, confidence = decode(prediction, model.stride, sigma)
            if view.flip:
                seen, confidence = seen[:, flip], confidence[:, flip]
            points.append(view.to_input(seen, centre))
            place = view.to_view(points[0], centre)
        inside = ((place >= -0.5) & (place <= size - 0.5)).all(-1)  # (B, K)
        counts.append(inside if len(points) > 1 else torch.ones_like(inside))
        confidences.append(confidence)
        if "measurements" in prediction:
            values = prediction["measurements"].float() * model.measurement_std + model.measurement_mean
            measurements.append(torch.where(is_length, values / view.scale, values))
        if "cvm_stage" in prediction:
            stages.append(prediction["cvm_stage"].float().softmax(dim=1))
    weight = torch.stack(counts).float()  # (views, B, K)
    weight = weight / weight.sum(dim=0)
    found = {
        "points": (weight[..., None] * torch.stack(points)).sum(dim=0),
        "confidence": (weight * torch.stack(confidences)).sum(dim=0),
    }
    branch = {"measurements": measurements, "cvm_stage": stages}
    return found | {name: torch.stack(values).mean(dim=0) for name, values in branch.items() if values}
