"""Supervised training without distillation, the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from avdistill.losses import masked_cross_entropy
from avdistill.methods.base import Method
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class SupervisedConfig:
    """No distillation: the baseline every method is held against. It has no settings."""

    name: Literal["supervised"] = "supervised"


class Supervised(Method):
    """ClassificationResult of the labeled clips."""

    config_class = SupervisedConfig
    uses_unlabeled = False

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`."""
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled)
        }
