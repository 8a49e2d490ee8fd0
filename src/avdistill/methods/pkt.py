"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import pkt_loss
from avdistill.methods.base import SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative


@dataclass(frozen=True)
class PKTConfig(BaseMethodConfig):
    """Divergence over the clips that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the divergence, a mean over all pairs of clips; 30000 as in the CRD benchmark.
    """

    name: Literal["pkt"] = "pkt"
    weight: NonNegative = 30000.0


@register_method("pkt")
class PKT(SingleTermMethod):
    """The probability with which a clip picks another as its neighbor is brought to the teacher's."""

    config_class = PKTConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "transfer"
    tuning: ClassVar = {"weight": (300.0, 3000.0, 30000.0)}

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt_loss(student=student, teacher=teacher)
