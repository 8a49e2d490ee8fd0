"""Supervised contrastive learning (Khosla et al. 2020, arXiv 2004.11362) without a teacher, a second baseline.

`mnf_csc` and `robust_csc` contrast the clips of a batch by their labels too; what they gain beyond it is the teacher's.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import supervised_contrast
from avdistill.methods.base import Method, classification_loss, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class SupConConfig(BaseMethodConfig):
    """Contrast of the labeled clips of a batch, beside their classification.

    Attributes:
        weight: The weight of the contrast, in the paper the only loss of a first stage.
        temperature: The temperature tau.
    """

    name: Literal["supcon"] = "supcon"
    weight: NonNegative = 1.0
    temperature: Positive = 0.1


@register_method("supcon")
class SupCon(Method):
    """Classification and contrast of the labeled clips."""

    config: SupConConfig
    config_class = SupConConfig
    tuning: ClassVar = {"weight": (0.1, 0.3, 1.0), "temperature": (0.07, 0.1, 0.3)}

    @classmethod
    def uses_unlabeled(cls, config: SupConConfig) -> bool:
        """Never."""
        return False

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `contrast`."""
        contrast = supervised_contrast(
            embedding=student.embedding[batch.labeled],
            labels=batch.labels[batch.labeled],
            temperature=self.config.temperature,
        )
        return classification_loss(student, batch) | {"contrast": self.config.weight * contrast}
