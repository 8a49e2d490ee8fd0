"""Divergences between predictions, and classification that knows what is labelled."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_label_divergence(
    *, student: Tensor, teacher: Tensor, temperature: float = 4.0, several_labels: bool = False
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over clips (Hinton et al. 2015, section 2).

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; no gradient reaches them.
        temperature: T.
        several_labels: a clip may have several: every class is a yes or no of its own, with sigmoids instead of the
            softmax and the mean over classes, as `classification` has it.

    Returns:
        A scalar; 0 with a graph for an empty batch.
    """
    if len(student) == 0:
        return student.sum()
    if several_labels:
        believed = (teacher.detach() / temperature).sigmoid()
        surprise = F.binary_cross_entropy_with_logits(student / temperature, believed)
        return temperature**2 * (surprise - F.binary_cross_entropy(believed, believed))
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    predicted = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(predicted, target, reduction="batchmean", log_target=True)


def classification(*, logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Mean classification loss over the labelled clips: cross-entropy for one label, binary for several.

    Args:
        logits: (B, C).
        labels: int64 (B,) or multi-hot float (B, C); rows outside `labelled` are not looked at.
        labelled: bool (B,).

    Returns:
        A scalar; 0 with a graph where nothing is labelled.
    """
    chosen, targets = logits[labelled], labels[labelled]
    if len(chosen) == 0:
        return chosen.sum()
    if labels.ndim == 1:
        return F.cross_entropy(chosen, targets)
    return F.binary_cross_entropy_with_logits(chosen, targets.to(chosen.dtype))
