"""FitNet: a regressor takes the student's embedding to the teacher's (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import hint_regression, masked_cross_entropy
from avdistill.methods.base import Method, MethodContext
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class FitNetConfig:
    """Regression of the teacher's embedding on every clip that has a teacher, classification on the labeled.

    Attributes:
        weight: of the regression.
    """

    name: Literal["fitnet"] = "fitnet"
    weight: float = 1.0


class FitNet(Method):
    """Hint regression at the embedding, in one stage with the classification."""

    config: FitNetConfig
    config_class = FitNetConfig
    tuning: ClassVar = {"weight": (0.1, 1.0, 10.0, 100.0)}
    needs = "embedding"

    def __init__(self, student: StudentNetwork, config: FitNetConfig, context: MethodContext) -> None:
        """The regressor is a linear layer from the student's width to the teacher's."""
        super().__init__(student, config, context)
        self.regressor = nn.Linear(student.embedding_dim, context.teacher_dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Student and regressor, at the same rate."""
        regressor = {"name": "regressor", "params": list(self.regressor.parameters()), "lr_scale": 1.0}
        return [*super().parameter_groups(), regressor]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `hint`."""
        assert batch.teacher is not None
        rows = batch.has_teacher
        hint = hint_regression(student=self.regressor(student.embedding[rows]), teacher=batch.teacher.embedding[rows])
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "hint": self.config.weight * hint,
        }
