"""A dataset as batches. A batch is a function of (seed, number): any can be made again, so a run resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avdistill.annotations.catalogs import video_of
from avdistill.dataset.clip_dataset import ClipDataset, DatasetError
from avdistill.dataset.windows import (
    check_fits,
    evaluation_window,
    sliding_starts,
    spaced_starts,
    training_window,
    window_length,
)
from avdistill.types import Batch, Features, VideoInput, View


@dataclass(frozen=True)
class Labels:
    """Labels of the chosen clips of a dataset.

    Attributes:
        classes: names, in the order of the indices.
        values: int64 (N,) or multi-hot float32 (N, C).
        labeled: bool (N,).
    """

    classes: tuple[str, ...]
    values: Tensor
    labeled: Tensor


def encode_labels(
    dataset: ClipDataset, clips: np.ndarray, classes: tuple[str, ...], multi_label: bool = False
) -> Labels:
    """Label indices of `clips` among `classes`.

    Raises:
        DatasetError: a label that is not among the classes, or several labels on a clip that should have one.
    """
    index = {name: i for i, name in enumerate(classes)}
    rows = [dataset.labels[i] for i in clips]
    for clip, row in zip(clips, rows, strict=True):
        unknown = [name for name in row if name not in index]
        if unknown:
            raise DatasetError(
                f"{dataset.folder}: clip {dataset.columns['id'][clip]}: label {unknown[0]!r} is not a known class"
            )
        if len(row) > 1 and not multi_label:
            raise DatasetError(
                f"{dataset.folder}: clip {dataset.columns['id'][clip]} has {len(row)} labels where one is expected"
            )
    labeled = torch.tensor([bool(row) for row in rows], dtype=torch.bool)
    if not multi_label:
        values = torch.tensor([index[row[0]] if row else 0 for row in rows], dtype=torch.int64)
        return Labels(classes, values, labeled)
    hot = torch.zeros(len(rows), len(classes))
    for i, row in enumerate(rows):
        hot[i, [index[name] for name in row]] = 1
    return Labels(classes, hot, labeled)


def clips_of_split(dataset: ClipDataset, split: str) -> np.ndarray:
    """Rows of the dataset in a split. Raises DatasetError where the split is empty."""
    clips = np.flatnonzero(dataset.columns["split"] == split)
    if not len(clips):
        there = ", ".join(sorted(set(dataset.columns["split"].tolist())))
        raise DatasetError(f"{dataset.folder}: no clip in split {split!r}; splits there: {there}")
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
    """Rows of a split, or of several (`clips_of_splits`), that have a label. Raises DatasetError where there is
    none.
    """
    clips = np.array([i for i in clips_of_splits(dataset, split) if dataset.labels[i]], dtype=np.int64)
    if not len(clips):
        raise DatasetError(f"{dataset.folder}: no labeled clip in split {split!r}")
    return clips


def videos_of(dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
    """(N,) text: the video that each of the clips is from (`video_of`)."""
    return np.array([video_of(path) for path in dataset.columns["path"][clips].tolist()])


def has_modality(dataset: ClipDataset, clips: np.ndarray, view: View) -> np.ndarray:
    """bool (N,): which clips hold what the view looks at."""
    return dataset.columns["has_video" if isinstance(view, VideoInput) else "has_audio"][clips].astype(bool)


def check_view_fits(dataset: ClipDataset, clips: np.ndarray, view: View) -> None:
    """Raise DatasetError where a view without resizing is larger than the images of some of the clips."""
    if not isinstance(view, VideoInput) or view.resize:
        return
    for first in np.unique(dataset.columns["frame_shard"][clips], return_index=True)[1]:  # a shard has one size
        H, W = dataset.frames(int(clips[first])).shape[1:3]
        try:
            check_fits(H, W, view)
        except ValueError as error:
            raise DatasetError(f"{dataset.folder}: {error}") from error


def split_validation(
    dataset: ClipDataset, clips: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): a share of the *videos* with a labeled clip is set aside, with all their labeled clips.

    Clips of one video (`video_of`) never stand on both sides. Unlabeled ones of a video set aside are dropped from
    training. Where there are two such videos or more and the share is not 0, at least one is set aside.
    """
    labeled = np.array([bool(dataset.labels[i]) for i in clips])
    videos = videos_of(dataset, clips)
    candidates = np.unique(videos[labeled])
    count = max(round(fraction * len(candidates)), int(len(candidates) > 1)) if fraction else 0
    chosen = set(np.random.default_rng([seed, 1]).permutation(candidates)[:count].tolist())
    aside = np.array([video in chosen for video in videos])
    return clips[~aside], clips[aside & labeled]


