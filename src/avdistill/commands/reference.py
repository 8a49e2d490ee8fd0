"""Verb for the files of the released implementation: `import clips` and `import checkpoint`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import output, progress_bar
from avdistill.errors import ConfigError
from avdistill.integrations.gewu_lab.importer import import_checkpoint, import_clips
from avdistill.models.checkpoint import load_student
from avdistill.preparation.prepare import PrepareConfig


@dataclass(frozen=True)
class _Clips:
    """Make a dataset of the release's videos and audio embeddings. Interrupted, the same command goes on."""

    annotation: tyro.conf.Positional[Path]
    """Its annotation.json."""
    videos: Path
    """Folder of NAME.hdf5."""
    out: Path
    """The dataset's folder."""
    embeddings: Path | None = None
    """Folder of NAME.npy; without it the dataset has no teacher."""
    short_side: int = 128
    """Pixels of the shorter side."""
    workers: int = os.cpu_count() or 1
    """Processes that decode."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class _Checkpoint:
    """Make a run folder of a checkpoint of the release."""

    file: tyro.conf.Positional[Path]
    """Its save_model.pth."""
    annotation: Path
    """The annotation.json it was trained with."""
    out: Path
    """The run folder."""
    json: bool = False
    """Print one JSON object."""


def import_(arguments: list[str]) -> None:
    """`avdistill import clips ANNOTATION --videos DIR --embeddings DIR --out DATASET` and `import checkpoint FILE`."""
    kinds = {"clips": _import_clips, "checkpoint": _import_checkpoint}
    usage = (
        "usage: avdistill import clips ANNOTATION --videos DIR --embeddings DIR --out DATASET\n"
        "       avdistill import checkpoint FILE.pth --annotation annotation.json --out RUN"
    )
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage)
    elif arguments[:1] and arguments[0] in kinds:
        kinds[arguments[0]](arguments[1:])
    else:
        raise ConfigError(f"import: expected {' or '.join(kinds)}, found {arguments[0] if arguments else 'nothing'}")


def _import_clips(arguments: list[str]) -> None:
    a = tyro.cli(_Clips, args=arguments, prog="avdistill import clips")
    config = PrepareConfig(fps=4.0, short_side=a.short_side)
    with progress_bar("import") as update:
        dataset = import_clips(
            a.annotation, a.videos, a.embeddings, a.out, config, workers=a.workers, on_progress=update
        )
    report = dataset.describe()
    taught = report["teachers"].get("audio", {"clips": 0})["clips"]
    line = f"{report['clips']} clips in {a.out}, {taught} with an embedding; {report['skipped']} skipped"
    output(report, [line + (f", see {a.out / 'skipped.csv'}" if report["skipped"] else "")], a.json)


def _import_checkpoint(arguments: list[str]) -> None:
    a = tyro.cli(_Checkpoint, args=arguments, prog="avdistill import checkpoint")
    run = import_checkpoint(a.file, a.annotation, a.out)
    _, student = load_student(run)
    report = {"run": str(run), "model": student.model, **student.options, "classes": len(student.classes)}
    output(report, [f"{run}: {student.model}, {report['classes']} classes"], a.json)
