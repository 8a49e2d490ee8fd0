"""Reading of batches ahead of the training step that consumes them."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def prefetch(read: Callable[[int], T], numbers: Iterable[int], threads: int) -> Generator[T]:
    """Yield `read(number)` for each number, in order, while threads read the next ones.

    Threads, not the processes of PyTorch's DataLoader: copying, flipping, scaling and decoding JPEG all release the
    GIL, and a batch from a process passes through shared memory page by page, which takes longer than reading it.

    Args:
        read: called by several threads; its exceptions are raised here.
        threads: number of threads, each at most two batches ahead; with 0 each batch is read when it is needed.
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
    """Started threads, each with PyTorch limited to one thread: the pool is the parallelism."""
    started = threading.Barrier(threads + 1)

    def limit_threads() -> None:
        torch.get_num_threads()  # the first use copies the process's number over any setting
        torch.set_num_threads(1)  # of this thread
        started.wait()

    pool = ThreadPoolExecutor(threads, "avdistill-reader", limit_threads)
    try:
        for _ in range(threads):
            pool.submit(int)
        started.wait()
    except BaseException:
        # A thread could not be started, and the others wait for it. Only then: a thread that is still leaving a passed
        # barrier would take the abort for its own, and with it the signal to end from the others.
        started.abort()
        pool.shutdown()
        raise
    torch.set_num_threads(torch.get_num_threads())  # or later threads would be limited to one as well
    return pool
