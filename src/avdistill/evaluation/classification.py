"""A trained student and a labeled split in, classification metrics out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits, encode_labels, labeled_clips
from avdistill.distributed import init_distributed
from avdistill.evaluation.metrics import (
    bootstrap_interval,
    confusion_matrix,
    expected_calibration_error,
    per_class_table,
    top_k_accuracy,
)
from avdistill.evaluation.multilabel import tagging_means, tagging_table
from avdistill.inference.compatibility import check_rates
from avdistill.inference.runner import Outputs, run_network
from avdistill.models.checkpoint import load_student
from avdistill.progress import OnProgress
from avdistill.types import StudentConfig


@dataclass(frozen=True)
class ClassificationResult:
    """What a student says of a split, and how good that is.

    Attributes:
        metrics: JSON-ready: `top1_accuracy`, `top5_accuracy`, `mean_class_accuracy`, `top1_accuracy_interval` (95%,
            bootstrap over clips),
            `expected_calibration_error`, `per_class`, counts. With several labels per clip `map`, `auc` and `d_prime`
            (`tagging.py`) instead of accuracies and calibration.
        confusion: (C, C) counts [true][predicted] of the clips that could be looked at; None with several labels.
        predictions: a row per clip: id, label, predicted, probability. With several labels: id, labels
            (init_distributed by |) and the most probable classes, predicted_1, probability_1, and so on.
        classes: names, in the order of the confusion's rows.
    """

    metrics: dict[str, Any]
    confusion: list[list[int]] | None
    predictions: list[dict[str, object]]
    classes: tuple[str, ...]


def evaluate(
    run: Path,
    dataset: ClipDataset,
    *,
    split: str = "test",
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> ClassificationResult:
    """Classify every labeled clip of a split with the best student of a run. Under torchrun the processes share them.

    A clip without the student's modality counts as a miss and is reported as `missing`, never dropped.

    Args:
        run: run folder.
        dataset: may be another than the one trained on; its labels must be among the student's classes.
        split: of the dataset.
        windows: evenly spaced windows per clip; None slides over the whole clip.
        stride: of the sliding windows; None is their length.
        batch_size: windows at a time.
        device: "auto", "cpu", "cuda", ...
        on_progress: called after each batch, in windows.

    Raises:
        DatasetError: nothing labeled in the split, or an unknown label.
        TeacherError: the dataset's rate differs from the training dataset's.
    """
    student, description = load_student(run)
    check_rates(dataset, description.view, description.fps, description.sample_rate_hz, "the student")
    clips = labeled_clips(dataset, split)
    encode_labels(dataset, clips, description.classes, description.multi_label)  # a wrong label is told at once
    with init_distributed(device) as own_device:
        outputs = run_network(
            student.to(own_device),
            dataset,
            clips,
            description.view,
            multi_label=description.multi_label,
            windows=windows,
            stride=stride,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    counts = {
        "split": split,
        "clips": len(clips),
        "missing": int((~outputs.present).sum()),
        "unlabeled_left_out": len(clips_of_splits(dataset, split)) - len(clips),
    }
    if description.multi_label:
        return _multi_label(dataset, clips, outputs, description, counts)
    return _one_label(dataset, clips, outputs, description, counts)


def _one_label(
    dataset: ClipDataset, clips: np.ndarray, outputs: Outputs, description: StudentConfig, counts: dict[str, Any]
) -> ClassificationResult:
    classes = description.classes
    labels = encode_labels(dataset, clips, classes).values
    seen = outputs.present
    scores, truth = outputs.probabilities[seen], labels[seen]
    correct = torch.zeros(len(clips), dtype=torch.float64)
    correct[seen] = (scores.argmax(1) == truth).double()
    share_seen = float(seen.double().mean())
    per_class = per_class_table(scores=scores, labels=truth, class_names=classes)
    metrics = {
        "top1_accuracy": float(correct.mean()),
        "top5_accuracy": top_k_accuracy(scores=scores, labels=truth, k=min(5, len(classes))) * share_seen,
        "mean_class_accuracy": _mean_class_accuracy(correct, labels),
        "top1_accuracy_interval": list(bootstrap_interval(values=correct)),
        "expected_calibration_error": expected_calibration_error(probabilities=scores, labels=truth),
    }
    names = dataset.columns["id"][clips].tolist()
    confidence, predicted = outputs.probabilities.max(1)
    rows: list[dict[str, object]] = [
        {
            "id": name,
            "label": classes[int(label)],
            "predicted": classes[int(guess)] if there else "",
            "probability": float(p) if there else 0.0,
        }
        for name, label, guess, p, there in zip(names, labels, predicted, confidence, seen, strict=True)
    ]
    return ClassificationResult(
        metrics=counts | metrics | {"per_class": per_class},
        confusion=confusion_matrix(scores=scores, labels=truth).tolist(),
        predictions=rows,
        classes=classes,
    )


def _mean_class_accuracy(correct: torch.Tensor, labels: torch.Tensor) -> float:
    return float(np.mean([float(correct[labels == c].mean()) for c in torch.unique(labels)]))


def _multi_label(
    dataset: ClipDataset, clips: np.ndarray, outputs: Outputs, description: StudentConfig, counts: dict[str, Any]
) -> ClassificationResult:
    classes = description.classes
    truth = encode_labels(dataset, clips, classes, multi_label=True).values
    scores = outputs.probabilities.where(outputs.present[:, None], torch.tensor(-1.0))  # missing: behind all others
    per_class = tagging_table(scores=scores, labels=truth, class_names=classes)
    best, order = outputs.probabilities.sort(dim=1, descending=True, stable=True)
    rows: list[dict[str, object]] = []
    for clip, there, indices, values in zip(clips, outputs.present, order.tolist(), best.tolist(), strict=True):
        row: dict[str, object] = {"id": dataset.columns["id"][clip], "labels": "|".join(dataset.labels[clip])}
        for rank in range(min(5, len(classes))):
            row[f"predicted_{rank + 1}"] = classes[indices[rank]] if there else ""
            row[f"probability_{rank + 1}"] = values[rank] if there else 0.0
        rows.append(row)
    return ClassificationResult(
        metrics=counts | tagging_means(per_class) | {"per_class": per_class},
        confusion=None,
        predictions=rows,
        classes=classes,
    )
