"""The state of a preparation on the disk: growing shards, and a journal with a line for each finished clip.

A line is `{"row": ...}` of a clip that was read, with the CRC-32 of its bytes, or `{"skipped": ...}` of one that could
not be read. A third kind, `{"synced": n}`, is a mark: the n clips before it are on the disk. After a power cut a line
may be there whose clip's bytes are missing or zero, so the bytes of clips after the last mark are checked before a
preparation continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.annotations import Annotation
from avdistill.annotations.groups import video_of
from avdistill.config_io import encode, parse_json, read_json
from avdistill.dataset.schema import CLIP_SCHEMA, FORMAT_VERSION, DatasetDescription
from avdistill.dataset.shards import AudioShards, FrameShards, JpegShardRecovery, Shard, ShardRecovery, ShardWriter
from avdistill.errors import DatasetError
from avdistill.fsio import (
    error_message,
    file_checksum,
    open_regular,
    regular_file,
    replacing,
    sync,
    sync_folder,
    write_json,
)
from avdistill.media.spool import blocks
from avdistill.preparation.clip_reader import remove_spools
from avdistill.preparation.encoding import EncodedClip
from avdistill.preparation.records import Skip, content_checksum, write_positions, write_records

_SYNC_EVERY_CLIPS = 64
# There is a shard for each frame size, of which there may be more than a process may have open files.
_MOST_OPEN_SHARDS = 16
_JOURNAL, _SETTINGS = "journal.jsonl", "settings.json"

_Recovery = ShardRecovery | JpegShardRecovery


@dataclass
class Journal:
    """The state of a preparation in its staging folder."""

    folder: Path
    rows: list[dict[str, Any]]
    skipped: list[Skip]
    file: IO[str]
    jpeg: bool  # or raw frames
    sources: dict[str, tuple[int, int]] = field(default_factory=dict)  # path -> bytes and mtime_ns when it was read
    _frames: FrameShards = field(init=False)
    _audio: AudioShards = field(init=False)
    _open: list[ShardWriter] = field(default_factory=list)  # least recently used first

    def __post_init__(self) -> None:
        self._frames = FrameShards(self.folder, jpeg=self.jpeg)
        self._audio = AudioShards(self.folder, 0)

    @property
    def finished(self) -> int:
        """Number of clips that were read or skipped."""
        return len(self.rows) + len(self.skipped)

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> Journal:
        """Start a journal, or continue one.

        Entries count up to the first one that is broken or whose clip's bytes are incomplete; journal and shards are
        truncated to them.

        Raises:
            DatasetError: the folder belongs to a preparation with other settings.
        """
        settings_file = folder / _SETTINGS
        if settings_file.exists() and _read_settings(settings_file) != settings:
            raise DatasetError(
                f"{folder}: an interrupted preparation with another list or settings; remove it to start anew"
            )
        write_json(settings_file, settings)
        sync_folder(folder.parent)  # the folder may be new
        remove_spools(folder)  # of a run that was killed
        path = folder / _JOURNAL
        lines = _read_lines(path)
        jpeg = settings["config"]["jpeg_quality"] is not None
        journal = cls(folder, [], [], open_regular(path, "a", encoding="utf-8"), jpeg)
        try:
            journal.file.truncate(journal._replay(lines))
            journal._reopen_shards()
            if journal.finished:
                journal._sync()
        except OSError:
            journal.close()
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
            journal.close()
            raise DatasetError(f"{path}: not the journal of a preparation: {error!r:.80}; remove the folder") from error
        return journal

    def _replay(self, lines: list[tuple[dict[str, Any], int]]) -> int:
        """Restore the entries whose clips' bytes are complete; returns the byte at which the last one ends."""
        end_of_good, counts = 0, dict[_Recovery, int]()
        last_mark = max((number for number, (entry, _) in enumerate(lines) if "synced" in entry), default=-1)
        for number, (entry, end) in enumerate(lines):
            if "row" in entry:
                # The length of every clip is checked, the bytes only after the last mark: reading a whole dataset each
                # time would take too long.
                if not self._is_complete(entry["row"], counts, number > last_mark):
                    break
                self.rows.append(entry["row"])
            elif "skipped" in entry:
                self.skipped.append(Skip(**entry["skipped"]))
            end_of_good = end
        self.sources = {row["path"]: tuple(row["source"]) for row in self.rows}
        return end_of_good

    def _is_complete(self, row: dict[str, Any], counts: dict[_Recovery, int], with_bytes: bool) -> bool:
        parts: list[tuple[_Recovery, int, int]] = []
        if row["has_video"]:
            path = self._name("frames", row["frame_shard"])
            raw = ShardRecovery(path, tuple(row["frame_shape"]), "uint8")
            frames = JpegShardRecovery(path) if self.jpeg else raw
            parts.append((frames, row["frame_offset"], row["frame_count"]))
        if row["has_audio"]:
            path = self._name("audio", row["audio_shard"])
            parts.append((ShardRecovery(path, (), "int16"), row["audio_offset"], row["audio_count"]))
        crc = 0
        for recovery, first, count in parts:
            if recovery not in counts:
                counts[recovery] = recovery.count()
            if first + count > counts[recovery]:
                return False
            if with_bytes and count:
                crc = recovery.crc(first, count, crc)
        return not with_bytes or crc == row["crc"]

    def _reopen_shards(self) -> None:
        ends: dict[tuple[str, int], int] = {}
        shapes: dict[int, tuple[int, ...]] = {}
        for row in self.rows:
            if row["has_video"]:
                ends["frames", row["frame_shard"]] = row["frame_offset"] + row["frame_count"]
                shapes[row["frame_shard"]] = tuple(row["frame_shape"])
            if row["has_audio"]:
                ends["audio", row["audio_shard"]] = row["audio_offset"] + row["audio_count"]
        for (kind, number), count in sorted(ends.items()):
            shard: ShardWriter
            if kind == "frames":
                shard = self._frames.resume(number, shapes[number], count)
            else:
                self._audio = AudioShards(self.folder, number, count)
                shard = self._audio.shard
            self._use(shard)  # truncates it to `count`
        known = {self._name(kind, number) for kind, number in ends}
        for stray in [*self.folder.glob("frames-*"), *self.folder.glob("audio-*")]:
            if stray.with_suffix(".npy") not in known:
                stray.unlink()

    def add(self, annotation: Annotation, clip: EncodedClip, source: tuple[int, int]) -> None:
        """Write a clip's frames and audio, then its line.

        Raises:
            DatasetError: an earlier clip was read from another state (bytes and mtime_ns) of the file than `source`.
        """
        if self.sources.setdefault(annotation.path, source) != source:
            where = annotation.path
            raise DatasetError(f"{where}: changed while its clips were read; remove {self.folder} to start anew")
        row: dict[str, Any] = {
            "id": annotation.clip_id,
            "path": annotation.path,
            "group": annotation.group or video_of(annotation.path),
            "labels": list(annotation.labels),
            "split": annotation.split,
            "start_seconds": annotation.start_seconds,
            "end_seconds": annotation.end_seconds,
            "has_video": clip.frames is not None,
            "has_audio": clip.audio is not None,
            "silent": clip.silent,
            "notes": list(clip.notes),
            "extra": [list(pair) for pair in annotation.extra],
            "source": list(source),
        }
        crc = 0
        for kind in ("frame", "audio"):
            row |= {f"{kind}_shard": -1, f"{kind}_offset": 0, f"{kind}_count": 0}
        if clip.frames is not None:
            number, shard = self._frames.next(clip.frame_shape)
            self._use(shard)
            row |= {"frame_shard": number, "frame_offset": shard.count}
            crc = _append_frames(shard, clip)
            row |= {"frame_count": shard.count - row["frame_offset"], "frame_shape": list(clip.frame_shape)}
        if clip.audio is not None:
            audio = self._audio.next()
            self._use(audio)
            row |= {"audio_shard": self._audio.number, "audio_offset": audio.count}
            for samples in blocks(clip.audio):
                crc = audio.append(samples, crc)
            row["audio_count"] = audio.count - row["audio_offset"]
        row["crc"] = crc
        self.rows.append(row)
        self._write({"row": row})

    def skip(self, annotation: Annotation, error: Exception, source: tuple[int, int]) -> None:
        """Record a clip that could not be read, and the state of its file before the attempt (or `NO_FILE`)."""
        self.skipped.append(Skip(annotation.clip_id, annotation.path, error_message(error), *source))
        self._write({"skipped": asdict(self.skipped[-1])})

    def _write(self, entry: dict[str, Any]) -> None:
        # After a kill the system still has what was flushed: the bytes must be flushed before the line.
        for file in self._open_files():
            file.flush()
        self._write_line(entry)
        if self.finished % _SYNC_EVERY_CLIPS == 0:
            self._sync()

    def _sync(self) -> None:
        """Sync all clips so far to the disk, then write a mark, so that a mark never survives without them."""
        for file in self._open_files():
            sync(file)
        sync(self.file)
        sync_folder(self.folder)
        self._write_line({"synced": self.finished})

    def _write_line(self, entry: dict[str, Any]) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()

    def _open_files(self) -> list[IO[bytes]]:
        return [file for shard in self._open for file in shard.files]

    def _use(self, shard: ShardWriter) -> None:
        """Open a shard; if too many are open, the least recently used one is synced and closed."""
        if shard in self._open:
            self._open.remove(shard)
        else:
            if len(self._open) == _MOST_OPEN_SHARDS:
                self._open[0].close()
                del self._open[0]
            shard.open()
        self._open.append(shard)

    def _name(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.npy"

    def close(self) -> None:
        """Close every file; what was written remains for the next run."""
        files: list[IO[Any]] = [self.file, *self._open_files()]
        for file in files:
            with suppress(OSError):  # on a full disk buffered bytes are lost; no line refers to them
                file.close()

    def finish(self, settings: dict[str, Any], positions: Sequence[int] | None = None) -> None:
        """Write the clip table, the records and `dataset.json`; the journal stays until the dataset has its name.

        Args:
            settings: of the preparation.
            positions: of a part, where in the whole list its clips are, then the skipped ones.
        """
        self.file.close()
        for shard in self._open:
            shard.close()
        rows = [{name: row[name] for name in CLIP_SCHEMA.names} for row in self.rows]
        for row in rows:
            row["extra"] = [tuple(pair) for pair in row["extra"]]  # as Arrow's map type requires
        with replacing(self.folder / "clips.parquet", "xb") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), file)
        write_records(self.folder, self.skipped, self.sources)
        if positions is not None:
            write_positions(self.folder, positions)
        kept = sorted(f for f in self.folder.iterdir() if f.suffix in (".npy", ".jpeg", ".parquet", ".csv"))
        files = {f.name: file_checksum(f) for f in kept}
        description = DatasetDescription(
            version=FORMAT_VERSION,
            frame_encoding="jpeg" if self.jpeg else "raw",
            fps=settings["config"]["fps"],
            sample_rate_hz=settings["config"]["sample_rate_hz"],
            classes=tuple(sorted({label for row in self.rows for label in row["labels"]})),
            clips=len(self.rows),
            skipped=len(self.skipped),
            checksum=content_checksum(files),
            files=files,
            settings=settings,
        )
        write_json(self.folder / "dataset.json", encode(description))


