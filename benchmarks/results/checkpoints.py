"""Put students into `checkpoints/`, each with its model card.

    python benchmarks/results/checkpoints.py ucf51 --work DIR [METHOD ...]
    python benchmarks/results/checkpoints.py tagging --work DIR
    python benchmarks/results/checkpoints.py lips --work DIR --videos GRID

`ucf51` takes students of the study: DIR is the `--work` of `ucf51.py`; the student is that of the first split (test
groups 03 to 07) and seed 0, all labels. The others train a student and the same one without a teacher, and write a row
into `results/checkpoints.json`. `tagging`, with the same DIR, is the other direction on UCF51: the student hears, and
ImageNet's EfficientNet-Lite0 is its teacher. `lips` reads the mouth of GRID's speaker s1, its teacher hears; DIR holds
what `grid.py` makes. Nothing of them was tuned: the settings are those of the two studies, with narrower audio
networks and fewer steps, set for time before any was trained; the tagger's were 300, after which its training loss was
still 1.9 of 2.6 at random, and became 1500 for that. `mnf_csc` came first; as its students were behind those without a
teacher (their rows stay in the results), those of the default method are here. Stopped, the same command continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import grid
import ucf51
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.evaluation.statistics import interval, paired_difference
from avdistill.fsio import write_json
from avdistill.inference.predictor import Student
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.robust_csc import RobustCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, TrainConfig, train_to_end
from avdistill.training.run_dir import machine
from ucf51_features import average_precision, embed_once
from ucf51_metrics import ALL_LABELS, PER_CLIP, Metrics, per_clip, signed

CHECKPOINTS = ucf51.RESULTS.parent / "checkpoints"
CARD = Path(__file__).with_name("model_card.md")
TRAINED_CARD = Path(__file__).with_name("model_card_trained.md")
RESULTS = ucf51.RESULTS / "checkpoints.json"
METHOD = "robust_csc"
TAGGING = ModelConfig("logmel_cnn", AudioInput(seconds=2.0), {"width": 16, "embedding_dim": 128})
TAGGING_STEPS, LIP_STEPS = 1500, 1000
LIP_TEACHER = replace(
    grid.TEACHER, student=ModelConfig("logmel_cnn", AudioInput(seconds=0.64), {"width": 16, "bands": 32}), steps=500
)


@dataclass(frozen=True)
class Task:
    """A checkpoint that is trained here.

    Attributes:
        name: of its folder.
        config: of the student with its teacher.
        test: the split it is tested on; the gallery of retrieval is its training split.
        words: what the card says in its own words.
    """

    name: str
    config: TrainConfig
    test: str
    words: dict[str, str]


def write(method: str, work: Path, metrics: Metrics) -> None:
    """One checkpoint and its card."""
    cell = next(
        c for c in ucf51.cells() if (c.labels, c.mismatched, c.method, c.split, c.seed) == ("all", 0, method, 1, 0)
    )
    config = ucf51.configured(cell, work)
    student = Student.from_pretrained(config.out, "cpu")
    folder = CHECKPOINTS / f"ucf51_14_{method}"
    shutil.rmtree(folder, ignore_errors=True)
    student.save_pretrained(folder)
    runs, baseline = ({(1, 0): metrics.runs(ALL_LABELS, name)[1, 0]} for name in (method, "supervised"))
    only = Metrics([*runs.values(), *baseline.values()])
    lines: dict[str, str] = {}
    for of, name in zip(PER_CLIP, ("top1", "map"), strict=True):
        groups, values = per_clip(runs, [(1, 0)], of)
        found, ahead = interval(values, groups), only.difference(ALL_LABELS, method, "supervised", of)
        assert ahead is not None
        everywhere = metrics.difference(ALL_LABELS, method, "supervised", of)
        assert everywhere is not None
        lines[f"{name}_everywhere"] = signed(everywhere)
        lines |= {name: f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})", f"{name}_ahead": signed(ahead)}
    about, view = student.config, student.config.view
    assert isinstance(view, VideoInput)
    card = CARD.read_text(encoding="utf-8").format(
        name=folder.name,
        parameters=sum(p.numel() for p in student.network.parameters()) / 1e6,
        method=method,
        setting=cell.setting,
        frames=view.frames,
        height=view.size[0],
        width=view.size[1],
        fps=about.fps,
        short_side=about.short_side,
        dim=student.network.embedding_dim,
        count=len(about.classes),
        classes=", ".join(about.classes),
        training=len(json.loads((config.out / "data.json").read_text(encoding="utf-8"))["training"]),
        steps=config.steps,
        batch=config.batch_size,
        seed=cell.seed,
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        tested=len(groups),
        videos=len(set(groups.tolist())),
        **lines,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(folder)


def tagging(work: Path) -> Task:
    """UCF51's audio: the student hears, EfficientNet-Lite0 sees."""
    base = ClipDataset(work / "dataset")
    lite0 = replace(load_teacher(ucf51.PRETRAINED), view=ucf51.FRAMES)
    name, training = f"{ucf51.LITE0}_1", ucf51.groups(ucf51.TRAINED[1])
    embed_once(base, lite0, ucf51.LITE0, {name: training})
    cell = next(c for c in ucf51.cells() if (c.student, c.method, c.split) == (ucf51.AUDIO, METHOD, 1))
    config = replace(
        ucf51.configured(cell, work), student=TAGGING, steps=TAGGING_STEPS, teacher=name, out=work / f"tagging-{METHOD}"
    )
    words = {
        "what": "tagger of audio, with 14 actions of UCF51 as its tags,",
        "learned": "the student learned from the videos' frames, and takes the audio alone",
        "input": "2 s of mono audio at 16 kHz; a longer file is cut into windows, whose predictions are averaged",
        "data": "UCF101 (Soomro, Zamir and Shah 2012), 14 of the classes with audio, groups 08 to 25",
        "taught": "EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet and frozen: the mean embedding of 4 "
        "frames of 64 x 64 pixels, and a linear head fitted on the training clips",
        "tested": "of groups 03 to 07, which training never read",
        "video": "source videos",
        "limits": "alarms, monitoring of people, or sounds other than those of these 14 actions; every recording is "
        "assigned to one of them, music laid over a video included",
        "terms": "UCF101's own terms allow research use of its videos",
        "file": "video.mp4",
    }
    return Task(f"ucf51_14_audio_{METHOD}", config, ucf51.groups(ucf51.TESTED[1]), words)


