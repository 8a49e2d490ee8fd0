"""Videos and an annotation list -> a store. Parallel, resumable after a kill, the same bytes whatever the workers.

While it runs, everything lies in `<store>.partial/`: shards that grow, and a journal with a line per finished clip,
written after the clip's bytes. A resumed run cuts the shards back to what the journal vouches for and goes on. The
folder gets the store's name when it is whole.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.data.annotations import Annotation
from avdistill.data.media import Clip, EmptySegmentError, MediaError, read_clip
from avdistill.data.store import (
    CLIP_SCHEMA,
    FORMAT_VERSION,
    SILENCE_PEAK,
    Store,
    StoreError,
    file_checksum,
    partial_folder,
    write_json,
)

_SHARD_BYTES = 2 * 2**30
_SYNC_EVERY_CLIPS = 64


@dataclass(frozen=True)
class PrepareConfig:
    """How clips are read into a store.

    Attributes:
        fps: frames a second; None takes every frame.
        short_side: pixels of the picture's shorter side.
        size: (height, width) instead of `short_side`.
        region: (x, y, width, height) of the displayed picture, cut out before scaling.
        sample_rate_hz: of the stored mono sound.
    """

    fps: float | None = 4.0
    short_side: int | None = 128
    size: tuple[int, int] | None = None
    region: tuple[int, int, int, int] | None = None
    sample_rate_hz: int = 16000


def prepare(
    annotations: list[Annotation],
    videos: Path,
    out: Path,
    config: PrepareConfig,
    *,
    workers: int = 2,
    strict: bool = False,
    on_clip: Callable[[int, int], None] | None = None,
) -> Store:
    """Read every annotated clip into a new store at `out`, or finish one that was interrupted.

    Args:
        annotations: what to read; the order of the store's rows.
        videos: the folder the annotations' paths start from.
        out: the store's folder; returned as it is when it already holds exactly this.
        config: rates and sizes.
        workers: processes that decode.
        strict: raise on the first file that cannot be read instead of listing it in `skipped.csv`.
        on_clip: called with (finished, total) after each clip.

    Raises:
        StoreError: `out` holds something else, another process is preparing it, or no clip could be read.
        MediaError, FileNotFoundError: with `strict`, the first unreadable file.
    """
    settings = {"config": json.loads(json.dumps(asdict(config))), "annotations": _fingerprint(annotations)}
    if out.exists():
        return _existing(out, settings)
    partial = partial_folder(out)
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{out}: another process is preparing this store") from None
        journal = _Journal.open(partial, settings)
        tasks = [(a, str(videos / a.path)) for a in annotations]
        try:
            _fill(journal, tasks, config, workers, strict, on_clip)
            journal.finish(settings)
        finally:
            journal.close()
        (partial / "lock").unlink()
    partial.rename(out)
    return Store(out)


def _existing(out: Path, settings: dict[str, Any]) -> Store:
    store = Store(out)
    made_with = json.loads((out / "store.json").read_text(encoding="utf-8")).get("settings")
    if made_with != settings:
        raise StoreError(f"{out}: a store made from another list or other settings is here; remove it or name another")
    return store


def _fingerprint(annotations: list[Annotation]) -> str:
    lines = (json.dumps(asdict(a), sort_keys=True, ensure_ascii=False) for a in annotations)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fill(
    journal: _Journal,
    tasks: list[tuple[Annotation, str]],
    config: PrepareConfig,
    workers: int,
    strict: bool,
    on_clip: Callable[[int, int], None] | None,
) -> None:
    remaining = tasks[journal.finished :]
    for done, ((annotation, _), result) in enumerate(_decoded(remaining, config, workers), start=journal.finished + 1):
        if isinstance(result, Exception):
            if strict:
                raise result
            journal.skip(annotation, result)
        else:
            journal.add(annotation, result)
        if on_clip is not None:
            on_clip(done, len(tasks))


def _decoded(
    tasks: list[tuple[Annotation, str]], config: PrepareConfig, workers: int
) -> Iterator[tuple[tuple[Annotation, str], Clip | Exception]]:
    """Clips in the order of the tasks; few enough under way that memory stays bounded by the largest clips."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, _read(task, config)
        return
    # Spawned, not forked: the parent has threads (progress bar, torch), which a fork would freeze half-way.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        waiting: deque[tuple[tuple[Annotation, str], Future[Clip | Exception]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, pool.submit(_read, task, config)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(task: tuple[Annotation, str], config: PrepareConfig) -> Clip | Exception:
    annotation, file = task
    try:
        clip = read_clip(
            file,
            start_seconds=annotation.start_seconds,
            end_seconds=annotation.end_seconds,
            fps=config.fps,
            short_side=config.short_side,
            size=config.size,
            region=config.region,
            sample_rate=config.sample_rate_hz,
        )
    except (MediaError, OSError) as error:
        return error
    except MemoryError:
        return EmptySegmentError(f"{file}: too large for memory; give segments (start_seconds, end_seconds)")
    return clip


