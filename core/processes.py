"""Work for several threads, or for several processes where threads would wait for each other; work on many objects."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from core.errors import UserError

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")
TOGETHER = 64  # items that a thread takes at once: handing out one costs as much as reading a header


def cores() -> int:
    """Cores that this process may use; at most 61 processes can be waited for under Windows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, 61)


@contextmanager
def no_collection() -> Iterator[None]:
    """For a block that makes many objects and no cycles: Python's collector would look at them all, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_threads(function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """`function(item)` of every item, in order, by threads: for work that waits for the disk, or runs outside Python's
    lock as decoding does."""
    parts = [items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [outcome for part in pool.map(lambda part: [function(item) for item in part], parts) for outcome in part]


def shared(accelerator, function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """`function(item)` of every item, in order, in every process of an accelerate.Accelerator: each process computes
    its share, by threads. The outcomes must be picklable."""
    rank, count = accelerator.process_index, accelerator.num_processes
    mine = in_threads(function, items[rank::count])
    if count == 1:
        return mine
    from accelerate.utils import gather_object

    shares = gather_object([mine])
    return [shares[place % count][place // count] for place in range(len(items))]


def in_processes(function: Callable, jobs: Sequence[tuple], workers: int) -> Iterator:
    """`function(*job)` of every job, in order, by `workers` processes; with one worker, by this one.

    The function and the jobs must be importable and picklable. Raises UserError if a process is killed.
    """
    if workers == 1 or len(jobs) < 2:
        yield from (function(*job) for job in jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        multiprocessing.get_context("spawn"),  # as on Windows and macOS, so that one way is tried everywhere
        signal.signal,
        (signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for this process to answer
    )
    running = deque()
    try:
        for job in jobs:
            if len(running) == 2 * workers:  # a few ahead, not all: results wait in memory
                yield running.popleft().result()
            running.append(pool.submit(function, *job))
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, probably out of memory: use fewer --workers") from None
    finally:
        # A second Ctrl-C must not break into this: Python would then wait for its workers for ever.
        main_thread = threading.current_thread() is threading.main_thread()
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
        pool.shutdown(cancel_futures=True)
        if main_thread:
            signal.signal(signal.SIGINT, answer)
