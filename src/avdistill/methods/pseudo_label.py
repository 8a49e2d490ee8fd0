"""Pseudo-labels: the teacher's decision is the label of a clip without one (Lee 2013, with a teacher's labels)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.losses import masked_cross_entropy
from avdistill.methods.base import Method, TeacherRequirement, classification_loss, register_method, rows_with_teacher
from avdistill.methods.config import BaseMethodConfig, Fraction, NonNegative
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class PseudoLabelConfig(BaseMethodConfig):
    """Classification with the teacher's label on unlabeled clips, with the true one on the labeled.

    Attributes:
        confidence: The least probability of the teacher's decision, 0 for no limit: with one label per clip that of the
            class (clips below are left out), with several that of each binary decision (classes below are left out).
        weight: The weight of the term on unlabeled clips.
    """

    name: Literal["pseudo_label"] = "pseudo_label"
    confidence: Fraction = 0.0
    weight: NonNegative = 1.0


@register_method("pseudo_label")
class PseudoLabel(Method):
    """Hard labels of the teacher on unlabeled clips."""

    config: PseudoLabelConfig
    config_class = PseudoLabelConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"confidence": (0.0, 0.5, 0.8), "weight": (0.3, 1.0)}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `pseudo_labels`."""
        student_rows, teacher_rows = rows_with_teacher(student, batch)
        assert teacher_rows.logits is not None
        unlabeled = ~batch.labeled[batch.has_teacher]
        loss = self._multi_label if batch.labels.ndim == 2 else self._one_label
        pseudo = loss(student_rows.logits[unlabeled], teacher_rows.logits[unlabeled])
        return classification_loss(student, batch) | {"pseudo_labels": self.config.weight * pseudo}

    def _one_label(self, logits: Tensor, teacher: Tensor) -> Tensor:
        probability, decision = teacher.softmax(1).max(1)
        return masked_cross_entropy(logits=logits, labels=decision, labeled=probability >= self.config.confidence)

    def _multi_label(self, logits: Tensor, teacher: Tensor) -> Tensor:
        probability = teacher.sigmoid()
        confident = torch.maximum(probability, 1 - probability) >= self.config.confidence
        chosen, decisions = logits[confident], probability[confident] > 0.5
        if len(chosen) == 0:
            return chosen.sum()
        return F.binary_cross_entropy_with_logits(chosen, decisions.to(chosen.dtype))
