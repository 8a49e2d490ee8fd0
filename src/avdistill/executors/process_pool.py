"""Isolated worker processes, which may hang, crash or run out of memory without harm to the others.

A worker is a fresh interpreter that imports only what its function needs, so that the calling script needs no
`if __name__ == "__main__"`. Workers share nothing: one that is killed while it sends an answer leaves no lock held and
no pipe half full, which is the weakness of pools with a common queue. When this process ends, in whatever way, the
workers' channels close and they end at once.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Items at a worker, so that it never waits for the next one; items per worker that may run ahead of the order.
_QUEUED = 2
_AHEAD = 4


@dataclass(frozen=True)
class WorkerFailure:
    """The result of an item whose worker ended, or had to be killed, before it answered."""

    reason: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Connection
    ready: bool = False
    items: deque[int] = field(default_factory=deque)  # sent; the first is in work
    since: float = 0.0  # when work on the first began

    @classmethod
    def start(cls, function: Callable[[Any], Any], memory_limit_bytes: int | None) -> _Worker:
        message = pickle.dumps(function)
        channel, worker_end = Pipe()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from avdistill.executors.process_pool import work; work({worker_end.fileno()}, {memory_limit_bytes})"
        )
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # reading needs no matrix products
        with worker_end:
            # A process group of its own, so that Ctrl-C reaches the parent alone.
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[worker_end.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                process_group=0,
            )
        channel.send_bytes(message)
        return cls(process, channel)

    def send(self, number: int, item: object) -> bool:
        """Send an item; False if the worker is gone."""
        try:
            self.channel.send(item)
        except OSError:
            return False
        if not self.items:
            self.since = time.monotonic()
        self.items.append(number)
        return True

    def working_for(self) -> float:
        """Seconds since work on the first item began, not counting the start of the process."""
        return time.monotonic() - self.since if self.ready and self.items else 0.0

    def stop(self) -> None:
        """Kill it."""
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def exit_code(self) -> int:
        """The exit code of a worker that closed its channel, which it does only by ending."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.stop()
        return self.process.returncode


def ordered_map(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int,
    time_limit_seconds: float | None,
    memory_limit_bytes: int | None,
) -> Generator[R | WorkerFailure]:
    """Yield `function(item)` of each item, in order, computed in other processes.

    Args:
        function: picklable, as are the items and the answers. Its exceptions are raised here.
        workers: number of processes, at least one.
        time_limit_seconds: for one item, after which its worker is killed; None: no limit.
        memory_limit_bytes: that a worker may use on top of what it has at its start (enforced on Linux); beyond it,
            MemoryError is raised there. None: no limit.

    Raises:
        RuntimeError: a worker did not start.
    """
    pool: list[_Worker] = []
    waiting = deque(range(len(items)))
    answers: dict[int, R | WorkerFailure] = {}
    yielded = 0
    count = min(max(1, workers), len(items))
    try:
        while yielded < len(items):
            while len(pool) < min(count, len(waiting) + sum(bool(w.items) for w in pool)):
                pool.append(_Worker.start(function, memory_limit_bytes))
            for worker in sorted(pool, key=lambda w: len(w.items)):
                free = len(worker.items) < _QUEUED and waiting and waiting[0] < yielded + _AHEAD * count
                if free and worker.send(waiting[0], items[waiting[0]]):
                    waiting.popleft()
            for worker in _ready_workers(pool, time_limit_seconds):
                answer = _receive(worker, time_limit_seconds)
                if isinstance(answer, WorkerFailure):
                    pool.remove(worker)
                    if worker.items:
                        answers[worker.items.popleft()] = answer
                    waiting.extendleft(reversed(worker.items))
                elif answer is not None:
                    answers[worker.items.popleft()] = answer[0]
                    worker.since = time.monotonic()
            while yielded in answers:
                yield answers.pop(yielded)
                yielded += 1
    finally:
        for worker in pool:
            worker.stop()


