"""The files with a dataset's frames and audio: writers, recovery after an interruption, reader of JPEG frames."""

import io
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from avdistill.errors import DatasetError
from avdistill.fsio import load_array, open_regular, regular_file, sync

_SHARD_BYTES = 2 * 2**30
_BLOCK_BYTES = 2**22
# As of a frame that `prepare` reads.
_LARGEST_IMAGE_PIXELS = 64 * 2**20


@dataclass(eq=False)
class Shard:
    """An .npy file that grows; its header has room for the final count, which is written when it is closed."""

    path: Path
    shape: tuple[int, ...]  # of one item
    dtype: str
    count: int = 0
    file: IO[bytes] = field(init=False, repr=False)

    def open(self) -> None:
        """Create the file, or truncate an existing one to `count` items of `shape`, which it must hold."""
        self.file = open_regular(self.path, "r+b" if self.path.exists() else "x+b")
        self._write_header()
        self.file.truncate(self.start + self.count * self.item_bytes)
        self.file.seek(0, os.SEEK_END)

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return _item_bytes(self.shape, self.dtype)

    @property
    def full(self) -> bool:
        """Whether it holds 2 GB."""
        return self.count * self.item_bytes >= _SHARD_BYTES

    @property
    def files(self) -> Sequence[IO[bytes]]:
        """The one file."""
        return (self.file,)

    def append(self, array: np.ndarray, crc: int = 0) -> int:
        """Write items at the end; returns the CRC-32 of their bytes, continued from `crc`."""
        content = np.ascontiguousarray(array).data
        self.file.write(content)
        self.count += len(array)
        return zlib.crc32(content, crc)

    def reserve(self, count: int, size: int) -> None:
        """Count items, of `size` bytes, that are not written here."""
        self.count += count

    def header(self) -> bytes:
        """What precedes the items in the file."""
        return _header(self.count, self.shape, self.dtype)

    def close(self) -> None:
        """Write the count into the header, sync to disk and close."""
        start = self.start
        self._write_header()
        assert self.start == start, "the header outgrew its place"
        sync(self.file)
        self.file.close()

    def _write_header(self) -> None:
        self.file.seek(0)
        self.file.write(self.header())
        self.start = self.file.tell()


class AudioShards:
    """A dataset's audio shards of about 2 GB, filled one after the other; `shard`, number `number`, was used last."""

    def __init__(self, folder: Path, number: int, count: int = 0) -> None:
        """Start with shard `number`, which holds `count` samples; nothing is written before the first audio."""
        self._folder, self.number = folder, number
        self.shard = self._make(count)
        self._opened: Shard | None = None

    def _make(self, count: int) -> Shard:
        return Shard(self._folder / f"audio-{self.number:05d}.npy", (), "int16", count)

    def next(self) -> Shard:
        """The shard for the next clip, a new one if the last is full; opening and closing it is left to the caller."""
        if self.shard.full:
            self.number += 1
            self.shard = self._make(0)
        return self.shard

    def append(self, audio: np.ndarray) -> dict[str, int]:
        """Write int16 (S,), opening and closing shards as needed; returns the columns that say where it lies."""
        shard = self.next()
        if shard is not self._opened:
            self.close()
            shard.open()
            self._opened = shard
        place = {"audio_shard": self.number, "audio_offset": shard.count}
        shard.append(audio)
        return place

    def close(self) -> None:
        """Finish the shard that `append` has open."""
        if self._opened is not None:
            shard, self._opened = self._opened, None
            shard.close()


