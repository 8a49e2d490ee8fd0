"""A distillation method of your own: a class in a file, named on the command line.

avdistill train tiny_supervised --method examples/custom_method.py:Cosine --dataset DATASET --out RUN
avdistill compare DATASET --out STUDY --methods supervised examples/custom_method.py:Cosine --seeds 0 1

docs/custom_method.md describes every part. This one aligns the student's embedding with the teacher's, and trusts a
clip less the more its neighbors in the batch are as close: a start for methods against mismatched audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.methods import Method, MethodContext, TeacherRequirement, classification_loss, paired
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class CosineConfig:
    """Settings, each with a default; `--method examples/custom_method.py:Cosine:weight=2` changes one."""

    weight: float = 1.0
    temperature: float = 0.1


class Cosine(Method):
    """Aligns the student's embedding, through a linear layer, with the teacher's, weighted by how well they match."""

    config_class = CosineConfig
    tuning: ClassVar[Mapping[str, tuple[Any, ...]]] = {"weight": (0.3, 1.0, 3.0)}
    learns_from = TeacherRequirement.EMBEDDING

    def __init__(self, student: StudentNetwork, config: Any, context: MethodContext) -> None:
        super().__init__(student, config, context)
        self.projection = nn.Linear(student.embedding_dim, context.teacher_dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The projection learns beside the student, at its rate."""
        projection = {"name": "projection", "params": list(self.projection.parameters()), "lr_scale": 1.0}
        return [*super().parameter_groups(), projection]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the labeled clips, and the weighted distance of the clips with a teacher."""
        student_rows, teacher_rows = paired(student, batch, "embedding")
        similarity = F.normalize(self.projection(student_rows), dim=1) @ F.normalize(teacher_rows, dim=1).T
        own = similarity.diagonal()
        # How much of a clip's similarity is to its own audio: 1 for a clear match, 1 / B for none.
        trust = (similarity.detach() / self.config.temperature).softmax(1).diagonal()
        distance = (trust * (1 - own)).sum() / max(1, len(own))
        return classification_loss(student, batch) | {"cosine": self.config.weight * distance}
