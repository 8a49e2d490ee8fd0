"""Classification metrics from scores and labels: pure functions, tensors in, numbers out.

Dimensions: N clips, C classes. Arguments that all functions share:

    scores: (N, C) logits or probabilities, higher is better. Infinite values are allowed (a masked class), NaN is not.
    probabilities: (N, C), each row in [0, 1] with sum 1 (within 0.01, for half precision). Logits are refused.
    labels: int64 (N,) class indices.
    class_names: C names.

Metrics are fractions, never percentages. Empty input, lengths that differ, NaN and a label outside the classes raise a
ValueError.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from avdistill.search.knn import check_table


class ClassMetrics(TypedDict):
    """One row of `per_class_table`. None where a value does not exist.

    Keys: `name`; `clips`, how many have this label; `recall`, the top-1 accuracy of those clips (None without clips);
    `precision`, of the clips given this class (None if it was never given); `most_confused_with`, the wrong class most
    often given to its clips (None without errors).
    """

    name: str
    clips: int
    recall: float | None
    precision: float | None
    most_confused_with: str | None


@dataclass(frozen=True)
class SplitMetrics:
    """Counts of a split: its labeled `clips`, those that lack the student's modality, and those without a label."""

    split: str
    clips: int
    missing: int
    unlabeled_left_out: int

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class ClassificationMetrics(SplitMetrics):
    """Metrics of a split whose clips have one label each; missing clips count as misses.

    Attributes:
        top1_accuracy, top5_accuracy: over all labeled clips.
        mean_class_accuracy: top-1 accuracy of each class, averaged over the classes.
        top1_accuracy_interval: 95%, by a bootstrap over source videos (`statistics.interval`).
        expected_calibration_error: of the clips that are not missing.
        per_class: rows of `per_class_table`, of the clips that are not missing.
    """

    top1_accuracy: float
    top5_accuracy: float
    mean_class_accuracy: float
    top1_accuracy_interval: tuple[float, float]
    expected_calibration_error: float
    per_class: list[ClassMetrics]


def top_k_accuracy(*, scores: Tensor, labels: Tensor, k: int) -> float:
    """Fraction of clips whose label is among the k best-scored classes.

    Equal scores rank in class order, as in `argmax`, so k = 1 agrees with `confusion_matrix`. With k >= C it is 1.
    `scores` (N, C), `labels` (N,), `k` at least 1.
    """
    ranks = label_ranks(scores=scores, labels=labels)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return float((ranks < k).double().mean())


def label_ranks(*, scores: Tensor, labels: Tensor) -> Tensor:
    """int64 (N,): classes ahead of the label, of `scores` (N, C) and `labels` (N,); equal scores in class order."""
    _check_scores(scores, labels)
    own = scores.gather(1, labels[:, None])  # (N, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=1)


def mean_class_accuracy(*, scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of each class that has clips, averaged over those classes; `scores` (N, C), `labels` (N,)."""
    matrix = confusion_matrix(scores=scores, labels=labels)
    clips = matrix.sum(dim=1)
    return float((matrix.diagonal()[clips > 0] / clips[clips > 0].double()).mean())


def confusion_matrix(*, scores: Tensor, labels: Tensor) -> Tensor:
    """int64 (C, C) counts, `[true, predicted]`, of `scores` (N, C) and `labels` (N,); the first best class counts."""
    _check_scores(scores, labels)
    return confusion_counts(scores.argmax(dim=1), labels, scores.shape[1])


def confusion_counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`confusion_matrix` of the classes that were given, int64 (N,)."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class_table(*, scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[ClassMetrics]:
    """A row per class, in class order; of equal confusions the first is named. `scores` (N, C), `labels` (N,)."""
    return per_class_rows(confusion_matrix(scores=scores, labels=labels), class_names)


def per_class_rows(matrix: Tensor, class_names: Sequence[str]) -> list[ClassMetrics]:
    """`per_class_table` of a confusion matrix (C, C)."""
    _check_class_names(class_names, classes=matrix.shape[0])
    rows: list[ClassMetrics] = []
    for index, name in enumerate(class_names):
        clips, given, right = (int(n) for n in (matrix[index].sum(), matrix[:, index].sum(), matrix[index, index]))
        errors = matrix[index].clone()
        errors[index] = 0
        rows.append(
            ClassMetrics(
                name=name,
                clips=clips,
                recall=right / clips if clips else None,
                precision=right / given if given else None,
                most_confused_with=class_names[int(errors.argmax())] if errors.any() else None,
            )
        )
    return rows


def expected_calibration_error(*, probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Gap between confidence and accuracy, averaged over equal bins of confidence (Guo et al., ICML 2017, eq. 3).

    Bins are ((m - 1) / bins, m / bins]; each weighs as many clips as fall into it.
    `probabilities` (N, C), `labels` (N,), `bins` at least 1.
    """
    _check_probabilities(probabilities)
    _check_scores(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence, predicted = probabilities.max(dim=1)
    return calibration_gap(confidence, predicted == labels, bins=bins)


def calibration_gap(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """`expected_calibration_error` of the best probability, (N,), and whether its class is right, bool (N,)."""
    confidence = confidence.double()
    gap = correct.double() - confidence  # (N,)
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=gap.device) / bins
    which = torch.bucketize(confidence, inner_edges)
    per_bin = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, which, gap)
    return float(per_bin.abs().sum() / len(gap))


def _check_labels(name: str, labels: Tensor, *, count: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"{name} must be int64 ({count},), not {labels.dtype} {tuple(labels.shape)}")


def _check_scores(scores: Tensor, labels: Tensor) -> None:
    check_table("scores", scores)
    _check_labels("labels", labels, count=len(scores))
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes")


def _check_probabilities(probabilities: Tensor) -> None:
    check_table("probabilities", probabilities)
    if probabilities.min() < 0 or ((probabilities.sum(dim=1, dtype=torch.float64) - 1).abs() > 0.01).any():
        raise ValueError("probabilities must be at least 0 and sum to 1 in each row; are these logits?")


def _check_class_names(class_names: Sequence[str], *, classes: int) -> None:
    if len(class_names) != classes:
        raise ValueError(f"{classes} classes but {len(class_names)} class names")
