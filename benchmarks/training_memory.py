"""Growth of memory during training: `train.py` of every project, 50 epochs on its demo data.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --only implant

The small training of each project.json, with one loader process and TensorBoard. Resident memory of the process and its
children is read after each epoch. Growth: median of the last ten epochs relative to epochs 6 to 15; trend: median
change over 15 epochs within the last 30, which is robust to noise and single allocations. Target: at most 2 %.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from results import CPU, ROOT, Result, show

from core.args import ArgumentParser
from quickstart import find_projects, words

TARGET, EPOCHS = 2, 50
MORE = f"--epochs {EPOCHS} --num_workers 1 --lr 1e-3 --log_with tensorboard"


def start(project: str, command: str | list[str], folder: Path, more: str = "") -> subprocess.Popen:
    script, *arguments = words(command, data=folder / "data", out=folder / "data" / "run")
    arguments += more.split()
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen([sys.executable, ROOT / project / script, *arguments], stdout=log, stderr=log)


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text().strip().rpartition("\n")[2]


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process and its children, without those that have just ended."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def megabytes(project: str) -> list[float]:
    """Resident memory in MB after each epoch of a training."""
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), []
        tests = find_projects()[project]["tests"]
        for command in tests["prepare"]:
            if start(project, command, folder).wait():
                raise RuntimeError(f"{project}, {command}: {last_line(folder)}")
        training = start(project, tests["train"], folder, MORE)
        log, process = folder / "data" / "run" / "metrics.jsonl", psutil.Process(training.pid)
        while training.poll() is None:
            epochs = log.read_bytes().count(b"\n") if log.exists() else 0
            if epochs > len(sizes):
                sizes.append(resident(process) / 1e6)
            time.sleep(0.02)
        if training.returncode or len(sizes) != EPOCHS:
            raise RuntimeError(f"{project} ended after {len(sizes)} epochs: {last_line(folder)}")
        return sizes


def measure(projects: Sequence[str] = tuple(find_projects())) -> list[Result]:
    results = []
    for project in projects:
        sizes = np.array(megabytes(project))
        early, late = np.median(sizes[5:15]), np.median(sizes[-10:])
        trend = float(np.median(sizes[-15:] - sizes[-30:-15])) / 15
        details = {"megabytes": sizes.round(1).tolist(), "grown_megabytes": round(float(late - early), 1)}
        details |= {"trend_kilobytes_an_epoch": round(1000 * trend, 1), "machine": CPU}
        growth = round(100 * float(late / early - 1), 2)
        results.append(Result(f"{project}, epoch 10 to {EPOCHS}", growth, f"<= {TARGET}", "% more memory", details))
    return results


def main(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=find_projects(), default=list(find_projects()), metavar="PROJECT")
    show(measure(parser.parse_args(argv).only))


if __name__ == "__main__":
    main()
