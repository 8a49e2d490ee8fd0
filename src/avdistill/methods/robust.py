"""Robust distillation: the student predicts what its clips audio like, and some audio belongs to another video.

Ours, within the idea of Xia et al. 2023: filter what is irrelevant in the teacher, let each clip teach as far as its
two sides are about the same thing. For a student that sees:

1. Audio is either about its video's class or about something else, like the audio of any other clip.
2. Bayes: what the teacher says of audio, over what it says of any, is how much likelier a class makes that audio.
3. The mean of that under the student's own prediction is the log_ratio: how much likelier than by chance the audio is.
4. The share of noise_model that are about their video is measured where the class is class_logits: on the labeled
clips. 5. The loss is -log of the likelihood of the audio, share x log_ratio + 1 - share: audio at odds with what the
student has
   learned from the others is explained by chance and teaches nothing.

In docs/methods/robust.md `class_prior` is pi, `share` is rho, and the probability that audio belongs, the sigmoid of
its log-log_ratio and the share's logit, is w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.losses import masked_cross_entropy
from avdistill.methods.base import Method, MethodContext
from avdistill.types import Batch, StudentFeatures, StudentNetwork


@dataclass(frozen=True)
class RobustConfig:
    """Settings; symbols as in docs/methods/robust.md.

    Attributes:
        weight: of the likelihood of the unlabeled clips' noise_model.
        temperature: divides the teacher's logits; 1 takes its probabilities for what they say.
    """

    name: Literal["robust"] = "robust"
    weight: float = 1.0
    temperature: float = 1.0


class Robust(Method):
    """The likelihood of each unlabeled clip's audio, of which a share is about something else."""

    config: RobustConfig
    config_class = RobustConfig
    tuning: ClassVar = {"weight": (0.3, 1.0, 3.0), "temperature": (0.5, 1.0, 2.0)}
    needs = "logits"

    def __init__(self, student: StudentNetwork, config: RobustConfig, context: MethodContext) -> None:
        """What is class_logits of the noise_model lies in `noise_model`; nothing trains but the student.

        Raises:
            ValueError: no training clips.
        """
        super().__init__(student, config, context)
        if context.training_clips < 1:
            raise ValueError("robust needs the number of training clips")
        self.noise_model = NoiseModel(context.num_classes, context.training_clips)

    def losses(self, student: StudentFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification` and `likelihood`, the mean over the unlabeled clips (0 for one without a teacher).

        With several labels per clip `likelihood` is divided by C, as `classification` is.

        Raises:
            ValueError: the batch does not say which clips it holds.
        """
        if batch.indices is None:
            raise ValueError("robust needs Batch.indices")
        several, there = batch.labels.ndim == 2, batch.has_teacher
        teacher = self._teacher(batch)
        class_prior, share = (
            x.to(teacher.dtype) for x in (self.noise_model.class_prior(several), self.noise_model.share)
        )
        rows = ~batch.labeled
        logits = student.logits[rows]
        log_ratio = log_likelihood_ratio(logits, teacher[rows], class_prior, several)
        likelihood = torch.logaddexp(log_ratio + share.log(), (1 - share).log()).where(there[rows], 0.0)
        loss = -likelihood.mean() / (logits.shape[1] if several else 1) if len(logits) else logits.sum()
        if self.training:
            told = there & batch.labeled
            class_logits = label_logits(batch.labels[told], teacher.shape[1])
            self.noise_model.judge(batch.indices[there & rows], log_ratio.detach()[there[rows]])
            self.noise_model.update(
                teacher[there], log_likelihood_ratio(class_logits, teacher[told], class_prior, several), several
            )
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "likelihood": self.config.weight * loss,
        }

    def mismatch_probability(self, predicted: Tensor, batch: Batch) -> Tensor:
        """How improbable it is that each clip's audio is about its video: (B,) in [0, 1], NaN without a teacher.

        A labeled clip is posterior_sum by its label, a clip trained on without one as it was on all visits in the
            mean: the
        student learns many a wrong audio in the end. Others are posterior_sum by what the student predicts.

        Args:
            predicted: (B, C) the student's probabilities.
            batch: `labels`, `labeled`, `has_teacher`, the teacher's logits, and `indices`, -1 for a clip that is not
                among the run's training clips.
        """
        assert batch.indices is not None
        several, teacher = batch.labels.ndim == 2, self._teacher(batch)
        class_prior, share = (
            x.to(teacher.dtype) for x in (self.noise_model.class_prior(several), self.noise_model.share)
        )
        class_logits = predicted.logit() if several else predicted.log()
        class_logits[batch.labeled] = label_logits(batch.labels[batch.labeled], class_logits.shape[1]).to(
            class_logits.dtype
        )
        mismatch_probability = torch.sigmoid(
            -(log_likelihood_ratio(class_logits, teacher, class_prior, several) + share.logit())
        )
        past = 1 - self.noise_model.posterior_sum / self.noise_model.visits  # NaN before the first visit
        past = past[batch.indices.clamp(min=0)].to(mismatch_probability.dtype)
        mismatch_probability = torch.where(
            (batch.indices >= 0) & ~batch.labeled & ~past.isnan(), past, mismatch_probability
        )
        return mismatch_probability.masked_fill(~batch.has_teacher, torch.nan)

    def _teacher(self, batch: Batch) -> Tensor:
        """(B, C) logits, zeros without a teacher: what stands there may be anything."""
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        return batch.teacher.logits.detach().where(batch.has_teacher[:, None], 0.0) / self.config.temperature


class NoiseModel(nn.Module):
    """What is class_logits of the training clips' noise_model, saved and resumed with the method: 8 bytes a clip, 8
    a class.

    Attributes:
        posterior_sum: (N,) sums over the visits of each clip without a label, of the probability that its audio
            belongs. Only `mismatch_probability` looks at it; to learn from it was no better.
        visits: (N,) how many those are.
    """

    prior_counts: Tensor
    clean_counts: Tensor
    posterior_sum: Tensor
    visits: Tensor

    def __init__(self, classes: int, clips: int) -> None:
        super().__init__()
        # float64 where the device has it: beyond what float32 adds up. The last of each is the number of clips.
        self.register_buffer("prior_counts", torch.zeros(classes + 1, dtype=torch.float64))
        self.register_buffer("clean_counts", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("posterior_sum", torch.zeros(clips))
        self.register_buffer("visits", torch.zeros(clips))

    @property
    def share(self) -> Tensor:
        """Of the labeled clips, those whose audio is about their video; even odds before any was seen."""
        # One of each kind more than there are: never 0 or 1.
        return (self.clean_counts[0] + 1) / (self.clean_counts[1] + 2)

    def class_prior(self, multi_label: bool) -> Tensor:
        """(C,) what the teacher says of any audio, in (0, 1): its mean over all visits and one of even odds."""
        even = 0.5 if multi_label else 1 / (len(self.prior_counts) - 1)
        class_prior = (self.prior_counts[:-1] + even) / (self.prior_counts[-1] + 1)
        return class_prior.clamp(max=1 - 1e-6) if multi_label else class_prior

    def judge(self, indices: Tensor, log_ratio: Tensor) -> None:
        """Add a visit of these clips, of which none has a label, with their log-fits (B,)."""
        belongs = torch.sigmoid(log_ratio + self.share.logit()).to(self.posterior_sum.dtype)
        self.posterior_sum.index_add_(0, indices, belongs)  # a batch over the end of an epoch may hold a clip twice
        self.visits.index_add_(0, indices, torch.ones_like(belongs))

    @torch.no_grad()
    def update(self, teacher: Tensor, log_ratio: Tensor, multi_label: bool) -> None:
        """Add a batch: the teacher's logits of all its clips (B, C), and the log-fits of those with a label."""
        teacher = teacher.to(self.prior_counts.dtype)
        said = teacher.sigmoid() if multi_label else teacher.softmax(1)
        self.prior_counts += torch.cat([said.sum(0), said.new_tensor([len(said)])])
        clean_counts = torch.sigmoid(log_ratio.to(self.clean_counts.dtype) + self.share.logit())
        self.clean_counts += torch.stack([clean_counts.sum(), clean_counts.new_tensor(len(clean_counts))])


def log_likelihood_ratio(
    class_logits: Tensor, teacher: Tensor, class_prior: Tensor, multi_label: bool = False
) -> Tensor:
    """How much likelier than by chance audio is, given what is class_logits of its video: log, (B,); 0 is chance.

    log sum_c q_c p_c / pi_c with q and p the softmax of `class_logits` and `teacher`; with several labels the sum
    over the classes of log(q p / pi + (1 - q) (1 - p) / (1 - pi)), q and p the sigmoids.

    Args:
        class_logits: (B, C) logits of the classes without the teacher; infinite ones are certain.
        teacher: (B, C) its logits.
        class_prior: (C,) pi, its probabilities for any audio, in (0, 1).
        multi_label: every class is a yes or no of its own.
    """
    if not multi_label:
        return torch.logsumexp(class_logits.log_softmax(1) + teacher.log_softmax(1) - class_prior.log(), 1)
    yes = F.logsigmoid(class_logits) + F.logsigmoid(teacher) - class_prior.log()
    no = F.logsigmoid(-class_logits) + F.logsigmoid(-teacher) - (1 - class_prior).log()
    return torch.logaddexp(yes, no).sum(1)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """(B, C) logits of what is certain: `labels` int64 (B,), or multi-hot (B, C)."""
    certain = labels > 0.5 if labels.ndim == 2 else F.one_hot(labels, classes).bool()
    return torch.where(certain, torch.inf if labels.ndim == 2 else 0.0, -torch.inf)
