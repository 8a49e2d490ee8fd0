"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import sp_loss
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
class SPConfig(BaseMethodConfig):
    """Similarities of the clips that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the similarity term; 3000 as published.
    """

    name: Literal["sp"] = "sp"
    weight: NonNegative = 3000.0


@register_method("sp")
class SP(Method):
    """The student's similarities between the clips of a batch are brought to the teacher's."""

    config: SPConfig
    config_class = SPConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (300.0, 1000.0, 3000.0)}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `similarity`."""
        student_embedding, teacher_embedding = paired(student, batch, "embedding")
        similarity = sp_loss(student=student_embedding, teacher=teacher_embedding)
        return classification_loss(student, batch) | {"similarity": self.config.weight * similarity}
