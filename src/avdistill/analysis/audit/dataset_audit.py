"""Audit of a dataset without a run and without labels: `correspondence` from two frozen encoders' features, and flags.

Every clip is scored against clips of other source videos only (`correspondence.py`). The truth, where a dataset records
it, is read after scoring.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avdistill.analysis.audit.audit import TRUTHS, Audit, clip_row
from avdistill.analysis.audit.correspondence import correspondence
from avdistill.analysis.audit.flags import Flags, flag_clips
from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.mapped_features import MappedFeatures
from avdistill.dataset.splits import clips_of_splits
from avdistill.errors import DatasetError
from avdistill.evaluation.multilabel import tagging_table
from avdistill.preparation.duplicates import Duplicate
from avdistill.progress import OnProgress

# Thresholds of the score for which the page says how many clips lie above, and how many of them may be matched.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)


def audit_dataset(
    dataset: ClipDataset,
    *,
    audio_features: str | None = None,
    video_features: str | None = None,
    split: str | None = None,
    duplicates: Sequence[Duplicate] | None = None,
    on_progress: OnProgress | None = None,
) -> Audit:
    """Score and rank clips by how badly their audio fits their video, and flag what a person would notice.

    Args:
        dataset: with features of an audio and of a video encoder (`avdistill embed`).
        audio_features, video_features: their names; None takes the only features of the modality.
        split: of the clips, several joined by "+"; None takes all clips of the dataset.
        duplicates: near-duplicates of the dataset; None searches for them.
        on_progress: called after each clip that flags were looked for in.

    Returns:
        Rows with `correspondence` in [0, 1], higher for a clip that is more suspicious, and `flags`, joined by "; ".

    Raises:
        DatasetError: no such features or split, several features of a modality and none named, or too few clips.
    """
    names = {
        "audio": find_features(dataset, "audio", audio_features),
        "video": find_features(dataset, "video", video_features),
    }
    clips = np.arange(len(dataset)) if split is None else clips_of_splits(dataset, split)
    scores, missing = _scores(dataset, names, clips)
    both = missing == ""
    flags = flag_clips(dataset, clips, duplicates=duplicates, on_progress=on_progress)

    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    rows = []
    for rank, i in enumerate(order.tolist(), 1):
        values = {"correspondence": scores[i], "flags": "; ".join(flags.of_clip[i]), "missing": str(missing[i])}
        rows.append({"rank": rank if both[i] else None} | clip_row(dataset, int(clips[i]), values))
    metrics = _counts(rows, flags) | estimates(scores[both]) | _truth(rows)
    settings = {
        "dataset": str(dataset.folder),
        "dataset_checksum": dataset.checksum,
        "split": split,
        "by": "correspondence",
        **{f"{modality}_features": name for modality, name in names.items()},
        **{f"{modality}_provenance": dataset.teachers[name].provenance for modality, name in names.items()},
    }
    return Audit(rows, clips[order].tolist(), metrics, settings)


def _scores(dataset: ClipDataset, names: dict[str, str], clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`correspondence` of each clip, NaN for one without both features; and the modality that it lacks, or ""."""
    audio, video = (dataset.map_features(names[modality]) for modality in ("audio", "video"))
    has_audio = (audio.valid & ~dataset.columns["silent"].astype(bool))[clips]
    both = has_audio & video.valid[clips]
    scored, scores = clips[both], np.full(len(clips), np.nan)
    try:
        scores[both] = correspondence(
            _StoredRows(audio, scored), _StoredRows(video, scored), dataset.columns["group"][scored]
        )
    except ValueError as error:
        wanted = f"features {names['audio']!r} and {names['video']!r}"
        raise DatasetError(f"{dataset.folder}: {wanted}: {error}") from error
    return scores, np.where(both, "", np.where(has_audio, "video", "audio"))


@dataclass(frozen=True)
class _StoredRows:
    """Embeddings of some clips, which stay on the disk."""

    features: MappedFeatures
    clips: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.clips), self.features.embedding_dim

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.features.rows("embedding", self.clips[rows])


def find_features(dataset: ClipDataset, modality: Literal["audio", "video"], name: str | None) -> str:
    """The features of a modality: those that are named, or else the only ones. Raises DatasetError."""
    there = {key: entry for key, entry in dataset.teachers.items() if entry.modality == modality}
    where = f"{dataset.folder}: {modality} features"
    if name is not None:
        if name not in there:
            raise DatasetError(f"{where}: expected one of {_listed(there)}, found {name!r}")
        return name
    if not there:
        raise DatasetError(f"{where}: expected those of a frozen encoder, found none; add them with `avdistill embed`")
    if len(there) > 1:
        raise DatasetError(f"{where}: expected a name with --{modality}-features, found several: {_listed(there)}")
    return next(iter(there))


def _listed(entries: dict[str, TeacherEntry]) -> str:
    return ", ".join(sorted(entries)) or "none"


def estimates(scores: np.ndarray) -> dict[str, Any]:
    """What the scores say of the whole dataset, without any truth.

    The two ranks of mismatched audio are taken as independent and uniform: it then lies above t >= 1/2 with probability
    2 (1 - t)^2, and above 1/2 as often as below. So twice the share of clips above 1/2 bounds the share of mismatched
    audio from above (Storey 2002): some matched clips lie there too.
    """
    at_most = min(1.0, 2 * float((scores > 0.5).mean()))
    table = []
    for threshold in THRESHOLDS:
        above = int((scores >= threshold).sum())
        mismatched = min(float(above), at_most * len(scores) * 2 * (1 - threshold) ** 2)
        table.append({"threshold": threshold, "clips": above, "mismatched_at_most": round(mismatched)})
    return {"median_score": float(np.median(scores)), "mismatched_share_at_most": at_most, "thresholds": table}


def _counts(rows: Sequence[dict[str, Any]], flags: Flags) -> dict[str, Any]:
    missing = Counter(row["missing"] for row in rows)
    return {
        "clips": len(rows),
        "scored": missing[""],
        "without_audio": missing["audio"],
        "without_video": missing["video"],
        "flags": dict(Counter(name for of_clip in flags.of_clip for name in of_clip)),
        "flags_not_looked_for": flags.not_looked_for,
    }


def _truth(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How well the score finds mismatched audio, where the dataset knows of some."""
    known = [row for row in rows if row["audio"] in TRUTHS and row["rank"] is not None]
    positive = torch.tensor([[row["audio"] == TRUTHS[0]] for row in known])
    if not known or positive.all() or not positive.any():
        return {"truth": None}
    values = torch.tensor([[row["correspondence"]] for row in known], dtype=torch.float64)
    found = tagging_table(scores=values, labels=positive, class_names=TRUTHS[:1])[0]
    counts = {"positives": found["clips"], "negatives": len(known) - found["clips"]}
    return {"truth": counts | {"auroc": found["auc"], "average_precision": found["average_precision"]}}
