"""A trained student and a labelled split in, classification figures out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.data.dataset import clips_of_splits, encode_labels, labelled_clips
from avdistill.data.store import Store
from avdistill.distributed import joined
from avdistill.evaluation import metrics
from avdistill.evaluation.tagging import tagging_means, tagging_table
from avdistill.inference import Outputs, run_network
from avdistill.models.weights import load_student
from avdistill.teachers.base import check_rates
from avdistill.types import StudentDescription


@dataclass(frozen=True)
class Classification:
    """What a student says of a split, and how good that is.

    Attributes:
        figures: JSON-ready: `top1`, `top5`, `mean_class_accuracy`, `top1_interval` (95%, bootstrap over clips),
            `calibration_error`, `per_class`, counts. With several labels per clip `map`, `auc` and `d_prime`
            (`tagging.py`) instead of accuracies and calibration.
        confusion: (C, C) counts [true][predicted] of the clips that could be looked at; None with several labels.
        release_top_k: the released implementation's top-k JSON; empty with several labels.
        predictions: a row per clip: id, label, predicted, probability. With several labels: id, labels (joined by |)
            and the most probable classes, predicted_1, probability_1, and so on.
        classes: names, in the order of the confusion's rows.
    """

    figures: dict[str, Any]
    confusion: list[list[int]] | None
    release_top_k: dict[str, Any]
    predictions: list[dict[str, object]]
    classes: tuple[str, ...]


def evaluate(
    run: Path,
    store: Store,
    *,
    split: str = "test",
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> Classification:
    """Classify every labelled clip of a split with the best student of a run. Under torchrun the processes share them.

    A clip without the student's modality counts as a miss and is reported as `missing`, never dropped.

    Args:
        run: run folder.
        store: may be another than the one trained on; its labels must be among the student's classes.
        split: of the store.
        windows: evenly spaced windows per clip; None slides over the whole clip.
        stride: of the sliding windows; None is their length.
        batch_size: windows at a time.
        device: "auto", "cpu", "cuda", ...
        on_batch: called with (finished, total) windows.

    Raises:
        StoreError: nothing labelled in the split, or an unknown label.
        TeacherError: the store's rate differs from the training store's.
    """
    student, description = load_student(run)
    check_rates(store, description.view, description.fps, description.sample_rate_hz, "the student")
    clips = labelled_clips(store, split)
    encode_labels(store, clips, description.classes, description.multi_label)  # a wrong label is told at once
    with joined(device) as own_device:
        outputs = run_network(
            student.to(own_device),
            store,
            clips,
            description.view,
            multi_label=description.multi_label,
            windows=windows,
            stride=stride,
            batch_size=batch_size,
            on_batch=on_batch,
        )
    counts = {
        "split": split,
        "clips": len(clips),
        "missing": int((~outputs.present).sum()),
        "unlabelled_left_out": len(clips_of_splits(store, split)) - len(clips),
    }
    if description.multi_label:
        return _several_labels(store, clips, outputs, description, counts)
    return _one_label(store, clips, outputs, description, counts)


def _one_label(
    store: Store, clips: np.ndarray, outputs: Outputs, description: StudentDescription, counts: dict[str, Any]
) -> Classification:
    classes = description.classes
    labels = encode_labels(store, clips, classes).values
    seen = outputs.present
    scores, truth = outputs.probabilities[seen], labels[seen]
    correct = torch.zeros(len(clips), dtype=torch.float64)
    correct[seen] = (scores.argmax(1) == truth).double()
    share_seen = float(seen.double().mean())
    per_class = metrics.per_class_table(scores=scores, labels=truth, class_names=classes)
    figures = {
        "top1": float(correct.mean()),
        "top5": metrics.top_k_accuracy(scores=scores, labels=truth, k=min(5, len(classes))) * share_seen,
        "mean_class_accuracy": _mean_class_accuracy(correct, labels),
        "top1_interval": list(metrics.bootstrap_interval(values=correct)),
        "calibration_error": metrics.expected_calibration_error(probabilities=scores, labels=truth),
    }
    names = store.columns["id"][clips].tolist()
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
    return Classification(
        figures=counts | figures | {"per_class": per_class},
        confusion=metrics.confusion_matrix(scores=scores, labels=truth).tolist(),
        release_top_k=metrics.release_top_k(
            probabilities=scores,
            names=[n for n, there in zip(names, seen, strict=True) if there],
            class_names=classes,
            k=min(5, len(classes)),
        ),
        predictions=rows,
        classes=classes,
    )


def _mean_class_accuracy(correct: torch.Tensor, labels: torch.Tensor) -> float:
    return float(np.mean([float(correct[labels == c].mean()) for c in torch.unique(labels)]))


def _several_labels(
    store: Store, clips: np.ndarray, outputs: Outputs, description: StudentDescription, counts: dict[str, Any]
) -> Classification:
    classes = description.classes
    truth = encode_labels(store, clips, classes, multi_label=True).values
    scores = outputs.probabilities.where(outputs.present[:, None], torch.tensor(-1.0))  # missing: behind all others
    per_class = tagging_table(scores=scores, labels=truth, class_names=classes)
    best, order = outputs.probabilities.sort(dim=1, descending=True, stable=True)
    rows: list[dict[str, object]] = []
    for clip, there, indices, values in zip(clips, outputs.present, order.tolist(), best.tolist(), strict=True):
        row: dict[str, object] = {"id": store.columns["id"][clip], "labels": "|".join(store.labels[clip])}
        for rank in range(min(5, len(classes))):
            row[f"predicted_{rank + 1}"] = classes[indices[rank]] if there else ""
            row[f"probability_{rank + 1}"] = values[rank] if there else 0.0
        rows.append(row)
    return Classification(
        figures=counts | tagging_means(per_class) | {"per_class": per_class},
        confusion=None,
        release_top_k={},
        predictions=rows,
        classes=classes,
    )
