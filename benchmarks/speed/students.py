"""How much faster a cheap student trains than the released one, and what it costs: `results/performance/students.json`.

    python benchmarks/speed/students.py accuracy --grid DIR --synthetic DIR --work DIR [--workers 2]
    python benchmarks/speed/students.py speed

`accuracy` trains every student on all labeled clips of GRID's words and of the synthetic videos, alike: the same
steps, batches and rates, the best step on a fifth of the training videos, tested on the test clips. `--grid` is the
`--work` of `study_grid.py`, `--synthetic` that of `methods.py --data-only`. Stopped, the same command goes on where it
was; it takes a quarter of an hour on two cores and is no part of `make bench`. `speed` times a training step of each
beside one of the released student, on images of the same size. `cheap_student` is the fastest that keeps 90% of the
released student's top-1 on both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "results"))  # what it shares with the scripts there

import torch

import methods as synthetic
import study
from avdistill.analysis.benchmark.jobs import Job
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import write_json
from avdistill.inputs import VideoInput
from avdistill.methods import MethodContext, build_method
from avdistill.methods.supervised import SupervisedConfig
from avdistill.models.registry import build_model
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig
from avdistill.types import Batch, Option
from measuring import RESULTS, Row, against, machine, process_of, write_rows
from training import step_of

ACCURACY = RESULTS.parent / "study" / "students.json"
RELEASED = "r2plus1d_xia2023"
RECIPE = OptimizerConfig("adamw", 1e-3, 1e-2, "cosine", warmup_steps=50, max_grad_norm=5.0)
VIEWS = {"grid": study.GRID.student.view, "synthetic": synthetic.BASE.student.view}
STUDENTS: dict[str, dict[str, Option]] = {
    RELEASED: {},
    "tiny_r2plus1d": {},
    "shifted_frames": {"width": 16, "embedding_dim": 128},
    "stacked_frames": {"width": 32, "embedding_dim": 128},
}


def options_of(student: str, view: VideoInput) -> dict[str, Option]:
    """Of the network; stacked frames need to know how many."""
    return STUDENTS[student] | ({"frames": view.frames} if student == "stacked_frames" else {})


def make_job(data: str, student: str, dataset: ClipDataset, work: Path) -> Job:
    """A run, tested on the test clips."""
    view = VIEWS[data]
    assert isinstance(view, VideoInput)
    config = TrainConfig(
        dataset=dataset.folder,
        out=work / data / student,
        student=ModelConfig(student, view, options_of(student, view)),
        val_fraction=0.2,
        steps=400,
        batch_size=24,
        optimizer=RECIPE,
        eval_every=60,
        save_every=60,
    )
    return Job("", student, "", config, 1, dataset.folder, "test", {"data": data, "student": student})


def step(student: str, data: str) -> Callable[[], float]:
    """A training step of a student on random images."""
    view = VIEWS[data]
    assert isinstance(view, VideoInput)
    generator = torch.Generator().manual_seed(0)
    size = (24, view.frames, *view.size, 3)
    yes = torch.ones(24, dtype=torch.bool)
    batch = Batch(
        labels=torch.randint(10, (24,), generator=generator),
        labeled=yes,
        has_teacher=~yes,
        clip_ids=("",) * 24,
        frames=torch.randint(256, size, dtype=torch.uint8, generator=generator),
    )
    network = build_model(student, 10, options_of(student, view))
    return step_of(build_method(SupervisedConfig(), network, MethodContext(10, 0, 100, 24, 100)), batch, RECIPE)


def accuracy(a: argparse.Namespace) -> None:
    """Top-1 of every student on both data sets."""
    datasets = {"grid": ClipDataset(a.grid / "dataset"), "synthetic": ClipDataset(a.synthetic / "dataset")}
    jobs = [make_job(data, student, datasets[data], a.work) for student in STUDENTS for data in datasets]
    top1_accuracy: dict[str, dict[str, float]] = {student: {} for student in STUDENTS}
    for job in study.work_through(jobs, a.workers):
        told = json.loads(job.metrics.read_text(encoding="utf-8"))
        top1_accuracy[told["student"]][told["data"]] = told["top1_accuracy"]
        print(told["student"], told["data"], told["top1_accuracy"], file=sys.stderr, flush=True)
    told = {"command": "python benchmarks/speed/students.py accuracy --grid DIR --synthetic DIR --work DIR"}
    write_json(
        ACCURACY,
        told | {"steps": jobs[0].config.steps, "seed": jobs[0].config.seed, "top1_accuracy": top1_accuracy} | machine(),
    )


def speed() -> None:
    """Seconds of the released student's step over those of each other one's, and which student is the cheap one."""
    top1_accuracy = json.loads(ACCURACY.read_text(encoding="utf-8"))["top1_accuracy"]
    rows: list[Row] = []
    for student in [name for name in STUDENTS if name != RELEASED]:
        row: Row = {"name": student, "bar": 1, "top1_accuracy": top1_accuracy[student]}
        for data in VIEWS:
            with process_of(partial(step, student, data)) as ours, process_of(partial(step, RELEASED, data)) as theirs:
                row[data] = against(student, 1, ours, theirs)
        row["ratio"] = min(row[data]["ratio"] for data in VIEWS)
        slowest = min(VIEWS, key=lambda data: row[data]["ratio"])
        row |= {name: row[slowest][name] for name in ("ours_seconds", "theirs_seconds")}
        row |= {data: round(row[data]["ratio"], 3) for data in VIEWS}
        row["share_of_accuracy"] = min(top1_accuracy[student][data] / top1_accuracy[RELEASED][data] for data in VIEWS)
        rows.append(row | machine())
    kept = [row for row in rows if row["share_of_accuracy"] >= 0.9]
    if kept:
        best = max(kept, key=lambda row: row["ratio"])
        rows.append({**best, "name": "cheap_student", "bar": 5, "student": best["name"]})
    write_rows("students", rows)


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description="cheap students against the released one")
    parser.add_argument("what", choices=("accuracy", "speed"))
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    accuracy(a) if a.what == "accuracy" else speed()


if __name__ == "__main__":
    main()
