"""Errors that a user can mend: one line that names the file or flag, and the way out."""


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line that names the file or flag, and the way out."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    if lines and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]  # a worker's traceback, whose last line says what it is
    return next(iter(lines), "") or type(error).__name__
