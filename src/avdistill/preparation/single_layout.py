"""The shards that one preparation of a list would write, computed from datasets of its parts without writing them.

Clips are placed by the same rule (`FrameShards`, `AudioShards`), so that files and checksum are those of a single
preparation: SHA-256 is taken over the bytes of the parts in the order in which it would have written them.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.shards import AudioShards, FrameShards, JpegShard, Shard, map_shard
from avdistill.errors import DatasetError
from avdistill.fsio import error_message, regular_file
from avdistill.progress import OnProgress, Progress

_BLOCK_BYTES = 2**22
# A map costs an open file.
_MOST_MAPPED = 64


@dataclass
class _Span:
    """Bytes of a part's shard; `shift` is added to each end of an image in them."""

    path: Path
    start: int
    stop: int
    shift: int = 0


@dataclass
class _File:
    """A shard that is not written: what precedes its items, and where these are."""

    shard: Shard | None  # an .npy file, which has a header; None: images one after the other
    spans: list[_Span] = field(default_factory=list)

    def add(self, span: _Span) -> None:
        """Continue with a span, which may continue the last."""
        last = self.spans[-1] if self.spans else None
        if last is not None and (last.path, last.stop, last.shift) == (span.path, span.start, span.shift):
            last.stop = span.stop
        else:
            self.spans.append(span)

    def digest(self) -> str:
        """SHA-256. Raises DatasetError where a part's shard is too short or cannot be read."""
        sha = hashlib.sha256(self.shard.header() if self.shard else b"")
        for span in self.spans:
            for block in _blocks(span):
                sha.update((np.frombuffer(block, np.int64) + span.shift).tobytes() if span.shift else block)
        return sha.hexdigest()


class SingleLayout:
    """Where each clip would lie after one preparation; filled in the order of the list."""

    def __init__(self, *, jpeg: bool) -> None:
        """Without a clip yet; frames are JPEG images or raw."""
        self._frames, self._audio = FrameShards(Path(), jpeg=jpeg), AudioShards(Path(), 0)
        self._files: dict[str, _File] = {}
        self._shapes: dict[Path, tuple[int, ...]] = {}  # of the frames in a part's shard
        self._mapped = lru_cache(_MOST_MAPPED)(_map)

    def add(self, dataset: ClipDataset, clip: int) -> tuple[int, int, int, int]:
        """Place a clip of a part's dataset.

        Returns:
            `frame_shard`, `frame_offset`, `audio_shard`, `audio_offset` after one preparation.

        Raises:
            DatasetError: a shard is missing, damaged or too short.
        """
        c, places = dataset.columns, [-1, 0, -1, 0]
        if c["has_video"][clip]:
            path, first, count = _place(dataset, "frame", clip)
            if path not in self._shapes:
                self._shapes[path] = dataset.frames(clip).shape[1:]
            places[:2] = self._add_frames(path, first, count)
        if c["has_audio"][clip]:
            path, first, count = _place(dataset, "audio", clip)
            shard = self._audio.next()
            places[2:] = self._audio.number, shard.count
            span = self._items(path, "audio", first, count)
            self._file(f"audio-{self._audio.number:05d}.npy", shard).add(span)
            shard.reserve(count, span.stop - span.start)
        return places[0], places[1], places[2], places[3]

    def _add_frames(self, path: Path, first: int, count: int) -> tuple[int, int]:
        """Place frames of a part's shard; returns the shard and the offset."""
        number, shard = self._frames.next(self._shapes[path])
        name, offset = f"frames-{number:05d}", shard.count
        if isinstance(shard, JpegShard):
            ends = self._items(path, "ends", first, count)
            mapped = self._mapped(path, "ends")
            start, stop = int(mapped[first - 1]) if first else 0, int(mapped[first + count - 1])
            ends.shift = shard.end - start
            self._file(f"{name}.npy", shard.ends).add(ends)
            span = _Span(path.with_suffix(".jpeg"), start, stop)
            self._file(f"{name}.jpeg", None).add(span)
        else:
            span = self._items(path, "frame", first, count)
            self._file(f"{name}.npy", shard).add(span)
        shard.reserve(count, span.stop - span.start)
        return number, offset

    def _file(self, name: str, shard: Shard | None) -> _File:
        return self._files.setdefault(name, _File(shard))

    def _items(self, path: Path, kind: str, first: int, count: int) -> _Span:
        """The bytes of items of an .npy file."""
        mapped = self._mapped(path, kind)
        if len(mapped) < first + count:
            raise DatasetError(f"{path}: expected {first + count} items, found {len(mapped)}; see `avdistill info`")
        assert isinstance(mapped, np.memmap)
        item_bytes = mapped[:1].nbytes
        return _Span(path, mapped.offset + first * item_bytes, mapped.offset + (first + count) * item_bytes)

    def digests(self, on_progress: OnProgress | None = None) -> dict[str, str]:
        """SHA-256 of each shard, by name; several are read at a time.

        Raises:
            DatasetError: a shard of a part is too short or cannot be read.
        """
        found = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, digest in zip(self._files, pool.map(_File.digest, self._files.values()), strict=True):
                found[name] = digest
                if on_progress is not None:
                    on_progress(Progress(len(found), len(self._files)))
        return found


def _place(dataset: ClipDataset, kind: str, clip: int) -> tuple[Path, int, int]:
    """The .npy file with a clip's frames or audio, and the first and the number of its items there."""
    shard, first, count = (int(dataset.columns[f"{kind}_{part}"][clip]) for part in ("shard", "offset", "count"))
    return dataset.folder / f"{'frames' if kind == 'frame' else kind}-{shard:05d}.npy", first, count


def _map(path: Path, kind: str) -> np.ndarray:
    try:
        return map_shard(path, kind, 0)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: damaged or missing: {error_message(error)}; see `avdistill info`") from error


def _blocks(span: _Span) -> Iterator[bytes]:
    left = span.stop - span.start
    try:
        with regular_file(span.path).open("rb") as file:
            file.seek(span.start)
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                left -= len(block)
                yield block
    except OSError as error:
        raise DatasetError(f"{span.path}: cannot be read: {error_message(error)}") from error
    if left:
        raise DatasetError(f"{span.path}: expected {left} bytes more; see `avdistill info`")
