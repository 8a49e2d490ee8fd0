"""Fewer labels."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avdistill.corruption.spec import Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError


def _by_class(corruption: Corruption) -> bool:
    return bool(corruption.labeled_per_class) or corruption.label_fraction != 1


def _take_labels(dataset: ClipDataset, corruption: Corruption, rows: list[dict[str, Any]]) -> None:
    labeled = [row for row in rows if row["labels"]]
    if corruption.labeled_videos:
        losing = _of_other_videos(dataset, corruption, labeled)
    elif not _by_class(corruption):
        losing = []
    elif any(len(row["labels"]) > 1 for row in labeled):
        losing = _beyond_each_label(corruption, labeled)
    else:
        losing = _beyond_each_class(corruption, labeled)
    for row in losing:
        row["extra"].setdefault("true_label", "|".join(row["labels"]))
        row["labels"] = []


def _of_other_videos(
    dataset: ClipDataset, corruption: Corruption, labeled: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    videos = sorted({row["group"] for row in labeled})
    if corruption.labeled_videos > len(videos):
        raise DatasetError(
            f"{dataset.folder}: {corruption.labeled_videos} labeled videos asked for, split {corruption.split!r} has "
            f"{len(videos)}"
        )
    drawn = np.random.default_rng([corruption.seed, 6]).permutation(videos)[: corruption.labeled_videos]
    kept = set(drawn.tolist())
    return [row for row in labeled if row["group"] not in kept]


def _beyond_each_class(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where every clip has one label: a draw from each class."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in labeled:
        groups.setdefault(row["labels"][0], []).append(row)
    rng = np.random.default_rng([corruption.seed, 5])
    losing: list[dict[str, Any]] = []
    for _, members in sorted(groups.items()):
        kept = corruption.labeled_per_class or max(1, round(corruption.label_fraction * len(members)))
        losing.extend(members[i] for i in rng.permutation(len(members))[kept:])
    return losing


def _beyond_each_label(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where clips have several labels: each class is filled up in turn, the rarest first.

    The order is that of iterative stratification (Sechidis et al. 2011): the frequent classes get clips with the rare
    ones anyway, and what they still lack can be found without those. Of the clips of a class, those are taken first
    that make the fewest other classes larger than was asked for, in random order.
    """
    labels = [sorted(set(row["labels"])) for row in labeled]
    place = np.random.default_rng([corruption.seed, 5]).permutation(len(labeled)).tolist()
    members: dict[str, list[int]] = {}
    for i, names in enumerate(labels):
        for name in names:
            members.setdefault(name, []).append(i)
    sizes = {name: len(clips) for name, clips in members.items()}
    kept: set[int] = set()
    counts = dict.fromkeys(members, 0)
    for wanted in _targets(corruption, sizes):
        for name in sorted((name for name in sizes if counts[name] < wanted[name]), key=lambda n: (sizes[n], n)):
            waiting = [(0, place[i], i) for i in members[name] if i not in kept]
            heapq.heapify(waiting)
            while counts[name] < wanted[name]:
                known, rank, i = heapq.heappop(waiting)
                full = sum(counts[other] >= wanted[other] for other in labels[i])
                if full > known:  # classes only become full: a number that is out of date was too small
                    heapq.heappush(waiting, (full, rank, i))
                    continue
                kept.add(i)
                for other in labels[i]:
                    counts[other] += 1
    return [row for i, row in enumerate(labeled) if i not in kept]


def _targets(corruption: Corruption, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """How many clips each class is to be filled up to, one after the other."""
    if not corruption.labeled_per_class:
        yield {name: max(1, round(corruption.label_fraction * size)) for name, size in sizes.items()}
    # A number is come to one by one: what it keeps is then among what a larger number keeps.
    for level in range(1, min(corruption.labeled_per_class, max(sizes.values())) + 1):
        yield {name: min(level, size) for name, size in sizes.items()}