class TrainingBatches:
    """Batch number i of a run, for every i >= 0.

    Clips are drawn without replacement from a shuffled order that is renewed when it runs out, from one pool, or from
    a labeled and an unlabeled pool at a fixed ratio, so that few labels are seen often enough.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        clips: np.ndarray,
        labels: Labels,
        view: View,
        *,
        batch_size: int,
        labeled_per_batch: int | None,
        use_unlabeled: bool,
        teacher: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None,
        seed: int,
        teacher_tokens: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the pools.

        Args:
            dataset: where frames and audio lie.
            clips: (N,) rows of the dataset to train on, all holding the view's modality.
            labels: of these clips.
            view: what the student is shown.
            batch_size: B.
            labeled_per_batch: labeled clips of each batch; None draws from one pool.
            use_unlabeled: False draws labeled clips only.
            teacher: (embedding, logits or None, has_teacher) with a row per clip of the *dataset*.
            seed: of order, windows and crops.
            teacher_tokens: (N, K, D) the teacher's maps, for a method that looks at them.
            share: (r, n) gives rows r, r + n, ... of each batch, the same as they are in the whole one.
        """
        self.dataset, self.clips, self.labels, self.view = dataset, clips, labels, view
        self.teacher, self.teacher_tokens, self.seed, self.share = teacher, teacher_tokens, seed, share
        labeled = np.flatnonzero(labels.labeled.numpy())
        unlabeled = np.flatnonzero(~labels.labeled.numpy())
        if not len(labeled):
            raise DatasetError(f"{dataset.folder}: no labeled clip to train on")
        if not use_unlabeled or not len(unlabeled):
            self.pools = [(labeled, batch_size)]
        elif labeled_per_batch is None:
            self.pools = [(np.arange(len(clips)), batch_size)]
        else:
            self.pools = [(labeled, labeled_per_batch), (unlabeled, batch_size - labeled_per_batch)]
        self.pools = [(pool, share) for pool, share in self.pools if share > 0]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, number: int) -> np.ndarray:
        """Which of the clips make up the whole batch `number`."""
        drawn = []
        for pool_number, (pool, share) in enumerate(self.pools):
            positions = np.arange(number * share, (number + 1) * share)
            for epoch in np.unique(positions // len(pool)):
                order = self._order(pool_number, int(epoch))
                drawn.append(order[positions[positions // len(pool) == epoch] % len(pool)])
        return np.concatenate(drawn)

    def _order(self, pool_number: int, epoch: int) -> np.ndarray:
        """The shuffled pool. Each pool's last one is kept: of 100,000 clips shuffling takes longer than a batch."""
        kept = self._orders.get(pool_number)
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([self.seed, 2, pool_number, epoch])
            self._orders[pool_number] = kept = (epoch, rng.permutation(self.pools[pool_number][0]))
        return kept[1]

    def __getitem__(self, number: int) -> Batch:
        first, step = self.share
        rows = self.rows(number)[first::step]
        clips = self.clips[rows]
        read = self.dataset.frames if isinstance(self.view, VideoInput) else self.dataset.audio
        windows = [
            training_window(
                read(int(clip)),
                self.view,
                self.dataset.sample_rate_hz,
                np.random.default_rng([self.seed, 3, number, first + i * step]),
            )
            for i, clip in enumerate(clips)
        ]
        inputs = torch.stack(windows)
        features, has_teacher = self._teacher_rows(clips)
        return Batch(
            frames=inputs if isinstance(self.view, VideoInput) else None,
            audio=None if isinstance(self.view, VideoInput) else inputs,
            labels=self.labels.values[rows],
            labeled=self.labels.labeled[rows],
            teacher=features,
            has_teacher=has_teacher,
            clip_ids=tuple(self.dataset.columns["id"][clips].tolist()),
            indices=torch.from_numpy(rows),
        )

    def _teacher_rows(self, clips: np.ndarray) -> tuple[Features | None, Tensor]:
        if self.teacher is None:
            return None, torch.zeros(len(clips), dtype=torch.bool)
        embedding, logits, present = self.teacher
        features = Features(
            embedding=torch.from_numpy(embedding[clips]),
            logits=None if logits is None else torch.from_numpy(logits[clips]),
            tokens=None if self.teacher_tokens is None else torch.from_numpy(self.teacher_tokens[clips]),
        )
        return features, torch.from_numpy(present[clips])


class EvaluationWindows:
    """Every window of every clip: (position of the clip among `clips`, uint8 frames or float32 audio)."""

    def __init__(
        self,
        dataset: ClipDataset,
        clips: np.ndarray,
        view: View,
        *,
        windows: int | None = None,
        stride: int | None = None,
    ):
        """Lay out the windows.

        Args:
            dataset: where frames and audio lie.
            clips: rows of the dataset, all holding the view's modality.
            view: what the network is shown.
            windows: this many, evenly spaced; None slides over the whole clip.
            stride: of the sliding windows in frames or samples; None is the window's length.
        """
        self.dataset, self.clips, self.view = dataset, clips, view
        length = window_length(view, dataset.sample_rate_hz)
        counts = dataset.columns["frame_count" if isinstance(view, VideoInput) else "audio_count"][clips]
        self.items: list[tuple[int, int]] = []
        align = not isinstance(view, VideoInput)
        for position, count in enumerate(counts.tolist()):
            if windows is None:
                starts = sliding_starts(count, length, stride or length, align_last=align)
            else:
                starts = spaced_starts(count, length, windows)
            self.items.extend((position, start) for start in starts)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[int, Tensor]:
        position, start = self.items[item]
        clip = int(self.clips[position])
        items = self.dataset.frames(clip) if isinstance(self.view, VideoInput) else self.dataset.audio(clip)
        return position, evaluation_window(items, self.view, self.dataset.sample_rate_hz, start)

    def batch(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Windows `first` to `first + size`, as many as there are: int64 (n,) positions of their clips, and windows."""
        positions, windows = zip(*(self[i] for i in range(first, min(first + size, len(self)))), strict=True)
        return torch.tensor(positions), torch.stack(windows)