class JpegShard:
    """Two files: JPEG images one after the other, and an `.npy` file, int64 (frames,): the byte where each ends."""

    def __init__(self, path: Path, count: int) -> None:
        """Name both files: `path` is the .npy file, the images' ends in .jpeg. They hold `count` frames already."""
        self.ends = Shard(path, (), "int64", count)
        self.end = 0

    def open(self) -> None:
        """Create both files, or truncate existing ones to `count` frames."""
        self.ends.open()
        if self.count:
            self.ends.file.seek(-8, os.SEEK_END)
            self.end = int(np.frombuffer(self.ends.file.read(8), np.int64)[0])
        images = self.ends.path.with_suffix(".jpeg")
        self.file = open_regular(images, "r+b" if images.exists() else "x+b")
        self.file.truncate(self.end)
        self.file.seek(0, os.SEEK_END)

    @property
    def count(self) -> int:
        """Frames so far."""
        return self.ends.count

    @property
    def full(self) -> bool:
        """Whether it holds 2 GB; known once it was open."""
        return self.end >= _SHARD_BYTES

    @property
    def files(self) -> Sequence[IO[bytes]]:
        """Images first: they must be on disk before the ends that refer to them."""
        return (self.file, self.ends.file)

    def append(self, images: np.ndarray, image_bytes: np.ndarray, crc: int = 0) -> int:
        """Write JPEG images at the end.

        Args:
            images: uint8 (bytes,), one after the other.
            image_bytes: int64 (T,), of each.
            crc: to continue from.

        Returns:
            The CRC-32 of each image's bytes and its end, in turn.
        """
        content, start = images.data, 0
        for stop in np.cumsum(image_bytes).tolist():
            end = np.int64(self.end + stop).tobytes()
            crc = zlib.crc32(end, zlib.crc32(content[start:stop], crc))
            start = stop
        self.file.write(content)
        self.ends.append(self.end + np.cumsum(image_bytes))
        self.end += start
        return crc

    def reserve(self, count: int, size: int) -> None:
        """Count images, of `size` bytes together, that are not written here."""
        self.ends.reserve(count, 8 * count)
        self.end += size

    def close(self) -> None:
        """Sync both to disk and close."""
        sync(self.file)
        self.file.close()
        self.ends.close()


ShardWriter = Shard | JpegShard


class FrameShards:
    """A dataset's frame shards of about 2 GB, of one frame size each, numbered in the order of their first frames."""

    def __init__(self, folder: Path, *, jpeg: bool) -> None:
        """None of them yet; they hold JPEG images or raw frames."""
        self._folder, self._jpeg = folder, jpeg
        self._latest: dict[tuple[int, ...], tuple[int, ShardWriter]] = {}  # by the shape of a frame
        self._numbers = 0

    def resume(self, number: int, shape: tuple[int, ...], count: int) -> ShardWriter:
        """A shard that holds `count` frames of `shape`; called in the order of the numbers."""
        path = self._folder / f"frames-{number:05d}.npy"
        shard = JpegShard(path, count) if self._jpeg else Shard(path, shape, "uint8", count)
        self._latest[shape] = (number, shard)
        self._numbers = number + 1
        return shard

    def next(self, shape: tuple[int, ...]) -> tuple[int, ShardWriter]:
        """The shard for a clip with frames of `shape` and its number; opening and closing it is left to the caller."""
        latest = self._latest.get(shape)
        if latest is None or latest[1].full:
            number = self._numbers
            return number, self.resume(number, shape, 0)
        return latest


