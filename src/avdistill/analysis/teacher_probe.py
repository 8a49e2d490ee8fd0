"""How well a teacher's embeddings predict the labels: linear probe, retrieval, identical embeddings, missing clips.

A student cannot learn from a teacher what its embeddings do not contain: run this before training with it.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.annotations.groups import video_of
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import label_values
from avdistill.errors import ConfigError, DatasetError, TeacherError
from avdistill.evaluation.linear_probe import PROBE_CONFIGS, ProbeConfig, linear_probe, video_folds
from avdistill.evaluation.retrieval_metrics import retrieval_metrics
from avdistill.progress import OnProgress
from avdistill.teachers.precomputed import read_npz, strings

TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("test", "validation")
_FOLDS = 3  # of the cross-validation
EXAMPLES = 20  # sets of identical embeddings that are named


@dataclass(frozen=True, eq=False)
class LabeledFeatures:
    """A teacher's embeddings of N clips with the clips' labels.

    Attributes:
        source: its name in messages.
        ids: (N,) text.
        embedding: floating (N, D); a row of NaN is a clip without an embedding.
        labels: N tuples of label names, empty where the clip has none.
        splits: (N,) text.
        groups: (N,) text; the source video; cross-validation never splits a group.
        without_audio, silent: bool (N,), or None where not known.

    Raises:
        TeacherError: lengths or shapes that do not fit, or a row that is infinite or NaN in part.
    """

    source: str
    ids: np.ndarray
    embedding: np.ndarray
    labels: Sequence[tuple[str, ...]]
    splits: np.ndarray
    groups: np.ndarray
    without_audio: np.ndarray | None = None
    silent: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape, kind = self.embedding.shape, self.embedding.dtype
        if len(shape) != 2 or not self.embedding.size or not np.issubdtype(kind, np.floating):
            raise TeacherError(f"{self.source}: expected floating embeddings (clips, channels), found {kind} {shape}")
        for name in ("ids", "labels", "splits", "groups"):
            if len(getattr(self, name)) != len(self.embedding):
                found = len(getattr(self, name))
                raise TeacherError(f"{self.source}: expected {name} of {len(self.embedding)} clips, found {found}")
        bad = ~np.isfinite(self.embedding).all(1) & ~np.isnan(self.embedding).all(1)
        if bad.any():
            clip = self.ids[bad.argmax()]
            raise TeacherError(f"{self.source}: clip {clip}: its embedding is infinite or NaN in part")

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted names of all labels that occur."""
        return tuple(sorted({name for row in self.labels for name in row}))

    @property
    def present(self) -> np.ndarray:
        """bool (N,): which clips have an embedding."""
        return ~np.isnan(self.embedding[:, 0])


def dataset_features(dataset: ClipDataset, name: str | None = None) -> LabeledFeatures:
    """The features of one of a dataset's teachers; without a name, of its only one.

    Raises:
        DatasetError: no such teacher, none at all, or several to choose from.
    """
    if name is None:
        if len(dataset.teachers) > 1:
            raise DatasetError(
                f"{dataset.folder}: several teachers; choose one with --teacher: {', '.join(dataset.teachers)}"
            )
        if not dataset.teachers:
            raise DatasetError(f"{dataset.folder}: no teacher in this dataset; add one with `avdistill embed`")
        name = next(iter(dataset.teachers))
    stored = dataset.features(name, tokens=False)
    columns = dataset.columns
    return LabeledFeatures(
        source=f"{dataset.folder}: teacher {name!r}",
        ids=columns["id"],
        embedding=np.where(stored.valid[:, None], stored.embedding, np.float32(np.nan)),
        labels=dataset.labels,
        splits=columns["split"],
        groups=columns["group"],
        without_audio=~columns["has_audio"].astype(bool),
        silent=columns["silent"].astype(bool),
    )


def npz_features(path: str | os.PathLike[str]) -> LabeledFeatures:
    """Features of an .npz file with `name`, `label` and `split`, text (N,), and `embedding`, floating (N, D).

    An empty label is a clip without one, a row of NaN a clip without an embedding.

    Raises:
        DatasetError: no such file or another kind of file, or an array is missing.
        TeacherError: shapes that do not fit.
    """
    path = Path(path)
    arrays = read_npz(path, ("name", "label", "split", "embedding"))
    names, labels, splits = (strings(path, key, arrays[key]) for key in ("name", "label", "split"))
    return LabeledFeatures(
        source=str(path),
        ids=np.array(names),
        embedding=arrays["embedding"],
        labels=[(label,) if label else () for label in labels],
        splits=np.array(splits),
        groups=np.array([video_of(name) for name in names]),
    )


