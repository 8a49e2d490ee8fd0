"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835) at the embedding.

A Gaussian of the teacher's embedding, about a mean that a network computes from the student's, bounds their mutual
information from below.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from avdistill.losses import variational_information
from avdistill.losses.features import VARIANCE_FLOOR
from avdistill.methods.base import MethodContext, SingleTermMethod, TeacherRequirement, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, Range
from avdistill.types import StudentNetwork


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
class VID(SingleTermMethod):
    """Variational information distillation at the embedding."""

    config_class = VIDConfig
    learns_from = TeacherRequirement.EMBEDDING
    term = "information"
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}
    helper_groups: ClassVar = {"likelihood": ("mean", "raw_variance")}

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

    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return variational_information(mean=self.mean(student), raw_variance=self.raw_variance, teacher=teacher)
