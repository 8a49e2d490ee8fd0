"""What an index records: its sources, spaces and clips, and what a search returns."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from avdistill.config_io import decode, encode
from avdistill.dataset.stored_features import Provenance
from avdistill.errors import ConfigError
from avdistill.search.where import Kind

INDEX_VERSION = 1
#: how `Space.shared` begins where a run's student and teacher share it
SHARED = "shared "
#: what `where` may name: what a clip is, and the scores of an audit, where the index was given one
COLUMNS: dict[str, Kind] = {
    "id": "text",
    "dataset": "text",
    "split": "text",
    "labels": "texts",
    "labeled": "boolean",
    "path": "text",
    "group": "text",
    "start_seconds": "number",
    "end_seconds": "number",
    "has_video": "boolean",
    "has_audio": "boolean",
    "silent": "boolean",
    "mismatch_score": "number",
    "mismatch_probability": "number",
    "correspondence": "number",
}


@dataclass(frozen=True)
class Space:
    """A space of vectors, one column of an index.

    Attributes:
        name: of the column: a teacher's features in the datasets, or a run.
        modality: of what its vectors are computed from.
        dim: D.
        shared: names the vector space itself; only columns in which it is equal are compared with each other.
        provenance: what computed the vectors.
        model: the student or run that computed them, which also embeds files; "" for stored features.
    """

    name: str
    modality: Literal["audio", "video"]
    dim: int
    shared: str
    provenance: Provenance
    model: str = ""


@dataclass(frozen=True)
class Source:
    """A dataset in an index.

    Attributes:
        name: by which hits and `where` name it.
        folder: where it is.
        checksum: of its clips.
        features: SHA-256 over the embeddings of each teacher that the index was made of.
        files: SHA-256 of the other files that it was made of: tables of audits, weights of a run.
        clips: how many rows are its.
    """

    name: str
    folder: str
    checksum: str
    features: dict[str, str]
    files: dict[str, str]
    clips: int


@dataclass(frozen=True)
class IndexDescription:
    """What an index was made of: what is equal in all of this is the same index.

    Attributes:
        version: `INDEX_VERSION`.
        sources: in the order of their rows.
        spaces: columns of vectors.
    """

    version: int
    sources: tuple[Source, ...]
    spaces: tuple[Space, ...]

    @property
    def clips(self) -> int:
        """Rows."""
        return sum(source.clips for source in self.sources)


def checked_description(content: Any) -> IndexDescription:
    """The description that was read from JSON. Raises ConfigError where it is none of this version."""
    version = content.get("version") if isinstance(content, dict) else None
    if version != INDEX_VERSION:
        raise ConfigError(f"expected version {INDEX_VERSION}, found {version!r}")
    return decode(IndexDescription, content, "index")


def key_of(description: IndexDescription) -> str:
    """16 digits that differ between different descriptions, for names of tables."""
    text = json.dumps(encode(description), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Hit:
    """A clip that was found.

    Attributes:
        clip: its id.
        dataset: `Source.name` of its dataset.
        score: cosine in [-1, 1] of its vector and the query.
        split, labels, path, group, start_seconds, end_seconds: as in the dataset; `end_seconds` is None for a clip that
            lasts to the end of its file.
    """

    clip: str
    dataset: str
    score: float
    split: str
    labels: tuple[str, ...]
    path: str
    group: str
    start_seconds: float
    end_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"labels": list(self.labels)}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, D), of length 1; zeros where a row is zero, NaN or infinite: it has no direction."""
    exact = np.asarray(vectors, np.float64)
    exact = np.where(np.isfinite(exact).all(1, keepdims=True), exact, 0.0)
    largest = np.maximum(np.abs(exact).max(1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)  # no overflow
    exact = exact / largest
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(length > 0, length, 1.0)).astype(np.float32)


def quoted(text: str) -> str:
    """A text as `where` writes it."""
    return "'" + text.replace("'", "''") + "'"


def hit_of(row: dict[str, Any], score: float) -> Hit:
    """The hit of a row of the table of clips."""
    return Hit(
        clip=row["id"],
        dataset=row["dataset"],
        score=float(min(1.0, max(-1.0, score))),
        split=row["split"],
        labels=tuple(row["labels"]),
        path=row["path"],
        group=row["group"],
        start_seconds=row["start_seconds"],
        end_seconds=row["end_seconds"],
    )