@dataclass
class _Shard:
    """An .npy file that grows; its header has room for the final count, which is written at the end."""

    path: Path
    shape: tuple[int, ...]  # of one item
    dtype: str
    file: IO[bytes]
    count: int = 0

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...], dtype: str, count: int) -> _Shard:
        file = path.open("r+b" if path.exists() else "w+b")
        shard = cls(path, shape, dtype, file, count)
        shard._write_header(0)
        file.truncate(shard.start + count * shard.item_bytes)
        file.seek(0, os.SEEK_END)
        return shard

    @property
    def item_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def append(self, array: np.ndarray) -> int:
        offset = self.count
        self.file.write(np.ascontiguousarray(array).data)
        self.count += len(array)
        return offset

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        start = self.start
        self._write_header(self.count)
        assert self.start == start, "the header outgrew its place"
        self.sync()
        self.file.close()

    def _write_header(self, count: int) -> None:
        self.file.seek(0)
        header = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.start = self.file.tell()


@dataclass
class _Journal:
    folder: Path
    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    file: IO[str]
    _frames: dict[tuple[int, ...], tuple[int, _Shard]] = field(default_factory=dict)
    _sound: tuple[int, _Shard] | None = None
    _shards: int = 0

    @property
    def finished(self) -> int:
        return len(self.rows) + len(self.skipped)

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> _Journal:
        """Start a journal, or take one up: entries up to the first broken line count, shards are cut to match."""
        described = folder / "settings.json"
        if described.exists() and json.loads(described.read_text(encoding="utf-8")) != settings:
            raise StoreError(
                f"{folder}: an interrupted preparation with another list or settings; remove it to start anew"
            )
        write_json(described, settings)
        path = folder / "journal.jsonl"
        entries: list[dict[str, Any]] = []
        good = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith(b"\n"):
                break
            entries.append(json.loads(line))
            good += len(line)
        file = path.open("a", encoding="utf-8")
        file.truncate(good)
        journal = cls(
            folder, [e["row"] for e in entries if "row" in e], [e["skipped"] for e in entries if "skipped" in e], file
        )
        journal._reopen_shards()
        return journal

    def _reopen_shards(self) -> None:
        ends: dict[tuple[str, int], int] = {}
        shapes: dict[int, tuple[int, ...]] = {}
        for row in self.rows:
            if row["has_frames"]:
                ends["frames", row["frame_shard"]] = row["frame_offset"] + row["frame_count"]
                shapes[row["frame_shard"]] = tuple(row["frame_shape"])
            if row["has_sound"]:
                ends["sound", row["sound_shard"]] = row["sound_offset"] + row["sound_count"]
        for (kind, number), count in sorted(ends.items()):
            if kind == "frames":
                shard = _Shard.open(self._name(kind, number), shapes[number], "uint8", count)
                self._retire(self._frames.get(shapes[number]))
                self._frames[shapes[number]] = (number, shard)
                self._shards = max(self._shards, number + 1)
            else:
                self._retire(self._sound)
                self._sound = (number, _Shard.open(self._name(kind, number), (), "int16", count))
        known = {self._name(kind, number) for kind, number in ends}
        for stray in [*self.folder.glob("frames-*.npy"), *self.folder.glob("sound-*.npy")]:
            if stray not in known:
                stray.unlink()

    def add(self, annotation: Annotation, clip: Clip) -> None:
        row: dict[str, Any] = {
            "id": annotation.clip_id,
            "path": annotation.path,
            "labels": list(annotation.labels),
            "split": annotation.split,
            "start_seconds": annotation.start_seconds,
            "end_seconds": annotation.end_seconds,
            "has_frames": clip.frames is not None,
            "has_sound": clip.waveform is not None,
            "silent": clip.waveform is not None and float(np.abs(clip.waveform).max(initial=0)) < SILENCE_PEAK,
            "notes": list(clip.notes),
            "extra": [list(pair) for pair in annotation.extra],
        }
        for kind in ("frame", "sound"):
            row |= {f"{kind}_shard": -1, f"{kind}_offset": 0, f"{kind}_count": 0}
        if clip.frames is not None:
            number, shard = self._frame_shard(clip.frames.shape[1:])
            row |= {"frame_shard": number, "frame_offset": shard.append(clip.frames), "frame_count": len(clip.frames)}
            row["frame_shape"] = list(clip.frames.shape[1:])
        if clip.waveform is not None:
            number, shard = self._sound_shard()
            samples = np.round(np.clip(clip.waveform, -1, 1) * 32767).astype("<i2")
            row |= {"sound_shard": number, "sound_offset": shard.append(samples), "sound_count": len(samples)}
        self.rows.append(row)
        self._write({"row": row})

    def skip(self, annotation: Annotation, error: Exception) -> None:
        self.skipped.append({"clip": annotation.clip_id, "file": annotation.path, "reason": str(error).splitlines()[0]})
        self._write({"skipped": self.skipped[-1]})

    def _write(self, entry: dict[str, Any]) -> None:
        # The bytes must be down before the line that vouches for them.
        for shard in self._open_shards():
            shard.file.flush()
        if self.finished % _SYNC_EVERY_CLIPS == 0:
            for shard in self._open_shards():
                shard.sync()
            os.fsync(self.file.fileno())
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()

    def _open_shards(self) -> list[_Shard]:
        return [shard for _, shard in self._frames.values()] + ([self._sound[1]] if self._sound else [])

    def _name(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.npy"

    def _frame_shard(self, shape: tuple[int, ...]) -> tuple[int, _Shard]:
        current = self._frames.get(shape)
        if current is None or current[1].count * current[1].item_bytes >= _SHARD_BYTES:
            self._retire(current)
            self._frames[shape] = (self._shards, _Shard.open(self._name("frames", self._shards), shape, "uint8", 0))
            self._shards += 1
        return self._frames[shape]

    def _sound_shard(self) -> tuple[int, _Shard]:
        if self._sound is None or self._sound[1].count * 2 >= _SHARD_BYTES:
            number = 0 if self._sound is None else self._sound[0] + 1
            self._retire(self._sound)
            self._sound = (number, _Shard.open(self._name("sound", number), (), "int16", 0))
        return self._sound

    @staticmethod
    def _retire(current: tuple[int, _Shard] | None) -> None:
        if current is not None:
            current[1].close()

    def close(self) -> None:
        """Let go of every file; what was written stays for the next run."""
        self.file.close()
        for shard in self._open_shards():
            shard.file.close()

    def finish(self, settings: dict[str, Any]) -> None:
        """Write the clip table, `skipped.csv` and the description; the journal's work is then done."""
        self.file.close()
        for shard in self._open_shards():
            shard.close()
        if not self.rows:
            first = self.skipped[0]["reason"] if self.skipped else "the list is empty"
            raise StoreError(f"no clip could be read; the first: {first}")
        rows = [{name: row[name] for name in CLIP_SCHEMA.names} for row in self.rows]
        for row in rows:
            row["extra"] = [tuple(pair) for pair in row["extra"]]  # what Arrow takes for a map
        table = pa.Table.from_pylist(rows, schema=CLIP_SCHEMA)
        pq.write_table(table, self.folder / "clips.parquet")
        with (self.folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["clip", "file", "reason"])
            writer.writeheader()
            writer.writerows(self.skipped)
        kept = sorted(f for f in self.folder.iterdir() if f.suffix in (".npy", ".parquet", ".csv"))
        files = {f.name: file_checksum(f) for f in kept}
        content = {name: digest for name, digest in files.items() if name != "skipped.csv"}
        description = {
            "version": FORMAT_VERSION,
            "fps": settings["config"]["fps"],
            "sample_rate_hz": settings["config"]["sample_rate_hz"],
            "classes": sorted({label for row in self.rows for label in row["labels"]}),
            "clips": len(self.rows),
            "skipped": len(self.skipped),
            "checksum": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
            "files": files,
            "teachers": {},
            "settings": settings,
        }
        write_json(self.folder / "store.json", description)
        for name in ("journal.jsonl", "settings.json"):
            (self.folder / name).unlink()
