"""What grows with the number of clips, and how: `results/performance/scale.json`.

    python benchmarks/speed/many_clips.py --work DIR [NAME ...]

The datasets are made up: every clip has the same second of audio, and the features of two million clips are files with
holes. Memory is that of a process of its own, over what it holds with the library imported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avdistill.analysis.audit.dataset_audit import audit_dataset
from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import PART_CLIPS
from avdistill.dataset.schema import CLIP_SCHEMA, FORMAT_VERSION
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import remove_tree
from avdistill.inference.predictor import Student
from avdistill.inputs import AudioInput
from avdistill.methods import MethodContext, build_method
from avdistill.methods.crd import CRD, CRDConfig
from avdistill.models.registry import build_model
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.training.recipes import RECIPES
from avdistill.types import Batch, Features, StudentConfig
from measuring import Row, in_turn, measure, peak_bytes, resident_bytes, within

CLASSES = tuple(f"class_{i:02d}" for i in range(50))
RATE, WIDTH = 16_000, 2048
MANY, LARGE, SMALL = 2_000_000, 1_000_000, 100_000
EMBEDDED, SHORT_SECONDS = (20_000, 2_000), 0.1
CRD_CLIPS, NEGATIVES = (200_000, 2_000), 1024
AUDITED_WIDTH = 256


def dataset(folder: Path, clips: int, seconds: int = 1) -> Path:
    """A dataset of clips that all have the same audio, one in five with the same source video."""
    if (folder / "dataset.json").is_file():
        return folder
    folder.mkdir(parents=True)
    rows, zeros = np.arange(clips), np.zeros(clips, np.int64)

    def names(prefix: str, numbers: np.ndarray) -> pa.Array:
        return pa.array(np.char.add(prefix, numbers.astype(str)))

    nothing = pa.array(np.zeros(clips + 1, np.int32))
    columns = {
        "id": names("clip", rows),
        "path": names("video", rows // 5),
        "group": names("video", rows // 5),
        "labels": pa.ListArray.from_arrays(
            pa.array(np.arange(clips + 1, dtype=np.int32)), pa.array(np.array(CLASSES)[rows % len(CLASSES)])
        ),
        "split": pa.array(np.full(clips, "train")),
        "start_seconds": zeros.astype(float),
        "end_seconds": zeros + float(seconds),
        "notes": pa.ListArray.from_arrays(nothing, pa.array([], pa.string())),
        "extra": pa.MapArray.from_arrays(nothing, pa.array([], pa.string()), pa.array([], pa.string())),
        **{name: pa.array(np.full(clips, name == "has_audio")) for name in ("has_video", "has_audio", "silent")},
        **{f"frame_{name}": zeros for name in ("shard", "offset", "count")},
        "audio_shard": zeros,
        "audio_offset": zeros,
        "audio_count": zeros + seconds * RATE,
    }
    ordered = {field.name: columns[field.name] for field in CLIP_SCHEMA}
    pq.write_table(pa.table(ordered).cast(CLIP_SCHEMA), folder / "clips.parquet")
    noise = np.random.default_rng(0).integers(-9000, 9000, seconds * RATE)
    np.save(folder / "audio-00000.npy", noise.astype(np.int16))
    about = {"version": FORMAT_VERSION, "frame_encoding": "raw", "fps": 4.0, "sample_rate_hz": RATE, "skipped": 0}
    about |= {"classes": CLASSES, "clips": clips, "checksum": f"made of {clips}", "files": {}, "settings": {}}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def with_features(folder: Path, clips: int) -> Path:
    """Embeddings and logits of all clips, zeros that take no place on the disk."""
    if (folder / "features").is_dir():
        return folder
    target = folder / "features" / "audio"
    target.mkdir(parents=True)
    parts = []
    for first in range(0, clips, PART_CLIPS):
        count, digest = min(PART_CLIPS, clips - first), f"{first:064x}"
        start = target / f"part-{first:08d}-{digest[:16]}"
        np.save(f"{start}.valid.npy", np.ones(count, bool))
        for kind, width in (("embedding", WIDTH), ("logits", len(CLASSES))):
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            with Path(f"{start}.{kind}.npy").open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + 4 * count * width)
        parts.append({"first": first, "clips": count, "files": dict.fromkeys(("valid", "embedding", "logits"), digest)})
    entry = {"name": "audio", "modality": "audio", "embedding_dim": WIDTH, "num_tokens": 0, "classes": CLASSES}
    entry |= {"provenance": {"name": "made up"}, "clips": clips}
    about = {"version": 1, "dataset": f"made of {clips}", "clips": clips, "entry": entry, "parts": parts}
    (target / "features.json").write_text(json.dumps(about))
    return folder


def in_process(function: Callable[..., Row], *arguments: object) -> Row:
    """What a function of this module returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def opened(folder: Path) -> Row:
    """Seconds and bytes until a rank that trains could draw its first batch."""
    base, began = resident_bytes(), time.process_time()
    found = ClipDataset(folder)
    features = found.teacher_features("audio").with_classes(found.classes)
    group, labels = found.columns["group"], found.labels
    assert len(group) == len(labels) == int(features.valid.sum())
    return {"seconds": time.process_time() - began, "bytes": resident_bytes() - base, "peak": peak_bytes() - base}


