"""DIST: distillation by correlation (Huang, You, Wang, Qian and Xu, NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import dist_inter_loss, dist_intra_loss, masked_cross_entropy
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class DISTConfig:
    """Defaults are those of the released loss.

    Attributes:
        beta: weight of the correlation over classes, clip by clip.
        gamma: weight of the correlation over clips, class by class.
        temperature: T of the softmax; both terms are scaled by T^2. 1 for ImageNet, 4 for CIFAR-100.
        weight: of both; the released trainings have 2.
    """

    name: Literal["dist"] = "dist"
    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0
    weight: float = 1.0


class DIST(Method):
    """The student's probabilities correlate with the teacher's, within a clip and within a class."""

    config: DISTConfig
    config_class = DISTConfig
    tuning: ClassVar = {"temperature": (1.0, 4.0), "weight": (0.3, 1.0, 2.0)}
    needs = "logits"

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `inter_class` and `intra_class`."""
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        c, rows = self.config, batch.has_teacher
        logits, teacher, several = student.logits[rows], batch.teacher.logits[rows].detach(), batch.labels.ndim == 2
        inter = dist_inter_loss(student=logits, teacher=teacher, temperature=c.temperature, multi_label=several)
        intra = dist_intra_loss(student=logits, teacher=teacher, temperature=c.temperature, multi_label=several)
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "inter_class": c.weight * c.beta * inter,
            "intra_class": c.weight * c.gamma * intra,
        }
