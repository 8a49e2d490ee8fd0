"""Audit of audio-visual correspondence: every clip of a split scored by a run and its teacher, and ranked.

A clip is suspicious where the teacher's modality carries little information about the student's. Every score is HIGHER
for a clip that is MORE suspicious. Where a dataset records the truth (synthetic clips, controlled corruptions), the
metrics include how well each score finds it; the truth is never an input of a score.
"""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avdistill.analysis.audit.scores import SCORES, audit_inputs, label_scores, percentiles
from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.decisions import DROP_AUDIO, KEEP, Decision
from avdistill.dataset.splits import clips_of_split, encode_labels, has_modality
from avdistill.dataset.stored_features import format_provenance
from avdistill.dataset.teacher_mean import teacher_names
from avdistill.distributed import init_distributed, move_module
from avdistill.errors import DatasetError, RunError
from avdistill.evaluation.multilabel import tagging_table
from avdistill.fsio import replacing, write_json
from avdistill.inference.runner import check_rates
from avdistill.methods import CustomMethodConfig, Method
from avdistill.methods.base import AuditInputs
from avdistill.progress import OnProgress
from avdistill.training.run_dir import data_manifest, environment, run_config
from avdistill.training.setup import load_method
from avdistill.types import Batch, StudentConfig

Score = Literal[
    "mismatch_score", "gate", "similarity", "calibration", "teacher_nll", "disagreement", "mismatch_probability"
]
#: values of a dataset's column `extra`, key "audio", that are a truth; an audit searches for the first
TRUTHS = ("mismatched", "related", "kept", "noisy", "silent", "dropped", "time_shifted")


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        rows: a row per clip of the split, most suspicious first; clips that could not be scored or have not the score
            that ranks come last, with `rank` None. The keys are the columns of `clips.csv`.
        clips: the rows' clips as rows of the dataset, in the same order.
        metrics: JSON-ready: counts, what `mismatch_score` is made of, and where the truth is known how well every score
            finds mismatched audio.
        settings: JSON-ready: what the audit was made with.
    """

    rows: list[dict[str, Any]]
    clips: list[int]
    metrics: dict[str, Any]
    settings: dict[str, Any]


def audit(
    run: Path,
    dataset: ClipDataset,
    *,
    split: str = "train",
    by: Score = "mismatch_score",
    teacher: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    trust_method: bool = False,
    on_progress: OnProgress | None = None,
) -> Audit:
    """Score and rank the clips of a split, labeled and unlabeled, with the last state of a run.

    Student outputs are means over a clip's windows, as in `evaluate`; the teacher's features are the dataset's.

    Args:
        run: run folder. Its `last/` is taken, where student and helpers are of the same step.
        dataset, split: usually what the run was trained on; the dataset holds the teacher's features.
        by: the score to rank by. "mismatch_score" is `mismatch_probability`, one scale for all clips, if the run's
            method gives it (robust); otherwise `teacher_nll` for a labeled clip and `disagreement` for an unlabeled
            one, each group ranked separately and merged by percentile, because their scales differ; `similarity` if
            the teacher has no logits.
        teacher: whose features to use; only for a run without a teacher.
        batch_size: clips, and windows, at a time: tokens of this many clips are held.
        device, trust_method: see `TrainConfig` and `resume`.
        on_progress: called after each batch, in clips.

    Raises:
        RunError: no such run, no teacher, no clip that can be scored, or no values of the score that ranks.
        DatasetError: no such split or teacher, a label the student does not know.
        TeacherError: the dataset's rate differs from the training dataset's.
    """
    case = _open(run, dataset, split, teacher, trust_method)
    with init_distributed(device) as chosen_device:
        inputs = audit_inputs(
            move_module(case.method, chosen_device),
            dataset,
            case.scored,
            case.batch,
            case.description,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    scores, made_of = _scores(case, inputs), case.mismatch_score_from
    if bool(scores[by].isnan().all()):
        raise RunError(f"{run}: cannot rank by {by!r}: it needs {SCORES[by]}")
    by_group = by == "mismatch_score" and made_of["labeled"] != made_of["unlabeled"]
    scores["percentile"] = percentiles(scores[by], case.batch.labeled, by_group=by_group)

    order = scores["percentile"].nan_to_num(-1.0).argsort(descending=True, stable=True).tolist()
    rows = _rows(dataset, case, inputs, scores, order)
    metrics = (
        {"split": split}
        | _counts(rows)
        | {"mismatch_score_from": made_of, "merged_by_percentile": by_group}
        | truth_metrics(rows)
    )
    settings = case.settings(dataset) | {"run": str(run), "split": split, "by": by}
    return Audit(rows, [*case.scored[order].tolist(), *(clip for clip, _ in case.unscored)], metrics, settings)


def write_audit(out: Path, result: Audit) -> None:
    """Write `clips.csv` and `audit.json` into a folder, made if it is missing. Raises OSError where it cannot."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "clips.csv", newline="") as file:
        writer = csv.DictWriter(file, list(result.rows[0]))
        writer.writeheader()
        writer.writerows(result.rows)
    record = {"metrics": result.metrics, "settings": result.settings, "environment": environment()}
    write_json(out / "audit.json", record)