def opening(work: Path) -> Row:
    """Memory of one rank: at most 500 MB beside the mapped rows."""
    folder = with_features(dataset(work / "opened", MANY), MANY)
    rows = [in_process(opened, folder) for _ in range(3)]
    more = {"processor_seconds": [round(row["seconds"], 2) for row in rows], "peaks": [row["peak"] for row in rows]}
    return within("open_2m", 500e6, [row["bytes"] for row in rows], clips=MANY, width=WIDTH, **more)


def corrupted(folder: Path, out: Path) -> Row:
    """Processor seconds of a copy with 40% mismatched audio."""
    remove_tree(out)
    began = time.process_time()
    corrupt(ClipDataset(folder), Corruption(mismatched=0.4), out)
    return {"seconds": time.process_time() - began}


def corruption(work: Path) -> Row:
    """Ten times the clips: at most twelve times the processor time."""
    spent = {}
    for clips in (SMALL, LARGE):
        folder = dataset(work / f"whole-{clips}", clips)
        spent[clips] = in_process(corrupted, folder, work / "corrupted")["seconds"]
    remove_tree(work / "corrupted")
    return within("corrupt_1m", 12, [spent[LARGE] / spent[SMALL]], processor_seconds=list(spent.values()))


def embedded(folder: Path, classes: tuple[str, ...]) -> Row:
    """Peak of `embed` by a teacher with these classes."""
    torch.set_num_threads(1)
    network = build_model("logmel_cnn", len(classes), {"width": 4, "embedding_dim": 512})
    view = AudioInput(seconds=1.0)
    teacher = Teacher(network.eval(), view, classes, False, None, RATE, {"name": "made up"})
    remove_tree(folder / "features")
    base = resident_bytes()
    embed(ClipDataset(folder), teacher, "audio")
    return {"bytes": peak_bytes(), "base": base}


def embedding(work: Path) -> Row:
    """The peak at 20,000 clips over that at 2,000; and with a linear head, which is fitted on all labeled clips."""
    folders = [dataset(work / f"embedded-{clips}", clips) for clips in EMBEDDED]
    peaks, with_head = (
        [in_process(embedded, folder, classes)["bytes"] for folder in folders] for classes in (CLASSES, ("a", "b"))
    )
    more = {"peak_bytes": peaks, "peak_bytes_with_head": with_head, "clips": list(EMBEDDED)}
    return within("embed_memory", 1.15, [peaks[0] / peaks[1]], **more)


def evaluated(folder: Path, clips: int) -> Row:
    """What `evaluate` of a small student holds at most, over what it holds with the library imported."""
    torch.set_num_threads(1)
    table = ClipDataset(folder)
    network = build_model("logmel_cnn", len(CLASSES), {"width": 4, "embedding_dim": 512})
    view = AudioInput(seconds=SHORT_SECONDS)
    config = StudentConfig("logmel_cnn", CLASSES, view, None, RATE, options={"width": 4, "embedding_dim": 512})
    base, began = resident_bytes(), time.process_time()
    found = evaluate(Student(network.eval(), config), table, split="train", windows=1, batch_size=512)
    assert found.metrics.clips == clips
    return {"seconds": time.process_time() - began, "peak": peak_bytes() - base}


