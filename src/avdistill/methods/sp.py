"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import sp_loss
from avdistill.methods.base import SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative


@dataclass(frozen=True)
class SPConfig(BaseMethodConfig):
    """Similarities of the clips that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the similarity term; 3000 as published.
    """

    name: Literal["sp"] = "sp"
    weight: NonNegative = 3000.0


@register_method("sp")
class SP(SingleTermMethod):
    """The student's similarities between the clips of a batch are brought to the teacher's."""

    config_class = SPConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "similarity"
    tuning: ClassVar = {"weight": (300.0, 1000.0, 3000.0)}

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return sp_loss(student=student, teacher=teacher)
