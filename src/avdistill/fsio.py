"""Files that are complete or absent, also after a power cut: atomic writing, locks, checksums, errors in one line."""

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
    """The folder's lock file, locked until it is closed or this process ends.

    On a file system without locks (some network drives) it is only opened: other processes are then not noticed.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
    return file


def follow_link(path: str | os.PathLike[str]) -> Path:
    """Where a symbolic link leads, another path as it is: a folder is renamed within the file system of its target."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def is_vacant(folder: Path) -> bool:
    """Whether a new folder may take this name: it is free, or an empty folder other than the working directory."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()) and folder.resolve() != Path.cwd())


def acquire_staging_dir(folder: Path, target: Path) -> IO[str] | None:
    """Make and lock the folder that is renamed to the target when it is complete.

    Returns:
        The lock; None where the target exists, perhaps since another process has just finished it.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    while is_vacant(target):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open_lock(folder)
        except FileNotFoundError:
            continue  # the folder was renamed to the target after our mkdir
        # The lock is a file: it may have been renamed with the folder, or the target was finished before we locked.
        ours = (folder / LOCK).exists() and os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
        if ours and is_vacant(target):
            return lock
        if ours:
            with suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.close()
    return None


def error_message(error: Exception) -> str:
    """The message of an error as one line of valid Unicode, whatever file names it contains."""
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
    """The text of our JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        sync(file)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file and flush it to the disk."""
    with path.open("wb") as file:
        # Not np.save: its error on a full disk does not name the cause.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        sync(file)


def commit(finished: Path, target: Path) -> None:
    """Rename a complete file or folder to its target, its content being on the disk: no power cut leaves it empty."""
    sync_all(finished)
    finished.rename(target)
    sync_folder(target.parent)


def sync_all(path: Path) -> None:
    """Flush a file, or a folder with all its content, to the disk."""
    for each in [path, *path.rglob("*")]:
        if each.is_dir():
            sync_folder(each)
        else:
            with each.open("rb") as file:
                sync(file)


def sync(file: IO[Any]) -> None:
    """Flush everything written so far to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: what was made, renamed or removed in it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems do not support it, and a folder that may be written need not be readable.
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
