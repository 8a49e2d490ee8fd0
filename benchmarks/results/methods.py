"""Every method on synthetic videos, all audio related and 40% of it another clip's: `results/methods.json`.

    python benchmarks/results/methods.py --work DIR [--steps 960] [--workers 2] [--data-only]

The students see, the teacher hears. 1200 training clips, a part of them labeled; the audio is clean in the files and
`avdistill compare` swaps it. How hard the images are was fixed from supervised students on other clips (data seed
11), before any method was run. Three settings of every method are tried under each corruption on a seed of their own,
judged by a fifth of the labeled training videos, for 320 steps each. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from avdistill.analysis.benchmark.study import Study, run_study, write_report
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import write_json
from avdistill.inputs import VideoInput
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.progress import OnProgress, Progress
from avdistill.synthetic.generator import Difficulty, SyntheticConfig, synthesize
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig, train_to_end
from avdistill.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
DATA = SyntheticConfig(
    teacher_clips=480,
    labeled_clips=360,
    unlabeled_clips=840,
    test_clips=480,
    noisy=0.0,
    mismatched=0.0,
    silent=0.0,
    seed=0,
    difficulty=Difficulty(
        object_size=0.5, contrast=1.0, clutter=0.0, distractors=0, shake_pixels=0.3, brightness=0.1, occlusion=0.0
    ),
)
PREPARE = PrepareConfig(fps=8, short_side=28)
BASE = TrainConfig(
    dataset=Path(),
    out=Path(),
    student=ModelConfig(
        "shifted_frames", VideoInput(frames=6, size=(20, 26), scale=(0.7, 1.0)), {"width": 8, "embedding_dim": 64}
    ),
    val_fraction=0.2,
    batch_size=24,
    labeled_per_batch=12,
    optimizer=OptimizerConfig("adamw", 3e-3, 1e-2, "cosine", warmup_steps=20, max_grad_norm=5.0),
    eval_every=40,
    save_every=160,
)
# 64 mel bands, as `results/methods.json` was made with; the demo's own teacher has fewer.
_TEACHER = RECIPES["demo_teacher"]
_HEARS = replace(_TEACHER.student, options={**_TEACHER.student.options, "bands": 64})
TEACHER = replace(_TEACHER, student=_HEARS, steps=400)
TRIAL_STEPS = 320
CORRUPTIONS = ("clean", "mismatched=0.4")


def told_on_change() -> OnProgress:
    """Prints how far a study is whenever other runs are under way."""
    last = ""

    def told(progress: Progress) -> None:
        nonlocal last
        if progress.note != last:
            print(f"{progress.done} of {progress.total} steps: {progress.note}", file=sys.stderr, flush=True)
            last = progress.note

    return told


def make_data(work: Path, workers: int) -> tuple[ClipDataset, Path]:
    """The dataset, the teacher's embeddings in it, and the teacher's run; what is there is not made again."""
    listed = read_annotations(synthesize(work / "data", DATA, workers=workers))
    dataset = prepare(listed, work / "data" / "videos", work / "dataset", PREPARE, workers=workers)
    teacher = train_to_end(replace(TEACHER, dataset=dataset.folder, out=work / "teacher"))
    if "audio" not in dataset.teachers:
        embed(dataset, load_teacher(teacher), "audio", tokens=True)
    return dataset, teacher


def main() -> None:
    """Data, teacher, study, results."""
    parser = argparse.ArgumentParser(description="every method on synthetic videos: results/methods.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=960)
    parser.add_argument("--data-only", action="store_true", help="stop when dataset and teacher are there")
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    dataset, teacher = make_data(a.work, a.workers)
    if a.data_only:
        return
    heard = evaluate(teacher, ClipDataset(dataset.folder)).metrics.to_dict()

    study = Study(
        dataset=dataset.folder,
        out=a.work / f"study-{a.steps}",
        base=replace(BASE, steps=a.steps),
        corruptions=CORRUPTIONS,
        trials=3,
        trial_steps=TRIAL_STEPS,
    )
    rows = run_study(study, workers=a.workers, on_progress=told_on_change())
    result = write_report(study, rows)
    head = {
        "data": "synthetic videos, all audio related: 1200 training clips, 360 labeled; 480 test clips",
        "command": f"python benchmarks/results/methods.py --work DIR --steps {a.steps}",
        "teacher": {key: heard[key] for key in ("top1_accuracy", "top1_accuracy_interval", "clips")},
    }
    write_json(ROOT / "results" / "methods.json", head | result)


if __name__ == "__main__":
    main()
