"""Training runs: distributed processes, mixed precision, random seeds, checkpoints, resuming, logs, signals.

The training loop itself is part of each `train.py`:

    run = Run(args, Path(__file__).resolve().parent.name)
    ...data, model, losses...
    train_loader, val_loader = run.prepare(model, groups, train_loader, val_loader, config=…, monitor=…)
    for epoch in run.epochs():                          # random seed, unfreezing, shuffling
        for batch in run.batches(train_loader):         # progress bar, gradient accumulation, resuming
            loss, parts = criterion(run.model(batch["image"]), batch)
            run.step(loss, parts)                       # backward pass, clipping, update, logging
        if run.end_epoch(validate(run, val_loader)):    # metrics.jsonl, best/, last/
            break                                       # early stopping
    run.finish()

All random numbers depend on (seed, epoch, batch) only: an interrupted and resumed run ends with the same weights, bit
for bit on CPU. Data sets derive theirs from (seed, epoch, index) with `core.seeding.sample_rng`; their `set_epoch`, if
any, is called before each epoch.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import DataLoaderConfiguration, skip_first_batches
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    set_seed,
)
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from core.checkpoints import replacing, save_model, writing_name
from core.console import make_console, progress
from core.devices import has_accelerator, make_accelerator
from core.environment import environment
from core.errors import UserError, first_line
from core.run_folder import RunFolder
from core.schedules import warmup_cosine
from core.seeding import seed_batch
from core.unfreezing import UnfreezingSchedule

LOOK_EVERY = 20  # batches between transfers of the losses to the host, each of which synchronises the device


class Run:
    """One training run in one folder; see the module docstring for its use and `core.args` for its arguments.

    Output: `args.json`, `environment.json`, `metrics.jsonl` (one JSON object per epoch), `last/` and `previous/`
    (training states), `best/` (model folder), and the events of the experiment tracker.
    """

    def __init__(self, args, project: str):
        """Initialises devices, output folder (`--save_dir` or `runs/<project>`) and random seed.

        Raises UserError for settings that Accelerate does not accept and for a folder that holds another run.
        """
        self.args, self.project = args, project
        path = RunFolder.choose(args, project)
        self.ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        no_fp16 = precision == "fp16" and not has_accelerator()
        try:
            self.accelerator = make_accelerator(
                mixed_precision="no" if no_fp16 else args.mixed_precision,
                gradient_accumulation_steps=args.accumulate_grad_batches,
                dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
                log_with=None if args.log_with == "none" else args.log_with,
                project_config=ProjectConfiguration(logging_dir=str(args.log_dir or path / "tensorboard")),
                dynamo_backend="inductor" if args.compile else None,
                # The other ranks wait while one checks a large data set.
                kwargs_handlers=[self.ddp, InitProcessGroupKwargs(timeout=timedelta(hours=2))],
            )
        except (ValueError, ImportError) as error:
            raise UserError(f"Accelerate does not accept these settings: {first_line(error)}") from error
        self.is_main = self.accelerator.is_main_process
        self.console = make_console(quiet=not self.is_main)
        if no_fp16:
            self.console.print("fp16 needs an accelerator, and none is available: this run computes in fp32")
        self.files = RunFolder(path, partial(self.console.print, style="bold"))
        self.folder = self.files.path
        self.resume_from = self.files.state_to_resume(bool(args.resume), args.overwrite)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.model: nn.Module | None = None
        self.epoch = self.batch = self.update = 0  # finished epochs, batches of this epoch, updates
        self.best: float | None = None
        self.best_epoch = self.epochs_without_best = 0
        self._sums: dict[str, float] = {}  # over the batches of this epoch
        self._unread: list[tuple[int, list, dict[str, torch.Tensor]]] = []  # losses still on the device
        self._signal: int | None = None
        set_seed(args.seed)

    # ------------------------------------------------------------------------------------------------ preparation

    def loader(self, dataset: Dataset, shuffle: bool, batch_size: int | None = None) -> DataLoader:
        """Data loader with `--num_workers` and `batch_size` (default: `--batch_size`). `shuffle`, for training, also
        drops the last incomplete batch."""
        return DataLoader(
            dataset,
            batch_size=batch_size or self.args.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.args.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def prepare(
        self,
        model: nn.Module,
        groups: list[dict],
        train_loader: DataLoader,
        val_loader: DataLoader,
        *,
        config: dict,
        monitor: str,
        mode: str = "min",
        keep: int = 1,
        unfreezing: UnfreezingSchedule | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Prepares model, optimiser and data loaders, resumes, and writes args.json; returns the prepared loaders.

        `groups`: AdamW parameter groups with `lr` (`core.schedules.parameter_groups`). `config`: content of
        `best/config.json`. `monitor`: validation metric that selects `best/`; `mode`: "min" or "max" is better.
        `keep`: number of best models, in best/, best_2/ … Raises UserError for fewer training cases than one update
        needs and for a training state that does not fit.
        """
        self.config, self.monitor, self.mode, self.unfreezing = config, monitor, mode, unfreezing
        self.keep = keep
        self.ddp.find_unused_parameters = unfreezing is not None
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.base_rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups)
        self.train_dataset, self.batch_size = train_loader.dataset, train_loader.batch_size
        self.model, self.optimizer, self.train_loader, val_loader = self.accelerator.prepare(
            model, optimizer, train_loader, val_loader
        )
        every = self.args.accumulate_grad_batches
        self.updates_per_epoch = len(self.train_loader) // every
        self.batches_per_epoch = self.updates_per_epoch * every  # without incomplete accumulation
        if self.updates_per_epoch == 0:
            size = self.batch_size * self.accelerator.num_processes * every
            raise UserError(
                f"{len(self.train_dataset)} training cases do not fill one update of {size}: lower --batch_size"
            )
        warmup = round(self.args.warmup_epochs * self.updates_per_epoch)
        total = self.args.epochs * self.updates_per_epoch
        self.rate = partial(warmup_cosine, total=total, warmup=min(warmup, total))
        if self.resume_from:
            self._load(self.resume_from)
        elif self.is_main:
            self.files.clear()  # only after data and model are complete
        if self.is_main:
            self.files.describe(self.args, environment(self.accelerator))
        self._start_tracker()
        self._announce(model)
        return self.train_loader, val_loader

    def _start_tracker(self) -> None:
        if self.args.log_with == "none":
            return
        numbers = {k: v for k, v in vars(self.args).items() if isinstance(v, int | float | str)}
        tags = dict(self.args.tags)
        # Without `purge_step`, a resumed run shows the steps after its checkpoint twice.
        kwargs = {"tensorboard": {"purge_step": self.update}, "mlflow": {"tags": tags}}
        self.accelerator.init_trackers(
            self.args.experiment_name or self.project,
            config=numbers | {f"tag_{name}": value for name, value in tags.items()},
            init_kwargs={self.args.log_with: kwargs[self.args.log_with]},
        )

    def _announce(self, model: nn.Module) -> None:
        accelerator, args = self.accelerator, self.args
        parameters = sum(parameter.numel() for parameter in model.parameters())
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        self.console.print(
            f"{parameters / 1e6:.1f} M parameters"
            + (f", {(parameters - frozen) / 1e6:.1f} M trainable and {frozen / 1e6:.1f} M frozen," if frozen else "")
            + f" on {accelerator.num_processes} × {accelerator.device.type}, "
            f"{accelerator.mixed_precision if accelerator.mixed_precision != 'no' else 'fp32'}; global batch "
            f"{self.batch_size} × {accelerator.num_processes} × {args.accumulate_grad_batches} = "
            f"{self.batch_size * accelerator.num_processes * args.accumulate_grad_batches}; "
            f"{self.updates_per_epoch} updates per epoch; results in {self.folder}"
        )

    # ------------------------------------------------------------------------------------------------ training loop

    def epochs(self) -> Iterator[int]:
        """The remaining epochs, counted from 0. Sets random seed, training mode, freezing, and epoch of the data."""
        self._listen()
        while self.epoch < self.args.epochs and not self._out_of_patience():
            self._epoch_start = time.perf_counter()
            set_seed(self.args.seed + 1000 * self.epoch, device_specific=True)
            self.model.train()
            if self.unfreezing:
                self.unfreezing.apply(self.epoch)
            if hasattr(self.train_dataset, "set_epoch"):
                self.train_dataset.set_epoch(self.epoch)
            self.train_loader.set_epoch(self.epoch)
            yield self.epoch

    def batches(self, loader: DataLoader) -> Iterator[dict]:
        """The batches of `loader`, with a progress bar; the remaining ones in a resumed training epoch."""
        if loader is self.train_loader:
            return self._training_batches()
        return self._validation_batches(loader)

    def _training_batches(self) -> Iterator[dict]:
        if self.batch >= self.batches_per_epoch:  # resumed after the last batch: only the validation remains
            return
        loader = self.train_loader
        if self.batch:
            loader = skip_first_batches(loader, self.batch)
            loader.set_epoch(self.epoch)  # Accelerate before 1.15 uses the order of epoch 0 here
        with progress(self.console, f"epoch {self.epoch + 1}", self.batches_per_epoch, self.batch) as advance:
            for batch in loader:
                if self.batch == self.batches_per_epoch:  # the rest does not fill an accumulation
                    loader.end()
                    break
                seed_batch(self.args.seed, self.epoch, self.batch, self.accelerator.process_index)
                self._current = batch
                with self.accelerator.accumulate(self.model):
                    yield batch
                self.batch += 1
                advance()
                if self.accelerator.sync_gradients:
                    self._stop_if_told(self.update)
        self._read_losses()

    def _validation_batches(self, loader: DataLoader) -> Iterator[dict]:
        with progress(self.console, "validation", len(loader)) as advance:
            for number, batch in enumerate(loader, 1):
                yield batch
                advance()
                self._stop_if_told(number)

    def step(self, loss: torch.Tensor, parts: dict[str, torch.Tensor] | None = None) -> None:
        """Backward pass of one batch and, after a complete gradient accumulation, clipping and the update.

        `loss`: scalar; `parts`: further scalars to log. Raises UserError with the ids of the batch if a loss or the
        gradient norm is not finite, at the latest LOOK_EVERY batches later.
        """
        self.accelerator.backward(loss)
        values = {"loss": loss.detach()} | {name: value.detach() for name, value in (parts or {}).items()}
        if self.accelerator.sync_gradients:
            if self.args.grad_clip:
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.grad_clip)
                if self.accelerator.scaler is None:  # with fp16, the scaler handles infinite norms
                    values["grad_norm"] = norm.detach()
            factor = self.rate(self.update)
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.update += 1
        ids = self._current.get("id", self._current.get("index", []))
        self._unread.append((self.batch, ids, values))
        if len(self._unread) == LOOK_EVERY or loss.device.type == "cpu":
            self._read_losses()

    def end_epoch(self, metrics: dict[str, float] | None) -> bool:
        """Logs the epoch and writes `best/` and `last/`. Returns True for early stopping.

        `metrics`: validation metrics with the monitored one, equal on all ranks; None for an epoch without validation.
        """
        value = float(metrics[self.monitor]) if metrics else math.nan
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and math.isfinite(value):
            self.best, self.best_epoch, self.epochs_without_best = value, self.epoch + 1, 0
        else:
            self.epochs_without_best += 1
        self._log_epoch(metrics or {})
        if math.isfinite(value) and self.is_main:  # before `last/`: after a crash in between, this epoch is repeated
            self._save_if_among_best(value)
        self.epoch, self.batch, self._sums = self.epoch + 1, 0, {}
        self._save_state()
        self._stop_if_told(0)
        if self._out_of_patience():
            self.console.print(f"early stopping: no better {self.monitor} for {self.epochs_without_best} epochs")
        return self._out_of_patience()

    def _save_if_among_best(self, value: float) -> None:
        place = self.files.place_among_best(value, self.epoch + 1, self.monitor, self.mode, self.keep)
        if place:
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)
            best = {"epoch": self.epoch + 1, self.monitor: value}
            save_model(place[0], model, {**self.config, "best": best}, keep=place[1])

    def show(self, picture: Path) -> None:
        """Logs a picture file to the experiment tracker, on the main process."""
        for tracker in self.accelerator.trackers if self.is_main else ():
            if tracker.name == "tensorboard":
                pixels = np.asarray(Image.open(picture).convert("RGB"))
                tracker.log_images({picture.stem: pixels[None]}, step=self.update, dataformats="NHWC")
            else:
                tracker.log_artifact(str(picture), artifact_path=f"figures/{picture.parent.name}")

    def _out_of_patience(self) -> bool:
        patience = self.args.early_stopping_patience
        return patience > 0 and self.epochs_without_best >= patience

    def finish(self) -> None:
        """Draws the training curves, closes the trackers, prints the best epoch, and releases the model."""
        if self.is_main and self.best is not None:
            from core import figures

            curves = figures.training_curves(self.folder / "metrics.jsonl", self.monitor)
            figures.save(curves, self.folder / "figures" / "training.png")
        self._close()
        if self.best is not None:
            self.console.print(
                f"best {self.monitor} {self.best:.4g} in epoch {self.best_epoch}: {self.folder / 'best'}", style="bold"
            )

    # ------------------------------------------------------------------------------------------------ logging

    def _read_losses(self) -> None:
        """Transfers the losses to the host, checks them, and adds them to the sums of the epoch."""
        if not self._unread:
            return
        numbers = torch.stack([v.float() for _, _, values in self._unread for v in values.values()]).cpu().tolist()
        numbers = iter(numbers)
        for batch, ids, values in self._unread:
            row = {name: next(numbers) for name in values}
            if not all(map(math.isfinite, row.values())):
                listing = ", ".join(f"{name} {number:.4g}" for name, number in row.items())
                raise UserError(
                    f"epoch {self.epoch + 1}, batch {batch + 1}: {listing}. Cases: {', '.join(map(_name, ids))}. "
                    "Check these cases, lower --lr, or train without --mixed_precision"
                )
            for name, number in row.items():
                self._sums[name] = self._sums.get(name, 0.0) + number
                self._sums[f"{name}#"] = self._sums.get(f"{name}#", 0) + 1
        self._unread.clear()
        row["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        if self.update % LOOK_EVERY == 0 or self.batch + 1 == self.batches_per_epoch:
            self.accelerator.log({f"step/{name}": number for name, number in row.items()}, step=self.update)

    def _log_epoch(self, metrics: dict[str, float]) -> None:
        names = [name for name in self._sums if not name.endswith("#")]
        means = torch.tensor([self._sums[n] / self._sums[f"{n}#"] for n in names], dtype=torch.float32)
        means = self.accelerator.reduce(means.to(self.accelerator.device), "mean").tolist() if names else []
        train = dict(zip(names, means, strict=True))
        row = {
            "epoch": self.epoch + 1,
            "update": self.update,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **{f"train/{name}": number for name, number in train.items()},
            **{f"val/{name}": float(number) for name, number in metrics.items()},
            "seconds": round(time.perf_counter() - self._epoch_start, 2),
        }
        if self.is_main:
            self.files.log(row)
        self.accelerator.log({k: v for k, v in row.items() if "/" in k}, step=self.update)
        shown = "  ".join(f"{name} {number:.4g}" for name, number in train.items() if name != "grad_norm")
        validation = "  ".join(f"{name} {number:.4g}" for name, number in metrics.items())
        star = "  ★" if self.epochs_without_best == 0 else ""
        self.console.print(
            f"epoch {self.epoch + 1:>3}/{self.args.epochs}  train {shown}  │ "
            + (f"val {validation}  │ " if metrics else "")
            + f"lr {row['lr']:.1e}  {row['seconds']:.0f} s{star}"
        )

    # ------------------------------------------------------------------------------------------------ training state

    def _save_state(self) -> None:
        """Writes `last/`; its former content becomes `previous/`. To be called on all ranks."""
        last = self.folder / "last"
        numbers = "epoch", "batch", "update", "batches_per_epoch", "best", "best_epoch", "epochs_without_best"
        state = {name: getattr(self, name) for name in numbers} | {"sums": gather_object([self._sums])}  # of each rank
        with replacing(last, self.folder / "previous") if self.is_main else nullcontext(writing_name(last)) as writing:
            self.accelerator.wait_for_everyone()  # the folder exists
            self.accelerator.save_state(str(writing))
            if self.is_main:
                (writing / "state.json").write_text(json.dumps(state, indent=1))
            self.accelerator.wait_for_everyone()  # all ranks have written
        self.accelerator.wait_for_everyone()

    def _load(self, folder: Path) -> None:
        try:
            state = json.loads((folder / "state.json").read_text())
            self.accelerator.load_state(str(folder))
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            reason = first_line(error)
            raise UserError(f"{folder} does not fit this model ({reason}); resume with the run's args.json") from error
        self.epoch, self.batch, self.update = state["epoch"], state["batch"], state["update"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.epochs_without_best = state["epochs_without_best"]
        if (
            len(state["sums"]) == self.accelerator.num_processes
            and state["batches_per_epoch"] == self.batches_per_epoch
        ):
            self._sums = state["sums"][self.accelerator.process_index]
        else:  # another number of processes or batch size: other batches
            if self.batch:
                self.console.print("other batch size or number of processes: this epoch starts again", style="bold")
            self.update, self.batch = self.epoch * self.updates_per_epoch, 0
        if self.is_main:
            self.files.go_back_to(folder, self.epoch)
        self.console.print(f"resumed from {folder}: epoch {self.epoch + 1}, batch {self.batch + 1}", style="bold")

    def _listen(self) -> None:
        """Makes SIGTERM and Ctrl-C save the training state before the run ends; a second Ctrl-C ends it at once."""

        def remember(number, frame):
            self._signal = number
            signal.signal(number, self._handlers[number])

        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._handlers:
            signal.signal(number, remember)

    def _close(self) -> None:
        """Closes the trackers and the process group, and restores the signal handlers."""
        self.accelerator.wait_for_everyone()
        # DistributedDataParallel holds the process group; torch may abort if it outlives the interpreter.
        self.model = self.optimizer = None
        self.accelerator.free_memory()
        self.accelerator.end_training()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop_if_told(self, number: int) -> None:
        """Saves the training state and exits if any rank has received a signal; ranks check every ten batches."""
        told = self._signal or 0
        if self.accelerator.num_processes > 1:
            if number % 10:
                return
            told = int(self.accelerator.reduce(torch.tensor(told, device=self.accelerator.device), "sum"))
            told = 0 if told == 0 else self._signal or signal.SIGTERM
        if not told:
            return
        self._read_losses()
        self._save_state()
        self._close()
        place = f"epoch {self.epoch + 1}, batch {self.batch}"
        self.console.print(f"{signal.Signals(told).name}: saved {self.folder / 'last'} at {place}; go on with --resume")
        sys.exit(128 + told)


def _name(identity) -> str:
    return str(identity.item()) if isinstance(identity, torch.Tensor) else str(identity)
