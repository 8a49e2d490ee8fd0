"""The files of runs and studies, as the server shows them."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdistill.analysis.benchmark.report import columns_of, read_lines
from avdistill.config_io import read_json
from avdistill.errors import AvdistillError
from avdistill.fsio import error_message

RESULTS = "results.json"
_MOST_RUNS_OF_A_STUDY = 200
_POINTS = 300
# A run that has not written for so long is not shown as one that trains.
_SILENT_SECONDS = 600.0
_SHOWN = ("losses", "validation")


@dataclass(frozen=True)
class Run:
    """A run as it is now.

    Attributes:
        name: of the server.
        row: of the table of runs: method, student, step, results.
        curves: group -> name -> points (step, value).
        training: whether lines are still being written.
        error: why it cannot be read; "" otherwise.
    """

    name: str
    row: dict[str, Any]
    curves: dict[str, dict[str, list[tuple[float, float]]]]
    training: bool
    error: str = ""


def expand(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(runs, studies): a folder of `compare` is a study, and its runs are runs."""
    runs, studies = [], []
    for folder in folders:
        if (folder / RESULTS).is_file() and not (folder / "config.json").is_file():
            studies.append(folder)
            inner = sorted(folder.glob("runs/*/*/seed-*/config.json"))
            runs += [config.parent for config in inner[:_MOST_RUNS_OF_A_STUDY]]
        else:
            runs.append(folder)
    return runs, studies


def read_run(name: str, folder: Path) -> Run:
    """A run; one that is damaged, or is an exported student, has what can be read of it."""
    row: dict[str, Any] = {"run": name}
    try:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        student = config.get("student") or config
        row |= {"method": (config.get("method") or {}).get("name"), "model": student.get("model")}
        row["steps"] = config.get("steps")
        lines = read_lines(folder / "metrics.jsonl")
        row["step"] = lines[-1]["step"] if lines else None
        row |= _results(folder)
    except (AvdistillError, OSError, ValueError, AttributeError, TypeError) as error:
        return Run(name, row | {"state": "damaged"}, {}, False, error_message(error))
    training = bool(lines) and row["step"] != row["steps"] and _written_lately(folder / "metrics.jsonl")
    unfinished = row["steps"] is not None and row["step"] != row["steps"]
    row["state"] = "training" if training else "not finished" if unfinished else "finished"
    return Run(name, row, {group: _curves(lines, group) for group in _SHOWN}, training)


def read_study(folder: Path) -> dict[str, Any]:
    """Tables of a study by corruption: JSON-ready; `error` where it cannot be read."""
    try:
        table = read_json(folder / RESULTS)["table"]
        corruptions = dict.fromkeys(line["corruption"] for line in table)
        tables = {name: [line for line in table if line["corruption"] == name] for name in corruptions}
        shown = [{"corruption": name, "rows": rows, "columns": columns_of(rows)} for name, rows in tables.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"name": folder.name, "tables": [], "error": f"expected the results of a study: {error_message(error)}"}
    return {"name": folder.name, "tables": shown, "error": ""}


def chart(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any] | None:
    """What the template draws: lines of a common scale in a box of 600 x 200; None without a point."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    last = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    scale = 200 / (high - low or 1.0)
    return {
        "last": last,
        "low": low,
        "high": high,
        "lines": [
            {
                "name": name,
                "color": i % 7,
                "value": curve[-1][1],
                "points": " ".join(f"{600 * x / last:.1f},{200 - (y - low) * scale:.1f}" for x, y in _thinned(curve)),
            }
            for i, (name, curve) in enumerate(curves.items())
            if curve
        ],
    }


def _results(folder: Path) -> dict[str, float]:
    """Metrics of `evaluate` and `retrieve`, by their names and splits."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*-*/metrics.json"))[:20]:
        metrics = read_json(path)
        for key in ("top1_accuracy", "mean_class_accuracy", "map", "auc", "hit@1"):
            if isinstance(value := metrics.get(key), float):
                found[f"{path.parent.name}: {key}"] = value
    return found


def _curves(lines: Sequence[Mapping[str, Any]], group: str) -> dict[str, list[tuple[float, float]]]:
    """name -> points of one group of `metrics.jsonl`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        values = line.get(group)
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((line["step"], float(value)))
    return found


def _thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `_POINTS` points and the last."""
    return curve if len(curve) <= _POINTS else [*curve[:: -(-len(curve) // _POINTS)], curve[-1]]


def _written_lately(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _SILENT_SECONDS
    except OSError:
        return False
