"""DIST: distillation by correlation (Huang, You, Wang, Qian and Xu, NeurIPS 2022, arXiv 2205.10536)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from avdistill.losses import dist_inter_loss, dist_intra_loss
from avdistill.methods.base import Method, TeacherRequirement, classification_loss, paired, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class DISTConfig(BaseMethodConfig):
    """Defaults are those of the released loss.

    Attributes:
        beta: The weight of the correlation over classes, clip by clip.
        gamma: The weight of the correlation over clips, class by class.
        temperature: T of the softmax; both terms are scaled by T^2. 1 for ImageNet, 4 for CIFAR-100.
        weight: The weight of both terms; 2 in the released trainings.
    """

    name: Literal["dist"] = "dist"
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    temperature: Positive = 1.0
    weight: NonNegative = 1.0


@register_method("dist")
class DIST(Method):
    """The student's probabilities correlate with the teacher's, within a clip and within a class."""

    config: DISTConfig
    config_class = DISTConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"temperature": (1.0, 4.0), "weight": (0.3, 1.0, 2.0)}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `inter_class` and `intra_class`."""
        c = self.config
        student_logits, teacher_logits = paired(student, batch, "logits")
        pair: dict[str, Any] = {"student": student_logits, "teacher": teacher_logits}
        pair |= {"temperature": c.temperature, "multi_label": batch.labels.ndim == 2}
        return classification_loss(student, batch) | {
            "inter_class": c.weight * c.beta * dist_inter_loss(**pair),
            "intra_class": c.weight * c.gamma * dist_intra_loss(**pair),
        }
