"""Attention transfer between feature maps (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import attention_transfer, masked_cross_entropy
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class ATConfig:
    """Where the teacher's map is active, the student's is to be, on every clip that has a teacher.

    Attributes:
        weight: of the attention term, beta of the paper.
    """

    name: Literal["at"] = "at"
    weight: float = 1000.0


class AT(Method):
    """Activation-based attention transfer at the last feature map."""

    config: ATConfig
    config_class = ATConfig
    tuning: ClassVar = {"weight": (10.0, 100.0, 1000.0)}
    needs = "tokens"
    uses_tokens = True

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `attention`."""
        assert student.tokens is not None
        assert batch.teacher is not None
        assert batch.teacher.tokens is not None
        rows = batch.has_teacher
        attention = attention_transfer(student=student.tokens[rows], teacher=batch.teacher.tokens[rows])
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "attention": self.config.weight * attention,
        }
