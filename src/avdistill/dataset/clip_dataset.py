"""A dataset: clips of uint8 frames and int16 audio in a folder, readable without this library.

`docs/formats/dataset.md` describes its files. It is written under another name and renamed when it is whole
(`preparation/`).
"""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avdistill.config_io import decode
from avdistill.dataset.features import FeaturesDescription, read_descriptions, write_features
from avdistill.dataset.mapped_features import MappedFeatures, map_features
from avdistill.dataset.remote import dataset_contents
from avdistill.dataset.schema import TeacherEntry, read_clips, read_description, release_unused_memory
from avdistill.dataset.shards import JpegFrames, map_shard
from avdistill.dataset.stored_features import Provenance, StoredFeatures, TeacherFeatures
from avdistill.dataset.teacher_mean import joint_provenance, mean_of_teachers, teacher_names
from avdistill.errors import DatasetError
from avdistill.fsio import check_mapped, error_message, file_checksum
from avdistill.storage.copies import local_copy, upload
from avdistill.storage.url import Url, as_path

if TYPE_CHECKING:
    import pyarrow as pa

    from avdistill.inputs import View  # which imports PyTorch

# A map costs an open file, of which a process may have 256 on some systems; to map one anew takes no time to speak of.
_MOST_MAPPED = 100
# Of the clip table, read at a time.
_ROWS = 65_536
# Audio whose every sample lies below -80 dBFS is silent: such a clip counts as one without audio for a teacher.
SILENCE_PEAK = 10 ** (-80 / 20)


@dataclass(frozen=True)
class _VideoReading:
    short_side: int | None
    size: tuple[int, int] | None
    region: tuple[int, int, int, int] | None


class _Columns(dict[str, np.ndarray]):
    """Columns of a table of clips by name."""

    def __init__(self, table: "pa.Table") -> None:
        super().__init__()
        self._table = table

    def __missing__(self, name: str) -> np.ndarray:
        column = self._table[name]
        if column.type == "string":  # equal texts are one object
            column = column.combine_chunks().dictionary_encode()
            texts = column.dictionary.to_numpy(zero_copy_only=False)
            self[name] = texts[column.indices.to_numpy()]
            release_unused_memory()
        else:
            self[name] = column.to_numpy(zero_copy_only=False)
        return self[name]


