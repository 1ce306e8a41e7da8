"""How long training waits for its loader: mae_tiny, whose step is the shortest, on cubes of 500×500 px and 30 bands.

    python benchmarks/cube_loading.py

The loop of hyperspectral/train.py, through Run: contiguous files, `CubeDataset` with its augmentation, as many workers
as there are cores, 8 at most. Waiting is all that the next batch takes, with its way to the device; the step begins
when the batch is there and ends when the device is done. The start of the workers is no part of the share, as an epoch
of a real data set is far longer than this one; it is printed. Target: waiting takes at most 5 % of the time.

On a CPU the step is slow, and takes one thread, so that the workers find a core free: the target is easily met there.
On a GPU a step is much shorter. Hence also the cubes a second of the workers alone, through the same loader without a
step: they feed every GPU that trains on fewer. All files are in the page cache; from a slow disk, its speed counts.
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
FIRST = 2 * WORKERS  # batches that are not counted: the workers start, and the model warms up


def training_seconds(run: Run, loader, criterion) -> np.ndarray:
    """Seconds (batches, 2) that an epoch of train.py waits for each batch, and that its step takes."""
    next(run.epochs())
    rows, end = [], now()
    for batch in run.batches(loader):
        ready = now()
        loss, parts = criterion(run.model(batch["cube"], batch["noise"]), batch["foreground"])
        run.step(loss, parts)
        rows.append((ready - end, (end := now()) - ready))
    return np.array(rows)


def loading_seconds(loader) -> np.ndarray:
    """Seconds (batches,) between the batches of a loader when nothing else is done."""
    times = [now()]
    for _ in loader:
        times.append(now())
    return np.diff(times)


def measure() -> list[Result]:
    parser = ArgumentParser()
    add_training_arguments(parser, epochs=1, batch_size=BATCH, lr=1e-6, weight_decay=0.05, num_workers=WORKERS)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # the scripts' lines are no result
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
