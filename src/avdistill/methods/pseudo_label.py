"""Pseudo-labels: where a clip has no label, the teacher's decision is its label (Lee 2013, with a teacher's labels)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.losses import masked_cross_entropy
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class PseudoLabelConfig:
    """ClassificationResult with the teacher's label on unlabeled clips, with the true one on the labeled.

    Attributes:
        confidence: least probability of the teacher's decision; 0 takes them all. With one label per clip that of the
            class (clips below are left out), with several that of each yes or no (classes below are left out).
        weight: of the term on unlabeled clips.
    """

    name: Literal["pseudo_label"] = "pseudo_label"
    confidence: float = 0.0
    weight: float = 1.0


class PseudoLabel(Method):
    """Hard labels of the teacher on unlabeled clips."""

    config: PseudoLabelConfig
    config_class = PseudoLabelConfig
    tuning: ClassVar = {"confidence": (0.0, 0.5, 0.8), "weight": (0.3, 1.0)}
    needs = "logits"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `pseudo_labels`."""
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        rows = batch.has_teacher & ~batch.labeled
        logits, teacher = student.logits[rows], batch.teacher.logits[rows].detach()
        pseudo = self._several(logits, teacher) if batch.labels.ndim == 2 else self._one(logits, teacher)
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "pseudo_labels": self.config.weight * pseudo,
        }

    def _one(self, logits: Tensor, teacher: Tensor) -> Tensor:
        probability, decision = teacher.softmax(1).max(1)
        return masked_cross_entropy(logits=logits, labels=decision, labeled=probability >= self.config.confidence)

    def _several(self, logits: Tensor, teacher: Tensor) -> Tensor:
        yes = teacher.sigmoid()
        sure = torch.maximum(yes, 1 - yes) >= self.config.confidence
        chosen, decisions = logits[sure], yes[sure] > 0.5
        if len(chosen) == 0:
            return chosen.sum()
        return F.binary_cross_entropy_with_logits(chosen, decisions.to(chosen.dtype))
