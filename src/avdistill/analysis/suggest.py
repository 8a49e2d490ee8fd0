"""Which clips to label next: typical ones of the largest parts of the embedding space that no label covers.

TypiClust (Hacohen, Dekel and Weinshall 2022, *Active Learning on a Budget*, section 3.2), made for few labels: as many
k-means clusters as there will be labeled source videos; of the cluster with the fewest labels, the largest first, the
clip that is densest surrounded. Here a source video counts once, so that no near-duplicate is suggested, and with a run
a clip counts more where student and teacher name different classes.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits
from avdistill.distributed import init_distributed
from avdistill.errors import DatasetError
from avdistill.evaluation.classification import student_and_dataset
from avdistill.fsio import replacing
from avdistill.inference.runner import run_network
from avdistill.progress import OnProgress
from avdistill.training.run_dir import run_config

MOST_CLUSTERS = 500  # as in the paper
NEIGHBORS = 20  # of a clip, for its density; as in the paper
COLUMNS = ("id", "path", "start_seconds", "end_seconds", "label", "split", "disagreement")


def suggest(
    dataset: ClipDataset,
    *,
    count: int = 50,
    features: str | None = None,
    run: str | os.PathLike[str] | None = None,
    split: str = "train",
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Choose clips without a label, best first.

    Args:
        dataset: the labels that it has count as covered.
        count: clips; fewer where the split holds fewer without a label.
        features: name of those in the dataset whose space is covered; None takes the only ones. Not with `run`.
        run: of a trained student, whose embedding is covered instead; with a teacher that has logits, clips on which
            the two disagree count more.
        split: of the clips, several joined by "+".
        seed: of k-means.
        device, on_progress: of the student.

    Returns:
        Rows with the columns `COLUMNS`; `label` is empty, `disagreement` the probability that student and teacher name
        different classes, None where unknown.

    Raises:
        DatasetError: no such split or features, several and none named, or no unlabeled clip that has them.
        RunError, CheckpointError: `run` is no run, or has no trained student.
    """
    clips = clips_of_splits(dataset, split)
    if run is None:
        stored = dataset.features(_only_features(dataset, features), tokens=False)
        valid, embedding, disagreement = stored.valid[clips], stored.embedding[clips], np.full(len(clips), np.nan)
    else:
        valid, embedding, disagreement = _of_run(Path(run), dataset, clips, device, on_progress)
    clips, embedding, disagreement = clips[valid], embedding[valid], disagreement[valid]
    labeled = np.array([bool(dataset.labels[i]) for i in clips], dtype=bool)
    if labeled.all():
        found = "no clip with features" if not len(clips) else f"a label on each of {len(clips)}"
        raise DatasetError(f"{dataset.folder}: split {split!r}: expected clips without a label, found {found}")
    groups = dataset.columns["group"][clips].astype(str)
    chosen = choose(embedding, labeled, groups, count=count, weight=np.nan_to_num(disagreement), seed=seed)
    return [_row(dataset, int(clips[i]), disagreement[i]) for i in chosen]


def choose(
    embedding: np.ndarray,
    labeled: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    count: int,
    weight: np.ndarray | None = None,
    seed: int = 0,
) -> list[int]:
    """The rows to label, best first.

    Args:
        embedding: (N, D), compared by direction.
        labeled: bool (N,).
        groups: (N,) source videos. A second clip of one is chosen only when no other is left.
        count: rows, at most as many as are not labeled.
        weight: (N,) at least 0; a clip's density counts 1 + weight times.
        seed: of k-means.
    """
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
    source = np.unique(np.asarray(groups), return_inverse=True)[1]
    wanted = len(np.unique(source[labeled])) + count
    clusters = min(wanted, len(np.unique(source)), MOST_CLUSTERS, len(np.unique(unit, axis=0)))
    with threadpool_limits(1):  # so that the choice does not depend on the machine's cores
        cluster = KMeans(clusters, n_init=1, random_state=seed).fit_predict(unit)
    value = _density(unit, cluster) * (1 if weight is None else 1 + weight)
    size = np.bincount(cluster, minlength=clusters)
    covered = np.bincount(cluster[labeled], minlength=clusters)
    free, seen = ~labeled, np.zeros(source.max() + 1, dtype=bool)
    seen[source[labeled]] = True
    chosen: list[int] = []
    for _ in range(min(count, int(free.sum()))):
        fresh = free & ~seen[source]
        open_rows = np.flatnonzero(fresh if fresh.any() else free)
        there = np.unique(cluster[open_rows])
        best = there[np.lexsort((-size[there], covered[there]))[0]]
        inside = open_rows[cluster[open_rows] == best]
        row = int(inside[value[inside].argmax()])
        chosen.append(row)
        free[row], seen[source[row]] = False, True
        covered[best] += 1
    return chosen


def write_suggestions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file to fill in: a person writes the column `label`."""
    with replacing(path, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _density(unit: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(N,): inverse of the mean distance to the nearest clips of the same cluster; 0 for a clip that is alone."""
    density = np.zeros(len(unit))
    for part in np.unique(cluster):
        inside = np.flatnonzero(cluster == part)
        near = min(NEIGHBORS, len(inside) - 1)
        if near:
            distances, _ = NearestNeighbors(n_neighbors=near).fit(unit[inside]).kneighbors()
            density[inside] = 1 / np.maximum(distances.mean(1), 1e-6)
    return density


def _of_run(
    run: Path, dataset: ClipDataset, clips: np.ndarray, device: str, on_progress: OnProgress | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which clips the student can read, its embeddings, and its disagreement with the run's teacher."""
    student, _ = student_and_dataset(run, dataset)
    with init_distributed(device) as own_device:
        student.network.to(own_device)
        outputs = run_network(student.network, dataset, clips, student.config.view, on_progress=on_progress)
    disagreement = np.full(len(clips), np.nan)
    teacher = run_config(run).teacher
    if teacher is not None and dataset.has_teacher(teacher):
        stored = dataset.features(teacher, tokens=False).with_classes(student.config.classes)
        logits = stored.select(clips).logits
        if logits is not None:
            agree = (logits.softmax(1) * outputs.probabilities).sum(1).numpy()
            disagreement = np.where(stored.valid[clips], 1 - agree, np.nan)
    return outputs.present.numpy(), outputs.embedding.numpy(), disagreement


def _only_features(dataset: ClipDataset, name: str | None) -> str:
    if name is None and len(dataset.teachers) == 1:
        return next(iter(dataset.teachers))
    if name is None or name not in dataset.teachers:
        there = ", ".join(dataset.teachers) or "none; add some with `avdistill embed`"
        wanted = "the name of features" if name is None else f"features {name!r}"
        raise DatasetError(f"{dataset.folder}: expected {wanted} (--features), found {there}")
    return name


def _row(dataset: ClipDataset, clip: int, disagreement: float) -> dict[str, Any]:
    c = dataset.columns
    end = float(c["end_seconds"][clip])
    return {
        "id": str(c["id"][clip]),
        "path": str(c["path"][clip]),
        "start_seconds": float(c["start_seconds"][clip]),
        "end_seconds": None if np.isnan(end) else end,  # None: the end of the video
        "label": "",
        "split": str(c["split"][clip]),
        "disagreement": None if np.isnan(disagreement) else round(float(disagreement), 4),
    }
