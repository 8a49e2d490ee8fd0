"""FitNet: a regressor maps the student's embedding to the teacher's (Romero et al. 2015, arXiv 1412.6550)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import hint_regression
from avdistill.methods.base import MethodContext, SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative
from avdistill.types import StudentNetwork


@dataclass(frozen=True)
class FitNetConfig(BaseMethodConfig):
    """Regression of the teacher's embedding on every clip that has a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the regression.
    """

    name: Literal["fitnet"] = "fitnet"
    weight: NonNegative = 1.0


@register_method("fitnet")
class FitNet(SingleTermMethod):
    """Hint regression at the embedding, in one stage with the classification."""

    config_class = FitNetConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "hint"
    tuning: ClassVar = {"weight": (0.1, 1.0, 10.0, 100.0)}
    helper_groups: ClassVar = {"regressor": ("regressor",)}

    def __init__(self, student: StudentNetwork, config: FitNetConfig, context: MethodContext) -> None:
        """The regressor is a linear layer from the student's width to the teacher's."""
        super().__init__(student, config, context)
        self.regressor = nn.Linear(student.embedding_dim, context.teacher_dim)

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return hint_regression(student=self.regressor(student), teacher=teacher)
