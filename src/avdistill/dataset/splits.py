"""Clips of a split, their labels, and the validation part of the training clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError
from avdistill.inputs import View


@dataclass(frozen=True)
class Labels:
    """Labels of the chosen clips of a dataset."""

    values: Tensor  # int64 (N,) or multi-hot float32 (N, C)
    labeled: Tensor  # bool (N,)


def encode_labels(
    dataset: ClipDataset, clips: np.ndarray, classes: tuple[str, ...], multi_label: bool = False
) -> Labels:
    """Label indices of `clips` among `classes`.

    Raises:
        DatasetError: a label that is not among the classes, or several labels on a clip that should have one.
    """
    known = set(classes)
    rows = [dataset.labels[i] for i in clips]
    for clip, row in zip(clips, rows, strict=True):
        where = f"{dataset.folder}: clip {dataset.columns['id'][clip]}"
        unknown = [name for name in row if name not in known]
        if unknown:
            raise DatasetError(f"{where}: label {unknown[0]!r} is not a known class")
        if len(row) > 1 and not multi_label:
            raise DatasetError(f"{where} has {len(row)} labels where one is expected")
    labeled = torch.tensor([bool(row) for row in rows], dtype=torch.bool)
    return Labels(label_values(rows, classes, multi_label), labeled)


def training_classes(dataset: ClipDataset, clips: np.ndarray) -> tuple[str, ...]:
    """Sorted names of the labels of the training clips: what a student can learn to name.

    A label that a corruption took away (`true_label`) counts too: with fewer labels the task stays the same.
    """
    names = {name for i in clips for name in dataset.labels[i]}
    for extra in dataset.table["extra"].take(clips).to_pylist():
        names.update(name for name in dict(extra or ()).get("true_label", "").split("|") if name)
    return tuple(sorted(names))


def evaluation_classes(dataset: ClipDataset, clips: np.ndarray, classes: tuple[str, ...]) -> tuple[str, ...]:
    """A student's classes, followed by other labels of these clips: those were not trained on, so they are misses.

    Nothing is added where the dataset lacks a class of the student: its labels are another task's, which
    `encode_labels` refuses.
    """
    names = {name for i in clips for name in dataset.labels[i]}
    same_task = names | set(classes) <= set(dataset.classes)
    return classes + tuple(sorted(names - set(classes))) if same_task else classes


def label_values(labels: Sequence[tuple[str, ...]], classes: Sequence[str], multi_label: bool) -> Tensor:
    """int64 (N,) class indices, 0 for an unlabeled clip; with `multi_label`, multi-hot float32 (N, C)."""
    index = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        return torch.tensor([index[row[0]] if row else 0 for row in labels], dtype=torch.int64)
    hot = torch.zeros(len(labels), len(classes))
    for i, row in enumerate(labels):
        hot[i, [index[name] for name in row]] = 1
    return hot


def clips_of_split(dataset: ClipDataset, split: str) -> np.ndarray:
    """Rows of the dataset in a split. Raises DatasetError where the split is empty."""
    clips = np.flatnonzero(dataset.columns["split"] == split)
    if not len(clips):
        there = ", ".join(sorted(set(dataset.columns["split"].tolist())))
        raise DatasetError(f"{dataset.folder}: no clip in split {split!r}; found {there}")
    return clips


def clips_of_splits(dataset: ClipDataset, names: str) -> np.ndarray:
    """Rows of the dataset in any of several splits, "train+teacher", each once and in the order of the dataset.

    A split whose own name holds a "+" is found by it. Raises DatasetError, naming it, where one of them is empty.
    """
    return np.unique(np.concatenate([clips_of_split(dataset, part) for part in split_names(dataset, names)]))


def split_names(dataset: ClipDataset, names: str) -> list[str]:
    """The splits that "train+teacher" means, whether the dataset has them or not."""
    return [names] if names in dataset.columns["split"] else names.split("+")


def labeled_clips(dataset: ClipDataset, split: str) -> np.ndarray:
    """Rows of a split, or of several (`clips_of_splits`), that have a label. Raises DatasetError if none has one."""
    clips = np.array([i for i in clips_of_splits(dataset, split) if dataset.labels[i]], dtype=np.int64)
    if not len(clips):
        raise DatasetError(f"{dataset.folder}: no labeled clip in split {split!r}")
    return clips


def has_modality(dataset: ClipDataset, clips: np.ndarray, view: View) -> np.ndarray:
    """bool (N,): which clips have the modality of the view."""
    return dataset.columns[view.presence][clips].astype(bool)


def check_view_fits(dataset: ClipDataset, clips: np.ndarray, view: View) -> None:
    """Raise DatasetError where a view without resizing is larger than the frames of some of the clips."""
    if view.fits_all:
        return
    for first in np.unique(dataset.columns["frame_shard"][clips], return_index=True)[1]:  # a shard has one size
        try:
            view.check_fits(dataset.frames(int(clips[first])).shape)
        except ValueError as error:
            raise DatasetError(f"{dataset.folder}: {error}") from error


def split_validation(
    dataset: ClipDataset, clips: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): a share of the *videos* with a labeled clip is held out, with all their labeled clips.

    Clips of one video (column `group`) are never on both sides. Unlabeled clips of a held-out video are dropped from
    training. With two such videos or more and a share above 0, at least one is held out.
    """
    labeled = np.array([bool(dataset.labels[i]) for i in clips])
    videos = dataset.columns["group"][clips]
    candidates = np.unique(videos[labeled])
    count = max(round(fraction * len(candidates)), int(len(candidates) > 1)) if fraction else 0
    chosen = set(np.random.default_rng([seed, 1]).permutation(candidates)[:count].tolist())
    held_out = np.array([video in chosen for video in videos])
    return clips[~held_out], clips[held_out & labeled]
