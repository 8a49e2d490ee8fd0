"""An executor that runs a task when it is collected, in this process: for the order of tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from avdistill.executors.executor import Ended, call


class InlineExecutor:
    """Two tasks at a time; `order` has the names of those that were run."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.end_after: int | None = None
        self._tasks: deque[tuple[Hashable, Callable[..., Any], tuple[Any, ...]]] = deque()

    @property
    def free(self) -> bool:
        return len(self._tasks) < 2

    @property
    def running(self) -> list[Hashable]:
        return [key for key, _, _ in self._tasks]

    def start(self, key: Hashable, function: Callable[..., Any], *arguments: Any, gpu: bool = False) -> None:
        assert gpu == function.__name__.startswith(("embed", "do_job"))
        self._tasks.append((key, function, arguments))

    def collect(self) -> list[Ended]:
        if len(self.order) == self.end_after:
            raise KeyboardInterrupt
        key, function, arguments = self._tasks.popleft()
        self.order.append(function.__name__)
        return [Ended(key, *call(function, arguments))]

    def stop(self) -> None:
        self._tasks.clear()
