"""Compositional contrastive learning (Chen et al. 2021, arXiv 2104.10955).

Gradient routing. The release runs two backward passes: the head's objective, whose student gradients it discards, then
the student's, through the same head, whose gradients the head keeps. The same gradients come from one pass: the
student's objective on its features, and the head's objective on detached copies of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from avdistill.losses import ccl_nce, masked_cross_entropy, two_way_divergence
from avdistill.methods.base import (
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    register_method,
    rows_with_teacher,
)
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class CCLConfig(BaseMethodConfig):
    """Defaults are the release's for an audio teacher.

    Attributes:
        temperature: The temperature of the contrastive terms: 0.5 for an audio teacher; the release has 0.1 for a video
            teacher.
        weight: The weight of contrastive terms and divergences, of student and head alike.
        released_head_gradients: Let the student's objective train the head as well, as the release does since its
            commit b590483; otherwise only the head's own objective does, as in the first release.
    """

    name: Literal["ccl"] = "ccl"
    temperature: Positive = 0.5
    weight: NonNegative = 1.0
    released_head_gradients: bool = True


class CompositionHead(nn.Module):
    """c = t + W [t / |t| ; v / |v|], classified by a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.residual = nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, teacher: Tensor, student: Tensor) -> StudentFeatures:
        """The composed embedding (B, D) and logits (B, C) of embeddings (B, D) of both sides."""
        composed = teacher + self.residual(torch.cat([F.normalize(teacher, dim=1), F.normalize(student, dim=1)], dim=1))
        return StudentFeatures(embedding=composed, logits=self.classifier(composed))


@register_method("ccl")
class CCL(Method):
    """The paper's method with one teacher. Rows without a teacher take part in the classification only."""

    config: CCLConfig
    config_class = CCLConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"temperature": (0.1, 0.5), "weight": (0.1, 0.3, 1.0)}
    helper_groups: ClassVar = {"head": ("head",), "projection": ("projection",)}

    def __init__(self, student: StudentNetwork, config: CCLConfig, context: MethodContext) -> None:
        """Where widths differ, a linear layer that trains with the student brings it to the teacher's."""
        super().__init__(student, config, context)
        D = context.teacher_dim
        self.projection = nn.Identity() if student.embedding_dim == D else nn.Linear(student.embedding_dim, D)
        self.head = CompositionHead(D, context.num_classes)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Student: `classification`, `contrast`, `divergence`; head: the same three, with `head_` before them."""
        c = self.config
        student_rows, teacher_rows = rows_with_teacher(student, batch)
        v, t = self.projection(student_rows.embedding), teacher_rows.embedding
        labels, labeled = batch.labels[batch.has_teacher], batch.labeled[batch.has_teacher]

        def contrast(first: Tensor, second: Tensor) -> Tensor:
            return ccl_nce(first=first, second=second, labels=labels, labeled=labeled, temperature=c.temperature)

        def divergence(logits: Tensor, composed: StudentFeatures) -> Tensor:
            return two_way_divergence(first=logits, second=composed.logits, multi_label=labels.ndim == 2)

        with_grad = self._composed(t, v, train_head=c.released_head_gradients)
        detached = self._composed(t, v.detach())
        return classification_loss(student, batch) | {
            "contrast": c.weight * (contrast(v, with_grad.embedding) + contrast(v, t)),
            "divergence": c.weight * divergence(student_rows.logits, with_grad),
            "head_classification": masked_cross_entropy(logits=detached.logits, labels=labels, labeled=labeled),
            "head_contrast": c.weight * (contrast(v.detach(), detached.embedding) + contrast(detached.embedding, t)),
            "head_divergence": c.weight * divergence(student_rows.logits.detach(), detached),
        }

    def _composed(self, teacher: Tensor, student: Tensor, *, train_head: bool = True) -> StudentFeatures:
        frozen = {} if train_head else {name: p.detach() for name, p in self.head.named_parameters()}
        return functional_call(self.head, frozen, (teacher, student))
