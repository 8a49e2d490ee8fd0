"""Divergences between predictions, and classification of the labeled clips."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.losses.empty import zero_if_empty


@zero_if_empty("student")
def kd_loss(*, student: Tensor, teacher: Tensor, temperature: float = 4.0, multi_label: bool = False) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over clips (Hinton et al. 2015, section 2).

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; no gradient reaches them.
        temperature: T.
        multi_label: every class is a binary decision: sigmoids instead of the softmax, and the mean over classes, as in
            `masked_cross_entropy`.
    """
    if multi_label:
        scaled = teacher.detach() / temperature
        nll, entropy = (
            F.binary_cross_entropy_with_logits(logits, scaled.sigmoid()) for logits in (student / temperature, scaled)
        )
        return temperature**2 * (nll - entropy)
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    predicted = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(predicted, target, reduction="batchmean", log_target=True)


def masked_cross_entropy(*, logits: Tensor, labels: Tensor, labeled: Tensor) -> Tensor:
    """Mean classification loss over the labeled clips: cross-entropy for one label, binary for several.

    Args:
        logits: (B, C).
        labels: int64 (B,) or multi-hot float (B, C); rows outside `labeled` are ignored.
        labeled: bool (B,).

    Returns:
        A scalar; 0 with a graph where nothing is labeled.
    """
    chosen, targets = logits[labeled], labels[labeled]
    if len(chosen) == 0:
        return chosen.sum()
    if labels.ndim == 1:
        return F.cross_entropy(chosen, targets)
    return F.binary_cross_entropy_with_logits(chosen, targets.to(chosen.dtype))


@zero_if_empty("student")
def dkd_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Target-class and non-target-class distillation with separate weights (Zhao et al. 2022: DKD).

    T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)), mean over clips: b = (p, 1 - p) of the target class at T, q the
    softmax over the other classes. With alpha = 1 and, clip by clip, beta = 1 - the teacher's p it is
    `kd_loss`.

    Args:
        student: (B, C) logits, C >= 2.
        teacher: (B, C) logits; no gradient reaches them.
        targets: int64 (B,), the target class.
        alpha: weight of the target class.
        beta: weight of the others.
        temperature: T.
    """
    student, teacher = _precise(student), _precise(teacher.detach())
    binary = F.kl_div(
        _target_or_not(student / temperature, targets),
        _target_or_not(teacher / temperature, targets),
        reduction="batchmean",
        log_target=True,
    )
    others = non_target_divergence(student=student, teacher=teacher, targets=targets, temperature=temperature)
    return temperature**2 * alpha * binary + beta * others


def _precise(logits: Tensor) -> Tensor:
    """At least float32: differences of logarithms and small deviations from a mean do not survive bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _target_or_not(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, 2) log-probabilities of the target class and of all others together, exact where 1 - p would round to 0."""
    target = logits.gather(1, targets[:, None])
    others = _others(logits, targets).logsumexp(1, keepdim=True)
    return torch.cat([target, others], 1) - logits.logsumexp(1, keepdim=True)


def _others(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, C - 1) logits without the target class. Removed, not masked: no large number suits all logits."""
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    return logits[~is_target].view(len(logits), -1)


def non_target_divergence(
    *,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    keep: Tensor | None = None,
    temperature: float = 1.0,
    target_logit: Literal["removed", "zero"] = "removed",
) -> Tensor:
    """T^2 KL(q_t || q_s) over the classes other than the target, mean over clips (Zhao et al. 2022: NCKD).

    Args:
        student: (B, C) logits, C >= 2.
        teacher: (B, C) logits; no gradient reaches them.
        targets: int64 (B,), the class that is left out.
        keep: bool (B,); a clip that is not kept counts as 0 in the mean. None means all.
        temperature: T.
        target_logit: "removed": q is the softmax over the C - 1 other classes; "zero": over all C with the target's
            logit set to 0 on both sides, as C2KD's released code has it.

    Returns:
        A scalar; 0 with a graph for an empty batch.

    Raises:
        ValueError: another choice of `target_logit`.
    """
    if target_logit not in ("removed", "zero"):
        raise ValueError(f"target_logit must be 'removed' or 'zero', got {target_logit!r}")
    if len(student) == 0:
        return student.sum()
    student, teacher = _precise(student), _precise(teacher.detach())
    if target_logit == "removed":
        student, teacher = _others(student, targets), _others(teacher, targets)
    else:
        is_target = F.one_hot(targets, student.shape[1]).bool()
        student, teacher = student.masked_fill(is_target, 0.0), teacher.masked_fill(is_target, 0.0)
    target = F.log_softmax(teacher / temperature, dim=1)
    predicted = F.log_softmax(student / temperature, dim=1)
    divergence = F.kl_div(predicted, target, reduction="none", log_target=True).sum(1)
    if keep is not None:
        divergence = divergence * keep
    return temperature**2 * divergence.mean()


