"""The interface of a method: the module that owns everything that trains and turns a batch into named losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from avdistill.distributed import all_gather_with_grad
from avdistill.inputs import INPUTS
from avdistill.losses import masked_cross_entropy
from avdistill.types import Batch, Features, Option, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class TeacherRequirement:
    """The teacher's features that a method learns from; false where it learns from none.

    Attributes:
        embedding: (B, D); comes with logits and tokens.
        logits: (B, C) in the classes of the dataset.
        tokens: (B, K, D).
        each: of several teachers the features of each, beside those of their mean.
    """

    NOTHING: ClassVar[TeacherRequirement]
    EMBEDDING: ClassVar[TeacherRequirement]
    LOGITS: ClassVar[TeacherRequirement]
    TOKENS: ClassVar[TeacherRequirement]

    embedding: bool = False
    logits: bool = False
    tokens: bool = False
    each: bool = False

    def __bool__(self) -> bool:
        return self.embedding or self.logits or self.tokens

    def __str__(self) -> str:
        beyond = [name for name in ("logits", "tokens") if getattr(self, name)]
        return " and ".join(beyond) or ("embedding" if self.embedding else "nothing")


TeacherRequirement.NOTHING = TeacherRequirement()
TeacherRequirement.EMBEDDING = TeacherRequirement(embedding=True)
TeacherRequirement.LOGITS = TeacherRequirement(embedding=True, logits=True)
TeacherRequirement.TOKENS = TeacherRequirement(embedding=True, tokens=True)


@dataclass(frozen=True)
class MethodContext:
    """The sizes of a run, by which a method sizes its helpers and schedules.

    Attributes:
        num_classes: C.
        teacher_dim: D of the teacher's embedding, of several that of their mean; 0 without a teacher.
        teacher_dims: D of each of several teachers, where the method asks for each; empty for one teacher.
        training_clips: N; `Batch.indices` lie in [0, N).
        batch_size: B of a forward pass, over all processes.
        total_iterations: forward passes of the whole run: optimizer steps x gradient accumulation.
    """

    num_classes: int
    teacher_dim: int = 0
    training_clips: int = 0
    batch_size: int = 1
    total_iterations: int = 1
    teacher_dims: tuple[int, ...] = ()


@dataclass(frozen=True)
class AuditInputs:
    """The clips that an audit asks a method about, on the CPU.

    Attributes:
        probabilities: (N, C) the student's, mean over a clip's windows.
        embedding: (N, D) the student's.
        batch: labels, masks, the teacher's features, and `indices`, -1 for a clip that the run did not train on.
        helpers: (N, ...) tensors, what `Method.audit_helpers` returned.
    """

    probabilities: Tensor
    embedding: Tensor
    batch: Batch
    helpers: Mapping[str, Tensor]


class Method(nn.Module, ABC):
    """A student and the helper networks that train with it; never the teacher, whose features come with the batch.

    A subclass declares its settings (`config_class`, `tuning`) and what it uses (`learns_from`, `uses_tokens`,
    `uses_unlabeled`, `supports_multi_label`), and computes its `losses`. Their sum is minimized in one backward pass; a
    helper that must not move the student is fed detached features. Where several processes share a batch, `losses`
    gets all of it in each of them. Under autocast only the student runs in half precision.
    """

    #: frozen dataclass of its settings; `Method.config` is one
    config_class: ClassVar[type]
    #: field of the config -> values that `avdistill compare` may try; other fields stay as published
    tuning: ClassVar[Mapping[str, tuple[Option, ...]]] = {}
    #: the teacher's features that it needs; `requires` where that depends on the settings
    learns_from: ClassVar[TeacherRequirement] = TeacherRequirement.NOTHING
    #: whether the losses use the student's tokens; otherwise they do not travel between processes
    uses_tokens: ClassVar[bool] = False
    #: name of a parameter group -> the attributes, modules or parameters, that it holds; at the student's learning rate
    helper_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: buffers with a row per training clip, of which `update` changes those of the batch's clips only
    clip_buffers: ClassVar[tuple[str, ...]] = ()
    #: whether the student's and the teacher's embeddings can be compared (`shared_embeddings`)
    shares_space: ClassVar[bool] = False
    #: names of the scores that `audit_scores` returns, keys of `analysis.audit.scores.SCORES`
    audits: ClassVar[tuple[str, ...]] = ()

    def __init__(self, student: StudentNetwork, config: Any, context: MethodContext) -> None:
        """Build the helpers.

        Args:
            student: maps normalized video (B, 3, T, H, W) or a waveform (B, S) to `StudentFeatures`.
            config: an instance of `config_class`.
            context: of the run.
        """
        super().__init__()
        self.student, self.config, self.context = student, config, context

    @classmethod
    def requires(cls, config: Any) -> TeacherRequirement:
        """The teacher's features that the method needs with these settings: `learns_from` unless overridden."""
        return cls.learns_from

    @classmethod
    def uses_unlabeled(cls, config: Any) -> bool:
        """Whether clips without a label contribute with these settings; otherwise none is drawn."""
        return True

    @classmethod
    def supports_multi_label(cls, config: Any) -> bool:
        """Whether the method with these settings is defined for clips with several labels; else they are refused."""
        return True

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, of which this process may hold only its share of the rows; in training, `update` too.

        Returns:
            Name -> weighted scalar.
        """
        student = student_features(self.student, batch)
        if not self.uses_tokens:
            student = replace(student, tokens=None)
        # A divergence of what is nearly alike is lost in bfloat16.
        student = student.map(lambda x: all_gather_with_grad(x.to(torch.promote_types(x.dtype, torch.float32))))
        with torch.autocast(batch.labels.device.type, enabled=False):
            batch = replace(batch, frames=None, audio=None).map(all_gather_with_grad)
            losses = self.losses(student, batch)
            if self.training:
                with torch.no_grad():
                    self.update(student.detach(), batch)
            return losses

    @abstractmethod
    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar losses. Changes no state but the running statistics of helpers' BatchNorm layers.

        Args:
            student: its features of the whole batch, without `tokens` unless `uses_tokens`.
            batch: without `frames` and `audio`; `clip_ids` are those of this process.
        """

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Move the method's state (memories, counters) after the losses of a training batch; without gradient.

        Args:
            student, batch: as in `losses`.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups with `name`, `params` and `lr_scale`; gradients are clipped group by group."""
        groups = [{"name": "student", "params": list(self.student.parameters()), "lr_scale": 1.0}]
        for group, helpers in self.helper_groups.items():
            params = [p for helper in helpers for name, p in self.named_parameters() if name.split(".")[0] == helper]
            if params:
                groups.append({"name": group, "params": params, "lr_scale": 1.0})
        return groups

    def audit_helpers(self, student: Features, teacher: Tensor) -> dict[str, Tensor]:
        """Outputs of the helpers for a few clips of an audit, which does not keep the clips' tokens.

        Args:
            student: embedding (B, D), and tokens (B, K, D) if `uses_tokens`.
            teacher: (B, D) embeddings.

        Returns:
            Name -> (B, ...) values, which `audit_scores` gets for all clips.
        """
        return {}

    def shared_embeddings(self, student: Features, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides in the space in which the method compares them by cosine, where `shares_space`.

        Args:
            student: embedding (B, D), and tokens (B, K, D) if `uses_tokens`.
            teacher: (B, D) embeddings.

        Returns:
            (B, width) of the student, which does not depend on the teacher, and of the teacher.
        """
        raise NotImplementedError(f"{type(self).__name__} has no space of student and teacher")

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """Scores of an audit that only this method can give: float64 (N,), HIGHER for a clip that is more suspicious.

        Returns:
            The scores named in `audits`, or none of them where the teacher's features do not suffice.
        """
        return {}


