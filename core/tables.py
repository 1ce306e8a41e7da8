"""CSV tables edited by hand: columns by name, errors with the file."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError, first_line
from core.files import read_bytes


def read_table(file: Path, columns: Sequence[str], way_out: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of each row of a CSV file in UTF-8; cells are strings, missing ones empty.

    Raises UserError for a missing file or one of `columns`, with the `way_out`, and for repeated columns.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(file).decode("utf-8-sig"), newline=""), restval="")
        header = Counter(reader.fieldnames or [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise UserError(f"{file} has no column {', '.join(missing)}; {way_out}")
        if twice := [column for column, count in header.items() if column and count > 1]:
            raise UserError(f"{file} has several columns named {', '.join(twice)}; keep one of each")
        return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {way_out}") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {way_out}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV table in UTF-8 ({first_line(error)}); save it as one") from error
