"""What an index is made of: datasets, their table of clips, and columns of vectors."""

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdistill.config_io import read_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import has_modality
from avdistill.errors import ConfigError, SearchError
from avdistill.fsio import error_message, file_checksum, regular_file
from avdistill.inference.predictor import Student
from avdistill.inference.runner import check_rates, run_network
from avdistill.search.schema import INDEX_VERSION, IndexDescription, Source, Space, unit_rows

if TYPE_CHECKING:
    import pyarrow as pa

_SCORES = ("mismatch_score", "mismatch_probability", "correspondence")


class Column(ABC):
    """A column of vectors: its space, and how they are had.

    Attributes:
        space: what the index records.
        files: SHA-256 of what else they were computed with; an index is stale where one of them has changed.
        rows: clips at a time: what a kill costs at most.
    """

    rows = 20_000

    def __init__(self, space: Space, files: Mapping[str, str] | None = None) -> None:
        self.space, self.files = space, dict(files or {})

    @abstractmethod
    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        """float (n, D) vectors of rows of the dataset; rows of NaN where a clip has none."""


class FeaturesColumn(Column):
    """A teacher's features, stored in the datasets under the name of the space."""

    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        """Those of the dataset; NaN everywhere where it has no such features."""
        entry = dataset.teachers.get(self.space.name)
        if entry is None:
            return np.full((len(clips), self.space.dim), np.nan, np.float32)
        stored = dataset.map_features(self.space.name)
        return np.where(stored.valid[clips, None], stored.rows("embedding", clips), np.float32(np.nan))


class StudentColumn(Column):
    """The embeddings of a student, computed from the clips."""

    rows = 1024

    def __init__(self, space: Space, student: Student, batch_size: int = 32) -> None:
        """Args: batch_size: windows at a time."""
        super().__init__(space)
        self.student, self.batch_size = student, batch_size

    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        """Means over the windows of each clip, as `retrieve` takes them."""
        config, found = self.student.config, np.full((len(clips), self.space.dim), np.nan, np.float32)
        check_rates(dataset, config.view, config.fps, config.sample_rate_hz, f"the student {self.space.name!r}")
        there = has_modality(dataset, clips, config.view)
        if there.any():
            outputs = run_network(self.student.network, dataset, clips[there], config.view, batch_size=self.batch_size)
            found[there] = outputs.embedding.numpy()
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive rows of an index.

    Attributes:
        start: the first of them.
        clips: n rows of the table of clips.
        vectors: of each space, float32 (n, D) of length 1; zeros where a clip has none.
    """

    start: int
    clips: "pa.Table"
    vectors: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Content:
    """Everything that goes into an index; computed part by part."""

    description: IndexDescription
    datasets: tuple[ClipDataset, ...]
    columns: tuple[Column, ...]
    clips: "pa.Table"

    def parts(self, start: int = 0) -> Iterator[Part]:
        """The rows from `start` on, in order, as many at a time as the columns say."""
        step, first = min(column.rows for column in self.columns), 0
        for dataset in self.datasets:
            for row in range(max(0, start - first), len(dataset), step):
                clips = np.arange(row, min(row + step, len(dataset)))
                vectors = tuple(unit_rows(column.vectors(dataset, clips)) for column in self.columns)
                yield Part(first + row, self.clips.slice(first + row, len(clips)), vectors)
            first += len(dataset)


def gather(
    datasets: Sequence[str | os.PathLike[str]],
    columns: Sequence[Column] = (),
    *,
    audits: Sequence[str | os.PathLike[str]] = (),
    joint: Sequence[Sequence[str]] = (),
) -> Content:
    """What an index of these datasets holds. Arguments and errors as `build_index`."""
    opened = tuple(ClipDataset(folder) for folder in datasets)
    if not opened:
        raise ConfigError("index: expected at least one dataset, found none")
    names = _names([str(dataset.folder.resolve()) for dataset in opened])
    spaces = _joined([*_feature_spaces(opened), *(column.space for column in columns)], joint)
    tables = [_audit(Path(folder), opened) for folder in audits]
    files = {name: checksum for column in columns for name, checksum in column.files.items()}
    sources = tuple(
        _source(dataset, name, spaces, files, [file for of, file, _ in tables if of is dataset])
        for dataset, name in zip(opened, names, strict=True)
    )
    given = {column.space.name: column for column in columns}
    all_columns = tuple(given.get(space.name) or FeaturesColumn(space) for space in spaces)
    for column, space in zip(all_columns, spaces, strict=True):
        column.space = space
    import pyarrow as pa

    rows = [
        _clips(dataset, name, [scores for of, _, scores in tables if of is dataset])
        for dataset, name in zip(opened, names, strict=True)
    ]
    return Content(IndexDescription(INDEX_VERSION, sources, tuple(spaces)), opened, all_columns, pa.concat_tables(rows))


def student_column(path: str | os.PathLike[str], name: str | None = None, *, batch_size: int = 32) -> StudentColumn:
    """The column of a student: of a run folder or an exported one; its name is that of the folder, unless given."""
    from avdistill.models.checkpoint import WEIGHTS, student_folder

    student, folder = Student.from_pretrained(path), Path(path).resolve()
    weights = file_checksum(student_folder(folder) / WEIGHTS)
    name = name or folder.name
    space = Space(
        name=name,
        modality=student.config.view.modality,
        dim=student.network.embedding_dim,
        shared=f"student {name}",
        provenance={"name": student.config.model, "weights_sha256": weights},
        model=str(folder),
    )
    return StudentColumn(space, student, batch_size)


def _names(folders: Sequence[str]) -> list[str]:
    """Short names of folders: as many of the last parts of their paths as tell them apart."""
    if len(set(folders)) < len(folders):
        raise ConfigError(f"index: expected every dataset once, found {max(folders, key=list(folders).count)} twice")
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)


def _feature_spaces(datasets: Sequence[ClipDataset]) -> list[Space]:
    """The teachers' features, each name once. Raises SearchError where a name means different teachers."""
    spaces: dict[str, Space] = {}
    for dataset in datasets:
        for name, entry in sorted(dataset.teachers.items()):
            space = Space(name, entry.modality, entry.embedding_dim, f"features {name}", entry.provenance)
            if spaces.setdefault(name, space) != space:
                raise SearchError(
                    f"{dataset.folder}: features {name!r}: expected those of {spaces[name].provenance.get('name')!r} "
                    f"as in the datasets before, found those of {entry.provenance.get('name')!r}; index them apart"
                )
    return list(spaces.values())


