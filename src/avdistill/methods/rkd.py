"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import rkd_angle_loss, rkd_distance_loss
from avdistill.methods.base import Method, TeacherRequirement, classification_loss, paired, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class RKDConfig(BaseMethodConfig):
    """Relations of the clips that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of both terms.
        distance_weight: The weight of the distances; 25 as published.
        angle_weight: The weight of the angles; 50 as published.
    """

    name: Literal["rkd"] = "rkd"
    weight: NonNegative = 1.0
    distance_weight: NonNegative = 25.0
    angle_weight: NonNegative = 50.0


@register_method("rkd")
class RKD(Method):
    """The student's distances and angles between clips are brought to the teacher's."""

    config: RKDConfig
    config_class = RKDConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `distance` and `angle`."""
        c = self.config
        student_embedding, teacher_embedding = paired(student, batch, "embedding")
        distance = rkd_distance_loss(student=student_embedding, teacher=teacher_embedding)
        angle = rkd_angle_loss(student=student_embedding, teacher=teacher_embedding)
        return classification_loss(student, batch) | {
            "distance": c.weight * c.distance_weight * distance,
            "angle": c.weight * c.angle_weight * angle,
        }
