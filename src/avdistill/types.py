"""The types that all rooms exchange: their shapes, dtypes and units.

Dimensions: B clips, T frames, H and W pixels, S audio samples, C classes, K token positions, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

# Defined where no PyTorch is needed.
from avdistill.inputs import Option as Option
from avdistill.inputs import StudentConfig as StudentConfig


@dataclass(frozen=True)
class Features:
    """The output of a network for a batch.

    Attributes:
        embedding: (B, D) float, not normalized.
        logits: (B, C) float, or None for a network without a classifier.
        tokens: (B, K, D) float, the positions of the last feature map (of a video in the order time, height, width),
            or None for a network without a feature map.
    """

    embedding: Tensor
    logits: Tensor | None = None
    tokens: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """`function` applied to every field that is not None."""
        return replace(self, **{name: function(value) for name, value in vars(self).items() if value is not None})

    def select(self, rows: Tensor) -> Self:
        """The given rows (bool (B,) or int64 indices) of every field."""
        return self.map(lambda values: values[rows])

    def detach(self) -> Self:
        """The same values without a gradient to their source."""
        return self.map(Tensor.detach)


@dataclass(frozen=True)
class StudentFeatures(Features):
    """The output of a student: logits (B, C) are always there."""

    logits: Tensor = field()


class Network(nn.Module):
    """A student or teacher: normalized frames (B, 3, T, H, W) or a waveform (B, S) in, `Features` out.

    Attributes:
        modality: "video" or "audio".
        embedding_dim: D of its embedding and tokens.
    """

    modality: Literal["video", "audio"]
    embedding_dim: int

    def forward(self, inputs: Tensor) -> Features:
        """The features of a batch."""
        raise NotImplementedError


class StudentNetwork(Network):
    """A network with a classifier: what can be trained as a student."""

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """The features of a batch, logits included."""
        raise NotImplementedError


@dataclass(frozen=True)
class Batch:
    """A batch of clips. Missing values are marked by masks.

    Attributes:
        frames: uint8 (B, T, H, W, 3), RGB, or None for an audio student.
        audio: float32 (B, S) mono waveform in [-1, 1], or None for a video student.
        teacher: the frozen teacher's features of these clips, or None for a method without a teacher. Rows where
            `has_teacher` is False are to be ignored.
        has_teacher: bool (B,).
        each_teacher: the features of each of K teachers, whose mean is `teacher`; empty for one teacher, and for a
            method that takes the mean.
        has_each: bool (B, K), likewise None; rows of a teacher where it is False are to be ignored.
        labels: int64 (B,) class indices, or float32 (B, C) multi-hot; rows where `labeled` is False are to be ignored.
        labeled: bool (B,).
        clip_ids: B names, for messages and tables.
        indices: int64 (B,), which of the run's training clips these are, for methods with a memory of clips; or None.
    """

    labels: Tensor
    labeled: Tensor
    has_teacher: Tensor
    clip_ids: tuple[str, ...]
    frames: Tensor | None = None
    audio: Tensor | None = None
    teacher: Features | None = None
    indices: Tensor | None = None
    each_teacher: tuple[Features, ...] = ()
    has_each: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """`function` applied to every tensor of the batch, the teacher's features included."""
        changed: dict[str, Any] = {n: function(value) for n, value in vars(self).items() if isinstance(value, Tensor)}
        each = tuple(features.map(function) for features in self.each_teacher)
        teacher = None if self.teacher is None else self.teacher.map(function)
        return replace(self, teacher=teacher, each_teacher=each, **changed)

    def ready_for(self, device: torch.device) -> Self:
        """The batch in host memory, pinned if `device` is a GPU: `to` then copies without blocking."""
        return self.map(Tensor.pin_memory) if device.type == "cuda" else self

    def to(self, device: torch.device) -> Self:
        """The batch on `device`; copies do not block when the memory is pinned."""
        return self.map(lambda values: values.to(device, non_blocking=True))
