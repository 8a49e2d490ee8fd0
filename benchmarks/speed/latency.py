"""How long one waits: for a label of one file, for `--help`, for the first step: `results/performance/latency.json`.

    python benchmarks/speed/latency.py --work DIR [predict_latency start start_training]

`predict_latency` is the UCF51 student of `checkpoints/` on a made file of 10 seconds, 1280 x 720 pixels, H.264 and AAC,
over decoding every frame of it alone, in turn: with a reading process that is there already, as for the second of many
files; in the row also with one that starts, and the same student as int8 ONNX, if `small_models.py` left it in DIR.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from avdistill.inference.onnx_student import OnnxStudent
from avdistill.inference.prediction import FileStudent
from avdistill.inference.predictor import Student
from avdistill.preparation.clip_reader import IsolatedReader
from measuring import NotHereError, Row, in_turn, measure, seconds, within
from preparation import decode, video
from synthetic_datasets import synthetic_dataset

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "ucf51_14_mnf_csc"
REPEATS = 9


def predict_latency(work: Path) -> Row:
    """At most 1.25 times as long as decoding alone."""
    path = video(work / "720p.mp4", length_seconds=10, size=(720, 1280))
    students: dict[str, FileStudent] = {"torch": Student.from_pretrained(CHECKPOINT, "cpu")}
    int8 = work / f"{CHECKPOINT.name}-int8"
    if int8.is_dir():
        students["int8"] = OnnxStudent.from_exported(int8)
    ratios = {}
    with IsolatedReader() as reader:
        for name, student in students.items():
            ratios[name] = over_decoding(partial(student.predict, path, reader=reader), path)
    for name, student in students.items():
        ratios[f"{name}_and_process"] = over_decoding(partial(student.predict, path), path)
    measured = ratios.pop("torch")
    others = {name: statistics.median(each) for name, each in ratios.items()}
    return within(
        "predict_latency",
        1.25,
        measured,
        others=others,
        decoding_seconds=seconds(lambda: decode(path)),
        load_average=os.getloadavg()[0],
    )


def over_decoding(predict: Callable[[], object], path: Path) -> list[float]:
    """Seconds of a prediction over those of decoding, in turn."""
    return [ours / alone for ours, alone in in_turn(predict, lambda: decode(path), REPEATS)]


def start(_: Path) -> Row:
    """Seconds that `--help` and `import avdistill` take over a bare interpreter, at most 0.3; the slower one counts.

    They are the processor's: a process that only computes takes no others on an idle machine.
    """

    def run(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    measured = {}
    for name, words in {"help": ("-m", "avdistill", "--help"), "import": ("-c", "import avdistill")}.items():
        run(*words), run("-c", "pass")
        measured[name] = [run(*words) - run("-c", "pass") for _ in range(REPEATS)]
    slower = max(measured.values(), key=statistics.median)
    others = {name: statistics.median(each) for name, each in measured.items()}
    return within("start", 0.3, slower, others=others, load_average=os.getloadavg()[0])


def start_training(work: Path) -> Row:
    """Seconds from the command to its first step, less those of importing PyTorch, at most 6."""
    run, dataset = work / "first_step", synthetic_dataset(work / "small", 400, 16, 64, 85).folder
    words = [sys.executable, "-m", "avdistill", "train", "ucf51_small_supervised", "--dataset", str(dataset)]
    words += ["--out", str(run), "--log-every", "1", "--workers", "0"]

    def first_step() -> None:
        shutil.rmtree(run, ignore_errors=True)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            log = run / "metrics.jsonl"
            while not (log.is_file() and log.stat().st_size):
                if process.poll() is not None:
                    raise NotHereError(f"the training ended: {process.stderr.read().decode()}")  # type: ignore[union-attr]
                time.sleep(0.01)
            process.kill()

    def torch_alone() -> None:
        subprocess.run([sys.executable, "-c", "import torch"], check=True)

    return within(
        "start_training", 6, [a - b for a, b in in_turn(first_step, torch_alone, 5)], load_average=os.getloadavg()[0]
    )


MEASURES = {"predict_latency": predict_latency, "start": start, "start_training": start_training}


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser(description="what one waits for: results/performance/latency.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    a = parser.parse_intermixed_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    measure("latency", {name: partial(taken, a.work) for name, taken in MEASURES.items()}, a.names)


if __name__ == "__main__":
    main()
