"""What is to be had without training a network: linear probes and nearest centroids on frozen features."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from avdistill.analysis.distill.config import TEST, TRAIN
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.dataset.stored_features import format_provenance
from avdistill.teachers.linear_head import fit_head


def baseline_rows(dataset: ClipDataset, features: Iterable[str]) -> list[dict[str, Any]]:
    """A row per set of features and classifier, tested on the clips that the students are tested on.

    A test clip without the features' modality counts as wrong, as for a student.

    Args:
        dataset: with the splits of `distill`.
        features: names of features in the dataset.

    Returns:
        `method`, `correct` (0 or 1 for each test clip, in their order), `top1_accuracy` and `mean_class_accuracy`.
    """
    tested = labeled_clips(dataset, TEST)
    rows = []
    for name in features:
        stored = dataset.features(name, tokens=False)
        embedding = np.where(stored.valid[:, None], stored.embedding, np.float32(np.nan))
        what = f"{format_provenance(dataset.teachers[name].provenance).split(',')[0]} ({name})"
        scores = {
            "linear probe": fit_head(dataset, embedding, split=TRAIN)[0],
            "nearest centroid": centroid_scores(dataset, embedding),
        }
        for classifier, of_clip in scores.items():
            if of_clip is not None:
                rows.append({"method": f"{classifier}, {what}"} | _tested(dataset, tested, of_clip))
    return rows


def centroid_scores(dataset: ClipDataset, embedding: np.ndarray) -> np.ndarray:
    """(N, C) cosine of each clip with the mean of each class's labeled training clips, all of unit length.

    Args:
        dataset: N clips of C classes.
        embedding: (N, D), a row of NaN for a clip without one. Such clips have scores of NaN, as have classes without
            a training clip.
    """
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-9)
    usable = (dataset.columns["split"] == TRAIN) & ~np.isnan(embedding).any(1)
    scores = np.full((len(dataset), len(dataset.classes)), np.nan)
    for column, name in enumerate(dataset.classes):
        clips = [i for i in np.flatnonzero(usable) if name in dataset.labels[i]]
        if clips:
            mean = unit[clips].mean(0)
            scores[:, column] = unit @ (mean / max(np.linalg.norm(mean), 1e-9))
    return scores


def _tested(dataset: ClipDataset, tested: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    guesses = np.nan_to_num(scores[tested], nan=-np.inf).argmax(1)
    some = ~np.isnan(scores[tested]).all(1)
    truth = [dataset.labels[i] for i in tested]
    correct = np.array([there and dataset.classes[guess] in row
                        for there, guess, row in zip(some, guesses, truth, strict=True)])  # fmt: skip
    of_class = [correct[[row[0] == name for row in truth]] for name in sorted({row[0] for row in truth})]
    return {
        "correct": "".join("01"[int(right)] for right in correct),
        "top1_accuracy": float(correct.mean()),
        "mean_class_accuracy": float(np.mean([each.mean() for each in of_class])),
    }