def lips(videos: Path, work: Path) -> Task:
    """GRID's words: the student sees the mouth, the teacher hears."""
    dataset, heard = grid.words_and_teacher(videos, work, grid.PREPARE, LIP_TEACHER, workers=1)
    config = replace(
        grid.STUDENT, dataset=dataset.folder, out=work / f"lips-{METHOD}", steps=LIP_STEPS, method=RobustCSCConfig()
    )
    words = {
        "what": "lip reader of single words of one speaker",
        "learned": "the student learned from the audio, and takes the video of the mouth alone",
        "input": "16 RGB frames of 28 x 48 pixels at 25 frames a second, cut from the mouth: the region 96,176,128,72 "
        "of GRID's 360 x 288 pixels, scaled to 64 x 36; other videos need `--region`",
        "data": "GRID (Cooke et al. 2006), speaker s1, 400 clips of six words, each word 0.64 s around its middle",
        "taught": f"a log-mel CNN trained on the audio of 160 other clips; of the test words it names "
        f"{heard['top1_accuracy']:.3f}",
        "tested": "of 140 clips that training never read, of the same speaker",
        "video": "clips",
        "limits": "transcription, surveillance, or anybody but this speaker: one speaker was trained on and tested",
        "terms": "GRID is published under the Creative Commons Attribution 4.0 license",
        "file": "mouth.mp4",
    }
    return Task(f"grid_s1_lips_{METHOD}", replace(config, teacher="audio"), "test", words)


