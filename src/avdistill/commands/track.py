"""The verb that sends a run or a study to an experiment tracker."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, output
from avdistill.integrations.tracking.follow import track as track_run
from avdistill.integrations.tracking.trackers import TrackerName


@dataclass(frozen=True)
class _Track(Printed):
    """Send metrics, tables and pages of a run or a study to an experiment tracker; the same run is continued later."""

    run: tyro.conf.Positional[Path]
    """A run folder, or the folder of `compare` or `distill`."""
    to: TrackerName
    """The tracker; its own environment variables say where it keeps its data, and whether it uses the network."""
    project: str | None = None
    """The tracker's project; the default is the one of the call before, or avdistill."""
    name: str | None = None
    """The run's name in the tracker; the default is the folder's name."""
    follow: bool = False
    """Go on until the last step of the training; an interrupted one is waited for, and Ctrl-C ends the following."""
    every: float = 5.0
    """With --follow: the seconds between two looks at the run."""


def track(arguments: list[str]) -> None:
    """`avdistill track RUN --to trackio|wandb|mlflow|tensorboard [--follow]`."""
    a = tyro.cli(_Track, args=arguments, prog="avdistill track")
    state = track_run(a.run, a.to, project=a.project, name=a.name, follow=a.follow, every_seconds=a.every)
    report = {"to": a.to, "project": state.project, "run_id": state.run_id, "lines": state.lines}
    line = f"{a.to}: project {state.project}, run {state.run_id}: {state.lines} lines, "
    output({**report, "results": sorted(state.results)}, [f"{line}{len(state.results)} results"], a.json)
