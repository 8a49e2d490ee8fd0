"""Worker processes that may hang, crash or run out of memory without harm to anyone else.

A worker is a fresh interpreter that imports only what its function needs, so a script that calls us needs no
`if __name__ == "__main__"`. It shares nothing with its siblings: one that is killed half-way through an answer leaves
no lock held and no pipe half full, which is what pools with a common queue suffer from. When this process ends, in
whatever way, the workers see their channel close and end at once.
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
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# The next item waits at the worker, which so never waits for us. Further ahead of the order only up to `_AHEAD` each.
_QUEUED = 2
_AHEAD = 4


@dataclass(frozen=True)
class WorkerFailure:
    """In place of an answer: the worker ended, or had to be ended, before it gave one."""

    reason: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    channel: Connection
    ready: bool = False
    items: deque[int] = field(default_factory=deque)  # handed over; the first is the one being worked on
    since: float = 0.0  # when that began

    @classmethod
    def start(cls, function: Callable[[Any], Any], memory_limit_bytes: int | None) -> _Worker:
        message = pickle.dumps(function)
        channel, theirs = Pipe()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from avdistill.executors.process_pool import work; work({theirs.fileno()}, {memory_limit_bytes})"
        )
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # reading multiplies no matrices
        with theirs:
            # A process group of its own: Ctrl-C at the terminal is for the parent to hear.
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                process_group=0,
            )
        channel.send_bytes(message)
        return cls(process, channel)

    def give(self, number: int, item: object) -> bool:
        """Hand an item over; False where the worker is gone."""
        try:
            self.channel.send(item)
        except OSError:
            return False
        if not self.items:
            self.since = time.monotonic()
        self.items.append(number)
        return True

    def working_for(self) -> float:
        """Seconds since the first of its items was begun; the time it takes to start is not counted."""
        return time.monotonic() - self.since if self.ready and self.items else 0.0

    def stop(self) -> None:
        """End it, whatever it does."""
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def exit_code(self) -> int:
        """Of a worker that closed its channel, which it does only by ending."""
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
    """Answers of `function` in the order of the items, computed in other processes.

    Args:
        function: can be pickled; so can the items and the answers. An exception it raises is raised here.
        items: what to call it with.
        workers: processes, at least one even if 0 is asked for.
        time_limit_seconds: after which a worker is killed and its item lost; None waits for ever.
        memory_limit_bytes: what a worker may need on top of what it has at its start (enforced where the system counts
            it, as Linux does); beyond it MemoryError is raised there. None: no limit.

    Raises:
        RuntimeError: a worker did not start.
    """
    pool: list[_Worker] = []
    waiting = deque(range(len(items)))
    answers: dict[int, R | WorkerFailure] = {}
    given = 0  # answers that have been yielded
    count = min(max(1, workers), len(items))
    try:
        while given < len(items):
            while len(pool) < min(count, len(waiting) + sum(bool(w.items) for w in pool)):
                pool.append(_Worker.start(function, memory_limit_bytes))
            for worker in sorted(pool, key=lambda w: len(w.items)):
                free = len(worker.items) < _QUEUED and waiting and waiting[0] < given + _AHEAD * count
                if free and worker.give(waiting[0], items[waiting[0]]):
                    waiting.popleft()
            for worker in _heard_of(pool, time_limit_seconds):
                answer = _receive(worker, time_limit_seconds)
                if isinstance(answer, WorkerFailure):
                    pool.remove(worker)
                    if worker.items:
                        answers[worker.items.popleft()] = answer
                    waiting.extendleft(reversed(worker.items))
                elif answer is not None:
                    answers[worker.items.popleft()] = answer[0]
                    worker.since = time.monotonic()
            while given in answers:
                yield answers.pop(given)
                given += 1
    finally:
        for worker in pool:
            worker.stop()


def _heard_of(pool: list[_Worker], time_limit_seconds: float | None) -> list[_Worker]:
    """Workers that said something, ended, or are over the limit; waits until there is one."""
    remaining = None
    if time_limit_seconds is not None:
        remaining = max(0.0, time_limit_seconds - max(w.working_for() for w in pool))
    ready = wait([w.channel for w in pool], remaining)
    return [w for w in pool if w.channel in ready or w.working_for() >= (time_limit_seconds or float("inf"))]


def _receive(worker: _Worker, time_limit_seconds: float | None) -> WorkerFailure | tuple[Any] | None:
    """The worker's next answer, None for its first word, or why there will be none; it is then ended."""
    try:
        if not worker.channel.poll():
            worker.stop()
            return WorkerFailure(f"took longer than {time_limit_seconds:g} s")
        good, answer = worker.channel.recv()
    except (EOFError, OSError):
        code = worker.exit_code()
        if not worker.ready:
            raise RuntimeError(f"a worker process did not start (exit code {code})") from None
        return WorkerFailure(_ending(code))
    if not good:
        raise answer
    if not worker.ready:
        worker.ready, worker.since = True, time.monotonic()
        return None
    return (answer,)


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process reading it ended with exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"the process reading it was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def work(descriptor: int, memory_limit_bytes: int | None) -> None:
    """What a worker runs: receive the function, then call it with one item after the other."""
    channel = Connection(descriptor)
    try:
        function = pickle.loads(channel.recv_bytes())
    except Exception as error:
        _say(channel, (False, error))
        return
    items: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(channel, items), daemon=True).start()
    if memory_limit_bytes is not None:
        _limit_memory(memory_limit_bytes)
    _say(channel, (True, None))
    while True:
        try:
            answer = (True, function(items.get()))
        except Exception as error:
            answer = (False, error)
        _say(channel, answer)


def _limit_memory(bytes_more: int) -> None:
    """Have MemoryError raised where the process wants more than this on top of what it has now."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = bytes_more
    with suppress(OSError):  # only Linux tells; an interpreter and numpy alone are some 100 MB, threads more
        limit += int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(most, limit), most))


def _listen(channel: Connection, items: SimpleQueue[Any]) -> None:
    try:
        while True:
            items.put(channel.recv())
    except (EOFError, OSError):  # the parent closed the channel, or is no more
        os._exit(0)


def _say(channel: Connection, answer: tuple[bool, Any]) -> None:
    try:
        message = pickle.dumps(answer)
        if not answer[0]:
            pickle.loads(message)
    except Exception:  # an exception may hold anything, and some cannot be made anew
        message = pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
    channel.send_bytes(message)
