"""Robust distillation: the student predicts what its clips sound like, and some sound belongs to another picture.

Ours, within the idea of Xia et al. 2023: filter what is irrelevant in the teacher, let each clip teach as far as its
two sides are about the same thing. For a student that sees:

1. A sound is either about its picture's class or about something else, like the sound of any other clip.
2. Bayes: what the teacher says of a sound, over what it says of any, is how much likelier a class makes that sound.
3. The mean of that under the student's own prediction is the fit: how much likelier than by chance the sound is.
4. The share of sounds that are about their picture is measured where the class is known: on the labelled clips.
5. The loss is -log of the likelihood of the sound, share x fit + 1 - share: a sound at odds with what the student has
   learned from the others is explained by chance and teaches nothing.

In docs/methods/robust.md `usual` is pi, `share` is rho, and the probability that a sound belongs, the sigmoid of its
log-fit and the share's logit, is w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.losses import classification
from avdistill.methods.base import Method, Sizes
from avdistill.types import Batch, Features, Network


@dataclass(frozen=True)
class RobustConfig:
    """Settings; symbols as in docs/methods/robust.md.

    Attributes:
        weight: of the likelihood of the unlabelled clips' sounds.
        temperature: divides the teacher's logits; 1 takes its probabilities for what they say.
    """

    name: Literal["robust"] = "robust"
    weight: float = 1.0
    temperature: float = 1.0


class Robust(Method):
    """The likelihood of each unlabelled clip's sound, of which a share is about something else."""

    config: RobustConfig
    config_class = RobustConfig
    tuning: ClassVar = {"weight": (0.3, 1.0, 3.0), "temperature": (0.5, 1.0, 2.0)}
    needs = "logits"

    def __init__(self, student: Network, config: RobustConfig, sizes: Sizes) -> None:
        """What is known of the sounds lies in `sounds`; nothing trains but the student.

        Raises:
            ValueError: no training clips.
        """
        super().__init__(student, config, sizes)
        if sizes.training_clips < 1:
            raise ValueError("robust needs the number of training clips")
        self.sounds = Sounds(sizes.num_classes, sizes.training_clips)

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `likelihood`, the mean over the unlabelled clips (0 for one without a teacher).

        With several labels per clip `likelihood` is divided by C, as `classification` is.

        Raises:
            ValueError: the batch does not say which clips it holds.
        """
        assert student.logits is not None
        if batch.indices is None:
            raise ValueError("robust needs Batch.indices")
        several, there = batch.labels.ndim == 2, batch.has_teacher
        teacher = self._teacher(batch)
        usual, share = (x.to(teacher.dtype) for x in (self.sounds.usual(several), self.sounds.share))
        rows = ~batch.labelled
        logits = student.logits[rows]
        fit = log_fit(logits, teacher[rows], usual, several)
        likelihood = torch.logaddexp(fit + share.log(), (1 - share).log()).where(there[rows], 0.0)
        loss = -likelihood.mean() / (logits.shape[1] if several else 1) if len(logits) else logits.sum()
        if self.training:
            told = there & batch.labelled
            known = label_logits(batch.labels[told], teacher.shape[1])
            self.sounds.judge(batch.indices[there & rows], fit.detach()[there[rows]])
            self.sounds.update(teacher[there], log_fit(known, teacher[told], usual, several), several)
        return {
            "classification": classification(logits=student.logits, labels=batch.labels, labelled=batch.labelled),
            "likelihood": self.config.weight * loss,
        }

    def doubts(self, predicted: Tensor, batch: Batch) -> Tensor:
        """How improbable it is that each clip's sound is about its picture: (B,) in [0, 1], NaN without a teacher.

        A labelled clip is judged by its label, a clip trained on without one as it was on all visits in the mean: the
        student learns many a wrong sound in the end. Others are judged by what the student predicts.

        Args:
            predicted: (B, C) the student's probabilities.
            batch: `labels`, `labelled`, `has_teacher`, the teacher's logits, and `indices`, -1 for a clip that is not
                among the run's training clips.
        """
        assert batch.indices is not None
        several, teacher = batch.labels.ndim == 2, self._teacher(batch)
        usual, share = (x.to(teacher.dtype) for x in (self.sounds.usual(several), self.sounds.share))
        known = predicted.logit() if several else predicted.log()
        known[batch.labelled] = label_logits(batch.labels[batch.labelled], known.shape[1]).to(known.dtype)
        doubts = torch.sigmoid(-(log_fit(known, teacher, usual, several) + share.logit()))
        past = 1 - self.sounds.judged / self.sounds.visits  # NaN before the first visit
        past = past[batch.indices.clamp(min=0)].to(doubts.dtype)
        doubts = torch.where((batch.indices >= 0) & ~batch.labelled & ~past.isnan(), past, doubts)
        return doubts.masked_fill(~batch.has_teacher, torch.nan)

    def _teacher(self, batch: Batch) -> Tensor:
        """(B, C) logits, zeros without a teacher: what stands there may be anything."""
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        return batch.teacher.logits.detach().where(batch.has_teacher[:, None], 0.0) / self.config.temperature


class Sounds(nn.Module):
    """What is known of the training clips' sounds, saved and resumed with the method: 8 bytes a clip, 8 a class.

    Attributes:
        judged: (N,) sums over the visits of each clip without a label, of the probability that its sound belongs. Only
            `doubts` looks at it; to learn from it was no better.
        visits: (N,) how many those are.
    """

    heard: Tensor
    related: Tensor
    judged: Tensor
    visits: Tensor

    def __init__(self, classes: int, clips: int) -> None:
        super().__init__()
        # float64: beyond what float32 adds up. The last of each is the number of clips.
        self.register_buffer("heard", torch.zeros(classes + 1, dtype=torch.float64))
        self.register_buffer("related", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("judged", torch.zeros(clips))
        self.register_buffer("visits", torch.zeros(clips))

    @property
    def share(self) -> Tensor:
        """Of the labelled clips, those whose sound is about their picture; even odds before any was seen."""
        # One of each kind more than there are: never 0 or 1.
        return (self.related[0] + 1) / (self.related[1] + 2)

    def usual(self, several_labels: bool) -> Tensor:
        """(C,) what the teacher says of any sound, in (0, 1): its mean over all visits and one of even odds."""
        even = 0.5 if several_labels else 1 / (len(self.heard) - 1)
        usual = (self.heard[:-1] + even) / (self.heard[-1] + 1)
        return usual.clamp(max=1 - 1e-6) if several_labels else usual

    def judge(self, indices: Tensor, fit: Tensor) -> None:
        """Add a visit of these clips, of which none has a label, with their log-fits (B,)."""
        belongs = torch.sigmoid(fit + self.share.logit()).to(self.judged.dtype)
        self.judged.index_add_(0, indices, belongs)  # a batch over the end of an epoch may hold a clip twice
        self.visits.index_add_(0, indices, torch.ones_like(belongs))

    @torch.no_grad()
    def update(self, teacher: Tensor, fit: Tensor, several_labels: bool) -> None:
        """Add a batch: the teacher's logits of all its clips (B, C), and the log-fits of those with a label."""
        said = teacher.double().sigmoid() if several_labels else teacher.double().softmax(1)
        self.heard += torch.cat([said.sum(0), said.new_tensor([len(said)])])
        related = torch.sigmoid(fit.double() + self.share.logit())
        self.related += torch.stack([related.sum(), related.new_tensor(len(related))])


