"""Robust CSC: the paper's filter, and its contrast with the class and match probabilities of a noise model.

Ours, within the idea of Xia et al. 2023: filter the teacher, weight a clip by the correspondence of its modalities. For
a video student with an audio teacher:

1. The noise model (`noise_model.py`) gives each clip class probabilities, from its label, or from student and audio
   together, and the probability w that its audio matches.
2. Contrast: CSC, in which two clips are positives by the probability that they have the same class, and a clip's audio
   counts by w (`soft_contrastive_semantic_calibration`). With every clip labeled and w = 1 it is the published loss.
3. Likelihood: an unlabeled clip's audio teaches the classifier through its likelihood under the noise model.
4. The filter learns as published.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from avdistill.losses import soft_contrastive_semantic_calibration
from avdistill.losses.calibration import same_label
from avdistill.methods.base import AuditInputs, MethodContext, TeacherRequirement, register_method
from avdistill.methods.config import NonNegative, Positive
from avdistill.methods.mnf_csc import NoiseFilterConfig, NoiseFilterMethod
from avdistill.methods.noise_model import CLIP_BUFFERS, NoiseModel
from avdistill.models.noise_filter import FilterOutput
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class RobustCSCConfig(NoiseFilterConfig):
    """The settings of the filter and its contrast, and:

    Attributes:
        likelihood_weight: The weight of the likelihood of the unlabeled clips' audio.
        teacher_temperature: The divisor of the teacher's logits in the noise model.
    """

    name: Literal["robust_csc"] = "robust_csc"
    likelihood_weight: NonNegative = 1.0
    teacher_temperature: Positive = 1.0


@register_method("robust_csc")
class RobustCSC(NoiseFilterMethod):
    """MNF and CSC under a noise model with mismatched audio."""

    config: RobustCSCConfig
    config_class = RobustCSCConfig
    tuning: ClassVar = {
        "temperature": ("pairwise", "sample", "fixed"),
        "calibration_weight": (0.1, 0.3, 1.0),
        "likelihood_weight": (0.3, 1.0, 3.0),
        "teacher_temperature": (0.5, 1.0, 2.0),
    }
    learns_from = TeacherRequirement.LOGITS
    clip_buffers = CLIP_BUFFERS
    audits = (*NoiseFilterMethod.audits, "mismatch_probability")

    def __init__(self, student: StudentNetwork, config: RobustCSCConfig, context: MethodContext) -> None:
        """Filter and noise model. Raises ValueError without training clips."""
        super().__init__(student, config, context)
        self.noise_model = NoiseModel(context, config.teacher_temperature)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Those of `mnf_csc`, and `likelihood`."""
        likelihood = self.noise_model.negative_log_likelihood(student.logits, batch)
        return super().losses(student, batch) | {"likelihood": self.config.likelihood_weight * likelihood}

    def calibration(self, student: StudentFeatures, batch: Batch, filtered: FilterOutput) -> Tensor:
        """With soft positives and match probabilities, which get no gradient."""
        with torch.no_grad():
            classes, match_probability = self.noise_model.posterior(student.logits, batch)
        classes, match_probability = classes[batch.has_teacher], match_probability[batch.has_teacher]
        return soft_contrastive_semantic_calibration(
            student=student.embedding[batch.has_teacher],
            guided=filtered.guided,
            filtered_teacher=filtered.embedding,
            same=same_label(classes) if batch.labels.ndim == 2 else classes @ classes.T,
            match_probability=match_probability,
            temperature=self.config.temperature,
            threshold=self.config.threshold,
        )

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Move the noise model. Raises ValueError for a batch without `indices`."""
        self.noise_model.update(student.logits, batch)

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """Those of the filter, and `mismatch_probability`."""
        return super().audit_scores(inputs) | self.noise_model.audit_scores(inputs)
