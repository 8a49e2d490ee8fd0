"""The verb that searches for clips with mismatched audio."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from avdistill.analysis.audit.audit import Audit, Score, write_audit
from avdistill.analysis.audit.audit import audit as audit_run
from avdistill.analysis.audit.page import write_audit_page
from avdistill.commands.console import FIRST_PROCESS, Printed, output, progress_bar, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError
from avdistill.fsio import own_folder, result_folder
from avdistill.reporting.tables import format_value


@dataclass(frozen=True)
class _Audit(Printed):
    """Rank the clips of a split by how likely their audio is mismatched; write a table and a page."""

    run: tyro.conf.Positional[Path]
    """The run folder of a distilled student."""
    dataset: tyro.conf.Positional[Path]
    """A dataset with the teacher's features, usually the one that the run was trained on."""
    split: str = "train"
    """The split whose clips are scored, labeled or not."""
    by: Score = "mismatch_score"
    """The score that ranks the clips: mismatch_score is teacher_nll for labeled and disagreement for unlabeled clips,
    and mismatch_probability for both in a run of the methods robust and robust_csc."""
    teacher: str | None = None
    """The name of the teacher's features in the dataset, for a run without a teacher; by default the run's teacher."""
    cards: int = 40
    """The number of top-ranked clips that the page shows."""
    batch_size: int = 32
    """Clips per batch."""
    trust_method: bool = False
    """Run the Python file of the run's custom method; read it first if the run is somebody else's."""
    out: Path | None = None
    """Folder for clips.csv, audit.json and audit.html; the default is RUN/audit-SPLIT."""


def audit(arguments: list[str]) -> None:
    """`avdistill audit RUN DATASET`."""
    a = tyro.cli(_Audit, args=arguments, prog="avdistill audit")
    out = a.out or own_folder(a.run, f"audit-{a.split}")
    for name, least in (("cards", 0), ("batch_size", 1)):
        if getattr(a, name) < least:
            raise ConfigError(f"{name}: must be at least {least}, got {getattr(a, name)}")
    dataset = ClipDataset(a.dataset)
    with progress_bar("audit") as update:
        result = audit_run(
            a.run,
            dataset,
            split=a.split,
            by=a.by,
            teacher=a.teacher,
            batch_size=a.batch_size,
            trust_method=a.trust_method,
            on_progress=update,
        )
    if FIRST_PROCESS:
        with result_folder(out) as fresh:
            write_audit(fresh, result)
            write_audit_page(fresh / "audit.html", result, dataset, cards=a.cards)
    say(f"table: {out / 'clips.csv'}\npage:  {out / 'audit.html'}")
    output({**result.settings, **result.metrics, "out": str(out)}, _lines(result), a.json)


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