def log_fit(known: Tensor, teacher: Tensor, usual: Tensor, several_labels: bool = False) -> Tensor:
    """How much likelier than by chance a sound is, given what is known of its picture: log, (B,); 0 is chance.

    log sum_c q_c p_c / pi_c with q and p the softmax of `known` and `teacher`; with several labels the sum over the
    classes of log(q p / pi + (1 - q) (1 - p) / (1 - pi)), q and p the sigmoids.

    Args:
        known: (B, C) logits of the classes without the teacher; infinite ones are certain.
        teacher: (B, C) its logits.
        usual: (C,) pi, its probabilities for any sound, in (0, 1).
        several_labels: every class is a yes or no of its own.
    """
    if not several_labels:
        return torch.logsumexp(known.log_softmax(1) + teacher.log_softmax(1) - usual.log(), 1)
    yes = F.logsigmoid(known) + F.logsigmoid(teacher) - usual.log()
    no = F.logsigmoid(-known) + F.logsigmoid(-teacher) - (1 - usual).log()
    return torch.logaddexp(yes, no).sum(1)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """(B, C) logits of what is certain: `labels` int64 (B,), or multi-hot (B, C)."""
    certain = labels > 0.5 if labels.ndim == 2 else F.one_hot(labels, classes).bool()
    return torch.where(certain, torch.inf if labels.ndim == 2 else 0.0, -torch.inf)
