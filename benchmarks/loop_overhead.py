"""Overhead of `core.run` in the training loop: steps with Run against steps of a plain PyTorch loop.

    python benchmarks/loop_overhead.py

Both do the same work: batch from a shuffled loader, forward, backward, clipping, learning rate, AdamW. Steps alternate,
so that other load on the machine affects both alike. Target: at most 3 % more time. The model is that of the quickstart
(HRNet-W18-small at 192×192 px, batch size 6).
"""

import io
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "cephalometric")]

import numpy as np
import torch
from device import MACHINE
from results import Result, show
from torch.utils.data import DataLoader, Dataset

from ceph.hrnet import HRNetLandmarks
from ceph.losses import LandmarkLoss
from core.args import ArgumentParser, add_training_arguments
from core.run import Run
from core.schedules import parameter_groups, warmup_cosine

TARGET, EPOCHS = 0.03, 7


class Pictures(Dataset):
    """Samples in memory."""

    def __init__(self, size: int = 60):
        self.image, self.points = torch.rand(size, 1, 192, 192), torch.rand(size, 29, 2) * 191

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict:
        known = {"measurements": torch.zeros(10), "cvm_stage": 1, "index": index, "id": str(index)}
        return {"image": self.image[index], "points": self.points[index], **known}


def bare_steps(model, criterion, optimizer, loader, total: int):
    """Plain training loop; each `next` makes one step."""
    update = 0
    while True:
        model.train()
        for batch in loader:
            loss, _ = criterion(model(batch["image"]), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 * warmup_cosine(update, total)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            update += 1
            yield


def run_steps(run: Run, criterion, loader):
    """Loop of a train.py; each `next` makes one step. Checkpoints at the end of epochs are left out."""
    for _ in run.epochs():
        for batch in run.batches(loader):
            loss, parts = criterion(run.model(batch["image"]), batch)
            run.step(loss, parts)
            yield
        run.epoch, run.batch = run.epoch + 1, 0


def seconds(steps) -> float:
    start = time.perf_counter()
    next(steps)
    return time.perf_counter() - start


def pairs_of_seconds(make_model, criterion) -> np.ndarray:
    """Seconds (steps, 2) of steps with Run and of plain steps."""
    parser = ArgumentParser()
    add_training_arguments(parser, epochs=EPOCHS, batch_size=6, lr=1e-4, num_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        args = parser.parse_args(["--save_dir", folder, "--log_with", "none"])
        run = Run(args, "benchmark")
        dataset, model, bare_model = Pictures(), make_model(), make_model()
        loader, _ = run.prepare(
            model,
            parameter_groups(model, args.lr, args.weight_decay),
            run.loader(dataset, shuffle=True),
            run.loader(dataset, shuffle=False),
            config={},
            monitor="loss",
        )
        bare_loader = DataLoader(dataset, batch_size=6, shuffle=True, drop_last=True)
        optimizer = torch.optim.AdamW(parameter_groups(bare_model, args.lr, args.weight_decay))
        ours = run_steps(run, criterion, loader)
        theirs = bare_steps(bare_model, criterion, optimizer, bare_loader, EPOCHS * len(bare_loader))
        pairs = np.array([(seconds(ours), seconds(theirs)) for _ in range(EPOCHS * len(bare_loader) - 1)])
        run.finish()
    return pairs[len(bare_loader) :]  # without the first epoch, as warm-up


def measure() -> list[Result]:
    with redirect_stdout(io.StringIO()):  # output of Run
        real = pairs_of_seconds(lambda: HRNetLandmarks("hrnet_w18_small", (192, 192), 48), LandmarkLoss(4, (48, 48)))
        empty = pairs_of_seconds(lambda: torch.nn.Conv2d(1, 1, 1), lambda prediction, batch: (prediction.mean(), {}))
    overhead = float(np.median(real[:, 0] / real[:, 1])) - 1
    details = {"milliseconds_a_step": round(1000 * float(np.median(real[:, 1])), 1), "steps": len(real)}
    details["milliseconds_added_to_an_empty_step"] = round(1000 * float(np.median(empty[:, 0] - empty[:, 1])), 2)
    details |= {"machine": MACHINE, "threads": torch.get_num_threads()}
    return [Result("core.run against a bare loop", round(overhead, 4), f"<= {TARGET}", "more time a step", details)]


if __name__ == "__main__":
    show(measure())
