"""A trained student in, retrieval metrics out: one mean embedding per clip, cosine, queries against a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import encode_labels, labeled_clips
from avdistill.distributed import init_distributed
from avdistill.errors import ConfigError
from avdistill.evaluation.retrieval_metrics import retrieval_metrics
from avdistill.inference.compatibility import check_rates
from avdistill.inference.runner import run_network
from avdistill.models.checkpoint import load_student
from avdistill.progress import OnProgress
from avdistill.search.knn import top_k_neighbors


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics, and the nearest gallery clips of each query.

    Attributes:
        metrics: JSON-ready: `hit@k`, `map`, `map@R`, counts. None where undefined.
        neighbors: a row per query: id, and the ids and cosines of its nearest gallery clips.
    """

    metrics: dict[str, Any]
    neighbors: list[dict[str, object]]


def retrieve(
    run: Path,
    dataset: ClipDataset,
    *,
    queries: str = "test",
    gallery: str = "train",
    ks: tuple[int, ...] = (1, 5, 10, 20),
    batch_size: int = 32,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> RetrievalResult:
    """Look up each labeled clip of split `queries` among the labeled clips of split `gallery`.

    Only the student's own modality is read. A query without it counts as one that finds nothing (`queries_missing`);
    such a gallery clip cannot be found (`gallery_missing`). Where clips of the dataset have several labels, a gallery
    clip is relevant if it shares at least one with the query. Under torchrun the processes share the clips.

    Args:
        run: run folder.
        dataset: holds both splits.
        queries, gallery: splits; several are init_distributed by "+", as in "train+teacher".
        ks: of hit@k.
        batch_size: windows at a time.
        device: "auto", "cpu", "cuda", ...
        on_progress: called after each batch, in windows.

    Raises:
        ConfigError: a clip is in both.
        DatasetError: a split is empty or has no label.
    """
    student, description = load_student(run)
    check_rates(dataset, description.view, description.fps, description.sample_rate_hz, "the student")
    wanted, searched = labeled_clips(dataset, queries), labeled_clips(dataset, gallery)
    if len(np.intersect1d(wanted, searched)):
        raise ConfigError(f"queries {queries!r} and gallery {gallery!r} share clips, and each would find itself first")

    def embedded(clips: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
        labels = encode_labels(dataset, clips, dataset.classes, multi_label=dataset.multi_label).values
        outputs = run_network(student, dataset, clips, description.view, batch_size=batch_size, on_progress=on_progress)
        seen = outputs.present
        return clips[seen.numpy()], outputs.embedding[seen], labels[seen], labels[~seen]

    with init_distributed(device) as own_device:
        student = student.to(own_device)
        query_clips, query, query_labels, lost = embedded(wanted)
        gallery_clips, items, item_labels, gallery_lost = embedded(searched)

    both: dict[str, Any] = {
        "queries": query,
        "gallery": items,
        "query_labels": query_labels,
        "gallery_labels": item_labels,
    }
    metrics: dict[str, Any] = dict(retrieval_metrics(**both, ks=ks))
    metrics |= _with_blind_queries(metrics, ks, int(_found_among(lost, item_labels).sum()), len(lost))
    metrics |= {"queries_missing": len(lost), "gallery_missing": len(gallery_lost)}
    metrics = {name: None if isinstance(v, float) and np.isnan(v) else v for name, v in metrics.items()}
    return RetrievalResult(metrics, _neighbors(dataset, query_clips, gallery_clips, query, items, max(ks)))


def _with_blind_queries(metrics: dict[str, Any], ks: tuple[int, ...], missed: int, blind: int) -> dict[str, Any]:
    """Metrics where `blind` more queries find nothing, which `missed` something: there is something to be found."""
    seen = metrics["queries"]
    answered = seen - metrics["queries_without_relevant"]
    changed = {f"hit@{k}": metrics[f"hit@{k}"] * seen / (seen + blind) for k in ks}
    changed |= {name: metrics[name] * answered / max(1, answered + missed) for name in ("map", "map@R")}
    return changed | {"queries": seen + blind, "queries_without_relevant": seen + blind - answered - missed}


def _found_among(labels: Tensor, of_others: Tensor) -> Tensor:
    """bool (N,): whether a clip has a label that one of the others has too; both (N,) or multi-hot (N, C)."""
    if labels.ndim == 1:
        return torch.isin(labels, of_others)
    return ((labels > 0) & (of_others > 0).any(0)).any(1)


def _neighbors(
    dataset: ClipDataset, query_clips: np.ndarray, gallery_clips: np.ndarray, query: Tensor, items: Tensor, k: int
) -> list[dict[str, object]]:
    scores, indices = top_k_neighbors(queries=query, gallery=items, k=k)
    ids = dataset.columns["id"]
    return [
        {
            "id": ids[clip],
            "nearest": ids[gallery_clips[row.numpy()]].tolist(),
            "cosine": [round(float(s), 4) for s in score],
        }
        for clip, row, score in zip(query_clips, torch.as_tensor(indices), scores, strict=True)
    ]
