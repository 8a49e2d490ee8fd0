"""Information-flow distillation (Passalis, Tzelepi and Tefas, CVPR 2020, arXiv 2005.00727).

A student copies how strongly the clips of a batch hang together, layer by layer; early in training the layers below the
last count most, later almost only the last one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import ifd_loss, masked_cross_entropy, pkt_loss
from avdistill.methods.base import Method, MethodContext, PassCounter
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class IFDConfig:
    """Defaults are the released code's on CIFAR-10, but for the divergence.

    Attributes:
        weight: of both terms.
        initial_weight: of the embedding's divergence in the first epoch; the logits' is 1.
        decay: factor on it after every epoch.
        divergence: "pkt": KL over the cosine kernel; "hybrid": the release's symmetric one over two kernels.
    """

    name: Literal["ifd"] = "ifd"
    weight: float = 1.0
    initial_weight: float = 100.0
    decay: float = 0.7
    divergence: Literal["pkt", "hybrid"] = "pkt"


class IFD(Method):
    """Two layers: the embedding, with a weight that decays, and the logits."""

    config: IFDConfig
    config_class = IFDConfig
    tuning: ClassVar = {"weight": (0.1, 1.0, 10.0), "divergence": ("pkt", "hybrid")}
    needs = "logits"

    def __init__(self, student: StudentNetwork, config: IFDConfig, context: MethodContext) -> None:
        """Raises ValueError for another divergence."""
        super().__init__(student, config, context)
        if config.divergence not in ("pkt", "hybrid"):
            raise ValueError(f"divergence must be 'pkt' or 'hybrid', got {config.divergence!r}")
        self.counter = PassCounter()

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `embedding_flow` and `logits_flow`."""
        c = self.config
        epoch = self.counter.advance() * self.context.batch_size // max(self.context.training_clips, 1)
        assert batch.teacher is not None
        seen, teacher = student.select(batch.has_teacher), batch.teacher.select(batch.has_teacher)
        assert teacher.logits is not None
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "embedding_flow": c.weight
            * c.initial_weight
            * c.decay**epoch
            * self._divergence(seen.embedding, teacher.embedding),
            "logits_flow": c.weight * self._divergence(seen.logits, teacher.logits),
        }

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean over rows, which, unlike the mean over pairs, does not fade as the batch grows."""
        loss = pkt_loss if self.config.divergence == "pkt" else ifd_loss
        return len(student) * loss(student=student, teacher=teacher)
