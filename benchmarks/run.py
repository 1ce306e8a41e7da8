"""Runs the benchmarks one after the other, each in its own process; prints a table and writes it as JSON.

    python benchmarks/run.py
    python benchmarks/run.py --only decoding slice_store --output runs/some.json

A benchmark is a file of this folder with `measure()`, which returns a list of `results.Result`; run alone, it prints
them. A failed benchmark is listed with the last line of its output, and the others continue. Exit code 1 if one failed
or missed its target. Leave the machine idle meanwhile: nearly all results are ratios of times.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import psutil
from rich.table import Table

from core.args import ArgumentParser, script
from core.console import make_console
from core.errors import UserError
from core.files import whole_file

SHARED = ("run", "results", "device")  # not benchmarks


def benchmarks(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.py") if file.stem not in SHARED)


def run(file: Path) -> dict:
    """Results or error of a benchmark, and its duration in seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, encoding="utf-8")
    found = {"benchmark": file.stem, "results": [], "failed": None}
    try:
        if done.returncode:
            raise ValueError
        found["results"] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        found["failed"] = said[-1] if said else f"exit code {done.returncode}"
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def machine() -> dict:
    """Hardware and software of the measurements."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": date.today().isoformat(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def table_of(found: list[dict]) -> Table:
    table = Table("benchmark", "what", "ratio", "target", "met", box=None, pad_edge=False)
    for benchmark in found:
        name = benchmark["benchmark"]
        if benchmark["failed"]:
            table.add_row(name, benchmark["failed"], "", "", "failed", style="bold red")
        for result in benchmark["results"]:
            missed = result["met"] is False
            met = {True: "yes", False: "MISSED", None: "–"}[result["met"]]
            ratio = "not measured" if result["ratio"] is None else f"{result['ratio']:g} {result['unit']}"
            table.add_row(name, result["name"], ratio, result["target"], met, style="bold" if missed else None)
    return table


def main(argv=None, folder: Path = HERE):
    """`folder`: folder of the benchmarks."""
    names = benchmarks(folder)
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"benchmarks to run: {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.json"), help="output file, JSON")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.only or ()) - set(names)):
        raise UserError(f"--only {unknown[0]}: no such benchmark; there are {', '.join(names)}")
    console, found = make_console(), []
    for name in args.only or names:
        found.append(run(folder / f"{name}.py"))
        console.print(f"{name}: {found[-1]['failed'] or 'done'}, {found[-1]['seconds']:.0f} s")
        with whole_file(args.output) as unfinished:  # after each, as the next may take long
            content = {"machine": machine(), "benchmarks": found}
            unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    console.print()
    console.print(table_of(found))
    console.print("\n" + ", ".join(f"{name} {value}" for name, value in machine().items()))
    console.print(f"all numbers: {args.output}")
    missed = any(result["met"] is False for benchmark in found for result in benchmark["results"])
    sys.exit(int(missed or any(benchmark["failed"] for benchmark in found)))


if __name__ == "__main__":
    script(main)