def clips_of(run: Path, config: TrainConfig, test: str) -> dict[str, dict[str, float]]:
    """Whether a run is right on each test clip, and the average precision of each as a query in the training clips."""
    dataset = ClipDataset(config.dataset)
    classified = evaluate(run, dataset, split=test)
    most = len(labeled_clips(dataset, config.train_split))
    found = retrieve(run, dataset, query_split=test, gallery_split=config.train_split, ks=(1, most))
    nearest: dict[str, Any] = {str(line["id"]): line["nearest"] for line in found.neighbors}
    right = {str(line["id"]): float(line["predicted"] == line["label"]) for line in classified.predictions}
    return {"correct": right, "average_precision": average_precision(dataset, nearest)}


def trained(task: Task) -> None:
    """Train a task's student and the same one without a teacher, then write checkpoint, row and card."""
    torch.set_num_threads(1)
    config, folder = task.config, CHECKPOINTS / task.name
    alone = replace(
        config,
        method=SupervisedConfig(),
        teacher=None,
        out=config.out.with_name(config.out.name.replace(METHOD, "supervised")),
    )
    ours, theirs = (clips_of(train_to_end(each), each, task.test) for each in (config, alone))
    dataset = ClipDataset(config.dataset)
    group = dict(zip(dataset.columns["id"].tolist(), dataset.columns["group"].tolist(), strict=True))
    row: dict[str, Any] = {"name": task.name, "method": METHOD, "seed": config.seed}
    row["config"] = encode(replace(config, dataset=Path("dataset"), out=Path("run")))
    for of, name in PER_CLIP.items():
        clips = sorted(ours[of])
        videos = np.array([group[clip] for clip in clips])
        values, others = (np.array([[each[of][clip] for clip in clips]]) for each in (ours, theirs))
        row[name] = vars(interval(values, videos))
        row[f"{name}_ahead"] = vars(paired_difference(values, others, videos))
        row["clips"], row["videos"] = len(clips), len(set(videos.tolist()))
    student = Student.from_pretrained(config.out, "cpu")
    shutil.rmtree(folder, ignore_errors=True)
    student.save_pretrained(folder)
    write_row(row)
    write_trained_card(task, row, student)
    print(folder)


def write_row(row: dict[str, Any]) -> None:
    """Put a row into `results/checkpoints.json`; rows of other names stay."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    report = {
        "command": "python benchmarks/results/checkpoints.py tagging|lips --work DIR",
        "environment": machine(),
        "rows": sorted([each for each in rows if each["name"] != row["name"]] + [row], key=lambda each: each["name"]),
    }
    write_json(RESULTS, report)


def write_trained_card(task: Task, row: dict[str, Any], student: Student) -> None:
    """The card of a student that was trained here."""
    config, folder = task.config, CHECKPOINTS / task.name
    shown = {}
    for name in PER_CLIP.values():
        shown[name] = "{mean:.3f} ({low:.3f} to {high:.3f})".format(**row[name])
        shown[f"{name}_ahead"] = "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**row[f"{name}_ahead"])
    card = TRAINED_CARD.read_text(encoding="utf-8").format(
        name=task.name,
        parameters=sum(p.numel() for p in student.network.parameters()) / 1e6,
        method=METHOD,
        dim=student.network.embedding_dim,
        count=len(student.config.classes),
        classes=", ".join(student.config.classes),
        training=len(json.loads((config.out / "data.json").read_text(encoding="utf-8"))["training"]),
        steps=config.steps,
        batch=config.batch_size,
        seed=config.seed,
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        clips=row["clips"],
        videos=row["videos"],
        **shown,
        **task.words,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Write those that were named."""
    parser = argparse.ArgumentParser(description="checkpoints/, from the UCF51 study or trained here")
    parser.add_argument("what", choices=("ucf51", "tagging", "lips"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("methods", nargs="*", default=["mnf_csc", "robust_csc"])
    a = parser.parse_intermixed_args()
    if a.what == "tagging":
        trained(tagging(a.work))
    elif a.what == "lips":
        trained(lips(a.videos, a.work))
    else:
        metrics = Metrics.read(ucf51.TABLE)
        for method in a.methods:
            write(method, a.work, metrics)


if __name__ == "__main__":
    main()
