"""`avdistill demo`: the whole pipeline on synthetic videos, from files to a report. Resumable."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdistill.analysis.benchmark.study import Study, run_study, write_report
from avdistill.analysis.demo_report import COLUMNS, differences, sections
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import write_json
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.progress import OnProgress, Progress
from avdistill.reporting.page import write_page
from avdistill.reporting.tables import markdown_table, summarize
from avdistill.search.columns import student_column
from avdistill.search.forms import build_index
from avdistill.synthetic.generator import Difficulty, SyntheticConfig, synthesize
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import train_to_end
from avdistill.training.recipes import RECIPES

# Name in the report -> method; the settings were chosen on other clips and seeds (benchmarks/results/demo_choices.py).
METHODS = {
    "supervised": "supervised",
    "kd": "kd:temperature=2",
    "mnf_csc": "mnf_csc:unlabeled=unused,calibration_weight=0.3",
    "robust_csc": "robust_csc",
}
# Fixed from supervised and teacher metrics alone (docs/tasks/synthetic.md), before any student was distilled.
DEMO_DATA = SyntheticConfig(
    teacher_clips=300,
    labeled_clips=240,
    unlabeled_clips=960,
    mismatched=0.3,
    difficulty=Difficulty(
        object_size=0.9,
        contrast=1.0,
        clutter=0.0,
        distractors=0,
        shake_pixels=0.0,
        brightness=0.1,
        occlusion=0.0,
        floor_db=0.0,
    ),
)
DEMO_DATASET = PrepareConfig(fps=4, short_side=28)
_VALUES = ("top1_accuracy", "hit@1", "map")

Bar = Callable[[str], AbstractContextManager[OnProgress]]


def run_demo(out: Path, *, seeds: tuple[int, ...], workers: int, bar: Bar) -> dict[str, Any]:
    """Make the data, train an audio teacher, compare `METHODS`, index the clips, and write `report.html`.

    Args:
        out: folder for everything; what an earlier call finished is kept.
        seeds: of the students; the data and the teacher are the same for all.
        workers: processes at a time; each training run takes one core.
        bar: makes a progress bar of a title.

    Returns:
        JSON-ready: `students` (a row per run), `summary`, `teacher`, `test_clips`, `table` (Markdown).
    """
    out.mkdir(parents=True, exist_ok=True)
    with bar("synthesize videos") as update:
        listed = read_annotations(synthesize(out / "data", DEMO_DATA, workers=workers, on_progress=update))
    with bar("prepare dataset") as update:
        videos = out / "data" / "videos"
        dataset = prepare(listed, videos, out / "dataset", DEMO_DATASET, workers=workers, on_progress=update)
    teacher_run = _train_teacher(out / "teacher", dataset, bar)
    if "audio" not in dataset.teachers:
        with bar("embed") as update:
            embed(dataset, load_teacher(teacher_run), "audio", on_progress=update)
    teacher = evaluate(teacher_run, dataset).metrics.to_dict()
    logging.getLogger(__name__).info(
        "audio teacher: top-1 accuracy %.3f on test clips with much mismatched audio", teacher["top1_accuracy"]
    )
    study = Study(
        dataset=dataset.folder,
        out=out / "study",
        base=RECIPES["demo_supervised"],
        methods=tuple(METHODS.values()),
        seeds=seeds,
    )
    with bar("train students") as update:
        rows = run_study(study, workers=workers, threads=1, on_progress=update)
    write_report(study, rows, title="avdistill demo: the study")
    names = {text: name for name, text in METHODS.items()}
    rows = [row | {"method": names[row["method"]]} for row in rows]
    students = [_metrics(row) for name in METHODS for row in rows if row["method"] == name]
    summary = summarize(students, values=_VALUES)
    groups = dataset.columns["group"][labeled_clips(dataset, "test")]
    result: dict[str, Any] = {
        "students": students,
        "summary": summary,
        "differences": differences(rows, groups),
        "teacher": {"top1_accuracy": teacher["top1_accuracy"]},
        "test_clips": teacher["clips"],
        "table": markdown_table(summary, COLUMNS),
    }
    write_json(out / "results.json", result)
    runs = {name: [study.run_folder("clean", text, f"seed-{seed}") for seed in seeds] for name, text in METHODS.items()}
    _index(out / "index", dataset, runs["robust_csc"][0], bar)
    shown = sections(rows, runs, result, dataset, videos, DEMO_DATA, study.out)
    write_page(out / "report.html", title="avdistill demo", sections=shown, style="audit.css")
    return result


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """What the demo reports of a run."""
    return {key: row[key] for key in ("method", "seed", *_VALUES, "mean_class_accuracy")}


def _index(out: Path, dataset: ClipDataset, run: Path, bar: Bar) -> None:
    """For `avdistill serve`: the clips by the teacher's features and by a student's."""
    with bar("index") as update:
        build_index([dataset.folder], out, [student_column(run, "robust_csc")], on_progress=update)


def _train_teacher(run: Path, dataset: ClipDataset, bar: Bar) -> Path:
    """Train the audio teacher, or continue what an interrupted demo left."""
    config = replace(RECIPES["demo_teacher"], dataset=dataset.folder, out=run)
    with bar("train teacher") as update:

        def on_step(step: int, losses: dict[str, float]) -> None:
            update(Progress(step, config.steps, "  ".join(f"{name} {value:.2f}" for name, value in losses.items())))

        return train_to_end(config, on_step=on_step)
