"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699).

The memory holds, for every training clip and side, the moving average of what that side's projection made of it. An
entry says nothing before its clip was seen with a teacher: until then it is nobody's negative, and the clip's positive
is what the other side makes of it now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.losses import masked_cross_entropy, noise_contrastive_estimation, symmetric_info_nce
from avdistill.methods.base import Method, MethodContext
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class CRDConfig:
    """Contrast of the clips that have a teacher, classification on the labeled. Defaults are the paper's.

    Attributes:
        negatives: "memory": of all training clips, as in the paper; "batch": symmetric InfoNCE within the batch.
        weight: of the contrast.
        temperature: tau.
        width: of the space both sides are projected into.
        drawn: negatives of an anchor; all other clips where the memory holds no more.
        momentum: of the memory.
    """

    name: Literal["crd"] = "crd"
    negatives: Literal["memory", "batch"] = "memory"
    weight: float = 0.8
    temperature: float = 0.07
    width: int = 128
    drawn: int = 16384
    momentum: float = 0.5


class Memory(nn.Module):
    """One entry per training clip for each side, filled when its clip is first seen with a teacher.

    Attributes:
        student: (N, D) unit vectors.
        teacher: (N, D) unit vectors.
        filled: bool (N,); other entries are random, as they were made.
        student_normalizer: Z of the scores of student anchors; 0 before it is estimated.
        teacher_normalizer: Z of the scores of teacher anchors.
    """

    student: Tensor
    teacher: Tensor
    filled: Tensor
    student_normalizer: Tensor
    teacher_normalizer: Tensor

    def __init__(self, clips: int, width: int) -> None:
        super().__init__()
        bound = (3 / width) ** 0.5  # the squared length of a row is 1 on average
        for side in ("student", "teacher"):
            self.register_buffer(side, torch.empty(clips, width).uniform_(-bound, bound))
            self.register_buffer(f"{side}_normalizer", torch.zeros(()))
        self.register_buffer("filled", torch.zeros(clips, dtype=torch.bool))

    def negatives(self, indices: Tensor, drawn: int) -> tuple[Tensor, Tensor]:
        """Entries to hold clips against: (columns int64 (B, K) or (1, N), bool (B, K) which of them count).

        All filled entries but the own one, or `drawn` of them with replacement where there are more; a draw that hits
        the own entry does not count.
        """
        columns = self.filled.nonzero()[:, 0]
        if len(columns) > drawn:
            columns = columns[torch.randint(len(columns), (len(indices), drawn), device=columns.device)]
        else:
            columns = columns.expand(len(indices), -1)
        return columns, columns != indices[:, None]

    def normalizer(self, kept: Tensor, scores: Tensor) -> Tensor:
        """Z of a side's scores (B, N), estimated on the first training batch over the whole memory, then `kept`."""
        if kept > 0:
            return kept
        estimate = scores.detach().exp().mean() * len(self.filled)
        if self.training:
            kept.copy_(estimate)
        return estimate

    @torch.no_grad()
    def update(self, indices: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the entries of a batch's clips to what the projections (B, D) made of them now."""
        # A batch over the end of an epoch may hold a clip twice; the first counts, in every process.
        first = ~(indices[:, None] == indices[None, :]).tril(-1).any(1)
        indices = indices[first]
        known = self.filled[indices][:, None]
        for memory, now in ((self.student, student[first]), (self.teacher, teacher[first])):
            now = now.to(memory.dtype)
            mixed = F.normalize(momentum * memory[indices] + (1 - momentum) * now, dim=1)
            memory[indices] = torch.where(known, mixed, now)
        self.filled[indices] = True


class CRD(Method):
    """Contrastive representation distillation at the embedding."""

    config: CRDConfig
    config_class = CRDConfig
    tuning: ClassVar = {"weight": (0.1, 0.3, 0.8), "negatives": ("memory", "batch")}
    needs = "embedding"

    def __init__(self, student: StudentNetwork, config: CRDConfig, context: MethodContext) -> None:
        """A linear projection for each side, and the memory.

        Raises:
            ValueError: unknown `negatives`, a `width` or number `drawn` below 1, or a memory of no clips.
        """
        super().__init__(student, config, context)
        if config.negatives not in ("memory", "batch"):
            raise ValueError(f"negatives must be 'memory' or 'batch', got {config.negatives!r}")
        for name in ("width", "drawn"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
        self.student_projection = nn.Linear(student.embedding_dim, config.width)
        self.teacher_projection = nn.Linear(context.teacher_dim, config.width)
        if config.negatives == "memory":
            if context.training_clips < 1:
                raise ValueError("crd with negatives='memory' needs the number of training clips")
            self.memory = Memory(context.training_clips, config.width)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Student and projections, at the same rate."""
        params = [*self.student_projection.parameters(), *self.teacher_projection.parameters()]
        return [*super().parameter_groups(), {"name": "projections", "params": params, "lr_scale": 1.0}]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `contrast`.

        Raises:
            ValueError: the memory is asked for and the batch does not say which clips it holds.
        """
        assert batch.teacher is not None
        rows = batch.has_teacher
        s = F.normalize(self.student_projection(student.embedding[rows]), dim=1)
        t = F.normalize(self.teacher_projection(batch.teacher.embedding[rows].detach()), dim=1)
        if self.config.negatives == "batch":
            contrast = symmetric_info_nce(student=s, teacher=t, temperature=self.config.temperature)
        elif batch.indices is None:
            raise ValueError("crd with negatives='memory' needs Batch.indices")
        else:
            contrast = self._against_memory(s, t, batch.indices[rows])
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "contrast": self.config.weight * contrast,
        }

    def _against_memory(self, s: Tensor, t: Tensor, indices: Tensor) -> Tensor:
        if len(s) == 0:
            return s.sum() + t.sum()
        memory = self.memory
        columns, used = memory.negatives(indices, self.config.drawn)
        known = memory.filled[indices][:, None]
        total = s.new_zeros(())
        for anchor, other, remembered, kept in (
            (s, t, memory.teacher, memory.student_normalizer),
            (t, s, memory.student, memory.teacher_normalizer),
        ):
            entries = remembered.clone()  # the memory changes below, before the backward pass
            scores = anchor @ entries.T / self.config.temperature  # (B, N)
            own = torch.where(known, entries[indices], other.detach())
            total = total + noise_contrastive_estimation(
                positive=(anchor * own).sum(1) / self.config.temperature,
                negative=scores.gather(1, columns),
                used=used,
                normalizer=memory.normalizer(kept, scores),
                clips=len(entries),
            )
        if self.training:
            memory.update(indices, s, t, self.config.momentum)
        return total
