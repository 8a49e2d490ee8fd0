"""Robust distillation: a clip's teacher is believed as far as it agrees with what is known of the clip without it.

Ours, within the idea of Xia et al. 2023: filter what is irrelevant in the teacher, let each clip teach as far as its
two sides are about the same thing. For a student that sees:

1. Either the sound is about the picture, and names its class with the teacher's probability, or it is about something
   else, and names classes as often as it does anywhere.
2. What is known of the picture's class is its label or, without one, the running mean of the student's predictions.
3. Bayes: how much more often than by chance both name the same class says how probable it is that the sound belongs.
4. How many sounds belong at all is measured where the class is known: on the labelled clips.
5. An unlabelled clip is taught what both sides together say with that probability, and its own belief with the rest.
"""

from __future__ import annotations

import math
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
        momentum: of the running mean of the student's predictions of a clip, from one visit to the next.
        sharpening: exponent of that mean. Predictions under random crops and doubtful targets are less sure than they
            are right; 2 is the temperature 0.5 of MixMatch (Berthelot et al. 2019).
        weight: of what both sides say together.
        own_weight: of the student's own belief, where the teacher is doubted.
    """

    name: Literal["robust"] = "robust"
    momentum: float = 0.8
    sharpening: float = 2.0
    weight: float = 1.0
    own_weight: float = 1.0


class Robust(Method):
    """Weighs each unlabelled clip's teacher by the probability that its sound is the picture's own."""

    config: RobustConfig
    config_class = RobustConfig
    tuning: ClassVar = {"momentum": (0.6, 0.8, 0.9), "sharpening": (1.0, 2.0, 3.0), "own_weight": (0.3, 1.0)}
    needs = "logits"

    def __init__(self, student: Network, config: RobustConfig, sizes: Sizes) -> None:
        """Nothing trains but the student; what is remembered of the clips lies in `memory`.

        Raises:
            ValueError: no training clips to remember.
        """
        super().__init__(student, config, sizes)
        if sizes.training_clips < 1:
            raise ValueError("robust needs the number of training clips")
        self.memory = ClipMemory(sizes.training_clips, sizes.num_classes)

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns `classification`, `both` and `own`, the last two means over the unlabelled clips.

        Raises:
            ValueError: the batch does not say which clips it holds.
        """
        assert student.logits is not None
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        if batch.indices is None:
            raise ValueError("robust needs Batch.indices")
        several = batch.labels.ndim == 2
        predicted, teacher = (
            _probabilities(x.detach().to(self.memory.belief.dtype), several)
            for x in (student.logits, batch.teacher.logits)
        )
        known, visited = self.memory.beliefs(batch.indices, self.config.momentum)
        known = self._known(known, visited, batch.labels, batch.labelled)
        fit, both = agreement(known=known, teacher=teacher, usual=self.memory.usual(several), several_labels=several)
        # Before anything is known of a clip, the teacher is all there is.
        fresh = ~(visited | batch.labelled)
        fit, both = torch.where(fresh, 1.0, fit), torch.where(fresh[:, None], teacher, both)
        belongs = belonging(fit, self.memory.share).masked_fill(~batch.has_teacher, 0.0)
        if self.training:
            self.memory.update(batch, predicted, teacher, fit, self.config.momentum)

        rows = ~batch.labelled
        logits, belongs = student.logits[rows], belongs[rows]
        heard = torch.where(batch.has_teacher[:, None], both, 0.0)[rows]
        sure = certainty(known[rows], several)  # 0 for a clip never seen
        losses = {"classification": classification(logits=student.logits, labels=batch.labels, labelled=batch.labelled)}
        for name, target, scale, weight in (
            ("both", heard, belongs[:, None], self.config.weight),
            ("own", known[rows], (1 - belongs)[:, None] * sure, self.config.own_weight),
        ):
            surprise = scale * _surprise(logits, target, several)
            losses[name] = weight * (surprise.mean(0).sum() if len(logits) else logits.sum())
        return losses

    def doubts(self, predicted: Tensor, batch: Batch) -> Tensor:
        """How improbable it is that each clip's sound is its own: float (B,) in [0, 1], NaN without a teacher.

        Args:
            predicted: (B, C) the student's probabilities, for clips that the run has no belief about.
            batch: `labels`, `labelled`, `has_teacher`, the teacher's logits, and `indices`, -1 for a clip that is not
                among the run's training clips.
        """
        assert batch.indices is not None
        assert batch.teacher is not None
        assert batch.teacher.logits is not None
        several = batch.labels.ndim == 2
        known, visited = self.memory.beliefs(batch.indices.clamp(min=0), self.config.momentum)
        known = torch.where((visited & (batch.indices >= 0))[:, None], known, predicted)
        known = self._known(known, torch.ones_like(visited), batch.labels, batch.labelled)
        teacher = _probabilities(batch.teacher.logits, several)
        fit, _ = agreement(known=known, teacher=teacher, usual=self.memory.usual(several), several_labels=several)
        return (1 - belonging(fit, self.memory.share)).masked_fill(~batch.has_teacher, torch.nan)

    def _known(self, belief: Tensor, visited: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
        """(B, C): the label; without one the sharpened belief; even odds for a clip never seen."""
        C, several = belief.shape[1], labels.ndim == 2
        g = self.config.sharpening
        yes = belief.clamp(min=_TINY).log() * g
        if several:
            sharp = torch.sigmoid(yes - (1 - belief).clamp(min=_TINY).log() * g)
            hot = labels.to(belief.dtype)
        else:
            sharp = yes.softmax(1)
            hot = F.one_hot(labels.where(labelled, 0), C).to(belief.dtype)
        sharp = torch.where(visited[:, None], sharp, 0.5 if several else 1 / C)
        return torch.where(labelled[:, None], hot, sharp)


class ClipMemory(nn.Module):
    """What is remembered from visit to visit, saved and resumed with the method: 4 (C + 2) bytes a training clip.

    Attributes:
        share: of the clips whose sound is their own, estimated on the labelled ones.
    """

    belief: Tensor
    visits: Tensor
    labelled_fit: Tensor
    heard: Tensor
    share: Tensor

    def __init__(self, clips: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("belief", torch.zeros(clips, classes))
        self.register_buffer("visits", torch.zeros(clips))
        self.register_buffer("labelled_fit", torch.full((clips,), torch.nan))
        # Sums over all visits, of the teacher's probabilities and of clips: beyond what float32 adds up.
        self.register_buffer("heard", torch.zeros(classes + 1, dtype=torch.float64))
        self.register_buffer("share", torch.tensor(0.5))

    def beliefs(self, indices: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        """(B, C) running means, as if they had not begun at zero, and bool (B,) whether there is one."""
        visits = self.visits[indices]
        return self.belief[indices] / (1 - momentum**visits).clamp(min=_TINY)[:, None], visits > 0

    def usual(self, several_labels: bool) -> Tensor:
        """(C,) what the teacher says of any clip, in (0, 1): its mean over all visits and one of even odds."""
        even = 0.5 if several_labels else 1 / (len(self.heard) - 1)
        usual = ((self.heard[:-1] + even) / (self.heard[-1] + 1)).to(self.belief.dtype)
        return usual.clamp(max=1 - 1e-6) if several_labels else usual

    @torch.no_grad()
    def update(self, batch: Batch, predicted: Tensor, teacher: Tensor, fit: Tensor, momentum: float) -> None:
        """Remember a batch, and estimate `share` anew."""
        assert batch.indices is not None
        there = batch.has_teacher
        self.heard += torch.cat([teacher[there].double().sum(0), there.sum()[None].double()])
        # A batch over the end of an epoch may hold a clip twice; the first counts, in every process.
        first = ~(batch.indices[:, None] == batch.indices[None, :]).tril(-1).any(1)
        indices = batch.indices[first]
        self.belief[indices] = momentum * self.belief[indices] + (1 - momentum) * predicted[first]
        self.visits[indices] += 1
        told = first & there & batch.labelled
        self.labelled_fit[batch.indices[told]] = fit[told]
        fits = self.labelled_fit[~self.labelled_fit.isnan()]
        for _ in range(_EM_STEPS):  # begins where the last batch ended
            # One clip of each kind more than there are: the estimate exists before any, and never is 0 or 1.
            self.share.copy_((belonging(fits, self.share).sum() + 1) / (len(fits) + 2))


_TINY = 1e-12
_EM_STEPS = 5


def agreement(*, known: Tensor, teacher: Tensor, usual: Tensor, several_labels: bool = False) -> tuple[Tensor, Tensor]:
    """How much better than chance the teacher fits what is known of each clip, and what both say together.

    Args:
        known: (B, C) probabilities of the classes (of each class, with several labels) without the teacher.
        teacher: (B, C) its probabilities.
        usual: (C,) its probabilities for any clip, in (0, 1).
        several_labels: every class is a yes or no of its own.

    Returns:
        `fit` (B,): sum_c known_c teacher_c / usual_c; with several labels the product over the classes of
        known teacher / usual + (1 - known) (1 - teacher) / (1 - usual). 1 is chance.
        `both` (B, C): the classes' probabilities given both sides.
    """
    if not several_labels:
        joint = known * teacher / usual
        fit = joint.sum(1)
        return fit, joint / fit.clamp(min=_TINY)[:, None]
    yes, no = known * teacher / usual, (1 - known) * (1 - teacher) / (1 - usual)
    total = (yes + no).clamp(min=_TINY)
    return total.log().sum(1).clamp(-30, 30).exp(), yes / total


def belonging(fit: Tensor, share: Tensor) -> Tensor:
    """(B,) probability that a clip's sound is its own, from its fit and the share of clips of which that is true."""
    return share * fit / (share * fit + 1 - share)


def certainty(probabilities: Tensor, several_labels: bool) -> Tensor:
    """1 - entropy / largest entropy, in [0, 1]: (B, 1) of each clip; with several labels (B, C) of each class."""
    if several_labels:
        both = torch.stack([probabilities, 1 - probabilities], 2)
        return 1 + (both * both.clamp(min=_TINY).log()).sum(2) / math.log(2)
    entropy = -(probabilities * probabilities.clamp(min=_TINY).log()).sum(1, keepdim=True)
    return 1 - entropy / math.log(max(2, probabilities.shape[1]))


def _probabilities(logits: Tensor, several: bool) -> Tensor:
    return logits.sigmoid() if several else logits.softmax(1)


def _surprise(logits: Tensor, target: Tensor, several: bool) -> Tensor:
    """Cross-entropy with a soft target, (B, 1); with several labels (B, C), already divided by C."""
    if several:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none") / logits.shape[1]
    return -(target * F.log_softmax(logits, dim=1)).sum(1, keepdim=True)
