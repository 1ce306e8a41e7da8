"""Two-stage inference on a data set or a single picture."""

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ceph.dataset import CephalogramDataset
from ceph.hrnet import HRNetLandmarks
from ceph.refiner import SHIFTS, LandmarkRefiner, refine
from ceph.tta import VIEWS, predict_views
from core.cases import Cases
from core.checkpoints import fitting
from core.errors import UserError
from core.images import read_image
from core.windows import Letterbox


class Findings(NamedTuple):
    """Predictions of N cases; lengths in native px, angles in °, ratios in %. M and S as in `Predictor.anatomy`."""

    points: np.ndarray  # (N, K, 2) native px; NaN = not trained
    confidence: np.ndarray  # (N, K), peak heights
    coarse: np.ndarray  # (N, K, 2) native px, points of stage 1
    seconds: np.ndarray  # (N, 2), stage 1 and stage 2 (with reading of the native picture)
    measurements: np.ndarray | None = None  # (N, M), of the pooled branch; None if M = 0
    stage: np.ndarray | None = None  # (N, S), probabilities; None if S = 0


def add_arguments(parser: ArgumentParser, needed: bool = True) -> None:
    """Adds the arguments of inference. `needed`: whether --checkpoint is required."""
    group = parser.add_argument_group("models")
    group.add_argument("--checkpoint", type=Path, required=needed, help="model folder: best/ of a run of train.py")
    group.add_argument("--refiner", type=Path, help="model folder of stage 2: best/ of a run of train_refiner.py")
    group.add_argument(
        "--refine_crops", type=int, choices=tuple(SHIFTS), default=5, help="crops per landmark, averaged"
    )
    group.add_argument("--tta", choices=tuple(VIEWS), default="none", help="test-time augmentation: number of views")


class Predictor:
    """Stage 1 with test-time augmentation `tta`, and stage 2 if there is a `refiner`. `anatomy`: without measurements
    and stages that were not trained. Raises UserError if the stages have different landmarks."""

    def __init__(self, checkpoint: Path, refiner: Path | None = None, refine_crops: int = 5, tta: str = "none"):
        self.model, self.config = HRNetLandmarks.from_folder(checkpoint)
        with fitting(checkpoint):
            self.anatomy = self.model.anatomy.only(self.config["taught"])
        self.refiner, self.refiner_config = LandmarkRefiner.from_folder(refiner) if refiner else (None, None)
        if self.refiner and self.refiner.anatomy.schema != self.anatomy.schema:
            ours, theirs = (model.anatomy.schema for model in (self.model, self.refiner))
            raise UserError(
                f"--refiner {refiner} knows the {len(theirs.names)} landmarks of {theirs.name}, --checkpoint "
                f"{checkpoint} the {len(ours.names)} of {ours.name}; train the refiner from that checkpoint"
            )
        self.refine_crops, self.tta = refine_crops, tta
        self.taught = self.model.taught  # bool (K,)

    def to(self, device: torch.device) -> "Predictor":
        """Moves both stages to a device."""
        self.model.to(device)
        if self.refiner:
            self.refiner.to(device)
        return self

    def frames(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`predict_views` of stage 1 for letterboxed frames (B, 1, H, W) in 0-1, without untrained measurements and
        stages."""
        found = predict_views(self.model, images, self.config["sigma"], self.tta)
        measurements, stages = self.anatomy.measurements, self.anatomy.stages
        if measurements != self.model.anatomy.measurements:
            kept = [i for i, m in enumerate(self.model.anatomy.measurements) if m in measurements]
            found["measurements"] = found["measurements"][:, kept]
        there = {"points": True, "confidence": True, "measurements": measurements, "cvm_stage": stages}
        return {name: value for name, value in found.items() if there[name]}

    def points(
        self, found: dict[str, torch.Tensor], row: int, box: Letterbox, pixels: np.ndarray | None, mm: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(points (K, 2) native px, confidence (K,), points of stage 1) of one row of `frames` output; NaN = not
        trained. Points of stage 1 are kept without refiner or pixel size, and for landmarks it was not trained on.

        `pixels`: grey picture uint8 (H, W), None without stage 2. `mm`: mm per native px.
        """
        points, sure = (found[name][row].double().numpy() for name in ("points", "confidence"))
        coarse = np.where(self.taught[:, None], box.to_picture(points), np.nan)
        sure = np.where(self.taught, sure, np.nan)
        if not self.refiner or not mm:
            return coarse, sure, coarse
        known = self.refiner.taught
        asked = np.where(known[:, None], coarse, np.nan)
        points, surer = refine(self.refiner, self.refiner_config, pixels, asked, mm, self.refine_crops)
        return np.where(known[:, None], points, coarse), np.where(known, surer, sure), coarse

    @torch.no_grad()
    def picture(self, pixels: np.ndarray, mm_per_px: float | None) -> Findings:
        """Predictions of one grey picture uint8 (H, W); N = 1."""
        height, width = self.config["model"]["image_size"]
        box, start = Letterbox(pixels.shape[::-1], (width, height)), time.perf_counter()
        frame = torch.from_numpy(box.draw(pixels))[None, None].to(next(self.model.parameters()).device).float() / 255
        found = {name: value.cpu() for name, value in self.frames(frame).items()}
        middle = time.perf_counter()
        points = self.points(found, 0, box, pixels, mm_per_px)
        seconds = np.array([middle - start, time.perf_counter() - middle])
        return self.findings([column[None] for column in (*points, seconds)], found, [box])

    def findings(self, columns: Sequence[np.ndarray], branch: dict[str, torch.Tensor], boxes: list) -> Findings:
        """`Findings` of the first four columns and the outputs of the pooled branch, lengths from frame to native
        px."""
        measurements, stage = (
            branch[name].double().numpy() if name in branch else None for name in ("measurements", "cvm_stage")
        )
        if measurements is not None:
            scale = np.array([box.scale for box in boxes])[:, None]
            measurements = measurements / np.where(self.anatomy.is_length, scale, 1.0)
        return Findings(*columns, measurements, stage)


@torch.no_grad()
def predict_dataset(
    accelerator: Accelerator, predictor: Predictor, dataset: CephalogramDataset, batch_size: int, num_workers: int
) -> Findings:
    """Predictions of all cases of a data set, in order; the ranks share the work."""
    predictor.to(accelerator.device)
    loader = accelerator.prepare_data_loader(DataLoader(dataset, batch_size, num_workers=num_workers))
    cases = Cases(accelerator, len(dataset))
    for batch in loader:
        start = time.perf_counter()
        found = {name: value.cpu() for name, value in predictor.frames(batch["image"]).items()}
        first = (time.perf_counter() - start) / len(batch["index"])
        rows, seconds = [], []
        for row, index in enumerate(batch["index"].tolist()):
            case, start = dataset.cases[index], time.perf_counter()
            pixels = read_image(case.image).pixels if predictor.refiner and case.mm_per_px else None
            rows.append(predictor.points(found, row, dataset.letterboxes[index], pixels, case.mm_per_px))
            seconds.append([first, time.perf_counter() - start])
        columns = [torch.from_numpy(np.stack(column)) for column in (*zip(*rows, strict=True), seconds)]
        columns = found | dict(zip(Findings._fields, columns, strict=False))
        cases.add(batch["index"], **{name: x.float().to(accelerator.device) for name, x in columns.items()})
    table = cases.table()
    columns = [table[name].double().numpy() for name in Findings._fields[:4]]
    return predictor.findings(columns, table, dataset.letterboxes)