def decide(result: Audit, threshold: float) -> list[Decision]:
    """Drop the audio of the clips whose score, the one that ranks, is at least the threshold; keep the other ranked.

    Clips without that score are not decided about.
    """
    by = result.settings["by"]
    return [
        Decision(row["id"], DROP_AUDIO if row[by] >= threshold else KEEP, by=f"audit: {by} >= {threshold:g}")
        for row in result.rows
        if row["rank"] is not None
    ]


def truth_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the scores find mismatched audio, for labeled and for unlabeled clips.

    Args:
        rows: as in `Audit.rows`; those that were not scored or have no known truth do not count.

    Returns:
        `known_truth`: per group how many scored clips there are of each truth; `truth`: a row per group and score with
        `positives` (mismatched), `negatives` (all other known truths), `auroc` and `average_precision`, both None where
        there is only one of the two. Empty where nothing is known.
    """
    known = [row for row in rows if row["audio"] in TRUTHS and not row["missing"]]
    groups = {name: [row for row in known if row["labeled"] is (name == "labeled")] for name in _GROUPS}
    counts = {name: dict(sorted(Counter(row["audio"] for row in rows).items())) for name, rows in groups.items()}
    table: list[dict[str, Any]] = []
    for group, members in groups.items():
        for score in ("mismatch_score", *SCORES):
            scored = [row for row in members if row[score] is not None]
            if not scored:
                continue
            positive = torch.tensor([[row["audio"] == TRUTHS[0]] for row in scored])
            values = torch.tensor([[row[score]] for row in scored], dtype=torch.float64)
            found = tagging_table(scores=values, labels=positive, class_names=TRUTHS[:1])[0]
            table.append(
                {
                    "group": group,
                    "score": score,
                    "positives": found["clips"],
                    "negatives": len(scored) - found["clips"],
                    "auroc": found["auc"],
                    "average_precision": found["average_precision"],
                }
            )
    return {"known_truth": counts if known else {}, "truth": table}


_GROUPS = ("labeled", "unlabeled")
_DECISIONS = ("teacher_class", "teacher_probability", "student_class", "student_probability")


@dataclass(frozen=True)
class _Case:
    """An audit before its scores: a method with its saved weights, the clips, and their teacher's features.

    Attributes:
        scored: rows of the dataset that hold both modalities.
        unscored: the split's other rows, and whether the "teacher"'s or the "student"'s modality is missing.
        batch: the scored clips, as in `AuditInputs`; the teacher's logits, if any, in the student's classes.
        mismatch_score_from: group -> the score that it is ranked by.
    """

    method: Method
    method_name: str
    description: StudentConfig
    teacher: TeacherEntry
    scored: np.ndarray
    unscored: list[tuple[int, str]]
    batch: Batch
    mismatch_score_from: dict[str, str]

    def settings(self, dataset: ClipDataset) -> dict[str, Any]:
        return {
            "dataset": str(dataset.folder),
            "dataset_checksum": dataset.checksum,
            "method": self.method_name,
            "teacher": self.teacher.name,
            "teacher_modality": self.teacher.modality,
            "teacher_head_fitted_on_this_dataset": self.teacher.fitted_head,
            "student_modality": self.description.view.modality,
            "contrast_batch_size": self.method.context.batch_size,
        }


def _check_provenance(run: Path, dataset: ClipDataset, name: str) -> None:
    """A method's own scores hold for features of the network that it learned from."""
    then, now = data_manifest(run)["teacher"], dataset.teacher(name).provenance
    if then is not None and then["provenance"] != now:
        raise DatasetError(
            f"{dataset.folder}: the features of teacher {name!r} are by {format_provenance(now)}, the run learned from "
            f"those by {format_provenance(then['provenance'])}"
        )


