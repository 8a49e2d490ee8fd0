"""Extraction: the features of a frozen teacher are computed and written into a dataset."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avdistill import distributed
from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.features import (
    FOLDER,
    FORMAT_VERSION,
    PART_CLIPS,
    FeaturesDescription,
    Part,
    commit_features,
    finished_parts,
    part_file,
    staging_folder,
    with_array,
    write_part,
)
from avdistill.dataset.mapped_features import map_features
from avdistill.dataset.remote import SharedParts
from avdistill.dataset.splits import has_modality
from avdistill.dataset.stored_features import Provenance, format_provenance
from avdistill.errors import ConfigError, DatasetError, NoTokensError, TeacherError
from avdistill.fsio import error_message, load_array, open_lock
from avdistill.inference.runner import check_rates, in_clips, run_network
from avdistill.progress import OnProgress
from avdistill.teachers.base import Teacher
from avdistill.teachers.linear_head import fit_head, linear_head
from avdistill.types import Features, Network


class Resampled(Network):
    """An audio network on audio of another rate: each window is resampled with scipy's polyphase filter."""

    modality = "audio"

    def __init__(self, network: Network, from_hz: int, to_hz: int) -> None:
        """Args: network: takes audio at `to_hz`; from_hz: sample rate of the inputs."""
        super().__init__()
        self.network, self.embedding_dim, self.from_hz, self.to_hz = network, network.embedding_dim, from_hz, to_hz

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S) mono at `from_hz`; no gradient flows to it."""
        from scipy.signal import resample_poly

        shared = math.gcd(self.from_hz, self.to_hz)
        audio = resample_poly(inputs.detach().cpu().numpy(), self.to_hz // shared, self.from_hz // shared, axis=1)
        # Never a sample more than the window's duration: it would start another patch of YAMNet.
        length = max(1, inputs.shape[1] * self.to_hz // self.from_hz)
        return self.network(torch.from_numpy(audio[:, :length]).to(inputs))


@dataclass(frozen=True)
class Unfinished:
    """Features whose parts are not all there yet.

    Attributes:
        name: of the features.
        clips: of the dataset, in all parts.
        finished: of them.
    """

    name: str
    clips: int
    finished: int


def embed(
    dataset: ClipDataset,
    teacher: Teacher,
    name: str,
    *,
    batch_size: int = 32,
    workers: int = 2,
    windows: int | None = None,
    tokens: bool = False,
    head_split: str | None = "train",
    part: tuple[int, int] = (1, 1),
    part_clips: int = PART_CLIPS,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> TeacherEntry | Unfinished:
    """Compute a teacher's features of every clip, means over the clip's windows, and store them under `name`.

    Clips without the teacher's modality, and digitally silent clips for an audio teacher, get no features. The clips
    are done part by part; the same call after a kill computes only the parts that are not there, and what is in memory
    is one part. Under torchrun the processes share the clips of a part and process 0 writes.

    Args:
        dataset: gets the features.
        teacher: see `load_teacher`.
        name: of the features.
        batch_size: windows at a time.
        workers: threads that read ahead.
        windows: evenly spaced windows per clip; None slides over the whole clip, which takes long for networks of
            images.
        tokens: store the tokens too, which the methods AT and NST need.
        head_split: whose labeled clips a linear head is fitted on (`linear_head`), where the teacher's classes do not
            include the dataset's; None: no head, as the dataset is a part whose features are joined.
        part: (i, n) computes the i-th of n shares of the parts, for as many calls at once, on any machine that has
            the dataset's folder or opened it at the same URL; the call that finds all parts there stores the features.
        part_clips: clips in a part.
        device: "auto", "cpu", "cuda", ...
        on_progress: called after each batch, counting clips.

    Returns:
        The entry of the features; Unfinished where parts of other shares are missing.

    Raises:
        TeacherError: the dataset's frame or sample rate differs from the teacher's, no clip has its modality, or
            `tokens` of a teacher that has none.
        ConfigError: `windows` or `part_clips` below 1, or a share that is none.
        DatasetError: the folder cannot be written.
    """
    share, shares = part
    if not 1 <= share <= shares:
        raise ConfigError(f"part: expected i/n with i from 1 to n, found {share}/{shares}")
    if part_clips < 1:
        raise ConfigError(f"part_clips: expected at least 1, found {part_clips}")
    network = at_dataset_rates(dataset, teacher, name)
    clips = _clips_for(dataset, teacher, name)
    provenance = provenance_on(dataset, teacher) | ({} if windows is None else {"windows": windows})
    job = {"dataset": dataset.checksum, "provenance": provenance, "batch_size": batch_size, "tokens": tokens}
    staging = staging_folder(dataset.folder, name, job | {"part_clips": part_clips})
    firsts = list(range(0, len(dataset), part_clips))
    own = firsts[len(firsts) * (share - 1) // shares : len(firsts) * share // shares]
    others = SharedParts(None if shares == 1 else dataset.url, dataset.folder, staging)
    with distributed.init_distributed(device) as own_device:
        if distributed.rank() == 0:
            others.fetch(own)
        distributed.barrier()
        finished = finished_parts(staging)
        distributed.barrier()  # no process writes before every one has seen what is missing
        network = network.to(own_device)
        for first in own:
            if first not in finished:
                rows = np.arange(first, min(first + part_clips, len(dataset)))
                update = None if on_progress is None else in_clips(on_progress, first, len(rows), len(dataset))
                arrays = _part(network, dataset, rows, clips, teacher, name, windows=windows, batch_size=batch_size,
                               workers=workers, with_tokens=tokens, on_progress=update)  # fmt: skip
                if distributed.rank() == 0:
                    _write(dataset, staging, first, len(rows), arrays)
                    others.upload()
        if distributed.rank() == 0:
            others.upload()
            others.fetch(firsts, all_or_none=True)
            if store_parts(dataset, staging, firsts, _entry(dataset, teacher, name, provenance), head_split):
                dataset.upload()
                others.delete()
        distributed.barrier()
    there = finished_parts(staging)
    dataset.reopen_features()
    if there or name not in dataset.teachers:
        return Unfinished(name, len(dataset), sum(each.clips for each in there.values()))
    return dataset.teachers[name]


def _entry(dataset: ClipDataset, teacher: Teacher, name: str, provenance: Provenance) -> TeacherEntry:
    """What is known of the features before they are there."""
    return TeacherEntry(
        name=name,
        modality=teacher.view.modality,
        embedding_dim=teacher.network.embedding_dim,
        num_tokens=0,
        classes=teacher.classes if _has_classes(dataset, teacher) else (),
        provenance=provenance,
        clips=0,
    )


def _part(
    network: Network,
    dataset: ClipDataset,
    rows: np.ndarray,
    clips: np.ndarray,
    teacher: Teacher,
    name: str,
    **options: Any,
) -> dict[str, np.ndarray]:
    """The arrays of a part (`write_part`): of those of its `rows` that are among `clips`; empty without any."""
    wanted = np.intersect1d(rows, clips)
    if not has_modality(dataset, wanted, teacher.view).any():
        return {}
    try:
        outputs = run_network(network, dataset, wanted, teacher.view, multi_label=teacher.multi_label, **options)
    except NoTokensError as error:
        raise TeacherError(
            f"teacher {name!r}: expected a network with a feature map for --tokens, found none in "
            f"{format_provenance(teacher.provenance)}"
        ) from error
    present = outputs.present.numpy()
    valid = np.zeros(len(rows), bool)
    valid[np.searchsorted(rows, wanted[present])] = True
    logits = outputs.logits if _has_classes(dataset, teacher) else None
    given = {"embedding": outputs.embedding, "logits": logits, "tokens": outputs.tokens}
    arrays: dict[str, np.ndarray] = {"valid": valid}
    for kind, values in given.items():
        if values is not None:
            arrays[kind] = np.zeros((len(rows), *values.shape[1:]), np.float32)
            arrays[kind][valid] = values.numpy()[present]
    return arrays


def _write(dataset: ClipDataset, staging: Path, first: int, clips: int, arrays: dict[str, np.ndarray]) -> None:
    try:
        write_part(staging, first, clips, arrays)
    except OSError as error:
        raise DatasetError(f"{dataset.folder}: features cannot be written: {error_message(error)}") from error


def store_parts(
    dataset: ClipDataset, staging: Path, firsts: Sequence[int], entry: TeacherEntry, head_split: str | None
) -> bool:
    """Make the finished parts the features, with the logits of a head where that is needed; False if one is missing.

    Several calls may find the last part at the same time: one of them stores, the others find that done.

    Args:
        dataset: gets the features.
        staging: where the parts are (`staging_folder`).
        firsts: the first clip of each part.
        entry: of the features; its tokens and clips are counted here.
        head_split: see `embed`; a head is fitted where the entry has no classes.

    Raises:
        DatasetError: the folder cannot be written.
    """
    try:
        with open_lock(dataset.folder, wait=True):
            finished = finished_parts(staging)
            if set(firsts) - set(finished):
                return False
            parts = tuple(finished[first] for first in firsts)
            made = _description(dataset, entry, staging, parts)
            if not entry.classes and head_split is not None:
                made = _with_head(dataset, staging, made, head_split)
            commit_features(dataset.folder, staging, made)
            return True
    except OSError as error:
        raise DatasetError(f"{dataset.folder}: features cannot be written: {error_message(error)}") from error


def _has_classes(dataset: ClipDataset, teacher: Teacher) -> bool:
    return set(dataset.classes) <= set(teacher.classes)


def _description(
    dataset: ClipDataset, entry: TeacherEntry, staging: Path, parts: tuple[Part, ...]
) -> FeaturesDescription:
    """Of finished parts, without the logits of a head."""
    folder = dataset.folder / FOLDER / entry.name
    some = next(part for part in parts if part.files)
    tokens = load_array(part_file(folder, staging, some, "tokens"), mapped=True) if "tokens" in some.files else None
    entry = replace(entry, num_tokens=0 if tokens is None else tokens.shape[1])
    made = FeaturesDescription(FORMAT_VERSION, dataset.checksum, len(dataset), entry, parts)
    valid = map_features(dataset.folder, made, staging).valid
    return replace(made, entry=replace(entry, clips=int(valid.sum())))


def _with_head(dataset: ClipDataset, staging: Path, made: FeaturesDescription, split: str) -> FeaturesDescription:
    """With the logits of a linear head, part by part; without logits where none can be fitted."""
    stored = map_features(dataset.folder, made, staging)
    head = linear_head(dataset, stored.valid, lambda rows: stored.rows("embedding", rows), split=split)
    entry = replace(made.entry, fitted_head=True, head_split=split)
    if head is None:
        return replace(made, entry=entry)
    parts = []
    for part in made.parts:
        if part.files:
            rows = part.first + np.flatnonzero(stored.valid[part.first : part.first + part.clips])
            logits = np.zeros((part.clips, len(dataset.classes)), np.float32)
            logits[rows - part.first] = head.logits(stored.rows("embedding", rows), rows)
            part = with_array(staging, part, "logits", logits)
        parts.append(part)
    return replace(made, entry=replace(entry, classes=dataset.classes, head=head.record), parts=tuple(parts))


def has_input(dataset: ClipDataset, teacher: Teacher) -> bool:
    """Whether a clip holds the teacher's modality and is not silent for an audio teacher."""
    return bool(has_modality(dataset, _audible(dataset, teacher), teacher.view).any())


