"""Share of the training time spent waiting for the data loader: mae_tiny, with the shortest step, 500×500 px, 30 bands.

    python benchmarks/cube_loading.py

The loop of hyperspectral/train.py, through Run: contiguous files, `CubeDataset` with augmentation, one worker per core,
at most 8. Waiting: time until the next batch is on the device; step: until the device has finished. The start-up of the
workers is printed but not counted, as epochs of real data are far longer. Target: at most 5 % waiting.

On a CPU, the slow step uses one thread, which leaves cores for the workers: the target is easily met. On a GPU, steps
are much shorter. The cubes per second of the workers alone, through the same loader without a step, limit the number of
GPUs that they can feed. All files are in the page cache; slow disks are slower.
"""

import io
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import numpy as np
import torch
from device import GPU, MACHINE, PRECISION, now
from mae_decoder import make_model
from results import Result, show

import make_demo_data
from core.args import ArgumentParser, add_training_arguments
from core.processes import cores
from core.run import Run
from core.schedules import parameter_groups
from hsi.dataset import CubeDataset
from hsi.files import read_cubes
from hsi.loss import MAESpectralLoss
from hsi.statistics import compute_statistics

TARGET, VARIANT, FILES, SIZE = 0.05, "mae_tiny", 6, 500
BATCH, BATCHES = (6, 120) if GPU else (2, 16)
WORKERS = min(8, cores())
FIRST = 2 * WORKERS  # warm-up batches, not counted


def training_seconds(run: Run, loader, criterion) -> np.ndarray:
    """Seconds (batches, 2) of waiting for each batch and of its step, in an epoch of train.py."""
    next(run.epochs())
    rows, end = [], now()
    for batch in run.batches(loader):
        ready = now()
        loss, parts = criterion(run.model(batch["cube"], batch["noise"]), batch["foreground"])
        run.step(loss, parts)
        rows.append((ready - end, (end := now()) - ready))
    return np.array(rows)


def loading_seconds(loader) -> np.ndarray:
    """Seconds (batches,) between the batches of a loader without training."""
    times = [now()]
    for _ in loader:
        times.append(now())
    return np.diff(times)


def measure() -> list[Result]:
    parser = ArgumentParser()
    add_training_arguments(parser, epochs=1, batch_size=BATCH, lr=1e-6, weight_decay=0.05, num_workers=WORKERS)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # output of the scripts
        make_demo_data.main(["--output", f"{folder}/data", "--cases", str(FILES), "--size", str(SIZE)])
        splits = read_cubes(Path(folder) / "data" / "dataset.csv")
        statistics = compute_statistics(splits)
        cubes = [cube for part in splits.values() for cube in part]
        repeated = [cubes[i % len(cubes)] for i in range(BATCH * BATCHES)]

        options = ["--save_dir", f"{folder}/run", "--log_with", "none", "--mixed_precision", "bf16" if GPU else "no"]
        run = Run(parser.parse_args(options), "benchmark")
        model = make_model(VARIANT)
        model.set_statistics(statistics.mean, statistics.std)
        dataset = CubeDataset(repeated, n_tokens=model.n_noise, statistics=statistics, augment=True)
        criterion = MAESpectralLoss(statistics.mean, statistics.std, statistics.low, statistics.high)
        loader, _ = run.prepare(
            model,
            parameter_groups(model, run.args.lr, run.args.weight_decay),
            run.loader(dataset, shuffle=True),
            run.loader(dataset, shuffle=False),
            config={},
            monitor="loss",
        )
        alone = loading_seconds(run.loader(dataset, shuffle=True))
        waited, stepped = training_seconds(run, loader, criterion.to(run.accelerator.device)).T
        run.finish()
    share = float(waited[FIRST:].sum() / (waited + stepped)[FIRST:].sum())
    milliseconds = {"waiting": waited[FIRST:], "step": stepped[FIRST:]}
    details = {"model": VARIANT}
    details["milliseconds_a_batch"] = {name: round(1000 * float(x.mean()), 1) for name, x in milliseconds.items()}
    rates = {"training": waited[FIRST:] + stepped[FIRST:], "workers_alone": alone[FIRST:]}
    details["cubes_a_second"] = {name: round(BATCH / float(x.mean()), 1) for name, x in rates.items()}
    details |= {"seconds_to_first_batch": round(float(waited[0]), 2), "batch": BATCH, "batches": BATCHES - FIRST}
    details |= {"workers": WORKERS, "cores": cores(), "threads_of_the_step": torch.get_num_threads()}
    details |= {"precision": PRECISION, "machine": f"{MACHINE}, files in cache"}
    return [Result("waiting for the loader", round(share, 4), f"<= {TARGET}", "of the time", details)]


if __name__ == "__main__":
    show(measure())
