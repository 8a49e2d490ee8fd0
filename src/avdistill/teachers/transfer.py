"""Transfer of a teacher's features from a dataset to a corrupted copy of it (`corruption/apply.py`)."""

from collections.abc import Collection

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.stored_features import format_provenance
from avdistill.errors import DatasetError, TeacherError
from avdistill.inputs import INPUTS
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import add_features, embed, provenance_on

_ABSENT, _NEW = -1, -2


def transfer_teachers(base: ClipDataset, dataset: ClipDataset, *, teacher: Teacher | None = None) -> list[str]:
    """Transfer the features of all teachers of `base` to `dataset` (`transfer_features`).

    Returns:
        Names of those left out: they need embeddings of new audio, and `teacher` is another network.
    """
    left_out = []
    if teacher is not None:
        own = provenance_on(base, teacher)
        left_out = sorted(
            name
            for name, entry in base.teachers.items()
            if entry.provenance != own
            and name not in dataset.teachers
            and (clip_sources(base, dataset, entry.modality) == _NEW).any()
        )
    for name in base.teachers:
        if name not in left_out:
            transfer_features(base, dataset, name, teacher=teacher)
    return left_out


def check_teacher(base: ClipDataset, names: Collection[str], teacher: Teacher) -> None:
    """Raise TeacherError unless the network is the one that computed the features of one of `names` in `base`."""
    provenance = provenance_on(base, teacher)
    expected = {name: base.teachers[name].provenance for name in names}
    if provenance not in expected.values():
        made_by = "; ".join(f"{name!r} by {format_provenance(by)}" for name, by in expected.items()) or "none"
        found = format_provenance(provenance)
        raise TeacherError(f"{base.folder}: expected the network of its features ({made_by}), found {found}")


def transfer_features(base: ClipDataset, dataset: ClipDataset, name: str, *, teacher: Teacher | None = None) -> None:
    """Transfer the features of teacher `name` from `base` to `dataset`, a corrupted copy of it.

    The result equals embedding anew: a clip with another clip's audio gets that clip's features, one that lost its
    audio none. A clip without audio in either dataset keeps its features (from files). New audio (shifted, noisy) is
    embedded with `teacher`. A linear head is fitted again, on the labels and audio that are left: the old one knows
    more.

    Args:
        base: holds the features.
        dataset: gets them; unchanged where it has them, equal to those of `base`.
        name: of the teacher.
        teacher: the network of the features; needed only for new audio.

    Raises:
        DatasetError: unknown teacher; `dataset` has other features under this name; new audio without `teacher`.
        TeacherError: new audio, and `teacher` is not the network of the features.
    """
    if name in dataset.teachers:
        _check_transferred(base, dataset, name)
        return
    entry = base.teachers[name]
    source = clip_sources(base, dataset, entry.modality)
    if new := int((source == _NEW).sum()):
        if teacher is None:
            raise DatasetError(
                f"{dataset.folder}: {new} clips have new {entry.modality}: expected the network of teacher {name!r} to "
                "embed them, found none"
            )
        check_teacher(base, [name], teacher)
        embed(dataset, teacher, name, tokens=bool(entry.num_tokens), head_split=entry.head_split)
        return
    stored = base.features(name)
    valid = (source >= 0) & stored.valid[source]
    kept_logits = None if entry.fitted_head else stored.logits
    add_features(
        dataset,
        name,
        modality=entry.modality,
        provenance=entry.provenance,
        embedding=np.where(valid[:, None], stored.embedding[source], np.nan),
        logits=None if kept_logits is None else np.where(valid[:, None], kept_logits[source], np.nan),
        classes=() if entry.fitted_head else entry.classes,
        tokens=None if stored.tokens is None else stored.tokens[source] * valid[:, None, None],
        head_split=entry.head_split,
    )


def _check_transferred(base: ClipDataset, dataset: ClipDataset, name: str) -> None:
    """Raise DatasetError where the features of `dataset` are not those of `base` as they are now."""
    old, new = dataset.teachers[name], base.teachers[name]
    again = "remove this folder to create it anew"
    if old.provenance != new.provenance:
        raise DatasetError(
            f"{dataset.folder}: its teacher {name!r} is {format_provenance(old.provenance)}, that of {base.folder} is "
            f"{format_provenance(new.provenance)}: {again}"
        )
    source = clip_sources(base, dataset, new.modality)
    before, after = (
        np.where(stored.valid[rows, None], stored.embedding[rows], np.nan)
        for stored, rows in (
            (dataset.features(name, tokens=False), source >= 0),
            (base.features(name, tokens=False), source[source >= 0]),
        )
    )
    # Embedding new audio also embeds the rest again, in other batches: last digits may differ.
    same = before.shape == after.shape and np.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True)
    # A head of its own means nothing: the base's logits may lack a class that the copy has.
    other_head = new.fitted_head and (not old.fitted_head or old.head_split != new.head_split)
    if not same or old.num_tokens != new.num_tokens or other_head:
        raise DatasetError(f"{dataset.folder}: {base.folder} has other features of teacher {name!r} now: {again}")


def clip_sources(base: ClipDataset, dataset: ClipDataset, modality: str) -> np.ndarray:
    """The clip of `base` whose audio, or video, each clip of `dataset` has.

    Returns:
        int64 (N,) rows of `base`: a clip's own row where neither dataset has the modality; -1 where `base` has it and
        `dataset` does not; -2 where `dataset` has new audio or video.

    Raises:
        DatasetError: the datasets have different clips.
    """
    if not np.array_equal(base.columns["id"], dataset.columns["id"]):
        raise DatasetError(f"{dataset.folder}: expected the clips of {base.folder}, found others")
    kind = INPUTS[modality]
    before, after = (each.columns[kind.presence].astype(bool) for each in (base, dataset))
    place = [(each.columns[f"{kind.column}_shard"], each.columns[f"{kind.column}_offset"]) for each in (base, dataset)]
    (old_shard, old_offset), (shard, offset) = place
    row_at = {(int(old_shard[i]), int(old_offset[i])): i for i in np.flatnonzero(before)}
    sources = np.where(before, _ABSENT, np.arange(len(dataset)))
    for i in np.flatnonzero(after):
        sources[i] = row_at.get((int(shard[i]), int(offset[i])), _NEW)
    return sources
