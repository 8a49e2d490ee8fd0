"""Robust CSC: the paper's filter and contrast, with a noise model that says which clip is of which class, and matches.

Ours, within the idea of Xia et al. 2023: filter the teacher, weigh a clip by its semantic correlation. For a video
student with an audio teacher:

1. The noise model (`noise_model.py`) gives each clip a belief of its class, from its label, or from student and audio
   together, and the probability w that its audio matches.
2. Contrast: CSC, in which two clips are positives by the probability that they have the same class, and a clip's audio
   counts by w (`believed_calibration`). With every clip labeled and w = 1 it is the published loss.
3. Likelihood: an unlabeled clip's audio teaches the classifier through its likelihood under the noise model.
4. The filter learns as published.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avdistill.losses import believed_calibration
from avdistill.losses.calibration import same_label
from avdistill.methods.base import AuditInputs, MethodContext, TeacherRequirement, register_method
from avdistill.methods.config import NonNegative, Positive
from avdistill.methods.mnf_csc import MNFCSC, MNFCSCConfig
from avdistill.methods.noise_model import CLIP_BUFFERS, NoiseModel
from avdistill.models.noise_filter import FilterOutput
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class RobustCSCConfig(MNFCSCConfig):
    """The settings of `mnf_csc`, and:

    Attributes:
        likelihood_weight: The weight of the likelihood of the unlabeled clips' audio.
        teacher_temperature: The divisor of the teacher's logits in the noise model.
    """

    name: Literal["robust_csc"] = "robust_csc"  # type: ignore[assignment]
    likelihood_weight: NonNegative = 1.0
    teacher_temperature: Positive = 1.0


@register_method("robust_csc")
class RobustCSC(MNFCSC):
    """MNF and CSC under a noise model."""

    config: RobustCSCConfig
    config_class = RobustCSCConfig
    learns_from = TeacherRequirement.LOGITS
    clip_buffers = CLIP_BUFFERS
    audits = (*MNFCSC.audits, "mismatch_probability")

    @classmethod
    def requires(cls, config: MNFCSCConfig) -> TeacherRequirement:
        """Embedding and logits."""
        return cls.learns_from

    def __init__(self, student: StudentNetwork, config: RobustCSCConfig, context: MethodContext) -> None:
        """Filter and noise model. Raises ValueError without training clips."""
        super().__init__(student, config, context)
        self.noise_model = NoiseModel(context, config.teacher_temperature)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Those of `mnf_csc`, and `likelihood`."""
        losses = super().losses(student, batch)
        likelihood = self.noise_model.negative_log_likelihood(student.logits, batch)
        losses["likelihood"] = self.config.likelihood_weight * likelihood
        return losses

    def _calibration(self, student: StudentFeatures, batch: Batch, filtered: FilterOutput) -> Tensor:
        with torch.no_grad():
            belief, matching = self.noise_model.posterior(student.logits, batch)
            belief = belief[batch.has_teacher]
            same = same_label(belief) if batch.labels.ndim == 2 else belief @ belief.T
        return believed_calibration(
            student=student.embedding[batch.has_teacher],
            guided=filtered.guided,
            filtered_teacher=filtered.embedding,
            same=same,
            matching=matching[batch.has_teacher],
            temperature=self.config.temperature,
            threshold=self.config.threshold,
        )

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Move the noise model. Raises ValueError for a batch without `indices`."""
        self.noise_model.update(student.logits, batch)

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """Those of `mnf_csc`, and `mismatch_probability`."""
        return super().audit_scores(inputs) | self.noise_model.audit_scores(inputs)
