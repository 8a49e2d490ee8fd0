"""Correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802), without its soft labels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import correlation_congruence
from avdistill.methods.base import MethodContext, SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, NonNegativeInt
from avdistill.types import StudentNetwork


@dataclass(frozen=True)
class CCConfig(BaseMethodConfig):
    """Correlations of the clips that have a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the correlation term; 0.02 is that of the CRD benchmark.
        gamma: The parameter of the Gaussian kernel.
        order: P of its Taylor series.
        embedding_dim: The output dimension of the trained linear layers before the kernel, one for the student and one
            for the teacher; with 0 the kernels are those of the embeddings.
    """

    name: Literal["cc"] = "cc"
    weight: NonNegative = 0.02
    gamma: NonNegative = 0.4
    order: NonNegativeInt = 2
    embedding_dim: NonNegativeInt = 128


@register_method("cc")
class CC(SingleTermMethod):
    """The student's kernel matrix is brought to the teacher's, both behind a linear layer."""

    config: CCConfig
    config_class = CCConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "correlation"
    tuning: ClassVar = {"weight": (0.02, 1.0, 100.0), "embedding_dim": (0, 128)}
    helper_groups: ClassVar = {"linear": ("linear",)}

    def __init__(self, student: StudentNetwork, config: CCConfig, context: MethodContext) -> None:
        """The linear layers, unless `embedding_dim` is 0."""
        super().__init__(student, config, context)
        self.linear = nn.ModuleDict()
        if config.embedding_dim:
            self.linear["student"] = nn.Linear(student.embedding_dim, config.embedding_dim)
            self.linear["teacher"] = nn.Linear(context.teacher_dim, config.embedding_dim)

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.linear:  # without rows, their outputs are empty and keep them in the graph
            student, teacher = self.linear["student"](student), self.linear["teacher"](teacher)
        c = self.config
        return correlation_congruence(student=student, teacher=teacher, gamma=c.gamma, order=c.order)
