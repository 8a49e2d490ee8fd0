"""Batches read ahead of the network that consumes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def prefetch(read: Callable[[int], T], numbers: Iterable[int], threads: int) -> Generator[T]:
    """Yield `read(number)` of each number, in order, while threads read the next ones.

    Threads and not processes, as PyTorch's DataLoader has: copying, mirroring, scaling and decoding JPEG all let other
    threads run, and a batch handed over by a process is written to shared memory and mapped again page by page, which
    takes longer than reading it.

    Args:
        read: safe to be called by several threads; what it raises is raised here.
        numbers: what to read.
        threads: how many read, each two batches ahead at most; with 0 each is read when it is asked for.
    """
    if threads == 0:
        yield from map(read, numbers)
        return
    pool = _readers(threads)
    try:
        waiting: deque[Future[T]] = deque()
        for number in numbers:
            waiting.append(pool.submit(read, number))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _readers(threads: int) -> ThreadPoolExecutor:
    """Threads that have begun, each computing alone: the others are the parallelism."""
    started = threading.Barrier(threads + 1)

    def alone() -> None:
        torch.get_num_threads()  # a thread's first use takes the process's number over; what is set sooner is lost
        torch.set_num_threads(1)  # of this thread
        started.wait()

    pool = ThreadPoolExecutor(threads, "avdistill-reader", alone)
    try:
        for _ in range(threads):
            pool.submit(int)
        started.wait()
    except BaseException:
        # One could not be started, and the others wait for it. Only then: a reader that still wakes up from a barrier
        # that was passed would take an abort for its own, and take the signal to end from the others.
        started.abort()
        pool.shutdown()
        raise
    torch.set_num_threads(torch.get_num_threads())  # or threads begun from now on would have one, like the readers
    return pool
