"""`avdistill distill` as a new user calls it, on two folders: `results/own_videos.json`.

    python benchmarks/results/own_videos.py made --work DIR [--kills 5]
    python benchmarks/results/own_videos.py ucf51 --split 1 --work DIR --videos UCF-101 --teacher precomputed:cnn14.npz

The made folder holds 200 files in three sub-folders with odd names: 188 synthetic videos of two seconds, a quarter of
them with the audio of another class, ten of them uploaded again (cut, smaller, other codecs; needs `ffmpeg`), and two
files that cannot be read. 40 have a label. What the report says is compared with what is true. Then the command is run
again in another folder and killed (SIGKILL) at random moments; the results must be the same.

Of UCF51 the list names 10 clips of each class of the training groups and, as the test, all clips of the test groups of
a split (UCF101's three, as in `ucf51.py`); every other video is unlabeled. Nothing else is chosen: all options are the
command's defaults. The results are over all splits whose run has ended in DIR, which have the same seeds.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from avdistill.analysis.benchmark.report import correct_matrix
from avdistill.analysis.demo import DEMO_DATA
from avdistill.analysis.distill.baselines import baseline_rows
from avdistill.analysis.distill.plan import METHODS
from avdistill.annotations import read_annotations
from avdistill.config_io import read_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.evaluation.statistics import interval, paired_difference
from avdistill.fsio import write_json
from avdistill.synthetic.generator import synthesize
from avdistill.training.run_dir import machine
from ucf51 import TESTED

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = ("2023 holiday", "Ünïcode ☃", "c")
VIDEOS, COPIES, LABELS = 188, 10, 40
SPLITS, UCF51_LABELS = (1, 2, 3), 10
UPLOADED_AGAIN = ("-vf", "scale=80:60", "-crf", "30", "-c:v", "libx264", "-c:a", "aac", "-b:a", "48k")
#: of `results.json`, what a kill must not change; the plan's estimate is of the machine
SAME = ("methods", "skipped", "copies", "audit", "suspicious", "test_clips", "delivered")


def make(work: Path) -> dict[str, Any]:
    """Make the folder and its labels; returns the truth by file name."""
    data = replace(DEMO_DATA, teacher_clips=0, labeled_clips=VIDEOS, unlabeled_clips=0, test_clips=0)
    listed = synthesize(work / "data", replace(data, mismatched=0.25, silent=0.05))
    videos = work / "videos"
    shutil.rmtree(videos, ignore_errors=True)
    for name in FOLDERS:
        (videos / name).mkdir(parents=True)
    audio, label = {}, {}
    for i, clip in enumerate(read_annotations(listed)):
        source = listed.parent / "videos" / clip.path
        stem = f"my clip #{i}, final (1)" if i % 7 == 0 else f"clip_{i}"
        name = f"{FOLDERS[i % 3]}/{stem}{source.suffix}"
        shutil.copy(source, videos / name)
        audio[name], label[name] = dict(clip.extra)["audio"], clip.labels[0]
    names = list(audio)
    (videos / "c" / "broken.mp4").write_bytes(bytes(2000))
    (videos / "c" / "cut.mp4").write_bytes((videos / names[5]).read_bytes()[:900])
    chance = random.Random(1)
    copies = {}
    for k, name in enumerate(chance.sample(names, COPIES)):
        copy = f"{FOLDERS[k % 3]}/reup_{k}.mp4"
        words = ["ffmpeg", "-v", "error", "-ss", "0.25", "-i", str(videos / name), *UPLOADED_AGAIN, str(videos / copy)]
        subprocess.run(words, check=True)
        copies[copy] = name
    with (work / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((n, label[n]) for n in chance.sample(names, LABELS))])
    return {"audio": audio, "copies": copies, "unreadable": ["c/broken.mp4", "c/cut.mp4"]}


def command(work: Path, out: Path) -> list[str]:
    """The call on the made folder."""
    words = [sys.executable, "-m", "avdistill", "distill", str(work / "videos"), "--labels", str(work / "labels.csv")]
    return [*words, "--out", str(out), "--time-budget", "8m"]


def list_ucf51(videos: Path, split: int, labels: Path) -> None:
    """Ten clips of each class to train on, drawn from the training groups, and every clip of the test groups."""
    of_class = defaultdict(list)
    for each in read_annotations(videos, format="ucf51"):
        group = Path(each.path).stem.rpartition("_")[0]  # v_Archery_g03 of v_Archery_g03_c01
        of_class[each.labels[0]].append((each.path, group, int(group[-2:]) in TESTED[split]))
    chance = random.Random(0)
    rows = []
    for name, clips in sorted(of_class.items()):
        trained = chance.sample(sorted(clip for clip in clips if not clip[2]), UCF51_LABELS)
        for path, group, tested in sorted(clip for clip in clips if clip[2] or clip in trained):
            rows.append((path, name, "test" if tested else "train", group))
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])


@dataclass(frozen=True)
class Tested:
    """What a run of `distill` left: its report, and by method (S, N) whether each of S seeds was right about a clip."""

    report: dict[str, Any]
    correct: dict[str, np.ndarray]
    groups: np.ndarray

    @classmethod
    def read(cls, out: Path) -> Tested:
        """From its folder."""
        dataset = ClipDataset(out / "dataset")
        rows = [read_json(file) for file in sorted((out / "study" / "runs").rglob("metrics.json"))]
        rows += baseline_rows(dataset, dataset.teachers)
        of_method = {row["method"]: [each for each in rows if each["method"] == row["method"]] for row in rows}
        correct = {name: correct_matrix(each) for name, each in of_method.items()}
        groups = dataset.columns["group"][labeled_clips(dataset, "test")]
        return cls(read_json(out / "results.json"), correct, groups)


def pooled(splits: list[Tested]) -> dict[str, Any]:
    """The rows of the report over all splits, and how far the delivered student is ahead."""
    groups = np.concatenate([split.groups for split in splits])
    correct = {name: np.concatenate([split.correct[name] for split in splits], axis=1) for name in splits[0].correct}
    maps: dict[str, list[float]] = {name: [] for name in correct}
    for row in (row for split in splits for row in split.report["methods"] if "map" in row):
        maps[row["method"]].append(row["map"])
    student = correct[METHODS[-1]]
    probes = [name for name in correct if name.startswith("linear probe")]
    others = {"supervised": correct["supervised"]}
    others |= {name: correct[name].repeat(len(student), axis=0) for name in probes}
    rows = [
        {
            "method": name,
            "n": len(values),
            "top1_accuracy": vars(interval(values, groups)),
            "map": statistics.mean(maps[name]) if maps[name] else None,
        }
        for name, values in correct.items()
    ]
    return {
        "test_clips": len(groups),
        "test_groups": len(set(groups)),
        "methods": sorted(rows, key=lambda row: (row["map"] is None, -row["top1_accuracy"]["mean"])),
        "ahead_of": {name: vars(paired_difference(student, other, groups)) for name, other in others.items()},
    }


def ucf51(a: argparse.Namespace) -> dict[str, Any]:
    """Run on a split; compare the student with supervised training and with linear probes on frozen networks."""
    labels, out = a.work / f"ucf51_{a.split}.csv", a.work / f"ucf51_{a.split}"
    if not (out / "results.json").is_file():
        list_ucf51(a.videos, a.split, labels)
        words = ["distill", str(a.videos), "--labels", str(labels), "--teacher", a.teacher, "--out", str(out)]
        subprocess.run([sys.executable, "-m", "avdistill", *words], check=True)
    ended = [split for split in SPLITS if (a.work / f"ucf51_{split}" / "results.json").is_file()]
    tested = [Tested.read(a.work / f"ucf51_{split}") for split in ended]
    return {
        "command": "python benchmarks/results/own_videos.py ucf51 --work DIR --videos UCF-101 --teacher "
        "precomputed:cnn14.npz --split N",
        "environment": machine(),
        "splits": ended,
        "plan": tested[-1].report["plan"],
        "delivered": METHODS[-1],
        **pooled(tested),
    }


def found(out: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """What the report says, beside the truth."""
    report = read_json(out / "results.json")
    with (out / "audit" / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] and row["path"] in truth["audio"]]
    wrong = {row["path"]: truth["audio"][row["path"]] == "mismatched" for row in rows}
    path = {row["id"]: row["path"] for row in ClipDataset(out / "dataset").table.to_pylist()}
    listed = [wrong[path[clip]] for clip in report["suspicious"] if path[clip] in wrong]
    auroc = roc_auc_score(list(wrong.values()), [float(row["correspondence"]) for row in rows])
    pairs = {frozenset(path[clip] for clip in each["clips"]) for each in report["copies"]}
    return {
        "unreadable_named": sum(each["file"] in truth["unreadable"] for each in report["skipped"]),
        "copies_named": len(pairs & {frozenset(pair) for pair in truth["copies"].items()}),
        "pairs_named": len(pairs),
        "wrong_audio": sum(wrong.values()),
        "listed": len(listed),
        "listed_wrong_audio": sum(listed),
        "auroc": round(float(auroc), 4),
        "test_clips": report["test_clips"],
        "plan": report["plan"],
        "methods": report["methods"],
    }


def killed(work: Path, out: Path, kills: int, seconds: float, whole: Path) -> list[float]:
    """Run to the end with kills, by the plan of the run `whole`; returns the moments, in seconds after each start."""
    chance = random.Random(2)
    moments: list[float] = []
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name in ("distill.json", "plan.json"):  # a plan follows the measured time of a step, which differs
        shutil.copy(whole / name, out)
    while len(moments) < kills:
        running = subprocess.Popen(command(work, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        moment = chance.uniform(0.1, 1) * seconds / kills  # all together less than the run takes
        try:
            running.wait(moment)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            moments.append(round(moment, 1))
        else:
            break  # it came to its end before
    subprocess.run(command(work, out), check=True, capture_output=True)
    return moments


def made(a: argparse.Namespace) -> dict[str, Any]:
    """Make the folder, run, compare with the truth; then again with kills."""
    truth, out = make(a.work), a.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(a.work, out), check=True)
    seconds = time.monotonic() - began
    report: dict[str, Any] = {
        "command": "python benchmarks/results/own_videos.py made --work DIR --kills N",
        "environment": machine(),
        "seconds": round(seconds),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        **found(out, truth),
    }
    moments = killed(a.work, a.work / "killed", a.kills, seconds, out)
    one, other = (read_json(each / "results.json") for each in (out, a.work / "killed"))
    report["killed_after_seconds"] = moments
    report["same_after_kills"] = {key: one[key] == other[key] for key in SAME}
    return report


def main() -> None:
    """Run a part and record it."""
    parser = argparse.ArgumentParser(description="results/own_videos.json")
    parts = parser.add_subparsers(required=True)
    for name, run in (("made", made), ("ucf51", ucf51)):
        part = parts.add_parser(name)
        part.add_argument("--work", type=Path, required=True)
        part.set_defaults(name=name, run=run)
        if name == "made":
            part.add_argument("--kills", type=int, default=5)
        else:
            part.add_argument("--videos", type=Path, required=True)
            part.add_argument("--teacher", required=True)
            part.add_argument("--split", type=int, choices=SPLITS, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    report = {a.name: a.run(a)}
    file = RESULTS / "own_videos.json"
    write_json(file, (read_json(file) if file.is_file() else {}) | report)
    print(report)


if __name__ == "__main__":
    main()
