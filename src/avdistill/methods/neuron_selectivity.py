"""Neuron selectivity transfer between feature maps (Huang and Wang 2017, arXiv 1707.01219)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import masked_cross_entropy, neuron_selectivity
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class NSTConfig:
    """The student's channels are to select positions as the teacher's do, on every clip that has a teacher.

    Attributes:
        weight: of the selectivity term.
    """

    name: Literal["nst"] = "nst"
    weight: float = 50.0


class NST(Method):
    """Neuron selectivity transfer with the polynomial kernel at the last feature map."""

    config: NSTConfig
    config_class = NSTConfig
    tuning: ClassVar = {"weight": (0.5, 5.0, 50.0)}
    needs = "tokens"
    uses_tokens = True

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `selectivity`."""
        assert student.tokens is not None
        assert batch.teacher is not None
        assert batch.teacher.tokens is not None
        rows = batch.has_teacher
        selectivity = neuron_selectivity(student=student.tokens[rows], teacher=batch.teacher.tokens[rows])
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "selectivity": self.config.weight * selectivity,
        }
