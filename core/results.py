"""Results of an evaluation: output folder, JSON and CSV files, intervals as text, closing sections of a report.

Intervals are `core.uncertainty.Interval` (estimate, low, high); NaN = unknown.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from core.files import write_text


def evaluation_folder(checkpoint: Path, name: str) -> Path:
    """Default output folder of an evaluation: for best/, `name` beside it; for best_2/, `name`_2; otherwise `name` in
    the checkpoint folder."""
    if not re.fullmatch("best(_[2-9])?", checkpoint.name):
        return checkpoint / name
    return checkpoint.parent / (name + checkpoint.name.removeprefix("best"))


def plain(value: object) -> object:
    """A nested result as plain JSON types: named tuples as objects, arrays as lists, NaN and infinity as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {f"{key:g}" if isinstance(key, float) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, content: object) -> None:
    """Writes `plain(content)` as JSON, atomically."""
    write_text(file, json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV table in UTF-8, atomically."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(file, text.getvalue())


def number(value: float, form: str = "{:.2f}") -> str:
    """A number as text; an en dash for NaN and infinity."""
    return form.format(value) if math.isfinite(value) else "–"


def span(interval, form: str = "{:.2f}") -> str:
    """An interval as "low to high"."""
    return f"{number(interval.low, form)} to {number(interval.high, form)}"


def with_span(interval, form: str = "{:.2f}") -> str:
    """An interval as "estimate (low to high)", or "estimate" if the bounds are unknown or infinite."""
    estimate = number(interval.estimate, form)
    return f"{estimate} ({span(interval, form)})" if math.isfinite(interval.low) else estimate


def cells(interval, form: str = "{:.2f}") -> list[str]:
    """An interval as two table cells: the estimate and "low to high"."""
    return [number(interval.estimate, form), span(interval, form)]


def card(label: str, interval, form: str = "{:.2f}", unit: str = "", note: str = "") -> tuple[str, str, str]:
    """An interval as a card of `core.report.Report.cards`: label, estimate with unit, 95 % interval with note."""
    text = f"95 % interval {span(interval, form)}"
    return label, f"{number(interval.estimate, form)}{unit}", f"{text}; {note}" if note else text


def close(report, file: Path, machine: dict, counts: Mapping[tuple[str, str], int] | None = None) -> Path:
    """Adds the closing sections (data problems, software and machine, research notice) to a Report and writes it.

    `counts`: (reason, action) -> number, from `core.validation.DataReport.counts`; None if no data were read.
    """
    if counts is not None:
        report.section("Data", "All are listed in data_report.json." if counts else "No problems found.")
    if counts:
        rows = [[reason, action, count] for (reason, action), count in counts.items()]
        report.table(["problem", "action", "count"], rows)
    report.section("Machine")
    report.details("Software and machine", json.dumps(plain(machine), indent=1))
    report.text("For research. Not a medical device.", note=True)
    return report.write(file)
