"""What every verb shares: progress and messages on standard error, results on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

import rich.progress
from rich.console import Console

from avdistill.progress import OnProgress, Progress

# Of the processes that torchrun starts only the first speaks and writes; an error any of them may tell.
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
MESSAGES = Console(stderr=True, highlight=False, quiet=not FIRST_PROCESS)


def run(module: str, function: str, arguments: list[str]) -> int:
    """Call a verb; an error that a user can mend is one line on standard error and exit code 1 (2: a wrong config)."""
    try:
        verb: Callable[[list[str]], None] = getattr(import_module(f"avdistill.commands.{module}"), function)
        verb(arguments)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("avdistill: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        wrong, mendable = _expected()
        if not isinstance(error, mendable):
            raise
        told = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            told = f"{error.filename}: {error.strerror}"  # without Python's [Errno 17]
        print(f"avdistill: {told}", file=sys.stderr)
        return 2 if isinstance(error, wrong) else 1
    return 0


def _expected() -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """The error of a wrong config, and all that a user can mend."""
    from avdistill.errors import AnnotationError, ConfigError, DatasetError, MediaError

    mendable: list[type[Exception]] = [AnnotationError, MediaError, DatasetError, ConfigError, OSError]
    if "torch" in sys.modules:  # these rooms import torch; without it none of their errors can have been raised
        from avdistill.errors import CheckpointError, NotFiniteError, ProcessLostError, RunError, TeacherError

        mendable += [NotFiniteError, ProcessLostError, CheckpointError, TeacherError, RunError]
    return ConfigError, tuple(mendable)


def say(text: str) -> None:
    """A message for people, on standard error."""
    MESSAGES.print(text, markup=False, soft_wrap=True)


def output(report: Mapping[str, object], lines: list[str], as_json: bool) -> None:
    """The result of a verb on standard output: the report as one JSON object, or the lines."""
    if not FIRST_PROCESS:
        return
    text = "\n".join(lines)
    if as_json:
        text = json.dumps(report, ensure_ascii=False, allow_nan=False, default=str)
    try:
        print(text)
    except UnicodeEncodeError:  # a file's name that is no text, or a terminal that lacks a letter
        escaped = text.encode("ascii", "backslashreplace").decode()
        print(json.dumps(report, allow_nan=False, default=str) if as_json else escaped)


def take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `name VALUE` or `name=VALUE` (None where it is not there), and the arguments without it.

    For options that decide which others there are. Raises ConfigError where the value is missing.
    """
    from avdistill.errors import ConfigError

    for position, argument in enumerate(arguments):
        given, joined, value = argument.partition("=")
        if given == name:
            rest = arguments[position + (1 if joined else 2) :]
            value = value if joined else next(iter(arguments[position + 1 :]), "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{name}: expected a value")
            return value, [*arguments[:position], *rest]
    return None, arguments


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A bar on standard error for the time of the block."""
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    )
    with rich.progress.Progress(*columns, console=MESSAGES) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, note=progress.note)

        yield update


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar of a training's steps that shows every loss: the `on_step` of `train` and `resume`."""
    with progress_bar(title) as update:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            note = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            update(Progress(step, steps, note))

        yield on_step
