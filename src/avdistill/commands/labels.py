"""Verbs about labels: which clips to label next, and labels merged into a dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from avdistill.analysis.suggest import suggest as choose_clips
from avdistill.analysis.suggest import write_suggestions
from avdistill.commands.console import Printed, is_first_process, output, progress_bar, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.relabel import read_labels
from avdistill.dataset.relabel import relabel as relabel_dataset
from avdistill.errors import ConfigError
from avdistill.fsio import own_folder
from avdistill.teachers.transfer import transfer_teachers


@dataclass(frozen=True)
class _Suggest(Printed):
    """Choose clips to label next: typical ones of the parts of the embedding space that no label covers."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset; the labels that it has count as covered."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 50
    """The number of clips to suggest."""
    features: str | None = None
    """Name of the features whose space is covered; the default is the only ones of the dataset."""
    run: Path | None = None
    """Run folder of a student, whose embedding is covered instead; clips on which it and its teacher disagree count
    more."""
    split: str = "train"
    """The split whose clips are suggested; several are joined by +."""
    seed: int = 0
    """Seed of the clustering."""
    out: Path | None = None
    """CSV file for the list; the default is DATASET-suggestions.csv."""


def suggest(arguments: list[str]) -> None:
    """`avdistill suggest DATASET`."""
    a = tyro.cli(_Suggest, args=arguments, prog="avdistill suggest")
    if a.count < 1:
        raise ConfigError(f"--count: expected at least 1, found {a.count}")
    if a.run is not None and a.features is not None:
        raise ConfigError("--features: expected without --run, whose student embeds the clips itself")
    dataset = ClipDataset(a.dataset)
    with progress_bar("embed") as update:
        rows = choose_clips(
            dataset, count=a.count, features=a.features, run=a.run, split=a.split, seed=a.seed, on_progress=update
        )
    folder = dataset.folder.resolve()
    out = a.out or own_folder(folder.parent, f"{folder.name}-suggestions.csv")
    if is_first_process():
        write_suggestions(out, rows)
    say(f"list: {out}; write the labels into its column label")
    lines = [f"{len(rows)} of the {a.count} clips asked for"] if len(rows) < a.count else []
    lines += [f"{rank:>4}  {row['id']}" for rank, row in enumerate(rows, 1)]
    output({"dataset": str(dataset.folder), "suggested": rows, "out": str(out)}, lines, a.json)


@dataclass(frozen=True)
class _Relabel(Printed):
    """Make a copy of a dataset with labels of a CSV file; nothing is decoded or embedded again."""

    dataset: tyro.conf.Positional[Path]
    """The dataset's folder; it is not changed."""
    labels: tyro.conf.Positional[Path]
    """CSV file with the columns label and id, or label and path (all clips of a file), such as the filled list of
    `avdistill suggest`. Several labels are joined by |; rows without a label change nothing."""
    out: Path
    """The folder of the new dataset."""


def relabel(arguments: list[str]) -> None:
    """`avdistill relabel DATASET labels.csv --out NEW`; teachers' features are brought along."""
    a = tyro.cli(_Relabel, args=arguments, prog="avdistill relabel")
    base = ClipDataset(a.dataset)
    count = len(read_labels(a.labels, base))
    transfer_teachers(base, relabel_dataset(base, a.labels, a.out))
    found = ClipDataset(a.out)
    labeled = sum(bool(row) for row in found.labels)
    before = sum(bool(row) for row in base.labels)
    lines = [
        f"{count} clips with a label from {a.labels}; {labeled} of {len(found)} have one now, {before} had one",
        f"classes: {len(found.classes)}, {len(base.classes)} before; teachers: {', '.join(found.teachers) or 'none'}",
    ]
    report = {"dataset": str(a.out), "checksum": found.checksum, "relabeled": count, "labeled": labeled}
    output(report | {"classes": list(found.classes), "teachers": sorted(found.teachers)}, lines, a.json)
