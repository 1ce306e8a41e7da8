"""Parallel work in threads, worker processes and ranks; pause of the garbage collection."""

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
TOGETHER = 64  # items per task of a thread: the overhead of a task equals the time to read a header


def cores() -> int:
    """CPU cores available to this process, at most 61, the limit of a process pool on Windows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, 61)


@contextmanager
def no_collection() -> Iterator[None]:
    """Pauses garbage collection in a block that creates many objects without cycles, which it would scan repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_threads(function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """`function(item)` of every item, in order, in threads: for I/O, and for work that releases the GIL (decoding)."""
    parts = [items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [outcome for part in pool.map(lambda part: [function(item) for item in part], parts) for outcome in part]


def shared(accelerator, function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """`function(item)` of every item, in order, on every rank of an Accelerator: each rank computes its share in
    threads, and the outcomes, which must be picklable, are gathered."""
    rank, count = accelerator.process_index, accelerator.num_processes
    mine = in_threads(function, items[rank::count])
    if count == 1:
        return mine
    from accelerate.utils import gather_object

    shares = gather_object([mine])
    return [shares[place % count][place // count] for place in range(len(items))]


def in_processes(function: Callable, jobs: Sequence[tuple], workers: int) -> Iterator:
    """`function(*job)` of every job, in order, in `workers` processes; with one worker or job, in this process.

    Function, jobs and outcomes must be picklable. Raises UserError if a worker process dies.
    """
    if workers == 1 or len(jobs) < 2:
        yield from (function(*job) for job in jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        multiprocessing.get_context("spawn"),  # the same start method on all systems
        signal.signal,
        (signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is handled by the main process
    )
    running = deque()
    try:
        for job in jobs:
            if len(running) == 2 * workers:  # limited look-ahead: results wait in memory
                yield running.popleft().result()
            running.append(pool.submit(function, *job))
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process died, probably out of memory; use fewer --workers") from None
    finally:
        # A second Ctrl-C during the shutdown would make Python wait for its workers for ever.
        main_thread = threading.current_thread() is threading.main_thread()
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
        pool.shutdown(cancel_futures=True)
        if main_thread:
            signal.signal(signal.SIGINT, answer)
