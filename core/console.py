"""Terminal output: plain lines and progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_console(quiet: bool = False) -> Console:
    """Console for plain text: no markup from brackets in file names, no wrapping of long lines."""
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(console: Console, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Transient progress bar; the yielded function advances it by one. Without a terminal, no bar is shown."""
    if console.quiet or not console.is_terminal:
        yield lambda: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total, completed=done))