def _audible(dataset: ClipDataset, teacher: Teacher) -> np.ndarray:
    clips = np.arange(len(dataset))
    return clips if teacher.view.silence is None else clips[~dataset.columns[teacher.view.silence].astype(bool)]


def _clips_for(dataset: ClipDataset, teacher: Teacher, name: str) -> np.ndarray:
    """Rows of the clips without those that are silent for an audio teacher. Raises TeacherError where none is left."""
    clips = _audible(dataset, teacher)
    if not has_input(dataset, teacher):
        silent = "" if teacher.view.silence is None else f" that is not {teacher.view.silence}"
        raise TeacherError(
            f"teacher {name!r}: expected clips with {teacher.view.modality}{silent}, found none among the "
            f"{len(dataset)} of {dataset.folder}"
        )
    return clips


def at_dataset_rates(dataset: ClipDataset, teacher: Teacher, name: str) -> Network:
    """The network for inputs at the dataset's frame and sample rate."""
    fps = dataset.fps if teacher.any_fps else teacher.fps
    rate, network = teacher.sample_rate_hz, teacher.network
    if _is_resampled(dataset, teacher):
        network = Resampled(network, dataset.sample_rate_hz, rate)
        rate = dataset.sample_rate_hz
    check_rates(dataset, teacher.view, fps, rate, f"teacher {name!r}")
    return network


