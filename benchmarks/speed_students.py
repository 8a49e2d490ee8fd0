"""How much faster a cheap student trains than the released one, and what it costs: `results/performance/students.json`.

    python benchmarks/speed_students.py --grid DIR --synthetic DIR --work DIR [--workers 2]

Every student is trained on all labelled clips of GRID's words and of the synthetic videos, alike: the same steps,
batches and rates, the best step on a fifth of the training videos, tested on the test clips. Then a training step of
each is timed beside one of the released student, on the same pictures. `cheap_student` is the fastest that keeps 90%
of the released student's top-1 on both. `--grid` is the `--work` of `study_grid.py`, `--synthetic` that of
`methods.py`. Stopped, the same command goes on where it was; the released student's run on GRID takes most of an hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import methods as synthetic
import study
from avdistill.data.store import Store
from avdistill.methods import Sizes, SupervisedConfig, build_method
from avdistill.models import build_model
from avdistill.studies.jobs import Job
from avdistill.training import OptimizerConfig, StudentConfig, TrainConfig
from avdistill.types import Batch, Option, PictureView
from measuring import Row, in_turn, machine, write_rows
from speed_training import step_of

RELEASED = "released_r2plus1d"
RECIPE = OptimizerConfig("adamw", 1e-3, 1e-2, "cosine", warmup_steps=50, clip_norm=5.0)
VIEWS = {"grid": study.GRID.student.view, "synthetic": synthetic.BASE.student.view}
STUDENTS: dict[str, dict[str, Option]] = {
    RELEASED: {},
    "tiny_r2plus1d": {},
    "shifted_frames": {"width": 16, "embedding_dim": 128},
    "stacked_frames": {"width": 32, "embedding_dim": 128},
}


def options_of(student: str, view: PictureView) -> dict[str, Option]:
    """Of the network; stacked frames need to know how many."""
    return STUDENTS[student] | ({"frames": view.frames} if student == "stacked_frames" else {})


def make_job(data: str, student: str, store: Store, work: Path) -> Job:
    """A run, tested on the test clips."""
    view = VIEWS[data]
    assert isinstance(view, PictureView)
    config = TrainConfig(
        store=store.folder,
        out=work / data / student,
        student=StudentConfig(student, view, options_of(student, view)),
        validation_fraction=0.2,
        steps=600,
        batch_size=24,
        optimizer=RECIPE,
        validate_every=60,
        save_every=60,
    )
    return Job("", student, "", config, 1, store.folder, "test", {"data": data, "student": student})


def speed(data: str, student: str) -> list[float]:
    """Seconds of the released student's step over those of this one's, pair by pair."""
    view = VIEWS[data]
    assert isinstance(view, PictureView)
    generator = torch.Generator().manual_seed(0)
    size = (24, view.frames, *view.size, 3)
    yes = torch.ones(24, dtype=torch.bool)
    batch = Batch(
        labels=torch.randint(10, (24,), generator=generator),
        labelled=yes,
        has_teacher=~yes,
        clip_ids=("",) * 24,
        frames=torch.randint(256, size, dtype=torch.uint8, generator=generator),
    )
    ours, theirs = (
        step_of(
            build_method(SupervisedConfig(), build_model(name, 10, options_of(name, view)), Sizes(10, 0, 100, 24, 100)),
            batch,
        )
        for name in (student, RELEASED)
    )
    return [b / a for a, b in in_turn(ours, theirs)]


def main() -> None:
    """Accuracies, speeds, and which student is the cheap one."""
    parser = argparse.ArgumentParser(description="cheap students against the released one")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    stores = {"grid": Store(a.grid / "store"), "synthetic": Store(a.synthetic / "store")}
    jobs = [make_job(data, student, stores[data], a.work) for student in STUDENTS for data in stores]
    figures: dict[str, dict[str, Any]] = {student: {} for student in STUDENTS}
    for job in study.work_through(jobs, a.workers):
        told = json.loads(job.figures.read_text(encoding="utf-8"))
        figures[told["student"]][told["data"]] = told["top1"]
        print(told["student"], told["data"], told["top1"], file=sys.stderr, flush=True)
    rows: list[Row] = []
    for student, top1 in figures.items():
        ratios = {data: speed(data, student) for data in stores}
        share = min(top1[data] / figures[RELEASED][data] for data in stores)
        row = {"name": student, "ratio": min(statistics.median(each) for each in ratios.values()), "bar": 1}
        rows.append(row | {"top1": top1, "share_of_accuracy": share, "ratios": ratios} | machine())
    kept = [row for row in rows if row["share_of_accuracy"] >= 0.9]
    best = max(kept, key=lambda row: row["ratio"])
    rows.append({**best, "name": "cheap_student", "bar": 5, "student": best["name"]})
    write_rows("students", rows)


if __name__ == "__main__":
    main()
