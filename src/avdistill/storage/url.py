"""`Url`: a path on an object storage. The rest of the library uses it as any other path, for reading.

PyArrow's own filesystems read `s3://` and `gs://`, an installed fsspec package `hf://` and other schemes. Credentials
and addresses come from the environment, under the names that the storage's own tools use, and from nowhere else.
"""

import errno
import hashlib
import io
import logging
import os
import re
import stat
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PosixPath
from typing import IO, Any, TypeVar

from avdistill.errors import ConfigError, StorageError
from avdistill.fsio import open_lock
from avdistill.storage.filesystems import check_readable, endpoint, error_message, filesystem, is_away

T = TypeVar("T")
# Bytes and mtime_ns, by which a changed file is recognized.
State = tuple[int, int]

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(/*)", re.IGNORECASE)
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
# A server that starts answers some requests before it answers all.
_SAME_OUTAGE_SECONDS = 10.0
# A request takes as long as a megabyte on many connections; a decoder goes back and forth between a few places.
_BLOCK_BYTES, _MOST_BLOCKS = 2**20, 16
_WRITE_BYTES = 2**24
_SEEK_SIZE = 0x10000  # AVSEEK_SIZE
_THREADS = 16
# Files of one folder of which the states are asked for: with more than this the folder is listed instead.
_MOST_ASKED_SINGLY = 8


def as_path(place: str | os.PathLike[str]) -> Path:
    """A place as a `Path`, which is a `Url` where the text is one, also after `pathlib` made one slash of two.

    Raises:
        ConfigError: a URL that is not read here, or one with credentials or a query.
    """
    if isinstance(place, Url):
        return place
    text = os.fspath(place)
    found = _URL.match(text)
    if found is None or (not found[2] and (isinstance(place, str) or os.path.lexists(f"{found[1]}:"))):
        return Path(text)
    scheme, rest = found[1].lower(), text[found.end() :]
    host = rest.split("/")[0]
    if "@" in host:
        where = f"{scheme}://***@{rest.rpartition('@')[2]}"
        raise ConfigError(f"{where}: expected credentials in the environment, found some in the URL")
    if re.search(r"\?[^/]*=", rest):
        raise ConfigError(f"{scheme}://{rest.partition('?')[0]}: expected no query in a URL, found one")
    check_readable(f"{scheme}://{rest}", scheme)
    return Url(f"{scheme}:/{rest}")


def states(files: Iterable[Path]) -> dict[Path, State | None]:
    """Bytes and mtime_ns of files, None of one that is not there; those on a storage are asked for side by side."""
    found: dict[Path, State | None] = {}
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        if isinstance(file, Url):
            folders[file.parent].append(file)
        else:
            found[file] = _state(file)

    def listed(folder: Path) -> dict[Path, State | None]:
        there = {folder / name: state for name, state in Url(folder).files(recursive=False).items()}
        return {file: there.get(file) for file in folders[folder]}

    few = [file for files in folders.values() if len(files) <= _MOST_ASKED_SINGLY for file in files]
    with ThreadPoolExecutor(_THREADS) as threads:
        found.update(zip(few, threads.map(_state, few), strict=True))
        for part in threads.map(listed, (f for f, files in folders.items() if len(files) > _MOST_ASKED_SINGLY)):
            found |= part
    return found


def _state(file: Path) -> State | None:
    try:
        status = file.stat()
    except StorageError:
        raise
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def patience_seconds() -> float:
    """How long a request is repeated while a storage does not answer: AVDISTILL_STORAGE_PATIENCE or ten minutes."""
    text = os.environ.get("AVDISTILL_STORAGE_PATIENCE", "600")
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ConfigError(f"AVDISTILL_STORAGE_PATIENCE: expected seconds, found {text!r:.40}") from None


def cache_folder() -> Path:
    """Where copies of what lies on storages are: `avdistill/storage` in XDG_CACHE_HOME or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avdistill" / "storage"


class Url(PosixPath):
    """A file or a folder on an object storage, made by `as_path`.

    Its methods raise FileNotFoundError where it is not there, and StorageError for all else, after they have tried for
    `patience_seconds` where the storage does not answer.
    """

    def __str__(self) -> str:
        return re.sub(r"^([a-z][a-z0-9+.-]+):/(?!/)", r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    @property
    def root(self) -> str:
        """The scheme and the bucket."""
        return "/".join(str(self).split("/")[:3])

    def resolve(self, strict: bool = False) -> "Url":
        """Itself: there are no links on a storage, and no working folder."""
        return self

    def absolute(self) -> "Url":
        """Itself."""
        return self

    def is_symlink(self) -> bool:
        """No."""
        return False

    def exists(self, **_: Any) -> bool:
        """Whether there is a file or a folder."""
        return self._kind() != 0

    def is_file(self, **_: Any) -> bool:
        """Whether there is a file."""
        return stat.S_ISREG(self._kind())

    def is_dir(self, **_: Any) -> bool:
        """Whether there is a folder: files whose names begin with it."""
        return stat.S_ISDIR(self._kind())

    def _kind(self) -> int:
        try:
            return self.stat().st_mode
        except FileNotFoundError:
            return 0

    def stat(self, **_: Any) -> os.stat_result:
        """Kind, bytes and time of the last change, in whole seconds."""
        there, path = self._place()
        info = self._answer(lambda: there.get_file_info([path])[0])
        if info.type.name == "NotFound":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        mode = stat.S_IFREG | 0o444 if info.type.name == "File" else stat.S_IFDIR | 0o555
        size, mtime_ns = _state_of(info)
        seconds = mtime_ns // 10**9
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, seconds, seconds, seconds), {"st_mtime_ns": mtime_ns})

    def iterdir(self) -> Generator["Url"]:
        """The files and folders in a folder."""
        yield from [self / name for name in sorted(self.files(recursive=False, folders=True))]

    def files(self, *, recursive: bool = True, folders: bool = False) -> dict[str, State]:
        """Bytes and mtime_ns of the files of a folder by their names below it; empty where there is none."""
        from pyarrow.fs import FileSelector

        there, path = self._place()
        selector = FileSelector(path, recursive=recursive, allow_not_found=True)
        infos = self._answer(lambda: there.get_file_info(selector))
        start = len(path.strip("/")) + 1
        return {
            info.path.lstrip("/")[start:]: _state_of(info)
            for info in infos
            if info.type.name == "File" or (folders and info.type.name == "Directory")
        }

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **options: Any) -> IO[Any]:  # type: ignore[override]
        """The file, for reading by ranges."""
        if mode not in ("r", "rb"):
            raise StorageError(f"{self}: cannot be written in place")
        ranges: Any = RangeReader(self)
        return ranges if mode == "rb" else io.TextIOWrapper(io.BufferedReader(ranges), encoding or "utf-8", **options)

    def read_bytes(self) -> bytes:
        """The content of a file."""
        with RangeReader(self) as file:
            return file.readall()

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """The text of a file."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def put(self, content: Path | bytes) -> None:
        """Write a file as a whole: a local file, or bytes."""
        there, path = self._place()

        def write() -> None:
            source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
            with source, there.open_output_stream(path) as target:
                while block := source.read(_WRITE_BYTES):
                    target.write(block)

        self._answer(write)

    def delete_folder(self) -> None:
        """Delete a folder with all that is in it, if it is there."""
        there, path = self._place()
        if self.files(recursive=False):
            self._answer(lambda: there.delete_dir(path))

    def open_ranges(self) -> Any:
        """PyArrow's file."""
        there, path = self._place()
        return self._answer(lambda: there.open_input_file(path))

    def _place(self) -> tuple[Any, str]:
        """The filesystem, and the path in it."""
        scheme, _, path = str(self).partition("://")
        bucket = path.split("/")[0]
        # PyArrow would find the region by a request for each bucket: only where nothing else says it.
        return self._answer(lambda: filesystem(scheme, bucket, endpoint())), path

    def _answer(self, call: Callable[[], T]) -> T:
        """What a request returns, which is repeated while the storage does not answer.

        Of all that wait on this machine one says so, in one line.
        """
        pause, until = _FIRST_PAUSE_SECONDS, None
        with ExitStack() as turn:
            while True:
                asked = time.time()
                try:
                    return call()
                except (ConfigError, StorageError):
                    raise
                except FileNotFoundError:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
                except Exception as error:  # of whatever package reads the scheme
                    message = error_message(error)
                    if not is_away(error):
                        raise StorageError(f"{self}: {message}") from None
                if until is None:
                    until = time.monotonic() + patience_seconds()
                    _say_once(turn, self.root, message, asked)
                if time.monotonic() >= until:
                    raise StorageError(f"{self}: no answer for {patience_seconds():g} s: {message}")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class RangeReader(io.RawIOBase):
    """A file on a storage, read by ranges of a megabyte, of which the last ones are kept.

    Attributes:
        name: of the file.
        failure: why a range could not be read. A decoder may take that for the end of the file.
    """

    def __init__(self, url: Url) -> None:
        """Open it. Raises FileNotFoundError and StorageError."""
        self.name = str(url)
        self.failure: Exception | None = None
        self._url, self._file, self._position = url, url.open_ranges(), 0
        self._size = int(self._file.size())
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; what FFmpeg asks for the size by leaves it."""
        if whence & _SEEK_SIZE:
            return self._size
        base = (0, self._position, self._size)[whence & 3]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at most to the end of a range."""
        number, start = divmod(self._position, _BLOCK_BYTES)
        count = min(len(buffer), self._size - self._position, _BLOCK_BYTES - start)
        if count <= 0:
            return 0
        buffer[:count] = self._block(number)[start : start + count]
        self._position += count
        return count

    def _block(self, number: int) -> memoryview:
        if number not in self._blocks:
            first = number * _BLOCK_BYTES
            length = min(_BLOCK_BYTES, self._size - first)
            try:
                content = self._url._answer(lambda: self._file.read_at(length, first))
                if len(content) != length:
                    raise StorageError(f"{self.name}: expected {length} bytes at {first}, found {len(content)}")
            except Exception as error:
                self.failure = error
                raise
            if len(self._blocks) == _MOST_BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[number] = memoryview(content)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._blocks.clear()
            self._file.close()
        super().close()


def _state_of(info: Any) -> State:
    # A listing and a request for one file may differ in the fractions of a second.
    return int(info.size or 0), int(info.mtime_ns or 0) // 10**9 * 10**9


def _say_once(turn: ExitStack, root: str, message: str, asked: float) -> None:
    """Say that a storage does not answer, unless another thread or process that waits for it has said so.

    Args:
        turn: at its end this one has its answer.
        root: of the storage.
        message: what it answered.
        asked: when; whoever said so and got an answer since then, or just before, spoke of the same outage.
    """
    folder = cache_folder() / f"away-{hashlib.sha256(f'{endpoint()} {root}'.encode()).hexdigest()[:8]}"
    answered = folder / "answered"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turn.enter_context(open_lock(folder))
        turn.callback(answered.touch)
        if answered.exists() and answered.stat().st_mtime >= asked - _SAME_OUTAGE_SECONDS:
            return
    except BlockingIOError:
        return
    except OSError:  # of the folder: rather twice than not at all
        pass
    logging.getLogger(__name__).warning(
        "%s: no answer; trying again for up to %g s (%s)", root, patience_seconds(), f"{message:.120}"
    )