class ClipDataset:
    """A prepared dataset, opened for reading; only `add_features` writes."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open `folder`. Reads `dataset.json` and the clip table; shards are mapped when first needed.

        A dataset at a URL is fetched into the cache folder first; `add_features` adds to it there and at the URL.

        Raises:
            DatasetError: no dataset there, a damaged one, one still being prepared, or one of another format.
            StorageError: none at the URL, or the storage does not answer.
        """
        place = as_path(folder)
        self.url = place if isinstance(place, Url) else None
        self.folder = local_copy(place, dataset_contents)
        self._description = read_description(self.folder)
        self.table: pa.Table = read_clips(self.folder, self._description.clips)
        self._features: dict[str, FeaturesDescription]
        self.reopen_features()

    def reopen_features(self) -> None:
        """Read again which features there are: others may have written some. Raises DatasetError for damaged ones."""
        description = self._description
        self._features = read_descriptions(self.folder, description.checksum, description.clips)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def place(self) -> str:
        """Its URL, or its folder."""
        return str(self.url or self.folder)

    @property
    def fps(self) -> float | None:
        """Frames a second the clips were taken at; None where every frame was taken."""
        return self._description.fps

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the stored audio."""
        return self._description.sample_rate_hz

    @property
    def video_reading(self) -> dict[str, Any]:
        """`short_side`, `size` and `region` that the frames were prepared with."""
        config = self._description.settings.get("config", {})
        found = {name: config.get(name) for name in ("short_side", "size", "region")}
        return vars(decode(_VideoReading, found, f"{self.folder}: dataset.json.settings.config")).copy()

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted names of all labels that occur."""
        return self._description.classes

    @property
    def checksum(self) -> str:
        """SHA-256 over the clips' content; features added later do not change it."""
        return self._description.checksum

    @property
    def teachers(self) -> dict[str, TeacherEntry]:
        """Teachers whose features are in the dataset, by name."""
        return {name: found.entry for name, found in self._features.items()}

    @cached_property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The numeric columns and `id`, `path`, `group`, `split` as arrays (N,), each made when it is asked for."""
        return _Columns(self.table)

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """Label names per clip; an empty tuple is an unlabeled clip."""
        column, known = self.table["labels"], dict[tuple[str, ...], tuple[str, ...]]()
        labels: list[tuple[str, ...]] = []
        for first in range(0, len(column), _ROWS):  # millions of rows: few of them as lists, and equal ones once
            rows = map(tuple, column.slice(first, _ROWS).to_pylist())
            labels.extend(known.setdefault(row, row) for row in rows)
        if unknown := set().union(*known) - set(self.classes):
            raise DatasetError(f"{self.folder}: label {min(unknown)!r:.80} is not among the classes of dataset.json")
        return labels

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels: every class is then predicted independently, in all splits."""
        return any(len(row) > 1 for row in self.labels)

    def frames(self, clip: int) -> np.ndarray | JpegFrames:
        """uint8 (T, H, W, 3) view of a clip's frames on disk, or `JpegFrames`, which decodes on access.

        Raises DatasetError where the clip has no video.
        """
        c = self.columns
        if not c["has_video"][clip]:
            raise DatasetError(f"{self.folder}: clip {c['id'][clip]} has no video")
        number, offset, count = (int(c[f"frame_{name}"][clip]) for name in ("shard", "offset", "count"))
        if self._description.frame_encoding == "jpeg":
            images = self._mapped(f"frames-{number:05d}.jpeg", "jpeg", number)
            return JpegFrames(images, self._mapped(f"frames-{number:05d}.npy", "ends", number), offset, count)
        return self._mapped(f"frames-{number:05d}.npy", "frame", number)[offset : offset + count]

    def audio(self, clip: int) -> np.ndarray:
        """int16 (S,) view of a clip's audio on disk. Raises DatasetError where the clip has no audio."""
        c = self.columns
        if not c["has_audio"][clip]:
            raise DatasetError(f"{self.folder}: clip {c['id'][clip]} has no audio")
        number, offset, count = (int(c[f"audio_{name}"][clip]) for name in ("shard", "offset", "count"))
        return self._mapped(f"audio-{number:05d}.npy", "audio", number)[offset : offset + count]

    def read(self, clip: int, view: "View") -> np.ndarray | JpegFrames:
        """The frames or the audio of a clip, whichever the view is of."""
        items: np.ndarray | JpegFrames = getattr(self, view.reader)(clip)
        return items

    def features(self, name: str, *, tokens: bool = True) -> StoredFeatures:
        """A teacher's features in memory, row i for clip i; of several, as in "yamnet+cnn14", their mean.

        `teacher_mean.py` says how the mean is taken. Tokens take far more memory than all else; a mean has none.

        Raises:
            DatasetError: they are not there, or damaged.
        """
        self.teacher(name)
        if name in self.teachers:
            mapped = self.map_features(name)
            return (mapped if tokens else mapped.without_tokens()).load()
        entries = [self.teachers[each] for each in teacher_names(name)]
        targets = np.array([self.classes.index(row[0]) if row else -1 for row in self.labels])
        if self.multi_label:
            targets = np.array([[each in row for each in self.classes] for row in self.labels], dtype=int)
        split = self.columns["split"]
        fitted_on = [(split == e.head_split) | np.isin(split, e.head_split.split("+")) for e in entries]
        stored = {e.name: self.features(e.name, tokens=False) for e in entries}
        return mean_of_teachers(stored, self.classes, targets, fitted_on)

    def map_features(self, name: str) -> MappedFeatures:
        """One teacher's features on the disk, row i for clip i. Raises DatasetError if not there or damaged."""
        if name not in self.teachers:
            raise self._no_teacher(name)
        return map_features(self.folder, self._features[name])

    def teacher_features(self, name: str) -> TeacherFeatures:
        """Features to draw batches from: of one teacher on the disk, of several their mean in memory.

        Raises:
            DatasetError: they are not there, or damaged.
        """
        return self.map_features(name) if name in self.teachers else self.features(name)

    def features_manifest(self, name: str, *, tokens: bool = False) -> dict[str, Any]:
        """`name`, `provenance` and SHA-256 over the `files` of a teacher's features (of tokens only if asked)."""
        provenance, files = self.teacher(name).provenance, {}
        for each in teacher_names(name) if name not in self.teachers else (name,):
            for kind in ("valid", "embedding", "logits", *(["tokens"] if tokens else [])):
                if digest := self._features[each].digest(kind):
                    files[kind if each == name else f"{each} {kind}"] = digest
        return {"name": name, "provenance": provenance, "files": files}

    def has_teacher(self, name: str) -> bool:
        """Whether the features of a teacher, or of all of several joined by "+", are in the dataset."""
        return set(teacher_names(name)) <= self.teachers.keys()

    def teacher(self, name: str) -> TeacherEntry:
        """What the dataset has of a teacher or, of several joined by "+", of their mean.

        The modality of a mean is that of its first teacher. Raises DatasetError for a teacher that is not there or is
        named twice.
        """
        names = teacher_names(name)
        if absent := [each for each in names if each not in self.teachers]:
            raise self._no_teacher(absent[0])
        if name in self.teachers:
            return self.teachers[name]
        entries = [self.teachers[each] for each in names]
        if len(set(names)) < len(names):
            raise DatasetError(f"{self.folder}: teacher {name!r}: expected each name once, found one twice")
        complete = all(set(self.classes) <= set(entry.classes) for entry in entries)
        return TeacherEntry(
            name=name,
            modality=entries[0].modality,
            embedding_dim=sum(entry.embedding_dim for entry in entries),
            num_tokens=0,
            classes=self.classes if complete else (),
            provenance=joint_provenance({entry.name: entry.provenance for entry in entries}),
            clips=max(entry.clips for entry in entries),
            fitted_head=any(entry.fitted_head for entry in entries),
            head_split="+".join(dict.fromkeys(entry.head_split for entry in entries)),
        )

    def _no_teacher(self, name: str) -> DatasetError:
        known = ", ".join(sorted(self.teachers)) or "none"
        return DatasetError(
            f"{self.folder}: no teacher {name!r} in this dataset (found: {known}); add it with `avdistill embed`"
        )

    def add_features(
        self,
        name: str,
        *,
        modality: Literal["audio", "video"],
        provenance: Provenance,
        embedding: np.ndarray,
        logits: np.ndarray | None,
        classes: tuple[str, ...],
        tokens: np.ndarray | None = None,
        fitted_head: bool = False,
        head_split: str = "train",
        head: dict[str, int | float] | None = None,
    ) -> TeacherEntry:
        """Write a teacher's features; those of the same name are replaced.

        Args:
            name: of the teacher in this dataset: letters, digits, "_" and ".".
            modality, provenance: what the embeddings were computed from, and what computed them.
            embedding: float32 (N, D), rows of NaN for clips without one.
            logits: float32 (N, C), or None.
            classes: names of the logits' columns.
            tokens: float32 (N, K, D), zeros for clips without them; or None.
            fitted_head, head_split, head: see `TeacherEntry`.

        Raises:
            DatasetError: such a name cannot be used, the number of rows differs from that of the clips, a number of a
                clip with an embedding is not finite, or the folder cannot be written; the old features then stay.
        """
        for rows in (embedding, logits, tokens):
            if rows is not None and len(rows) != len(self):
                raise DatasetError(f"teacher {name!r}: {len(rows)} rows for {len(self)} clips")
        valid = ~np.isnan(embedding[:, 0])
        given = {"embedding": embedding, "logits": logits, "tokens": tokens}
        arrays = {"valid": valid}
        for kind, rows in given.items():
            if rows is not None:
                if not np.isfinite(rows[valid]).all():
                    raise DatasetError(f"teacher {name!r}: {kind}: expected finite numbers, found others")
                arrays[kind] = np.where(valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, np.float32(0))
        entry = TeacherEntry(
            name=name,
            modality=modality,
            embedding_dim=int(embedding.shape[1]),
            num_tokens=0 if tokens is None else int(tokens.shape[1]),
            classes=() if logits is None else tuple(classes),
            provenance=provenance,
            clips=int(valid.sum()),
            fitted_head=fitted_head,
            head_split=head_split,
            head=head or {},
        )
        write_features(self.folder, self._description.checksum, entry, arrays)
        self.reopen_features()
        self.upload()
        return entry

    def upload(self) -> None:
        """Upload what was added, if the dataset is at a URL. Raises StorageError."""
        if self.url is not None:
            upload(self.folder, self.url, dataset_contents)

    def verify(self) -> list[str]:
        """Recompute every checksum; returns a line for each file that is missing or differs."""
        faults = []
        for name, expected in dataset_contents(self.folder).files.items():
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
        pairs = set(zip(c["group"].tolist(), c["split"].tolist(), strict=True))
        with_video = np.flatnonzero(c["has_video"])
        firsts = with_video[np.unique(c["frame_shard"][with_video], return_index=True)[1]]  # a shard has one size
        sizes = {self.frames(int(clip)).shape[1:3] for clip in firsts}
        return {
            "folder": self.place,
            "version": self._description.version,
            "frame_encoding": self._description.frame_encoding,
            "checksum": self.checksum,
            "clips": len(self),
            "videos": len(set(c["path"].tolist())),
            "groups": len(set(c["group"].tolist())),
            "groups_across_splits": sum(count > 1 for count in Counter(g for g, _ in pairs).values()),
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
            "skipped": self._description.skipped,
            "teachers": {name: asdict(entry) for name, entry in self.teachers.items()},
            "bytes": sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file()),
        }

    def _mapped(self, name: str, kind: str, number: int) -> np.ndarray:
        """A shard; when it is mapped, it is checked to be of its kind and to hold all clips that point into it."""
        shards: dict[str, np.ndarray] = self.__dict__.setdefault("_shards", {})
        found = shards.get(name)
        try:
            if found is not None:
                check_mapped(found)
                return found
            c, column = self.columns, "audio" if kind == "audio" else "frame"
            ends = (c[f"{column}_offset"] + c[f"{column}_count"])[c[f"{column}_shard"] == number]
            found = map_shard(self.folder / name, kind, int(ends.max(initial=0)))
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{self.folder / name}: damaged or missing: {error_message(error)}; see `avdistill info`"
            ) from error
        with suppress(RuntimeError):  # another thread has just changed it
            while len(shards) >= _MOST_MAPPED:
                shards.pop(next(iter(shards)), None)
        shards[name] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes map the shards themselves: a memory map that is pickled would travel as a copy.
        return {key: value for key, value in self.__dict__.items() if key != "_shards"}
