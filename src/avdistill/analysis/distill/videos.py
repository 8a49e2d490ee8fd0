"""The dataset of `distill`: all videos of a folder, the labels of a list or clusters, copies, and test clips."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from avdistill.analysis.distill.config import TEST, TRAIN
from avdistill.annotations import Annotation, read_annotations
from avdistill.annotations.video_files import find_videos, locate
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.copies import Row, linked_copy, rows_of
from avdistill.errors import AnnotationError, DatasetError
from avdistill.preparation.duplicates import Duplicate

_MOST_CLUSTERS = 50


@dataclass(frozen=True)
class Videos:
    """What a folder holds.

    Attributes:
        annotations: a clip for each video or listed segment; without a label where none is known.
        left_out: files that are no videos, in one line; empty without any.
    """

    annotations: list[Annotation]
    left_out: str

    @property
    def classes(self) -> list[str]:
        """Sorted; empty where no video has a label."""
        return sorted({name for each in self.annotations for name in each.labels})

    @property
    def labeled(self) -> int:
        """The number of clips with a label."""
        return sum(bool(each.labels) for each in self.annotations)


def list_videos(videos: Path, labels: Path | None) -> Videos:
    """Every video of a folder, with the labels of a list or, without a list, those of class folders.

    Args:
        videos: the folder.
        labels: a list that `read_annotations` reads, such as a CSV file `path,label`; a video that it does not name is
            unlabeled. Its split "test" is kept, every other one is training. None: a folder per class, or no label
            where videos lie in the folder itself.

    Raises:
        AnnotationError: no video, a malformed list, a listed file that is not there, or labels of a single class.
    """
    if not videos.is_dir():
        raise AnnotationError(f"{videos}: expected a folder of videos, found none")
    found = find_videos(videos)
    if not found.videos:
        raise AnnotationError(f"{videos}: expected at least one video, found none {found.describe_left_out()}".strip())
    if labels is not None:
        annotations = _with_list(videos, [str(path) for path in found.videos], labels)
    elif any(len(path.parts) == 1 for path in found.videos):
        annotations = _unlabeled([str(path) for path in found.videos])
    else:
        annotations = [replace(each, split=TRAIN) for each in read_annotations(videos, format="folder")]
    listed = Videos(annotations, found.describe_left_out())
    if len(listed.classes) == 1:
        where = labels or videos
        raise AnnotationError(f"{where}: expected labels of at least two classes, found only {listed.classes[0]!r}")
    return listed


def _with_list(videos: Path, paths: Sequence[str], labels: Path) -> list[Annotation]:
    listed = [
        each if each.split == TEST else replace(each, split=TRAIN) for each in read_annotations(labels, videos=videos)
    ]
    for each in listed:
        if not locate(videos, each.path).is_file():
            raise AnnotationError(f"{labels}: expected files below {videos}, found none at {each.path!r}")
    named = {locate(videos, each.path) for each in listed}
    return [*listed, *_unlabeled([path for path in paths if videos / path not in named])]


def _unlabeled(paths: Sequence[str]) -> list[Annotation]:
    return [Annotation(path, path, (), TRAIN) for path in paths]


def arrange(
    dataset: ClipDataset, copies: Sequence[Duplicate], out: Path, *, test_fraction: float, seed: int
) -> ClipDataset:
    """A linked copy in which copies of a video share a group, and some groups are the split "test".

    Where the list names test clips, their groups are the test, and no others.

    Args:
        dataset: with clips in the splits "train" and "test".
        copies: near-duplicates of its clips; those of the audio alone are no copies of a video.
        out: the folder of the copy.
        test_fraction: of the groups of each class that are held out, at least one where a class has two; without
            labels of all groups.
        seed: of the draw.

    Raises:
        DatasetError: fewer than two classes have a labeled clip, none has two groups, without labels fewer than two
            groups, or no labeled clip outside the groups of the listed test clips.
    """
    groups = merged_groups(dataset.columns["group"].astype(str), [each.clips for each in copies if each.video])
    labels = dataset.labels if any(dataset.labels) else [("",)] * len(dataset)
    listed = frozenset(groups[dataset.columns["split"] == TEST].tolist())
    held_out = listed or held_out_groups(groups, labels, test_fraction, seed)
    if listed and not any(row and group not in listed for group, row in zip(groups, labels, strict=True)):
        raise DatasetError("expected a labeled clip of a source video without test clips, to train on; found none")

    def rows(_: Path) -> list[Row]:
        changed = rows_of(dataset)
        for row, group in zip(changed, groups, strict=True):
            row["group"], row["split"] = str(group), TEST if group in held_out else TRAIN
        return changed

    made_from = {"groups": groups.tolist(), "test_fraction": test_fraction, "seed": seed}
    return linked_copy(dataset, out, made_from, "these clips with these groups", rows)


def merged_groups(groups: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(N,) names of groups; groups that pairs of clips connect have the name of the first."""
    names, member = np.unique(groups, return_inverse=True)
    a, b = member[np.array(pairs, dtype=np.int64).reshape(-1, 2)].T
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    first = np.unique(component, return_index=True)[1]
    return names[first[component[member]]]