def _open(run: Path, dataset: ClipDataset, split: str, requested: str | None, trust_method: bool) -> _Case:
    config = run_config(run)
    name = _teacher_name(run, config.teacher, dataset, requested)
    if len({dataset.teacher(each).modality for each in teacher_names(name)}) > 1:
        raise RunError(f"{run}: expected teachers of one modality to audit, found {name!r} of both")
    method, description = load_method(run, dataset, trust_method=trust_method)
    if name == config.teacher and method.audits:
        _check_provenance(run, dataset, name)
    check_rates(dataset, description.view, description.fps, description.sample_rate_hz, "the student")
    clips = clips_of_split(dataset, split)
    stored = dataset.features(name, tokens=False).with_classes(description.classes)
    has_student = has_modality(dataset, clips, description.view)
    complete = has_student & stored.valid[clips]
    scored = clips[complete]
    if not len(scored):
        raise RunError(
            f"{run}: none of the {len(clips)} clips of split {split!r} has both {description.view.modality} and "
            f"features of teacher {name!r}"
        )
    features = stored.select(scored)
    if features.logits is not None and "mismatch_probability" in method.audits:
        mismatch_score_from = dict.fromkeys(_GROUPS, "mismatch_probability")
    elif features.logits is not None:
        mismatch_score_from = {"labeled": "teacher_nll", "unlabeled": "disagreement"}
    elif "similarity" in method.audits:
        mismatch_score_from = dict.fromkeys(_GROUPS, "similarity")
    else:
        raise RunError(
            f"{run}: teacher {name!r} has no logits in the student's classes, and the run no noise filter (method "
            "mnf_csc): there is no score to rank by"
        )
    labels = encode_labels(dataset, scored, description.classes, description.multi_label)
    batch = Batch(
        labels=labels.values,
        labeled=labels.labeled,
        has_teacher=torch.ones_like(labels.labeled),
        clip_ids=tuple(dataset.columns["id"][scored].tolist()),
        teacher=features,
        indices=_training_indices(run, dataset.columns["id"][scored].tolist()),
    )
    return _Case(
        method=method,
        method_name=config.method.source if isinstance(config.method, CustomMethodConfig) else config.method.name,
        description=description,
        teacher=dataset.teacher(name),
        scored=scored,
        unscored=[
            (int(clip), "teacher" if has else "student")
            for clip, has in zip(clips[~complete], has_student[~complete], strict=True)
        ],
        batch=batch,
        mismatch_score_from=mismatch_score_from,
    )


def _teacher_name(run: Path, trained_with: str | None, dataset: ClipDataset, requested: str | None) -> str:
    if trained_with is not None and requested not in (None, trained_with):
        raise RunError(f"{run}: trained with teacher {trained_with!r}; it cannot be audited with {requested!r}")
    name = trained_with if requested is None else requested
    if name is None:
        names = ", ".join(sorted(dataset.teachers)) or "none"
        raise RunError(f"{run}: this run has no teacher; name one of the dataset's with --teacher (found: {names})")
    return name


