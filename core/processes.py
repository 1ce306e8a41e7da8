"""Work for several processes, where threads would wait for each other."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from core.args import UserError


def cores() -> int:
    """Cores that this process may use; at most 61 processes can be waited for under Windows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, 61)


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
        raise UserError("a worker process died, for want of memory most likely: use fewer --workers") from None
    finally:
        # A second Ctrl-C must not break into this: Python would then wait for its workers for ever.
        main_thread = threading.current_thread() is threading.main_thread()
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
        pool.shutdown(cancel_futures=True)
        if main_thread:
            signal.signal(signal.SIGINT, answer)
