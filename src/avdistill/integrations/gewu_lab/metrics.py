"""The metrics and the prediction file of the released implementation, which count differently from ours."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.errors import ConfigError
from avdistill.evaluation.classification import student_and_dataset
from avdistill.evaluation.metrics import _check_class_names, _check_probabilities
from avdistill.evaluation.retrieval import embed_splits
from avdistill.evaluation.retrieval_metrics import _check_retrieval_labels, _precision_at_hits, _relevant_ranks
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.progress import OnProgress


def top_k_predictions(
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


def reference_retrieval_metrics(
    *, queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, top: int = 500, block: int = 1024
) -> dict[str, float | int | None]:
    """The released implementation's mean average precision, for comparison with its tables only.

    It averages precision over the hits found among the first `top`, not over the relevant items, and leaves out queries
    with no hit: what a ranking misses costs it nothing. On UCF51's audio it is 27.4 where `map` is 21.6.
    Arguments and errors as `retrieval_metrics`; `top`, the number of ranks that count, is at least 1.

    Returns:
        `map@<top>`, None if no query has a hit, and the count `queries_without_hit`.
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
        f"map@{top}": float(answered.mean()) if len(answered) else None,
        "queries_without_hit": len(queries) - len(answered),
    }


def reference_retrieve(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    *,
    query_split: str = "test",
    gallery_split: str = "train",
    top: int = 500,
    on_progress: OnProgress | None = None,
) -> dict[str, float | int | None]:
    """The released implementation's mean average precision of a student (`reference_retrieval_metrics`).

    Args:
        model, dataset, query_split, gallery_split, on_progress: see `retrieve`.
        top: ranks that count; the release takes 500 for UCF51 and 100 for ActivityNet.
    """
    query, gallery = embed_splits(model, dataset, query_split, gallery_split, on_progress=on_progress)
    return reference_retrieval_metrics(
        queries=query.embedding,
        gallery=gallery.embedding,
        query_labels=query.labels,
        gallery_labels=gallery.labels,
        top=top,
    )


def reference_predictions(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    *,
    split: str = "test",
    k: int = 5,
    on_progress: OnProgress | None = None,
) -> dict[str, dict[str, list[dict[str, object]]]]:
    """The released implementation's prediction file (`top_k_predictions`) of a split's labeled clips.

    Clips without the student's modality are left out.

    Raises:
        ConfigError: a student of several labels per clip.
    """
    student, dataset = student_and_dataset(model, dataset, "auto")
    config = student.config
    if config.multi_label:
        raise ConfigError("reference predictions: expected a student of one label per clip, found one of several")
    clips = labeled_clips(dataset, split)
    outputs = run_network(student.network, dataset, clips, config.view, on_progress=on_progress)
    names = dataset.columns["id"][clips[outputs.present.numpy()]].tolist()
    return top_k_predictions(
        probabilities=outputs.probabilities[outputs.present], names=names, class_names=config.classes, k=k
    )
