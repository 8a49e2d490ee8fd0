"""What a clip costs at each step, for docs/million.md: `results/million.json`.

    python benchmarks/results/million.py --work DIR

Made clips of ten seconds, 640 x 360 pixels at some 0.9 Mbit/s, with H.264 and AAC, as `avdistill` treats them: frames
at 4 a second with a short side of 128 as JPEG, audio at 16 kHz. Measured is processor time of one thread, which other
work on the machine lengthens by less than the wall clock; the cost of starting a command is taken out by running it on
few and on many clips. The embedding networks have random weights, which take as long as trained ones.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "speed"))

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import write_json
from avdistill.inference.runner import run_network
from avdistill.inputs import VideoInput
from avdistill.models.efficientnet_lite import EfficientNetLite0Frames
from avdistill.models.registry import build_model
from avdistill.teachers.audio import RANDOM
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import train
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import machine
from preparation import video

RESULT = Path(__file__).resolve().parents[2] / "results" / "million.json"
SECONDS, FEW, MANY, QUALITY = 10, 4, 24, 90
STEPS = 12
#: five frames of 128 x 128, as `distill` embeds them
FRAMES = VideoInput(frames=1, size=(128, 128))
Row = dict[str, Any]


def spent(procedure: Callable[[], object]) -> float:
    """Processor seconds of a call in this process."""
    began = time.process_time()
    procedure()
    return time.process_time() - began


def prepare(work: Path, clips: int) -> float:
    """Processor seconds of the command, its workers included."""
    listed = work / f"list-{clips}.csv"
    listed.write_text("path,label,split\n" + "".join(f"{i}.mp4,class_{i % 2},train\n" for i in range(clips)))
    shutil.rmtree(work / f"dataset-{clips}", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["prepare", listed, "--videos", work, "--out", work / f"dataset-{clips}", "--fps", 4, "--short-side", 128]
    words += ["--jpeg", QUALITY, "--workers", 1]
    subprocess.run([sys.executable, "-m", "avdistill", *map(str, words)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepared(work: Path) -> tuple[Row, ClipDataset]:
    """Of `prepare`, and the dataset."""
    first = video(work / "0.mp4", length_seconds=SECONDS)
    for i in range(1, MANY):
        if not (work / f"{i}.mp4").exists():
            shutil.copyfile(first, work / f"{i}.mp4")
    few, many = prepare(work, FEW), prepare(work, MANY)
    dataset = ClipDataset(work / f"dataset-{MANY}")
    files = sum(file.stat().st_size for file in dataset.folder.rglob("*") if file.is_file())
    row = {"step": "prepare", "processor_seconds": (many - few) / (MANY - FEW), "bytes": files / MANY}
    return row | {"source_bytes": first.stat().st_size}, dataset


def embedded(dataset: ClipDataset, name: str, network: str, **more: Any) -> Row:
    """Of `embed`."""
    teacher = load_teacher(network, weights=RANDOM) if network != "efficientnet_lite0" else None
    if teacher is None:
        images = EfficientNetLite0Frames(2).eval()
        seconds = spent(lambda: run_network(images, dataset, np.arange(len(dataset)), FRAMES, windows=5, workers=0))
        return {"step": name, "processor_seconds": seconds / len(dataset), "bytes": 4 * images.embedding_dim}
    seconds = spent(lambda: embed(dataset, teacher, network, device="cpu", **more))
    return {"step": name, "processor_seconds": seconds / len(dataset), "bytes": 4 * teacher.network.embedding_dim}


def trained(dataset: ClipDataset, work: Path) -> Row:
    """Of a clip in a training step of the small student of UCF51."""
    recipe = replace(
        RECIPES["ucf51_small_supervised"], dataset=dataset.folder, workers=0, val_fraction=0.0, batch_size=16
    )
    times = {}
    for steps in (2, 2 + STEPS):
        out = work / f"run-{steps}"
        shutil.rmtree(out, ignore_errors=True)
        config = replace(recipe, out=out, steps=steps, save_every=1000)
        times[steps] = spent(lambda config=config: train(config))  # type: ignore[misc]
    seconds = (times[2 + STEPS] - times[2]) / STEPS / recipe.batch_size
    return {"step": "train", "processor_seconds": seconds, "bytes": 0}


def evaluated(dataset: ClipDataset) -> Row:
    """Of a clip in `evaluate` and `retrieve`, one window."""
    student = RECIPES["ucf51_small_supervised"].student
    network = build_model(student.model, 2, student.options).eval()
    seconds = spent(lambda: run_network(network, dataset, np.arange(len(dataset)), student.view, windows=1, workers=0))
    return {"step": "evaluate", "processor_seconds": seconds / len(dataset), "bytes": 0}


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description="what a clip costs: results/million.json")
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    row, dataset = prepared(work)
    rows = [
        row,
        embedded(dataset, "embed_yamnet", "yamnet"),
        embedded(dataset, "embed_cnn14", "cnn14"),
        embedded(dataset, "embed_frames", "efficientnet_lite0"),
        trained(dataset, work),
        evaluated(dataset),
    ]
    write_json(
        RESULT,
        {
            "command": "python benchmarks/results/million.py --work DIR",
            "environment": machine(),
            "load": os.getloadavg()[0],
            "clip_seconds": SECONDS,
            "rows": [{"seed": 0, **each} for each in rows],
        },
    )
    for each in rows:
        print(each["step"], f"{each['processor_seconds']:.3f} s a clip", file=sys.stderr)


if __name__ == "__main__":
    main()
