"""Frozen features in the UCF51 study: their linear probe, and a network's features with a head for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import encode_labels, labeled_clips
from avdistill.evaluation.metrics import expected_calibration_error
from avdistill.search.knn import top_k_neighbors
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import add_features, embed
from avdistill.teachers.linear_head import fit_head


def embed_once(base: ClipDataset, teacher: Teacher, name: str, heads: Mapping[str, str]) -> None:
    """Store a network's features as `name`, and under each name of `heads` with a head fitted on that split."""
    if name not in base.teachers:
        embed(base, teacher, name, head_split=next(iter(heads.values())))
        base = ClipDataset(base.folder)
    for each, split in heads.items():
        if each not in base.teachers:
            add_features(
                base,
                each,
                modality=base.teachers[name].modality,
                provenance=base.teachers[name].provenance,
                embedding=embedding_of(base, name),
                logits=None,
                classes=(),
                head_split=split,
            )
            base = ClipDataset(base.folder)


def embedding_of(dataset: ClipDataset, name: str) -> np.ndarray:
    """(N, D), a row of NaN for a clip without features."""
    stored = dataset.features(name)
    return np.where(stored.valid[:, None], stored.embedding, np.nan)


def probed(
    labeled: ClipDataset, base: ClipDataset, name: str, trained: str, tested: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Logistic regression on frozen features, and their nearest neighbors.

    Args:
        labeled: whose labels the regression sees.
        base: the same clips with every label, and the features.
        name: of the features.
        trained, tested: splits.

    Returns:
        The metrics, and what the probe says of each test clip. A test clip without features is a miss.
    """
    embedding = embedding_of(base, name)
    present = ~np.isnan(embedding).any(axis=1)
    scores, _ = fit_head(labeled, embedding, split=trained)
    assert scores is not None
    clips, gallery = labeled_clips(base, tested), labeled_clips(base, trained)
    queries, gallery = clips[present[clips]], gallery[present[gallery]]
    truth = encode_labels(base, queries, base.classes, multi_label=False).values
    probabilities = torch.from_numpy(scores[queries]).double().softmax(1)
    _, nearest = top_k_neighbors(
        queries=torch.from_numpy(embedding[queries]), gallery=torch.from_numpy(embedding[gallery]), k=len(gallery)
    )
    ids, label = base.columns["id"], labels_by_id(base)
    missed = dict.fromkeys(ids[clips].tolist(), 0.0)
    found = {str(ids[q]): ids[gallery[row]].tolist() for q, row in zip(queries, nearest.numpy(), strict=True)}
    precision = missed | average_precision(base, found)
    correct = missed | dict(zip(found, (probabilities.argmax(1) == truth).double().tolist(), strict=True))
    first = missed | {clip: float(label[clip] == label[row[0]]) for clip, row in found.items()}
    classes = {label[clip] for clip in correct}
    per_class = [np.mean([right for clip, right in correct.items() if label[clip] == each]) for each in classes]
    metrics = {
        "top1_accuracy": float(np.mean(list(correct.values()))),
        "mean_class_accuracy": float(np.mean(per_class)),
        "expected_calibration_error": expected_calibration_error(probabilities=probabilities, labels=truth),
        "hit@1": float(np.mean(list(first.values()))),
        "map": float(np.mean(list(precision.values()))),
    }
    right = {clip: int(value) for clip, value in correct.items()}
    return metrics, {"correct": right, "average_precision": precision}


def average_precision(dataset: ClipDataset, neighbors: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Of each query, from its ranking of the whole gallery."""
    label = labels_by_id(dataset)
    found = {}
    for query, nearest in neighbors.items():
        relevant = np.array([label[clip] == label[query] for clip in nearest])
        precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        found[query] = round(float(precision[relevant].mean()), 5)
    return found


def labels_by_id(dataset: ClipDataset) -> dict[str, tuple[str, ...]]:
    """Clip id -> labels."""
    return dict(zip(dataset.columns["id"].tolist(), dataset.labels, strict=True))
