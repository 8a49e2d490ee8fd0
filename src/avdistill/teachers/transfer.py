"""A teacher's features, brought from a dataset to the same dataset under a corruption (`corruption/apply.py`)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import TeacherEntry
from avdistill.errors import DatasetError, TeacherError
from avdistill.inputs import INPUTS
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import add_features, embed, provenance_on
from avdistill.types import format_provenance


def transfer_teachers(base: ClipDataset, dataset: ClipDataset, *, teacher: Teacher | None = None) -> list[str]:
    """Put the features of all teachers of `base` into `dataset`, as `transfer_features` does for one.

    Returns:
        Names of those left out: they would have to hear new audio, and `teacher` is another.
    """
    left_out = []
    if teacher is not None:
        mine = provenance_on(base, teacher)
        left_out = sorted(
            name
            for name, entry in base.teachers.items()
            if entry.provenance != mine and name not in dataset.teachers and _has_new(base, dataset, entry)
        )
    for name in base.teachers:
        if name not in left_out:
            transfer_features(base, dataset, name, teacher=teacher)
    return left_out


def check_teacher(base: ClipDataset, names: Collection[str], teacher: Teacher) -> None:
    """Raise TeacherError unless the network is the one that made the features of one of these teachers of `base`."""
    mine = provenance_on(base, teacher)
    made_by = {name: base.teachers[name].provenance for name in names}
    if mine not in made_by.values():
        there = "; ".join(f"{name!r} by {format_provenance(by)}" for name, by in made_by.items()) or "nothing"
        found = format_provenance(mine)
        raise TeacherError(f"{base.folder}: expected the network that made its features ({there}), found {found}")


def transfer_features(base: ClipDataset, dataset: ClipDataset, name: str, *, teacher: Teacher | None = None) -> None:
    """Put the features of teacher `name` of `base` into `dataset`, which was made from it.

    A clip with another's audio has that clip's features, one that lost its audio none: the numbers that embedding anew
    would give. A clip without audio in either dataset keeps what `base` has of it (features from files). Audio that
    exists in `dataset` only (shifted, noisy) must be embedded, with `teacher`. Logits of a head that was fitted on
    labels are fitted again, on the labels and audio that are left: the old ones know too much.

    Args:
        base: holds the features.
        dataset: gets them; nothing happens where it has them, as they are in `base`.
        name: of the teacher.
        teacher: the network that made them; needed only for audio that is new.

    Raises:
        DatasetError: no such teacher, `dataset` has another one's features under its name or older ones, or there is
            new audio and no network to hear it.
        TeacherError: there is new audio, and the network is another than the one that made the features.
    """
    stored = base.features(name)
    if name in dataset.teachers:
        _check_transferred(base, dataset, name)
        return
    entry = base.teachers[name]
    source = clip_sources(base, dataset, entry.modality)
    if new := int((source == _NEW).sum()):
        if teacher is None:
            raise DatasetError(
                f"{dataset.folder}: {new} clips have {entry.modality} that teacher {name!r} has not embedded: give the "
                "teacher"
            )
        check_teacher(base, [name], teacher)
        embed(dataset, teacher, name, tokens=bool(entry.num_tokens), head_split=entry.head_split)
        return
    there = (source >= 0) & stored.valid[source]
    kept_logits = None if entry.fitted_head else stored.logits
    add_features(
        dataset,
        name,
        modality=entry.modality,
        provenance=entry.provenance,
        embedding=np.where(there[:, None], stored.embedding[source], np.nan),
        logits=None if kept_logits is None else np.where(there[:, None], kept_logits[source], np.nan),
        classes=() if entry.fitted_head else entry.classes,
        tokens=None if stored.tokens is None else stored.tokens[source] * there[:, None, None],
        head_split=entry.head_split,
    )


def _check_transferred(base: ClipDataset, dataset: ClipDataset, name: str) -> None:
    """Raise DatasetError where the features of `dataset` are not those of `base` as they are now."""
    old, new = dataset.teachers[name], base.teachers[name]
    again = "remove this folder, to make it anew"
    if old.provenance != new.provenance:
        raise DatasetError(
            f"{dataset.folder}: its teacher {name!r} is {format_provenance(old.provenance)}, that of {base.folder} is "
            f"{format_provenance(new.provenance)}: {again}"
        )
    source = clip_sources(base, dataset, new.modality)
    before, after = (
        np.where(stored.valid[rows, None], stored.embedding[rows], np.nan)
        for stored, rows in ((dataset.features(name), source >= 0), (base.features(name), source[source >= 0]))
    )
    # A network that heard the new audio heard the others again, in other batches: that moves last digits.
    same = before.shape == after.shape and np.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True)
    splits = [entry.head_split if entry.fitted_head else None for entry in (old, new)]
    if not same or old.num_tokens != new.num_tokens or splits[0] != splits[1]:
        raise DatasetError(f"{dataset.folder}: {base.folder} has other features of teacher {name!r} by now: {again}")


_ABSENT, _NEW = -1, -2


def _has_new(base: ClipDataset, dataset: ClipDataset, entry: TeacherEntry) -> bool:
    return bool((clip_sources(base, dataset, entry.modality) == _NEW).any())


def clip_sources(base: ClipDataset, dataset: ClipDataset, modality: str) -> np.ndarray:
    """The clip of `base` whose audio, or video, each clip of `dataset` has.

    Returns:
        int64 (N,) rows of `base`; a clip without the modality in either dataset is its own source, as nothing was taken
        from it.
        -1: a clip that had it in `base` and has none now. -2: audio that `base` does not have.

    Raises:
        DatasetError: the datasets hold different clips.
    """
    if not np.array_equal(base.columns["id"], dataset.columns["id"]):
        raise DatasetError(f"{dataset.folder}: its clips are not those of {base.folder}")
    kind = INPUTS[modality]
    before, after = (each.columns[kind.presence].astype(bool) for each in (base, dataset))
    place = [(each.columns[f"{kind.column}_shard"], each.columns[f"{kind.column}_offset"]) for each in (base, dataset)]
    (old_shard, old_offset), (shard, offset) = place
    at = {(int(old_shard[i]), int(old_offset[i])): i for i in np.flatnonzero(before)}
    found = np.where(before, _ABSENT, np.arange(len(dataset)))
    for i in np.flatnonzero(after):
        found[i] = at.get((int(shard[i]), int(offset[i])), _NEW)
    return found
