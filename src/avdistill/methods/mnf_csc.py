"""Modality Noise Filter + Contrastive Semantic Calibration (Xia et al. 2023, arXiv 2304.07775).

Gradient routing. The release runs two backward passes through the whole student, one for the filter's objective (whose
student gradients it discards) and one for the student's. The same gradients come from one pass: the filter gets the
student's features for the calibration, and detached copies of them for its own objective. The second filter pass must
not move BatchNorm's running statistics, so it runs on copies of the buffers.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity, masked_cross_entropy
from avdistill.losses.calibration import Temperature, temperatures
from avdistill.methods.base import (
    AuditInputs,
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    register_method,
    rows_with_teacher,
)
from avdistill.methods.config import BaseMethodConfig, NonNegative, PositiveInt
from avdistill.models.noise_filter import Attention, FilterOutput, Gate, NoiseFilter, Order
from avdistill.types import Batch, Features, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class NoiseFilterConfig(BaseMethodConfig):
    """Settings of the filter and its contrast. Defaults are the release's on UCF51 where it is right.

    Attributes:
        temperature: The temperature of the contrastive calibration: "pairwise" (released), "sample" or "fixed".
        threshold: The constant added to the pairwise temperature, or the fixed temperature; 0.07 for UCF51, 0.2 for
            ActivityNet.
        sparsity: The gate layers with a sparsity penalty: "both", or "last" as in the release by mistake.
        sparsity_weight: The weight of the L1 penalty.
        margin: The margin of the filter's triplet loss.
        triplet_weight: The weight of the triplet loss, 1 in the release.
        gate: The gate of the filter; "open" leaves it out (`NoiseFilter`).
        attention: The attention of the filter; "mean" leaves out the guided one.
        calibration_weight: The weight of the contrastive calibration in the student's objective.
        calibration_into_filter: Train the filter by the contrastive calibration as well, as released.
        order: The order of gate and attention, "gate_attention" in the release.
        heads: The number of heads of the guided attention.
        filter_lr_scale: The filter's learning rate relative to the student's.
    """

    temperature: Temperature = "pairwise"
    threshold: NonNegative = 0.07
    sparsity: Literal["both", "last"] = "both"
    sparsity_weight: NonNegative = 0.001
    margin: NonNegative = 0.2
    triplet_weight: NonNegative = 1.0
    gate: Gate = "learned"
    attention: Attention = "guided"
    calibration_weight: NonNegative = 1.0
    calibration_into_filter: bool = True
    order: Order = "gate_attention"
    heads: PositiveInt = 2
    filter_lr_scale: NonNegative = 0.2


class NoiseFilterMethod(Method):
    """The paper's filter and its gradient routing; a subclass says which clips are contrasted, and how.

    Rows without a teacher take part in the classification only.
    """

    config: NoiseFilterConfig
    learns_from = TeacherRequirement.EMBEDDING
    uses_tokens = True
    shares_space = True
    audits: ClassVar[tuple[str, ...]] = ("gate", "similarity", "calibration")

    def __init__(self, student: StudentNetwork, config: NoiseFilterConfig, context: MethodContext) -> None:
        """The student's features must have tokens; the teacher's embedding may have any width."""
        super().__init__(student, config, context)
        self.filter = NoiseFilter(
            student.embedding_dim,
            context.num_classes,
            teacher_dim=context.teacher_dim,
            heads=config.heads,
            order=config.order,
            gate=config.gate,
            attention=config.attention,
        )

    def parameter_groups(self) -> list[dict[str, object]]:
        """Student and filter, the filter at its own rate."""
        params, scale = list(self.filter.parameters()), self.config.filter_lr_scale
        return [*super().parameter_groups(), {"name": "filter", "params": params, "lr_scale": scale}]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Student: `classification`, `calibration`; filter: `filter_classification`, `triplet`, `sparsity`."""
        c = self.config
        losses = classification_loss(student, batch)
        student_rows, teacher_rows = rows_with_teacher(student, batch)
        labels, labeled = batch.labels[batch.has_teacher], batch.labeled[batch.has_teacher]
        if len(labels) == 0:  # the filter's parameters stay in the graph
            zero_loss = sum(p.sum() for p in self.filter.parameters()) * 0.0 + student_rows.embedding.sum()
            names = ("calibration", "filter_classification", "triplet")
            return losses | dict.fromkeys(names, zero_loss) | self._sparsity()

        with_grad = self._filtered(teacher_rows, student_rows, train_filter=c.calibration_into_filter)
        losses["calibration"] = c.calibration_weight * self.calibration(student, batch, with_grad)
        detached = self._filtered(teacher_rows, student_rows.detach(), on_copied_buffers=True)
        losses["filter_classification"] = masked_cross_entropy(logits=detached.logits, labels=labels, labeled=labeled)
        losses["triplet"] = c.triplet_weight * filter_triplet(
            student=student_rows.embedding.detach(),
            teacher=detached.teacher,
            filtered_teacher=detached.embedding,
            margin=c.margin,
        )
        return losses | self._sparsity()

    @abstractmethod
    def calibration(self, student: StudentFeatures, batch: Batch, filtered: FilterOutput) -> Tensor:
        """The contrastive calibration, a scalar, of the clips that have a teacher.

        Args:
            student, batch: as in `losses`.
            filtered: the filter's output; it has a row for each clip that has a teacher.
        """

    def in_contrast(self, batch: Batch) -> Tensor:
        """bool (B,): clips whose class the contrast knows."""
        return batch.labeled

    def _sparsity(self) -> dict[str, Tensor]:
        if self.filter.gate is None:
            return {"sparsity": self.filter.classifier.bias.sum() * 0.0}
        return {"sparsity": gate_sparsity(self.filter, self.config.sparsity, self.config.sparsity_weight)}

    def _filtered(
        self, teacher: Features, student: StudentFeatures, *, train_filter: bool = True, on_copied_buffers: bool = False
    ) -> FilterOutput:
        replaced: dict[str, Tensor] = {}
        if not train_filter:
            replaced |= {name: p.detach() for name, p in self.filter.named_parameters()}
        if on_copied_buffers:
            replaced |= {name: b.clone() for name, b in self.filter.named_buffers()}
        arguments = {"teacher": teacher.embedding, "tokens": student.tokens, "embedding": student.embedding}
        return functional_call(self.filter, replaced, args=(), kwargs=arguments)

    def audit_helpers(self, student: Features, teacher: Tensor) -> dict[str, Tensor]:
        """The filter's `gate`, `purified` (the purified teacher) and `guided`, (B, D) each."""
        out = self.filter(teacher=teacher, tokens=student.tokens, embedding=student.embedding)
        return {"gate": out.gate, "purified": out.embedding, "guided": out.guided}

    def shared_embeddings(self, student: Features, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's embedding, and the teacher's as the filter purifies it, which the triplet loss draws to it."""
        out = self.filter(teacher=teacher, tokens=student.tokens, embedding=student.embedding)
        return student.embedding, out.embedding

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """`gate`: 1 - mean gate; `similarity`: 1 - cos(v, a'); `calibration`: its gradient weight in the contrast."""
        gate, purified, guided = (inputs.helpers[name].double() for name in ("gate", "purified", "guided"))
        v, a, s = (F.normalize(x, dim=1) for x in (inputs.embedding.double(), purified, guided))
        labeled = self.in_contrast(inputs.batch)
        weight = torch.empty(len(v), dtype=torch.float64)
        for rows in contrast_batches(labeled.numpy(), self.context.batch_size):
            weight[rows] = self._gradient_weight(v[rows], s[rows], a[rows], labeled[rows])
        return {"gate": 1 - gate.mean(1), "similarity": 1 - (v * a).sum(1), "calibration": weight}

    def _gradient_weight(self, v: Tensor, s: Tensor, a: Tensor, labeled: Tensor) -> Tensor:
        """(B,) (1 - P_ii) / T_ii of a batch: minus the gradient of -log P_ii by cos(v_i, s_i)."""
        T = temperatures(v, a, self.config.temperature, self.config.threshold).expand(len(v), len(v))
        itself = torch.eye(len(v), dtype=torch.bool)
        scores = ((v @ s.T) / T).masked_fill(~(labeled[None, :] | itself), -torch.inf)
        return (1 - scores.softmax(1).diagonal()) / T.diagonal()


@dataclass(frozen=True)
class MNFCSCConfig(NoiseFilterConfig):
    """The settings of the filter and its contrast (docs/methods/mnf_csc.md), and:

    Attributes:
        unlabeled: The role of unlabeled clips: "excluded" makes each its own only positive and no other clip's
            negative; "unused" draws none of them; "pseudo_label" takes the teacher's decision as its class in the
            contrastive calibration (needs a teacher with logits, and one label per clip).
        log_epsilon: The constant added within the logarithm; 1e-10 reproduces the release.
    """

    name: Literal["mnf_csc"] = "mnf_csc"
    unlabeled: Literal["excluded", "unused", "pseudo_label"] = "excluded"
    log_epsilon: NonNegative = 0.0


@register_method("mnf_csc")
class MNFCSC(NoiseFilterMethod):
    """The paper's method."""

    config: MNFCSCConfig
    config_class = MNFCSCConfig
    tuning: ClassVar = {
        "temperature": ("pairwise", "sample", "fixed"),
        "calibration_weight": (0.1, 0.3, 1.0),
        "unlabeled": ("excluded", "unused", "pseudo_label"),
    }

    @classmethod
    def requires(cls, config: MNFCSCConfig) -> TeacherRequirement:
        """The embedding; logits for pseudo-labels."""
        return TeacherRequirement.LOGITS if config.unlabeled == "pseudo_label" else cls.learns_from

    @classmethod
    def uses_unlabeled(cls, config: MNFCSCConfig) -> bool:
        """Unless they are "unused"."""
        return config.unlabeled != "unused"

    @classmethod
    def supports_multi_label(cls, config: MNFCSCConfig) -> bool:
        """Unless with pseudo-labels, which are one class per clip."""
        return config.unlabeled != "pseudo_label"

    def calibration(self, student: StudentFeatures, batch: Batch, filtered: FilterOutput) -> Tensor:
        """As published; unlabeled clips as `unlabeled` says."""
        student_rows, teacher_rows = rows_with_teacher(student, batch)
        labels, labeled = batch.labels[batch.has_teacher], batch.labeled[batch.has_teacher]
        if self.config.unlabeled == "pseudo_label":
            assert teacher_rows.logits is not None
            labels, labeled = torch.where(labeled, labels, teacher_rows.logits.argmax(1)), torch.ones_like(labeled)
        return contrastive_semantic_calibration(
            student=student_rows.embedding,
            guided=filtered.guided,
            filtered_teacher=filtered.embedding,
            labels=labels,
            labeled=labeled,
            temperature=self.config.temperature,
            threshold=self.config.threshold,
            log_epsilon=self.config.log_epsilon,
        )

    def in_contrast(self, batch: Batch) -> Tensor:
        """The labeled clips, or all with pseudo-labels."""
        pseudo = self.config.unlabeled == "pseudo_label" and batch.teacher and batch.teacher.logits is not None
        return torch.ones_like(batch.labeled) if pseudo else batch.labeled


def contrast_batches(labeled: np.ndarray, batch_size: int) -> list[Tensor]:
    """Batches of about `batch_size` rows (int64) for the `calibration` score, the same for the same input.

    Labeled and unlabeled rows are shuffled (seed 0) and dealt out like cards: batches differ by at most one of each,
    so that every clip is contrasted with equally many columns, but for one.

    Args:
        labeled: bool (N,).
        batch_size: of the run.
    """
    rng = np.random.default_rng(0)
    cards = np.concatenate([rng.permutation(np.flatnonzero(labeled)), rng.permutation(np.flatnonzero(~labeled))])
    hands = -(-len(cards) // batch_size)
    return [torch.from_numpy(cards[hand::hands]) for hand in range(hands)]
