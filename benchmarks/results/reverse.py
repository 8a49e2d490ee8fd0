"""The other way round, the student hears: GRID in babble, synthetic clips noisy, two events at once.

    python benchmarks/results/reverse.py --videos DIR --work DIR [--workers 2]

DIR holds GRID as for `grid.py`, whose segments, roles and images are used. Every clip's audio is mixed with that of
other clips of its own role, so no audio of a test clip is heard in training; the video is copied as it is.

- GRID: babble of three clips at 0 and -5 dB. The teacher sees the mouth, trained on the 160 teacher clips.
- Synthetic: all audio related, then noisy at -5 dB by two clips. The teacher sees, trained on the teacher clips.
- Two events: synthetic clips mixed in pairs at 0 dB and labeled with both; the video shows the first. mAP.

Nothing was tuned: steps, rates and widths were set for two cores and one hour before any figure was seen; the best
model is chosen on a tenth of the training videos. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import grid
from avdistill.annotations import Annotation, read_annotations
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.executors.parent import end_with_parent
from avdistill.fsio import write_json
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods import MethodConfig
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.synthetic.generator import Difficulty, SyntheticConfig, synthesize
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig
from avdistill.training.run_dir import machine
from avdistill.types import Option
from mixing import mix, read_audio, write_with_audio

RESULTS = Path(__file__).resolve().parents[2] / "results" / "reverse.json"
HEARING: dict[str, Option] = {"width": 16, "bands": 32}
STUDENT = TrainConfig(
    dataset=Path(),
    out=Path(),
    student=ModelConfig("logmel_cnn", AudioInput(seconds=0.64), HEARING),
    steps=800,
    batch_size=48,
    optimizer=OptimizerConfig("adamw", 2e-3, 1e-2, "cosine", warmup_steps=50, max_grad_norm=5.0),
    eval_every=100,
    save_every=200,
)
SYNTHETIC_STUDENT = replace(
    STUDENT,
    student=ModelConfig("logmel_cnn", AudioInput(seconds=1.0), HEARING),
    steps=600,
    batch_size=32,
    labeled_per_batch=16,
)
GRID_TEACHER = replace(grid.STUDENT, train_split="teacher", steps=1200)
SYNTHETIC_TEACHER = replace(
    STUDENT,
    student=ModelConfig("shifted_frames", VideoInput(frames=8, size=(28, 36), scale=(0.7, 1.0))),
    train_split="teacher",
    steps=800,
    batch_size=32,
)
# Images are plain: at the default difficulty the teacher saw next to nothing (0.14 top-1, no student was looked at).
PLAIN = Difficulty(
    clutter=0.0, distractors=0, shake_pixels=0.0, occlusion=0.0, brightness=0.0, contrast=1.0, object_size=0.4
)
SYNTHETIC = SyntheticConfig(
    labeled_clips=120, unlabeled_clips=360, noisy=0.0, mismatched=0.0, silent=0.0, seed=7, difficulty=PLAIN
)
SYNTHETIC_PREPARE = PrepareConfig(fps=8, short_side=36)
METHODS: dict[str, MethodConfig] = {"supervised": SupervisedConfig(), "kd": KDConfig(), "mnf_csc": MNFCSCConfig()}
SEEDS = (0, 1, 2)


def mixed_copies(
    listed: list[Annotation], videos: Path, out: Path, snr_db: float, others: int, seed: int
) -> dict[str, list[str]]:
    """Noisy copies of all listed files, as `<path without suffix>.mkv`; returns which files were mixed into each."""
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for path, split in sorted({(a.path, a.split) for a in listed}):
        roles[split].append(path)
    chosen = {}
    for role, (split, paths) in enumerate(sorted(roles.items())):
        targets = [out / Path(path).with_suffix(".mkv") for path in paths]
        audio = [] if all(target.exists() for target in targets) else [read_audio(videos / path) for path in paths]
        for number, path in enumerate(paths):
            rng = np.random.default_rng([seed, role, number])
            drawn = [int(i) for i in rng.permutation(len(paths)) if i != number][:others]
            target = targets[number]
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                waveform = mix(audio[number], [audio[i] for i in drawn], snr_db)
                fresh = target.with_suffix(".tmp")
                write_with_audio(videos / path, waveform, fresh)
                fresh.rename(target)
            chosen[path] = [paths[i] for i in drawn]
        print(f"{out.name}: {len(paths)} clips of {split}", file=sys.stderr, flush=True)
    return chosen


def renamed(listed: list[Annotation], labels: dict[str, tuple[str, ...]] | None = None) -> list[Annotation]:
    """The same clips in the noisy copies."""
    return [
        replace(a, path=str(Path(a.path).with_suffix(".mkv")), labels=labels[a.path] if labels else a.labels)
        for a in listed
    ]


def grid_dataset(videos: Path, work: Path, snr_db: int, workers: int) -> ClipDataset:
    """GRID's words, heard in babble."""
    grid.write_annotations(videos, work / "words.csv")
    listed = read_annotations(work / "words.csv")
    noisy = work / f"grid{snr_db}dB"
    if not (work / f"dataset-grid{snr_db}dB").exists():
        mixed_copies(listed, videos, noisy, snr_db, others=3, seed=100 + snr_db)
    return prepare(renamed(listed), noisy, work / f"dataset-grid{snr_db}dB", grid.PREPARE, workers=workers)


