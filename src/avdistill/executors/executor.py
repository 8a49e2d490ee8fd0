"""Where tasks run: one protocol for processes of this machine (`local`), a Ray cluster (`ray`) and Slurm (`slurm`).

No scheduler is written here. A task is a function of a module and its arguments; what it makes lies on a file system
that all machines share, and a task that is run again goes on with what it finds there.
"""

import pickle
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from avdistill.errors import AvdistillError

#: how often a task is begun whose machine or process is lost each time
ATTEMPTS = 3


@dataclass(frozen=True)
class Ended:
    """A task that has ended.

    Attributes:
        key: as it was given to `Executor.start`.
        value: what the function returned.
        error: what it raised, or TaskLostError; None where it returned.
    """

    key: Hashable
    value: Any = None
    error: Exception | None = None


class Executor(Protocol):
    """Runs tasks in processes of their own, on one machine or many."""

    @property
    def free(self) -> bool:
        """Whether another task may be started; it need not run at once."""

    @property
    def running(self) -> list[Hashable]:
        """The keys of the tasks that were started and have not ended."""

    def start(self, key: Hashable, function: Callable[..., Any], *arguments: Any, gpu: bool = False) -> None:
        """Start a task.

        Args:
            key: names it in what `collect` returns.
            function: of a module that every machine has.
            arguments: picklable; paths are absolute.
            gpu: it computes on a GPU where there is one.
        """

    def collect(self) -> list[Ended]:
        """The tasks that have ended since the last call, after waiting a moment for one."""

    def stop(self) -> None:
        """End all tasks; a training among them saves first where its machine gives it the time."""


def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """The value of a call and None, or None and an exception that can be sent to another process."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """The exception, or a RuntimeError with its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exception_only(error)[-1].strip())
    return error


def describe(error: Exception) -> str:
    """An exception in a line, with its kind where that is not one of ours."""
    text = str(error) if isinstance(error, AvdistillError) else traceback.format_exception_only(error)[-1]
    return " ".join(text.split())
