"""Verbs from a run to metrics: evaluate, retrieve, demo."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import FIRST_PROCESS, output, progress_bar, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError
from avdistill.evaluation.classification import ClassificationResult
from avdistill.evaluation.classification import evaluate as evaluate_run
from avdistill.evaluation.retrieval import retrieve as retrieve_run
from avdistill.fsio import write_json
from avdistill.reporting.plots import plot_confusion


@dataclass(frozen=True)
class _Evaluate:
    """Classify a split with the best student of a run; metrics, tables and a confusion matrix go into a folder."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    dataset: tyro.conf.Positional[Path]
    """A dataset with the run's classes."""
    split: str = "test"
    """Labeled clips to classify."""
    windows: int | None = None
    """Evenly spaced windows per clip; default: slide over the whole clip."""
    stride: int | None = None
    """Of the sliding windows, in frames or samples; default: a window's length."""
    batch_size: int = 32
    """Windows at a time."""
    out: Path | None = None
    """Folder for the tables; default: RUN/evaluation-SPLIT."""
    json: bool = False
    """Print one JSON object."""


def evaluate(arguments: list[str]) -> None:
    """`avdistill evaluate RUN DATASET`."""
    a = tyro.cli(_Evaluate, args=arguments, prog="avdistill evaluate")
    dataset = ClipDataset(a.dataset)
    with progress_bar("evaluate") as update:
        result = evaluate_run(
            a.run,
            dataset,
            split=a.split,
            windows=a.windows,
            stride=a.stride,
            batch_size=a.batch_size,
            on_progress=update,
        )
    out = a.out or a.run / f"evaluation-{a.split}"
    if FIRST_PROCESS:
        _write_classification(out, result)
    report = {"run": str(a.run), "dataset": str(a.dataset), **result.metrics}
    f = result.metrics
    lines = [
        f"{f['clips']} clips of split {a.split!r}, {f['missing']} without what the student looks at (counted as misses)"
    ]
    if "top1_accuracy" in f:
        low, high = f["top1_accuracy_interval"]
        lines += [
            f"top-1               {f['top1_accuracy']:.4f}   (95% interval {low:.4f} to {high:.4f})",
            f"top-5               {f['top5_accuracy']:.4f}",
            f"mean class accuracy {f['mean_class_accuracy']:.4f}",
            f"calibration error   {f['expected_calibration_error']:.4f}",
        ]
    else:
        names = {"map": "mean average precision", "auc": "area under the ROC curve", "d_prime": "d-prime"}
        lines += [f"{label:<24} {_shown(f[name])}" for name, label in names.items()]
        lines += [
            f"over {f['classes_counted']} classes; {f['classes_left_out']} that all clips have, or none, left out"
        ]
    say(f"tables: {out}")
    output(report, lines, a.json)


def _shown(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.4f}"


def _write_classification(out: Path, result: ClassificationResult) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", result.metrics)
    if result.confusion is not None:
        plot_confusion(result.confusion, result.classes, out / "confusion.png")
    for name, rows in (("predictions.csv", result.predictions), ("per_class.csv", result.metrics["per_class"])):
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@dataclass(frozen=True)
class _Retrieve:
    """Look up the clips of one split among those of another by the student's embeddings."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    dataset: tyro.conf.Positional[Path]
    """A dataset with both splits."""
    queries: str = "test"
    """Split of the queries."""
    gallery: str = "train"
    """Split that is searched; several are joined by +."""
    batch_size: int = 32
    """Windows at a time."""
    out: Path | None = None
    """Folder for the lists; default: RUN/retrieval-QUERIES."""
    json: bool = False
    """Print one JSON object."""


def retrieve(arguments: list[str]) -> None:
    """`avdistill retrieve RUN DATASET`."""
    a = tyro.cli(_Retrieve, args=arguments, prog="avdistill retrieve")
    with progress_bar("retrieve") as update:
        result = retrieve_run(
            a.run,
            ClipDataset(a.dataset),
            queries=a.queries,
            gallery=a.gallery,
            batch_size=a.batch_size,
            on_progress=update,
        )
    out = a.out or a.run / f"retrieval-{a.queries}"
    if FIRST_PROCESS:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "metrics.json", result.metrics)
        with (out / "neighbors.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in result.neighbors)
    report = {"run": str(a.run), "dataset": str(a.dataset), **result.metrics}
    lines = [
        f"{name:<24} {value:.4f}" if isinstance(value, float) else f"{name:<24} {value}"
        for name, value in result.metrics.items()
    ]
    say(f"nearest clips of each query: {out / 'neighbors.jsonl'}")
    output(report, lines, a.json)


@dataclass(frozen=True)
class _Demo:
    """The whole pipeline on synthetic videos: make, prepare, teach, embed, train nine students, evaluate, report."""

    out: Path
    """Folder for everything; an interrupted demo goes on where it stopped."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    workers: int = 2
    """Processes; each training run takes one core."""
    json: bool = False
    """Print one JSON object."""


def demo(arguments: list[str]) -> None:
    """`avdistill demo --out DIR`."""
    from avdistill.analysis.demo import run_demo

    a = tyro.cli(_Demo, args=arguments, prog="avdistill demo")
    if not a.seeds or a.workers < 1:
        raise ConfigError("demo: expected at least one seed and one worker")
    result = run_demo(a.out, seeds=a.seeds, workers=a.workers, say=say, bar=progress_bar)
    lines = [*result["table"].splitlines(), "", f"report: {a.out / 'report.html'}"]
    output(result, lines, a.json)