def synthetic_datasets(work: Path, workers: int) -> tuple[ClipDataset, ClipDataset]:
    """The synthetic clips noisy, and mixed in pairs with the labels of both."""
    listed = read_annotations(synthesize(work / "synthetic", SYNTHETIC, workers=workers))
    videos = work / "synthetic" / "videos"
    mixed_copies(listed, videos, work / "noisy", -5, others=2, seed=1)
    noisy = prepare(renamed(listed), work / "noisy", work / "dataset-noisy", SYNTHETIC_PREPARE, workers=workers)
    pairs = mixed_copies(listed, videos, work / "pairs", 0, others=1, seed=2)
    with (work / "synthetic" / "annotations.csv").open(encoding="utf-8") as file:
        heard = {row["path"]: row["true_label"] for row in csv.DictReader(file)}
    both = {path: tuple(sorted({heard[path], heard[others[0]]})) for path, others in pairs.items()}
    two = prepare(renamed(listed, both), work / "pairs", work / "dataset-pairs", SYNTHETIC_PREPARE, workers=workers)
    return noisy, two


def taught(datasets: list[ClipDataset], config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train the teacher on the first dataset, embed all; returns its metrics on the first dataset's test clips."""
    run = grid.run(replace(config, dataset=datasets[0].folder, out=out))
    for dataset in datasets:
        if "video" not in dataset.teachers:
            embed(dataset, load_teacher(run), "video")
    metrics = evaluate(run, datasets[0]).metrics.to_dict()
    return {key: metrics[key] for key in ("top1_accuracy", "top1_accuracy_interval", "clips")}


def student(task: str, name: str, config: TrainConfig) -> dict[str, Any]:
    """One row of the table."""
    metrics = evaluate(grid.run(config), ClipDataset(config.dataset)).metrics.to_dict()
    keep = (
        "top1_accuracy",
        "top1_accuracy_interval",
        "mean_class_accuracy",
        "map",
        "auc",
        "d_prime",
        "clips",
        "missing",
    )
    return {
        "task": task,
        "method": name,
        "seed": config.seed,
        **{key: metrics[key] for key in keep if key in metrics},
        "config": encode(replace(config, dataset=Path("dataset"), out=Path("run"))),
    }


def main() -> None:
    """Everything, one result at a time."""
    parser = argparse.ArgumentParser(description="the student hears, the teacher sees: results/reverse.json")
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    babble = {f"GRID, babble {snr} dB": grid_dataset(a.videos, a.work, snr, a.workers) for snr in (0, -5)}
    noisy, two = synthetic_datasets(a.work, a.workers)
    teachers = {
        "GRID": taught(list(babble.values()), GRID_TEACHER, a.work / "teacher-grid"),
        "synthetic": taught([noisy, two], SYNTHETIC_TEACHER, a.work / "teacher-synthetic"),
    }
    jobs = [
        (task, dataset, STUDENT, name, seed) for task, dataset in babble.items() for name in METHODS for seed in SEEDS
    ]
    jobs += [("synthetic, -5 dB", noisy, SYNTHETIC_STUDENT, name, seed) for name in METHODS for seed in SEEDS]
    pairs = replace(SYNTHETIC_STUDENT, labeled_per_batch=None)
    jobs += [("two events", two, pairs, name, 0) for name in ("supervised", "mnf_csc")]

    report: dict[str, Any] = {
        "data": "GRID speaker s1 in babble (400 student clips, 160 teacher, 140 test); synthetic clips, audio mixed",
        "command": "python benchmarks/results/reverse.py --videos DIR --work DIR",
        "environment": machine(),
        "teachers": teachers,
        "students": json.loads(RESULTS.read_text(encoding="utf-8"))["students"] if RESULTS.is_file() else [],
    }
    order = [(task, name, seed) for task, _, _, name, seed in jobs]
    done = {(row["task"], row["method"], row["seed"]) for row in report["students"]}
    with ProcessPoolExecutor(
        a.workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        futures = []
        for number, (task, dataset, base, name, seed) in enumerate(jobs):
            if (task, name, seed) not in done:
                needs = None if name == "supervised" else "video"
                out = a.work / f"student-{number}"
                config = replace(base, dataset=dataset.folder, out=out, method=METHODS[name], teacher=needs, seed=seed)
                futures.append(pool.submit(student, task, name, config))
        for future in as_completed(futures):
            row = future.result()
            report["students"].append(row)
            report["students"].sort(key=lambda r: order.index((r["task"], r["method"], r["seed"])))
            write_json(RESULTS, report)
            figure = row.get("top1_accuracy", row.get("map"))
            print(row["task"], row["method"], row["seed"], f"{figure:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
