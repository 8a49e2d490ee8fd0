"""The verb that runs the whole pipeline on synthetic videos: demo."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.analysis.demo import run_demo
from avdistill.commands.console import Printed, output, progress_bar
from avdistill.errors import ConfigError


@dataclass(frozen=True)
class _Demo(Printed):
    """The whole pipeline on synthetic videos: make, prepare, teach, embed, train students, evaluate, report."""

    out: Path
    """Folder for everything; an interrupted demo resumes there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    workers: int = 2
    """Processes; each training run takes one core."""


def _browse(out: Path) -> list[str]:
    """The command that serves what the demo made."""
    words = ["avdistill", "serve", out / "dataset", "--run", out / "study", "--index", out / "index"]
    return list(map(str, words))


def demo(arguments: list[str]) -> None:
    """`avdistill demo --out DIR`."""
    a = tyro.cli(_Demo, args=arguments, prog="avdistill demo")
    if not a.seeds or a.workers < 1:
        raise ConfigError("demo: expected at least one seed and one worker")
    result = run_demo(a.out, seeds=a.seeds, workers=a.workers, bar=progress_bar)
    lines = [*result["table"].splitlines(), "", f"report: {a.out / 'report.html'}"]
    lines.append(f"browse: {shlex.join(_browse(a.out))}")
    output(result, lines, a.json)
