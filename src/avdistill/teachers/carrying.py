"""A teacher's features, brought from a store to the same store under a condition (`data/conditions.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avdistill.data.store import Store, StoreError
from avdistill.teachers.base import Teacher, embed
from avdistill.teachers.head import add_features


def carry_features(base: Store, store: Store, name: str, *, teacher: Teacher | None = None) -> None:
    """Put the features of teacher `name` of `base` into `store`, which was made from it.

    A clip with another's sound has that clip's features, one that lost its sound none: the numbers that embedding anew
    would give. A clip without sound in either store keeps what `base` has of it (features from files). Sound that
    exists in `store` only (shifted, drowned) must be embedded, with `teacher`. Logits of a head that was fitted on
    labels are fitted again, on the labels and sounds that are left: the old ones know too much.

    Args:
        base: holds the features.
        store: gets them; nothing happens where it has a teacher of this name.
        name: of the teacher.
        teacher: the network that made them; needed only for sound that is new.

    Raises:
        StoreError: no such teacher, or there is new sound and no network to hear it.
    """
    if name in store.teachers:
        return
    embedding, logits, present = base.teacher_features(name)
    entry, tokens = base.teachers[name], base.teacher_tokens(name)
    source = np.arange(len(base))
    if entry.modality == "sound":
        source = sound_sources(base, store)
        if (source == _NEW).any():
            if teacher is None:
                raise StoreError(
                    f"{store.folder}: {int((source == _NEW).sum())} clips have sound that teacher {name!r} has not "
                    f"heard: it must be given, to embed them"
                )
            embed(store, teacher, name, maps=bool(entry.positions))
            return
    there = (source >= 0) & present[source]
    embedding = np.where(there[:, None], embedding[source], np.nan)
    if logits is not None:
        logits = np.where(there[:, None], logits[source], np.nan)
    if tokens is not None:
        tokens = tokens[source] * there[:, None, None]
    add_features(
        store,
        name,
        modality=entry.modality,
        source=entry.source if not entry.fitted_head else entry.source.split("; logits of")[0],
        embedding=embedding,
        logits=None if entry.fitted_head else logits,
        classes=() if entry.fitted_head else entry.classes,
        tokens=tokens,
    )


_SILENT, _NEW = -1, -2


def sound_sources(base: Store, store: Store) -> np.ndarray:
    """The clip of `base` whose sound each clip of `store` has.

    Returns:
        int64 (N,) rows of `base`; a clip without sound in either store is its own source, as nothing was taken from it.
        -1: a clip that had sound in `base` and has none now. -2: a sound that `base` does not have.

    Raises:
        StoreError: the stores hold different clips.
    """
    if not np.array_equal(base.columns["id"], store.columns["id"]):
        raise StoreError(f"{store.folder}: its clips are not those of {Path(base.folder)}")
    before, after = base.columns, store.columns
    at = {
        (int(before["sound_shard"][i]), int(before["sound_offset"][i])): i
        for i in np.flatnonzero(before["has_sound"].astype(bool))
    }
    found = np.where(before["has_sound"].astype(bool), _SILENT, np.arange(len(store)))
    for i in np.flatnonzero(after["has_sound"].astype(bool)):
        found[i] = at.get((int(after["sound_shard"][i]), int(after["sound_offset"][i])), _NEW)
    return found
