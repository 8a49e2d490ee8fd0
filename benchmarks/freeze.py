"""Numbers that renaming and moving code must not change, bit for bit: `results/freeze.json`.

    python benchmarks/freeze.py record [--out FILE]
    python benchmarks/freeze.py check [FILE] [--values-only]

Synthetic videos are made, decoded into a small dataset and given a random audio network's features. Recorded are, in a
section each: checksums of the dataset's content; of every method the losses of five steps and the checksum of the
student's weights; of a longer run the same, `evaluate`, `retrieve` and `predict`; the audits of mnf_csc and robust. All
on the CPU, in float32, with one thread; floats as `float.hex`. `check` computes all anew and prints a line per place of
a section whose value or, without `--values-only`, name differs. Other processors or packages may change the last bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdistill.application.prediction import load
from avdistill.data.annotations import read_annotations
from avdistill.data.preparation import PrepareConfig, prepare
from avdistill.data.store import Store
from avdistill.data.synthetic import SyntheticConfig, synthesize
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.methods import METHODS
from avdistill.models import build_model
from avdistill.models.weights import load_student
from avdistill.studies.audit import audit
from avdistill.teachers import Teacher, embed
from avdistill.training import OptimizerConfig, StudentConfig, TrainConfig, train
from avdistill.training.checkpoint import environment
from avdistill.types import PictureView, SoundView

RESULTS = Path(__file__).resolve().parents[1] / "results" / "freeze.json"
VIDEOS = SyntheticConfig(0, 24, 18, 14, seconds=1.0, height=48, width=64)  # teacher, labelled, unlabelled, test clips
STUDENT = StudentConfig("shifted_frames", PictureView(frames=4, size=(24, 32)), {"width": 8, "embedding_dim": 16})
OPTIMIZER = OptimizerConfig("adamw", 3e-3, 1e-2, "cosine", warmup_steps=1, clip_norm=5.0)
SETTINGS: dict[str, Any] = {"batch_size": 10, "labelled_per_batch": 6, "precision": "float32", "device": "cpu"}


def made_dataset(work: Path) -> tuple[Store, Path]:
    """The dataset with features, logits and maps of an audio network; and one of its videos."""
    listed = read_annotations(synthesize(work / "synthetic", VIDEOS, workers=1))
    listed = [replace(a, start_seconds=0.2, end_seconds=0.9) if i % 5 == 2 else a for i, a in enumerate(listed)]
    videos = work / "synthetic" / "videos"
    dataset = prepare(listed, videos, work / "dataset", PrepareConfig(fps=8, short_side=36), workers=1)
    torch.manual_seed(3)
    network = build_model("logmel_cnn", len(dataset.classes), {"width": 4, "embedding_dim": 12}).eval()
    for buffer in (b for name, b in network.named_buffers() if "running" in name):
        torch.nn.init.uniform_(buffer, 0.1, 0.2)  # statistics under which the map is neither flat nor dead
    teacher = Teacher(network, SoundView(seconds=0.4), dataset.classes, False, None, dataset.sample_rate_hz, "random")
    embed(dataset, teacher, "audio", maps=True, device="cpu")
    return Store(dataset.folder), videos / listed[-1].path


def checksum(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of their types, shapes and bytes, in order."""
    parts = (f"{array.dtype.str}{array.shape}".encode() + array.tobytes() for array in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def content(dataset: Store) -> dict[str, str]:
    """Checksums of the dataset's content, in the order of the clips."""
    c, clips, none = dataset.columns, range(len(dataset)), np.zeros(0)
    return {
        "frames": checksum(np.asarray(dataset.frames(i)) if c["has_frames"][i] else none for i in clips),
        "audio": checksum(dataset.sound(i) if c["has_sound"][i] else none for i in clips),
        "labels": checksum(np.array(names, dtype=str) for names in dataset.labels),
        "splits": checksum([c["split"].astype(str)]),
        "times": checksum([c["start_seconds"], c["end_seconds"]]),
    }


def trained(dataset: Store, out: Path, name: str, steps: int) -> dict[str, Any]:
    """The losses of each step and the checksum of the student's last weights, in the order of its state."""
    losses: list[dict[str, float]] = []
    teacher, method = "audio" if METHODS[name].needs else None, METHODS[name].config_class()
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
    told["evaluate"] = flat(vars(evaluate(run, dataset, split="train", device="cpu")))
    told["retrieve"] = flat(vars(retrieve(run, dataset, ks=(1, 5), release_metrics=True, device="cpu")))
    said = load(run, "cpu").predict(video)
    told["predict"] = flat(said.describe() | {"probabilities": said.probabilities.tolist()})
    told |= {f"audit {name}": flat(vars(audit(work / name, dataset, device="cpu"))) for name in ("mnf_csc", "robust")}
    made_with = {key: value for key, value in environment().items() if key != "command"}
    runs = [{"section": name, "seed": 0, "values": values} for name, values in told.items()]
    return {"command": "python benchmarks/freeze.py record", "environment": made_with, "runs": runs}


def differences(old: dict[str, Any], new: dict[str, Any], values_only: bool) -> Iterator[str]:
    """A line for each place of each section where the values differ or, unless `values_only`, their names."""
    for then, now in zip_longest(old["runs"], new["runs"], fillvalue=dict[str, Any](section="nothing", values={})):
        was, found = ([(run["section"], ""), *run["values"].items()] for run in (then, now))
        for place, (a, b) in enumerate(zip_longest(was, found, fillvalue=("nothing", "nothing"))):
            if repr(a[1]) != repr(b[1]) or (a != b and not values_only):
                yield f"{then['section']}, place {place}: {a[0]} = {a[1]}, now {b[0]} = {b[1]}"


def main() -> int:
    """Record, or check what was recorded."""
    parser = argparse.ArgumentParser(description="numbers that renaming must not change: results/freeze.json")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("record").add_argument("--out", dest="file", type=Path, default=RESULTS)
    checking = tasks.add_parser("check")
    checking.add_argument("file", type=Path, nargs="?", default=RESULTS)
    checking.add_argument("--values-only", action="store_true", help="names may differ")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freeze-") as work:
        new = report(Path(work))
    if a.task == "record":
        a.file.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        return 0
    lines = list(differences(json.loads(a.file.read_text(encoding="utf-8")), new, a.values_only))
    print("\n".join(lines) or f"{a.file}: nothing differs")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
