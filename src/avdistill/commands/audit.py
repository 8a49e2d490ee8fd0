"""The verb that searches for clips with mismatched audio, with a run or without."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from avdistill.analysis.audit.audit import Audit, Score, decide, write_audit
from avdistill.analysis.audit.audit import audit as audit_run
from avdistill.analysis.audit.dataset_audit import audit_dataset
from avdistill.analysis.audit.dataset_page import write_dataset_audit_page
from avdistill.analysis.audit.page import write_audit_page
from avdistill.commands.console import Printed, is_first_process, output, progress_bar, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import DROP_AUDIO, KEEP, write_decisions
from avdistill.errors import ConfigError
from avdistill.fsio import own_folder, result_folder
from avdistill.progress import OnProgress
from avdistill.reporting.tables import format_value


@dataclass(frozen=True)
class _Audit(Printed):
    """Rank clips by how likely their audio is mismatched, with or without a run; write a table and a page."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """DATASET, or RUN DATASET. A dataset alone needs the features of an audio and of a video encoder, but neither
    labels nor training; with the run folder of a distilled student it needs those of the run's teacher."""
    split: str | None = None
    """The split whose clips are scored, labeled or not; by default train with a run, and all clips without one."""
    audio_features: str | None = None
    """Without a run: the name of the audio features in the dataset; the default is the only ones."""
    video_features: str | None = None
    """Without a run: the name of the video features in the dataset; the default is the only ones."""
    decide: float | None = None
    """Write decisions.csv as well: drop_audio for clips whose score is at least this threshold, keep for the others.
    Without a run 0.5 is the score of unrelated audio."""
    by: Score | None = None
    """With a run: the score that ranks the clips. The default mismatch_score is teacher_nll for labeled and
    disagreement for unlabeled clips, and mismatch_probability for both in a run of the methods robust and
    robust_csc."""
    teacher: str | None = None
    """With a run without a teacher: the name of the teacher's features in the dataset; by default the run's teacher."""
    cards: int = 40
    """The number of top-ranked clips that the page shows."""
    batch_size: int = 32
    """With a run: clips per batch."""
    trust_method: bool = False
    """Run the Python file of the run's custom method; read it first if the run is somebody else's."""
    out: Path | None = None
    """Folder for clips.csv, audit.json and audit.html; the default is RUN/audit-SPLIT, or DATASET-audit without a
    run."""


def audit(arguments: list[str]) -> None:
    """`avdistill audit DATASET` or `avdistill audit RUN DATASET`."""
    a = tyro.cli(_Audit, args=arguments, prog="avdistill audit")
    if len(a.paths) not in (1, 2):
        raise ConfigError(f"audit: expected DATASET or RUN DATASET, found {len(a.paths)} paths")
    for name, least in (("cards", 0), ("batch_size", 1)):
        if getattr(a, name) < least:
            raise ConfigError(f"{name}: must be at least {least}, got {getattr(a, name)}")
    _check_options(a)
    dataset = ClipDataset(a.paths[-1])
    with progress_bar("audit") as update:
        result = _audited(a, dataset, update)
    if len(a.paths) == 2:
        out, write, lines = a.out or own_folder(a.paths[0], f"audit-{a.split or 'train'}"), write_audit_page, _lines
    else:
        folder = dataset.folder.resolve()
        out = a.out or own_folder(folder.parent, f"{folder.name}-audit")
        write, lines = write_dataset_audit_page, _dataset_lines
    decisions = [] if a.decide is None else decide(result, a.decide)
    if is_first_process():
        with result_folder(out) as fresh:
            write_audit(fresh, result)
            write(fresh / "audit.html", result, dataset, cards=a.cards)
            if a.decide is not None:
                write_decisions(fresh / "decisions.csv", decisions)
    say(f"table: {out / 'clips.csv'}\npage:  {out / 'audit.html'}")
    dropped = sum(decision.kind == DROP_AUDIO for decision in decisions)
    decided = [] if a.decide is None else [f"{out / 'decisions.csv'}: drop_audio for {dropped} of {len(decisions)}"]
    counts = {} if a.decide is None else {"decisions": {DROP_AUDIO: dropped, KEEP: len(decisions) - dropped}}
    output({**result.settings, **result.metrics, **counts, "out": str(out)}, lines(result) + decided, a.json)


def _check_options(a: _Audit) -> None:
    """Raise ConfigError for an option that has no effect."""
    only = ("by", "teacher", "trust_method") if len(a.paths) == 1 else ("audio_features", "video_features")
    for name in only:
        if getattr(a, name):
            wanted = "RUN DATASET" if len(a.paths) == 1 else "DATASET alone"
            raise ConfigError(f"--{name.replace('_', '-')}: expected with {wanted} only")
    if a.decide is not None and math.isnan(a.decide):
        raise ConfigError("--decide: expected a number, found nan")


def _audited(a: _Audit, dataset: ClipDataset, on_progress: OnProgress) -> Audit:
    if len(a.paths) == 1:
        return audit_dataset(
            dataset,
            audio_features=a.audio_features,
            video_features=a.video_features,
            split=a.split,
            on_progress=on_progress,
        )
    return audit_run(
        a.paths[0],
        dataset,
        split=a.split or "train",
        by=a.by or "mismatch_score",
        teacher=a.teacher,
        batch_size=a.batch_size,
        trust_method=a.trust_method,
        on_progress=on_progress,
    )


def _dataset_lines(result: Audit) -> list[str]:
    f, s = result.metrics, result.settings
    flags = ", ".join(f"{name} {count}" for name, count in f["flags"].items()) or "none"
    lines = [
        f"{f['scored']} of {f['clips']} clips scored by features {s['audio_features']!r} and {s['video_features']!r}; "
        f"{f['without_audio']} without audio, {f['without_video']} without video; flags: {flags}",
        f"median score {f['median_score']:.2f} (0.5: chance); at most {f['mismatched_share_at_most']:.0%} mismatched",
    ]
    ranked = [row for row in result.rows[:5] if row["rank"] is not None]
    lines += [f"{row['rank']:>4}  {row['correspondence']:7.3f}  {row['id']}" for row in ranked]
    if f["truth"] is not None:
        lines.append(f"detection of mismatched audio: AUROC {f['truth']['auroc']:.3f}")
    return lines


def _lines(result: Audit) -> list[str]:
    f = result.metrics
    lines = [
        f"{f['scored']} of {f['clips']} clips of split {f['split']!r} scored "
        f"({f['labeled']} labeled, {f['unlabeled']} unlabeled), {f['without_teacher']} without a teacher, "
        f"{f['without_student']} without the student's modality"
    ]
    score = result.settings["by"]
    ranked = [row for row in result.rows[:5] if row["rank"] is not None]
    lines += [f"{row['rank']:>4}  {format_value(row[score]):>7}  {row['id']}{_classes(row)}" for row in ranked]
    if f["truth"]:
        lines.append("detection of mismatched audio (AUROC, average precision):")
    return lines + [
        f"  {row['group']:<11}{row['score']:<16}{format_value(row['auroc']):>6}  "
        f"{format_value(row['average_precision']):>6}   {row['positives']} of {row['positives'] + row['negatives']}"
        for row in f["truth"]
    ]


def _classes(row: dict[str, Any]) -> str:
    label = row["label"] if row["labeled"] else "unlabeled"
    teacher = f", teacher {row['teacher_class']}" if row["teacher_class"] is not None else ""
    return f"  ({label}{teacher}, student {row['student_class']})"
