"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from avdistill.losses import dkd_loss, masked_cross_entropy
from avdistill.methods.base import Method, MethodContext, PassCounter
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class DKDConfig:
    """Defaults are the published ones for CIFAR-100.

    Attributes:
        alpha: weight of the target class.
        beta: weight of the other classes.
        temperature: T; both parts are scaled by T^2.
        warmup_share: share of the run over which the distillation term grows linearly to its full weight; 20 of 240
            epochs in the release. 0: none.
        weight: of the distillation term.
    """

    name: Literal["dkd"] = "dkd"
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    warmup_share: float = 20 / 240
    weight: float = 1.0


class DKD(Method):
    """Target class and other classes distilled with weights of their own. One label per clip."""

    config: DKDConfig
    config_class = DKDConfig
    tuning: ClassVar = {"beta": (0.5, 2.0, 8.0), "temperature": (1.0, 4.0), "weight": (0.1, 0.3, 1.0)}
    needs = "logits"
    multi_label = False

    def __init__(self, student: StudentNetwork, config: DKDConfig, context: MethodContext) -> None:
        """Raises ValueError where there are fewer than two classes."""
        super().__init__(student, config, context)
        if context.num_classes < 2:
            raise ValueError("dkd needs two classes or more: it sets the target class apart from the others")
        self.counter = PassCounter()

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `decoupled`.

        Raises:
            ValueError: clips with several labels.
        """
        if batch.labels.ndim != 1:
            raise ValueError("method 'dkd' needs one label per clip: it sets the target class apart from the others")
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        c, rows = self.config, batch.has_teacher
        teacher = batch.teacher.logits[rows].detach()
        divergence = dkd_loss(
            student=student.logits[rows],
            teacher=teacher,
            targets=torch.where(batch.labeled[rows], batch.labels[rows], teacher.argmax(1)),
            alpha=c.alpha,
            beta=c.beta,
            temperature=c.temperature,
        )
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "decoupled": c.weight * self._warmup() * divergence,
        }

    def _warmup(self) -> float:
        """The term's share of its weight in this pass; the last pass of the warm-up is the first with all of it."""
        passes = self.config.warmup_share * self.context.passes
        done = self.counter.advance() + 1
        return done / passes if done < passes else 1.0
