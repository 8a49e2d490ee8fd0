"""The verb for a folder of videos: distill."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from avdistill.analysis.distill.config import DistillConfig
from avdistill.analysis.distill.pipeline import distill as distill_videos
from avdistill.commands.console import Printed, output, progress_bar
from avdistill.commands.launching import LaunchedInParts
from avdistill.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class _Distill(LaunchedInParts, Printed):
    """Distill a small network from a folder of videos with few labels or none, and report what the audio is worth."""

    videos: tyro.conf.Positional[Path]
    """The folder of videos, with its sub-folders."""
    out: Path
    """The folder for everything; the same command resumes there. Afterwards it is a model for predict and export."""
    labels: Path | None = None
    """A list of labels, such as a CSV file with the columns path and label; videos without a row are unlabeled. A
    column split may name test clips. By default a folder of folders is a folder per class, and videos in the folder
    itself have no labels."""
    teacher: str | None = None
    """A teacher (`avdistill teacher list`, a run folder, or precomputed:FILE.npz), or several joined by "+", as in
    yamnet+cnn14; by default the best that is installed, and without one an audio network that is trained on the labeled
    clips. Nothing is downloaded."""
    student_modality: Literal["video", "audio"] = "video"
    """The student's modality; the teacher has the other one."""
    decisions: Path | None = None
    """A CSV file of decisions about clips, as an earlier call wrote it to audit/decisions.csv and a reviewer edited
    it."""
    time_budget: str | None = None
    """The time for all, such as 30m or 2h: it decides the steps and the seeds of the training runs, and is exceeded
    where preparing the videos takes longer. By default each method has three seeds and all steps of its recipe."""
    fps: float = 4.0
    """Frames per second."""
    short_side: int = 64
    """The length of the frames' shorter side in pixels."""
    test_fraction: float = 0.3
    """The fraction of each class's labeled source videos that are held out, where the list names no test clips."""
    workers: int = 2
    """Processes at a time, without --ray and --slurm; a training run takes one core."""
    seed: int = 0
    """The seed of the choice of test clips."""


def distill(arguments: list[str]) -> None:
    """`avdistill distill VIDEOS --labels labels.csv --out DIR`."""
    a = tyro.cli(_Distill, args=arguments, prog="avdistill distill")
    config = DistillConfig(
        videos=a.videos,
        out=a.out,
        labels=a.labels,
        teacher=a.teacher,
        student_modality=a.student_modality,
        decisions=a.decisions,
        time_budget_seconds=None if a.time_budget is None else seconds(a.time_budget),
        fps=a.fps,
        short_side=a.short_side,
        test_fraction=a.test_fraction,
        workers=a.workers,
        seed=a.seed,
    )
    a.check_parts()
    with a.executor(a.out) as executor:
        result = distill_videos(config, bar=progress_bar, executor=executor, parts=a.parts)
    lines = [*result["table"].splitlines(), ""]
    if result["labels"] == "clusters":
        lines.append("no video has a label: the numbers are about clusters of the teacher's embeddings")
    lines += [f"report: {a.out / 'report.html'}", f"student: {a.out}"]
    output(result, lines, a.json)


def seconds(text: str) -> float:
    """A time such as 90s, 30m or 2h in seconds. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None:
        raise ConfigError(f"--time-budget: expected a number with s, m or h, such as 30m, found {text!r}")
    return float(found[1]) * _UNITS[found[2]]
