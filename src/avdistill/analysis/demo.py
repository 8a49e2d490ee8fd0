"""`avdistill demo`: the whole pipeline on synthetic videos, from files to a report. Resumable; a run takes one core."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from avdistill.analysis.benchmark.report import read_lines
from avdistill.annotations.readers import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.fsio import write_json
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.reporting.page import Image, Section, write_page
from avdistill.reporting.plots import method_styles, plot_bars, plot_confusion, plot_curves
from avdistill.reporting.tables import markdown_table, summarize
from avdistill.synthetic.generator import Difficulty, SyntheticConfig, synthesize
from avdistill.teachers import embed, load_teacher
from avdistill.training import TrainConfig, resume, train
from avdistill.training.recipes import RECIPES

METHODS = ("supervised", "kd", "mnf_csc")
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

Bar = Callable[[str], AbstractContextManager[Callable[..., None]]]


def run_demo(
    out: Path, *, seeds: tuple[int, ...], workers: int, say: Callable[[str], None], bar: Bar
) -> dict[str, Any]:
    """Make the data, train audio teacher and nine students, evaluate them, and write `report.html`.

    Args:
        out: folder for everything; what is already there and whole is kept.
        seeds: of the students; the data and the teacher are the same for all.
        workers: processes at a time.
        say: told what happens.
        bar: makes a progress bar that is told (finished, total, note).

    Returns:
        JSON-ready: `students` (a row per run), `summary`, `teacher`, `test_clips`, `table` (Markdown), `seconds`.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with bar("synthesize videos") as update:
        annotations = synthesize(out / "data", DEMO_DATA, workers=workers, on_clip=update)
    with bar("prepare dataset") as update:
        dataset = prepare(
            read_annotations(annotations),
            out / "data" / "videos",
            out / "dataset",
            DEMO_DATASET,
            workers=workers,
            on_clip=update,
        )
    teacher_run = _train_teacher(out, dataset, bar)
    if "audio" not in dataset.teachers:
        with bar("embed") as update:
            embed(dataset, load_teacher(teacher_run), "audio", on_batch=update)
    teacher = evaluate(teacher_run, dataset).metrics
    say(f"teacher (hears): top-1 {teacher['top1_accuracy']:.3f} on the test clips, whose audio often is not their own")

    configs = [
        replace(RECIPES[f"demo_{method}"], dataset=dataset.folder, out=out / "runs" / f"{method}-{seed}", seed=seed)
        for seed in seeds
        for method in METHODS
    ]
    students = _train_students(configs, workers, bar)
    summary = summarize(students, values=("top1_accuracy", "hit@1", "map"))
    result: dict[str, Any] = {
        "students": students,
        "summary": summary,
        "teacher": {"top1_accuracy": teacher["top1_accuracy"]},
        "test_clips": teacher["clips"],
        "table": markdown_table(summary, _COLUMNS),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(out / "results.json", result)
    _report(out, dataset, result)
    return result


def _train_teacher(out: Path, dataset: ClipDataset, bar: Bar) -> Path:
    config = replace(RECIPES["demo_teacher"], dataset=dataset.folder, out=out / "teacher")
    with bar("train teacher") as update:
        return _finish(config, lambda step, losses: update(step, config.steps, _note("", losses)))


def _finish(config: TrainConfig, on_step: Callable[[int, dict[str, float]], None] | None = None) -> Path:
    """Train, or take up what an interrupted demo left."""
    if (config.out / "data.json").is_file():
        return resume(config.out, on_step=on_step)
    return train(config, on_step=on_step)


def _train_students(configs: list[TrainConfig], workers: int, bar: Bar) -> list[dict[str, Any]]:
    # Spawned, one thread each: two runs side by side finish sooner than one after the other on two threads.
    context = multiprocessing.get_context("spawn")
    total = sum(c.steps for c in configs)
    with ProcessPoolExecutor(workers, mp_context=context) as pool, bar(f"train {len(configs)} students") as update:
        futures: list[Future[dict[str, Any]]] = [pool.submit(_student, config) for config in configs]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
            if any(f.exception() for f in done):
                pool.shutdown(cancel_futures=True)
                break
            steps, note = _progress(configs)
            update(steps, total, note)
        return [f.result() for f in futures if not f.cancelled()]


def _student(config: TrainConfig) -> dict[str, Any]:
    torch.set_num_threads(1)
    done = config.out / "metrics.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    run = _finish(config)
    dataset = ClipDataset(config.dataset)
    classified = evaluate(run, dataset)
    found = retrieve(run, dataset).metrics
    row = {
        "method": config.method.name,
        "seed": config.seed,
        "top1_accuracy": classified.metrics["top1_accuracy"],
        "hit@1": found["hit@1"],
        "map": found["map"],
        "mean_class_accuracy": classified.metrics["mean_class_accuracy"],
    }
    plot_confusion(classified.confusion or [], classified.classes, run / "confusion.png")
    write_json(done, row)
    return row


def _progress(configs: list[TrainConfig]) -> tuple[int, str]:
    """Steps done by all runs together, and the latest losses of the run that wrote last."""
    finished, newest, note = 0, 0.0, ""
    for config in configs:
        path = config.out / "metrics.jsonl"
        steps = [line for line in read_lines(path) if "losses" in line]
        if steps:
            finished += steps[-1]["step"]
            if path.stat().st_mtime > newest and steps[-1]["step"] < config.steps:
                newest = path.stat().st_mtime
                note = _note(f"{config.method.name} seed {config.seed}: ", steps[-1]["losses"])
    return finished, note


def _note(who: str, losses: Mapping[str, float]) -> str:
    return who + "  ".join(f"{name} {value:.2f}" for name, value in losses.items())


def _report(out: Path, dataset: ClipDataset, result: dict[str, Any]) -> None:
    styles = method_styles(METHODS)
    students = result["students"]
    plot_curves(
        {method: [_curve(out, row) for row in students if row["method"] == method] for method in METHODS},
        out / "curves.png",
        xlabel="step",
        ylabel="classification loss (labeled training clips)",
        title="Training",
        styles=styles,
    )
    values = {method: [row["top1_accuracy"] for row in students if row["method"] == method] for method in METHODS}
    plot_bars(
        values, out / "top1_accuracy.png", xlabel="top-1 on the test clips", title="Students that see", styles=styles
    )
    best = max(result["summary"], key=lambda row: row["top1_accuracy"])["method"]
    confusion = out / "runs" / f"{best}-{students[0]['seed']}" / "confusion.png"
    sections = [
        Section(
            "Metrics",
            paragraphs=(
                f"{result['test_clips']} test clips, {len({row['seed'] for row in students})} seeds per method. All "
                "students are the same small network, see only the video and train for the same number of steps; "
                "kd and mnf_csc also use the unlabeled clips' audio, through a teacher that hears. The teacher's own "
                f"top-1 is {result['teacher']['top1_accuracy']:.3f}, because much of the audio is not the thing's own.",
            ),
            rows=result["summary"],
            columns=_COLUMNS,
            images=(
                Image(out / "top1_accuracy.png", "Top-1 on the test clips: mean, and each seed.", "top-1 per method"),
                Image(
                    out / "curves.png",
                    "ClassificationResult loss in training: mean and range over seeds.",
                    "loss curves",
                ),
            ),
        ),
        Section("Data", paragraphs=_describe_data(dataset)),
        Section(f"Confusion of {best}, first seed", images=(Image(confusion, "Rows: true class.", "confusion"),)),
    ]
    write_page(out / "report.html", title="avdistill demo", sections=sections)


def _curve(out: Path, row: Mapping[str, Any]) -> list[tuple[float, float]]:
    lines = read_lines(out / "runs" / f"{row['method']}-{row['seed']}" / "metrics.jsonl")
    return [(line["step"], line["losses"]["classification"]) for line in lines if "losses" in line]


def _describe_data(dataset: ClipDataset) -> tuple[str, str]:
    facts, data = dataset.describe(), DEMO_DATA
    return (
        f"{facts['clips']} synthetic videos ({', '.join(f'{n} {s}' for s, n in facts['splits'].items())}), "
        f"{facts['classes']} classes, {facts['labeled']} labeled. In train and test, {data.mismatched:.0%} of the "
        f"clips have another's audio, {data.silent:.0%} are silent and {data.noisy:.0%} are noisy in noise at "
        f"{data.snr_db[0]:g} to {data.snr_db[1]:g} dB.",
        "The data and their difficulty were fixed from supervised and teacher metrics alone, the methods' settings on "
        "other seeds than those shown. Synthetic videos show that the pipeline works; they do not show how a method "
        "fares on real ones.",
    )
