"""The two tables of contents of a dataset: `dataset.json` and `clips.parquet` (`docs/formats/dataset.md`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avdistill.config_io import decode, read_json
from avdistill.dataset.stored_features import Provenance
from avdistill.errors import ConfigError, DatasetError
from avdistill.fsio import error_message, regular_file

if TYPE_CHECKING:
    import pyarrow as pa

    CLIP_SCHEMA: pa.Schema

FORMAT_VERSION = 4


@cache
def _clip_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("group", pa.string()),
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


if not TYPE_CHECKING:

    def __getattr__(name):
        """`CLIP_SCHEMA`. PyArrow is imported when a table is read: training on clips in memory does without it."""
        if name != "CLIP_SCHEMA":
            raise AttributeError(name)
        return _clip_schema()


@dataclass(frozen=True)
class TeacherEntry:
    """What a teacher's features are, in `features/<name>/features.json`.

    Attributes:
        name: by which methods ask for them, that of the folder.
        modality: "audio" or "video", which the embeddings were computed from.
        embedding_dim: D.
        num_tokens: K; 0 without tokens.
        classes: names of the logits' columns, empty without logits.
        provenance: what computed the embeddings.
        clips: how many clips have an embedding.
        fitted_head: whether the logits are those of a linear head fitted on this dataset's labels.
        head_split: the split of those labels; several splits are joined by "+".
        head: `labeled_clips` and the regularization `C` of such a head, empty where it had too few labels.
    """

    name: str
    modality: Literal["audio", "video"]
    embedding_dim: int
    num_tokens: int
    classes: tuple[str, ...]
    provenance: Provenance
    clips: int
    fitted_head: bool = False
    head_split: str = "train"
    head: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetDescription:
    """The content of `dataset.json`.

    Attributes:
        version: `FORMAT_VERSION`.
        frame_encoding: "raw" uint8 arrays, or "jpeg".
        fps: frames a second; None where every frame was taken.
        sample_rate_hz: of the audio.
        classes: sorted names of all labels that occur.
        clips, skipped: how many were read, and how many could not be.
        checksum: SHA-256 over the clips' content; features do not change it.
        files: SHA-256 of every file but those of features (`features.py`).
        settings: of the preparation.
        corruption: what the dataset was made from and how; empty for one that was prepared from files.
    """

    version: int
    frame_encoding: Literal["raw", "jpeg"]
    fps: float | None
    sample_rate_hz: int
    classes: tuple[str, ...]
    clips: int
    skipped: int
    checksum: str
    files: dict[str, str]
    settings: dict[str, Any]
    corruption: dict[str, Any] = field(default_factory=dict)


def read_description(folder: Path) -> DatasetDescription:
    """`dataset.json` of a folder. Raises DatasetError for none, a damaged one, or a format not `FORMAT_VERSION`."""
    path, again = folder / "dataset.json", "prepare it again with `avdistill prepare`"
    if not path.is_file():
        if (folder / "store.json").is_file():
            raise DatasetError(f"{folder}: expected format {FORMAT_VERSION}, found store.json of an older one; {again}")
        hint = "; its preparation was interrupted: run the same `avdistill prepare` again"
        hint = hint if staging_dir(folder).is_dir() else ""
        raise DatasetError(f"{folder}: no dataset here (dataset.json is missing{hint})")
    try:
        content = read_json(path)
        if isinstance(content, dict) and content.get("version") != FORMAT_VERSION:
            found = content.get("version")
            raise DatasetError(f"{folder}: expected dataset format {FORMAT_VERSION}, found {found!r}; {again}")
        description = decode(DatasetDescription, content, "dataset.json")
        _check_description(description)
        return description
    except ConfigError as error:
        raise DatasetError(f"{folder}: {error}") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: dataset.json is damaged: {error_message(error)}") from error


def read_clips(folder: Path, clips: int) -> "pa.Table":
    """`clips.parquet` of a folder. Raises DatasetError unless it has the columns of `CLIP_SCHEMA` and `clips` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = regular_file(folder / "clips.parquet")
        rows, size = pq.read_metadata(file).num_rows, file.stat().st_size
        if rows > size:  # each has an id of its own
            raise DatasetError(f"{folder}: clips.parquet: expected clips with ids, found {rows} in {size} bytes")
        table = pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        raise DatasetError(f"{folder}: clips.parquet is missing or damaged: {error_message(error)}") from error
    for column in _clip_schema():
        found = table.schema.field(column.name).type if column.name in table.column_names else "none"
        if found != column.type:
            raise DatasetError(
                f"{folder}: clips.parquet: expected a column {column.name!r} of {column.type}, found {found}"
            )
    if table.num_rows != clips:
        raise DatasetError(f"{folder}: clips.parquet: expected {clips} rows as in dataset.json, found {table.num_rows}")
    for name, bad, expected in _impossible(table):
        if bad.any():
            row = int(bad.argmax())
            found = repr(table[name][row].as_py())
            raise DatasetError(f"{folder}: clips.parquet: row {row}: expected {name} {expected}, found {found:.80}")
    release_unused_memory()
    return table.select(_clip_schema().names)


