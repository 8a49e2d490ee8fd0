"""Retrieval metrics of a student: one mean embedding per clip, cosine similarity, queries against a gallery."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import encode_labels, has_modality, labeled_clips
from avdistill.distributed import init_distributed
from avdistill.errors import ConfigError
from avdistill.evaluation.classification import student_and_dataset
from avdistill.evaluation.retrieval_metrics import RetrievalMetrics, retrieval_metrics
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.progress import OnProgress
from avdistill.search.knn import top_k_neighbors


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics, and a row per query: its id, and the ids and cosines of its nearest gallery clips."""

    metrics: RetrievalMetrics
    neighbors: list[dict[str, object]]


@dataclass(frozen=True, eq=False)
class EmbeddedClips:
    """The labeled clips of a split, embedded.

    Attributes:
        ids: (N,) text, of the clips with the student's modality.
        embedding: float32 (N, D).
        labels: int64 (N,), or multi-hot (N, C).
        missing_labels: likewise, of the clips without the student's modality.
    """

    ids: np.ndarray
    embedding: Tensor
    labels: Tensor
    missing_labels: Tensor


def retrieve(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    *,
    query_split: str = "test",
    gallery_split: str = "train",
    ks: Sequence[int] = (1, 5, 10, 20),
    batch_size: int = 32,
    device: str = "auto",
    query_embedding: Tensor | None = None,
    on_progress: OnProgress | None = None,
) -> RetrievalResult:
    """Search each labeled clip of one split among the labeled clips of another.

    Only the student's own modality is read. A query without it counts as one that finds nothing (`queries_missing`);
    such a gallery clip cannot be found (`gallery_missing`). Where clips of the dataset have several labels, a gallery
    clip is relevant if it shares at least one with the query. Under torchrun the processes share the clips.

    Args:
        model: a student, or what `Student.from_pretrained` loads: a run folder (its best student) or an exported one.
        dataset: holds both splits; or its folder.
        query_split, gallery_split: several splits are joined by "+", as in "train+teacher".
        ks: of hit@k.
        batch_size, on_progress: in windows.
        device: "auto", "cpu", "cuda", ...; a student that is passed is moved there.
        query_embedding: (n, D) of the queries, where `evaluate` of the same student and split has it already.

    Raises:
        CheckpointError: there is no trained network.
        ConfigError: a clip is in both splits; `query_embedding` does not have a row for each query.
        DatasetError: there is no dataset, or a split is empty or has no label.
        TeacherError: the dataset's rate differs from the training dataset's.
    """
    query, gallery = embed_splits(
        model, dataset, query_split, gallery_split, batch_size=batch_size, device=device,
        query_embedding=query_embedding, on_progress=on_progress,
    )  # fmt: skip
    queries, items = query.embedding, gallery.embedding
    labels, item_labels = query.labels, gallery.labels
    metrics = retrieval_metrics(queries=queries, gallery=items, query_labels=labels, gallery_labels=item_labels, ks=ks)
    metrics = _with_missing(metrics, query, gallery)
    scores, indices = top_k_neighbors(queries=queries, gallery=items, k=max(ks))
    neighbors = [
        {"id": name, "nearest": gallery.ids[row.numpy()].tolist(), "cosine": [round(float(s), 4) for s in score]}
        for name, row, score in zip(query.ids, indices, scores, strict=True)
    ]
    return RetrievalResult(metrics, neighbors)


def embed_splits(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    query_split: str,
    gallery_split: str,
    *,
    batch_size: int = 32,
    device: str = "auto",
    query_embedding: Tensor | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[EmbeddedClips, EmbeddedClips]:
    """The embedded queries and gallery. Arguments and errors as `retrieve`."""
    student, dataset = student_and_dataset(model, dataset)
    query_clips, gallery_clips = labeled_clips(dataset, query_split), labeled_clips(dataset, gallery_split)
    if len(np.intersect1d(query_clips, gallery_clips)):
        names = f"queries {query_split!r} and gallery {gallery_split!r}"
        raise ConfigError(f"{names} share clips, and each would find itself first")

    view = student.config.view

    def embedded(clips: np.ndarray, embedding: Tensor | None = None) -> EmbeddedClips:
        labels = encode_labels(dataset, clips, dataset.classes, multi_label=dataset.multi_label).values
        seen = torch.from_numpy(has_modality(dataset, clips, view))
        if embedding is None:
            outputs = run_network(student.network, dataset, clips, view, batch_size=batch_size, on_progress=on_progress)
            embedding = outputs.embedding[seen]
        elif len(embedding) != seen.sum():
            raise ConfigError(f"query_embedding: expected a row for each of {seen.sum()} clips, found {len(embedding)}")
        return EmbeddedClips(dataset.columns["id"][clips[seen.numpy()]], embedding, labels[seen], labels[~seen])

    with init_distributed(device) as own_device:
        student.network.to(own_device)
        return embedded(query_clips, query_embedding), embedded(gallery_clips)


def _with_missing(metrics: RetrievalMetrics, query: EmbeddedClips, gallery: EmbeddedClips) -> RetrievalMetrics:
    """With the queries that lack the modality, which find nothing, and of which some have something to be found."""
    missing = len(query.missing_labels)
    if gallery.labels.ndim == 1:
        findable = int(torch.isin(query.missing_labels, gallery.labels).sum())
    else:
        findable = int(((query.missing_labels > 0) & (gallery.labels > 0).any(0)).any(1).sum())
    seen = metrics.queries
    answered = seen - metrics.queries_without_relevant

    def mean(value: float | None) -> float | None:
        return (value or 0.0) * answered / (answered + findable) if answered + findable else None

    return replace(
        metrics,
        hit={k: share * seen / (seen + missing) for k, share in metrics.hit.items()},
        map=mean(metrics.map),
        map_at_r=mean(metrics.map_at_r),
        queries=seen + missing,
        queries_without_relevant=seen + missing - answered - findable,
        queries_missing=missing,
        gallery_missing=len(gallery.missing_labels),
    )
