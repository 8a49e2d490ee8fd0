"""`avdistill distill` as a new user calls it, on a folder that was made for it: `results/own_videos.json`.

    python benchmarks/results/own_videos.py --work DIR [--kills 5]

The folder holds 200 files in three sub-folders with odd names: 188 synthetic videos of two seconds, a quarter of them
with the audio of another class, ten of them uploaded again (cut, smaller, other codecs; needs `ffmpeg`), and two files
that cannot be read. 40 have a label. What the report says is compared with what is true. With `--kills` the command is
run again in another folder and killed (SIGKILL) at random moments; the metrics must be the same.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from avdistill.analysis.demo import DEMO_DATA
from avdistill.annotations import read_annotations
from avdistill.config_io import read_json
from avdistill.fsio import write_json
from avdistill.synthetic.generator import synthesize
from avdistill.training.run_dir import environment

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = ("2023 holiday", "Ünïcode ☃", "c")
VIDEOS, COPIES, LABELS = 188, 10, 40
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
    """The call."""
    words = [sys.executable, "-m", "avdistill", "distill", str(work / "videos"), "--labels", str(work / "labels.csv")]
    return [*words, "--out", str(out), "--time-budget", "8m"]


def found(out: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """What the report says, beside the truth."""
    told = read_json(out / "results.json")
    with (out / "audit" / "clips.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] and row["path"] in truth["audio"]]
    wrong = {row["path"]: truth["audio"][row["path"]] == "mismatched" for row in rows}
    path = {row["id"]: row["path"] for row in rows}
    listed = [wrong[path[clip]] for clip in told["suspicious"] if clip in path]
    auroc = roc_auc_score(list(wrong.values()), [float(row["correspondence"]) for row in rows])
    pairs = [{str(Path(clip)) for clip in each["clips"]} for each in told["copies"]]
    named = [{str(Path(name).with_suffix("")) for name in pair} for pair in truth["copies"].items()]
    plain = [
        {str(Path(clip).with_suffix("")) if "." in Path(clip).name[-5:] else clip for clip in pair} for pair in pairs
    ]
    return {
        "unreadable_named": sum(each["file"] in truth["unreadable"] for each in told["skipped"]),
        "copies_named": sum(pair in plain for pair in named),
        "pairs_named": len(pairs),
        "wrong_audio": sum(wrong.values()),
        "listed": len(listed),
        "listed_wrong_audio": sum(listed),
        "auroc": round(float(auroc), 4),
        "test_clips": told["test_clips"],
        "methods": told["methods"],
    }


def killed(work: Path, out: Path, kills: int, seconds: float) -> list[float]:
    """Run to the end with kills; returns the moments, in seconds after each start."""
    chance = random.Random(2)
    moments: list[float] = []
    shutil.rmtree(out, ignore_errors=True)
    while len(moments) < kills:
        running = subprocess.Popen(command(work, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        moment = chance.uniform(0.1, 1) * 2 * seconds / kills
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


def main() -> None:
    """Make, run, compare."""
    parser = argparse.ArgumentParser(description="results/own_videos.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=0)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    truth, out = make(a.work), a.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(a.work, out), check=True)
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report: dict[str, Any] = {
        "command": "python benchmarks/results/own_videos.py --work DIR --kills N",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "seconds": round(seconds),
        "processor_seconds_without_forked_runs": round(used.ru_utime + used.ru_stime),
        **found(out, truth),
    }
    if a.kills:
        moments = killed(a.work, a.work / "killed", a.kills, seconds)
        one, other = (read_json(each / "results.json") for each in (out, a.work / "killed"))
        report["killed_after_seconds"] = moments
        report["same_after_kills"] = {key: one[key] == other[key] for key in SAME}
    write_json(RESULTS / "own_videos.json", report)
    print(report)


if __name__ == "__main__":
    main()
