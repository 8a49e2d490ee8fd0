"""Metrics of audio tagging, as AudioSet reports them: mean average precision, area under the ROC curve, d-prime.

Gemmeke et al., "Audio Set", ICASSP 2017. Dimensions: N clips, C classes. A class that all clips have, or none, has no
metrics: it is left out of the means and counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypedDict

from torch import Tensor

from avdistill.evaluation.metrics import SplitMetrics


class TagMetrics(TypedDict):
    """One row of `tagging_table`. None where a value does not exist.

    Keys: `name`; `clips`, how many have this label; `average_precision`, precision at each rank weighted by the recall
    it adds, equal scores being one rank; `auc`, chance that a clip with the label scores above one without, a tie
    counting half; `d_prime` of that, None also where it is infinite (the scores separate the class without error).
    """

    name: str
    clips: int
    average_precision: float | None
    auc: float | None
    d_prime: float | None


@dataclass(frozen=True)
class MultilabelMetrics(SplitMetrics):
    """Metrics of a split whose clips may have several labels; a missing clip ranks last.

    The means are those of `tagging_means`, `per_class` holds the rows of `tagging_table`.
    """

    map: float | None
    auc: float | None
    d_prime: float | None
    classes_counted: int
    classes_left_out: int
    per_class: list[TagMetrics]


def d_prime(auc: float) -> float:
    """sqrt(2) * Phi^-1(auc): distance in standard deviations of two normal distributions that `auc` would follow from.

    0 at chance (0.5), infinite at 0 and 1.
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"auc must lie in [0, 1], not {auc}")
    if auc in (0, 1):
        return math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def tagging_table(*, scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[TagMetrics]:
    """One row of metrics per class, in class order.

    Args:
        scores: (N, C) finite, higher is better; compared within a class only.
        labels: (N, C) multi-hot, of any dtype.

    Raises:
        ValueError: shapes that differ, scores that are not finite, labels other than 0 and 1.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import, of no use to other verbs

    if scores.ndim != 2 or scores.shape != labels.shape or not scores.numel():
        shapes = f"{tuple(scores.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"scores and labels must both be (clips, classes), not empty; got {shapes}")
    if scores.shape[1] != len(class_names):
        raise ValueError(f"{scores.shape[1]} classes but {len(class_names)} class names")
    if not scores.isfinite().all():
        raise ValueError("scores hold NaN or infinity")
    if ((labels != 0) & (labels != 1)).any():
        raise ValueError("labels must be 0 or 1")
    rows = []
    for c, name in enumerate(class_names):
        values, truth = scores[:, c].detach().double().cpu().numpy(), labels[:, c].bool().cpu().numpy()
        row = TagMetrics(name=name, clips=int(truth.sum()), average_precision=None, auc=None, d_prime=None)
        if 0 < row["clips"] < len(truth):
            auc = float(roc_auc_score(truth, values))
            row["average_precision"] = float(average_precision_score(truth, values))
            row["auc"], row["d_prime"] = auc, _finite(d_prime(auc))
        rows.append(row)
    return rows


def tagging_means(table: Sequence[TagMetrics]) -> dict[str, Any]:
    """Means over the classes of a `tagging_table` that have metrics, each class weighing the same.

    Returns:
        `map`, mean of the average precisions; `auc`, mean of the areas; `d_prime` of that mean, as in the AudioSet
        literature (a mean of the classes' own would be infinite as soon as one is); `classes_counted`,
        `classes_left_out`. A value that does not exist is None.
    """
    precisions = [row["average_precision"] for row in table if row["average_precision"] is not None]
    areas = [row["auc"] for row in table if row["auc"] is not None]
    auc = math.fsum(areas) / len(areas) if areas else None
    return {
        "map": math.fsum(precisions) / len(precisions) if precisions else None,
        "auc": auc,
        "d_prime": None if auc is None else _finite(d_prime(auc)),
        "classes_counted": len(areas),
        "classes_left_out": len(table) - len(areas),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
