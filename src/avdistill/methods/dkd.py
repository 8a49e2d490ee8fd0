"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv 2203.08679)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from avdistill.errors import ConfigError
from avdistill.losses import dkd_loss
from avdistill.methods.base import (
    CountingMethod,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.methods.config import BaseMethodConfig, Fraction, NonNegative, Positive
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class DKDConfig(BaseMethodConfig):
    """Defaults are the published ones for CIFAR-100.

    Attributes:
        alpha: The weight of the target class.
        beta: The weight of the other classes.
        temperature: T; both parts are scaled by T^2.
        warmup_share: The fraction of the run over which the distillation term grows linearly to its full weight; 20 of
            240 epochs in the release.
        weight: The weight of the distillation term.
    """

    name: Literal["dkd"] = "dkd"
    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    temperature: Positive = 4.0
    warmup_share: Fraction = 20 / 240
    weight: NonNegative = 1.0


@register_method("dkd")
class DKD(CountingMethod):
    """Target class and other classes distilled with separate weights. One label per clip."""

    config: DKDConfig
    config_class = DKDConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"beta": (0.5, 2.0, 8.0), "temperature": (1.0, 4.0), "weight": (0.1, 0.3, 1.0)}

    @classmethod
    def supports_multi_label(cls, config: DKDConfig) -> bool:
        """No: the target class is set apart from the others."""
        return False

    def __init__(self, student: StudentNetwork, config: DKDConfig, context: MethodContext) -> None:
        """Raises ConfigError for fewer than two classes."""
        super().__init__(student, config, context)
        if context.num_classes < 2:
            raise ConfigError(f"expected two classes or more, found {context.num_classes}")

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `decoupled`. Raises ValueError for clips with several labels."""
        if batch.labels.ndim != 1:
            raise ValueError("method 'dkd': expected one label per clip, found several")
        c, rows = self.config, batch.has_teacher
        student_logits, teacher_logits = paired(student, batch, "logits")
        divergence = dkd_loss(
            student=student_logits,
            teacher=teacher_logits,
            targets=torch.where(batch.labeled[rows], batch.labels[rows], teacher_logits.argmax(1)),
            alpha=c.alpha,
            beta=c.beta,
            temperature=c.temperature,
        )
        return classification_loss(student, batch) | {"decoupled": c.weight * self._warmup() * divergence}

    def _warmup(self) -> float:
        """The factor of the term's weight in this iteration: 1 from the last iteration of the warm-up."""
        warmup = self.config.warmup_share * self.context.total_iterations
        iteration = int(self.counter.iterations) + 1
        return iteration / warmup if iteration < warmup else 1.0
