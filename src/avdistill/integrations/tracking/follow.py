"""`track`: the lines of a run's `metrics.jsonl`, then tables and pages, into a tracker; again and again with `follow`.

The run's files are only read, without its lock. What has been sent is kept in `tracking-<tracker>.json` of the run
folder, a file that no training reads or writes: a later call, also one after `avdistill resume`, continues the same
tracked run where the last one stopped. A resumed run writes the lines after its last save again, the same as before;
they are not sent twice.
"""

import csv
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import stderr
from typing import Any

from avdistill.analysis.benchmark.report import read_lines
from avdistill.config_io import decode, encode, read_json
from avdistill.errors import AvdistillError, ConfigError, RunError, TrackingError
from avdistill.fsio import error_message, file_checksum, write_json
from avdistill.integrations.tracking.trackers import Tracker, TrackerName, open_tracker
from avdistill.reporting.tables import Row
from avdistill.training.run_dir import data_manifest

PROJECT = "avdistill"
_STUDY = "results.json"


@dataclass(frozen=True)
class Tracked:
    """What has been sent of a run or study.

    Attributes:
        run_id: of the tracked run.
        project: that it is in.
        lines: of `metrics.jsonl` that were sent.
        results: checksums of the results that were sent, by their path in the folder.
    """

    run_id: str
    project: str
    lines: int = 0
    results: dict[str, str] = field(default_factory=dict)


def track(
    run: str | os.PathLike[str],
    to: TrackerName,
    *,
    project: str | None = None,
    name: str | None = None,
    follow: bool = False,
    every_seconds: float = 5.0,
) -> Tracked:
    """Send what is new of a run or a study.

    Args:
        run: a run folder, or the folder of `compare` or `distill`.
        to: "trackio", "wandb", "mlflow" or "tensorboard".
        project: of the tracker; None is the one of the call before, or "avdistill".
        name: of the run in the tracker; None is the folder's name.
        follow: go on until the last step of the run has been logged; an interrupted run is waited for.
        every_seconds: between two looks at the file.

    Returns:
        What has been sent, in this call and before.

    Raises:
        RunError: no run or study there, or damaged lines.
        ConfigError: another project than that of the call before.
        TrackingError: the tracker is not installed, or refuses.
    """
    folder = Path(run)
    study = (folder / _STUDY).is_file()
    if not study and not (folder / "data.json").is_file():
        raise RunError(f"{folder}: expected a run folder or a study, found neither data.json nor {_STUDY}")
    if follow and study:
        raise ConfigError(f"{folder}: follow: expected a run, found a study")
    if not 0 < every_seconds < math.inf:
        raise ConfigError(f"every_seconds: must be above 0, got {every_seconds:g}")
    file = folder / f"tracking-{to}.json"
    state, config = _read_state(file, folder, project), _config(folder, study)
    last, finished = 0, study
    with _one_line(to):
        tracker = open_tracker(to, state.project, name or folder.resolve().name, state.run_id, config)
        try:
            _write_state(file, state)
            looks = () if study else _looks(folder, config["steps"], every_seconds if follow else None)
            for lines, over in looks:
                last, finished = lines[-1]["step"] if lines else 0, over
                for line in lines[state.lines :]:
                    tracker.log(line["step"], _values(line))
                if len(lines) > state.lines:
                    state = replace(state, lines=len(lines))
                    _write_state(file, state)
            for path in _results(folder, study):
                key, checksum = path.relative_to(folder).as_posix(), file_checksum(path)
                if state.results.get(key) != checksum:
                    _send_result(tracker, folder, path, last)
                    state = replace(state, results=state.results | {key: checksum})
                    _write_state(file, state)
        finally:
            tracker.close(finished)
    return state


def _looks(folder: Path, steps: int, every_seconds: float | None) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """The lines of a run so far, and whether these are all, again and again until they are; once without seconds."""
    validated = bool(data_manifest(folder).get("validation"))
    while True:
        try:
            lines = read_lines(folder / "metrics.jsonl")
        except FileNotFoundError:  # while a resumed run replaces the file
            lines = []
        # The last line of a run with validation is that of the last validation.
        finished = bool(lines) and lines[-1]["step"] >= steps and (not validated or "validation" in lines[-1])
        yield lines, finished
        if finished or every_seconds is None:
            return
        time.sleep(every_seconds)


