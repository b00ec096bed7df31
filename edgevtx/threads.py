"""A few threads for work that numpy and Pillow do without the interpreter's lock, shared by the whole process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

MOST_THREADS = 4  # the calling one included: a device has other work for its cores

S = TypeVar("S")
T = TypeVar("T")
_pool: ThreadPoolExecutor | None = None


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order; they run on the calling thread and those of the pool that are free.

    A job must not call `run_all` itself. What the first failing job raises is raised once none runs any more.
    """
    if len(jobs) < 2 or cores() < 2:
        return [job() for job in jobs]
    waiting: list[Future[T]] = []
    try:
        with contextlib.suppress(RuntimeError):  # the interpreter is ending, and the pool takes no more
            for job in jobs[1:]:
                waiting.append(_threads().submit(job))
        first = jobs[0]()
        # the pool takes them from the front, so this thread takes from the end those that none has begun
        taken = {i: jobs[i + 1]() for i in range(len(waiting) - 1, -1, -1) if waiting[i].cancel()}
        rest = [job() for job in jobs[1 + len(waiting) :]]
        return [first, *(taken[i] if i in taken else future.result() for i, future in enumerate(waiting)), *rest]
    finally:
        for future in waiting:
            if not future.cancel():
                future.exception()


def each(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """[work(item) for item in items], by `run_all` in a few jobs of every so many-th item."""
    count = min(len(items), 4 * MOST_THREADS)
    jobs = [partial(_work_on, work, items[i::count]) for i in range(count)]
    found: list[list[T]] = run_all(jobs)
    return [found[i % count][i // count] for i in range(len(items))]


def _work_on(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    return [work(item) for item in items]


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(min(cores(), MOST_THREADS) - 1, thread_name_prefix="edgevtx")
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the pool's bookkeeping but not its threads