def provenance_on(dataset: ClipDataset, teacher: Teacher) -> Provenance:
    """The provenance that `embed` records for the teacher's features of this dataset."""
    resampled = {"resampled_from_hz": dataset.sample_rate_hz} if _is_resampled(dataset, teacher) else {}
    return teacher.provenance | resampled


def _is_resampled(dataset: ClipDataset, teacher: Teacher) -> bool:
    return teacher.any_rate and teacher.sample_rate_hz != dataset.sample_rate_hz


def add_features(
    dataset: ClipDataset,
    name: str,
    *,
    modality: Literal["audio", "video"],
    provenance: Provenance,
    embedding: np.ndarray,
    logits: np.ndarray | None,
    classes: tuple[str, ...],
    tokens: np.ndarray | None = None,
    head_split: str = "train",
) -> TeacherEntry:
    """Store a teacher's features; where its classes do not include the dataset's, with the logits of a linear head.

    Args:
        dataset: gets the features; `dataset.json` records how the logits were made.
        name, modality, provenance, embedding, logits, classes, tokens: see `ClipDataset.add_features`.
        head_split: whose labeled clips a head is fitted on.
    """
    head: dict[str, int | float] = {}
    fitted = not set(dataset.classes) <= set(classes)
    if fitted:
        classes = dataset.classes
        logits, head = fit_head(dataset, embedding, split=head_split)
    return dataset.add_features(
        name,
        modality=modality,
        provenance=provenance,
        embedding=embedding,
        logits=logits,
        classes=classes,
        tokens=tokens,
        fitted_head=fitted,
        head_split=head_split if fitted else "train",
        head=head,
    )
