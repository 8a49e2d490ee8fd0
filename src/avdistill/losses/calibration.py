"""Losses of the paper (Xia et al. 2023): contrastive semantic calibration, the filter's triplet and sparsity."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Temperature = Literal["pairwise", "sample", "fixed"]

# A temperature at or below zero inverts the contrast or divides by zero. Cosines of features that may be negative
# (ViT, CLAP) get there; under the non-negative features of the paper no temperature comes near the floor.
TEMPERATURE_FLOOR = 0.01


def contrastive_semantic_calibration(
    *,
    student: Tensor,
    guided: Tensor,
    filtered_teacher: Tensor,
    labels: Tensor,
    labeled: Tensor | None = None,
    temperature: Temperature = "pairwise",
    threshold: float = 0.07,
    log_epsilon: float = 0.0,
) -> Tensor:
    """Contrast between student embeddings and guided embeddings, with a temperature for each pair.

    S_ij = cos(student_i, guided_j), P = softmax_j(S_ij / T_ij); the loss is the mean over i of the mean over the
    positives j of -log P_ij. Positives of i share its label (i included). A clip without a label has itself as its only
    positive and is no column for another row: it might be of that row's class.

    Args:
        student: (B, D) student embeddings v.
        guided: (B, D) guided embeddings s.
        filtered_teacher: (B, D) purified teacher a'. It enters the temperature only, without gradient.
        labels: int64 (B,), or multi-hot float (B, C): a positive then counts by its overlap with i's labels,
            |y_i and y_j| / |y_i or y_j|.
        labeled: bool (B,); None means all.
        temperature: "pairwise" T_ij = cos(v_i, a'_j) + threshold (released); "sample" T_i = 1 - cos(v_i, a'_i)
            (unused code of the release; the better the match, the sharper); "fixed" T = threshold.
            All are kept at `TEMPERATURE_FLOOR` or above, which the release does not do.
        threshold: added to the pairwise temperature, or the fixed temperature itself.
        log_epsilon: 1e-10 gives the release's log(P + 1e-10); 0, the default, is the stable log-softmax.

    Returns:
        A scalar; 0 with a graph for an empty batch.

    Raises:
        ValueError: an unknown temperature.
    """
    B = len(student)
    if B == 0:
        return student.sum() + guided.sum()
    v, s = F.normalize(student, dim=1), F.normalize(guided, dim=1)
    T = temperatures(v.detach(), F.normalize(filtered_teacher.detach(), dim=1), temperature, threshold)
    scores = (v @ s.T) / T  # (B, B)

    itself = torch.eye(B, dtype=torch.bool, device=scores.device)
    weights = same_label(labels).to(scores.dtype)
    if labeled is not None:
        weights = weights * (labeled[:, None] & labeled[None, :])
        scores = scores.masked_fill(~(labeled[None, :] | itself), -torch.inf)
    weights = weights.masked_fill(itself, 1.0)

    log_p = F.log_softmax(scores, dim=1)
    if log_epsilon:
        log_p = torch.log(log_p.exp() + log_epsilon)
    log_p = log_p.masked_fill(weights == 0, 0.0)  # -inf * 0 is not a number
    return -((weights * log_p).sum(1) / weights.sum(1)).mean()


def soft_contrastive_semantic_calibration(
    *,
    student: Tensor,
    guided: Tensor,
    filtered_teacher: Tensor,
    same: Tensor,
    match_probability: Tensor,
    temperature: Temperature = "pairwise",
    threshold: float = 0.07,
) -> Tensor:
    """`contrastive_semantic_calibration` with soft positives: classes and correspondence have probabilities. Ours.

    Clip j is a positive of i by A_ij, the probability that both have the same class (A_ii counts as 1), and a column by
    w_j, the probability that its audio matches: P_ij = w_j exp(S_ij / T_ij) / sum_k w_k exp(S_ik / T_ik). The loss is
    the mean over i of A_ii times the mean of -log P_ij over j, weighted by A_ij w_j: an anchor counts by the certainty
    of its class. With certain classes and w = 1 it is the published loss.

    Args:
        student, guided, filtered_teacher, temperature, threshold: as there.
        same: (B, B) A, in [0, 1]; A_ii is the probability that two draws of i's class agree.
        match_probability: (B,) w, in [0, 1].

    Returns:
        A scalar; 0 with a graph for an empty batch.
    """
    B = len(student)
    if B == 0:
        return student.sum() + guided.sum()
    v, s = F.normalize(student, dim=1), F.normalize(guided, dim=1)
    T = temperatures(v.detach(), F.normalize(filtered_teacher.detach(), dim=1), temperature, threshold)
    w = match_probability.clamp(min=1e-6)  # a row of the batch without any matching audio has no mean
    log_p = F.log_softmax((v @ s.T) / T + w.log(), dim=1)
    weights = same.masked_fill(torch.eye(B, dtype=torch.bool, device=v.device), 1.0) * w
    return -(same.diagonal() * (weights * log_p).sum(1) / weights.sum(1)).mean()


def temperatures(v: Tensor, a: Tensor, temperature: Temperature, threshold: float) -> Tensor:
    """(B, B) or (B, 1) temperatures of the contrast, at `TEMPERATURE_FLOOR` or above.

    `v`, `a`: (B, D) student and purified teacher, of length 1; the rest as in `contrastive_semantic_calibration`.
    """
    if temperature == "pairwise":
        T = v @ a.T + threshold
    elif temperature == "sample":
        T = 1 - (v * a).sum(1, keepdim=True)
    elif temperature == "fixed":
        T = torch.full_like(v[:, :1], threshold)
    else:
        raise ValueError(f"temperature must be 'pairwise', 'sample' or 'fixed', got {temperature!r}")
    return T.clamp(min=TEMPERATURE_FLOOR)


def same_label(labels: Tensor) -> Tensor:
    """(B, B) weights in [0, 1]: 1 where two clips have the same label, the overlap where they have several."""
    if labels.ndim == 1:
        return labels[:, None] == labels[None, :]
    both = labels @ labels.T
    either = labels.sum(1)[:, None] + labels.sum(1)[None, :] - both
    return both / either.clamp(min=1)


def filter_triplet(*, student: Tensor, teacher: Tensor, filtered_teacher: Tensor, margin: float = 0.2) -> Tensor:
    """The purified teacher lies nearer to the student than the teacher did, by a margin.

    mean_i max(0, cos(v_i, a_i) - cos(v_i, a'_i) + margin); 0 with a graph for an empty batch.

    Args:
        student: (B, D) student embeddings v.
        teacher: (B, D) the teacher's embedding a, in the student's width.
        filtered_teacher: (B, D) purified teacher a'.
        margin: of the cosines.
    """
    if len(student) == 0:
        return student.sum() + filtered_teacher.sum()
    before = F.cosine_similarity(student, teacher, dim=1)
    after = F.cosine_similarity(student, filtered_teacher, dim=1)
    return F.relu(before - after + margin).mean()


def gate_sparsity(noise_filter: nn.Module, layers: Literal["both", "last"] = "both", weight: float = 0.001) -> Tensor:
    """L1 penalty on the gate's two linear layers: weight * mean over rows of the row's sum of |W|.

    Args:
        noise_filter: a `NoiseFilter`.
        layers: "both"; "last" is the release, which overwrites the first layer's term with the second's.
        weight: 0.001 in the release.

    Raises:
        ValueError: another choice of layers.
    """
    if layers not in ("both", "last"):
        raise ValueError(f"layers must be 'both' or 'last', got {layers!r}")
    gate = noise_filter.gate
    assert isinstance(gate, nn.Sequential)
    linear = [layer for layer in gate if isinstance(layer, nn.Linear)]
    chosen = linear if layers == "both" else linear[-1:]
    return weight * torch.stack([layer.weight.abs().sum(1).mean() for layer in chosen]).sum()
