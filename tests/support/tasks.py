"""Tasks that executors are tried with: functions of a module, as other processes import them."""

import os
import signal
import time
from pathlib import Path

from avdistill.errors import DatasetError


class OddError(Exception):
    """Cannot be unpickled: its `__init__` takes nothing."""

    def __init__(self) -> None:
        super().__init__("cannot travel")


def fail(message: str) -> None:
    raise DatasetError(message)


def fail_oddly() -> None:
    raise OddError


def lose_once(file: Path) -> str:
    """End the process the first time, as the out-of-memory killer does it."""
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "the second time"


def busy(file: Path) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(file)
    time.sleep(600)
