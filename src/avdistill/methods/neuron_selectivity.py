"""Neuron selectivity transfer between feature maps (Huang and Wang 2017, arXiv 1707.01219)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import neuron_selectivity
from avdistill.methods.base import SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative


@dataclass(frozen=True)
class NSTConfig(BaseMethodConfig):
    """The student's channels are to select positions as the teacher's do, on every clip that has a teacher.

    Attributes:
        weight: The weight of the selectivity term.
    """

    name: Literal["nst"] = "nst"
    weight: NonNegative = 50.0


@register_method("nst")
class NST(SingleTermMethod):
    """Neuron selectivity transfer with the polynomial kernel at the last feature map."""

    config_class = NSTConfig
    learns_from = TeacherRequirement.TOKENS
    term = "selectivity"
    tuning: ClassVar = {"weight": (0.5, 5.0, 50.0)}
    uses_tokens = True

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return neuron_selectivity(student=student, teacher=teacher)