class Isolated(Generic[T, R]):
    """A function that is called in a worker process, which the next call finds again; a context manager.

    For items that follow from the answers before; a list of them is for `ordered_map`.
    """

    def __init__(self, function: Callable[[T], R], *, memory_limit_bytes: int | None) -> None:
        """Function and memory limit as in `ordered_map`; the process starts with the first call."""
        self._function, self._memory_limit_bytes = function, memory_limit_bytes
        self._worker: _Worker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self) -> None:
        """Start the process unless it is there and wait until it is ready; RuntimeError if it does not start."""
        if self._worker is None or self._worker.process.poll() is not None:  # it may have ended since the last call
            self._stop()
            self._worker = _Worker.start(self._function, self._memory_limit_bytes)
        while not self._worker.ready:
            _ready_workers([self._worker], None)
            _receive(self._worker, None)

    def __call__(self, item: T, time_limit_seconds: float | None) -> R | WorkerFailure:
        """`function(item)`, whose exceptions are raised here; the start does not count against the time limit."""
        self.start()
        worker = self._worker
        assert worker is not None
        worker.send(0, item)
        try:
            while not _ready_workers([worker], time_limit_seconds):
                pass
            answer = _receive(worker, time_limit_seconds)
        finally:
            worker.items.clear()
        if isinstance(answer, WorkerFailure):
            self._worker = None
            return answer
        assert answer is not None
        return answer[0]

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def _ready_workers(pool: list[_Worker], time_limit_seconds: float | None) -> list[_Worker]:
    """Wait for workers that have sent something, ended, or exceeded the time limit."""
    remaining = None
    if time_limit_seconds is not None:
        remaining = max(0.0, time_limit_seconds - max(w.working_for() for w in pool))
    ready = wait([w.channel for w in pool], remaining)
    return [w for w in pool if w.channel in ready or w.working_for() >= (time_limit_seconds or float("inf"))]


def _receive(worker: _Worker, time_limit_seconds: float | None) -> WorkerFailure | tuple[Any] | None:
    """The worker's next answer, None for its first message, or why there is none; the worker has then ended."""
    try:
        if not worker.channel.poll():
            worker.stop()
            return WorkerFailure(f"took longer than {time_limit_seconds:g} s")
        good, answer = worker.channel.recv()
    except (EOFError, OSError):
        code = worker.exit_code()
        if not worker.ready:
            raise RuntimeError(f"a worker process did not start (exit code {code})") from None
        return WorkerFailure(_describe_exit(code))
    if not good:
        raise answer
    if not worker.ready:
        worker.ready, worker.since = True, time.monotonic()
        return None
    return (answer,)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"the worker process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"the worker process was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def work(descriptor: int, memory_limit_bytes: int | None) -> None:
    """The main function of a worker: receive the function, then call it with one item after the other."""
    channel = Connection(descriptor)
    try:
        message = channel.recv_bytes()
    except (EOFError, OSError):  # the parent ended at once
        return
    try:
        function = pickle.loads(message)
    except Exception as error:
        _send(channel, (False, error))
        return
    items: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(channel, items), daemon=True).start()
    if memory_limit_bytes is not None:
        _limit_memory(memory_limit_bytes)
    _send(channel, (True, None))
    while True:
        try:
            answer = (True, function(items.get()))
        except Exception as error:
            answer = (False, error)
        _send(channel, answer)


def _limit_memory(bytes_more: int) -> None:
    """Limit the memory that the process may use on top of what it has now; beyond it MemoryError is raised."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = bytes_more
    with suppress(OSError):  # Linux only; an interpreter with numpy has about 100 MB, with threads more
        limit += int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(most, limit), most))


def _listen(channel: Connection, items: SimpleQueue[Any]) -> None:
    try:
        while True:
            items.put(channel.recv())
    except (EOFError, OSError):  # the parent closed the channel or has ended
        os._exit(0)


def _send(channel: Connection, answer: tuple[bool, Any]) -> None:
    try:
        message = pickle.dumps(answer)
        if not answer[0]:
            pickle.loads(message)
    except MemoryError:  # the answer is too large to be sent
        message = pickle.dumps((False, MemoryError()))
    except Exception:  # some exceptions cannot be pickled or unpickled
        message = pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
    channel.send_bytes(message)
