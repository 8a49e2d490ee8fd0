"""Files that are whole or not there, also after a power cut: atomic writing, locks, checksums, errors in one line."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

LOCK = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_lock(folder: Path, *, wait: bool = False) -> IO[str]:
    """The folder's lock file, locked until it is closed or this process ends, in whatever way.

    On a file system without locks (some network drives, clusters) it is only opened: others are then not noticed.

    Raises:
        BlockingIOError: another process has it, and we do not `wait`.
    """
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
    return file


def acquire_staging_dir(folder: Path, target: Path) -> IO[str] | None:
    """Make the folder that gets the target's name when it is whole, and lock it.

    None: the target is there, perhaps since another process has just finished it.

    Raises:
        BlockingIOError: another process has it.
    """
    while not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open_lock(folder)
        except FileNotFoundError:
            continue  # the folder got the target's name after our mkdir
        # What is locked is a file. It may have gone with the folder to the target's name, or the target came before it.
        ours = (folder / LOCK).exists() and os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
        if ours and not target.exists():
            return lock
        if ours:
            with suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.close()
    return None


def error_message(error: Exception) -> str:
    """What an error says, as one line that can be printed and stored whatever the names in it."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
    return " ".join(text.splitlines()).encode("utf-8", "replace").decode()


def write_json(path: Path, value: object) -> None:
    """Write as JSON, atomically (`replace_text`)."""
    replace_text(path, as_json(value))


def replace_text(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old file or the new one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_text(temporary, text)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: object) -> str:
    """As our JSON files are written."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text and have it on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        sync(file)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file and have it on the disk."""
    with path.open("wb") as file:
        # Not np.save: on a full disk its error would not say so.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        sync(file)


def commit(finished: Path, target: Path) -> None:
    """Give a file or a folder that is whole its name: first all it holds is on the disk, then the name is.

    Without the first a power cut may leave the name with empty files behind it.
    """
    sync_all(finished)
    finished.rename(target)
    sync_folder(target.parent)


def sync_all(path: Path) -> None:
    """Have a file, or a folder with all in it, on the disk."""
    for each in [path, *path.rglob("*")]:
        if each.is_dir():
            sync_folder(each)
        else:
            with each.open("rb") as file:
                sync(file)


def sync(file: IO[Any]) -> None:
    """Have everything written so far on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk: what was made, renamed or removed in it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems know no such thing, and a folder that may be written need not be readable.
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