def release_unused_memory() -> None:
    """Give back what PyArrow keeps of its temporary memory: with millions of rows more than they take."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _impossible(table: "pa.Table") -> Iterator[tuple[str, np.ndarray, str]]:
    """(column, which rows have an impossible value, what was expected); the later ones rely on the earlier."""
    import pyarrow.compute as pc

    for field_ in _clip_schema():
        if field_.name not in ("end_seconds", "extra"):
            yield field_.name, table[field_.name].is_null().to_numpy(), "to have a value"
    # Of millions of rows Python looks at each only where one of them is known to be wrong.
    for name in ("labels", "notes"):
        if pc.list_flatten(table[name]).null_count:
            yield name, np.array([None in row for row in table[name].to_pylist()], bool), "to hold texts"
    ids = table["id"]
    if pc.count_distinct(ids).as_py() < len(ids):
        first = {name: row for row, name in reversed(list(enumerate(ids.to_pylist())))}
        yield "id", np.array([first[name] != row for row, name in enumerate(ids.to_pylist())], bool), "to be its own"
    yield "start_seconds", ~np.isfinite(table["start_seconds"].to_numpy()), "to be finite"
    for modality, kind in (("video", "frame"), ("audio", "audio")):
        there = table[f"has_{modality}"].to_numpy(zero_copy_only=False).astype(bool)
        shard, offset, count = (table[f"{kind}_{part}"].to_numpy() for part in ("shard", "offset", "count"))
        yield f"{kind}_shard", there & (shard < 0), "of at least 0"
        yield f"{kind}_offset", there & ((offset < 0) | (offset > 2**48)), "in its shard"
        wrong = (count < there) | (count > 2**48)
        yield f"{kind}_count", wrong, f"to agree with has_{modality}"


def _check_description(found: DatasetDescription) -> None:
    """Raise ConfigError for values that no dataset has."""
    checks = {
        "fps: expected above 0": found.fps is None or 0 < found.fps < 1000,
        "sample_rate_hz: expected 1 to 10^7": 1 <= found.sample_rate_hz <= 10**7,
        "clips: expected 0 or more": found.clips >= 0 and found.skipped >= 0,
        "classes: expected sorted names, each once": list(found.classes) == sorted(set(found.classes)),
        "settings.config: expected an object": isinstance(found.settings.get("config", {}), dict),
    }
    for name in found.files:
        checks[f"files: expected the name of a file in the folder, found {name!r:.80}"] = is_plain_name(name)
    for wanted, holds in checks.items():
        if not holds:
            raise ConfigError(f"dataset.json.{wanted}")


def check_entry(where: str, name: str, entry: TeacherEntry) -> None:
    """Raise ConfigError for an entry that no features have; `name` is that of their folder."""
    if entry.name != name or not is_teacher_name(name):
        raise ConfigError(f"{where}: expected its own name, of letters, digits, '_' and '.', found {entry.name!r:.80}")
    sizes = entry.embedding_dim >= 1 and entry.num_tokens >= 0 and entry.clips >= 0
    if not sizes or len(set(entry.classes)) != len(entry.classes):
        raise ConfigError(f"{where}: expected an embedding, and classes each once")


def is_plain_name(name: str) -> bool:
    """Whether a text names a file of a folder, not one elsewhere."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


def is_teacher_name(name: str) -> bool:
    """Whether a text can name a teacher, as part of a file's name."""
    return bool(name) and all(ch.isalnum() or ch in "_." for ch in name) and not name.startswith(".")


def staging_dir(dataset: Path) -> Path:
    """Where a dataset lives until it is whole."""
    dataset = dataset.resolve()  # "." has no name
    return dataset.with_name(dataset.name + ".partial")
