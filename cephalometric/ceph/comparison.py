"""Two evaluations side by side, case by case: which model is better, and is the difference more than chance?"""

import csv
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ceph.evaluation import STATISTICS, differences
from ceph.landmarks import LANDMARKS
from core.errors import UserError
from core.report import Report
from core.results import plain
from core.uncertainty import Interval


def read_errors(folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """(unit, id -> errors (29,)) of a folder that evaluate.py wrote. Raises UserError for another."""
    file = folder / "predictions.csv"
    try:
        with open(file, encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        unit = "mm" if "mre_mm" in rows[0] else "px"
        names = [f"{symbol}_error_{unit}" for symbol in LANDMARKS]
        return unit, {row["id"]: np.array([float(row[name] or "nan") for name in names]) for row in rows}
    except (OSError, LookupError, ValueError) as error:
        raise UserError(f"--compare {folder}: no predictions.csv of evaluate.py there ({error})") from None


def compare(folders: list[Path], output: Path, console: Console, resamples: int = 1000, seed: int = 0) -> None:
    """Prints the differences of two evaluations, and writes comparison.json and comparison.html to `output`.

    Raises UserError if they measure in different units, or have no case in common.
    """
    (unit, first), (other_unit, second) = (read_errors(folder) for folder in folders)
    names = [str(folder) for folder in folders]
    if unit != other_unit:
        raise UserError(f"--compare: {names[0]} is in {unit}, {names[1]} in {other_unit}")
    ids = [identity for identity in first if identity in second]
    if not ids:
        raise UserError(f"--compare: {names[0]} and {names[1]} have no case in common")
    a, b = (np.array([errors[identity] for identity in ids]) for errors in (first, second))
    found = differences(a, b, resamples, seed)
    by_landmark = {
        symbol: differences(a[:, [i]], b[:, [i]], resamples, seed, ["MRE"])["MRE"]
        for i, symbol in enumerate(LANDMARKS)
        if (np.isfinite(a[:, i]) & np.isfinite(b[:, i])).any()
    }
    result = {"a": names[0], "b": names[1], "unit": unit, "cases": len(ids), "left_out": len(first) + len(second)
              - 2 * len(ids), "difference": found, "mre_by_landmark": by_landmark}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.json").write_text(json.dumps(plain(result), indent=1, ensure_ascii=False), "utf-8")
    units = {name: unit if name == "MRE" else "%" for name in found}
    rows = [
        [f"{name} [{units[name]}]", *(f"{statistic(errors):.2f}" for errors in (a, b)), signed(found[name])]
        for name, statistic in STATISTICS.items()
    ]
    table = Table("", "A", "B", "B − A, 95 % interval", box=None)
    for row in rows:
        table.add_row(*row)
    console.print(f"A: {names[0]}\nB: {names[1]}\n{len(ids)} cases in both")
    console.print(table, crop=False)
    report = Report("Comparison of two evaluations", f"A: {names[0]}; B: {names[1]}")
    report.text(
        f"{len(ids)} cases in both; {result['left_out']} in one only. Intervals: paired bootstrap over patients, "
        f"{resamples} resamples. One without 0 is a difference.", note=True,
    )  # fmt: skip
    report.table(["", "A", "B", "B − A"], rows)
    report.section("Landmarks", f"Mean radial error of B minus that of A [{unit}], the most improved first.")
    ordered = sorted(by_landmark.items(), key=lambda item: item[1].estimate)
    report.table(["landmark", "B − A"], [[symbol, signed(interval)] for symbol, interval in ordered])
    console.print(f"report: {report.write(output / 'comparison.html')}", style="bold")


def signed(interval: Interval) -> str:
    """A difference with its interval, for people to read."""
    return f"{interval.estimate:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
