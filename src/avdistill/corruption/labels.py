"""Fewer labels."""

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avdistill.corruption.spec import Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError


def remove_labels(dataset: ClipDataset, corruption: Corruption, rows: list[dict[str, Any]]) -> None:
    """Empty the labels of the rows that do not keep them, in place; `extra` gets them as `true_label`."""
    labeled = [row for row in rows if row["labels"]]
    if corruption.labeled_videos:
        unlabeled = _of_other_videos(dataset, corruption, labeled)
    elif not corruption.labeled_per_class and corruption.label_fraction == 1:
        unlabeled = []
    elif any(len(row["labels"]) > 1 for row in labeled):
        unlabeled = surplus_of_each_label(corruption, labeled)
    else:
        unlabeled = _surplus_of_each_class(corruption, labeled)
    for row in unlabeled:
        row["extra"].setdefault("true_label", "|".join(row["labels"]))
        row["labels"] = []


def _of_other_videos(
    dataset: ClipDataset, corruption: Corruption, labeled: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The clips of all source videos but the `labeled_videos` that are drawn."""
    videos = sorted({row["group"] for row in labeled})
    if corruption.labeled_videos > len(videos):
        raise DatasetError(
            f"{dataset.folder}: {corruption.labeled_videos} labeled videos requested, split {corruption.split!r} has "
            f"{len(videos)}"
        )
    drawn = np.random.default_rng([corruption.seed, 6]).permutation(videos)[: corruption.labeled_videos]
    kept = set(drawn.tolist())
    return [row for row in labeled if row["group"] not in kept]


def _surplus_of_each_class(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Single-label clips: those left after a draw from each class."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in labeled:
        by_class.setdefault(row["labels"][0], []).append(row)
    rng = np.random.default_rng([corruption.seed, 5])
    surplus: list[dict[str, Any]] = []
    for _, members in sorted(by_class.items()):
        kept = corruption.labeled_per_class or max(1, round(corruption.label_fraction * len(members)))
        surplus.extend(members[i] for i in rng.permutation(len(members))[kept:])
    return surplus


def surplus_of_each_label(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Multi-label clips: those left after each class is filled up in turn, the rarest first.

    The order is that of iterative stratification (Sechidis et al. 2011): clips of rare classes count for frequent ones
    too, which then need fewer clips of their own. Within a class, the clips that overfill the fewest other classes
    come first, in random order.
    """
    labels = [sorted(set(row["labels"])) for row in labeled]
    rank = np.random.default_rng([corruption.seed, 5]).permutation(len(labeled)).tolist()
    members: dict[str, list[int]] = {}
    for i, names in enumerate(labels):
        for name in names:
            members.setdefault(name, []).append(i)
    sizes = {name: len(clips) for name, clips in members.items()}
    kept: set[int] = set()
    counts = dict.fromkeys(members, 0)
    for target in _targets(corruption, sizes):
        for name in sorted((name for name in sizes if counts[name] < target[name]), key=lambda n: (sizes[n], n)):
            queue = [(0, rank[i], i) for i in members[name] if i not in kept]
            heapq.heapify(queue)
            while counts[name] < target[name]:
                known, tie, i = heapq.heappop(queue)
                full = sum(counts[other] >= target[other] for other in labels[i])
                if full > known:  # the count was out of date; classes only become full, so it can only grow
                    heapq.heappush(queue, (full, tie, i))
                    continue
                kept.add(i)
                for other in labels[i]:
                    counts[other] += 1
    return [row for i, row in enumerate(labeled) if i not in kept]


def _targets(corruption: Corruption, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Numbers of clips to fill each class up to, one target after the other."""
    if not corruption.labeled_per_class:
        yield {name: max(1, round(corruption.label_fraction * size)) for name, size in sizes.items()}
    # One level after the other, so that a smaller number keeps a subset of what a larger one keeps.
    for level in range(1, min(corruption.labeled_per_class, max(sizes.values())) + 1):
        yield {name: min(level, size) for name, size in sizes.items()}
