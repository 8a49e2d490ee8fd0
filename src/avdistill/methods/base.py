"""What a method is: the module that owns all that trains, and turns a batch into named losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avdistill.distributed import all_gather_with_grad
from avdistill.models.imagenet import normalize_frames
from avdistill.types import Batch, Option, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class MethodContext:
    """What a method may size its parts and schedules by.

    Attributes:
        num_classes: C.
        teacher_dim: D of the teacher's embedding; 0 without a teacher.
        training_clips: N; `Batch.indices` lie in [0, N).
        batch_size: B of a forward pass, over all processes.
        passes: forward passes of the whole run.
    """

    num_classes: int
    teacher_dim: int = 0
    training_clips: int = 0
    batch_size: int = 1
    passes: int = 1


class Method(nn.Module, ABC):
    """A student and whatever trains with it; never the teacher, whose features come with the batch.

    A subclass says what it is made of (`config_class`, `tuning`) and what it needs (`needs`, `uses_unlabeled`,
    `multi_label`, `uses_tokens`), and computes its `losses`, named and weighted: their sum is what is minimized, in
    one backward pass. A helper network that must not move the student is fed detached features. Where several processes
    share a batch, `losses` sees all of it in each of them. Under autocast only the student runs in half precision.
    """

    #: frozen dataclass of its settings; `Method.config` is one
    config_class: ClassVar[type]
    #: field of the config -> values that `avdistill compare` may try; what is not here stays as published
    tuning: ClassVar[Mapping[str, tuple[Option, ...]]] = {}
    #: of the teacher's features: nothing, "embedding", "logits" or "tokens" (the last two include the embedding)
    needs: ClassVar[str] = ""
    #: whether clips without a label contribute; where not, none is drawn
    uses_unlabeled: ClassVar[bool] = True
    #: whether it has a meaning for clips with several labels; where not, such a dataset is refused
    multi_label: ClassVar[bool] = True
    #: whether the losses look at the student's map; where not, it does not travel between processes
    uses_tokens: ClassVar[bool] = False

    def __init__(self, student: StudentNetwork, config: Any, context: MethodContext) -> None:
        """Build the helpers.

        Args:
            student: maps normalized video (B, 3, T, H, W) or a waveform (B, S) to `StudentFeatures`.
            config: an instance of `config_class`.
            context: of the run.
        """
        super().__init__()
        self.student, self.config, self.context = student, config, context

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar losses of a batch, of which this process may hold only its share of the rows."""
        student = student_features(self.student, batch)
        if not self.uses_tokens:
            student = replace(student, tokens=None)
        # A divergence of what is nearly alike is lost in bfloat16.
        student = student.map(lambda x: all_gather_with_grad(x.to(torch.promote_types(x.dtype, torch.float32))))
        with torch.autocast(batch.labels.device.type, enabled=False):
            return self.losses(student, replace(batch, frames=None, audio=None).map(all_gather_with_grad))

    @abstractmethod
    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar losses.

        Args:
            student: its features of the whole batch, without `tokens` where not `uses_tokens`.
            batch: without `frames` and `audio`; `clip_ids` are those of this process.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups with `name`, `params` and `lr_scale`; gradients are clipped group by group."""
        return [{"name": "student", "params": list(self.student.parameters()), "lr_scale": 1.0}]


def student_features(student: StudentNetwork, batch: Batch) -> StudentFeatures:
    """Run a student on the modality it takes (`student.modality`).

    Raises:
        ValueError: the batch does not hold that modality.
    """
    inputs = normalize_frames(batch.frames) if student.modality == "video" and batch.frames is not None else batch.audio
    if inputs is None:
        raise ValueError(f"the student takes {student.modality}, which this batch does not hold")
    return student(inputs)


class PassCounter(nn.Module):
    """Counts a run's forward passes for losses that change over time; saved and resumed with the method's buffers."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def advance(self) -> int:
        """How many training passes there were before this one, which is then counted; evaluation is not."""
        before = int(self.passes)
        if self.training:
            self.passes += 1
        return before
