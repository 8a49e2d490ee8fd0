"""The dataset: clips of uint8 frames and int16 audio on disk, readable without this library.

Layout of formats 1 and 2 (`docs/formats/dataset.md`):

    dataset.json              version, rates, sizes, classes, teachers, SHA-256 of every file
    clips.parquet           a row per clip: id, labels, split, times, where its frames and audio lie
    frames-00000.npy        uint8 (frames, height, width, 3), memory-mapped; a shard per video size and per 2 GB.
                            Format 2: frames-00000.jpeg and where each video ends (`shards.py`)
    audio-00000.npy         int16 (samples,) mono
    teacher-<name>.npy      float32 (clips, D), row i belongs to row i of clips.parquet; teacher-<name>-logits.npy too,
                            teacher-<name>-tokens.npy (clips, K, D) where asked for
    skipped.csv             files that could not be read, and why
    sources.csv             size and date of the files that were read
    lock                    empty; held by whoever writes

A dataset is built under another name and renamed when it is whole (`preparation.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.dataset.shards import JpegFrames
from avdistill.errors import DatasetError
from avdistill.fsio import (
    as_json,
    error_message,
    file_checksum,
    open_lock,
    sync_folder,
    write_array,
    write_json,
    write_text,
)

# Older readers refuse the second by its number.
RAW_VERSION, JPEG_VERSION = 1, 2
# A map costs an open file, of which a process may have 256 on some systems; to map one anew takes no time to speak of.
_MOST_MAPPED = 100
# Audio whose every sample lies below -80 dBFS says nothing: such a clip counts as one without audio for a teacher.
SILENCE_PEAK = 10 ** (-80 / 20)

CLIP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("has_video", pa.bool_()),
        ("frame_shard", pa.int32()),
        ("frame_offset", pa.int64()),
        ("frame_count", pa.int64()),
        ("has_audio", pa.bool_()),
        ("silent", pa.bool_()),
        ("audio_shard", pa.int32()),
        ("audio_offset", pa.int64()),
        ("audio_count", pa.int64()),
        ("notes", pa.list_(pa.string())),
        ("extra", pa.map_(pa.string(), pa.string())),
    ]
)


@dataclass(frozen=True)
class TeacherEntry:
    """What `dataset.json` says of one teacher's features.

    Attributes:
        name: under which methods ask for it.
        modality: "audio" or "video".
        width: D of the embedding.
        classes: names of the logits' columns, empty where there are no logits.
        source: what made it (a run folder's student and its checksum, a model's name).
        clips: how many clips have an embedding.
        num_tokens: K of its maps; 0 where there are none.
        fitted_head: whether the logits are those of a head fitted on this dataset's labels.
        head_split: whose labels those were; several splits are joined by "+".
    """

    name: str
    modality: str
    width: int
    classes: tuple[str, ...]
    source: str
    clips: int
    num_tokens: int = 0
    fitted_head: bool = False
    head_split: str = "train"


class ClipDataset:
    """A prepared dataset, opened for reading; only `add_teacher` writes."""

    def __init__(self, folder: str | Path) -> None:
        """Open `folder`. Reads the description and the clip table; shards are mapped when first needed.

        Raises:
            DatasetError: no dataset there, one still being prepared, or one of a later format.
        """
        self.folder = Path(folder)
        description = self.folder / "dataset.json"
        if not description.is_file():
            partial = staging_dir(self.folder).is_dir()
            hint = "; its preparation was interrupted: run the same `avdistill prepare` again" if partial else ""
            raise DatasetError(f"{self.folder}: no dataset here (dataset.json is missing{hint})")
        self._description = self._read_description()
        try:
            self.table: pa.Table = pq.read_table(self.folder / "clips.parquet")
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.folder}: clips.parquet is missing or damaged: {error_message(error)}") from error

    def _read_description(self) -> dict[str, Any]:
        try:
            description: dict[str, Any] = json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError(f"{self.folder}: dataset.json is damaged: {error_message(error)}") from error
        version = description.get("version")
        if version not in (RAW_VERSION, JPEG_VERSION):
            raise DatasetError(
                f"{self.folder}: dataset format {version!r}; "
                f"this avdistill reads formats {RAW_VERSION} and {JPEG_VERSION}"
            )
        return description

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def fps(self) -> float | None:
        """Frames a second the clips were taken at; None where every frame was taken."""
        return self._description["fps"]

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the stored audio."""
        return int(self._description["sample_rate_hz"])

    @property
    def video_reading(self) -> dict[str, Any]:
        """`short_side`, `size` and `region` that the images were prepared with."""
        config = self._description["settings"]["config"]
        size, region = config["size"], config["region"]
        return {
            "short_side": config["short_side"],
            "size": None if size is None else tuple(size),
            "region": None if region is None else tuple(region),
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted names of all labels that occur."""
        return tuple(self._description["classes"])

    @property
    def checksum(self) -> str:
        """SHA-256 over the clips' content; teachers added later do not change it."""
        return str(self._description["checksum"])

    @property
    def teachers(self) -> dict[str, TeacherEntry]:
        """Teachers whose features are in the dataset, by name."""
        entries = self._description["teachers"]
        return {
            name: TeacherEntry(**{**e, "name": name, "classes": tuple(e["classes"])}) for name, e in entries.items()
        }

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The numeric columns and `id`, `path`, `split` as arrays."""
        plain = [f.name for f in CLIP_SCHEMA if f.name not in ("labels", "notes", "extra")]
        return {name: self.table[name].to_numpy(zero_copy_only=False) for name in plain}

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """Label names per clip; an empty tuple is an unlabeled clip."""
        return [tuple(row) for row in self.table["labels"].to_pylist()]

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels: every class is then a yes or no of its own, in every split."""
        return any(len(row) > 1 for row in self.labels)

    def frames(self, clip: int) -> np.ndarray | JpegFrames:
        """uint8 (T, H, W, 3) view of a clip's frames on disk, or what decodes those that are asked for.

        Raises DatasetError where the clip has no video.
        """
        c = self.columns
        if not c["has_video"][clip]:
            raise DatasetError(f"{self.folder}: clip {c['id'][clip]} has no video")
        number, offset, count = (int(c[f"frame_{name}"][clip]) for name in ("shard", "offset", "count"))
        shard = self._shard("frames", number)
        if self._description["version"] == JPEG_VERSION:
            return JpegFrames(self._images(number), shard, offset, count)
        return shard[offset : offset + count]

    def audio(self, clip: int) -> np.ndarray:
        """int16 (S,) view of a clip's audio on disk. Raises DatasetError where the clip has no audio."""
        c = self.columns
        if not c["has_audio"][clip]:
            raise DatasetError(f"{self.folder}: clip {c['id'][clip]} has no audio")
        offset = c["audio_offset"][clip]
        return self._shard("audio", int(c["audio_shard"][clip]))[offset : offset + c["audio_count"][clip]]

    def teacher_features(self, name: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """(embedding (N, D), logits (N, C) or None, has_teacher bool (N,)) of a teacher, row i for clip i."""
        entry = self._teacher(name)
        embedding = np.load(self.folder / f"teacher-{name}.npy")
        logits = np.load(self.folder / f"teacher-{name}-logits.npy") if entry.classes else None
        # NaN marks "no embedding" on disk, where a mask would be a third file; it never leaves this function.
        present = ~np.isnan(embedding[:, 0])
        embedding[~present] = 0
        if logits is not None:
            logits[~present] = 0
        return embedding, logits, present

    def teacher_tokens(self, name: str) -> np.ndarray | None:
        """float32 (N, K, D) maps of a teacher, memory-mapped; None where it has put none into the dataset.

        Rows of clips without a teacher are 0: `teacher_features` tells which.
        """
        there = self._teacher(name).num_tokens
        return np.load(self.folder / f"teacher-{name}-tokens.npy", mmap_mode="r") if there else None

    def teacher_record(self, name: str, *, tokens: bool = False) -> dict[str, Any]:
        """A teacher's features, JSON-ready: `name`, `source`, SHA-256 of its `files` (of maps only if asked)."""
        source, known = self._teacher(name).source, self._description["files"]
        names = [f"teacher-{name}{ending}.npy" for ending in ("", "-logits", "-tokens")][: 3 if tokens else 2]
        return {"name": name, "source": source, "files": {file: known[file] for file in names if file in known}}

    def _teacher(self, name: str) -> TeacherEntry:
        teachers = self.teachers
        if name not in teachers:
            known = ", ".join(sorted(teachers)) or "none"
            raise DatasetError(
                f"{self.folder}: no teacher {name!r} in this dataset (there: {known}); add it with `avdistill embed`"
            )
        return teachers[name]

    def add_teacher(
        self,
        name: str,
        *,
        modality: str,
        source: str,
        embedding: np.ndarray,
        logits: np.ndarray | None,
        classes: tuple[str, ...],
        tokens: np.ndarray | None = None,
        fitted_head: bool = False,
        head_split: str = "train",
    ) -> None:
        """Write a teacher's features, float32 (N, D) with NaN rows where a clip has none, and enter them in
        dataset.json.

        `tokens` are its maps, float32 (N, K, D), with zeros in such rows. Features of the same name are replaced: a
        kill in between leaves the old ones, the new ones or none, never an embedding of one and logits of the other.
        Other processes may add theirs at the same time.

        Raises:
            DatasetError: the name is not usable as part of a file name, the number of rows differs from the clips, or
                the folder cannot be written; what was there then stays.
        """
        if not name or not all(ch.isalnum() or ch in "_." for ch in name) or name.startswith("."):
            raise DatasetError(f"teacher name {name!r}: use letters, digits, '_' and '.'")
        for rows in (embedding, tokens):
            if rows is not None and len(rows) != len(self):
                raise DatasetError(f"teacher {name!r}: {len(rows)} rows for {len(self)} clips")
        clips = int((~np.isnan(embedding[:, 0])).sum())
        D, K = int(embedding.shape[1]), 0 if tokens is None else int(tokens.shape[1])
        columns = () if logits is None else classes
        entry = TeacherEntry(name, modality, D, columns, source, clips, K, fitted_head, head_split)
        arrays = {
            f"teacher-{name}.npy": embedding,
            f"teacher-{name}-logits.npy": logits,
            f"teacher-{name}-tokens.npy": tokens,
        }
        try:
            with open_lock(self.folder, wait=True):
                self._replace_teacher(entry, arrays)
        except OSError as error:
            raise DatasetError(f"{self.folder}: teacher {name!r} cannot be written: {error_message(error)}") from error

    def _replace_teacher(self, entry: TeacherEntry, arrays: dict[str, np.ndarray | None]) -> None:
        description = self._read_description()  # another process may have added a teacher since we opened the dataset
        files = {name: digest for name, digest in description["files"].items() if name not in arrays}
        teachers = {name: other for name, other in description["teachers"].items() if name != entry.name}
        without = {**description, "files": dict(files), "teachers": teachers}
        kept = {name: array for name, array in arrays.items() if array is not None}
        finished = self.folder / "dataset.json.added"
        try:
            # First all that takes room on the disk, under other names; then what cannot be taken back.
            for name, array in kept.items():
                write_array(self.folder / f"{name}.tmp", np.ascontiguousarray(array, np.float32))
                files[name] = file_checksum(self.folder / f"{name}.tmp")
            fields = {key: value for key, value in asdict(entry).items() if key != "name"}
            added = {**description, "files": files, "teachers": {**teachers, entry.name: fields}}
            write_text(finished, as_json(added))
            if entry.name in description["teachers"]:
                write_json(self.folder / "dataset.json", without)
            for name in arrays:
                if name in kept:
                    (self.folder / f"{name}.tmp").replace(self.folder / name)
                else:
                    (self.folder / name).unlink(missing_ok=True)
            sync_folder(self.folder)  # the names of the arrays before the one that vouches for them
            finished.replace(self.folder / "dataset.json")
            self._description = added
            sync_folder(self.folder)
        finally:
            for file in (finished, *(self.folder / f"{name}.tmp" for name in kept)):
                file.unlink(missing_ok=True)

    def verify(self) -> list[str]:
        """Recompute every checksum; the returned lines name files that are missing or differ (empty: all is well)."""
        faults = []
        for name, expected in self._description["files"].items():
            file = self.folder / name
            if not file.is_file():
                faults.append(f"{name}: missing")
            elif file_checksum(file) != expected:
                faults.append(f"{name}: content differs from its checksum")
        return faults

    def describe(self) -> dict[str, Any]:
        """Counts and settings of the dataset as one JSON-ready object."""
        c = self.columns
        splits = Counter(c["split"].tolist())
        seen = np.flatnonzero(c["has_video"])
        firsts = seen[np.unique(c["frame_shard"][seen], return_index=True)[1]]  # a shard has one size
        sizes = {self.frames(int(clip)).shape[1:3] for clip in firsts}
        return {
            "folder": str(self.folder),
            "version": self._description["version"],
            "checksum": self.checksum,
            "clips": len(self),
            "videos": len(set(c["path"].tolist())),
            "splits": dict(sorted(splits.items())),
            "classes": len(self.classes),
            "labeled": sum(bool(row) for row in self.labels),
            "multi_label_clips": sum(len(row) > 1 for row in self.labels),
            "with_video": int(c["has_video"].sum()),
            "with_audio": int(c["has_audio"].sum()),
            "silent": int(c["silent"].sum()),
            "with_notes": sum(bool(n) for n in self.table["notes"].to_pylist()),
            "frames": int(c["frame_count"].sum()),
            "frame_sizes": sorted(f"{w}x{h}" for h, w in sizes),
            "fps": self.fps,
            "audio_seconds": round(float(c["audio_count"].sum()) / self.sample_rate_hz, 3),
            "sample_rate_hz": self.sample_rate_hz,
            "skipped": self._description["skipped"],
            "teachers": {name: asdict(entry) for name, entry in self.teachers.items()},
            "bytes": sum(f.stat().st_size for f in self.folder.iterdir()),
        }

    def _shard(self, kind: str, number: int) -> np.ndarray:
        return self._mapped(f"{kind}-{number:05d}.npy", lambda file: np.load(file, mmap_mode="r"))

    def _images(self, number: int) -> np.ndarray:
        return self._mapped(f"frames-{number:05d}.jpeg", lambda file: np.memmap(file, np.uint8, "r"))

    def _mapped(self, name: str, open_map: Callable[[Path], np.ndarray]) -> np.ndarray:
        shards = self.__dict__.setdefault("_shards", {})
        found = shards.get(name)
        if found is None:
            file = self.folder / name
            try:
                found = open_map(file)
            except (OSError, ValueError, EOFError) as error:
                raise DatasetError(
                    f"{file}: damaged or missing: {error_message(error)}; see `avdistill info`"
                ) from error
            with suppress(RuntimeError):  # another thread has just put in one of its own
                while len(shards) >= _MOST_MAPPED:
                    shards.pop(next(iter(shards)), None)
            shards[name] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes map the shards themselves: a memory map that is pickled would travel as a copy.
        return {key: value for key, value in self.__dict__.items() if key != "_shards"}


def staging_dir(dataset: Path) -> Path:
    """Where a dataset lives until it is whole."""
    dataset = dataset.resolve()  # "." has no name
    return dataset.with_name(dataset.name + ".partial")
