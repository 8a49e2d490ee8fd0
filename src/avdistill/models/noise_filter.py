"""The Modality Noise Filter (Xia et al. 2023, section 3.2; docs/methods/mnf_csc.md)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.errors import ConfigError

Order = Literal["gate_attention", "attention_gate", "parallel"]
Gate = Literal["learned", "open"]
Attention = Literal["guided", "mean"]


@dataclass(frozen=True)
class FilterOutput:
    """Output of the filter for a batch, all float.

    Attributes:
        gate: (B, D) in (0, 1); all 1 with an open gate.
        teacher: (B, D) the teacher's embedding, projected where its size is not D.
        embedding: (B, D) purified teacher embedding, gate * teacher.
        guided: (B, D) the student's tokens attended by the teacher, non-negative.
        logits: (B, C) classification of `guided`.
        attention: (B, K) weights over the tokens, mean of the heads, rows sum to 1.
    """

    gate: Tensor
    teacher: Tensor
    embedding: Tensor
    guided: Tensor
    logits: Tensor
    attention: Tensor


class _BatchNorm(nn.BatchNorm1d):
    """A single training row has no variance: running statistics normalize it, and stay."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class NoiseFilter(nn.Module):
    """Gates out of a teacher's embedding what is not of the student's clip, and attends to the tokens with the rest.

    The release's filter is `order="gate_attention"` with teacher and student embeddings of one size. Others are first
    projected by a linear layer and ReLU: the pairwise temperature assumes non-negative embeddings, as the paper's. A
    batch of one row uses BatchNorm's running statistics.
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
            student_dim: D of the student's tokens; divisible by `heads` and by 2.
            num_classes: C.
            teacher_dim: D of the teacher's embedding; None means the student's.
            heads: of the attention.
            order: "gate_attention" gates by [teacher; mean of the tokens], then attends with the gated teacher (as
                released); "attention_gate" attends with the ungated teacher and gates by [teacher; attended];
                "parallel" gates by [teacher; mean of the tokens] and attends with the ungated teacher.
            gate: "open" replaces the gate by ones, for ablation.
            attention: "mean" replaces the attention by the mean of the tokens, for ablation.

        Raises:
            ConfigError: `student_dim` is not divisible by `heads` and by 2.
        """
        super().__init__()
        D = student_dim
        if heads < 1 or D % heads or D % 2:
            raise ConfigError(f"student_dim: expected a multiple of {heads} heads and of 2, found {D}")
        self.order = order
        self.projection = nn.Identity() if teacher_dim in (None, D) else nn.Linear(int(teacher_dim or D), D)
        self.gate, self.attention = None, None
        if gate == "learned":
            self.gate = nn.Sequential(
                nn.Linear(2 * D, D // 2), _BatchNorm(D // 2), nn.ReLU(), nn.Linear(D // 2, D), nn.Sigmoid()
            )
        if attention == "guided":
            self.attention = nn.MultiheadAttention(D, heads, batch_first=True)
        self.guide = nn.Sequential(nn.Linear(D, D), _BatchNorm(D), nn.ReLU())
        self.classifier = nn.Linear(D, num_classes)

    def forward(self, *, teacher: Tensor, tokens: Tensor, embedding: Tensor | None = None) -> FilterOutput:
        """Filter a batch.

        Args:
            teacher: (B, teacher_dim) frozen embedding, all rows valid.
            tokens: (B, K, D) of the student.
            embedding: (B, D) of the student; None means the mean of `tokens`, as in the release.
        """
        student = tokens.mean(1) if embedding is None else embedding
        if isinstance(self.projection, nn.Linear):
            teacher = torch.relu(self.projection(teacher))
        if self.order == "attention_gate":
            attended, attention = self._attend(teacher, tokens)
            gate = self._gate(teacher, attended)
        else:
            gate = self._gate(teacher, student)
            attended, attention = self._attend(teacher if self.order == "parallel" else gate * teacher, tokens)
        guided = self.guide(attended)
        logits = self.classifier(guided)
        return FilterOutput(
            gate=gate, teacher=teacher, embedding=gate * teacher, guided=guided, logits=logits, attention=attention
        )

    def _gate(self, teacher: Tensor, student: Tensor) -> Tensor:
        return torch.ones_like(teacher) if self.gate is None else self.gate(torch.cat([teacher, student], 1))

    def _attend(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.attention is None:
            return tokens.mean(1), torch.full_like(tokens[:, :, 0], 1 / tokens.shape[1])
        attended, weights = self.attention(query[:, None], tokens, tokens, need_weights=True, average_attn_weights=True)
        return attended[:, 0], weights[:, 0]