def _read_state(file: Path, folder: Path, project: str | None) -> Tracked:
    if not file.is_file():
        return Tracked(f"{folder.resolve().name}-{secrets.token_hex(4)}", project or PROJECT)
    try:
        state = decode(Tracked, read_json(file), file.name)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged: {error_message(error)}; without it the run is tracked anew") from error
    if project not in (None, state.project):
        raise ConfigError(f"{file}: tracked in project {state.project!r}, not {project!r}; without it, tracked anew")
    return state


def _write_state(file: Path, state: Tracked) -> None:
    try:
        write_json(file, encode(state))
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error_message(error)}") from error


def _config(folder: Path, study: bool) -> dict[str, Any]:
    """What the run or study was made with, JSON-ready."""
    for name in ("study.json", "distill.json") if study else ("config.json",):
        if (folder / name).is_file():
            try:
                config = dict(read_json(folder / name))
                if study or isinstance(config["steps"], int):
                    return config
                raise ValueError("steps is no number")
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise RunError(f"{folder / name}: damaged: {error_message(error)}") from error
    return {}


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line as `group/name`."""
    found = {}
    for group, entry in line.items():
        for name, value in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            if group != "step" and isinstance(value, int | float) and math.isfinite(value):
                found[f"{group}/{name}".rstrip("/")] = float(value)
    return found


def _results(folder: Path, study: bool) -> list[Path]:
    """Files of results: of a run metrics of `evaluate` and `retrieve`, of a study its tables; and pages."""
    tables = [folder / _STUDY] if study else [*folder.glob("evaluation-*/metrics.json")]
    tables += [] if study else folder.glob("retrieval-*/metrics.json")
    pages = [*folder.glob("audit*/audit.html"), folder / "report.html"]
    return sorted(path for path in (*tables, *pages) if path.is_file())


def _send_result(tracker: Tracker, folder: Path, path: Path, step: int) -> None:
    if path.suffix == ".html":
        tracker.file(path.stem if path.parent == folder else path.parent.name, path)
        return
    try:
        content = read_json(path)
        tables = _study_tables(content) if path.name == _STUDY else {}
        values = {} if tables else _metrics(path.parent.name, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: expected results: {error_message(error)}") from error
    if values:
        tracker.log(step, values)
        per_class = path.with_name("per_class.csv")
        if per_class.is_file():
            with per_class.open(encoding="utf-8", newline="") as lines:
                tables = {f"{path.parent.name}/per_class": list(csv.DictReader(lines))}
    for name, rows in tables.items():
        tracker.table(name, rows, step)


def _metrics(name: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `metrics.json`, of intervals both ends."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        ends = {f"{key}_low": value[0], f"{key}_high": value[1]} if key.endswith("_interval") else {key: value}
        for part, number in ends.items():
            if isinstance(number, int | float) and math.isfinite(number):
                found[f"{name}/{part}"] = float(number)
    return found


def _study_tables(results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Tables of `compare` by corruption, or the one of `distill`; every row has every key."""
    rows: Sequence[Mapping[str, Any]] = results["methods"] if isinstance(results["table"], str) else results["table"]
    found: dict[str, list[Row]] = {}
    for corruption in dict.fromkeys(str(row.get("corruption", "clean")) for row in rows):
        lines = [row for row in rows if str(row.get("corruption", "clean")) == corruption]
        keys = list(dict.fromkeys(key for row in lines for key in row))
        found[f"compare/{corruption}"] = [{key: row.get(key) for key in keys} for row in lines]
    return found


@contextmanager
def _one_line(to: str) -> Iterator[None]:
    """What a tracker raises as a TrackingError; what it prints, on standard error."""
    try:
        with redirect_stdout(stderr):
            yield
    except (AvdistillError, KeyboardInterrupt):
        raise
    except Exception as error:  # trackers raise errors of their own, of their servers and databases
        logging.getLogger(__name__).debug("%s failed", to, exc_info=True)
        text = " ".join(str(error).split()) or type(error).__name__
        raise TrackingError(f"{to}: refused: {text:.300}") from error
