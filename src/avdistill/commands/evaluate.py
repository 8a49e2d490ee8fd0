"""Verbs from a model to metrics: evaluate, retrieve."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, is_first_process, output, progress_bar, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import ClassificationResult
from avdistill.evaluation.classification import evaluate as evaluate_model
from avdistill.evaluation.metrics import ClassificationMetrics
from avdistill.evaluation.multilabel import MultilabelMetrics
from avdistill.evaluation.retrieval import retrieve as retrieve_clips
from avdistill.fsio import create_file, file_checksum, own_folder, result_folder, write_json
from avdistill.models.checkpoint import PROVENANCE, WEIGHTS, student_folder
from avdistill.models.hub import is_remote, local_folder, parse_address
from avdistill.reporting.plots import plot_confusion
from avdistill.storage.copies import working_copy
from avdistill.storage.url import as_path


@dataclass(frozen=True)
class ModelAndDataset(Printed):
    """Arguments of the verbs that evaluate a model on a dataset."""

    model: tyro.conf.Positional[str]
    """A run folder, whose best student is taken, an exported folder with model.safetensors, or hf://org/name@revision
    on the Hugging Face hub."""
    dataset: tyro.conf.Positional[Path]
    """A dataset."""

    def report(self, metrics: Mapping[str, object]) -> dict[str, object]:
        """The metrics and what they were computed of."""
        return {"model": self.model, "dataset": str(as_path(self.dataset)), **metrics}

    @contextmanager
    def results(self, out: Path | None, name: str) -> Iterator[tuple[Path, Path, Path]]:
        """The model's folder, that of its results, and where these will be.

        By default they are in a folder of the model, or for one on the hub in one of its name in the working folder.
        """
        if out is None and is_remote(self.model):
            out = Path(parse_address(self.model)[0].rpartition("/")[2]) / name
        if out is None:
            with working_copy(self.model) as model:
                yield model, own_folder(model, name), as_path(self.model) / name
        else:
            with working_copy(out) as folder:
                yield local_folder(self.model), folder, as_path(out)


@dataclass(frozen=True)
class QueriesAndGallery(ModelAndDataset):
    """Arguments of the verbs that search one split in another."""

    query_split: str = "test"
    """The split of the queries; several are joined by +."""
    gallery_split: str = "train"
    """The split that is searched; several are joined by +."""


@dataclass(frozen=True)
class _Evaluate(ModelAndDataset):
    """Classify the labeled clips of a split; metrics, tables and a confusion matrix are written to a folder."""

    split: str = "test"
    """The split whose labeled clips are classified; several are joined by +."""
    windows: int | None = None
    """Evenly spaced windows per clip; by default windows slide over the whole clip."""
    stride: int | None = None
    """Stride of the sliding windows in frames or samples; the default is the length of a window."""
    batch_size: int = 32
    """Windows per batch."""
    workers: int = 2
    """Threads that read ahead; with a GPU as many as there are cores to spare."""
    out: Path | None = None
    """Folder for metrics and tables; the default is MODEL/evaluation-SPLIT, of hf://org/name NAME/evaluation-SPLIT."""


def evaluate(arguments: list[str]) -> None:
    """`avdistill evaluate MODEL DATASET`."""
    a = tyro.cli(_Evaluate, args=arguments, prog="avdistill evaluate")
    dataset = ClipDataset(a.dataset)
    with a.results(a.out, f"evaluation-{a.split}") as (model, out, place):
        with progress_bar("evaluate") as update:
            result = evaluate_model(
                model,
                dataset,
                split=a.split,
                windows=a.windows,
                stride=a.stride,
                batch_size=a.batch_size,
                workers=a.workers,
                on_progress=update,
            )
        if is_first_process():
            _write_classification(out, result, _provenance(model, dataset))
    say(f"tables: {place}")
    output(a.report(result.metrics.to_dict()), _evaluation_lines(result.metrics), a.json)


def _evaluation_lines(m: ClassificationMetrics | MultilabelMetrics) -> list[str]:
    lines = [f"{m.clips} clips of split {m.split!r}, {m.missing} without the student's modality (counted as misses)"]
    if isinstance(m, MultilabelMetrics):
        named = {"mean average precision": m.map, "area under the ROC curve": m.auc, "d-prime": m.d_prime}
        lines += [f"{label:<24} {'undefined' if value is None else f'{value:.4f}'}" for label, value in named.items()]
        lines += [f"over {m.classes_counted} classes; {m.classes_left_out} that all clips have, or none, left out"]
        return lines
    low, high = m.top1_accuracy_interval
    return [
        *lines,
        f"top-1 accuracy             {m.top1_accuracy:.4f}   (95% interval {low:.4f} to {high:.4f})",
        f"top-5 accuracy             {m.top5_accuracy:.4f}",
        f"mean class accuracy        {m.mean_class_accuracy:.4f}",
        f"expected calibration error {m.expected_calibration_error:.4f}",
    ]


def _provenance(model: Path, dataset: ClipDataset) -> dict[str, str]:
    """Which weights, and which clips: a card of other weights must not name these metrics."""
    weights = file_checksum(student_folder(model) / WEIGHTS)
    name = dataset.folder.resolve().name
    return {"weights_sha256": weights, "dataset": name, "dataset_checksum": dataset.checksum}


def _write_classification(out: Path, result: ClassificationResult, provenance: Mapping[str, str]) -> None:
    metrics = result.metrics.to_dict()
    with result_folder(out) as fresh:
        write_json(fresh / PROVENANCE, provenance)
        write_json(fresh / "metrics.json", metrics)
        if result.confusion is not None:
            plot_confusion(result.confusion, result.classes, fresh / "confusion.png")
        for name, rows in (("predictions.csv", result.predictions), ("per_class.csv", metrics["per_class"])):
            with create_file(fresh / name, newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


@dataclass(frozen=True)
class _Retrieve(QueriesAndGallery):
    """Search the clips of one split among those of another by the student's embeddings."""

    batch_size: int = 32
    """Windows per batch."""
    out: Path | None = None
    """Folder for metrics and nearest clips; the default is MODEL/retrieval-QUERY_SPLIT, of hf://org/name
    NAME/retrieval-QUERY_SPLIT."""


def retrieve(arguments: list[str]) -> None:
    """`avdistill retrieve MODEL DATASET`."""
    a = tyro.cli(_Retrieve, args=arguments, prog="avdistill retrieve")
    dataset = ClipDataset(a.dataset)
    with a.results(a.out, f"retrieval-{a.query_split}") as (model, out, place):
        with progress_bar("retrieve") as update:
            result = retrieve_clips(
                model,
                dataset,
                query_split=a.query_split,
                gallery_split=a.gallery_split,
                batch_size=a.batch_size,
                on_progress=update,
            )
        metrics = result.metrics.to_dict()
        if is_first_process():
            with result_folder(out) as fresh:
                write_json(fresh / PROVENANCE, _provenance(model, dataset))
                write_json(fresh / "metrics.json", metrics)
                with create_file(fresh / "neighbors.jsonl", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in result.neighbors)
    say(f"nearest clips of each query: {place / 'neighbors.jsonl'}")
    output(a.report(metrics), metric_lines(metrics), a.json)


def metric_lines(metrics: Mapping[str, object]) -> list[str]:
    """A line for each metric, fractions with four decimals."""
    shown = {name: "undefined" if value is None else value for name, value in metrics.items()}
    return [f"{name:<24} {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in shown.items()]
