"""The verb that adds a teacher's features to a dataset: embed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from avdistill.commands.console import Printed, output, progress_bar
from avdistill.commands.launching import LaunchedInParts
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import PART_CLIPS
from avdistill.dataset.schema import TeacherEntry
from avdistill.dataset.splits import clips_of_splits
from avdistill.dataset.stored_features import format_provenance
from avdistill.errors import ConfigError
from avdistill.preparation.parts import parse_part
from avdistill.teachers.extraction import Unfinished
from avdistill.teachers.extraction import embed as embed_dataset
from avdistill.teachers.launch import Encoder, embed_in_parts
from avdistill.teachers.precomputed import PRECOMPUTED, embed_precomputed
from avdistill.teachers.registry import load_teacher


@dataclass(frozen=True)
class _Embed(LaunchedInParts, Printed):
    """Add a frozen teacher's embedding and logits of every clip to the dataset."""

    dataset: tyro.conf.Positional[Path]
    """The dataset's folder."""
    teacher: str
    """A teacher's name (`avdistill teacher list`), the run folder or hf:// address of a trained one, or
    precomputed:FILE.npz."""
    weights: Path | None = None
    """The file of a named teacher's weights, where it is not found; `random` gives random weights, for trials."""
    name: str | None = None
    """The name of the features in the dataset; the default is the teacher's modality."""
    modality: Literal["audio", "video"] | None = None
    """The modality that `precomputed:` embeddings were computed from, audio by default; not for other teachers."""
    batch_size: int = 32
    """Windows per batch."""
    workers: int = 2
    """Threads that read ahead; with a GPU as many as there are cores to spare."""
    windows: int | None = None
    """Evenly spaced windows per clip; by default windows slide over the whole clip, which takes long for networks of
    images."""
    tokens: bool = False
    """Store the teacher's tokens as well, which the methods at and nst need."""
    head_split: str = "train"
    """The split whose labeled clips a linear head is fitted on, where the teacher has no logits for the dataset's
    classes; "+" joins several, as in train+teacher."""
    part: str = "1/1"
    """The share of this call, as 2/3 for the second of three: every call computes its share, on any machine that has
    the dataset's folder, and the one that finds all there stores the features."""
    part_clips: int = PART_CLIPS
    """Clips that are computed and stored at a time: what a kill costs at most."""


def embed(arguments: list[str]) -> None:
    """`avdistill embed DATASET --teacher NAME [--weights PATH]`, or `--teacher RUN`."""
    a = tyro.cli(_Embed, args=arguments, prog="avdistill embed")
    dataset = ClipDataset(a.dataset)
    if a.head_split != _Embed.head_split:
        clips_of_splits(dataset, a.head_split)  # a missing one is reported now, not after everything is embedded
    if a.teacher.startswith(PRECOMPUTED):
        if a.tokens:
            raise ConfigError(f"--tokens: {a.teacher} holds embeddings, no tokens")
        files = Path(a.teacher.removeprefix(PRECOMPUTED))
        modality = a.modality or "audio"
        entry = embed_precomputed(dataset, files, a.name or modality, modality, head_split=a.head_split)
    elif a.ray is not None or a.slurm is not None:
        entry = _embed_in_parts(a, dataset)
    elif a.modality is not None:
        raise ConfigError(f"--modality: expected with {PRECOMPUTED}<folder or .npz> only, found {a.teacher}")
    else:
        teacher = load_teacher(a.teacher, weights=a.weights)
        with progress_bar("embed") as update:
            found = embed_dataset(
                dataset,
                teacher,
                a.name or teacher.view.modality,
                batch_size=a.batch_size,
                workers=a.workers,
                windows=a.windows,
                tokens=a.tokens,
                head_split=a.head_split,
                part=parse_part(a.part),
                part_clips=a.part_clips,
                on_progress=update,
            )
        if isinstance(found, Unfinished):
            line = (
                f"features {found.name!r}: {found.finished} of {found.clips} clips are there, other shares are missing"
            )
            output(vars(found), [line], a.json)
            return
        entry = found
    report = {**vars(entry), "dataset": dataset.place, "clips_in_dataset": len(dataset)}
    made_by = format_provenance(entry.provenance)
    line = f"teacher {entry.name!r}: {entry.clips} of {len(dataset)} clips, {entry.embedding_dim}-d, from {made_by}"
    output(report, [line], a.json)


def _embed_in_parts(a: _Embed, dataset: ClipDataset) -> TeacherEntry:
    """By the machines of a cluster."""
    a.check_parts()
    if a.part != _Embed.part or a.part_clips != _Embed.part_clips:
        raise ConfigError("--part, --part-clips: expected without --ray and --slurm, which make the parts by --parts")
    name = a.name or load_teacher(a.teacher, weights=a.weights).view.modality
    encoder = Encoder(a.teacher, name, a.weights, None, a.batch_size, a.windows, a.tokens, a.head_split)
    with a.executor(a.dataset) as executor, progress_bar("embed") as update:
        assert executor is not None
        return embed_in_parts(dataset, encoder, executor=executor, parts=a.parts, on_progress=update)
