"""Attention transfer between feature maps (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import attention_transfer
from avdistill.methods.base import SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative


@dataclass(frozen=True)
class ATConfig(BaseMethodConfig):
    """The student's tokens are to be active where the teacher's are, on every clip that has a teacher.

    Attributes:
        weight: The weight of the attention term, beta of the paper.
    """

    name: Literal["at"] = "at"
    weight: NonNegative = 1000.0


@register_method("at")
class AT(SingleTermMethod):
    """Activation-based attention transfer at the last feature map."""

    config_class = ATConfig
    learns_from = TeacherRequirement.TOKENS
    term = "attention"
    tuning: ClassVar = {"weight": (10.0, 100.0, 1000.0)}
    uses_tokens = True

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_transfer(student=student, teacher=teacher)
