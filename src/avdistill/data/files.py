"""Files that are whole or not there: atomic writing, locks, checksums, and what an error says in one line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO

import numpy as np

LOCK = "lock"


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_locked(folder: Path, *, wait: bool = False) -> IO[str]:
    """The folder's lock file, locked until it is closed or this process ends, in whatever way.

    Raises:
        BlockingIOError: another process has it, and we do not `wait`.
    """
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        raise
    return file


def reason(error: Exception) -> str:
    """What an error says, as one line that can be printed and stored whatever the names in it."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
    return " ".join(text.splitlines()).encode("utf-8", "replace").decode()


def write_json(path: Path, value: object) -> None:
    """Write atomically: a reader sees the old file or the new one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_text(temporary, as_json(value))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: object) -> str:
    """As our JSON files are written."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text and have it on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file and have it on the disk."""
    with path.open("wb") as file:
        # Not np.save: on a full disk its error would not say so.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())
