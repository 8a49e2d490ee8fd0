"""What travels between the rooms: the one place where shapes, dtypes and units are written.

Dimensions: B clips, T frames, H and W pixels, S sound samples, C classes, K token positions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What every student and every teacher returns.

    Attributes:
        embedding: (B, D) float, before any normalisation.
        logits: (B, C) float, or None where the network has no classifier.
        tokens: (B, K, D) float, the positions of the last feature map (for video in time, height, width order),
            or None where there is no map.
    """

    embedding: Tensor
    logits: Tensor | None = None
    tokens: Tensor | None = None

    def select(self, rows: Tensor) -> Features:
        """The given rows (bool (B,) or int64 indices) of every field."""
        return Features(
            embedding=self.embedding[rows],
            logits=None if self.logits is None else self.logits[rows],
            tokens=None if self.tokens is None else self.tokens[rows],
        )

    def detach(self) -> Features:
        """The same values with no gradient to their source."""
        return Features(
            embedding=self.embedding.detach(),
            logits=None if self.logits is None else self.logits.detach(),
            tokens=None if self.tokens is None else self.tokens.detach(),
        )


@dataclass(frozen=True)
class Batch:
    """A batch of clips. What is missing is a mask, never a value that means "missing".

    Attributes:
        frames: uint8 (B, T, H, W, 3), RGB, or None when nobody looks at the picture.
        sound: float32 (B, S) mono waveform in [-1, 1], or None when nobody listens.
        teacher: the frozen teacher's features of these clips, or None for a method that needs none. Rows where
            `has_teacher` is False hold no information.
        has_teacher: bool (B,).
        labels: int64 (B,) class indices, or float32 (B, C) multi-hot. Rows where `labelled` is False hold no information.
        labelled: bool (B,).
        clip_ids: B names, for messages and tables.
    """

    labels: Tensor
    labelled: Tensor
    has_teacher: Tensor
    clip_ids: tuple[str, ...]
    frames: Tensor | None = None
    sound: Tensor | None = None
    teacher: Features | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; copies do not block when the memory is pinned."""
        moved: dict[str, Tensor | Features] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Features):
                moved[field.name] = Features(
                    *(None if t is None else t.to(device, non_blocking=True) for t in (value.embedding, value.logits, value.tokens))  # type: ignore[arg-type]
                )
        return replace(self, **moved)  # type: ignore[arg-type]
