"""MST-Distill: a mixture of specialized teachers (Li, Yang, Chen, Dong, Chen and Wang, ACM MM 2025, arXiv 2507.07015).

Written from the abstract and from what the released code computes (Gray-OREO/MST-Distill, commit 093b2fe); the paper's
own equations were not available to us. A run has three stages, as there:

1. co-training: student and teachers learn from the labels and, pair by pair, from one another;
2. adaptation: for each teacher a mask of its features learns to make the teacher's prediction the student's;
3. routing: the student learns from the masked teachers that a gate on its logits chooses, clip by clip.

There the teachers are networks that train, one of them on both modalities, with masks after two layers of each. Here
they are frozen: only their embeddings are stored, so a teacher is a linear classifier on its embedding, trained in the
run, with one mask, and the teachers are those that the run names. Further differences are listed in
docs/methods/mst_distill.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from avdistill.errors import ConfigError
from avdistill.losses import kd_loss, masked_cross_entropy
from avdistill.methods.base import (
    CountingMethod,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    each_teacher,
    register_method,
)
from avdistill.methods.config import BaseMethodConfig, Fraction, NonNegative, Positive, PositiveInt
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class MSTDistillConfig(BaseMethodConfig):
    """Weights, temperature and the number of routes are the release's; its first two stages are an epoch each of 102.

    Attributes:
        co_training: The fraction of the run that is the first stage, at least one iteration.
        adaptation: The fraction of the run that is the second stage, at least one iteration.
        top_k: The teachers that each clip learns from in the third stage.
        temperature: T of all divergences.
        weight: The weight of the divergence from the chosen teachers.
        balance_weight: The weight of the gate's load balance.
        reduction: The ratio of a teacher's width to the hidden width of its mask.
    """

    name: Literal["mst_distill"] = "mst_distill"
    co_training: Fraction = 0.1
    adaptation: Fraction = 0.1
    top_k: PositiveInt = 1
    temperature: Positive = 4.0
    weight: NonNegative = 1.0
    balance_weight: NonNegative = 1.0
    reduction: PositiveInt = 4


class Teachers(nn.Module):
    """Of each teacher a linear classifier on its embedding e, and a mask m = sigmoid(W relu(V e)) of its channels."""

    def __init__(self, dims: Sequence[int], num_classes: int, reduction: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(dim, num_classes) for dim in dims)
        self.masks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width := -(-dim // reduction)), nn.ReLU(), nn.Linear(width, dim), nn.Sigmoid())
            for dim in dims
        )

    def forward(self, embeddings: Sequence[Tensor], masked: bool) -> list[Tensor]:
        """(B, C) logits of each teacher from its (B, D) embedding, times its mask if `masked`."""
        if masked:
            embeddings = [mask(e) * e for mask, e in zip(self.masks, embeddings, strict=True)]
        return [classifier(e) for classifier, e in zip(self.classifiers, embeddings, strict=True)]


@register_method("mst_distill")
class MSTDistill(CountingMethod):
    """Co-training with the teachers, masks that specialize them, routing of each clip to some of them."""

    config: MSTDistillConfig
    config_class = MSTDistillConfig
    learns_from = TeacherRequirement(embedding=True, each=True)
    tuning: ClassVar = {"weight": (0.3, 1.0, 3.0), "temperature": (2.0, 4.0)}
    helper_groups: ClassVar = {"teachers": ("teachers",), "gate": ("gate",)}

    #: float (P,), the teachers' parameters at the end of the second stage, which count in the third
    specialized: Tensor

    def __init__(self, student: StudentNetwork, config: MSTDistillConfig, context: MethodContext) -> None:
        """Raises ConfigError where `top_k` exceeds the number of teachers, or no third stage is left."""
        super().__init__(student, config, context)
        dims, classes = context.teacher_dims or (context.teacher_dim,), context.num_classes
        if config.top_k > len(dims):
            raise ConfigError(f"config.method.top_k: expected at most the {len(dims)} teachers, found {config.top_k}")
        if config.co_training + config.adaptation >= 1:
            raise ConfigError("config.method: expected co_training + adaptation below 1, found no third stage")
        first = max(1, round(config.co_training * context.total_iterations))
        self.stage_ends = first, first + max(1, round(config.adaptation * context.total_iterations))
        self.teachers = Teachers(dims, classes, config.reduction)
        self.gate = nn.Sequential(nn.Linear(classes, 2 * classes), nn.Linear(2 * classes, len(dims)))
        self.register_buffer("specialized", parameters_to_vector(self.teachers.parameters()).detach().clone())

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Always `classification`; the other terms are 0 outside of their stages."""
        iteration = int(self.counter.iterations)
        # Every process of a distributed run must see every parameter, whatever the stage and the batch lack.
        zero_loss = sum(p.sum() for part in (self.teachers, self.gate) for p in part.parameters()) * 0.0
        terms = ("teacher_classification", "co_training", "adaptation", "routed", "balance")
        losses = classification_loss(student, batch) | dict.fromkeys(terms, zero_loss + 0.0 * student.logits.sum())
        features, has_teacher = each_teacher(batch)
        embeddings = [each.embedding for each in features]
        if iteration >= self.stage_ends[1]:
            active = self._routing(student.logits, embeddings, has_teacher, batch)
        else:
            logits = self.teachers(embeddings, masked=False)
            active = {"teacher_classification": self._teacher_classification(logits, has_teacher, batch)}
            if iteration < self.stage_ends[0]:
                active["co_training"] = self._co_training(student.logits, logits, has_teacher, batch)
            else:
                active["adaptation"] = self._adaptation(student.logits, embeddings, has_teacher, batch)
        return losses | {name: losses[name] + value for name, value in active.items()}

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Count the iteration; at the last of the second stage keep the teachers as they are before its step."""
        if int(self.counter.iterations) + 1 == self.stage_ends[1]:
            self.specialized.copy_(parameters_to_vector(self.teachers.parameters()))
        super().update(student, batch)

    def _teacher_classification(self, logits: list[Tensor], has_teacher: Tensor, batch: Batch) -> Tensor:
        terms = [
            masked_cross_entropy(logits=z, labels=batch.labels, labeled=batch.labeled & rows)
            for z, rows in zip(logits, has_teacher.T, strict=True)
        ]
        return torch.stack(terms).sum()

    def _co_training(self, student: Tensor, logits: list[Tensor], has_teacher: Tensor, batch: Batch) -> Tensor:
        """Every ordered pair of the student and the teachers: KL(sg first || second)."""
        everywhere = torch.ones_like(batch.has_teacher)
        networks = [(student, everywhere), *zip(logits, has_teacher.T, strict=True)]
        pairs = [
            self._divergence(second[rows & other_rows], first[rows & other_rows], batch)
            for (first, rows), (second, other_rows) in permutations(networks, 2)
        ]
        return torch.stack(pairs).sum()

    def _adaptation(self, student: Tensor, embeddings: list[Tensor], has_teacher: Tensor, batch: Batch) -> Tensor:
        """Each masked teacher to the fixed student, by its mask alone."""
        frozen = {f"classifiers.{name}": p.detach() for name, p in self.teachers.classifiers.named_parameters()}
        masked = functional_call(self.teachers, frozen, (embeddings, True))
        terms = [self._divergence(z[rows], student[rows], batch) for z, rows in zip(masked, has_teacher.T, strict=True)]
        return torch.stack(terms).sum()

    def _routing(
        self, student: Tensor, embeddings: list[Tensor], has_teacher: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        some = has_teacher.any(1)
        if not some.any():
            return {}
        has_teacher, student = has_teacher[some], student[some]
        with torch.no_grad():
            masked = functional_call(self.teachers, self._specialized(), (embeddings, True))
            teachers = torch.stack(masked, dim=1)[some]  # (N, K, C)
        gate = self.gate(student).masked_fill(~has_teacher, -math.inf).softmax(1)
        chosen = gate.topk(self.config.top_k, dim=1).indices
        clip, way = has_teacher.gather(1, chosen).nonzero(as_tuple=True)
        divergence = self._divergence(student[clip], teachers[clip, chosen[clip, way]], batch)
        weight, balance_weight = self._weights()
        balance = load_balance(gate, has_teacher)
        return {"routed": weight * divergence, "balance": balance_weight * balance}

    def _weights(self) -> tuple[float, float]:
        """The release's after so many of its 100 epochs: halved after 1, 31, 61, 91; times 0.9 after 1, 11, 21, ..."""
        begin, total = self.stage_ends[1], self.context.total_iterations
        epochs = 100 * (int(self.counter.iterations) - begin) // max(1, total - begin)
        halved, lowered = math.ceil(epochs / 30), math.ceil(epochs / 10)
        return self.config.weight * 0.5**halved, self.config.balance_weight * 0.9**lowered

    def _specialized(self) -> dict[str, Tensor]:
        parameters = dict(self.teachers.named_parameters())
        parts = self.specialized.split([p.numel() for p in parameters.values()])
        return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}

    def _divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        temperature, multi_label = self.config.temperature, batch.labels.ndim == 2
        return kd_loss(student=student, teacher=teacher, temperature=temperature, multi_label=multi_label)


def load_balance(gate: Tensor, has_teacher: Tensor) -> Tensor:
    """KL(u || mean of the gate) / K, with u uniform over the teachers that each clip has, on average.

    Args:
        gate: (N, K) probabilities, 0 where a clip lacks the teacher.
        has_teacher: bool (N, K), at least one for each clip.
    """
    uniform = (has_teacher / has_teacher.sum(1, keepdim=True)).to(gate.dtype).mean(0)
    mean = gate.mean(0).clamp_min(torch.finfo(gate.dtype).tiny)
    return F.kl_div(mean.log(), uniform, reduction="sum") / gate.shape[1]
