"""Retrieval metrics: hit@k and mAP over all relevant gallery items."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avdistill.evaluation.metrics import _check_labels
from avdistill.search.knn import relevant_ranks


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics of queries against a gallery; an item is relevant if it has a label of the query.

    Attributes:
        hit: for each cut-off k the fraction of all queries with a relevant item among the first k.
        map: average precision over *all* relevant gallery items, averaged over the queries that have one; None where
            no query has one.
        map_at_r: likewise, but only over the first R ranks, R being the query's number of relevant items (Musgrave et
            al., "A Metric Learning Reality Check", ECCV 2020).
        queries, gallery: counts.
        queries_without_relevant: queries without a relevant gallery item.
        queries_missing, gallery_missing: clips without an embedding; such a query finds nothing.
    """

    hit: Mapping[int, float]
    map: float | None
    map_at_r: float | None
    queries: int
    gallery: int
    queries_without_relevant: int
    queries_missing: int = 0
    gallery_missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the usual names: `hit@1` and so on, `map`, `map@R`, and the counts."""
        named = {f"hit@{k}": share for k, share in self.hit.items()} | {"map": self.map, "map@R": self.map_at_r}
        return named | {name: n for name, n in vars(self).items() if name not in ("hit", "map", "map_at_r")}


def retrieval_metrics(
    *,
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20),
    block: int = 1024,
) -> RetrievalMetrics:
    """Metrics of retrieval by cosine similarity.

    Dimensions: Q queries, G gallery items, D channels, C classes.

    Args:
        queries: (Q, D) finite, of any norm, one per clip; not themselves in the gallery.
        gallery: (G, D) likewise.
        query_labels: int64 (Q,) class indices, or multi-hot (Q, C) of any dtype.
        gallery_labels: (G,) or (G, C), likewise.
        ks: cut-offs of hit@k, each at least 1; more than G counts as G.
        block: queries ranked at once; memory is some 12 bytes x block x G.

    Raises:
        ValueError: shapes that do not fit, nothing in them, NaN or infinite values.
    """
    _check_retrieval_labels(queries, gallery, query_labels, gallery_labels)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must name cut-offs of at least 1, not {tuple(ks)}")
    hits = dict.fromkeys(ks, 0)
    precisions: list[Tensor] = []
    precisions_at_r: list[Tensor] = []
    for total, ranks in _relevant_ranks(queries, gallery, query_labels, gallery_labels, block):
        some = total > 0
        precision = _precision_at_hits(ranks, len(gallery))
        precisions.append((precision.sum(dim=1) / total)[some])
        precisions_at_r.append(((precision * (ranks <= total[:, None])).sum(dim=1) / total)[some])
        for k in hits:
            hits[k] += int((ranks[:, :1] <= min(k, len(gallery))).sum())
    answered = torch.cat(precisions)
    return RetrievalMetrics(
        hit={k: count / len(queries) for k, count in hits.items()},
        map=float(answered.mean()) if len(answered) else None,
        map_at_r=float(torch.cat(precisions_at_r).mean()) if len(answered) else None,
        queries=len(queries),
        gallery=len(gallery),
        queries_without_relevant=len(queries) - len(answered),
    )


def _relevant_ranks(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, block: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`relevant_ranks` where an item is relevant if it has a label of the query: class indices or multi-hot rows."""

    def share_a_label(part: slice) -> Tensor:
        if query_labels.ndim == 1:
            return query_labels[part, None] == gallery_labels
        return query_labels[part].float() @ gallery_labels.float().T > 0

    return relevant_ranks(queries, gallery, share_a_label, block=block)


def _precision_at_hits(ranks: Tensor, gallery: int) -> Tensor:
    """float64 (b, R) precision at the ranks of the relevant items, ascending; 0 at those past the gallery's end."""
    nth = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)
    return (nth / ranks) * (ranks <= gallery)


def _check_retrieval_labels(queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> None:
    if query_labels.ndim == 2 or gallery_labels.ndim == 2:
        expected = ((len(queries), query_labels.shape[-1]), (len(gallery), query_labels.shape[-1]))
        if (query_labels.shape, gallery_labels.shape) != expected:
            found = f"{tuple(query_labels.shape)} and {tuple(gallery_labels.shape)}"
            raise ValueError(f"query_labels and gallery_labels must be {expected[0]} and {expected[1]}, not {found}")
        return
    _check_labels("query_labels", query_labels, count=len(queries))
    _check_labels("gallery_labels", gallery_labels, count=len(gallery))
