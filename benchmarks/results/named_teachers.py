"""Teachers by name on real files: what YAMNet hears, and a pipeline with YAMNet and with CNN14 (random) as the teacher.

    python benchmarks/results/named_teachers.py --clips DIR --videos DIR --work DIR

`--clips` is a folder of any videos: YAMNet's three best classes of each that has audio. `--videos` is GRID as for
`grid.py`: how often YAMNet's best class of a clip is Speech; then prepare, embed, train, evaluate on the words of 100
of the student clips and of all test clips, with each teacher. The students are few steps old: this shows that the
pipeline works, not which teacher is better. CNN14's published weights could not be had: it has random ones, and says
so.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import grid
from avdistill.annotations import read_annotations
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.stored_features import format_provenance
from avdistill.errors import MediaError
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import write_json
from avdistill.media import read_clip
from avdistill.methods import MethodConfig
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.preparation.prepare import prepare
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training.run_dir import machine

RESULTS = Path(__file__).resolve().parents[2] / "results" / "named_teachers.json"
TEACHERS = {"yamnet": None, "cnn14_emb512": Path("random")}
METHODS: tuple[MethodConfig, ...] = (KDConfig(), MNFCSCConfig())
TRAIN_CLIPS = 100
STUDENT = replace(grid.STUDENT, steps=400, eval_every=100, save_every=200)


def heard(teacher: Teacher, file: Path) -> list[tuple[str, float]] | None:
    """The three classes with the highest mean score over the file's whole audio; None without audio."""
    waveform = read_clip(file, fps=0.1, size=(1, 1), sample_rate_hz=teacher.sample_rate_hz).waveform
    if waveform is None:
        return None
    with torch.inference_mode():
        logits = teacher.network(torch.from_numpy(waveform)[None]).logits
    assert logits is not None
    best, classes = logits[0].sigmoid().topk(3)
    return [(teacher.classes[int(c)], round(float(p), 3)) for c, p in zip(classes, best, strict=True)]


def listen(teacher: Teacher, clips: Path, videos: Path) -> dict[str, Any]:
    """What the teacher hears in every clip, and in GRID's test clips."""
    rows = []
    for file in sorted(file for file in clips.iterdir() if file.is_file()):
        try:
            found = heard(teacher, file)
        except MediaError as error:
            found = [(str(error), 0.0)]
        rows.append({"clip": file.name, "heard": ", ".join(f"{name} {p:.2f}" for name, p in found or [])})
    names = sorted(path.stem for path in videos.glob("*.mp4"))
    tests = [names[i] for i in np.random.default_rng(0).permutation(700)[:140]]
    best = [(heard(teacher, videos / f"{name}.mp4") or [("", 0.0)])[0][0] for name in tests]
    return {"clips": rows, "grid_clips": len(best), "grid_speech": sum(name == "Speech" for name in best) / len(best)}


def pipeline(videos: Path, work: Path) -> list[dict[str, Any]]:
    """Prepare, embed, train and evaluate with each named teacher."""
    grid.write_annotations(videos, work / "words.csv")
    listed = read_annotations(work / "words.csv")
    kept = set(sorted({a.path for a in listed if a.split == "train"})[:TRAIN_CLIPS])
    chosen = [a for a in listed if a.split == "test" or a.path in kept]
    dataset = prepare(chosen, videos, work / "dataset", grid.PREPARE, workers=2)
    for teacher, weights in TEACHERS.items():
        if teacher not in dataset.teachers:
            embed(dataset, load_teacher(teacher, weights=weights), teacher)
    dataset = ClipDataset(dataset.folder)
    jobs: list[tuple[str | None, MethodConfig]] = [(None, SupervisedConfig())]
    jobs += [(name, method) for name in TEACHERS for method in METHODS]
    rows = []
    for name, method in jobs:
        config = replace(
            STUDENT, dataset=dataset.folder, out=work / f"run-{name}-{method.name}", method=method, teacher=name
        )
        metrics = evaluate(grid.run(config), dataset).metrics.to_dict()
        rows.append(
            {
                "teacher": "" if name is None else format_provenance(dataset.teachers[name].provenance),
                "method": method.name,
                "seed": config.seed,
                **{key: metrics[key] for key in ("top1_accuracy", "top1_accuracy_interval", "clips")},
                "config": encode(replace(config, dataset=Path("dataset"), out=Path("run"))),
            }
        )
        print(name, method.name, f"{metrics['top1_accuracy']:.4f}", flush=True)
    return rows


def main() -> None:
    """Listen, then the pipeline."""
    parser = argparse.ArgumentParser(description="named teachers on real files: results/named_teachers.json")
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    report = {
        "data": f"GRID speaker s1: words of {TRAIN_CLIPS} student clips and 140 test clips; a folder of mixed clips",
        "command": "python benchmarks/results/named_teachers.py --clips DIR --videos DIR --work DIR",
        "environment": machine(),
        "yamnet": listen(load_teacher("yamnet"), a.clips, a.videos),
        "students": pipeline(a.videos, a.work),
    }
    write_json(RESULTS, report)


if __name__ == "__main__":
    main()
