"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import kd_loss
from avdistill.methods.base import Method, TeacherRequirement, classification_loss, paired, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class KDConfig(BaseMethodConfig):
    """Soft labels of the teacher on every clip that has a teacher, classification on the labeled.

    Attributes:
        temperature: T of the soft labels; the loss is scaled by T^2.
        weight: The weight of the distillation term.
    """

    name: Literal["kd"] = "kd"
    temperature: Positive = 4.0
    weight: NonNegative = 1.0


@register_method("kd")
class KD(Method):
    """Knowledge distillation with soft labels."""

    config: KDConfig
    config_class = KDConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"temperature": (1.0, 2.0, 4.0, 8.0), "weight": (0.1, 0.3, 1.0)}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `soft_labels`."""
        student_logits, teacher_logits = paired(student, batch, "logits")
        divergence = kd_loss(
            student=student_logits,
            teacher=teacher_logits,
            temperature=self.config.temperature,
            multi_label=batch.labels.ndim == 2,
        )
        return classification_loss(student, batch) | {"soft_labels": self.config.weight * divergence}