def evaluation(work: Path) -> Row:
    """A million test clips in at most 1 GB, and what a clip takes more than among a tenth of them."""
    few, many = (in_process(evaluated, dataset(work / f"whole-{n}", n), n) for n in (SMALL, LARGE))
    spent = {"processor_seconds": [round(row["seconds"]) for row in (few, many)], "clips": [SMALL, LARGE]}
    return within("evaluate_1m", 1e9, [many["peak"]], peak_bytes=[few["peak"], many["peak"]], **spent)


def crd_step(clips: int) -> Callable[[], None]:
    """A training step of the small UCF51 student with a full memory of so many clips."""
    torch.manual_seed(0)
    recipe = RECIPES["ucf51_small_supervised"].student
    student = build_model(recipe.model, len(CLASSES), recipe.options)
    context = MethodContext(len(CLASSES), teacher_dim=512, training_clips=clips, batch_size=32)
    method = build_method(CRDConfig(drawn=NEGATIVES), student, context)
    assert isinstance(method, CRD)
    method.memory.filled.fill_(True)
    optimizer = torch.optim.SGD(method.parameters(), 1e-4)
    everyone = torch.ones(32, dtype=torch.bool)
    video, rows = torch.rand(32, 3, 8, 56, 56), torch.arange(32) * (clips // 32)
    batch = Batch(
        labels=torch.arange(32) % len(CLASSES), labeled=everyone, has_teacher=everyone,
        teacher=Features(torch.randn(32, 512)), indices=rows, clip_ids=tuple(map(str, range(32))),
    )  # fmt: skip

    def step() -> None:
        features = method.student(video)
        torch.stack(list(method.losses(features, batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update(features.detach(), batch)

    return step


def crd(_: Path) -> Row:
    """200,000 clips over 2,000, with the same number of negatives."""
    torch.set_num_threads(1)
    large, small = map(crd_step, CRD_CLIPS)
    pairs = in_turn(large, small, 15)
    return within("crd_200k", 1.1, [a / b for a, b in pairs], step_seconds=[round(a, 3) for a, _ in pairs])


def audited(folder: Path, clips: int) -> Row:
    """Seconds and peak memory of the scores of an audit without a run, from features on the disk."""
    base, began = resident_bytes(), time.perf_counter()
    audit = audit_dataset(ClipDataset(folder), duplicates=())
    assert audit.metrics["scored"] == clips
    return {
        "seconds": time.perf_counter() - began,
        "bytes": peak_bytes() - base,
        "median_score": audit.metrics["median_score"],
    }


def audit_1m(work: Path) -> Row:
    """A million clips, 256 dimensions on both sides, two threads: at most ten minutes and 4 GB.

    Features of two encoders that share 16 of 64 latent numbers. Re-uploads, which are looked for in all the frames and
    audio there are, are left out.
    """
    folder = dataset(work / f"audited-{LARGE}", LARGE)
    found = ClipDataset(folder)
    rng = np.random.default_rng(0)
    layers = rng.standard_normal((2, 64, AUDITED_WIDTH), dtype=np.float32) / 8
    modalities: tuple[Literal["audio", "video"], ...] = ("audio", "video")
    for modality, layer in zip(modalities, layers, strict=True):
        if modality in found.teachers:
            continue
        rows = np.empty((LARGE, AUDITED_WIDTH), np.float32)
        for first in range(0, LARGE, 50_000):
            shared = np.random.default_rng([first, 1]).standard_normal((50_000, 16), dtype=np.float32)
            own = rng.standard_normal((50_000, 48), dtype=np.float32)
            rows[first : first + 50_000] = np.maximum(np.concatenate([shared, own], 1) @ layer, 0)
        found.add_features(
            modality, modality=modality, provenance={"name": "made up"}, embedding=rows, logits=None, classes=()
        )
    row = in_process(audited, folder, LARGE)
    worst = max(row["seconds"] / 600, row["bytes"] / 4e9)
    return within("audit_1m", 1.0, [worst], limits={"seconds": 600, "bytes": 4e9}, **row)


MEASURES = {
    "open_2m": opening,
    "corrupt_1m": corruption,
    "embed_memory": embedding,
    "evaluate_1m": evaluation,
    "crd_200k": crd,
    "audit_1m": audit_1m,
}


def main() -> None:
    """The named rows, or all."""
    parser = argparse.ArgumentParser(description="what grows with the number of clips: results/performance/scale.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], default=[])
    a = parser.parse_args()
    measure("scale", {name: partial(run, a.work.resolve()) for name, run in MEASURES.items()}, a.names)


if __name__ == "__main__":
    main()
