"""`avdistill demo`: the whole pipeline on synthetic videos, from files to a report. Resumable."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdistill.analysis.benchmark.report import read_lines
from avdistill.analysis.benchmark.study import Study, run_study, write_report
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import write_json
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.progress import OnProgress, Progress
from avdistill.reporting.page import Image, Section
from avdistill.reporting.plots import method_styles, plot_confusion, plot_curves
from avdistill.reporting.tables import markdown_table, summarize
from avdistill.synthetic.generator import Difficulty, SyntheticConfig, synthesize
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import resume, train
from avdistill.training.recipes import RECIPES

# kd's temperature was chosen on other clips and seeds (benchmarks/results/demo_choices.py).
METHODS = {"supervised": "supervised", "kd": "kd:temperature=2", "mnf_csc": "mnf_csc"}
# Fixed from supervised and teacher metrics alone (docs/tasks/synthetic.md), before any student was distilled.
DEMO_DATA = SyntheticConfig(
    labeled_clips=240,
    unlabeled_clips=960,
    difficulty=Difficulty(
        object_size=0.6,
        contrast=1.0,
        clutter=0.1,
        distractors=1,
        shake_pixels=0.3,
        brightness=0.1,
        occlusion=0.0,
        floor_db=0.0,
    ),
)
DEMO_DATASET = PrepareConfig(fps=4, short_side=28)
_COLUMNS = {
    "method": "method",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "top1_accuracy_std": "± (seeds)",
    "hit@1": "hit@1",
    "map": "mAP",
}
_VALUES = ("top1_accuracy", "hit@1", "map")

Bar = Callable[[str], AbstractContextManager[OnProgress]]


def run_demo(out: Path, *, seeds: tuple[int, ...], workers: int, bar: Bar) -> dict[str, Any]:
    """Make the data, train an audio teacher, compare three methods, and write `report.html`.

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
    students = [
        {"method": method, **{key: row[key] for key in ("seed", *_VALUES, "mean_class_accuracy")}}
        for method, text in METHODS.items()
        for row in rows
        if row["method"] == text
    ]
    summary = summarize(students, values=_VALUES)
    result: dict[str, Any] = {
        "students": students,
        "summary": summary,
        "teacher": {"top1_accuracy": teacher["top1_accuracy"]},
        "test_clips": teacher["clips"],
        "table": markdown_table(summary, _COLUMNS),
    }
    write_json(out / "results.json", result)
    write_report(study, rows, title="avdistill demo", page=out / "report.html", first=_sections(study, dataset, result))
    return result


def _train_teacher(run: Path, dataset: ClipDataset, bar: Bar) -> Path:
    """Train the audio teacher, or continue what an interrupted demo left."""
    config = replace(RECIPES["demo_teacher"], dataset=dataset.folder, out=run)
    with bar("train teacher") as update:

        def on_step(step: int, losses: dict[str, float]) -> None:
            update(Progress(step, config.steps, "  ".join(f"{name} {value:.2f}" for name, value in losses.items())))

        return resume(run, on_step=on_step) if (run / "data.json").is_file() else train(config, on_step=on_step)


def _sections(study: Study, dataset: ClipDataset, result: dict[str, Any]) -> list[Section]:
    """What the page of the demo shows before that of the study."""
    runs = {
        method: [study.run_folder("clean", text, f"seed-{seed}") for seed in study.seeds]
        for method, text in METHODS.items()
    }
    curves, confusion = study.out / "curves.png", study.out / "confusion.png"
    plot_curves(
        {method: [_losses(run) for run in folders] for method, folders in runs.items()},
        curves,
        xlabel="step",
        ylabel="classification loss (labeled training clips)",
        title="Training",
        styles=method_styles(METHODS),
    )
    best = max(result["summary"], key=lambda row: row["top1_accuracy"])["method"]
    tested = evaluate(runs[best][0], dataset)
    plot_confusion(tested.confusion or [], tested.classes, confusion)
    counts, data = dataset.describe(), DEMO_DATA
    return [
        Section(
            "Results",
            paragraphs=(
                f"{result['test_clips']} test clips, {len(study.seeds)} seeds per method. All students are the same "
                "small network, take the video alone and train for the same number of steps; kd and mnf_csc also "
                "use the audio of the unlabeled clips, through an audio teacher. The teacher's own top-1 accuracy is "
                f"{result['teacher']['top1_accuracy']:.3f}, because much of the audio is mismatched.",
            ),
            rows=result["summary"],
            columns=_COLUMNS,
            images=(Image(curves, "Classification loss in training: mean and range over seeds.", "loss curves"),),
        ),
        Section(
            "Data",
            paragraphs=(
                f"{counts['clips']} synthetic videos ({', '.join(f'{n} {s}' for s, n in counts['splits'].items())}), "
                f"{counts['classes']} classes, {counts['labeled']} labeled clips. In train and test, "
                f"{data.mismatched:.0%} of the clips have the audio of another object, {data.silent:.0%} are silent "
                f"and {data.noisy:.0%} have noise at {data.snr_db[0]:g} to {data.snr_db[1]:g} dB.",
                "Data and difficulty were fixed from supervised and teacher accuracy alone, the methods' settings on "
                "other seeds than those reported. Synthetic videos show that the pipeline works; they do not show how "
                "a method performs on real videos.",
            ),
        ),
        Section(f"Confusion of {best}, first seed", images=(Image(confusion, "Rows: true class.", "confusion"),)),
    ]


def _losses(run: Path) -> list[tuple[float, float]]:
    lines = [line for line in read_lines(run / "metrics.jsonl") if "losses" in line]
    return [(line["step"], line["losses"]["classification"]) for line in lines]
