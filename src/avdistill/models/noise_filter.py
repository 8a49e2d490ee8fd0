"""The Modality Noise Filter (Xia et al. 2023, section 3.2; METHOD: MNF gate, guided attention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Order = Literal["gate_attention", "attention_gate", "parallel"]
Gate = Literal["learned", "open"]
Attention = Literal["guided", "mean"]


@dataclass(frozen=True)
class FilterOutput:
    """What the filter makes of a batch.

    Attributes:
        gate: (B, D) in (0, 1); 1 where the gate is open.
        teacher: (B, D) the teacher's embedding in the student's width (the input itself where the widths agree).
        embedding: (B, D) purified teacher, gate * teacher.
        guided: (B, D) what the purified teacher points at in the student's map, non-negative.
        logits: (B, C) classification of `guided`.
        attention: (B, K) weights over the map's positions, mean of the heads, rows sum to 1.
    """

    gate: Tensor
    teacher: Tensor
    embedding: Tensor
    guided: Tensor
    logits: Tensor
    attention: Tensor


class NoiseFilter(nn.Module):
    """Removes from a teacher's embedding what is not the student's clip's, and asks the student's map with the rest.

    The release's filter is `order="gate_attention"` with equal widths; its BatchNorm layers are kept. Where the
    widths differ (the release cannot do that) a linear layer and ReLU bring the teacher to the student's width first:
    ReLU, because the pairwise temperature is made for embeddings that are not negative, as those of the paper.
    A batch of one row uses BatchNorm's running statistics.
    """

    def __init__(
        self,
        student_dim: int,
        num_classes: int,
        teacher_dim: int | None = None,
        heads: int = 2,
        order: Order = "gate_attention",
        gate: Gate = "learned",
        attention: Attention = "guided",
    ) -> None:
        """Build the filter.

        Args:
            student_dim: D, channels of the student's map; divisible by `heads` and by 2.
            num_classes: C.
            teacher_dim: width of the teacher's embedding; None means D.
            heads: of the attention, 2 in the release.
            order: "gate_attention" gates by [teacher; mean of the map], then attends with the gated teacher (released);
                "attention_gate" attends with the teacher as it is and gates by [teacher; attended]; "parallel" gates
                by [teacher; mean of the map] and attends with the teacher as it is.
            gate: "open" lets the whole teacher through: what the gate is worth can be told by leaving it out.
            attention: "mean" takes the mean of the map where the teacher would point at positions, for the same end.

        Raises:
            ValueError: D is not divisible as it must be.
        """
        super().__init__()
        D = student_dim
        if heads < 1 or D % heads or D % 2:
            raise ValueError(f"the student's {D} channels must be divisible by {heads} heads and by 2")
        self.order = order
        self.projection = nn.Identity() if teacher_dim in (None, D) else nn.Linear(int(teacher_dim or D), D)
        self.gate, self.attention = None, None
        if gate == "learned":
            self.gate = nn.Sequential(
                nn.Linear(2 * D, D // 2), nn.BatchNorm1d(D // 2), nn.ReLU(), nn.Linear(D // 2, D), nn.Sigmoid()
            )
        if attention == "guided":
            self.attention = nn.MultiheadAttention(D, heads, batch_first=True)
        self.guide = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.ReLU())
        self.classifier = nn.Linear(D, num_classes)

    def forward(self, *, teacher: Tensor, tokens: Tensor, embedding: Tensor | None = None) -> FilterOutput:
        """Filter a batch.

        Args:
            teacher: (B, teacher_dim) frozen embedding, all rows present.
            tokens: (B, K, D) the student's map.
            embedding: (B, D) the student's embedding; None means the mean of `tokens`, as in the release.
        """
        seen = tokens.mean(1) if embedding is None else embedding
        if isinstance(self.projection, nn.Linear):
            teacher = torch.relu(self.projection(teacher))
        if self.order == "gate_attention":
            gate = self._gated(teacher, seen)
            attended, attention = self._attend(gate * teacher, tokens)
        elif self.order == "parallel":
            gate = self._gated(teacher, seen)
            attended, attention = self._attend(teacher, tokens)
        else:
            attended, attention = self._attend(teacher, tokens)
            gate = self._gated(teacher, attended)
        guided = self._batch_independent(self.guide, attended)
        return FilterOutput(
            gate=gate,
            teacher=teacher,
            embedding=gate * teacher,
            guided=guided,
            logits=self.classifier(guided),
            attention=attention,
        )

    def _gated(self, teacher: Tensor, seen: Tensor) -> Tensor:
        if self.gate is None:
            return torch.ones_like(teacher)
        return self._batch_independent(self.gate, torch.cat([teacher, seen], 1))

    def _attend(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.attention is None:
            return tokens.mean(1), torch.full_like(tokens[:, :, 0], 1 / tokens.shape[1])
        attended, weights = self.attention(query[:, None], tokens, tokens, need_weights=True, average_attn_weights=True)
        return attended[:, 0], weights[:, 0]

    def _batch_independent(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """Statistics of a single row are no statistics (and an error in BatchNorm): use the running ones there."""
        if not self.training or len(x) > 1:
            return layers(x)
        for layer in layers:
            x = (
                nn.functional.batch_norm(
                    x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
                )
                if isinstance(layer, nn.BatchNorm1d)
                else layer(x)
            )
        return x
