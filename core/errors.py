"""Errors that the user can correct, and exceptions in one line."""


class UserError(Exception):
    """An error that the user can correct. Its text is one line: the file or flag, the reason and the way out."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type if there is no message."""
    lines = str(error).splitlines()
    if lines and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]  # the last line of a worker's traceback has the message
    return next(iter(lines), "") or type(error).__name__