def held_out_groups(
    groups: np.ndarray, labels: Sequence[tuple[str, ...]], test_fraction: float, seed: int
) -> frozenset[str]:
    """The groups to test on: of each class a share of the groups that have a labeled clip of it.

    A class keeps at least one group to train on. Raises DatasetError as `arrange`.
    """
    of_class: dict[str, set[str]] = {}
    for group, row in zip(groups.tolist(), labels, strict=True):
        for name in row[:1]:
            of_class.setdefault(name, set()).add(group)
    rng = np.random.default_rng([seed, 2])
    chosen: set[str] = set()
    for name in sorted(of_class):
        order = rng.permutation(sorted(of_class[name])).tolist()
        already = sum(group in chosen for group in order)
        wanted = max(1, round(test_fraction * len(order))) if len(order) > 1 else 0
        chosen.update([group for group in order if group not in chosen][: max(0, wanted - already)])
    for name, own in of_class.items():
        if own <= chosen:  # a group of several classes was held out for another one
            chosen.discard(min(own))
            logging.getLogger(__name__).info("%s: one group of it serves training instead of the test", name)
    if not chosen:
        raise DatasetError(
            f"expected a class with clips of two source videos, to test on one; found {len(of_class)} classes in "
            f"{len(set(groups.tolist()))} source videos"
        )
    return frozenset(chosen)


def label_by_clusters(dataset: ClipDataset, embedding: np.ndarray, out: Path) -> ClipDataset:
    """A linked copy in which each clip has the cluster of its embedding as its label.

    Clusters of one modality are classes for a network of the other, as in Alwassel et al. 2020 (XDC). They are k-means
    clusters of embeddings of unit length, as many as the root of half the number of training clips.

    Args:
        dataset: without labels.
        embedding: (N, D), a row of NaN for a clip without one, which stays unlabeled.
        out: the folder of the copy.

    Raises:
        DatasetError: fewer than four training clips have an embedding.
    """
    from sklearn.cluster import KMeans

    valid = ~np.isnan(embedding).any(1)
    unit = embedding[valid] / np.maximum(np.linalg.norm(embedding[valid], axis=1, keepdims=True), 1e-9)
    train = dataset.columns["split"][valid] == TRAIN
    if train.sum() < 4:
        raise DatasetError(f"expected at least four clips to cluster, found {train.sum()} with what the teacher needs")
    count = min(_MOST_CLUSTERS, max(2, round(float(np.sqrt(train.sum() / 2)))))
    means = KMeans(count, n_init=10, random_state=0).fit(unit[train])
    cluster_of = dict(zip(np.flatnonzero(valid).tolist(), means.predict(unit).tolist(), strict=True))
    names = [(f"cluster_{cluster_of[i]:02d}",) if i in cluster_of else () for i in range(len(dataset))]

    def rows(_: Path) -> list[Row]:
        changed = rows_of(dataset)
        for row, labels in zip(changed, names, strict=True):
            row["labels"] = list(labels)
        return changed

    return linked_copy(dataset, out, {"labels": names}, "these clips with these clusters", rows)
