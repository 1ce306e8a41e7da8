"""The records of a training run: read, checked against each other, and told; and what a model remembers of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.run import Run
from core.validation import DataReport, leave_out_unreadable
from implants.records import TARGETS, Record, load_records, refuse_leaks


def read_splits(run: Run, args, needs: Sequence[str]) -> dict[str, list[Record]]:
    """train and val, from `--train_json` and `--val_json`; all problems are printed and in data_report.json.

    Raises UserError for a file without a usable record, and for records of one that must not stand in the other.
    """
    report, splits = DataReport(), {}
    for split, file in (("train", args.train_json), ("val", args.val_json)):
        splits[split], problems = load_records(file, args.data_root, needs)
        report.problems += problems
    refuse_leaks(splits)
    splits = leave_out_unreadable(splits, report)
    report.print(run.console, run.folder / "data_report.json")
    if run.is_main:
        report.write(run.folder / "data_report.json")
    return splits


def size_table(records: Sequence[Record]) -> list[list]:
    """[company, model, length, diameter, number of records], each once: sizes, medians and combinations of a training
    split follow from it, so that it travels with the model."""
    counts = Counter((record.company, record.model, *(getattr(record, name) for name in TARGETS)) for record in records)
    return [[*row, count] for row, count in sorted(counts.items())]


def records_of(table: Sequence[Sequence]) -> list[Record]:
    """The records of a `size_table`, without pictures."""
    return [
        Record("", Path(), company, model, length, diameter, None, None, None, "", "", {})
        for company, model, length, diameter, count in table
        for _ in range(count)
    ]
