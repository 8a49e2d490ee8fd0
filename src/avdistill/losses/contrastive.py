"""Contrasts of clips: between two views against a memory, within a batch and by class, and of one view by class.

Gradients reach both views: the second one may be a head that a method trains on the teacher.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.losses.calibration import same_label
from avdistill.losses.empty import zero_if_empty


@zero_if_empty("positive", "negative")
def noise_contrastive_estimation(
    *, positive: Tensor, negative: Tensor, used: Tensor, normalizer: Tensor, clips: int
) -> Tensor:
    """Distinguish the pair of a clip from m pairs drawn from a noise distribution 1/N (Tian et al. 2020, CRD).

    P(s) = exp(s) / Z and h(s) = P(s) / (P(s) + m / N); the loss is the mean over anchors of
    -log h(positive) - sum over the negatives of log(1 - h(negative)). m is the number of the anchor's negatives; an
    anchor without any contributes 0.

    Args:
        positive: (B,) scores cos / temperature of the anchors with the same clip.
        negative: (B, K) scores with other clips.
        used: bool (B, K), which of them count.
        normalizer: Z, a scalar without gradient.
        clips: N.
    """
    m = used.sum(1)
    # The logit of h is the score less this. As a logit nothing overflows, whatever Z was estimated.
    offset = normalizer.log() + (m.clamp(min=1).to(positive.dtype) / clips).log()
    positive_nll = -F.logsigmoid(positive - offset).masked_fill(m == 0, 0.0)
    negative_nll = -F.logsigmoid(offset[:, None] - negative).masked_fill(~used, 0.0)
    return (positive_nll + negative_nll.sum(1)).mean()


@zero_if_empty("student", "teacher")
def symmetric_info_nce(*, student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """Retrieve the teacher's row of the batch by the student's, and the reverse (Tian et al. 2020, CMC, section 3.2).

    S_ij = cos(student_i, teacher_j) / temperature; the loss is the sum of both directions,
    mean_i -log softmax_j(S_ij)[i] + mean_i -log softmax_j(S_ji)[i].

    Args:
        student: (B, D).
        teacher: (B, D).
        temperature: tau.
    """
    scores = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / temperature
    positives = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, positives) + F.cross_entropy(scores.T, positives)


@zero_if_empty("embedding")
def supervised_contrast(*, embedding: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Clips of one class lie nearer to each other than to the others (Khosla et al. 2020, equation 2, L_out).

    p_ij = softmax_j(cos(z_i, z_j) / temperature) over the j other than i; the loss is the mean over i of the mean over
    the other clips j with i's label of -log p_ij. A clip that is the only one of its class is no anchor.

    Args:
        embedding: (B, D), one view of each clip.
        labels: int64 (B,), or multi-hot float (B, C): a positive then counts by its overlap with i's labels.
        temperature: tau.
    """
    z = F.normalize(embedding, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = same_label(labels).to(z.dtype).masked_fill(itself, 0.0)
    # The lowest number, not -inf: a batch of one clip would have infinities whose gradients are NaN.
    log_p = F.log_softmax((z @ z.T / temperature).masked_fill(itself, torch.finfo(z.dtype).min), dim=1)
    count = positives.sum(1)
    anchors = count > 0
    attraction = (positives * log_p.masked_fill(positives == 0, 0.0)).sum(1) / count.where(anchors, 1.0)
    return -attraction.sum() / anchors.sum().clamp(min=1)


@zero_if_empty("first", "second")
def ccl_nce(*, first: Tensor, second: Tensor, labels: Tensor, labeled: Tensor, temperature: float = 0.5) -> Tensor:
    """NCE(first, second) + NCE(second, first) of compositional contrastive learning (Chen et al. 2021).

    p_ij = softmax_j(cos(x_i, y_j) / temperature). NCE(x, y) is the mean over i of: the mean over the j with i's label
    (i included) of -log p_ij, plus the mean over the j with another label of -log(1 - p_ij); no such j, no such term.

    A clip without a label has itself as its only positive, no known negatives (other clips are in its softmax only),
    and is no column for another row: it might be of that row's class.

    Args:
        first: (B, D).
        second: (B, D).
        labels: int64 (B,), or multi-hot float (B, C): a positive then counts by its overlap with i's labels,
            |y_i and y_j| / |y_i or y_j|, and a clip that shares none is a negative.
        labeled: bool (B,).
        temperature: tau.
    """
    cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    known = labeled[:, None] & labeled[None, :]
    positives = (same_label(labels).to(cosines.dtype) * known).masked_fill(itself, 1.0)
    negatives = (known & (positives == 0)).to(cosines.dtype)
    columns = labeled[None, :] | itself
    return sum(  # type: ignore[return-value]
        _ccl_nce(scores=scores / temperature, positives=positives, negatives=negatives, columns=columns)
        for scores in (cosines, cosines.T)
    )


def _ccl_nce(*, scores: Tensor, positives: Tensor, negatives: Tensor, columns: Tensor) -> Tensor:
    # The lowest number, not -inf: a row with one column would have infinities whose gradients are NaN.
    scores = scores.masked_fill(~columns, torch.finfo(scores.dtype).min)
    log_p = F.log_softmax(scores, dim=1)
    attraction = (positives * log_p.masked_fill(positives == 0, 0.0)).sum(1) / positives.sum(1)

    # log(1 - p) of a row's largest p comes from the sum of the others, else p = 1 in float32 would give log 0;
    # every other p is at most a half.
    largest = torch.zeros_like(columns).scatter(1, scores.argmax(1, keepdim=True), True)
    others = scores.masked_fill(largest, torch.finfo(scores.dtype).min).logsumexp(1, keepdim=True)
    log_not_p = torch.where(
        largest, others - scores.logsumexp(1, keepdim=True), torch.log1p(-log_p.exp().masked_fill(largest, 0.0))
    )
    repulsion = (negatives * log_not_p.masked_fill(negatives == 0, 0.0)).sum(1) / negatives.sum(1).clamp(min=1)
    return -(attraction + repulsion).mean()


@zero_if_empty("first", "second")
def two_way_divergence(*, first: Tensor, second: Tensor, multi_label: bool = False) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 between two predictions, mean over clips; gradients reach both (Chen et al. 2021).

    Args:
        first: (B, C) logits of p.
        second: (B, C) logits of q.
        multi_label: every class is a binary decision: sigmoids instead of the softmax, and the mean over classes, as in
            `masked_cross_entropy`.
    """
    if multi_label:
        return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).mean()
    log_p, log_q = F.log_softmax(first, dim=1), F.log_softmax(second, dim=1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean()
