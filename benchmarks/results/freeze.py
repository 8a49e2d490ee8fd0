"""Numbers that renaming and moving code must not change, bit for bit: `results/freeze.json`.

    python benchmarks/results/freeze.py record [--out FILE]
    python benchmarks/results/freeze.py check [FILE] [--values-only]

Synthetic videos are made, decoded into a small dataset and given a random audio network's features. Recorded are, in a
section each: checksums of the dataset's content; of every method the losses of five steps and the checksum of the
student's weights; of a longer run the same, `evaluate`, `retrieve` and `predict`; the audits of mnf_csc and robust. All
on the CPU, in float32, with one thread; floats as `float.hex`. `check` computes all anew and prints a line per value
that differs. Other processors or packages may change the last bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.analysis.audit.audit import audit
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.inference.predictor import Student
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods import METHODS, teacher_requirement
from avdistill.models.checkpoint import load_student
from avdistill.models.registry import build_model
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.synthetic.generator import SyntheticConfig, synthesize
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig, train
from avdistill.training.run_dir import environment

RESULTS = Path(__file__).resolve().parents[2] / "results" / "freeze.json"
VIDEOS = SyntheticConfig(0, 24, 18, 14, seconds=1.0, height=48, width=64)  # teacher, labeled, unlabeled, test clips
STUDENT = ModelConfig("shifted_frames", VideoInput(frames=4, size=(24, 32)), {"width": 8, "embedding_dim": 16})
OPTIMIZER = OptimizerConfig("adamw", 3e-3, 1e-2, "cosine", warmup_steps=1, max_grad_norm=5.0)
SETTINGS: dict[str, Any] = {"batch_size": 10, "labeled_per_batch": 6, "precision": "float32", "device": "cpu"}


def made_dataset(work: Path) -> tuple[ClipDataset, Path]:
    """The dataset with features, logits and maps of an audio network; and one of its videos."""
    listed = read_annotations(synthesize(work / "synthetic", VIDEOS, workers=1))
    listed = [replace(a, start_seconds=0.2, end_seconds=0.9) if i % 5 == 2 else a for i, a in enumerate(listed)]
    videos = work / "synthetic" / "videos"
    dataset = prepare(listed, videos, work / "dataset", PrepareConfig(fps=8, short_side=36), workers=1)
    torch.manual_seed(3)
    network = build_model("logmel_cnn", len(dataset.classes), {"width": 4, "embedding_dim": 12}).eval()
    for buffer in (b for name, b in network.named_buffers() if "running" in name):
        torch.nn.init.uniform_(buffer, 0.1, 0.2)  # statistics under which the map is neither flat nor dead
    teacher = Teacher(
        network, AudioInput(seconds=0.4), dataset.classes, False, None, dataset.sample_rate_hz, {"name": "random"}
    )
    embed(dataset, teacher, "audio", tokens=True, device="cpu")
    return ClipDataset(dataset.folder), videos / listed[-1].path


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of their types, shapes and bytes, in order."""
    parts = (f"{array.dtype.str}{array.shape}".encode() + array.tobytes() for array in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def content(dataset: ClipDataset) -> dict[str, str]:
    """Checksums of the dataset's content, in the order of the clips."""
    c, clips, none = dataset.columns, range(len(dataset)), np.zeros(0)
    return {
        "frames": checksum(np.asarray(dataset.frames(i)) if c["has_video"][i] else none for i in clips),
        "audio": checksum(dataset.audio(i) if c["has_audio"][i] else none for i in clips),
        "labels": checksum(np.array(names, dtype=str) for names in dataset.labels),
        "splits": checksum([c["split"].astype(str)]),
        "times": checksum([c["start_seconds"], c["end_seconds"]]),
    }


def trained(dataset: ClipDataset, out: Path, name: str, steps: int) -> dict[str, Any]:
    """The losses of each step and the checksum of the student's last weights, in the order of its state."""
    losses: list[dict[str, float]] = []
    method = METHODS[name].config_class()
    teacher = "audio" if teacher_requirement(method) else None
    config = TrainConfig(dataset.folder, out, STUDENT, method, teacher, steps=steps, optimizer=OPTIMIZER, **SETTINGS)
    train(config, on_step=lambda _step, values: losses.append(values))
    state = load_student(out / "last")[0].state_dict()
    return flat({"losses": losses}) | {"weights": checksum(tensor.numpy() for tensor in state.values())}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every number with its name, in order, floats in hexadecimal; texts are left out."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {n: v for key, each in pairs for n, v in flat(each, f"{name}/{key}" if name else str(key)).items()}
    return {} if isinstance(value, str) else {name: value.hex() if isinstance(value, float) else value}


def report(work: Path) -> dict[str, Any]:
    """All that the file holds, made in an empty folder."""
    torch.set_num_threads(1)
    dataset, video = made_dataset(work)
    told: dict[str, Any] = {"dataset": content(dataset)}
    told |= {f"method {name}": trained(dataset, work / name, name, 5) for name in METHODS}
    run = work / "longer"
    told["longer run"] = trained(dataset, run, "kd", 60)
    found = evaluate(run, dataset, split="train", device="cpu")
    told["evaluate"] = flat({**found.metrics.to_dict(), "confusion": found.confusion, "predictions": found.predictions})
    looked_up = retrieve(run, dataset, ks=(1, 5), device="cpu")
    told["retrieve"] = flat({**looked_up.metrics.to_dict(), "neighbors": looked_up.neighbors})
    said = Student.from_pretrained(run, "cpu").predict(video)
    told["predict"] = flat(said.describe() | {"probabilities": said.probabilities.tolist()})
    for name in ("mnf_csc", "robust"):
        result = audit(work / name, dataset, device="cpu")
        told[f"audit {name}"] = flat(
            {**result.metrics, "clip_rows": result.clips, "rows": result.rows, "settings": result.settings}
        )
    made_with = {key: value for key, value in environment().items() if key != "command"}
    runs = [{"section": name, "seed": 0, "values": values} for name, values in told.items()]
    return {"command": "python benchmarks/results/freeze.py record", "environment": made_with, "runs": runs}


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """A line for each name of each section whose value differs or that only one of them has."""
    then, now = ({run["section"]: run["values"] for run in each["runs"]} for each in (old, new))
    for section in then | now:
        was, is_now = then.get(section, {}), now.get(section, {})
        for name in was | is_now:
            if repr(was.get(name, "nothing")) != repr(is_now.get(name, "nothing")):
                yield f"{section}: {name} = {was.get(name, 'nothing')}, now {is_now.get(name, 'nothing')}"


def main() -> int:
    """Record, or check what was recorded."""
    parser = argparse.ArgumentParser(description="numbers that renaming must not change: results/freeze.json")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("record").add_argument("--out", dest="file", type=Path, default=RESULTS)
    checking = tasks.add_parser("check")
    checking.add_argument("file", type=Path, nargs="?", default=RESULTS)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freeze-") as work:
        new = report(Path(work))
    if a.task == "record":
        a.file.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        return 0
    lines = list(differences(json.loads(a.file.read_text(encoding="utf-8")), new))
    print("\n".join(lines) or f"{a.file}: nothing differs")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
