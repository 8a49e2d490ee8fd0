"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835): the student tells the teacher's embedding.

A Gaussian about what a mean network makes of the student's embedding bounds their mutual information from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from avdistill.losses import masked_cross_entropy, variational_information
from avdistill.losses.features import VARIANCE_FLOOR
from avdistill.methods.base import Method, MethodContext
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class VIDConfig:
    """Likelihood of the teacher's embedding on every clip that has a teacher, classification on the labeled.

    Attributes:
        weight: of the likelihood term.
        initial_variance: of every channel, before training.
    """

    name: Literal["vid"] = "vid"
    weight: float = 1.0
    initial_variance: float = 5.0


class VID(Method):
    """Variational information distillation at the embedding."""

    config: VIDConfig
    config_class = VIDConfig
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}
    needs = "embedding"

    def __init__(self, student: StudentNetwork, config: VIDConfig, context: MethodContext) -> None:
        """The mean network is the authors' three 1x1 convolutions without bias, which on an embedding are linear.

        Raises:
            ValueError: `initial_variance` is not above the least variance there is.
        """
        super().__init__(student, config, context)
        if config.initial_variance <= VARIANCE_FLOOR:
            raise ValueError(f"initial_variance must be above {VARIANCE_FLOOR:g}, got {config.initial_variance}")
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
        assert batch.teacher is not None
        rows = batch.has_teacher
        information = variational_information(
            mean=self.mean(student.embedding[rows]),
            raw_variance=self.raw_variance,
            teacher=batch.teacher.embedding[rows],
        )
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "information": self.config.weight * information,
        }
