"""What `core.run` adds to a training loop: epochs through Run against a bare PyTorch loop, in turn, on one model.

    python benchmarks/loop_overhead.py

Both do the same work: batches from a shuffled loader, forward, backward, clipping, learning rate, AdamW. Target: at
most 3 % more time an epoch. The model is the quickstart's (HRNet-W18-small at 192×192, batch 6).
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "cephalometric")]

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from core.args import ArgumentParser, add_training_arguments
from core.run import Run
from core.schedules import parameter_groups, warmup_cosine
from hrnet_landmarks import HRNetLandmarks, LandmarkLoss

TARGET, EPOCHS = 0.03, 7


class Pictures(Dataset):
    """Samples that cost nothing to make."""

    def __init__(self, size: int = 60):
        self.image, self.points = torch.rand(size, 1, 192, 192), torch.rand(size, 29, 2) * 191

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict:
        known = {"measurements": torch.zeros(10), "cvm_stage": 1, "index": index, "id": str(index)}
        return {"image": self.image[index], "points": self.points[index], **known}


def bare_epoch(model, criterion, optimizer, loader, update: int, total: int) -> int:
    """The loop as one would write it by hand."""
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
    return update


def main() -> dict:
    parser = ArgumentParser()
    add_training_arguments(parser, epochs=EPOCHS, batch_size=6, lr=1e-4, num_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        args = parser.parse_args(["--save_dir", folder, "--log_with", "none"])
        run = Run(args, "benchmark")
        torch.manual_seed(0)
        dataset = Pictures()
        model, bare_model = (HRNetLandmarks("hrnet_w18_small", (192, 192), 48) for _ in range(2))
        criterion = LandmarkLoss(model.stride, model.heatmap_size)
        loader, _ = run.prepare(
            model, parameter_groups(model, args.lr, args.weight_decay), run.loader(dataset, shuffle=True),
            run.loader(dataset, shuffle=False), config={}, monitor="loss",
        )  # fmt: skip
        bare_loader = DataLoader(dataset, batch_size=6, shuffle=True, drop_last=True)
        optimizer = torch.optim.AdamW(parameter_groups(bare_model, args.lr, args.weight_decay))
        update, ours, theirs = 0, [], []
        for _ in run.epochs():
            start = time.perf_counter()
            for batch in run.batches(loader):
                loss, parts = criterion(run.model(batch["image"]), batch)
                run.step(loss, parts)
            middle = time.perf_counter()
            update = bare_epoch(bare_model, criterion, optimizer, bare_loader, update, EPOCHS * len(bare_loader))
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
            run.epoch, run.batch = run.epoch + 1, 0  # the checkpoint of an epoch's end is not the loop's cost
        run.finish()
    overhead = float(np.median(np.array(ours[1:]) / np.array(theirs[1:]))) - 1  # the first epoch warms up
    result = {"benchmark": "loop_overhead", "overhead": round(overhead, 4), "target": f"<= {TARGET}"}
    result |= {"milliseconds_a_step": round(1000 * float(np.median(theirs)) / len(bare_loader), 1)}
    result |= {"machine": f"{platform.machine()}, CPU", "threads": torch.get_num_threads()}
    return result | {"met": overhead <= TARGET}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
