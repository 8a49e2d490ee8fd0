"""A teacher's features of a dataset's clips, in memory.

PyTorch is imported when rows become tensors: to prepare or describe a dataset takes seconds less without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from avdistill.types import Features

# What computed a teacher's embeddings, by key: `name` of the model, and what identifies its weights and input, such as
# `weights`, `weights_sha256`, `commit`, `run`, `resampled_from_hz`.
Provenance = dict[str, str | int | float]


def format_provenance(provenance: Provenance) -> str:
    """A line for people; checksums are cut to 16 digits."""
    texts = {key: str(value)[: 16 if key.endswith("sha256") else None] for key, value in provenance.items()}
    name = texts.pop("name", "")
    return ", ".join(([name] if name else []) + [f"{key} {text}" for key, text in texts.items()])


class TeacherFeatures(Protocol):
    """Features of the N clips of a dataset that batches draw from: in memory, or on the disk (`MappedFeatures`).

    Attributes:
        valid: bool (N,), which clips have features.
        classes: names of the logits' columns, empty without logits.
        provenance: what computed the embeddings.
    """

    @property
    def valid(self) -> np.ndarray: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def provenance(self) -> Provenance: ...  # noqa: D102

    @property
    def embedding_dim(self) -> int:
        """D."""

    @property
    def has_tokens(self) -> bool:
        """Whether `select` gives tokens."""

    @property
    def teachers(self) -> tuple[TeacherFeatures, ...]:
        """Of the mean of several teachers the features of each; empty for one teacher."""

    def with_classes(self, classes: tuple[str, ...]) -> Self:
        """The same with the logits' columns in the order of `classes`; without logits where one of them is missing."""

    def without_tokens(self) -> Self:
        """The same without tokens."""

    def without_teachers(self) -> Self:
        """The same with nothing in `teachers`."""

    def select(self, clips: np.ndarray) -> Features:
        """The given rows as tensors on the CPU."""


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """A teacher's features of the N clips of a dataset, row i for clip i.

    Attributes:
        embedding: float32 (N, D).
        logits: float32 (N, C), or None.
        tokens: float32 (N, K, D), or None.
        valid: bool (N,); where it is False the other arrays are 0 and carry no information.
        classes: names of the logits' columns, empty without logits.
        provenance: what computed the embeddings.
        teachers: of the mean of several teachers (`teacher_mean.py`) the features of each; empty for one teacher.
    """

    embedding: np.ndarray
    logits: np.ndarray | None
    tokens: np.ndarray | None
    valid: np.ndarray
    classes: tuple[str, ...]
    provenance: Provenance
    teachers: tuple[StoredFeatures, ...] = ()

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.embedding.shape[1])

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens."""
        return self.tokens is not None

    def without_tokens(self) -> Self:
        """The same without tokens."""
        return replace(self, tokens=None)

    def without_teachers(self) -> Self:
        """The same with nothing in `teachers`."""
        return replace(self, teachers=())

    def with_classes(self, classes: tuple[str, ...]) -> Self:
        """The same with the logits' columns in the order of `classes`; without logits where one of them is missing."""
        teachers = tuple(each.with_classes(classes) for each in self.teachers)
        if self.logits is None or not set(classes) <= set(self.classes):
            return replace(self, logits=None, classes=(), teachers=teachers)
        columns = [self.classes.index(name) for name in classes]
        return replace(self, logits=self.logits[:, columns], classes=classes, teachers=teachers)

    def select(self, clips: np.ndarray) -> Features:
        """The given rows as tensors on the CPU."""
        import torch

        from avdistill.types import Features

        return Features(
            embedding=torch.from_numpy(self.embedding[clips]),
            logits=None if self.logits is None else torch.from_numpy(self.logits[clips]),
            tokens=None if self.tokens is None else torch.from_numpy(self.tokens[clips]),
        )
