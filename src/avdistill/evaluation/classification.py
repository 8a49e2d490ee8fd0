"""Classification metrics of a student on the labeled clips of a split."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits, encode_labels, evaluation_classes, has_modality, labeled_clips
from avdistill.distributed import init_distributed
from avdistill.evaluation.metrics import (
    ClassificationMetrics,
    calibration_gap,
    confusion_counts,
    label_ranks,
    per_class_rows,
)
from avdistill.evaluation.multilabel import MultilabelMetrics, tagging_means, tagging_table
from avdistill.evaluation.statistics import interval
from avdistill.inference.predictor import Student
from avdistill.inference.runner import PART_CLIPS, Outputs, check_rates, run_in_parts
from avdistill.progress import OnProgress

# Positions of clips and their probabilities of all classes, part by part.
_Parts: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class ClassificationResult:
    """Metrics of a split (`MultilabelMetrics` for a student of several labels), and the predictions they come from.

    Attributes:
        confusion: (C, C) counts [true][predicted] of the clips with the student's modality; None with several labels.
        predictions: a row per clip: id, label, predicted, probability. With several labels: id, labels (joined by |)
            and the most probable classes, predicted_1, probability_1, and so on.
        classes: names, in the order of the confusion's rows.
        embedding: float32 (n, D) of the clips with the student's modality, in their order, for `retrieve`; None unless
            it was asked for.
    """

    metrics: ClassificationMetrics | MultilabelMetrics
    confusion: list[list[int]] | None
    predictions: list[dict[str, object]]
    classes: tuple[str, ...]
    embedding: torch.Tensor | None = field(default=None, compare=False)


def evaluate(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    *,
    split: str = "test",
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
    keep_embedding: bool = False,
    on_progress: OnProgress | None = None,
) -> ClassificationResult:
    """Classify every labeled clip of a split. Under torchrun the processes share the clips.

    A clip without the student's modality counts as a miss and is reported as `missing`, never dropped. So does a clip
    of a class that the training clips did not have (`evaluation_classes`).

    Args:
        model: a student, or what `Student.from_pretrained` loads: a run folder (its best student) or an exported one.
        dataset: or its folder; may be another than the one trained on.
        split: of the dataset; several are joined by "+".
        windows: evenly spaced windows per clip; None slides over the whole clip.
        stride: of the sliding windows, in frames or samples; None is their length.
        batch_size: in windows.
        workers: threads that read ahead.
        device: "auto", "cpu", "cuda", ...; a student that is passed is moved there.
        keep_embedding: return the clips' embeddings, too.
        on_progress: in clips.

    Raises:
        CheckpointError: there is no trained network.
        DatasetError: there is no dataset, nothing labeled in the split, or an unknown label.
        TeacherError: the dataset's rate differs from the training dataset's.
    """
    student, dataset = student_and_dataset(model, dataset)
    config = student.config
    clips = labeled_clips(dataset, split)
    classes = evaluation_classes(dataset, clips, config.classes)
    labels = encode_labels(dataset, clips, classes, config.multi_label).values
    present = torch.from_numpy(has_modality(dataset, clips, config.view))
    unlabeled = len(clips_of_splits(dataset, split)) - len(clips)
    counts = {"clips": len(clips), "missing": int((~present).sum()), "unlabeled_left_out": unlabeled, "split": split}
    kept: list[torch.Tensor] = []
    with init_distributed(device) as own_device:
        parts = run_in_parts(
            student.network.to(own_device), dataset, clips, config.view, multi_label=config.multi_label,
            windows=windows, stride=stride, batch_size=batch_size, workers=workers, on_progress=on_progress,
        )  # fmt: skip
        probabilities = _of_all_classes(parts, len(classes), kept if keep_embedding else None)
        measure = _multi_label if config.multi_label else partial(_one_label, k=min(5, len(config.classes)))
        result = measure(dataset, clips, labels, present, probabilities, classes, counts)
    return replace(result, embedding=torch.cat(kept)) if keep_embedding else result


def _of_all_classes(
    parts: Iterable[tuple[np.ndarray, Outputs]], classes: int, embeddings: list[torch.Tensor] | None
) -> _Parts:
    """A class that the student does not have is never its answer. Embeddings are appended where they are wanted."""
    for rows, found in parts:
        if embeddings is not None:
            embeddings.append(found.embedding)
        yield torch.from_numpy(rows), F.pad(found.probabilities, (0, classes - found.probabilities.shape[1]))


@dataclass(frozen=True)
class _Answers:
    """What is kept of the probabilities of N clips, however many classes; zeros where the modality is missing.

    Attributes:
        predicted: int64 (N,), the most probable class, and `confidence`: float32 (N,), its probability.
        rank: int64 (N,), classes ahead of the label.
    """

    predicted: torch.Tensor
    confidence: torch.Tensor
    rank: torch.Tensor

    @classmethod
    def of(cls, parts: _Parts, labels: torch.Tensor) -> "_Answers":
        N = len(labels)
        answers = cls(torch.zeros(N, dtype=torch.int64), torch.zeros(N), torch.zeros(N, dtype=torch.int64))
        for rows, probabilities in parts:
            answers.confidence[rows], answers.predicted[rows] = probabilities.max(1)
            answers.rank[rows] = label_ranks(scores=probabilities, labels=labels[rows])
        return answers


def student_and_dataset(
    model: Student | str | os.PathLike[str], dataset: ClipDataset | str | os.PathLike[str], device: str = "cpu"
) -> tuple[Student, ClipDataset]:
    """Both, opened where they are paths. Raises TeacherError where the dataset's rate is not the student's."""
    student = model if isinstance(model, Student) else Student.from_pretrained(model, device)
    dataset = dataset if isinstance(dataset, ClipDataset) else ClipDataset(dataset)
    config = student.config
    check_rates(dataset, config.view, config.fps, config.sample_rate_hz, "the student")
    return student, dataset


def _one_label(
    dataset: ClipDataset,
    clips: np.ndarray,
    labels: torch.Tensor,
    present: torch.Tensor,
    parts: _Parts,
    classes: tuple[str, ...],
    counts: dict[str, Any],
    k: int,
) -> ClassificationResult:
    answers = _Answers.of(parts, labels)
    correct = present & (answers.predicted == labels)
    estimate = interval(correct.numpy()[None], dataset.columns["group"][clips])
    of_class, hits = torch.bincount(labels), torch.bincount(labels, weights=correct.double())
    matrix = confusion_counts(answers.predicted[present], labels[present], len(classes))
    metrics = ClassificationMetrics(
        **counts,
        top1_accuracy=float(correct.double().mean()),
        top5_accuracy=float((answers.rank[present] < k).double().mean()) * float(present.double().mean()),
        mean_class_accuracy=float((hits / of_class)[of_class > 0].mean()),
        top1_accuracy_interval=(estimate.low, estimate.high),
        expected_calibration_error=calibration_gap(answers.confidence[present], correct[present]),
        per_class=per_class_rows(matrix, classes),
    )
    columns = (dataset.columns["id"][clips], *(x.numpy() for x in (labels, answers.predicted, answers.confidence)))
    rows: list[dict[str, object]] = [
        {
            "id": name,
            "label": classes[label],
            "predicted": classes[guess] if there else "",
            "probability": float(p) if there else 0.0,
        }
        for name, label, guess, p, there in zip(*columns, present.tolist(), strict=True)
    ]
    return ClassificationResult(metrics, matrix.tolist(), rows, classes)


def _multi_label(
    dataset: ClipDataset,
    clips: np.ndarray,
    labels: torch.Tensor,
    present: torch.Tensor,
    parts: _Parts,
    classes: tuple[str, ...],
    counts: dict[str, Any],
) -> ClassificationResult:
    scores = torch.full((len(clips), len(classes)), -1.0)  # missing: behind all others
    for positions, probabilities in parts:
        scores[positions] = probabilities
    per_class = tagging_table(scores=scores, labels=labels, class_names=classes)
    rows: list[dict[str, object]] = []
    for part in torch.arange(len(clips)).split(PART_CLIPS):  # the order of all classes takes more than their scores
        best, order = (x[:, :5].tolist() for x in scores[part].sort(dim=1, descending=True, stable=True))
        for clip, there, indices, values in zip(clips[part], present[part].tolist(), order, best, strict=True):
            row: dict[str, object] = {"id": dataset.columns["id"][clip], "labels": "|".join(dataset.labels[clip])}
            for rank in range(min(5, len(classes))):
                row[f"predicted_{rank + 1}"] = classes[indices[rank]] if there else ""
                row[f"probability_{rank + 1}"] = values[rank] if there else 0.0
            rows.append(row)
    metrics = MultilabelMetrics(**counts, **tagging_means(per_class), per_class=per_class)
    return ClassificationResult(metrics, None, rows, classes)
