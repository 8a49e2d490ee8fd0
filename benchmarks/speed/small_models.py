"""What exported students cost and what int8 costs in accuracy: `results/performance/small_models.json`.

    python benchmarks/speed/small_models.py checkpoints --ucf51 DIR --work DIR [NAME ...]
    python benchmarks/speed/small_models.py cost --ucf51 DIR --work DIR [NAME ...]
    python benchmarks/speed/small_models.py families --work DIR [MODEL ...]

`checkpoints` takes the students in `checkpoints/` that label UCF51's videos: `--ucf51` is the `--work` of `ucf51.py`.
int8 is calibrated on training groups; accuracy is that of all windows of the test clips, 95% intervals are bootstraps
over source videos, paired. `cost` measures the time of those again, on a quieter machine. `families` takes a network
of every family with random weights: whether it becomes ONNX and int8, and what that costs. Milliseconds are of one
window, float32, int8 and PyTorch in turn: on all cores by the clock, on one as the processor's time, which other
processes lengthen little. The ratio is the median over rounds. `load_average` says how many processes wanted a core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "results"))  # what it shares with the scripts there

import numpy as np
import torch

import ucf51
from avdistill.annotations.groups import video_of
from avdistill.dataset.batches import EvaluationWindows
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits, has_modality
from avdistill.evaluation.statistics import interval, paired_difference
from avdistill.inference.export import export
from avdistill.inference.onnx_student import MODEL, OnnxStudent
from avdistill.inference.predictor import Student
from avdistill.inference.quantization import quantize
from avdistill.inputs import AudioInput, Option, StudentConfig, VideoInput
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from measuring import RESULTS, Row, machine, write_rows

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
FILE = RESULTS / "small_models.json"
ROUNDS = 200
# PyTorch is no part of the ratio, and two of its threads wait long for each other on a busy machine.
TORCH_EVERY = 10
#: model -> options, frames and size of its input (audio: seconds)
FAMILIES: dict[str, tuple[dict[str, Option], VideoInput | AudioInput]] = {
    "shifted_frames": ({"embedding_dim": 256}, VideoInput(frames=8, size=(56, 56))),
    "stacked_frames": ({"frames": 8}, VideoInput(frames=8, size=(56, 56))),
    "tiny_r2plus1d": ({}, VideoInput(frames=8, size=(56, 56))),
    "r2plus1d_xia2023": ({}, VideoInput(frames=8, size=(56, 56))),
    "torchvision:mc3_18": ({}, VideoInput(frames=8, size=(56, 56))),
    "efficientnet_lite0": ({}, VideoInput(frames=4, size=(112, 112))),
    "timm:mobilenetv3_small_050": ({}, VideoInput(frames=4, size=(112, 112))),
    "logmel_cnn": ({"embedding_dim": 256}, AudioInput(seconds=2.0)),
}


def milliseconds(procedures: Mapping[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, Any]:
    """Of one call of each, in turn: medians, and the median ratio of float32's to int8's."""
    for procedure in procedures.values():
        procedure(), procedure()
    rounds: dict[str, list[float]] = {name: [] for name in procedures}
    for number in range(ROUNDS):
        for name, procedure in procedures.items():
            if name == "torch" and number % TORCH_EVERY:
                continue
            began = clock()
            procedure()
            rounds[name].append(1000 * (clock() - began))
    found: dict[str, Any] = {name: round(statistics.median(each), 3) for name, each in rounds.items()}
    pairs = zip(rounds["float32"], rounds["int8"], strict=True)
    return found | {"ratio": statistics.median(a / b for a, b in pairs)}


def latency(student: Student, folders: Mapping[str, Path], window: np.ndarray) -> dict[str, Any]:
    """Milliseconds of a window with all cores and with one."""
    found: dict[str, Any] = {}
    for cores in (os.cpu_count() or 1, 1):
        torch.set_num_threads(cores)
        exported = {name: OnnxStudent.from_exported(folder, threads=cores) for name, folder in folders.items()}
        procedures: dict[str, Callable[[], object]] = {
            name: partial(each.run, window) for name, each in exported.items()
        }
        procedures["torch"] = partial(student._run, window)
        found[f"milliseconds_{cores}_cores" if cores > 1 else "milliseconds_1_core"] = milliseconds(
            procedures, time.perf_counter if cores > 1 else time.thread_time
        )
    return found


def row_of(name: str, student: Student, folders: Mapping[str, Path], window: np.ndarray) -> Row:
    """What a student costs as float32 and int8."""
    cost = latency(student, folders, window)
    on_all = next(iter(cost.values()))
    return {
        "name": name,
        "ratio": on_all["ratio"],
        "bar": 1.5,
        "ours_seconds": on_all["int8"] / 1000,
        "theirs_seconds": on_all["float32"] / 1000,
        "model": student.config.model,
        "window": list(window.shape),
        "cores": os.cpu_count(),
        "parameters": sum(p.numel() for p in student.network.parameters()),
        "megabytes": {each: (folder / MODEL).stat().st_size / 1e6 for each, folder in folders.items()},
        **cost,
        "load_average": os.getloadavg()[0],
    }


def correct(student: OnnxStudent, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
    """Whether the mean over all windows of each clip has its label as the most probable."""
    windows = EvaluationWindows(dataset, clips, student.config.view)
    total = np.zeros((len(clips), len(student.config.classes)))
    for first in range(0, len(windows), 16):
        positions, inputs = windows.batch(first, 16)
        np.add.at(total, positions.numpy(), student._run(inputs.numpy())[1])
    # The mean over windows and their sum have the same largest column.
    return np.array(
        [dataset.labels[c] == (student.config.classes[i],) for c, i in zip(clips, total.argmax(1), strict=True)]
    )


def checkpoint(name: str, ucf51_work: Path, work: Path) -> Row:
    """A student of `checkpoints/`: accuracy and cost."""
    dataset = ClipDataset(ucf51_work / "dataset")
    training, test = (ucf51.groups(part[1]) for part in (ucf51.TRAINED, ucf51.TESTED))
    folders = {precision: work / f"{name}-{precision}" for precision in ("float32", "int8")}
    for precision, folder in folders.items():
        shutil.rmtree(folder, ignore_errors=True)
        export(CHECKPOINTS / name, folder, clips=dataset, int8=precision == "int8", split=training)
    student = Student.from_pretrained(CHECKPOINTS / name, "cpu")
    clips = clips_of_splits(dataset, test)
    clips = clips[has_modality(dataset, clips, student.config.view)]
    right = {p: correct(OnnxStudent.from_exported(f), dataset, clips)[None] for p, f in folders.items()}
    videos = np.array([video_of(str(dataset.columns["id"][clip])) for clip in clips])
    return cost(name, ucf51_work, work) | {
        "top1_accuracy": {precision: vars(interval(each, videos)) for precision, each in right.items()},
        "difference": vars(paired_difference(right["int8"], right["float32"], videos)),
        "clips": len(clips),
        "videos": len(set(videos.tolist())),
    }


def cost(name: str, ucf51_work: Path, work: Path) -> Row:
    """What a student of `checkpoints/` costs, that was exported before."""
    student, dataset = Student.from_pretrained(CHECKPOINTS / name, "cpu"), ClipDataset(ucf51_work / "dataset")
    clips = np.flatnonzero(has_modality(dataset, np.arange(len(dataset)), student.config.view))
    window = EvaluationWindows(dataset, clips[:1], student.config.view).batch(0, 1)[1].numpy()
    folders = {precision: work / f"{name}-{precision}" for precision in ("float32", "int8")}
    return row_of(f"int8_{name}", student, folders, window)


def family(model: str, work: Path) -> Row:
    """A network with random weights; its running statistics are those of noise."""
    options, view = FAMILIES[model]
    torch.manual_seed(0)
    network = build_model(model, 14, options)
    config = StudentConfig(model, tuple(f"class {i}" for i in range(14)), view, 4.0, 16000, options=options)
    inputs = view.random_inputs(16, 16000, np.random.default_rng(0))
    with torch.no_grad():
        network.train()(view.network_input(inputs[:8]))
    safe = model.replace(":", "_")
    folders = {precision: work / f"family-{safe}-{precision}" for precision in ("float32", "int8")}
    for folder in (work / f"family-{safe}", *folders.values()):
        shutil.rmtree(folder, ignore_errors=True)
    (work / f"family-{safe}").mkdir(parents=True)
    save_student(work / f"family-{safe}", network.eval(), config)
    parity = export(work / f"family-{safe}", folders["float32"])["parity"]
    shutil.copytree(folders["float32"], folders["int8"])
    quantize(folders["int8"] / MODEL, {f"network.{each}" for each, _ in network.named_parameters()}, inputs)
    return row_of(f"int8_{model}", Student(network, config), folders, inputs[:1].numpy()) | {
        "largest_difference": parity["largest_difference"]
    }


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description="exported students: results/performance/small_models.json")
    parser.add_argument("what", choices=("checkpoints", "cost", "families"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ucf51", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_intermixed_args()
    a.work.mkdir(parents=True, exist_ok=True)
    known = sorted(folder.name for folder in CHECKPOINTS.glob("ucf51_14_*")) if a.what != "families" else FAMILIES
    for name in a.names or known:
        if a.what == "families":
            row = family(name, a.work)
        else:
            row = (checkpoint if a.what == "checkpoints" else cost)(name, a.ucf51, a.work)
        there = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
        before: Row = next((each for each in there if each["name"] == row["name"]), {}) if a.what == "cost" else {}
        write_rows("small_models", [before | row | machine()])
        print(name, f"{row['ratio']:.2f}", row.get("difference", ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
