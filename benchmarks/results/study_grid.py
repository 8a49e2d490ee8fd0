"""GRID for the study: small images, cut and not scaled, and a teacher that knows where in its window a word lies.

    python benchmarks/results/study_grid.py --videos DIR --work DIR [--workers 2]

What the teacher knows of the test words is written to `results/study/teacher.json`.
The videos are those of `grid.py`, and so are the word segments and their roles. The images are a third as large as
in the files, a training crop is a place and not a scale, and so a core trains a student in a minute. The teacher is
that of `grid.py` with fewer channels and bands and one more input, the position in time: without it the mean over the
window takes a word for its neighbors. Both were settled on the 160 clips that are the teacher's (the teacher on 32 of
them set aside), never on the test clips. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from avdistill.config_io import encode
from avdistill.fsio import write_json
from avdistill.inputs import AudioInput
from avdistill.preparation.prepare import PrepareConfig
from avdistill.training import ModelConfig, TrainConfig
from avdistill.training.run_dir import machine
from grid import FPS, words_and_teacher
from grid import PREPARE as LARGER
from grid import TEACHER as WITHOUT_POSITION

ROOT = Path(__file__).resolve().parents[2]
PREPARE = PrepareConfig(fps=FPS, short_side=None, size=(24, 42), region=LARGER.region)
TEACHER: TrainConfig = replace(
    WITHOUT_POSITION,
    student=ModelConfig("logmel_cnn", AudioInput(seconds=0.64), {"width": 16, "bands": 40, "time_position": True}),
    val_fraction=0.0,
    eval_every=10_000,
    steps=1200,
)


def main() -> None:
    """ClipDataset, teacher, its features, and what the teacher knows of the test words."""
    parser = argparse.ArgumentParser(description="GRID for benchmarks/results/study.py")
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    dataset, heard = words_and_teacher(a.videos, a.work, PREPARE, TEACHER, a.workers)
    told = {
        "command": "python benchmarks/results/study_grid.py --videos DIR --work DIR",
        "environment": machine(),
        "dataset_checksum": dataset.checksum,
        "metrics": heard,
        "config": encode(replace(TEACHER, dataset=Path("dataset"), out=Path("teacher"))),
    }
    write_json(ROOT / "results" / "study" / "teacher.json", told)


if __name__ == "__main__":
    main()
