"""Robust distillation: a noise model of the teacher's modality decides how much each unlabeled clip teaches.

Ours, within the idea of Xia et al. 2023 (filter what is irrelevant in the teacher; weight a clip by the correspondence
of its two modalities). The loss of an unlabeled clip is the negative log-likelihood of its audio under the noise model
(`noise_model.py`), -log(rho x ratio + 1 - rho): audio at odds with what the student has learned from other clips is
explained by chance and has no gradient.

The posterior probability that the audio matches, sigmoid(log ratio + logit rho), is w in docs/methods/robust.md.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.methods.base import (
    AuditInputs,
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    register_method,
)
from avdistill.methods.config import BaseMethodConfig, NonNegative, Positive
from avdistill.methods.noise_model import CLIP_BUFFERS, NoiseModel
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class RobustConfig(BaseMethodConfig):
    """Settings; symbols as in docs/methods/robust.md.

    Attributes:
        weight: The weight of the likelihood of the unlabeled clips' audio.
        temperature: The divisor of the teacher's logits; 1 takes its probabilities as calibrated.
    """

    name: Literal["robust"] = "robust"
    weight: NonNegative = 1.0
    temperature: Positive = 1.0


@register_method("robust")
class Robust(Method):
    """Likelihood of each unlabeled clip's audio under a noise model with mismatched audio."""

    config: RobustConfig
    config_class = RobustConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"weight": (0.3, 1.0, 3.0), "temperature": (0.5, 1.0, 2.0)}
    clip_buffers = CLIP_BUFFERS
    audits = ("mismatch_probability",)

    def __init__(self, student: StudentNetwork, config: RobustConfig, context: MethodContext) -> None:
        """The noise model; nothing trains but the student. Raises ValueError without training clips."""
        super().__init__(student, config, context)
        self.noise_model = NoiseModel(context, config.temperature)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `likelihood`."""
        likelihood = self.config.weight * self.noise_model.negative_log_likelihood(student.logits, batch)
        return classification_loss(student, batch) | {"likelihood": likelihood}

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Move the noise model. Raises ValueError for a batch without `indices`."""
        self.noise_model.update(student.logits, batch)

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """`mismatch_probability`, unless the teacher has no logits."""
        return self.noise_model.audit_scores(inputs)
