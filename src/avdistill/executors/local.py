"""Tasks in processes of this machine: each has one of its own, so that its peak memory and a crash are its own too."""

import multiprocessing
from collections.abc import Callable, Hashable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from avdistill.errors import TaskLostError
from avdistill.executors.executor import Ended, call
from avdistill.executors.parent import end_with_parent

_WAIT_SECONDS = 1.0


class LocalExecutor:
    """At most so many tasks at a time; an `Executor`. A task is not begun twice: here it would fail again."""

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        """Args: workers: tasks at a time; preload: modules that a server imports once and all tasks then have."""
        # A server that has imported everything forks the workers: nothing is imported twice.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._workers = workers
        self._tasks: dict[Hashable, tuple[BaseProcess, Connection]] = {}

    @property
    def free(self) -> bool:
        """Whether fewer tasks than workers are running."""
        return len(self._tasks) < self._workers

    @property
    def running(self) -> list[Hashable]:
        """The keys of the tasks under way."""
        return list(self._tasks)

    def start(self, key: Hashable, function: Callable[..., Any], *arguments: Any, gpu: bool = False) -> None:
        """See `Executor.start`; every process sees the GPUs of this machine."""
        channel, worker_end = self._context.Pipe(duplex=False)
        with worker_end:
            process = self._context.Process(target=_work, args=(function, arguments, worker_end), daemon=True)
            process.start()
        self._tasks[key] = process, channel

    def collect(self) -> list[Ended]:
        """See `Executor.collect`."""
        if not self._tasks:
            return []
        wait([each for process, channel in self._tasks.values() for each in (process.sentinel, channel)], _WAIT_SECONDS)
        ended = []
        for key, (process, channel) in list(self._tasks.items()):
            if channel.poll() or not process.is_alive():
                del self._tasks[key]
                with channel:
                    answer = _receive(channel)
                    process.join()
                lost = TaskLostError(f"its process ended with code {process.exitcode}")
                ended.append(Ended(key, *(answer or (None, lost))))
        return ended

    def stop(self) -> None:
        """SIGTERM to all tasks; returns when they have ended."""
        for process, _ in self._tasks.values():
            process.terminate()
        for process, channel in self._tasks.values():
            process.join()
            channel.close()
        self._tasks.clear()


def _receive(channel: Connection) -> tuple[Any, Exception | None] | None:
    """What a task sent; None where its process ended before that."""
    try:
        return channel.recv() if channel.poll() else None
    except (EOFError, OSError):
        return None


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], channel: Connection) -> None:
    end_with_parent()
    channel.send(call(function, arguments))
