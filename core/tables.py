"""CSV tables that people edit by hand: columns by name, and errors that name the file."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError, first_line
from core.files import read_bytes


def read_table(file: Path, columns: Sequence[str], way_out: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file in UTF-8 that must have `columns`; cells are texts, missing ones empty.

    Raises UserError if the file or a column is missing, ending with the `way_out`, if a column stands there twice, or
    if it is no such table.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(file).decode("utf-8-sig"), newline=""), restval="")
        header = Counter(reader.fieldnames or [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise UserError(f"{file} has no column {', '.join(missing)}; {way_out}")
        if twice := [column for column, count in header.items() if column and count > 1]:
            raise UserError(f"{file} has several columns {', '.join(twice)}; keep one of each")
        return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {way_out}") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {way_out}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV table in UTF-8 ({first_line(error)})") from error
