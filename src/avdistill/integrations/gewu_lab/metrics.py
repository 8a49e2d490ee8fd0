"""The metrics of the released implementation, which count differently from ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avdistill.evaluation.metrics import _check_class_names, _check_probabilities
from avdistill.evaluation.retrieval_metrics import _check_retrieval_labels, _precision_at_hits, _relevant_ranks


def release_top_k(
    *, probabilities: Tensor, names: Sequence[str], class_names: Sequence[str], k: int = 5
) -> dict[str, dict[str, list[dict[str, object]]]]:
    """The released implementation's prediction file, ready for `json.dump`.

    `{"results": {name: [{"label": class name, "score": probability}, ...]}}`, best first, min(k, C) entries: the layout
    of the 3D-ResNets family. Equal scores stay in class order.

    Args:
        probabilities: (N, C), averaged over each video's windows.
        names: N distinct video names.
        class_names: C names.
        k: entries per video, at least 1.
    """
    _check_probabilities(probabilities)
    _check_class_names(class_names, classes=probabilities.shape[1])
    if len(names) != len(probabilities):
        raise ValueError(f"{len(probabilities)} rows of probabilities but {len(names)} names")
    if len(set(names)) != len(names):
        raise ValueError("two videos have the same name: one would overwrite the other")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    best, order = probabilities.sort(dim=1, descending=True, stable=True)
    return {
        "results": {
            name: [{"label": class_names[c], "score": score} for c, score in zip(indices, row, strict=True)]
            for name, indices, row in zip(names, order[:, :k].tolist(), best[:, :k].tolist(), strict=True)
        }
    }


def release_retrieval_metrics(
    *,
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    top: int = 500,
    block: int = 1024,
) -> dict[str, float]:
    """The released implementation's mean average precision, for comparison with its tables only.

    It averages precision over the hits found among the first `top`, not over the relevant items, and leaves out queries
    with no hit: what a ranking misses costs it nothing. On UCF51's audio it says 27.4 where `map` is 21.6.
    Arguments as in `retrieval_metrics`; `top`, the ranks looked at, is at least 1.

    Returns:
        `release.map@<top>`, NaN if no query has a hit, and the count `release.queries_without_hit`.
    """
    _check_retrieval_labels(queries, gallery, query_labels, gallery_labels)
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    precisions: list[Tensor] = []
    for _, ranks in _relevant_ranks(queries, gallery, query_labels, gallery_labels, block):
        near = ranks <= min(top, len(gallery))
        found = near.sum(dim=1)
        precisions.append(((_precision_at_hits(ranks, len(gallery)) * near).sum(dim=1) / found)[found > 0])
    answered = torch.cat(precisions)
    return {
        f"release.map@{top}": float(answered.mean()),
        "release.queries_without_hit": len(queries) - len(answered),
    }
