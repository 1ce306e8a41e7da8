"""Reading and checking of the splits of a training or evaluation; table of the training sizes for checkpoints."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from core.validation import DataReport, leave_out_unreadable
from implants.crops import value_of
from implants.records import LIMITS, Record, load_records, refuse_leaks


def read_splits(
    files: Mapping[str, Path | None], data_root: Path | None, report: DataReport, accelerator: Accelerator,
    needs: Sequence[str], limits: Mapping[str, tuple[float, float]] = LIMITS, fields: Sequence[str] = (),
) -> dict[str, list[Record]]:  # fmt: skip
    """Usable records by split (file None = no such split); data problems are added to `report`.

    `needs`, `limits`, `fields`: as in `load_records`; values missing in all records of a split "train" are not needed
    in the others. Raises UserError as `load_records`, and for leakage between splits.
    """
    splits = {}
    for split, file in files.items():
        if file:
            training = split == "train"
            splits[split], _ = load_records(file, data_root, needs, limits, fields, report, drop_absent=training)
            if training:
                needs = [name for name in needs if is_known(splits[split][0], name)]
    refuse_leaks(splits, report)
    return leave_out_unreadable(splits, report, accelerator)


def is_known(record: Record, name: str) -> bool:
    """Whether the value `name` (company, model, length or diameter) of a record is known."""
    value = getattr(record, name)
    return bool(value) and value == value  # false for NaN


def needed(train: Sequence[Record], targets: Sequence[str]) -> list[str]:
    """Values needed for evaluation: the targets, and company and model if training had them."""
    return [name for name in ("company", "model") if any(is_known(record, name) for record in train)] + [*targets]


def tell_unseen(
    report: DataReport, file: Path, records: Sequence[Record], known: Mapping[str, Collection[str]]
) -> None:
    """Reports classes of the records of `file` that training had not. `known`: field -> training classes."""
    for field, names in known.items():
        counts = Counter(value_of(record, field) for record in records)
        unseen = ", ".join(f"{name} ({n})" for name, n in sorted(counts.items()) if name and name not in names)
        if unseen and names:
            report.add(f"{field} unseen in training", file, "kept", f"{unseen}; training has {', '.join(names)}")


def size_table(records: Sequence[Record], targets: Sequence[str]) -> list[list]:
    """Distinct rows [company, model, *sizes in mm of `targets`, number of records], stored with the model for
    catalogue, medians and combinations of the training split."""
    counts = Counter((record.company, record.model, *(getattr(record, name) for name in targets)) for record in records)
    return [[*row, count] for row, count in sorted(counts.items())]


def records_of(table: Sequence[Sequence], targets: Sequence[str]) -> list[Record]:
    """Records of a `size_table`, without pictures."""
    unknown = dict.fromkeys(("length", "diameter"), math.nan)
    return [
        Record("", Path(), company, model, **unknown | dict(zip(targets, sizes, strict=True)), patient=None, bbox=None,
               mm_per_px=None, modality="", origin="", fields={})
        for company, model, *sizes, count in table
        for _ in range(count)
    ]  # fmt: skip
