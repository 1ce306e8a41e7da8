"""The smallest training script on core.run: for tests that kill, resume and compare runs."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.utils.data import Dataset

from core import checkpoints
from core.args import ArgumentParser, add_training_arguments, script
from core.cases import Cases
from core.run import Run
from core.schedules import parameter_groups
from core.seeding import sample_rng
from core.unfreezing import UnfreezingSchedule, frozen_context


class Numbers(Dataset):
    """y = a fixed linear map of x; x is noisy anew in every epoch."""

    def __init__(self, size: int, seed: int, noise: float = 0.1, nan_at: int | None = None):
        generator = torch.Generator().manual_seed(99)
        self.x = torch.randn(size, 8, generator=generator)
        self.y = self.x @ torch.randn(8, 2, generator=generator)
        if nan_at is not None:
            self.y[nan_at] = torch.nan
        self.seed, self.noise, self.epoch = seed, noise, 0

    def __len__(self):
        return len(self.x)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        noise = sample_rng(self.seed, self.epoch, index).normal(0, self.noise, 8).astype("float32")
        return {"x": self.x[index] + torch.from_numpy(noise), "y": self.y[index], "index": index, "id": f"case{index}"}


class Net(nn.Module):
    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        with frozen_context(self.backbone):
            x = self.backbone(x)
        return self.head(x)


def main(argv=None):
    parser = ArgumentParser()
    parser.add_argument("--size", type=int, default=26)
    parser.add_argument("--val_size", type=int, default=11)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a batch")
    parser.add_argument("--unfreeze", type=int, help="epoch at which the backbone starts to learn")
    parser.add_argument("--nan_at", type=int)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--fail_at", type=int, help="epoch whose checkpoint does not fit on the disk")
    parser.add_argument("--kill_at", type=int, help="update after which the process kills itself")
    parser.add_argument("--kill_in_write", type=int, help="number of the folder in whose writing it kills itself")
    parser.add_argument("--term_at", type=int, help="update after which it sends itself SIGTERM")
    parser.add_argument("--valid_interval", type=int, default=1)
    parser.add_argument("--keep", type=int, default=1, help="of the best models")
    parser.add_argument("--term_in_validation", type=int, help="epoch in whose validation it sends itself SIGTERM")
    add_training_arguments(parser, epochs=4, batch_size=4, lr=1e-2, num_workers=0)
    args = parser.parse_args(argv)
    if args.kill_in_write:
        kill_in_write(args.kill_in_write)

    run = Run(args, "toy")
    model = Net(args.dropout)
    unfreezing = None if args.unfreeze is None else UnfreezingSchedule([(args.unfreeze, [model.backbone])])
    train_loader, val_loader = run.prepare(
        model,
        parameter_groups(model, args.lr, args.weight_decay),
        run.loader(Numbers(args.size, args.seed, nan_at=args.nan_at), shuffle=True),
        run.loader(Numbers(args.val_size, args.seed, noise=0.0), shuffle=False),
        config={"kind": "toy"},
        monitor="error",
        keep=args.keep,
        unfreezing=unfreezing,
    )
    for epoch in run.epochs():
        for batch in run.batches(train_loader):
            loss = ((run.model(batch["x"]) - batch["y"]) ** 2).mean()
            run.step(loss, {"mse": loss})
            time.sleep(args.delay)
            if run.update == args.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if run.update == args.term_at:
                os.kill(os.getpid(), signal.SIGTERM)
        if args.fail_at == epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # longer files are refused, as by a full disk
        if args.term_in_validation == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        validated = (epoch + 1) % args.valid_interval == 0 or epoch + 1 == args.epochs
        if run.end_epoch(validate(run, val_loader, args.delay) if validated else None):
            break
    run.finish()


@torch.no_grad()
def validate(run, loader, delay):
    run.model.eval()
    cases = Cases(run.accelerator, len(loader.dataset))
    for batch in run.batches(loader):
        cases.add(batch["index"], error=((run.model(batch["x"]) - batch["y"]) ** 2).mean(dim=1))
        time.sleep(delay)
    errors = cases.table()["error"]
    return {"error": float(errors.mean()), "cases": len(errors)}


def kill_in_write(number):
    """The process dies by SIGKILL when the files of its `number`-th folder are written, and not yet in place."""
    seal, calls = checkpoints.seal, []

    def killing_seal(folder):
        calls.append(folder)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seal(folder)

    checkpoints.seal = killing_seal


if __name__ == "__main__":
    script(main)
