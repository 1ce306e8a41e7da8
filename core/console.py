"""The terminal: plain lines, and progress bars where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_console(quiet: bool = False) -> Console:
    """A console that prints text as it is: brackets in a file's name are no markup, long lines are not broken."""
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(console: Console, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar that goes away when its block ends; calling what it gives moves it by one. Nothing where nobody watches."""
    if console.quiet or not console.is_terminal:
        yield lambda: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total, completed=done))
