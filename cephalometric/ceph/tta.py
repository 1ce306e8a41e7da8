"""Test-time augmentation: mean prediction over flipped, tilted and scaled views of a picture.

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
    """Horizontal flip, then rotation by `tilt` ° (clockwise), then magnification by `scale`, about the centre of the
    frame; black outside the picture."""

    scale: float = 1.0
    tilt: float = 0.0
    flip: bool = False

    def draw(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 1, H, W) in this view.

        Bilinear sampling without antialiasing, as in training: antialiasing at scale 0.8 changes synthetic
        cephalograms by 0.7 of 255 grey levels (RMS) and did not improve the points.
        """
        if self == View():
            return images
        height, width = images.shape[-2:]
        half = images.new_tensor([width, height]) / 2  # affine_grid uses half frames from the centre
        back = self._matrix(images).T / self.scale**2 * half / half[:, None]
        theta = F.pad(back, (0, 1)).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    def to_view(self, points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Points (..., 2) from picture to view, px. `centre`: xy of the frame centre."""
        return (points - centre) @ self._matrix(points).T + centre

    def to_input(self, points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Points (..., 2) from view to picture, px."""
        return (points - centre) @ self._matrix(points) / self.scale**2 + centre

    def _matrix(self, like: torch.Tensor) -> torch.Tensor:
        """(2, 2), from picture to view, relative to the centre. Its inverse is its transpose divided by scale²."""
        cos, sin = self.scale * math.cos(math.radians(self.tilt)), self.scale * math.sin(math.radians(self.tilt))
        mirror = -1 if self.flip else 1
        return like.new_tensor([[mirror * cos, -sin], [mirror * sin, cos]])


SCALES, TILTS, FLIPS = (1.0, 0.8, 1.2), (0.0, -3.0, 3.0), (False, True)
# Values of --tta. The unchanged picture is first: it determines which landmarks are inside the other views.
VIEWS = {
    "none": (View(),),
    "10": tuple(View(s, t, flip) for flip in FLIPS for s, t in product(SCALES, TILTS) if s == 1 or t == 0),
    "18": tuple(View(s, t, flip) for flip in FLIPS for s, t in product(SCALES, TILTS)),
}


def predict_views(model, images: torch.Tensor, sigma: float, tta: str = "none") -> dict[str, torch.Tensor]:
    """Mean prediction of an HRNetLandmarks for pictures (B, 1, H, W) in 0-1 over the views `VIEWS[tta]`:

    - `points` (B, K, 2) in input px and `confidence` (B, K), over the views that contain the landmark
    - `measurements` (B, M): lengths in input px, angles in °, ratios in %; if M > 0
    - `cvm_stage` (B, S): probabilities of the stages; if S > 0
    """
    height, width = images.shape[-2:]
    size = images.new_tensor([width, height])
    centre = (size - 1) / 2
    is_length, flip = torch.from_numpy(model.anatomy.is_length).to(images.device), model.anatomy.flip
    points, confidences, counts, measurements, stages = [], [], [], [], []
    for view in VIEWS[tta]:
        # Geometry in full precision: half precision resolves 500 px to a quarter px only.
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
        # A mirror exchanges landmarks, and so measurements, unless its flip is the identity.
        if "measurements" in prediction and not (view.flip and flip != sorted(flip)):
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
