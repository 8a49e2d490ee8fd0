"""Correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802), without its soft labels."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import correlation_congruence
from avdistill.methods.base import (
    BaseMethodConfig,
    Method,
    MethodContext,
    NonNegative,
    NonNegativeInt,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.types import Batch, StudentFeatures, StudentNetwork


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
class CC(Method):
    """The student's kernel matrix is brought to the teacher's, both behind a linear layer."""

    config: CCConfig
    config_class = CCConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.02, 1.0, 100.0), "embedding_dim": (0, 128)}

    def __init__(self, student: StudentNetwork, config: CCConfig, context: MethodContext) -> None:
        """The linear layers, unless `embedding_dim` is 0."""
        super().__init__(student, config, context)
        self.linear = nn.ModuleDict()
        if config.embedding_dim:
            self.linear["student"] = nn.Linear(student.embedding_dim, config.embedding_dim)
            self.linear["teacher"] = nn.Linear(context.teacher_dim, config.embedding_dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student and, at the same rate, the linear layers if there are any."""
        groups = super().parameter_groups()
        if self.linear:
            groups.append({"name": "linear", "params": list(self.linear.parameters()), "lr_scale": 1.0})
        return groups

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `correlation`."""
        student_rows, teacher_rows = paired(student, batch, "embedding")
        if self.linear:  # without rows, their outputs are empty and keep them in the graph
            student_rows, teacher_rows = self.linear["student"](student_rows), self.linear["teacher"](teacher_rows)
        correlation = correlation_congruence(
            student=student_rows, teacher=teacher_rows, gamma=self.config.gamma, order=self.config.order
        )
        return classification_loss(student, batch) | {"correlation": self.config.weight * correlation}