def _read_settings(file: Path) -> object:
    """The settings that an interrupted preparation was started with; None where they cannot be read."""
    try:
        return read_json(file)
    except ValueError:
        return None


def remove_journal(dataset: Path) -> None:
    """Remove the journal from a finished dataset, which needs it until it has its name."""
    for name in (_JOURNAL, _SETTINGS):
        (dataset / name).unlink(missing_ok=True)


def _read_lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """The entries of a journal up to the first broken line, each with the byte at which its line ends."""
    lines, end = [], 0
    for line in regular_file(path).read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            entry = parse_json(line.decode())
        except ValueError:  # cut short by a kill, or zeros after a power cut
            break
        if not line.endswith(b"\n"):
            break
        end += len(line)
        lines.append((entry, end))
    return lines


def _append_frames(shard: ShardWriter, clip: EncodedClip) -> int:
    """Write the frames of a clip; returns the CRC-32 of their bytes."""
    assert clip.frames is not None
    crc = 0
    if isinstance(shard, Shard):
        for block in blocks(clip.frames):
            crc = shard.append(block, crc)
        return crc
    assert clip.image_bytes is not None
    start = 0
    for sizes in blocks(clip.image_bytes):
        stop = start + int(sizes.sum())
        crc = shard.append(clip.frames[start:stop], sizes, crc)
        start = stop
    return crc