def kendall_tau(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Kendall's tau-b between the two orders of the classes, clip by clip (Kendall 1945; C2KD's selection).

    tau = sum over pairs of sign(x_i - x_j) sign(y_i - y_j) over sqrt(pairs untied in x * pairs untied in y): the plain
    tau where nothing is tied, and of the same sign where something is. 0 where all of a row is tied.

    Args:
        student: (B, C) scores.
        teacher: (B, C) scores.

    Returns:
        (B,) in [-1, 1], without gradient. Takes memory for B * C * C numbers.
    """
    x, y = _precise(student.detach()), _precise(teacher.detach())
    x_order = (x[:, :, None] - x[:, None, :]).sign()
    y_order = (y[:, :, None] - y[:, None, :]).sign()
    untied = x_order.abs().sum((1, 2)) * y_order.abs().sum((1, 2))
    return (x_order * y_order).sum((1, 2)) / untied.sqrt().clamp(min=1)


# DIST's released code adds it to the product of the norms.
CORRELATION_EPSILON = 1e-8


@zero_if_empty("student")
def dist_inter_loss(*, student: Tensor, teacher: Tensor, temperature: float = 1.0, multi_label: bool = False) -> Tensor:
    """T^2 (1 - Pearson correlation over the classes of a clip), mean over clips (Huang et al. 2022: DIST, inter-class).

    The correlation of the two probabilities has 1e-8 in its denominator, as released.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; no gradient reaches them.
        temperature: T of the softmax.
        multi_label: sigmoids instead of the softmax.

    Returns:
        A scalar; 0 with a graph for an empty batch. A row without variance has correlation 0 and no gradient.
    """
    q_s = _probabilities(_precise(student) / temperature, multi_label)
    q_t = _probabilities(_precise(teacher.detach()) / temperature, multi_label)
    return temperature**2 * (1 - _row_correlation(q_s, q_t)).mean()


@zero_if_empty("student")
def dist_intra_loss(*, student: Tensor, teacher: Tensor, temperature: float = 1.0, multi_label: bool = False) -> Tensor:
    """T^2 (1 - Pearson correlation over the clips of a class), mean over classes (Huang et al.: DIST, intra-class).

    Arguments, result and errors as for `dist_inter_loss`; a single clip has no variance and gives T^2.
    """
    q_s = _probabilities(_precise(student) / temperature, multi_label)
    q_t = _probabilities(_precise(teacher.detach()) / temperature, multi_label)
    return temperature**2 * (1 - _row_correlation(q_s.T, q_t.T)).mean()


def _probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    return logits.sigmoid() if multi_label else logits.softmax(1)


def _row_correlation(x: Tensor, y: Tensor) -> Tensor:
    """(N,) Pearson correlation of the rows of two (N, M); 0 where one of them varies by no more than rounding."""
    (x, x_spread), (y, y_spread) = _centered(x), _centered(y)
    varies = (x_spread > 0) & (y_spread > 0)
    norms = torch.where(varies, x_spread, 1).sqrt() * torch.where(varies, y_spread, 1).sqrt()
    return torch.where(varies, (x * y).sum(1) / (norms + CORRELATION_EPSILON), 0.0)


def _centered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without their mean, and their sum of squares; exactly 0 where that is the rounding of the mean."""
    centered = x - x.mean(1, keepdim=True)
    spread = centered.square().sum(1)
    rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(1)
    return centered, torch.where(spread > rounding, spread, 0.0)