def probe(
    features: LabeledFeatures,
    *,
    train_split: str | None = None,
    split: str | None = None,
    settings: Sequence[ProbeConfig] = PROBE_CONFIGS,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """How well a teacher's embeddings predict the labels.

    The probe is multinomial logistic regression (with several labels per clip, ridge regression on each class). Its
    setting is chosen by cross-validation over source videos of the training split. All metrics are of labeled clips
    that have an embedding; `silence` counts the others.

    Args:
        features: of one teacher.
        train_split: trains the probe and is the gallery of the retrieval; None is "train" or "training".
        split: is evaluated and gives the queries; None is "test", or else "validation".
        settings: to choose from; with one, nothing is chosen.
        seed: of the folds.
        on_progress: called after each batch, in fits of the probe.

    Returns:
        JSON-ready: `train_split`, `split`, `classes`, `multi_label`, `clips` of either split; `probe`
        (`linear_probe`); `retrieval` (`RetrievalMetrics`); `identical` (`identical_embeddings`); `silence`: counts.

    Raises:
        TeacherError: a split without clips to use, fewer than two classes or too few videos to train on.
        ConfigError: both splits are the same.
    """
    train_split = _chosen_split(features, train_split, TRAINING_NAMES, "--train-split")
    split = _chosen_split(features, split, EVALUATION_NAMES, "--split")
    if split == train_split:
        raise ConfigError(f"split {split!r} cannot both train the probe and evaluate it")
    train, held = (_usable(features, name) for name in (train_split, split))
    classes = features.classes
    multi_label = any(len(row) > 1 for row in features.labels)
    x = features.embedding.astype(np.float32, copy=False)
    truth = label_values(features.labels, classes, multi_label).numpy()
    if len({name for clip in train for name in features.labels[clip]}) < 2:
        raise TeacherError(f"{features.source}: split {train_split!r}: expected at least two classes, found one")
    try:
        parts = video_folds(truth[train], features.groups[train], _FOLDS, seed) if len(settings) > 1 else []
    except ValueError as error:
        raise TeacherError(f"{features.source}: split {train_split!r}: {error}") from error
    found = linear_probe(
        embedding=x[train],
        labels=truth[train],
        test_embedding=x[held],
        test_labels=truth[held],
        class_names=classes,
        settings=settings,
        folds=parts,
        on_progress=on_progress,
    )
    retrieval = retrieval_metrics(
        queries=torch.from_numpy(x[held]),
        gallery=torch.from_numpy(x[train]),
        query_labels=torch.from_numpy(truth[held]),
        gallery_labels=torch.from_numpy(truth[train]),
    )
    return {
        "train_split": train_split,
        "split": split,
        "classes": len(classes),
        "multi_label": multi_label,
        "clips": {train_split: len(train), split: len(held)},
        "probe": found,
        "retrieval": retrieval.to_dict(),
        "identical": identical_embeddings(features),
        "silence": _silence(features),
    }


def identical_embeddings(features: LabeledFeatures) -> dict[str, Any]:
    """Clips whose embeddings are equal bit for bit: duplicates of one video, or audio without content.

    Returns:
        `sets` of two clips or more, the `clips` in them, sets `across_splits` (a test clip that was trained on) and
        sets whose `labels_differ` (no classifier can separate them); `examples`, at most 20, across splits first.
    """
    by_content: dict[bytes, list[int]] = {}
    for clip in np.flatnonzero(features.present):
        content = hashlib.sha256(features.embedding[clip].tobytes()).digest()
        by_content.setdefault(content, []).append(int(clip))
    examples = [
        {
            "ids": [str(features.ids[i]) for i in clips],
            "splits": sorted({str(features.splits[i]) for i in clips}),
            "labels": sorted({"|".join(sorted(features.labels[i])) for i in clips if features.labels[i]}),
        }
        for clips in by_content.values()
        if len(clips) > 1
    ]
    examples.sort(key=lambda row: len(row["splits"]) == 1)
    return {
        "sets": len(examples),
        "clips": sum(len(row["ids"]) for row in examples),
        "across_splits": sum(len(row["splits"]) > 1 for row in examples),
        "labels_differ": sum(len(row["labels"]) > 1 for row in examples),
        "examples": examples[:EXAMPLES],
    }


def _silence(features: LabeledFeatures) -> dict[str, int | None]:
    zero = ~features.embedding.any(1)  # a row of NaN does not count
    return {
        "clips": len(features.ids),
        "without_embedding": int((~features.present).sum()),
        "zero_embedding": int(zero.sum()),
        "without_audio": None if features.without_audio is None else int(features.without_audio.sum()),
        "silent": None if features.silent is None else int(features.silent.sum()),
    }


def _chosen_split(features: LabeledFeatures, requested: str | None, usual: tuple[str, ...], option: str) -> str:
    names = usual if requested is None else (requested,)
    there = sorted(set(features.splits.tolist()))
    for name in names:
        if name in there:
            return name
    wanted = " or ".join(map(repr, names))
    raise TeacherError(f"{features.source}: no clip in split {wanted} ({option}); splits there: {', '.join(there)}")


def _usable(features: LabeledFeatures, split: str) -> np.ndarray:
    labeled = np.array([bool(row) for row in features.labels])
    clips = np.flatnonzero((features.splits == split) & labeled & features.present)
    if not len(clips):
        raise TeacherError(f"{features.source}: split {split!r}: no labeled clip has an embedding")
    return clips
