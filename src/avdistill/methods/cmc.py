"""Contrastive multiview coding (Tian et al. 2020, arXiv 1906.05849) between the student's and the teacher's view."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import symmetric_info_nce
from avdistill.methods.base import (
    BaseMethodConfig,
    Method,
    MethodContext,
    NonNegative,
    Positive,
    PositiveInt,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class CMCConfig(BaseMethodConfig):
    """Contrast of the clips of a batch that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the contrastive term, in the paper the only loss.
        temperature: The temperature tau.
        width: The dimension of the space that both views are projected into.
    """

    name: Literal["cmc"] = "cmc"
    weight: NonNegative = 1.0
    temperature: Positive = 0.07
    width: PositiveInt = 128


@register_method("cmc")
class CMC(Method):
    """Symmetric contrast between two views, of which only the student's network trains."""

    config: CMCConfig
    config_class = CMCConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}

    def __init__(self, student: StudentNetwork, config: CMCConfig, context: MethodContext) -> None:
        """A linear projection for each view."""
        super().__init__(student, config, context)
        self.student_projection = nn.Linear(student.embedding_dim, config.width)
        self.teacher_projection = nn.Linear(context.teacher_dim, config.width)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Student and projections, at the same rate."""
        params = [*self.student_projection.parameters(), *self.teacher_projection.parameters()]
        return [*super().parameter_groups(), {"name": "projections", "params": params, "lr_scale": 1.0}]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `contrast`."""
        student_rows, teacher_rows = paired(student, batch, "embedding")
        contrast = symmetric_info_nce(
            student=self.student_projection(student_rows),
            teacher=self.teacher_projection(teacher_rows),
            temperature=self.config.temperature,
        )
        return classification_loss(student, batch) | {"contrast": self.config.weight * contrast}
