"""Files that are complete or absent, also after a power cut: atomic writing, locks, checksums, errors in one line.

A folder may come from somebody else, with links, pipes or devices under the names of its files. Everything is written
through `open_regular`, `create_file`, `replacing` and `result_folder`, which never follow a link; everything is read
through `regular_file`, which refuses what would be waited for.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

LOCK = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def regular_file(path: Path) -> Path:
    """The path of a file to read. Raises OSError for a pipe, a device or a folder; a missing file is left to `open`."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: expected a file, found a pipe, device or folder")
    return path


def _open_no_link(name: str, flags: int) -> int:
    """`os.open` for a file of ours: not through a link, and without waiting for the other end of a pipe."""
    refused = OSError(f"{name}: expected a file of its own, found a link, pipe or device; nothing is written there")
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads
            raise refused from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise refused


def open_regular(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file of ours, new or existing, in a mode that does not truncate it ("a", "r+b", "xb").

    Raises:
        OSError: a link, pipe or device, or a file with a second name, whose other owner would see the change.
    """
    file = open(path, mode, opener=_open_no_link, **options)  # noqa: SIM115
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise OSError(f"{path}: expected a file of its own, found one with a second name; copy it first")
    return file


def create_file(path: Path, mode: str = "x", **options: Any) -> IO[Any]:
    """A new file, opened for writing; whatever had its name, perhaps of an interrupted call, is removed first."""
    path.unlink(missing_ok=True)
    return open_regular(path, mode, **options)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing, which does not: "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, mode: str = "x", **options: Any) -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` at the end of the block, atomically, also after a power cut."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    if "b" not in mode:
        options = {"encoding": "utf-8"} | options
    try:
        with _naming(path):
            with open_regular(temporary, mode, **options) as file:
                yield file
                sync(file)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def result_folder(out: Path) -> Iterator[Path]:
    """A new folder to write results into; at the end of the block its files are in `out`, or on an error none is.

    A folder `out` with other files keeps them; files of the same names, of an earlier call, are replaced.

    Raises:
        OSError: `out` cannot be written; the message names it.
    """
    target = follow_link(out)
    # Within a folder that is there: only that may be writable, or on its file system.
    fresh = (target.parent if is_vacant(target) else target) / f".{secrets.token_hex(8)}.tmp"
    try:
        fresh.mkdir(parents=True)
        yield fresh
        sync_all(fresh)
        names = {file.name for file in fresh.iterdir()}
        if is_vacant(target):
            fresh.rename(target)
        elif target.resolve() != Path.cwd() and {file.name for file in target.iterdir()} <= names | {fresh.name}:
            old = target.with_name(f".{secrets.token_hex(8)}.tmp")
            target.rename(old)
            (old / fresh.name if fresh.parent == target else fresh).rename(target)
            remove_tree(old)
        else:
            for name in sorted(names):
                (fresh / name).replace(target / name)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, os.strerror(error.errno), str(out)) from error
    finally:
        remove_tree(fresh)


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, or whatever else has its name; a link is removed, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:  # `rmtree` would wait at a pipe
        path.unlink(missing_ok=True)


def own_folder(folder: Path, name: str) -> Path:
    """The path of a folder inside another one. Raises OSError where a link has its name: what it leads to is not ours.

    Args:
        folder: the outer folder, which may be reached by links.
        name: below it; may hold several parts.
    """
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise OSError(f"{path}: expected a folder of its own, found a link; nothing is written there")
    return path


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of an .npy file; with `mapped` a read-only memory map.

    Its header is believed only as far as the file holds what it says; nothing is unpickled.

    Raises:
        OSError: no such file, or no file.
        ValueError: anything else than an array of numbers.
    """
    try:
        array = np.load(regular_file(path), mmap_mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # the header is a Python literal, which may fail to parse in many ways
        raise ValueError(f"no .npy file: {type(error).__name__}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        raise ValueError("no array of numbers")
    return array if mapped else np.array(array)


def check_mapped(array: np.ndarray) -> None:
    """Raise OSError where the file under a memory map has become shorter: to read beyond its end ends the process."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and base.size() < len(base):
        raise OSError("the file has become shorter since it was opened")


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read in blocks. Raises OSError where there is none."""
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_lock(folder: Path, *, wait: bool = False) -> IO[str]:
    """The folder's lock file, locked until it is closed or this process ends.

    On a file system without locks (some network drives) it is only opened: other processes are then not noticed.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    file = open(folder / LOCK, "a", opener=_open_no_link)  # noqa: SIM115
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
    own_folder(folder.parent, folder.name)
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
    with replacing(path) as file:
        file.write(text)


def as_json(value: object) -> str:
    """The text of our JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text into a new file and flush it to the disk."""
    with _naming(path), create_file(path, encoding="utf-8") as file:
        file.write(text)
        sync(file)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a new .npy file and flush it to the disk."""
    with _naming(path), create_file(path, "xb") as file:
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
        elif each.is_file():
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
