"""Work that is spread over processes, which end with the one that started them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

import faiss

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> Iterator[Result]:
    """The results of a function that can be imported, in the order of its tasks; by this process alone where it is one.

    faiss's threads are shared out among the processes.
    """
    if processes == 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    try:
        yield from started(processes, faiss.omp_get_max_threads()).map(function, tasks)
    except BrokenProcessPool as error:
        started.cache_clear()
        raise RuntimeError(
            f"one of {processes} processes ended before its work was done, for want of memory perhaps; give fewer: "
            "with a folder, the same call goes on where it was"
        ) from error


@functools.lru_cache(maxsize=1)
def started(processes: int, threads: int) -> ProcessPoolExecutor:
    """Processes that wait for tasks until this one ends: each takes seconds to start."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, start_worker, (max(1, threads // processes),))


def start_worker(threads: int) -> None:
    faiss.omp_set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A parent that is killed cannot tell its workers, which would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
