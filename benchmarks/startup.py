"""Start-up: `train.py --help` of each project against `import torch`, alternating, each in its own process.

    python benchmarks/startup.py

Median of the ratios of processor time; the imported files are in the page cache. Target: 1.5 times `import torch`.
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence

import psutil
from results import CPU, ROOT, Result, show

from quickstart import find_projects

TARGET, PAIRS = 1.5, 7


def seconds(*command) -> float:
    """Processor time of a process and its children."""
    before = psutil.Process().cpu_times()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(projects: Sequence[str] = tuple(find_projects())) -> list[Result]:
    results = []
    for project in projects:
        script, ratios = ROOT / project / "train.py", []
        for pair in range(PAIRS + 1):  # the first is a warm-up
            ours, torch = seconds(script, "--help"), seconds("-c", "import torch")
            ratios += [ours / torch] * (pair > 0)
        details = {"ratios": [round(ratio, 3) for ratio in ratios], "machine": CPU}
        ratio = round(statistics.median(ratios), 2)
        results.append(Result(f"{project}, train.py --help", ratio, f"<= {TARGET}", "times import torch", details))
    return results


if __name__ == "__main__":
    show(measure())
