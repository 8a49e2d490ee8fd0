"""GRID for the study: small pictures, cut and not scaled, and a teacher that knows where in its window a word lies.

    python benchmarks/study_grid.py --videos DIR --work DIR [--workers 2]

What the teacher knows of the test words is written to `results/study/teacher.json`.
The videos are those of `grid.py`, and so are the word segments and their roles. The pictures are a third as large as
in the files, a training crop is a place and not a scale, and so a core trains a student in a minute. The teacher is
that of `grid.py` with fewer channels and bands and one more input, the position in time: without it the mean over the
window takes a word for its neighbours. Both were settled on the 160 clips that are the teacher's (the teacher on 32 of
them set aside), never on the test clips. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from avdistill.data.files import write_json
from avdistill.data.preparation import PrepareConfig
from avdistill.decoding import encode
from avdistill.training import StudentConfig, TrainConfig
from avdistill.training.checkpoint import environment
from avdistill.types import SoundView
from grid import FPS, words_and_teacher
from grid import PREPARE as LARGER
from grid import TEACHER as WITHOUT_POSITION

ROOT = Path(__file__).resolve().parents[1]
PREPARE = PrepareConfig(fps=FPS, short_side=None, size=(24, 42), region=LARGER.region)
TEACHER: TrainConfig = replace(
    WITHOUT_POSITION,
    student=StudentConfig("logmel_cnn", SoundView(seconds=0.64), {"width": 16, "bands": 40, "time_position": True}),
    validation_fraction=0.0,
    validate_every=10_000,
    steps=1200,
)


def main() -> None:
    """Store, teacher, its features, and what the teacher knows of the test words."""
    parser = argparse.ArgumentParser(description="GRID for benchmarks/study.py")
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    store, heard = words_and_teacher(a.videos, a.work, PREPARE, TEACHER, a.workers)
    told = {
        "command": "python benchmarks/study_grid.py --videos DIR --work DIR",
        "environment": {key: value for key, value in environment().items() if key != "command"},
        "store_checksum": store.checksum,
        "figures": heard,
        "config": encode(replace(TEACHER, store=Path("store"), out=Path("teacher"))),
    }
    write_json(ROOT / "results" / "study" / "teacher.json", told)


if __name__ == "__main__":
    main()
