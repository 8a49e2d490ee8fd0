"""A teacher's features in a dataset's folder (`docs/formats/dataset.md`): written, replaced, read."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from avdistill.config_io import encode
from avdistill.dataset.schema import DatasetDescription, TeacherEntry, is_teacher_name, read_description
from avdistill.dataset.stored_features import StoredFeatures
from avdistill.errors import DatasetError
from avdistill.fsio import (
    as_json,
    error_message,
    file_checksum,
    load_array,
    open_lock,
    sync_folder,
    write_array,
    write_json,
    write_text,
)


def feature_files(name: str) -> tuple[str, str, str]:
    """File names of a teacher's embedding, logits and tokens."""
    return f"features-{name}.npy", f"features-{name}-logits.npy", f"features-{name}-tokens.npy"


def read_features(folder: Path, entry: TeacherEntry, clips: int) -> StoredFeatures:
    """The features that `entry` describes. Raises DatasetError if a file is missing, damaged or of another shape."""
    C, D, K = len(entry.classes), entry.embedding_dim, entry.num_tokens
    files = feature_files(entry.name)
    embedding = _load(folder / files[0], (clips, D))
    logits = _load(folder / files[1], (clips, C)) if C else None
    tokens = _load(folder / files[2], (clips, K, D), mapped=True) if K else None
    # NaN marks "no embedding" on disk, where a mask would be one more file; it never leaves this function.
    valid = ~np.isnan(embedding[:, 0])
    for file, rows in zip(files, (embedding, logits), strict=False):
        if rows is not None and not np.isfinite(rows[valid]).all():
            raise DatasetError(f"{folder / file}: expected finite numbers where there is an embedding, found others")
    embedding[~valid] = 0
    if logits is not None:
        logits[~valid] = 0
    return StoredFeatures(embedding, logits, tokens, valid, entry.classes, entry.provenance)


def map_embedding(folder: Path, entry: TeacherEntry, clips: int) -> np.ndarray:
    """float32 (N, D), a memory map of the embeddings, rows of NaN where there is none. Raises DatasetError."""
    return _load(folder / feature_files(entry.name)[0], (clips, entry.embedding_dim), mapped=True)


def _load(file: Path, shape: tuple[int, ...], *, mapped: bool = False) -> np.ndarray:
    try:
        array = load_array(file, mapped=True)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: damaged or missing: {error_message(error)}; see `avdistill info`") from error
    if array.shape != shape or array.dtype != np.float32:
        raise DatasetError(f"{file}: expected float32 {shape}, found {array.dtype} {array.shape}")
    return array if mapped else np.array(array)


def write_features(
    folder: Path, entry: TeacherEntry, embedding: np.ndarray, logits: np.ndarray | None, tokens: np.ndarray | None
) -> DatasetDescription:
    """Write or replace the features of a teacher; returns the new content of dataset.json.

    A kill in between leaves the old features, the new ones or none, never an embedding of one and logits of the other.
    Other processes may write theirs at the same time.

    Raises:
        DatasetError: the name is not usable as part of a file name, or the folder cannot be written; the old features
            then stay.
    """
    name = entry.name
    if not is_teacher_name(name):
        raise DatasetError(f"teacher name {name!r}: use letters, digits, '_' and '.'")
    arrays = dict(zip(feature_files(name), (embedding, logits, tokens), strict=True))
    try:
        with open_lock(folder, wait=True):
            return _replace(folder, entry, arrays)
    except OSError as error:
        raise DatasetError(f"{folder}: teacher {name!r} cannot be written: {error_message(error)}") from error


def _replace(folder: Path, entry: TeacherEntry, arrays: dict[str, np.ndarray | None]) -> DatasetDescription:
    description = read_description(folder)  # another process may have added features since the dataset was opened
    files = {file: digest for file, digest in description.files.items() if file not in arrays}
    others = {key: other for key, other in description.features.items() if key != entry.name}
    without = replace(description, files=dict(files), features=others)
    kept = {file: array for file, array in arrays.items() if array is not None}
    finished = folder / "dataset.json.added"
    try:
        # First everything that takes disk space, under other names; then what cannot be undone.
        for file, array in kept.items():
            write_array(folder / f"{file}.tmp", np.ascontiguousarray(array, np.float32))
            files[file] = file_checksum(folder / f"{file}.tmp")
        added = replace(description, files=files, features={**others, entry.name: entry})
        write_text(finished, as_json(encode(added)))
        if entry.name in description.features:
            write_json(folder / "dataset.json", encode(without))
        for file in arrays:
            if file in kept:
                (folder / f"{file}.tmp").replace(folder / file)
            else:
                (folder / file).unlink(missing_ok=True)
        sync_folder(folder)  # the names of the arrays before the one that vouches for them
        finished.replace(folder / "dataset.json")
        sync_folder(folder)
        return added
    finally:
        for temporary in (finished, *(folder / f"{file}.tmp" for file in kept)):
            temporary.unlink(missing_ok=True)
