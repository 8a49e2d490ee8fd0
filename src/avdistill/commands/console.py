"""What all verbs share: progress and messages on standard error, results on standard output."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import rich.progress
from rich.console import Console

from avdistill.errors import AvdistillError, ConfigError
from avdistill.progress import OnProgress, Progress
from avdistill.storage.url import Url, as_path

# Verbs whose work torchrun's processes share.
_SHARING = ("train", "resume", "teacher train", "embed", "evaluate", "retrieve", "audit")
# Verbs whose --out may be a URL.
_WRITING_TO_STORAGE = ("prepare", "join", "corrupt", "relabel", "train", "evaluate", "retrieve", "index")
# C0 and C1 control characters but the newline, and characters that change the direction of what follows.
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# How PyTorch's errors say it.
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "not enough memory")
#: of a progress that a log shows
SECONDS_BETWEEN_LINES = 60.0
MESSAGES = Console(stderr=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Arguments of every verb that prints a result."""

    json: bool = False
    """Print the result as one JSON object."""


class _MessageHandler(logging.Handler):
    """What the library logs, as messages for people."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def is_first_process() -> bool:
    """Of the processes that torchrun starts only the first prints and writes; each reports its own error."""
    return not _among_several() or os.environ.get("RANK", "0") == "0"


def _among_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run(verb: str, module: str, function: str, arguments: list[str]) -> int:
    """Call a verb; an error that a user can mend is one line on standard error and the error's exit code."""
    MESSAGES.quiet = not is_first_process()
    logger = logging.getLogger("avdistill")
    if not logger.handlers:
        logger.addHandler(_MessageHandler())
        logger.setLevel(logging.INFO)
    if _among_several() and verb not in _SHARING and " ".join([verb, *arguments[:1]]) not in _SHARING:
        say(f"avdistill: {verb}: expected one process, found WORLD_SIZE={os.environ['WORLD_SIZE']}; omit torchrun")
        return 2
    try:
        _refuse_url(verb, arguments)
        getattr(import_module(f"avdistill.commands.{module}"), function)(arguments)
    except BrokenPipeError:
        raise
    except (AvdistillError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"  # without Python's [Errno 17]
        _print_error(message)
        return getattr(error, "exit_code", 1)
    except RecursionError:
        _print_error(f"{verb}: a file is nested too deeply")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        _print_error(f"{verb}: more memory is needed than there is{_in_brackets(error)}")
        return 1
    return 0


def _refuse_url(verb: str, arguments: list[str]) -> None:
    """Raise ConfigError where a verb would take a URL to write to for the name of a folder."""
    if "://" in " ".join(arguments) and verb not in _WRITING_TO_STORAGE:
        out, _ = take_option(arguments, "--out")
        if isinstance(as_path(out or ""), Url):
            verbs = ", ".join(_WRITING_TO_STORAGE)
            raise ConfigError(f"--out: expected a folder of this machine, found a URL, which {verbs} take")


def _print_error(message: str) -> None:
    print(f"avdistill: {printable(' '.join(message.splitlines()))}", file=sys.stderr)


def _in_brackets(error: Exception) -> str:
    return f" ({str(error).splitlines()[0]:.120})" if str(error) else ""


def printable(text: str) -> str:
    """A text in which nothing steers a terminal: control characters and marks of direction as escapes; lines stay.

    Names, labels and ids may come from somebody else's files.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """A message for people, on standard error."""
    MESSAGES.print(printable(text), markup=False, soft_wrap=True)


def output(report: Mapping[str, object], lines: list[str], as_json: bool) -> None:
    """The result of a verb on standard output: the report as one JSON object, or the lines."""
    if not is_first_process():
        return
    text = printable("\n".join(lines))
    if as_json:
        text = json.dumps(report, ensure_ascii=False, allow_nan=False, default=str)
        text = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        print(text)
    except UnicodeEncodeError:  # a file name that is not UTF-8, or a terminal without the letter
        escaped = text.encode("ascii", "backslashreplace").decode()
        print(json.dumps(report, allow_nan=False, default=str) if as_json else escaped)


def run_sub_verb(verb: str, sub_verbs: Mapping[str, tuple[Callable[[list[str]], None], str]], words: list[str]) -> None:
    """`avdistill VERB SUB_VERB ...`. Raises ConfigError for an unknown one."""
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: avdistill {verb} VERB ...    (avdistill {verb} VERB --help)\n")
        print("\n".join(f"  {name:<12}{help_line}" for name, (_, help_line) in sub_verbs.items()))
    elif words[0] not in sub_verbs:
        raise ConfigError(f"{verb}: no verb {words[0]!r}; verbs: {', '.join(sub_verbs)}")
    else:
        sub_verbs[words[0]][0](words[1:])


def take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `name VALUE` or `name=VALUE` (None without it), and the other arguments.

    For options that decide which others exist. Raises ConfigError where the value is missing.
    """
    for position, argument in enumerate(arguments):
        given, joined, value = argument.partition("=")
        if given == name:
            rest = arguments[position + (1 if joined else 2) :]
            value = value if joined else next(iter(arguments[position + 1 :]), "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{name}: expected a value")
            return value, [*arguments[:position], *rest]
    return None, arguments


def region_of(text: str | None) -> tuple[int, int, int, int] | None:
    """`x,y,width,height` as the four numbers."""
    if text is None:
        return None
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--region: expected x,y,width,height in pixels, got {text!r}") from None
    return x, y, width, height


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A bar on standard error for the time of the block; lines for a log where standard error is no terminal."""
    if not MESSAGES.is_terminal:
        lines = _LogLines(printable(title))
        yield lines.update
        lines.close()
        return
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich.progress.Progress(*columns, console=MESSAGES) as bar:
        task = bar.add_task(printable(title), total=None, note="")

        def update(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, note=printable(progress.note))

        yield update


class _LogLines:
    """A line a minute: what, how many of how many, how fast, how long still; and one at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = self.said = time.monotonic()
        self.first: int | None = None  # what was finished before says nothing of the rate
        self.last: Progress | None = None

    def update(self, progress: Progress) -> None:
        now, self.last = time.monotonic(), progress
        if self.first is None:
            self.first = progress.done
        if now - self.said < SECONDS_BETWEEN_LINES:
            return
        self.said = now
        rate = (progress.done - self.first) / (now - self.began)
        parts = [f"{self._counts(progress)}, {rate:.3g} a second"]
        if progress.total is not None and rate > 0:
            parts.append(f"{_duration((progress.total - progress.done) / rate)} left")
        say(", ".join([*parts, printable(progress.note)] if progress.note else parts))

    def close(self) -> None:
        if self.last is not None:
            say(f"{self._counts(self.last)} in {_duration(time.monotonic() - self.began)}")

    def _counts(self, progress: Progress) -> str:
        return f"{self.title}: {progress.done}" + ("" if progress.total is None else f" of {progress.total}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar of a training's steps that shows every loss: the `on_step` of `train` and `resume`."""
    with progress_bar(title) as update:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            note = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            update(Progress(step, steps, note))

        yield on_step