def student_features(student: StudentNetwork, batch: Batch) -> StudentFeatures:
    """Run a student on the modality it takes (`student.modality`).

    Raises:
        ValueError: the batch does not hold that modality.
    """
    kind = INPUTS[student.modality]
    inputs = getattr(batch, kind.reader)
    if inputs is None:
        raise ValueError(f"the student takes {student.modality}, which this batch does not hold")
    return student(kind.network_input(inputs))


def classification_loss(student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
    """`classification`, the loss of the labeled clips that all methods share (`masked_cross_entropy`)."""
    loss = masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled)
    return {"classification": loss}


def rows_with_teacher(student: StudentFeatures, batch: Batch) -> tuple[StudentFeatures, Features]:
    """The features of student and teacher of the clips that have a teacher; no gradient reaches the teacher's."""
    assert batch.teacher is not None
    return student.select(batch.has_teacher), batch.teacher.select(batch.has_teacher).detach()


def each_teacher(batch: Batch) -> tuple[tuple[Features, ...], Tensor]:
    """The features of each of several teachers, or of the only one, and bool (B, K), which teachers a clip has."""
    assert batch.teacher is not None
    if batch.has_each is None:
        return (batch.teacher.detach(),), batch.has_teacher[:, None]
    return tuple(each.detach() for each in batch.each_teacher), batch.has_each


def paired(
    student: StudentFeatures, batch: Batch, field: Literal["embedding", "logits", "tokens"]
) -> tuple[Tensor, Tensor]:
    """(N, ...) that field of student and teacher of the N clips that have a teacher, which `requires` asked for."""
    student_rows, teacher_rows = rows_with_teacher(student, batch)
    return getattr(student_rows, field), getattr(teacher_rows, field)


class SingleTermMethod(Method):
    """A method with one term beside the classification, of the features in `learns_from`, times `config.weight`."""

    #: its name among the losses
    term: ClassVar[str]

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and the term."""
        field: Any = str(self.learns_from)
        loss = self._term(*paired(student, batch, field))
        return classification_loss(student, batch) | {self.term: self.config.weight * loss}

    @abstractmethod
    def _term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The term of the (N, ...) features of the clips that have a teacher."""


class IterationCounter(nn.Module):
    """`iterations`: int64 (), forward passes in training so far."""

    iterations: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))


class CountingMethod(Method):
    """A method whose losses change over time."""

    def __init__(self, student: StudentNetwork, config: Any, context: MethodContext) -> None:
        """The counter; saved and resumed with the method."""
        super().__init__(student, config, context)
        self.counter = IterationCounter()

    def update(self, student: StudentFeatures, batch: Batch) -> None:
        """Count the iteration."""
        self.counter.iterations += 1


_METHODS: dict[str, type[Method]] = {}
_Class = TypeVar("_Class", bound=type[Method])


def register_method(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: puts a method into `METHODS`, the command line and the strict reader of configs.

    Every module of `avdistill.methods` is imported, so a file with a decorated class is all that a method needs.

    Args:
        name: also the value of the config's field `name`.
    """

    def register(method: _Class) -> _Class:
        if name in _METHODS or method.config_class().name != name:
            raise ValueError(f"method {name!r}: its config has another name, or the name is taken")
        _METHODS[name] = method
        return method

    return register
