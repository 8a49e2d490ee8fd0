"""A teacher's features of a dataset's clips, on the disk: rows are read when they are selected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from avdistill.dataset.features import FOLDER, FeaturesDescription, part_file
from avdistill.dataset.stored_features import Provenance, StoredFeatures
from avdistill.errors import DatasetError
from avdistill.fsio import check_mapped, error_message, load_array

if TYPE_CHECKING:
    from avdistill.types import Features


@dataclass(frozen=True, eq=False)
class MappedFeatures:
    """A teacher's features of the N clips of a dataset; opened, they stay those even if others replace them.

    Attributes:
        folder: of the features.
        description: what they are.
        arrays: a memory map for each part and kind.
        order: int64 (N,) stored row of each clip; None where that is the clip's own.
        valid: bool (N,), which clips have features.
        classes: names of the logits' columns, empty without logits.
        columns: int64 (C,) stored columns of the logits.
        has_tokens: whether `select` gives the tokens.
        teachers: none: these are of one teacher (`TeacherFeatures`).
    """

    folder: Path
    description: FeaturesDescription
    arrays: tuple[dict[str, np.ndarray], ...]
    order: np.ndarray | None
    valid: np.ndarray
    classes: tuple[str, ...]
    columns: np.ndarray
    has_tokens: bool
    teachers: tuple[StoredFeatures, ...] = ()

    @property
    def provenance(self) -> Provenance:
        """What computed the embeddings."""
        return self.description.entry.provenance

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.description.entry.embedding_dim

    def with_classes(self, classes: tuple[str, ...]) -> Self:
        """The same with the logits' columns in the order of `classes`; without logits where one of them is missing."""
        if not set(classes) <= set(self.classes):
            return replace(self, classes=(), columns=self.columns[:0])
        return replace(self, classes=classes, columns=self.columns[[self.classes.index(name) for name in classes]])

    def without_tokens(self) -> Self:
        """The same without tokens."""
        return replace(self, has_tokens=False)

    def without_teachers(self) -> Self:
        """The same: it is one teacher's."""
        return self

    def of_clips(self, clips: np.ndarray, keep: np.ndarray) -> Self:
        """The same for some of the clips.

        Args:
            clips: int64 (n,) rows.
            keep: bool (n,); where it is False the clip has no features any more.
        """
        order = clips if self.order is None else self.order[clips]
        return replace(self, order=order, valid=self.valid[clips] & keep)

    def rows(self, kind: str, clips: np.ndarray) -> np.ndarray:
        """float32 (n, ...) rows of `embedding`, `logits` or `tokens`, 0 for clips without features.

        Raises:
            DatasetError: a file has become shorter, or holds what is no finite number.
        """
        clips = np.asarray(clips, np.int64)
        stored = clips if self.order is None else self.order[clips]
        there = self.valid[clips]
        firsts = np.array([part.first for part in self.description.parts], np.int64)
        part_of = np.searchsorted(firsts, stored, side="right") - 1
        found = np.zeros((len(clips), *self._shape(kind)), np.float32)
        for number in np.unique(part_of[there]):
            here, array = there & (part_of == number), self.arrays[number][kind]
            try:
                check_mapped(array)
            except OSError as error:
                raise DatasetError(f"{self._file(int(number), kind)}: damaged: {error}") from error
            found[here] = array[stored[here] - firsts[number]]
            if not np.isfinite(found[here]).all():
                raise DatasetError(f"{self._file(int(number), kind)}: expected finite numbers, found others")
        return found[:, self.columns] if kind == "logits" else found

    def _shape(self, kind: str) -> tuple[int, ...]:
        entry = self.description.entry
        shapes = {
            "embedding": (entry.embedding_dim,),
            "logits": (len(entry.classes),),
            "tokens": (entry.num_tokens, entry.embedding_dim),
        }
        return shapes[kind]

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / self.description.parts[number].file_name(kind)

    def select(self, clips: np.ndarray) -> Features:
        """The given rows as tensors on the CPU. Raises DatasetError as `rows`."""
        import torch

        from avdistill.types import Features

        return Features(
            embedding=torch.from_numpy(self.rows("embedding", clips)),
            logits=torch.from_numpy(self.rows("logits", clips)) if self.classes else None,
            tokens=torch.from_numpy(self.rows("tokens", clips)) if self.has_tokens else None,
        )

    def load(self) -> StoredFeatures:
        """All rows in memory. Raises DatasetError as `rows`."""
        everything = np.arange(len(self.valid))
        return StoredFeatures(
            embedding=self.rows("embedding", everything),
            logits=self.rows("logits", everything) if self.classes else None,
            tokens=self.rows("tokens", everything) if self.has_tokens else None,
            valid=self.valid.copy(),
            classes=self.classes,
            provenance=self.provenance,
        )


def map_features(dataset: Path, description: FeaturesDescription, staging: Path | None = None) -> MappedFeatures:
    """Map the files of a teacher's features.

    Args:
        dataset: the dataset's folder.
        description: of the features.
        staging: where parts lie that are not stored yet.

    Raises:
        DatasetError: a file is missing, damaged or of another shape, or was replaced since the dataset was opened.
    """
    entry = description.entry
    folder = dataset / FOLDER / entry.name
    valid = np.zeros(description.clips, bool)
    arrays = []
    for part in description.parts:
        found: dict[str, np.ndarray] = {}
        shapes = {
            "valid": (part.clips,),
            "embedding": (part.clips, entry.embedding_dim),
            "logits": (part.clips, len(entry.classes)),
            "tokens": (part.clips, entry.num_tokens, entry.embedding_dim),
        }
        for kind in part.files:
            file = part_file(folder, staging, part, kind)
            found[kind] = _map(file, shapes[kind], bool if kind == "valid" else np.float32)
        if found:
            valid[part.first : part.first + part.clips] = found.pop("valid")
        arrays.append(found)
    columns = np.arange(len(entry.classes))
    has_tokens = bool(entry.num_tokens)
    return MappedFeatures(folder, description, tuple(arrays), None, valid, entry.classes, columns, has_tokens)


def _map(file: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = load_array(file, mapped=True)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{file}: damaged or missing: {error_message(error)}; or the features were replaced since the dataset was "
            "opened; see `avdistill info`"
        ) from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: damaged or missing: {error_message(error)}; see `avdistill info`") from error
    if array.shape != shape or array.dtype != dtype:
        raise DatasetError(f"{file}: expected {np.dtype(dtype).name} {shape}, found {array.dtype} {array.shape}")
    return array
