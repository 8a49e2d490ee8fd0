"""Contrastive multiview coding (Tian et al. 2020, arXiv 1906.05849) between the student's and the teacher's view."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import symmetric_info_nce
from avdistill.methods.base import MethodContext, SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive, PositiveInt
from avdistill.types import Features, StudentNetwork


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
class CMC(SingleTermMethod):
    """Symmetric contrast between two views, of which only the student's network trains."""

    config: CMCConfig
    config_class = CMCConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "contrast"
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}
    helper_groups: ClassVar = {"projections": ("student_projection", "teacher_projection")}
    shares_space = True

    def __init__(self, student: StudentNetwork, config: CMCConfig, context: MethodContext) -> None:
        """A linear projection for each view."""
        super().__init__(student, config, context)
        self.student_projection = nn.Linear(student.embedding_dim, config.width)
        self.teacher_projection = nn.Linear(context.teacher_dim, config.width)

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = self.student_projection(student), self.teacher_projection(teacher)
        return symmetric_info_nce(student=s, teacher=t, temperature=self.config.temperature)

    def shared_embeddings(self, student: Features, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Their projections."""
        return self.student_projection(student.embedding), self.teacher_projection(teacher)
