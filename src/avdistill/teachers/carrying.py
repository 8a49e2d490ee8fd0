"""A teacher's features, brought from a store to the same store under a condition (`data/conditions.py`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from avdistill.data.store import Store, StoreError
from avdistill.teachers.base import Teacher, TeacherError, embed, source_on
from avdistill.teachers.head import add_features, maker


def carry_teachers(base: Store, store: Store, *, teacher: Teacher | None = None) -> list[str]:
    """Put the features of all teachers of `base` into `store`, as `carry_features` does for one.

    Returns:
        Names of those left out: they would have to hear new sound, and `teacher` is another.
    """
    unheard = set()
    if teacher is not None and (sound_sources(base, store) == _NEW).any():
        mine = source_on(base, teacher)
        unheard = {name for name, entry in base.teachers.items() if entry.modality == "sound" and maker(entry) != mine}
    left_out = sorted(unheard - store.teachers.keys())
    for name in base.teachers:
        if name not in left_out:
            carry_features(base, store, name, teacher=teacher)
    return left_out


def check_teacher(base: Store, names: Collection[str], teacher: Teacher) -> None:
    """Raise TeacherError unless the network is the one that made the features of one of these teachers of `base`.

    It must be one that hears: only sounds are ever embedded again.
    """
    if teacher.view.modality != "sound":
        raise TeacherError(
            f"{teacher.source}: expected a teacher that hears, for new sound, found one of {teacher.view.modality}"
        )
    mine = source_on(base, teacher)
    made_by = {name: maker(base.teachers[name]) for name in names}
    if mine not in made_by.values():
        there = "; ".join(f"{name!r} by {source}" for name, source in made_by.items()) or "nothing"
        raise TeacherError(f"{base.folder}: expected the network that made its features ({there}), found {mine}")


def carry_features(base: Store, store: Store, name: str, *, teacher: Teacher | None = None) -> None:
    """Put the features of teacher `name` of `base` into `store`, which was made from it.

    A clip with another's sound has that clip's features, one that lost its sound none: the numbers that embedding anew
    would give. A clip without sound in either store keeps what `base` has of it (features from files). Sound that
    exists in `store` only (shifted, drowned) must be embedded, with `teacher`. Logits of a head that was fitted on
    labels are fitted again, on the labels and sounds that are left: the old ones know too much.

    Args:
        base: holds the features.
        store: gets them; nothing happens where it has them, as they are in `base`.
        name: of the teacher.
        teacher: the network that made them; needed only for sound that is new.

    Raises:
        StoreError: no such teacher, `store` has another one's features under its name or older ones, or there is new
            sound and no network to hear it.
        TeacherError: there is new sound, and the network is another than the one that made the features.
    """
    embedding, logits, present = base.teacher_features(name)
    if name in store.teachers:
        _check_carried(base, store, name)
        return
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
            check_teacher(base, [name], teacher)
            embed(store, teacher, name, maps=bool(entry.positions), head_split=entry.head_split)
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
        source=maker(entry) if entry.fitted_head else entry.source,
        embedding=embedding,
        logits=None if entry.fitted_head else logits,
        classes=() if entry.fitted_head else entry.classes,
        tokens=tokens,
        head_split=entry.head_split,
    )


def _check_carried(base: Store, store: Store, name: str) -> None:
    """Raise StoreError where the features of `store` are not those of `base` as they are now."""
    old, new = store.teachers[name], base.teachers[name]
    again = "remove this folder, to make it anew"
    if maker(old) != maker(new):
        raise StoreError(
            f"{store.folder}: its teacher {name!r} is {maker(old)}, that of {base.folder} is {maker(new)}: {again}"
        )
    source = sound_sources(base, store) if new.modality == "sound" else np.arange(len(base))
    before, after = (
        np.where(present[rows, None], embedding[rows], np.nan)
        for (embedding, _, present), rows in (
            (store.teacher_features(name), source >= 0),
            (base.teacher_features(name), source[source >= 0]),
        )
    )
    # A network that heard the new sounds heard the others again, in other batches: that moves last digits.
    same = before.shape == after.shape and np.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True)
    splits = [entry.head_split if entry.fitted_head else None for entry in (old, new)]
    if not same or old.positions != new.positions or splits[0] != splits[1]:
        raise StoreError(f"{store.folder}: {base.folder} has other features of teacher {name!r} by now: {again}")


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
