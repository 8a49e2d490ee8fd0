"""Training batches and evaluation windows. A batch is a function of (seed, number), so that a run resumes exactly."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import Labels
from avdistill.dataset.stored_features import TeacherFeatures
from avdistill.dataset.windows import evaluation_window, sliding_starts, spaced_starts, training_window
from avdistill.errors import DatasetError
from avdistill.inputs import View
from avdistill.types import Batch


class TrainingBatches:
    """Batch number i of a run, for every i >= 0.

    Clips are drawn without replacement from a shuffled order that is renewed when it runs out, from one pool, or from
    a labeled and an unlabeled pool at a fixed ratio, so that few labels are drawn often enough.
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
        teacher: TeacherFeatures | None,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the pools.

        Args:
            dataset, clips, labels: the N clips to train on, as rows (N,) of the dataset, all with the view's modality.
            labeled_per_batch: labeled clips of each batch; None draws from one pool.
            use_unlabeled: False draws labeled clips only.
            teacher: features with a row per clip of the *dataset*, without tokens and without those of each of several
                teachers unless the method needs them.
            seed: of order, windows and crops.
            share: (r, n) gives rows r, r + n, ... of each batch, the same as they are in the whole one.
        """
        self.dataset, self.clips, self.labels, self.view = dataset, clips, labels, view
        self.teacher, self.seed, self.share = teacher, seed, share
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

    @property
    def with_teacher(self) -> int | None:
        """How many of the clips have features of the teacher; None without a teacher."""
        return None if self.teacher is None else int(self.teacher.valid[self.clips].sum())

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
        windows = [
            training_window(
                self.dataset.read(int(clip), self.view),
                self.view,
                self.dataset.sample_rate_hz,
                np.random.default_rng([self.seed, 3, number, first + i * step]),
            )
            for i, clip in enumerate(clips)
        ]
        inputs: dict[str, Any] = {self.view.reader: torch.stack(windows)}
        has_teacher = np.zeros(len(clips), bool) if self.teacher is None else self.teacher.valid[clips]
        teachers = () if self.teacher is None else self.teacher.teachers
        return Batch(
            **inputs,
            labels=self.labels.values[rows],
            labeled=self.labels.labeled[rows],
            teacher=None if self.teacher is None else self.teacher.select(clips),
            has_teacher=torch.from_numpy(has_teacher),
            clip_ids=tuple(self.dataset.columns["id"][clips].tolist()),
            indices=torch.from_numpy(rows),
            each_teacher=tuple(each.select(clips) for each in teachers),
            has_each=torch.from_numpy(np.stack([each.valid[clips] for each in teachers], axis=1)) if teachers else None,
        )


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
            dataset, clips: the clips, as rows of the dataset, all with the view's modality.
            windows: this many, evenly spaced; None slides over the whole clip.
            stride: of the sliding windows in frames or samples; None is the window's length.
        """
        self.dataset, self.clips, self.view = dataset, clips, view
        length = view.window_length(dataset.sample_rate_hz)
        counts = dataset.columns[f"{view.column}_count"][clips]
        self.items: list[tuple[int, int]] = []
        for position, count in enumerate(counts.tolist()):
            if windows is None:
                starts = sliding_starts(count, length, stride or length, align_last=view.aligned)
            else:
                starts = spaced_starts(count, length, windows)
            self.items.extend((position, start) for start in starts)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[int, Tensor]:
        position, start = self.items[item]
        clip = int(self.clips[position])
        items = self.dataset.read(clip, self.view)
        return position, evaluation_window(items, self.view, self.dataset.sample_rate_hz, start)

    def batch(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Windows `first` to `first + size`, as many as there are: int64 (n,) positions of their clips, and windows."""
        positions, windows = zip(*(self[i] for i in range(first, min(first + size, len(self)))), strict=True)
        return torch.tensor(positions), torch.stack(windows)
