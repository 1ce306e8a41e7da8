"""CSV tables that people edit by hand: columns by name, and errors that name the file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from core.args import UserError, first_line


def read_table(file: Path, columns: Sequence[str], way_out: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file in UTF-8 that must have `columns`; cells are texts, missing ones empty.

    Raises UserError if the file or a column is missing, ending with the `way_out`, or if it is no such table.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as table:
            reader = csv.DictReader(table, restval="")
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f"{file} has no column {', '.join(missing)}; {way_out}")
            return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {way_out}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV table in UTF-8 ({first_line(error)})") from error
