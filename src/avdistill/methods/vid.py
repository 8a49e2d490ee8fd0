"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835) at the embedding.

A Gaussian of the teacher's embedding, about a mean that a network computes from the student's, bounds their mutual
information from below.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from avdistill.losses import variational_information
from avdistill.losses.features import VARIANCE_FLOOR
from avdistill.methods.base import (
    BaseMethodConfig,
    Method,
    MethodContext,
    NonNegative,
    Range,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class VIDConfig(BaseMethodConfig):
    """Likelihood of the teacher's embedding on every clip that has a teacher, classification on the labeled.

    Attributes:
        weight: The weight of the likelihood term.
        initial_variance: The variance of every channel before training.
    """

    name: Literal["vid"] = "vid"
    weight: NonNegative = 1.0
    initial_variance: Annotated[float, Range(VARIANCE_FLOOR, above=True)] = 5.0


@register_method("vid")
class VID(Method):
    """Variational information distillation at the embedding."""

    config: VIDConfig
    config_class = VIDConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}

    def __init__(self, student: StudentNetwork, config: VIDConfig, context: MethodContext) -> None:
        """The mean network is the authors' three 1x1 convolutions without bias, which on an embedding are linear."""
        super().__init__(student, config, context)
        D = context.teacher_dim
        self.mean = nn.Sequential(
            nn.Linear(student.embedding_dim, D, bias=False),
            nn.ReLU(),
            nn.Linear(D, D, bias=False),
            nn.ReLU(),
            nn.Linear(D, D, bias=False),
        )
        above = config.initial_variance - VARIANCE_FLOOR
        raw = above + math.log(-math.expm1(-above))  # the inverse of softplus
        self.raw_variance = nn.Parameter(torch.full((D,), raw))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Student, and mean network and variances, at the same rate."""
        helpers = {"name": "likelihood", "params": [*self.mean.parameters(), self.raw_variance], "lr_scale": 1.0}
        return [*super().parameter_groups(), helpers]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `information`."""
        student_rows, teacher_rows = paired(student, batch, "embedding")
        information = variational_information(
            mean=self.mean(student_rows), raw_variance=self.raw_variance, teacher=teacher_rows
        )
        return classification_loss(student, batch) | {"information": self.config.weight * information}
