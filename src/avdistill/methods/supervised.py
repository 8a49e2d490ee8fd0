"""Supervised training without distillation, the baseline of every comparison."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from avdistill.methods.base import Method, classification_loss, register_method
from avdistill.methods.config import BaseMethodConfig
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class SupervisedConfig(BaseMethodConfig):
    """No distillation and no settings."""

    name: Literal["supervised"] = "supervised"


@register_method("supervised")
class Supervised(Method):
    """Classification of the labeled clips."""

    config_class = SupervisedConfig

    @classmethod
    def uses_unlabeled(cls, config: SupervisedConfig) -> bool:
        """Never."""
        return False

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`."""
        return classification_loss(student, batch)
