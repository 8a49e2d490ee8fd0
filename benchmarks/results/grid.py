"""Real video and audio: GRID speaker s1, word by word, from video files to metrics in `results/grid.json`.

    python benchmarks/results/grid.py --videos DIR --work DIR [--workers 2]

DIR holds the 700 clips and `alignments/`. Roles of the clips are fixed: sorted names, permuted by
`default_rng(0).permutation(700)`: the first 140 test, the next 160 only for the audio teacher, the last 400 for the
students. Every word is a segment of 0.64 s around its middle; clips, never segments, are split. One speaker, so the
metrics say nothing of other speakers. Nothing here was tuned: steps, rates and width were set, and cut once for time,
before any test figure was seen; the best model is chosen on a tenth of the student clips. Stopped, the same command
goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.annotations import read_annotations
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.executors.parent import end_with_parent
from avdistill.fsio import write_json
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods import MethodConfig
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig, train_to_end
from avdistill.training.run_dir import machine

RESULTS = Path(__file__).resolve().parents[2] / "results" / "grid.json"
FPS, HALF_FRAMES, CLIP_FRAMES = 25, 8, 75
PREPARE = PrepareConfig(fps=FPS, short_side=None, size=(36, 64), region=(96, 176, 128, 72))
TEACHER = TrainConfig(
    dataset=Path(),
    out=Path(),
    student=ModelConfig("logmel_cnn", AudioInput(seconds=0.64)),
    train_split="teacher",
    steps=1500,
    batch_size=64,
    optimizer=OptimizerConfig("adamw", 2e-3, 1e-2, "cosine", warmup_steps=50),
    eval_every=200,
)
# Frames as channels in a small 2-D network: what two cores can train to convergence many times over.
STUDENT = TrainConfig(
    dataset=Path(),
    out=Path(),
    student=ModelConfig(
        "stacked_frames", VideoInput(frames=16, size=(28, 48), scale=(0.6, 1.0), ratio=(1.5, 2.1)), {"width": 32}
    ),
    steps=2000,
    batch_size=48,
    optimizer=OptimizerConfig("adamw", 2e-3, 1e-2, "cosine", warmup_steps=50, max_grad_norm=5.0),
    eval_every=200,
)
METHODS: dict[str, MethodConfig] = {
    "supervised": SupervisedConfig(),
    "kd": KDConfig(),
    "mnf_csc, pairwise (released)": MNFCSCConfig(),
    "mnf_csc, sample": MNFCSCConfig(temperature="sample"),
    "mnf_csc, fixed": MNFCSCConfig(temperature="fixed"),
}
SEEDS = (0, 1)


def write_annotations(videos: Path, path: Path) -> None:
    """The word segments of every clip as a list that `avdistill prepare` reads."""
    names = sorted(p.stem for p in videos.glob("*.mp4"))
    if len(names) != 700:
        raise SystemExit(f"{videos}: expected 700 clips, found {len(names)}")
    roles = {}
    for position, i in enumerate(np.random.default_rng(0).permutation(700)):
        roles[names[i]] = "test" if position < 140 else "teacher" if position < 300 else "train"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "start_seconds", "end_seconds"])
        for name in names:
            for line in (videos / "alignments" / f"{name}.align").read_text(encoding="utf-8").splitlines():
                start, end, word = line.split()  # in units of 1/25000 s
                if word in ("sil", "sp"):
                    continue
                middle = round((int(start) + int(end)) / 2 / 25000 * FPS)
                first = min(max(middle - HALF_FRAMES, 0), CLIP_FRAMES - 2 * HALF_FRAMES)
                writer.writerow(
                    [f"{name}.mp4", word, roles[name], f"{first / FPS:.2f}", f"{(first + 2 * HALF_FRAMES) / FPS:.2f}"]
                )


def run(config: TrainConfig) -> Path:
    """Train, or take up what was interrupted, on one core."""
    torch.set_num_threads(1)
    return train_to_end(config)


def words_and_teacher(
    videos: Path, work: Path, reading: PrepareConfig, teacher: TrainConfig, workers: int
) -> tuple[ClipDataset, dict[str, Any]]:
    """The dataset `work`/dataset of all words with the teacher "audio", and what that knows of the test words."""
    work.mkdir(parents=True, exist_ok=True)
    listed = work / "words.csv"
    write_annotations(videos, listed)
    dataset = prepare(read_annotations(listed), videos, work / "dataset", reading, workers=workers)
    trained = run(replace(teacher, dataset=dataset.folder, out=work / "teacher"))
    if "audio" not in dataset.teachers:
        embed(dataset, load_teacher(trained), "audio")
    heard = evaluate(trained, dataset).metrics.to_dict()
    return dataset, {
        key: heard[key] for key in ("top1_accuracy", "top1_accuracy_interval", "mean_class_accuracy", "clips")
    }


def student(name: str, config: TrainConfig) -> dict[str, Any]:
    """One row of the table."""
    folder = run(config)
    dataset = ClipDataset(config.dataset)
    classified = evaluate(folder, dataset).metrics.to_dict()
    found = retrieve(folder, dataset).metrics.to_dict()
    keep = (
        "top1_accuracy",
        "top1_accuracy_interval",
        "top5_accuracy",
        "mean_class_accuracy",
        "expected_calibration_error",
        "clips",
        "missing",
    )
    return {
        "method": name,
        "seed": config.seed,
        **{key: classified[key] for key in keep},
        **found,
        "config": encode(replace(config, dataset=Path("dataset"), out=Path("run"))),
    }


def main() -> None:
    """Everything, one result at a time."""
    parser = argparse.ArgumentParser(description="GRID s1, from video files to results/grid.json")
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    dataset, heard = words_and_teacher(a.videos, a.work, PREPARE, TEACHER, a.workers)

    report: dict[str, Any] = {
        "data": "GRID speaker s1, 0.64 s word segments: 400 student clips, 160 teacher, 140 test (840 words)",
        "command": "python benchmarks/results/grid.py --videos DIR --work DIR",
        "environment": machine(),
        "dataset_checksum": dataset.checksum,
        "teacher": heard,
        "students": json.loads(RESULTS.read_text(encoding="utf-8"))["students"] if RESULTS.is_file() else [],
    }
    done = {(row["method"], row["seed"]) for row in report["students"]}
    with ProcessPoolExecutor(
        a.workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        futures = []
        for seed in SEEDS:
            for number, (name, method) in enumerate(METHODS.items()):
                if (name, seed) not in done:
                    out = a.work / f"student-{number}-{seed}"
                    needs = None if method.name == "supervised" else "audio"
                    config = replace(STUDENT, dataset=dataset.folder, out=out, method=method, teacher=needs, seed=seed)
                    futures.append(pool.submit(student, name, config))
        for future in as_completed(futures):
            report["students"].append(future.result())
            report["students"].sort(key=lambda row: (list(METHODS).index(row["method"]), row["seed"]))
            write_json(RESULTS, report)
            latest = future.result()
            print(latest["method"], latest["seed"], f"{latest['top1_accuracy']:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
