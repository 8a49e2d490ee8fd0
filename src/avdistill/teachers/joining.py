"""The features that the parts of a dataset have become those of the joined dataset."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import PART_CLIPS, staging_folder, write_part
from avdistill.dataset.mapped_features import MappedFeatures
from avdistill.dataset.schema import TeacherEntry
from avdistill.errors import ConfigError, DatasetError, TeacherError
from avdistill.fsio import error_message
from avdistill.preparation.records import read_positions
from avdistill.teachers.extraction import store_parts


def join_features(
    parts: Iterable[str | os.PathLike[str]],
    dataset: ClipDataset,
    names: Sequence[str] | None = None,
    *,
    head_split: str | None = None,
) -> list[str]:
    """Give a joined dataset the features of its parts, row by row; what is in memory is a part of the rows.

    A part none of whose clips has the teacher's modality need not have features. Logits of a teacher are kept where
    they are in the dataset's classes; otherwise a linear head is fitted anew on all clips.

    Args:
        parts: the folders that `dataset` was joined from, in any order.
        dataset: gets the features; those that it has already stay.
        names: of the features; None: all that some part has.
        head_split: whose labeled clips a head is fitted on; None: as in the parts.

    Returns:
        The names of the features that were joined.

    Raises:
        ConfigError: the parts' features of one name are of different teachers.
        TeacherError: no part has features of a name that was asked for.
        DatasetError: features are damaged, or cannot be written.
    """
    opened = [ClipDataset(part) for part in parts]
    wanted = sorted({name for part in opened for name in part.teachers}) if names is None else names
    joined = [name for name in wanted if name not in dataset.teachers]
    if joined:
        positions = np.concatenate([read_positions(part.folder)[: len(part)] for part in opened])
        order = np.argsort(positions)
        part_of = np.repeat(np.arange(len(opened)), [len(part) for part in opened])[order]
        clip_of = np.concatenate([np.arange(len(part)) for part in opened])[order]
        for name in joined:
            _join(opened, dataset, name, (part_of, clip_of), head_split)
        dataset.reopen_features()
        dataset.upload()
    return joined


def _join(
    parts: list[ClipDataset],
    dataset: ClipDataset,
    name: str,
    places: tuple[np.ndarray, np.ndarray],
    head_split: str | None,
) -> None:
    """Join the features of one name.

    Args:
        parts, dataset, name, head_split: see `join_features`.
        places: int64 (N,) of each clip of the dataset its part, and its row there.
    """
    entry = _common_entry(parts, name)
    with_logits = not entry.fitted_head and set(dataset.classes) <= set(entry.classes)
    kinds = ["embedding", *(["logits"] if with_logits else []), *(["tokens"] if entry.num_tokens else [])]
    stored = [part.map_features(name) if name in part.teachers else None for part in parts]
    staging = staging_folder(dataset.folder, name, {"joined": dataset.checksum, "provenance": entry.provenance})
    firsts = range(0, len(dataset), PART_CLIPS)
    try:
        for first in firsts:
            here = (places[0][first : first + PART_CLIPS], places[1][first : first + PART_CLIPS])
            write_part(staging, first, len(here[0]), _gather(stored, here, kinds))
    except OSError as error:
        raise DatasetError(f"{dataset.folder}: features cannot be written: {error_message(error)}") from error
    entry = replace(entry, classes=entry.classes if with_logits else (), fitted_head=False, head={})
    store_parts(dataset, staging, firsts, entry, head_split or entry.head_split)


def _common_entry(parts: list[ClipDataset], name: str) -> TeacherEntry:
    """What the features of the parts are. Raises ConfigError where they are of different teachers."""
    having = [part for part in parts if name in part.teachers]
    if not having:
        raise TeacherError(f"features {name!r}: expected clips with the teacher's modality, found none in any part")
    first = having[0].teachers[name]
    for part in having[1:]:
        found = part.teachers[name]
        for key in ("modality", "embedding_dim", "num_tokens", "provenance"):
            if getattr(found, key) != getattr(first, key):
                raise ConfigError(
                    f"{part.folder}: features {name!r}: expected those of the teacher of {having[0].folder}, "
                    f"found another {key}"
                )
    # A part whose few classes are all among the teacher's has its logits, which the whole dataset may have no use for.
    common = {part.teachers[name].classes for part in having}
    return first if len(common) == 1 else replace(first, classes=())


def _gather(
    stored: Sequence[MappedFeatures | None], places: tuple[np.ndarray, np.ndarray], kinds: Sequence[str]
) -> dict[str, np.ndarray]:
    """Rows of the parts' features by kind (`write_part`); empty where no clip has any.

    Args:
        stored: of each part; None where it has none.
        places: int64 (n,) of each clip its part, and its row there.
        kinds: of the arrays, without `valid`.
    """
    part_of, clip_of = places
    valid = np.zeros(len(part_of), bool)
    arrays: dict[str, np.ndarray] = {}
    for number in np.unique(part_of):
        features, here = stored[number], part_of == number
        if features is None:
            continue
        valid[here] = features.valid[clip_of[here]]
        for kind in kinds:
            rows = features.rows(kind, clip_of[here])
            arrays.setdefault(kind, np.zeros((len(part_of), *rows.shape[1:]), np.float32))[here] = rows
    return {"valid": valid, **arrays} if valid.any() else {}
