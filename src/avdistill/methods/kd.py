"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import kd_loss, masked_cross_entropy
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class KDConfig:
    """Soft labels of the teacher's head on every clip that has a teacher, classification on the labeled.

    Attributes:
        temperature: T of the soft labels; the loss is scaled by T^2.
        weight: of the distillation term.
    """

    name: Literal["kd"] = "kd"
    temperature: float = 4.0
    weight: float = 1.0


class KD(Method):
    """Knowledge distillation with soft labels."""

    config: KDConfig
    config_class = KDConfig
    tuning: ClassVar = {"temperature": (1.0, 2.0, 4.0, 8.0), "weight": (0.1, 0.3, 1.0)}
    needs = "logits"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `soft_labels`."""
        logits = student.logits
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        rows = batch.has_teacher
        divergence = kd_loss(
            student=logits[rows],
            teacher=batch.teacher.logits[rows],
            temperature=self.config.temperature,
            multi_label=batch.labels.ndim == 2,
        )
        return {
            "classification": masked_cross_entropy(logits=logits, labels=batch.labels, labeled=batch.labeled),
            "soft_labels": self.config.weight * divergence,
        }
