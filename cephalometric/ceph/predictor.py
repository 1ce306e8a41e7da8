"""What both stages say together: of every case of a data set, or of one picture."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ceph.anatomy import IS_LENGTH
from ceph.dataset import CephalogramDataset
from ceph.hrnet import HRNetLandmarks
from ceph.refiner import SHIFTS, LandmarkRefiner, refine
from ceph.tta import VIEWS, predict_views
from core.cases import Cases
from core.images import read_image
from core.windows import Letterbox


class Findings(NamedTuple):
    """Of N cases. Lengths are in native px, angles in °, ratios in %."""

    points: np.ndarray  # (N, 29, 2) native px; NaN = not trained
    confidence: np.ndarray  # (N, 29), heights of the peaks
    coarse: np.ndarray  # (N, 29, 2), the points of stage 1
    measurements: np.ndarray  # (N, 10) of the pooled branch
    stage: np.ndarray  # (N, 6), probabilities
    seconds: np.ndarray  # (N, 2), of stage 1 and of stage 2, which reads the native picture


def add_arguments(parser: ArgumentParser, needed: bool = True) -> None:
    """The flags that name models and how they are asked. `needed`: nothing goes without a checkpoint."""
    group = parser.add_argument_group("models")
    group.add_argument("--checkpoint", type=Path, required=needed, help="best/ of a run of train.py")
    group.add_argument("--refiner", type=Path, help="best/ of a run of train_refiner.py: stage 2")
    group.add_argument("--refine_crops", type=int, choices=tuple(SHIFTS), default=5, help="windows a landmark")
    group.add_argument("--tta", choices=tuple(VIEWS), default="none", help="views of each picture to average")


class Predictor:
    """Stage 1 with `tta` views, and stage 2 if there is a refiner, on a device."""

    def __init__(self, checkpoint: Path, refiner: Path | None = None, refine_crops: int = 5, tta: str = "none"):
        self.model, self.config = HRNetLandmarks.from_folder(checkpoint)
        self.refiner, self.refiner_config = LandmarkRefiner.from_folder(refiner) if refiner else (None, None)
        self.refine_crops, self.tta = refine_crops, tta
        self.untrained = np.isnan(np.array(self.config["mean_shape"], float)).any(axis=1)  # no truth in training

    def to(self, device: torch.device) -> "Predictor":
        self.model.to(device)
        if self.refiner:
            self.refiner.to(device)
        return self

    @torch.no_grad()
    def frames(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Stage 1 of letterboxed frames (B, 1, H, W): see `predict_views`."""
        return predict_views(self.model, images, self.config["sigma"], self.tta)

    def native(
        self, pixels: np.ndarray, coarse: np.ndarray, confidence: np.ndarray, mm_per_px: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(points (29, 2) native px, confidence (29,)) of a grey picture uint8 (H, W) after stage 2; those of stage 1,
        `coarse` and `confidence`, where there is no refiner, or no scale for its crops."""
        points, confidence = coarse.copy(), confidence.copy()
        points[self.untrained] = np.nan
        if self.refiner and mm_per_px:
            points, confidence = refine(self.refiner, self.refiner_config, pixels, points, mm_per_px, self.refine_crops)
        return points, confidence

    def picture(self, pixels: np.ndarray, mm_per_px: float | None) -> Findings:
        """What is found in one grey picture uint8 (H, W); N = 1."""
        height, width = self.config["model"]["image_size"]
        box, start = Letterbox(pixels.shape[::-1], (width, height)), time.perf_counter()
        frame = torch.from_numpy(box.draw(pixels))[None, None].to(next(self.model.parameters()).device).float() / 255
        found = {name: value[0].cpu().double().numpy() for name, value in self.frames(frame).items()}
        coarse, middle = box.to_picture(found["points"]), time.perf_counter()
        points, confidence = self.native(pixels, coarse, found["confidence"], mm_per_px)
        seconds = np.array([middle - start, time.perf_counter() - middle])
        measurements = found["measurements"] / np.where(IS_LENGTH, box.scale, 1.0)
        columns = (points, confidence, coarse, measurements, found["cvm_stage"], seconds)
        return Findings(*(column[None] for column in columns))


def predict_dataset(
    accelerator: Accelerator, predictor: Predictor, dataset: CephalogramDataset, batch_size: int, num_workers: int
) -> Findings:
    """What is found in all cases, in their order; the processes share the work."""
    predictor.to(accelerator.device)
    loader = accelerator.prepare_data_loader(DataLoader(dataset, batch_size, num_workers=num_workers))
    cases = Cases(accelerator, len(dataset))
    for batch in loader:
        start = time.perf_counter()
        found = {name: value.cpu().double() for name, value in predictor.frames(batch["image"]).items()}
        first = (time.perf_counter() - start) / len(batch["index"])
        rows = [
            second_stage(predictor, dataset, index, found, row) for row, index in enumerate(batch["index"].tolist())
        ]
        points, confidence, coarse, seconds = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        columns = {"points": points, "confidence": confidence, "coarse": coarse}
        columns |= {"measurements": found["measurements"], "stage": found["cvm_stage"]}
        columns["seconds"] = torch.stack([torch.full_like(seconds, first), seconds], dim=1)
        cases.add(batch["index"], **{name: column.float().to(accelerator.device) for name, column in columns.items()})
    table = {name: column.double().numpy() for name, column in cases.table().items()}
    scale = np.array([box.scale for box in dataset.letterboxes])[:, None]
    table["measurements"] = table["measurements"] / np.where(IS_LENGTH, scale, 1.0)
    return Findings(**table)


def second_stage(predictor: Predictor, dataset: CephalogramDataset, index: int, found: dict, row: int) -> tuple:
    """(points, confidence, coarse points, seconds) of a case, from what stage 1 `found` in its row of a batch."""
    case, start = dataset.cases[index], time.perf_counter()
    coarse = dataset.letterboxes[index].to_picture(found["points"][row].numpy())
    pixels = read_image(case.image).pixels if predictor.refiner and case.mm_per_px else np.empty((0, 0))
    points, confidence = predictor.native(pixels, coarse, found["confidence"][row].numpy(), case.mm_per_px)
    return points, confidence, coarse, time.perf_counter() - start