def _joined(spaces: list[Space], joint: Sequence[Sequence[str]]) -> list[Space]:
    """The spaces, those of a joint encoder with a common `shared`."""
    names = [space.name for space in spaces]
    if not names:
        raise SearchError("index: expected a run, or datasets with features (`avdistill embed`), found neither")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"index: expected every space once, found {name!r} twice; rename the features or the run")
    for group in joint:
        if missing := next((name for name in group if name not in names), None):
            raise ConfigError(f"joint: no space {missing!r}; found {', '.join(names)}")
        if len({space.dim for space in spaces if space.name in group}) > 1:
            raise ConfigError(f"joint: {', '.join(group)}: expected vectors of one size, found several")
        shared = "joint " + " ".join(sorted(group))
        spaces = [replace(space, shared=shared) if space.name in group else space for space in spaces]
    return spaces


def _source(
    dataset: ClipDataset, name: str, spaces: Sequence[Space], others: Mapping[str, str], audits: Sequence[Path]
) -> Source:
    stored = [space.name for space in spaces if space.name in dataset.teachers and not space.model]
    features = {each: dataset.features_manifest(each)["files"]["embedding"] for each in stored}
    files = {**others, **{str(file): file_checksum(file) for file in audits}}
    return Source(name, str(dataset.folder.resolve()), dataset.checksum, features, files, len(dataset))


def _clips(dataset: ClipDataset, name: str, audits: Sequence[Mapping[str, Mapping[str, float]]]) -> "pa.Table":
    """The rows of a dataset in the table of clips (`index.COLUMNS`)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = dataset.table
    ends = table["end_seconds"].combine_chunks()
    scores: dict[str, list[float | None]] = {}
    for key in _SCORES:
        merged = {clip: row[key] for audit in audits for clip, row in audit.items() if key in row}
        scores[key] = [merged.get(clip) for clip in table["id"].to_pylist()]
    columns = {
        "id": table["id"],
        "dataset": pa.array([name] * len(dataset), pa.string()),
        "split": table["split"],
        "labels": table["labels"],
        "labeled": pa.array([bool(row) for row in dataset.labels], pa.bool_()),
        "path": table["path"],
        "group": table["group"],
        "start_seconds": table["start_seconds"],
        "end_seconds": pc.if_else(pc.is_finite(ends), ends, None),
        **{key: table[key] for key in ("has_video", "has_audio", "silent")},
        **{key: pa.array(values, pa.float64()) for key, values in scores.items()},
    }
    return pa.table(columns).combine_chunks()


def _audit(folder: Path, datasets: Sequence[ClipDataset]) -> tuple[ClipDataset, Path, dict[str, dict[str, float]]]:
    """The scores by clip that `avdistill audit` wrote into a folder, and of which dataset they are."""
    file = (folder / "clips.csv").resolve()
    try:
        settings: dict[str, Any] = read_json(folder / "audit.json")["settings"]
        with regular_file(file).open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        scores = {row["id"]: {key: float(row[key]) for key in _SCORES if row.get(key)} for row in rows}
        of = next((each for each in datasets if each.checksum == settings.get("dataset_checksum")), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SearchError(f"{folder}: expected what `avdistill audit` writes: {error_message(error)}") from error
    if of is None:
        raise SearchError(f"{folder}: expected an audit of an indexed dataset, found one of {settings.get('dataset')}")
    return of, file, scores
