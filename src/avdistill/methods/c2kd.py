"""C2KD: customized cross-modal distillation (Huo, Xu, Guo, Wang and Guo, CVPR 2024).

There the teacher's network trains along with the student. Here the teacher is frozen: a linear classifier on its
embedding, trained from the start, takes the place of its logits, and its proxy is a second head on the same embedding.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.errors import ConfigError
from avdistill.losses import kd_loss, kendall_tau, masked_cross_entropy, non_target_divergence
from avdistill.methods.base import (
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    register_method,
    rows_with_teacher,
)
from avdistill.methods.config import BaseMethodConfig, NonNegative
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class C2KDConfig(BaseMethodConfig):
    """Defaults are the release's, where every term has weight 1 and every softmax temperature 1.

    Attributes:
        threshold: A clip takes part in the exchange between the proxies where Kendall's tau of their logits is above
            this.
        proxy_weight: The weight of the divergences between each network and its proxy.
        weight: The weight of the exchange between the proxies.
        target_logit: The target's logit in the exchange: "removed" compares the other classes, as in the paper; "zero"
            sets it to 0 and leaves it in the softmax, as in the release.
    """

    name: Literal["c2kd"] = "c2kd"
    threshold: float = 0.0
    proxy_weight: NonNegative = 1.0
    weight: NonNegative = 1.0
    target_logit: Literal["removed", "zero"] = "removed"


class Proxy(nn.Module):
    """A second classifier beside a network's own: linear without bias, BatchNorm, leaky ReLU (0.1), linear.

    The release's 1x1 convolution on the pooled last map is that linear layer. A batch of one row uses BatchNorm's
    running statistics.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.kaiming_normal_(self.mix.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, dim) -> (B, C) logits; B > 0."""
        x, norm = self.mix(embedding), self.norm
        if self.training and len(x) == 1:
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            x = norm(x)
        return self.classifier(F.leaky_relu(x, 0.1))


@register_method("c2kd")
class C2KD(Method):
    """Each network and its proxy distil into one another; the proxies exchange their non-target classes.

    One label per clip. The target of an unlabeled clip is the decision of the teacher's classifier.
    """

    config: C2KDConfig
    config_class = C2KDConfig
    learns_from = TeacherRequirement.EMBEDDING
    tuning: ClassVar = {"weight": (0.3, 1.0, 3.0), "proxy_weight": (0.3, 1.0)}
    helper_groups: ClassVar = {"heads": ("teacher_classifier", "teacher_proxy", "student_proxy")}

    @classmethod
    def supports_multi_label(cls, config: C2KDConfig) -> bool:
        """No: the target class is set apart from the others."""
        return False

    def __init__(self, student: StudentNetwork, config: C2KDConfig, context: MethodContext) -> None:
        """Raises ConfigError for fewer than two classes."""
        super().__init__(student, config, context)
        if context.num_classes < 2:
            raise ConfigError(f"expected two classes or more, found {context.num_classes}")
        self.teacher_classifier = nn.Linear(context.teacher_dim, context.num_classes)
        self.teacher_proxy = Proxy(context.teacher_dim, context.num_classes)
        self.student_proxy = Proxy(student.embedding_dim, context.num_classes)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Student: `classification`, `student_proxy`, `to_student`; teacher's heads: the other three.

        Raises:
            ValueError: clips with several labels.
        """
        if batch.labels.ndim != 1:
            raise ValueError("method 'c2kd': expected one label per clip, found several")
        c = self.config
        losses = classification_loss(student, batch)
        student_rows, teacher_rows = rows_with_teacher(student, batch)
        labels, labeled = batch.labels[batch.has_teacher], batch.labeled[batch.has_teacher]
        if len(labels) == 0:  # the heads stay in the graph
            zero_loss = sum(p.sum() for p in self.parameter_groups()[1]["params"]) * 0.0 + student_rows.embedding.sum()
            names = ("teacher_classification", "student_proxy", "teacher_proxy", "to_student", "to_teacher")
            return losses | dict.fromkeys(names, zero_loss)

        z_s, z_t = student_rows.logits, self.teacher_classifier(teacher_rows.embedding)
        proxy_s, proxy_t = self.student_proxy(student_rows.embedding), self.teacher_proxy(teacher_rows.embedding)
        targets = torch.where(labeled, labels, z_t.argmax(1))
        keep = kendall_tau(student=proxy_s, teacher=proxy_t) > c.threshold
        exchange: dict[str, Any] = {"targets": targets, "keep": keep, "target_logit": c.target_logit}
        return losses | {
            "teacher_classification": masked_cross_entropy(logits=z_t, labels=labels, labeled=labeled),
            "student_proxy": c.proxy_weight * _both_ways(z_s, proxy_s),
            "teacher_proxy": c.proxy_weight * _both_ways(z_t, proxy_t),
            "to_student": c.weight * non_target_divergence(student=proxy_s, teacher=proxy_t, **exchange),
            "to_teacher": c.weight * non_target_divergence(student=proxy_t, teacher=proxy_s, **exchange),
        }


def _both_ways(logits: Tensor, proxy: Tensor) -> Tensor:
    """KL(logits || proxy) + KL(proxy || logits); in each the first is the fixed target of the second."""
    to_proxy = kd_loss(student=proxy, teacher=logits, temperature=1.0)
    return to_proxy + kd_loss(student=logits, teacher=proxy, temperature=1.0)
