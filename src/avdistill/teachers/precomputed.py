"""Embeddings from files, joined to the clips of a dataset by name: `precomputed:<folder or .npz>`."""

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.stored_features import Provenance
from avdistill.errors import DatasetError
from avdistill.fsio import error_message, file_checksum, load_array
from avdistill.teachers.extraction import add_features

PRECOMPUTED = "precomputed:"


@dataclass(frozen=True)
class _Table:
    """N rows: embedding float32 (N, D) and, with `classes`, logits float32 (N, C)."""

    names: tuple[str, ...]
    embedding: np.ndarray
    logits: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def embed_precomputed(
    dataset: ClipDataset,
    path: str | os.PathLike[str],
    name: str,
    modality: Literal["audio", "video"] = "audio",
    *,
    head_split: str = "train",
) -> TeacherEntry:
    """Store embeddings from files in the dataset, under `name`. Clips without one get no features.

    A row is joined to the clip with its name as id, or else to the only clip of the file with this stem.

    Args:
        dataset: gets the features.
        path: a folder of `<clip id>.npy`, each numbers of shape (D,) or (1, D); or an .npz with `name` (N,),
            `embedding` (N, D) and optionally `logits` (N, C) with the names of their columns in `classes` (C,).
        name: of the features in the dataset.
        modality: what the embeddings were computed from.
        head_split: whose labeled clips a linear head is fitted on, without logits in the dataset's classes.

    Raises:
        DatasetError: nothing at `path`, no row of a clip, a repeated name, embeddings of different sizes, values that
            are not finite, or a dataset that cannot be written.
    """
    path, keys = Path(path), _keys(dataset)
    if path.is_dir():
        files = {key: file for key in sorted(set().union(*keys)) if (file := path / f"{key}.npy").is_file()}
        known = sorted(file.stem for file in path.glob("*.npy"))
        provenance: Provenance = {"name": f"{PRECOMPUTED}{path.name}/*.npy"}
        table = _Table(tuple(files), np.stack(list(read_embeddings(files).values()))) if files else None
    elif path.is_file():
        table = _read_table(path)
        known = sorted(table.names)
        provenance = {"name": f"{PRECOMPUTED}{path.name}", "sha256": file_checksum(path)}
    else:
        raise DatasetError(f"{path}: expected a folder of <clip id>.npy or an .npz, found nothing")
    row_of = {} if table is None else {key: row for row, key in enumerate(table.names)}
    rows = np.array([next((row_of[key] for key in names if key in row_of), -1) for names in keys])
    if table is None or (rows < 0).all():
        found = f"{len(known)} names such as {known[0]!r}" if known else "no .npy"
        raise DatasetError(
            f"{path}: 0 of {len(dataset)} clips matched: expected names such as {keys[0][0]!r}, found {found}"
        )
    valid = (rows >= 0)[:, None]
    return add_features(
        dataset,
        name,
        modality=modality,
        provenance=provenance,
        embedding=np.where(valid, table.embedding[rows], np.nan),
        logits=None if table.logits is None else np.where(valid, table.logits[rows], np.nan),
        classes=table.classes,
        head_split=head_split,
    )


def _keys(dataset: ClipDataset) -> list[tuple[str, ...]]:
    """For each clip: its id and, if no other clip is of its file, the file's stem."""
    ids = [str(name) for name in dataset.columns["id"]]
    stems = [PurePosixPath(str(path)).stem for path in dataset.columns["path"]]
    uses, taken = Counter(stems), set(ids)
    return [
        (name, stem) if uses[stem] == 1 and stem not in taken else (name,)
        for name, stem in zip(ids, stems, strict=True)
    ]


def read_embeddings(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """float32 (D,) by name, from .npy files of shape (D,) or (1, D).

    Raises:
        DatasetError: a file with anything else, values that are not finite, or another D than most files.
    """
    found = {name: _read_embedding(file) for name, file in files.items()}
    D, _ = Counter(len(values) for values in found.values()).most_common(1)[0]
    for name, values in found.items():
        if len(values) != D:
            raise DatasetError(
                f"{files[name]}: expected an embedding of size {D} as in the other files, found {len(values)}"
            )
    return found


def _read_embedding(file: Path) -> np.ndarray:
    try:
        values = load_array(file)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: expected an array of numbers: {error_message(error)}") from error
    row = values[0] if values.ndim == 2 and len(values) == 1 else values
    if row.ndim != 1 or not row.size or row.dtype.kind not in "fiu":
        raise DatasetError(f"{file}: expected numbers of shape (D,) or (1, D), found {values.dtype} {values.shape}")
    if not np.isfinite(row).all():
        raise DatasetError(f"{file}: expected finite numbers, found NaN or infinity")
    return row.astype(np.float32)


def read_npz(file: Path, required: Collection[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by their names; nothing in it is unpickled.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not a readable .npz of plain arrays, or one of the `required` arrays is missing.
    """
    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with content:
            arrays = {key: content[key] for key in content.files}
        if other := [key for key, values in arrays.items() if not isinstance(values, np.ndarray)]:
            raise ValueError(f"{other[0]!r:.80} is none")  # NumPy gives the bytes of what does not begin as an array
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{file}: expected an .npz of plain arrays: {error_message(error)}") from error
    for key in required:
        if key not in arrays:
            raise DatasetError(f"{file}: expected the array {key!r}, found {', '.join(sorted(arrays)) or 'none'}")
    return arrays


def strings(file: Path, key: str, values: np.ndarray) -> tuple[str, ...]:
    """A column of text of an .npz file. Raises DatasetError for anything else."""
    if values.ndim != 1 or values.dtype.kind != "U":
        raise DatasetError(f"{file}: {key}: expected strings of shape (N,), found {values.dtype} {values.shape}")
    return tuple(values.tolist())


def _read_table(file: Path) -> _Table:
    arrays = read_npz(file, ("name", "embedding"))
    names = strings(file, "name", arrays["name"])
    repeated = [name for name, uses in Counter(names).items() if uses > 1]
    if repeated:
        raise DatasetError(f"{file}: expected every name once, found {repeated[0]!r} {names.count(repeated[0])} times")
    embedding = _numbers(file, "embedding", arrays["embedding"], len(names))
    if ("logits" in arrays) != ("classes" in arrays):
        raise DatasetError(f"{file}: expected 'logits' and 'classes' together, found one of them")
    if "logits" not in arrays:
        return _Table(names, embedding)
    classes = strings(file, "classes", arrays["classes"])
    logits = _numbers(file, "logits", arrays["logits"], len(names))
    if logits.shape[1] != len(classes):
        raise DatasetError(f"{file}: expected logits of the {len(classes)} classes, found {logits.shape[1]} columns")
    return _Table(names, embedding, logits, classes)


def _numbers(file: Path, key: str, values: np.ndarray, rows: int) -> np.ndarray:
    if values.ndim != 2 or len(values) != rows or not values.shape[1] or values.dtype.kind not in "fiu":
        found = f"{values.dtype} {values.shape}"
        raise DatasetError(f"{file}: {key}: expected numbers of shape ({rows}, columns), a row per name, found {found}")
    if not np.isfinite(values).all():
        raise DatasetError(f"{file}: {key}: expected finite numbers, found NaN or infinity")
    return values.astype(np.float32)
