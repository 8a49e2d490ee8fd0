"""Attention transfer between feature maps (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import attention_transfer
from avdistill.methods.base import (
    BaseMethodConfig,
    Method,
    NonNegative,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class ATConfig(BaseMethodConfig):
    """The student's tokens are to be active where the teacher's are, on every clip that has a teacher.

    Attributes:
        weight: The weight of the attention term, beta of the paper.
    """

    name: Literal["at"] = "at"
    weight: NonNegative = 1000.0


@register_method("at")
class AT(Method):
    """Activation-based attention transfer at the last feature map."""

    config: ATConfig
    config_class = ATConfig
    learns_from = TeacherRequirement.TOKENS
    tuning: ClassVar = {"weight": (10.0, 100.0, 1000.0)}
    uses_tokens = True

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `attention`."""
        student_tokens, teacher_tokens = paired(student, batch, "tokens")
        attention = attention_transfer(student=student_tokens, teacher=teacher_tokens)
        return classification_loss(student, batch) | {"attention": self.config.weight * attention}
