"""Bytes that come one after the other, in memory as long as they are few, then in a spool file."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from avdistill.errors import SpoolError
from avdistill.fsio import create_file

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class SpooledArray:
    """An array that fills a spool file; another process may read it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]

    def mapped(self) -> np.ndarray:
        """A read-only memory map."""
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        """A part along the first axis, read from the file: the pages of a map would stay in memory."""
        start, stop, _ = part.indices(len(self))
        item = math.prod(self.shape[1:])
        offset = start * item * np.dtype(self.dtype).itemsize
        return np.fromfile(self.path, self.dtype, (stop - start) * item, offset=offset).reshape(-1, *self.shape[1:])


class Spool:
    """Collects bytes; without a path all stay in memory."""

    def __init__(self, path: Path | None, memory_bytes: int = 0) -> None:
        """Nothing is written to `path` before there are more than `memory_bytes`."""
        self._path, self._memory_bytes = path, memory_bytes
        self._kept = bytearray()
        self._file: IO[bytes] | None = None

    def write(self, array: np.ndarray | bytes) -> None:
        """Add the bytes of an array. Raises SpoolError where they cannot be written."""
        content = array if isinstance(array, bytes) else np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if self._path is None or (self._file is None and len(self._kept) + len(content) <= self._memory_bytes):
            self._kept += content
            return
        try:
            if self._file is None:
                self._file = create_file(self._path, "xb")
                self._file.write(self._kept)
                self._kept = bytearray()
            self._file.write(content)
        except OSError as error:
            raise SpoolError(f"{self._path}: {error.strerror}") from error

    def result(self, dtype: Any, shape: tuple[int, ...]) -> np.ndarray | SpooledArray:
        """All bytes as an array; nothing can be added then. Raises SpoolError where they cannot be written."""
        if self._file is None or self._path is None:
            return np.frombuffer(self._kept, dtype).reshape(shape)
        try:
            self._file.close()
        except OSError as error:
            raise SpoolError(f"{self._path}: {error.strerror}") from error
        return SpooledArray(self._path, np.dtype(dtype).str, shape)

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and remove it if asked."""
        if self._file is not None:
            with suppress(OSError):  # the rest of the buffer is not needed
                self._file.close()
        if remove and self._path is not None:
            self._path.unlink(missing_ok=True)


def blocks(array: np.ndarray | SpooledArray) -> Iterator[np.ndarray]:
    """An array in parts of some megabytes."""
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
