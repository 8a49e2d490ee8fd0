"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699).

The memory holds, for every training clip and side, the moving average of that side's projection. An entry is random
until its clip first comes with a teacher: until then it is nobody's negative, and the clip's positive is the other
side's present projection.

The paper draws other negatives for each anchor. Here the anchors of a batch share one draw: each still meets a uniform
sample of the memory, and a step costs the same however many clips there are.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.errors import ConfigError
from avdistill.losses import noise_contrastive_estimation, symmetric_info_nce
from avdistill.methods.base import (
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.methods.config import BaseMethodConfig, Fraction, NonNegative, Positive, PositiveInt
from avdistill.types import Batch, Features, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class CRDConfig(BaseMethodConfig):
    """Contrast of the clips that have a teacher, classification on the labeled. Defaults are the paper's.

    Attributes:
        negatives: The negatives: "memory" takes all training clips, as in the paper; "batch" is symmetric InfoNCE
            within the batch.
        weight: The weight of the contrastive term.
        temperature: The temperature tau.
        width: The dimension of the space that both sides are projected into.
        drawn: The number of negatives, drawn anew for each batch; all other clips if the memory holds no more.
        momentum: The momentum of the memory.
    """

    name: Literal["crd"] = "crd"
    negatives: Literal["memory", "batch"] = "memory"
    weight: NonNegative = 0.8
    temperature: Positive = 0.07
    width: PositiveInt = 128
    drawn: PositiveInt = 16384
    momentum: Fraction = 0.5


class Memory(nn.Module):
    """One entry per training clip and side, filled when its clip first comes with a teacher.

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
        """Entries to contrast clips with: (rows int64 (K,), bool (B, K) which of them count for which clip).

        All filled entries, or `drawn` of them with replacement if there are more; a clip's own does not count.
        """
        rows = self.filled.nonzero()[:, 0]
        if len(rows) > drawn:
            rows = rows[torch.randint(len(rows), (drawn,), device=rows.device)]
        return rows, rows != indices[:, None]

    @torch.no_grad()
    def update(self, indices: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the entries of a batch's clips towards their present projections (B, D)."""
        # A batch over the end of an epoch may hold a clip twice; the first counts, in every process.
        first = ~(indices[:, None] == indices[None, :]).tril(-1).any(1)
        indices = indices[first]
        known = self.filled[indices][:, None]
        for memory, now in ((self.student, student[first]), (self.teacher, teacher[first])):
            now = now.to(memory.dtype)
            mixed = F.normalize(momentum * memory[indices] + (1 - momentum) * now, dim=1)
            memory[indices] = torch.where(known, mixed, now)
        self.filled[indices] = True


@register_method("crd")
class CRD(Method):
    """Contrastive representation distillation at the embedding."""

    config: CRDConfig
    config_class = CRDConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.1, 0.3, 0.8), "negatives": ("memory", "batch")}
    helper_groups: ClassVar = {"projections": ("student_projection", "teacher_projection")}
    shares_space = True
    clip_buffers = ("memory.student", "memory.teacher", "memory.filled")

    def __init__(self, student: StudentNetwork, config: CRDConfig, context: MethodContext) -> None:
        """A linear projection for each side, and the memory. Raises ConfigError for a memory of no clips."""
        super().__init__(student, config, context)
        self.student_projection = nn.Linear(student.embedding_dim, config.width)
        self.teacher_projection = nn.Linear(context.teacher_dim, config.width)
        if config.negatives == "memory":
            if context.training_clips < 1:
                raise ConfigError("negatives='memory': expected training clips, found none")
            self.memory = Memory(context.training_clips, config.width)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `contrast`. Raises ValueError if the memory needs `Batch.indices`, missing."""
        s, t = self._projections(student, batch)
        if self.config.negatives == "batch":
            contrast = symmetric_info_nce(student=s, teacher=t, temperature=self.config.temperature)
        elif batch.indices is None:
            raise ValueError("crd with negatives='memory' needs Batch.indices")
        else:
            contrast = self._against_memory(s, t, batch.indices[batch.has_teacher])
        return classification_loss(student, batch) | {"contrast": self.config.weight * contrast}

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Move the memory; Z of each side is estimated on the first batch with a teacher, over the whole memory."""
        if self.config.negatives == "batch" or not batch.has_teacher.any():
            return
        assert batch.indices is not None
        s, t = self._projections(student, batch)
        for normalizer, anchor, entries in self._sides(s, t):
            if not normalizer > 0:
                normalizer.copy_(self._normalizer(normalizer, anchor, entries))
        self.memory.update(batch.indices[batch.has_teacher], s, t, self.config.momentum)

    def _projections(self, student: StudentFeatures, batch: Batch) -> tuple[Tensor, Tensor]:
        student_rows, teacher_rows = paired(student, batch, "embedding")
        s, t = self.student_projection(student_rows), self.teacher_projection(teacher_rows)
        return F.normalize(s, dim=1), F.normalize(t, dim=1)

    def _sides(self, s: Tensor, t: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Of each side the normalizer, the anchors and the entries that they are contrasted with."""
        memory = self.memory
        return (memory.student_normalizer, s, memory.teacher), (memory.teacher_normalizer, t, memory.student)

    def _scores(self, anchor: Tensor, entries: Tensor) -> Tensor:
        return anchor @ entries.T / self.config.temperature  # (B, K)

    def _normalizer(self, kept: Tensor, anchor: Tensor, entries: Tensor) -> Tensor:
        """Z as it is kept; before that, its estimate from the scores of all entries (N, D)."""
        return kept if kept > 0 else self._scores(anchor.detach(), entries).exp().mean() * len(entries)

    def _against_memory(self, s: Tensor, t: Tensor, indices: Tensor) -> Tensor:
        if len(s) == 0:
            return s.sum() + t.sum()
        rows, used = self.memory.negatives(indices, self.config.drawn)
        known = self.memory.filled[indices][:, None]
        total = s.new_zeros(())
        for (normalizer, anchor, entries), other in zip(self._sides(s, t), (t, s), strict=True):
            # Indexing copies: the memory moves before the backward pass.
            positive = torch.where(known, entries[indices], other.detach())
            total = total + noise_contrastive_estimation(
                positive=(anchor * positive).sum(1) / self.config.temperature,
                negative=self._scores(anchor, entries[rows]),
                used=used,
                normalizer=self._normalizer(normalizer, anchor, entries),
                clips=len(entries),
            )
        return total

    def shared_embeddings(self, student: Features, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Their projections."""
        return self.student_projection(student.embedding), self.teacher_projection(teacher)