def _training_indices(run: Path, ids: Sequence[str]) -> Tensor:
    """The index of each id in the run's list of training clips, by which its method numbers them; -1 if not in it."""
    index = {name: i for i, name in enumerate(data_manifest(run)["training"])}
    return torch.tensor([index.get(name, -1) for name in ids])


def _scores(case: _Case, inputs: AuditInputs) -> dict[str, Tensor]:
    """Every score and `mismatch_score`, float64 (N,), NaN where a clip has none."""
    missing = torch.full((len(case.scored),), torch.nan, dtype=torch.float64)
    scores = dict.fromkeys(SCORES, missing) | label_scores(inputs) | case.method.cpu().audit_scores(inputs)
    first, second = (scores[case.mismatch_score_from[group]] for group in _GROUPS)
    return scores | {"mismatch_score": first.where(case.batch.labeled, second)}


def _decisions(student: Tensor, logits: Tensor | None, description: StudentConfig) -> dict[str, list[Any]]:
    """The most probable class of teacher and student, and its probability."""
    decisions: dict[str, list[Any]] = {}
    teacher = None if logits is None else logits.sigmoid() if description.multi_label else logits.softmax(1)
    for who, probabilities in (("teacher", teacher), ("student", student)):
        if probabilities is not None:
            best, index = probabilities.max(1)
            decisions[f"{who}_class"] = [description.classes[i] for i in index.tolist()]
            decisions[f"{who}_probability"] = best.tolist()
    return decisions


def _rows(
    dataset: ClipDataset, case: _Case, inputs: AuditInputs, scores: Mapping[str, Tensor], order: Sequence[int]
) -> list[dict[str, Any]]:
    columns = {key: values.tolist() for key, values in scores.items()}
    teacher = inputs.batch.teacher
    columns |= _decisions(inputs.probabilities, None if teacher is None else teacher.logits, case.description)
    rows = [_row(dataset, int(case.scored[i]), {key: values[i] for key, values in columns.items()}) for i in order]
    for rank, row in enumerate(rows, 1):
        row["rank"] = rank if row["percentile"] is not None else None
    return rows + [_row(dataset, clip, {"missing": missing}) for clip, missing in case.unscored]


def _row(dataset: ClipDataset, clip: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table; what is not among the values is None."""
    keys = ("mismatch_score", "percentile", *SCORES, *_DECISIONS)
    columns = {key: values.get(key) for key in keys} | {"missing": values.get("missing", "")}
    return {"rank": None} | clip_row(dataset, clip, columns)


def clip_row(dataset: ClipDataset, clip: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a clip, the values (None for NaN), the truth where it is known, and the value `missing`."""
    c = dataset.columns
    truth = dict(dataset.table["extra"][clip].as_py() or ())
    known = truth.get("audio") in TRUTHS
    row: dict[str, Any] = {
        "id": str(c["id"][clip]),
        "path": str(c["path"][clip]),
        "start_seconds": float(c["start_seconds"][clip]),
        "end_seconds": _number(c["end_seconds"][clip]),  # None: the end of the video
        "label": "|".join(dataset.labels[clip]),
        "split": str(c["split"][clip]),
        "labeled": bool(dataset.labels[clip]),
    }
    row |= {key: _number(value) if isinstance(value, float) else value for key, value in values.items()}
    del row["missing"]
    row |= {key: (truth.get(key) or "") if known else "" for key in ("audio", "audio_source", "true_label")}
    return row | {"missing": values["missing"]}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    missing = Counter(row["missing"] for row in rows)
    scored = [row for row in rows if not row["missing"]]
    return {
        "clips": len(rows),
        "scored": len(scored),
        "labeled": sum(row["labeled"] for row in scored),
        "unlabeled": sum(not row["labeled"] for row in scored),
        "ranked": sum(row["rank"] is not None for row in rows),
        "without_teacher": missing["teacher"],
        "without_student": missing["student"],
    }
