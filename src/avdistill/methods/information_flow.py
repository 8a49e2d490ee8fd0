"""Information-flow distillation (Passalis, Tzelepi and Tefas, CVPR 2020, arXiv 2005.00727).

The student copies how similar the clips of a batch are, layer by layer; early in training the layers below the last
weigh most, later almost only the last.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from avdistill.losses import ifd_loss, pkt_loss
from avdistill.methods.base import CountingMethod, TeacherRequirement, classification_loss, paired, register_method
from avdistill.methods.config import BaseMethodConfig, Fraction, NonNegative
from avdistill.types import Batch, StudentFeatures


@dataclass(frozen=True)
class IFDConfig(BaseMethodConfig):
    """Defaults are the released code's on CIFAR-10, but for the divergence.

    Attributes:
        weight: The weight of both terms.
        initial_weight: The weight of the embedding's divergence in the first epoch; that of the logits is 1.
        decay: The factor on that weight after every epoch.
        divergence: The divergence of the embeddings: "pkt" is KL over the cosine kernel; "hybrid" is the release's
            symmetric one over two kernels.
    """

    name: Literal["ifd"] = "ifd"
    weight: NonNegative = 1.0
    initial_weight: NonNegative = 100.0
    decay: Fraction = 0.7
    divergence: Literal["pkt", "hybrid"] = "pkt"


@register_method("ifd")
class IFD(CountingMethod):
    """Two layers: the embedding, with a weight that decays, and the logits."""

    config: IFDConfig
    config_class = IFDConfig
    learns_from = TeacherRequirement.LOGITS
    tuning: ClassVar = {"weight": (0.1, 1.0, 10.0), "divergence": ("pkt", "hybrid")}

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `embedding_flow` and `logits_flow`."""
        c, context = self.config, self.context
        epoch = int(self.counter.iterations) * context.batch_size // max(context.training_clips, 1)
        embedding_flow = self._divergence(*paired(student, batch, "embedding"))
        return classification_loss(student, batch) | {
            "embedding_flow": c.weight * c.initial_weight * c.decay**epoch * embedding_flow,
            "logits_flow": c.weight * self._divergence(*paired(student, batch, "logits")),
        }

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean over rows, which, unlike the mean over pairs, does not vanish as the batch grows."""
        loss = pkt_loss if self.config.divergence == "pkt" else ifd_loss
        return len(student) * loss(student=student, teacher=teacher)