@dataclass(frozen=True)
class ShardRecovery:
    """The rest of a `Shard` after an interruption; the file may be absent."""

    path: Path
    shape: tuple[int, ...]  # of one item
    dtype: str

    @property
    def _start(self) -> int:
        return len(_header(0, self.shape, self.dtype))

    def count(self) -> int:
        """Items whose bytes are all there, whatever their values."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return max(0, size - self._start) // _item_bytes(self.shape, self.dtype)

    def crc(self, first: int, count: int, crc: int) -> int:
        """What `append` returned for `count` items from `first` on, if their bytes are still the same."""
        item_bytes = _item_bytes(self.shape, self.dtype)
        with regular_file(self.path).open("rb") as file:
            file.seek(self._start + first * item_bytes)
            left = count * item_bytes
            while block := file.read(min(left, _BLOCK_BYTES)):
                crc = zlib.crc32(block, crc)
                left -= len(block)
        return crc

    def read(self) -> np.ndarray:
        """The whole items, of `dtype` (count, *shape)."""
        count = self.count()
        if not count:  # the file may be absent
            return np.zeros((0, *self.shape), self.dtype)
        size = int(np.prod(self.shape, dtype=np.int64))
        return np.fromfile(self.path, self.dtype, count * size, offset=self._start).reshape(count, *self.shape)


@dataclass(frozen=True)
class JpegShardRecovery:
    """The rest of a `JpegShard` after an interruption; either file may be absent."""

    path: Path  # of the .npy file

    def count(self) -> int:
        """Frames before the first one whose image is truncated or whose end is impossible."""
        ends, images = self._ends(), self.path.with_suffix(".jpeg")
        size = images.stat().st_size if images.exists() else 0
        complete = (np.diff(ends, prepend=0) > 0) & (ends <= size)
        return len(complete) if complete.all() else int(complete.argmin())

    def crc(self, first: int, count: int, crc: int) -> int:
        """What `append` returned for `count` frames from `first` on, if their bytes are still the same."""
        ends = self._ends()
        with regular_file(self.path.with_suffix(".jpeg")).open("rb") as file:
            start = int(ends[first - 1]) if first else 0
            file.seek(start)
            for end in ends[first : first + count]:
                crc = zlib.crc32(end.tobytes(), zlib.crc32(file.read(int(end) - start), crc))
                start = int(end)
        return crc

    def _ends(self) -> np.ndarray:
        return ShardRecovery(self.path, (), "int64").read()


def _item_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _header(count: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """The header of an .npy file, of the same length for any count."""
    header = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


# What the arrays of a shard are: dtype, number of dimensions. "ends" are those of the frames in "jpeg".
_KINDS: dict[str, tuple[str, int]] = {"frame": ("u1", 4), "audio": ("<i2", 1), "ends": ("<i8", 1), "jpeg": ("u1", 1)}


def map_shard(file: Path, kind: str, least: int) -> np.ndarray:
    """A read-only map of a shard ("frame", "audio", "ends" or "jpeg").

    Raises:
        OSError: no such file, or no file.
        ValueError: it is not of this kind, or has fewer than `least` frames or samples.
    """
    regular_file(file)
    mapped = np.memmap(file, np.uint8, "r") if kind == "jpeg" else load_array(file, mapped=True)
    dtype, dimensions = _KINDS[kind]
    if mapped.dtype != np.dtype(dtype) or mapped.ndim != dimensions or (kind == "frame" and mapped.shape[3] != 3):
        raise ValueError(f"expected {np.dtype(dtype)} in {dimensions} dimensions, found {mapped.dtype} {mapped.shape}")
    if 0 in mapped.shape[1:] or (kind != "jpeg" and len(mapped) < least):
        raise ValueError(f"expected {least} frames or samples, which its clips point to, found {mapped.shape}")
    if kind == "ends" and (np.diff(mapped, prepend=0) <= 0).any():
        raise ValueError("expected images one after the other, found an end before its beginning")
    return mapped


class JpegFrames:
    """A clip's frames stored as JPEG: indexed like an array along its first axis, and decoded on access."""

    dtype = np.dtype(np.uint8)

    def __init__(self, images: np.ndarray, ends: np.ndarray, first: int, count: int) -> None:
        """Frames `first` to `first + count` of a shard of uint8 (bytes,) `images` with their int64 (frames,) `ends`."""
        self._images, self._ends, self._first, self._count = images, ends, first, count

    def __len__(self) -> int:
        return self._count

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3); all frames of a shard are of one size."""
        return (self._count, *self._decode([0]).shape[1:])

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) for a number, (n, H, W, 3) otherwise."""
        if isinstance(index, slice):
            return self._decode(range(*index.indices(self._count)))
        if isinstance(index, np.ndarray):
            each, back = np.unique(np.arange(self._count)[index], return_inverse=True)
            return self._decode(each.tolist())[back]
        return self._decode([range(self._count)[index]])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("JPEG frames cannot be an array without being decoded")
        return self[:] if dtype is None else self[:].astype(dtype)

    def _decode(self, frames: Sequence[int]) -> np.ndarray:
        if not len(frames):
            return np.zeros((0, *self.shape[1:]), np.uint8)
        decode = _decoder()
        images: list[np.ndarray] = []
        for frame in frames:
            number = self._first + frame
            start = int(self._ends[number - 1]) if number else 0
            try:
                image = decode(self._images[start : int(self._ends[number])].tobytes())
                if image.ndim != 3 or image.shape != (images[0] if images else image).shape:
                    raise ValueError(f"its shape is {image.shape}")
            except Exception as error:  # a damaged image may raise anything
                file = getattr(self._images, "filename", "JPEG frames")
                raise DatasetError(f"{file}: frame {number} cannot be decoded: {error}") from error
            images.append(image)
        return np.stack(images)


def _decoder() -> Callable[[bytes], np.ndarray]:
    """From one JPEG to uint8 (H, W, 3): simplejpeg, or Pillow where it is not installed; both give the same pixels.

    The size in the image's header is looked at first: some kilobytes may claim gigabytes.
    """
    try:
        from simplejpeg import decode_jpeg, decode_jpeg_header
    except ImportError:
        from PIL import Image

        def decode_by_pillow(content: bytes) -> np.ndarray:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                _check_size(*image.size)
                return np.array(image)

        return decode_by_pillow

    def decode(content: bytes) -> np.ndarray:
        _check_size(*decode_jpeg_header(content)[:2])
        return decode_jpeg(content)

    return decode


def _check_size(*sides: int) -> None:
    if math.prod(sides) > _LARGEST_IMAGE_PIXELS:
        raise ValueError(f"expected at most {_LARGEST_IMAGE_PIXELS} pixels, found {' x '.join(map(str, sides))}")
