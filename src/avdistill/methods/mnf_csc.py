"""Modality Noise Filter + Contrastive Semantic Calibration (Xia et al. 2023, arXiv 2304.07775).

Gradient routing. The release runs two backward passes through the whole student, one for the filter's objective
(whose student gradients it throws away) and one for the student's. The same gradients come from one pass: the filter
sees the student's live features for the calibration, and detached copies of them for its own objective. The second
look must leave no trace in BatchNorm's running statistics, so it runs on copies of the buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from avdistill.errors import ConfigError
from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity, masked_cross_entropy
from avdistill.losses.calibration import Temperature
from avdistill.methods.base import Method, MethodContext
from avdistill.models.noise_filter import Attention, FilterOutput, Gate, NoiseFilter, Order
from avdistill.types import Batch, Features, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class MNFCSCConfig:
    """Defaults are the release's on UCF51 where it is right; METHOD's variants are the other values.

    Attributes:
        temperature: of the contrast: "pairwise" (released), "sample" or "fixed".
        threshold: added to the pairwise temperature, or the fixed temperature; 0.07 for UCF51, 0.2 for ActivityNet.
        sparsity: gate layers that are kept sparse: "both", or "last" as in the release by mistake.
        sparsity_weight: of the L1 penalty.
        margin: of the filter's triplet.
        triplet_weight: of that triplet, 1 in the release.
        gate, attention: "open" and "mean" leave the filter's gate or its guided attention out (`NoiseFilter`).
        calibration_weight: of the contrast in the student's objective.
        calibration_into_filter: whether the contrast also trains the filter (released: yes).
        order: of gate and attention, "gate_attention" in the release.
        heads: of the guided attention.
        filter_lr_scale: the filter's learning rate over the student's.
        unlabeled: "excluded": an unlabeled clip is its own only positive and no other's negative; "pseudo_label":
            in the contrast it takes the class the teacher's head finds (needs a teacher with logits).
        log_epsilon: 1e-10 reproduces the release's logarithm.
    """

    name: Literal["mnf_csc"] = "mnf_csc"
    temperature: Temperature = "pairwise"
    threshold: float = 0.07
    sparsity: Literal["both", "last"] = "both"
    sparsity_weight: float = 0.001
    margin: float = 0.2
    triplet_weight: float = 1.0
    gate: Gate = "learned"
    attention: Attention = "guided"
    calibration_weight: float = 1.0
    calibration_into_filter: bool = True
    order: Order = "gate_attention"
    heads: int = 2
    filter_lr_scale: float = 0.2
    unlabeled: Literal["excluded", "pseudo_label"] = "excluded"
    log_epsilon: float = 0.0


class MNFCSC(Method):
    """The paper's method. Rows without a teacher take part in the classification only."""

    config: MNFCSCConfig
    config_class = MNFCSCConfig
    tuning: ClassVar = {
        "temperature": ("pairwise", "sample", "fixed"),
        "calibration_weight": (0.1, 0.3, 1.0),
        "unlabeled": ("excluded", "pseudo_label"),
    }
    needs = "embedding"
    uses_tokens = True

    def __init__(self, student: StudentNetwork, config: MNFCSCConfig, context: MethodContext) -> None:
        """student: its features must have tokens; the teacher's embedding may have any width."""
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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Student and filter, the filter at its own rate."""
        filter_group = {
            "name": "filter",
            "params": list(self.filter.parameters()),
            "lr_scale": self.config.filter_lr_scale,
        }
        return [*super().parameter_groups(), filter_group]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Student: `classification`, `calibration`; filter: `filter_classification`, `triplet`, `sparsity`."""
        c = self.config
        assert batch.teacher is not None
        losses = {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled)
        }
        rows = batch.has_teacher
        seen, teacher = student.select(rows), batch.teacher.select(rows).detach()
        labels, labeled = batch.labels[rows], batch.labeled[rows]
        if len(labels) == 0:  # the filter has nothing to look at, but its parameters stay in the graph
            nothing = sum(p.sum() for p in self.filter.parameters()) * 0.0 + seen.embedding.sum()
            return (
                losses | dict.fromkeys(("calibration", "filter_classification", "triplet"), nothing) | self._sparsity()
            )

        live = self._filtered(teacher, seen, train_filter=c.calibration_into_filter)
        contrast_labels, contrast_labeled = self._contrast_labels(labels, labeled, teacher)
        losses["calibration"] = c.calibration_weight * contrastive_semantic_calibration(
            student=seen.embedding,
            guided=live.guided,
            filtered_teacher=live.embedding,
            labels=contrast_labels,
            labeled=contrast_labeled,
            temperature=c.temperature,
            threshold=c.threshold,
            log_epsilon=c.log_epsilon,
        )
        own = self._filtered(teacher, seen.detach(), on_copied_buffers=True)
        losses["filter_classification"] = masked_cross_entropy(logits=own.logits, labels=labels, labeled=labeled)
        losses["triplet"] = c.triplet_weight * filter_triplet(
            student=seen.embedding.detach(), teacher=own.teacher, filtered_teacher=own.embedding, margin=c.margin
        )
        return losses | self._sparsity()

    def _sparsity(self) -> dict[str, Tensor]:
        if self.filter.gate is None:
            return {"sparsity": self.filter.classifier.bias.sum() * 0.0}
        return {"sparsity": gate_sparsity(self.filter, self.config.sparsity, self.config.sparsity_weight)}

    def _filtered(
        self, teacher: Features, seen: StudentFeatures, *, train_filter: bool = True, on_copied_buffers: bool = False
    ) -> FilterOutput:
        replaced: dict[str, Tensor] = {}
        if not train_filter:
            replaced |= {name: p.detach() for name, p in self.filter.named_parameters()}
        if on_copied_buffers:
            replaced |= {name: b.clone() for name, b in self.filter.named_buffers()}
        arguments = {"teacher": teacher.embedding, "tokens": seen.tokens, "embedding": seen.embedding}
        return functional_call(self.filter, replaced, args=(), kwargs=arguments)

    def _contrast_labels(self, labels: Tensor, labeled: Tensor, teacher: Features) -> tuple[Tensor, Tensor]:
        if self.config.unlabeled == "excluded":
            return labels, labeled
        if teacher.logits is None or labels.ndim != 1:
            raise ConfigError("unlabeled='pseudo_label' needs a teacher with logits and one label per clip")
        return torch.where(labeled, labels, teacher.logits.argmax(1)), torch.ones_like(labeled)
