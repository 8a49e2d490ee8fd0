"""Neuron selectivity transfer between feature maps (Huang and Wang 2017, arXiv 1707.01219)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import neuron_selectivity
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
class NSTConfig(BaseMethodConfig):
    """The student's channels are to select positions as the teacher's do, on every clip that has a teacher.

    Attributes:
        weight: The weight of the selectivity term.
    """

    name: Literal["nst"] = "nst"
    weight: NonNegative = 50.0


@register_method("nst")
class NST(Method):
    """Neuron selectivity transfer with the polynomial kernel at the last feature map."""

    config: NSTConfig
    config_class = NSTConfig
    learns_from = TeacherRequirement.TOKENS
    tuning: ClassVar = {"weight": (0.5, 5.0, 50.0)}
    uses_tokens = True

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `selectivity`."""
        student_tokens, teacher_tokens = paired(student, batch, "tokens")
        selectivity = neuron_selectivity(student=student_tokens, teacher=teacher_tokens)
        return classification_loss(student, batch) | {"selectivity": self.config.weight * selectivity}
