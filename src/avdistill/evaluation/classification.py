"""Classification metrics of a student on the labeled clips of a split."""

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits, encode_labels, evaluation_classes, labeled_clips
from avdistill.distributed import init_distributed
from avdistill.evaluation.metrics import (
    ClassificationMetrics,
    confusion_matrix,
    expected_calibration_error,
    per_class_table,
    top_k_accuracy,
)
from avdistill.evaluation.multilabel import MultilabelMetrics, tagging_means, tagging_table
from avdistill.evaluation.statistics import interval
from avdistill.inference.predictor import Student
from avdistill.inference.runner import Outputs, check_rates, run_network
from avdistill.progress import OnProgress


@dataclass(frozen=True)
class ClassificationResult:
    """Metrics of a split (`MultilabelMetrics` for a student of several labels), and the predictions they come from.

    Attributes:
        confusion: (C, C) counts [true][predicted] of the clips with the student's modality; None with several labels.
        predictions: a row per clip: id, label, predicted, probability. With several labels: id, labels (joined by |)
            and the most probable classes, predicted_1, probability_1, and so on.
        classes: names, in the order of the confusion's rows.
    """

    metrics: ClassificationMetrics | MultilabelMetrics
    confusion: list[list[int]] | None
    predictions: list[dict[str, object]]
    classes: tuple[str, ...]


def evaluate(
    model: Student | str | os.PathLike[str],
    dataset: ClipDataset | str | os.PathLike[str],
    *,
    split: str = "test",
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
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
        batch_size, on_progress: in windows.
        device: "auto", "cpu", "cuda", ...; a student that is passed is moved there.

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
    with init_distributed(device) as own_device:
        outputs = run_network(
            student.network.to(own_device),
            dataset,
            clips,
            config.view,
            multi_label=config.multi_label,
            windows=windows,
            stride=stride,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    # A class that the student does not have is never its answer.
    padded = F.pad(outputs.probabilities, (0, len(classes) - len(config.classes)))
    outputs = replace(outputs, probabilities=padded)
    counts = {
        "split": split,
        "clips": len(clips),
        "missing": int((~outputs.present).sum()),
        "unlabeled_left_out": len(clips_of_splits(dataset, split)) - len(clips),
    }
    summarize = _multi_label if config.multi_label else _one_label
    return summarize(dataset, clips, labels, outputs, classes, counts)


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
    outputs: Outputs,
    classes: tuple[str, ...],
    counts: dict[str, Any],
) -> ClassificationResult:
    seen = outputs.present
    scores, truth = outputs.probabilities[seen], labels[seen]
    correct = torch.zeros(len(clips), dtype=torch.float64)
    correct[seen] = (scores.argmax(1) == truth).double()
    k = min(5, outputs.logits.shape[1])  # without padding
    estimate = interval(correct.numpy()[None], dataset.columns["group"][clips])
    metrics = ClassificationMetrics(
        **counts,
        top1_accuracy=float(correct.mean()),
        top5_accuracy=top_k_accuracy(scores=scores, labels=truth, k=k) * float(seen.double().mean()),
        mean_class_accuracy=float(np.mean([float(correct[labels == c].mean()) for c in torch.unique(labels)])),
        top1_accuracy_interval=(estimate.low, estimate.high),
        expected_calibration_error=expected_calibration_error(probabilities=scores, labels=truth),
        per_class=per_class_table(scores=scores, labels=truth, class_names=classes),
    )
    names = dataset.columns["id"][clips].tolist()
    confidence, predicted = outputs.probabilities.max(1)
    rows: list[dict[str, object]] = [
        {
            "id": name,
            "label": classes[int(label)],
            "predicted": classes[int(guess)] if present else "",
            "probability": float(p) if present else 0.0,
        }
        for name, label, guess, p, present in zip(names, labels, predicted, confidence, seen, strict=True)
    ]
    return ClassificationResult(metrics, confusion_matrix(scores=scores, labels=truth).tolist(), rows, classes)


def _multi_label(
    dataset: ClipDataset,
    clips: np.ndarray,
    labels: torch.Tensor,
    outputs: Outputs,
    classes: tuple[str, ...],
    counts: dict[str, Any],
) -> ClassificationResult:
    scores = outputs.probabilities.where(outputs.present[:, None], torch.tensor(-1.0))  # missing: behind all others
    per_class = tagging_table(scores=scores, labels=labels, class_names=classes)
    best, order = (x[:, :5] for x in outputs.probabilities.sort(dim=1, descending=True, stable=True))
    rows: list[dict[str, object]] = []
    for clip, present, indices, values in zip(clips, outputs.present, order.tolist(), best.tolist(), strict=True):
        row: dict[str, object] = {"id": dataset.columns["id"][clip], "labels": "|".join(dataset.labels[clip])}
        for rank in range(min(5, len(classes))):
            row[f"predicted_{rank + 1}"] = classes[indices[rank]] if present else ""
            row[f"probability_{rank + 1}"] = values[rank] if present else 0.0
        rows.append(row)
    metrics = MultilabelMetrics(**counts, **tagging_means(per_class), per_class=per_class)
    return ClassificationResult(metrics, None, rows, classes)
