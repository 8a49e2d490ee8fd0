"""Thumbnails and players of clips, made once, in a temporary folder of bounded size outside the dataset."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import LOCK
from avdistill.media.encoder import encode_image
from avdistill.reporting.clip_media import encode_excerpt
from avdistill.server.config import Limits

_PREFIX = "avdistill-serve-"
PLAYED_SECONDS = 60.0


class BusyError(Exception):
    """More is asked for than is made at once."""


class Workspace:
    """A temporary folder of this server; those that killed servers of the same user left are removed."""

    def __init__(self) -> None:
        for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_left(old)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.folder / LOCK).open("x")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of ours whose lock nobody holds."""
    with suppress(OSError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


class FileCache:
    """Files by key, the least recently used ones removed beyond a number of bytes."""

    def __init__(self, folder: Path, limit_bytes: int, *, makers: int, waiting: int) -> None:
        """Args: makers: files that are made at once; waiting: further calls that wait for their turn."""
        folder.mkdir()
        self.folder, self.limit_bytes, self.bytes = folder, limit_bytes, 0
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._makers, self._places = threading.Semaphore(makers), threading.Semaphore(makers + waiting)
        self._making: dict[str, threading.Lock] = {}

    def open(self, key: str, make: Callable[[], bytes]) -> Path:
        """The file of a key, made unless it is there. Raises BusyError, and what `make` raises."""
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        if (found := self._found(name)) is not None:
            return found
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            with self._lock:
                one = self._making.setdefault(name, threading.Lock())
            with one:  # of several that ask for the same file one makes it
                if (found := self._found(name)) is not None:
                    return found
                with self._makers:
                    content = make()
                self._store(name, content)
            with self._lock:
                self._making.pop(name, None)
            return self.folder / name
        finally:
            self._places.release()

    def _found(self, name: str) -> Path | None:
        with self._lock:
            if name not in self._files:
                return None
            self._files.move_to_end(name)
            return self.folder / name

    def _store(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        with self._lock:
            self._files[name] = len(content)
            self.bytes += len(content)
            while self.bytes > self.limit_bytes and len(self._files) > 1:
                old, size = self._files.popitem(last=False)
                self.bytes -= size
                (self.folder / old).unlink(missing_ok=True)  # who has opened it reads on


class ClipMedia:
    """Thumbnails and players of a dataset's clips."""

    def __init__(self, dataset: ClipDataset, folder: Path, limits: Limits) -> None:
        self.dataset = dataset
        self._cache = FileCache(folder, limits.cache_bytes, makers=limits.encoders, waiting=limits.waiting_encodes)

    def thumbnail(self, clip: int) -> Path:
        """A JPEG file of the middle frame. Raises DatasetError where the clip has no video, BusyError."""

        def make() -> bytes:
            frames = self.dataset.frames(clip)
            return encode_image(frames[len(frames) // 2])

        return self._cache.open(f"thumbnail {clip}", make)

    def player(self, clip: int) -> Path:
        """A WebM file, of a long clip the middle; empty where there is neither video nor audio. Raises BusyError."""

        def make() -> bytes:
            excerpt = encode_excerpt(self.dataset, clip, PLAYED_SECONDS)
            return b"" if excerpt is None else excerpt.content

        return self._cache.open(f"player {clip}", make)
