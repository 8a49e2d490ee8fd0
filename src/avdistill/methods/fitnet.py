"""FitNet: a regressor maps the student's embedding to the teacher's (Romero et al. 2015, arXiv 1412.6550)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import hint_regression
from avdistill.methods.base import (
    BaseMethodConfig,
    Method,
    MethodContext,
    NonNegative,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class FitNetConfig(BaseMethodConfig):
    """Regression of the teacher's embedding on every clip that has a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the regression.
    """

    name: Literal["fitnet"] = "fitnet"
    weight: NonNegative = 1.0


@register_method("fitnet")
class FitNet(Method):
    """Hint regression at the embedding, in one stage with the classification."""

    config: FitNetConfig
    config_class = FitNetConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.1, 1.0, 10.0, 100.0)}

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
        student_embedding, teacher_embedding = paired(student, batch, "embedding")
        hint = hint_regression(student=self.regressor(student_embedding), teacher=teacher_embedding)
        return classification_loss(student, batch) | {"hint": self.config.weight * hint}
