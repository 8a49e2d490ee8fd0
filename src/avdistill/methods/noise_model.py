"""A noise model of the teacher's modality: how likely a clip's audio is under the class of its video.

Ours; the equations are in docs/methods/robust.md. In the words of a video student with an audio teacher:

1. Noise model: the audio of a clip either belongs to the class of its video, or (noisy correspondence) is drawn like
   the audio of any other clip.
2. Class prior pi: the mean of the teacher's probabilities over all audio. By Bayes' rule p_c / pi_c, the teacher's
   probability over the prior, is proportional to the likelihood of the audio given class c.
3. Log-likelihood ratio: log sum_c q_c p_c / pi_c with the student's probabilities q: how much likelier the audio is
   under its video's class than by chance.
4. Clean rate rho: the fraction of clips whose audio matches; measured on the labeled clips, where the class is known.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.methods.base import AuditInputs, MethodContext
from avdistill.types import Batch

#: of a method with a `noise_model`, for `Method.clip_buffers`
CLIP_BUFFERS = ("noise_model.posterior_sum", "noise_model.visits")


class NoiseModel(nn.Module):
    """Class prior and clean rate of the run, and each unlabeled clip's posterior; saved and resumed with the method.

    A method that has one as its attribute `noise_model` names `CLIP_BUFFERS` among its `clip_buffers`.

    Attributes:
        prior_counts: float64 (C + 1,), sums of the teacher's probabilities over all visits of clips, and the visits.
        clean_counts: float64 (2,), the sum of the labeled clips' posteriors of matching audio, and their visits.
        posterior_sum: (N,) sums of an unlabeled clip's posterior over its visits. Only `mismatch_probability` uses it;
            to weight the loss by it was no better.
        visits: (N,) their number.
    """

    prior_counts: Tensor
    clean_counts: Tensor
    posterior_sum: Tensor
    visits: Tensor

    def __init__(self, context: MethodContext, temperature: float = 1.0) -> None:
        """Args: context: of the run; temperature: the divisor of the teacher's logits.

        Raises:
            ValueError: there are no training clips.
        """
        super().__init__()
        if context.training_clips < 1:
            raise ValueError("expected training clips, found none")
        self.temperature = temperature
        # float64 where the device has it: in float32 a count stops to grow at 2^24.
        self.register_buffer("prior_counts", torch.zeros(context.num_classes + 1, dtype=torch.float64))
        self.register_buffer("clean_counts", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("posterior_sum", torch.zeros(context.training_clips))
        self.register_buffer("visits", torch.zeros(context.training_clips))

    @property
    def clean_rate(self) -> Tensor:
        """rho: the fraction of labeled clips whose audio matches, never 0 or 1 (one more of each kind is counted)."""
        return (self.clean_counts[0] + 1) / (self.clean_counts[1] + 2)

    def class_prior(self, multi_label: bool) -> Tensor:
        """pi: (C,) the teacher's mean probabilities over all visits and one that is uniform, in (0, 1)."""
        uniform = 0.5 if multi_label else 1 / (len(self.prior_counts) - 1)
        class_prior = (self.prior_counts[:-1] + uniform) / (self.prior_counts[-1] + 1)
        return class_prior.clamp(max=1 - 1e-6) if multi_label else class_prior

    def negative_log_likelihood(self, student_logits: Tensor, batch: Batch) -> Tensor:
        """-log(rho x ratio + 1 - rho), mean over the unlabeled clips, with 0 for a clip without a teacher.

        With several labels per clip it is divided by C, as the classification loss is.
        """
        unlabeled, multi_label = ~batch.labeled, batch.labels.ndim == 2
        teacher, logits = self._teacher_logits(batch), student_logits[unlabeled]
        clean_rate = self.clean_rate.to(teacher.dtype)
        log_ratio = self._log_ratio(logits, teacher[unlabeled], multi_label)
        likelihood = torch.logaddexp(log_ratio + clean_rate.log(), (1 - clean_rate).log())
        likelihood = likelihood.where(batch.has_teacher[unlabeled], 0.0)
        return -likelihood.mean() / (logits.shape[1] if multi_label else 1) if len(logits) else logits.sum()

    def posterior(self, student_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each clip: probabilities of its class (B, C), and of matching audio (B,), from student, teacher and label.

        The class of a labeled clip is its label. That of another is w r + (1 - w) s: s the student's probabilities, r
        those of student and teacher together, s p / pi normalized, w the probability that the audio matches. A clip
        without a teacher has w = 0.
        """
        multi_label, teacher = batch.labels.ndim == 2, self._teacher_logits(batch)
        logits = _with_labels(student_logits, batch)
        clean_rate = self.clean_rate.to(teacher.dtype)
        matching = torch.sigmoid(self._log_ratio(logits, teacher, multi_label) + clean_rate.logit())
        matching = matching.where(batch.has_teacher, 0.0)
        prior = self.class_prior(multi_label).to(teacher.dtype)
        if multi_label:
            alone, both = logits.sigmoid(), (logits + teacher - prior.logit()).sigmoid()
        else:
            alone = logits.softmax(1)
            both = (logits.log_softmax(1) + teacher.log_softmax(1) - prior.log()).softmax(1)
        return torch.lerp(alone, both, matching[:, None]), matching

    def update(self, student_logits: Tensor, batch: Batch) -> None:
        """Add a batch to the counts. Raises ValueError for a batch without `indices`."""
        if batch.indices is None:
            raise ValueError("the noise model needs Batch.indices")
        multi_label, teacher = batch.labels.ndim == 2, self._teacher_logits(batch)
        unlabeled, labeled = batch.has_teacher & ~batch.labeled, batch.has_teacher & batch.labeled
        labels = label_logits(batch.labels[labeled], teacher.shape[1])
        of_unlabeled = self._log_ratio(student_logits[unlabeled], teacher[unlabeled], multi_label)
        of_labeled = self._log_ratio(labels, teacher[labeled], multi_label)
        self._add_visits(batch.indices[unlabeled], of_unlabeled)
        self._add_batch(teacher[batch.has_teacher], of_labeled, multi_label)

    def mismatch_probability(self, probabilities: Tensor, batch: Batch) -> Tensor:
        """The posterior probability that a clip's audio is mismatched: (B,) in [0, 1], NaN without a teacher.

        For a labeled clip it is computed from its label; for a clip that was trained on without a label it is the mean
        over its visits in training, because a student that has seen a mismatched clip often enough learns to agree
        with it; for any other clip it is computed from the student's prediction.

        Args:
            probabilities: (B, C) the student's.
            batch: `labels`, `labeled`, `has_teacher`, the teacher's logits, and `indices`, -1 for a clip that is not
                among the run's training clips.
        """
        assert batch.indices is not None
        multi_label, teacher = batch.labels.ndim == 2, self._teacher_logits(batch)
        class_logits = _with_labels(probabilities.logit() if multi_label else probabilities.log(), batch)
        clean_rate = self.clean_rate.to(teacher.dtype)
        mismatch = torch.sigmoid(-(self._log_ratio(class_logits, teacher, multi_label) + clean_rate.logit()))
        past = 1 - self.posterior_sum / self.visits  # NaN before the first visit
        past = past[batch.indices.clamp(min=0)].to(mismatch.dtype)
        mismatch = torch.where((batch.indices >= 0) & ~batch.labeled & ~past.isnan(), past, mismatch)
        return mismatch.masked_fill(~batch.has_teacher, torch.nan)

    def audit_scores(self, inputs: AuditInputs) -> dict[str, Tensor]:
        """`mismatch_probability`, unless the teacher has no logits."""
        teacher = inputs.batch.teacher
        if teacher is None or teacher.logits is None:
            return {}
        batch = replace(inputs.batch, teacher=replace(teacher, logits=teacher.logits.double()))
        return {"mismatch_probability": self.mismatch_probability(inputs.probabilities.double(), batch)}

    def _teacher_logits(self, batch: Batch) -> Tensor:
        """(B, C) logits over the temperature; zeros for a clip without a teacher, whose row may hold anything."""
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        return batch.teacher.logits.detach().where(batch.has_teacher[:, None], 0.0) / self.temperature

    def _log_ratio(self, class_logits: Tensor, teacher: Tensor, multi_label: bool) -> Tensor:
        class_prior = self.class_prior(multi_label).to(teacher.dtype)
        return log_likelihood_ratio(class_logits, teacher, class_prior, multi_label)

    def _add_visits(self, indices: Tensor, log_ratio: Tensor) -> None:
        """Add a visit of unlabeled clips, int64 (B,), with their log-likelihood ratios (B,)."""
        posterior = torch.sigmoid(log_ratio + self.clean_rate.logit()).to(self.posterior_sum.dtype)
        self.posterior_sum.index_add_(0, indices, posterior)  # a batch over the end of an epoch may hold a clip twice
        self.visits.index_add_(0, indices, torch.ones_like(posterior))

    def _add_batch(self, teacher: Tensor, log_ratio: Tensor, multi_label: bool) -> None:
        """Add the teacher's logits (B, C) of a batch, and the log-likelihood ratios of its labeled clips."""
        teacher = teacher.to(self.prior_counts.dtype)
        probabilities = teacher.sigmoid() if multi_label else teacher.softmax(1)
        posterior = torch.sigmoid(log_ratio.to(self.clean_counts.dtype) + self.clean_rate.logit())
        self.prior_counts += torch.cat([probabilities.sum(0), probabilities.new_tensor([len(probabilities)])])
        self.clean_counts += torch.stack([posterior.sum(), posterior.new_tensor(len(posterior))])


def log_likelihood_ratio(
    class_logits: Tensor, teacher: Tensor, class_prior: Tensor, multi_label: bool = False
) -> Tensor:
    """The log-likelihood ratio of a clip's audio, given its video's class, over chance: (B,); 0 is no evidence.

    log sum_c q_c p_c / pi_c with q and p the softmax of `class_logits` and `teacher`; with several labels the sum
    over the classes of log(q p / pi + (1 - q) (1 - p) / (1 - pi)), q and p the sigmoids.

    Args:
        class_logits: (B, C) logits of the video's class, of a prediction or of a label; infinite ones are certain.
        teacher: (B, C) logits of the audio.
        class_prior: (C,) pi, the teacher's mean probabilities, in (0, 1).
        multi_label: every class is a binary decision.
    """
    if not multi_label:
        return torch.logsumexp(class_logits.log_softmax(1) + teacher.log_softmax(1) - class_prior.log(), 1)
    yes = F.logsigmoid(class_logits) + F.logsigmoid(teacher) - class_prior.log()
    no = F.logsigmoid(-class_logits) + F.logsigmoid(-teacher) - (1 - class_prior).log()
    return torch.logaddexp(yes, no).sum(1)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """(B, C) logits of certain labels: int64 (B,), or multi-hot (B, C)."""
    certain = labels > 0.5 if labels.ndim == 2 else F.one_hot(labels, classes).bool()
    return torch.where(certain, torch.inf if labels.ndim == 2 else 0.0, -torch.inf)


def _with_labels(class_logits: Tensor, batch: Batch) -> Tensor:
    """(B, C) the same, but for the labeled clips those of their labels."""
    class_logits = class_logits.clone()
    labels = label_logits(batch.labels[batch.labeled], class_logits.shape[1])
    class_logits[batch.labeled] = labels.to(class_logits.dtype)
    return class_logits
