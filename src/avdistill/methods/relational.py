"""Distillation of relations between the clips of a batch: SP, CC, RKD and PKT (docs/methods/relational.md).

All compare relations within the student with relations within the teacher, over the clips that have a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from avdistill.losses import (
    correlation_congruence,
    masked_cross_entropy,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from avdistill.methods.base import Method, MethodContext
from avdistill.types import Batch, StudentFeatures, StudentNetwork


def _supervised(student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
    return {"classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled)}


def _embeddings(student: StudentFeatures, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, D) of the student and (N, E) of the teacher, of the N clips that have a teacher."""
    assert batch.teacher is not None
    rows = batch.has_teacher
    return student.embedding[rows], batch.teacher.embedding[rows].detach()


@dataclass(frozen=True)
class SPConfig:
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019).

    Attributes:
        weight: of the similarity term; 3000 as published.
    """

    name: Literal["sp"] = "sp"
    weight: float = 3000.0


class SP(Method):
    """The student's batch similarities are brought to the teacher's."""

    config: SPConfig
    config_class = SPConfig
    tuning: ClassVar = {"weight": (300.0, 1000.0, 3000.0)}
    needs = "embedding"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `similarity`."""
        seen, teacher = _embeddings(student, batch)
        similarity = sp_loss(student=seen, teacher=teacher)
        return _supervised(student, batch) | {"similarity": self.config.weight * similarity}


@dataclass(frozen=True)
class CCConfig:
    """Correlation congruence (Peng et al., ICCV 2019), without its soft labels.

    Attributes:
        weight: of the correlation term; 0.02 is that of the CRD benchmark.
        gamma: of the Gaussian kernel.
        order: P of its Taylor series.
        embedding_dim: width of the trained linear layers in front of the kernel, one for the student and one for the
            teacher; 0: none, the kernels are those of the embeddings.
    """

    name: Literal["cc"] = "cc"
    weight: float = 0.02
    gamma: float = 0.4
    order: int = 2
    embedding_dim: int = 128


class CC(Method):
    """The student's kernel matrix is brought to the teacher's, both behind a linear layer."""

    config: CCConfig
    config_class = CCConfig
    tuning: ClassVar = {"weight": (0.02, 1.0, 100.0), "embedding_dim": (0, 128)}
    needs = "embedding"

    def __init__(self, student: StudentNetwork, config: CCConfig, context: MethodContext) -> None:
        """Raises ValueError for a negative width or order."""
        super().__init__(student, config, context)
        if config.embedding_dim < 0 or config.order < 0:
            raise ValueError(f"cc needs embedding_dim and order of 0 or more, got {config.embedding_dim, config.order}")
        self.linear = nn.ModuleDict()
        if config.embedding_dim:
            self.linear["student"] = nn.Linear(student.embedding_dim, config.embedding_dim)
            self.linear["teacher"] = nn.Linear(context.teacher_dim, config.embedding_dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student, and the two layers where there are any, at its rate."""
        if not self.linear:
            return super().parameter_groups()
        return [
            *super().parameter_groups(),
            {"name": "linear", "params": list(self.linear.parameters()), "lr_scale": 1.0},
        ]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `correlation`."""
        seen, teacher = _embeddings(student, batch)
        if self.linear:  # without rows, their outputs are empty and keep them in the graph
            seen, teacher = self.linear["student"](seen), self.linear["teacher"](teacher)
        correlation = correlation_congruence(
            student=seen, teacher=teacher, gamma=self.config.gamma, order=self.config.order
        )
        return _supervised(student, batch) | {"correlation": self.config.weight * correlation}


@dataclass(frozen=True)
class RKDConfig:
    """Relational knowledge distillation (Park et al., CVPR 2019).

    Attributes:
        weight: of both terms.
        distance_weight: of the distances; 25 as published.
        angle_weight: of the angles; 50 as published.
    """

    name: Literal["rkd"] = "rkd"
    weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0


class RKD(Method):
    """The student's distances and angles between clips are brought to the teacher's."""

    config: RKDConfig
    config_class = RKDConfig
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0)}
    needs = "embedding"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `distance` and `angle`."""
        c = self.config
        seen, teacher = _embeddings(student, batch)
        return _supervised(student, batch) | {
            "distance": c.weight * c.distance_weight * rkd_distance_loss(student=seen, teacher=teacher),
            "angle": c.weight * c.angle_weight * rkd_angle_loss(student=seen, teacher=teacher),
        }


@dataclass(frozen=True)
class PKTConfig:
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018).

    Attributes:
        weight: of the divergence, which is a mean over all pairs of clips; 30000 as in the CRD benchmark.
    """

    name: Literal["pkt"] = "pkt"
    weight: float = 30000.0


class PKT(Method):
    """The probability with which a clip picks another as its neighbor is brought to the teacher's."""

    config: PKTConfig
    config_class = PKTConfig
    tuning: ClassVar = {"weight": (300.0, 3000.0, 30000.0)}
    needs = "embedding"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `transfer`."""
        seen, teacher = _embeddings(student, batch)
        transfer = pkt_loss(student=seen, teacher=teacher)
        return _supervised(student, batch) | {"transfer": self.config.weight * transfer}
