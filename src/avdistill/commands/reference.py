"""Verbs for the paper's released implementation: `avdistill reference clips | checkpoint | retrieve | predictions`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, output, progress_bar, run_sub_verb
from avdistill.commands.evaluate import ModelAndDataset, QueriesAndGallery, metric_lines
from avdistill.fsio import write_json
from avdistill.integrations.gewu_lab.importer import import_checkpoint, import_clips
from avdistill.integrations.gewu_lab.metrics import reference_predictions, reference_retrieve
from avdistill.models.checkpoint import load_student
from avdistill.preparation.prepare import PrepareConfig


@dataclass(frozen=True)
class _Clips(Printed):
    """Make a dataset of the release's videos and audio embeddings; an interrupted command resumes when repeated."""

    annotation: tyro.conf.Positional[Path]
    """The annotation.json of the release."""
    videos: Path
    """Folder of NAME.hdf5."""
    out: Path
    """Folder of the dataset to make."""
    embeddings: Path | None = None
    """Folder of NAME.npy; without it the dataset has no teacher features."""
    short_side: int = 128
    """Pixels of the shorter side of the stored frames."""
    workers: int = os.cpu_count() or 1
    """Processes that decode."""


@dataclass(frozen=True)
class _Checkpoint(Printed):
    """Make a run folder of a checkpoint of the release."""

    file: tyro.conf.Positional[Path]
    """The save_model.pth of the release."""
    annotation: Path
    """The annotation.json that it was trained with."""
    out: Path
    """Run folder to make."""


@dataclass(frozen=True)
class _Retrieve(QueriesAndGallery):
    """The release's mean average precision of a model: over the hits among the first ranks, not all relevant clips."""

    top: int = 500
    """Ranks that count: 500 in the release for UCF51, 100 for ActivityNet."""


@dataclass(frozen=True)
class _Predictions(ModelAndDataset):
    """The most probable classes of each labeled clip, in the JSON layout of the release's prediction file."""

    split: str = "test"
    """The split whose labeled clips are classified."""
    top: int = 5
    """Classes per clip."""
    out: Path | None = None
    """The JSON file to write; by default it is printed."""


def _import_clips(arguments: list[str]) -> None:
    a = tyro.cli(_Clips, args=arguments, prog="avdistill reference clips")
    config = PrepareConfig(fps=4.0, short_side=a.short_side)
    with progress_bar("reference clips") as update:
        dataset = import_clips(
            a.annotation, a.videos, a.embeddings, a.out, config, workers=a.workers, on_progress=update
        )
    report = dataset.describe()
    embedded = report["teachers"].get("audio", {"clips": 0})["clips"]
    line = f"{report['clips']} clips in {a.out}, {embedded} with an embedding; {report['skipped']} skipped"
    output(report, [line + (f", see {a.out / 'skipped.csv'}" if report["skipped"] else "")], a.json)


def _import_checkpoint(arguments: list[str]) -> None:
    a = tyro.cli(_Checkpoint, args=arguments, prog="avdistill reference checkpoint")
    run = import_checkpoint(a.file, a.annotation, a.out)
    _, student = load_student(run)
    report = {"run": str(run), "model": student.model, **student.options, "classes": len(student.classes)}
    output(report, [f"{run}: {student.model}, {report['classes']} classes"], a.json)


def _retrieve(arguments: list[str]) -> None:
    a = tyro.cli(_Retrieve, args=arguments, prog="avdistill reference retrieve")
    with progress_bar("retrieve") as update:
        splits = {"query_split": a.query_split, "gallery_split": a.gallery_split}
        metrics = reference_retrieve(a.model, a.dataset, **splits, top=a.top, on_progress=update)
    output(a.report(metrics), metric_lines(metrics), a.json)


def _predictions(arguments: list[str]) -> None:
    a = tyro.cli(_Predictions, args=arguments, prog="avdistill reference predictions")
    with progress_bar("predictions") as update:
        predictions = reference_predictions(a.model, a.dataset, split=a.split, k=a.top, on_progress=update)
    if a.out is None:
        output(predictions, [], as_json=True)
    else:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(a.out, predictions)
        report = {"out": str(a.out), "clips": len(predictions["results"])}
        output(report, [f"{a.out}: {report['clips']} clips"], a.json)


SUB_VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "clips": (_import_clips, "its clips -> a dataset: `clips FILE --videos DIR --embeddings DIR --out DATASET`"),
    "checkpoint": (_import_checkpoint, "its checkpoint -> a run: `checkpoint FILE.pth --annotation FILE --out RUN`"),
    "retrieve": (_retrieve, "its mean average precision: `retrieve MODEL DATASET`"),
    "predictions": (_predictions, "its JSON of the most probable classes: `predictions MODEL DATASET --out FILE`"),
}


def reference(arguments: list[str]) -> None:
    """`avdistill reference SUB_VERB ...`."""
    run_sub_verb("reference", SUB_VERBS, arguments)
