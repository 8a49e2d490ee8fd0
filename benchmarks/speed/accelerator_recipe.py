"""The recipe part of `accelerator.py`: a dataset's video in one small file, and training on it in memory.

The frames of a clip are an AVIF sequence, half as large as JPEG of the same quality: 12 of the 1713 videos of 14
classes of UCF51, at 4 frames a second and a short side of 128, take 1039 bytes a frame at 34 dB, so all take about
50 MB. Pillow 11.3 or newer reads it. The teacher's embeddings lie beside the frames.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import encode_labels, labeled_clips
from avdistill.dataset.stored_features import StoredFeatures
from avdistill.distributed import autocast
from avdistill.evaluation.metrics import mean_class_accuracy, top_k_accuracy
from avdistill.evaluation.retrieval_metrics import retrieval_metrics
from avdistill.executors.prefetch import prefetch
from avdistill.fsio import write_json
from avdistill.inference.runner import run_network
from avdistill.inputs import VideoInput
from avdistill.methods import MethodContext, build_method, teacher_requirement, uses_unlabeled
from avdistill.models.registry import build_model
from avdistill.training.config import TrainConfig
from avdistill.training.optim import build_optimizer, build_schedule
from avdistill.training.recipes import RECIPES
from avdistill.types import Batch, StudentNetwork
from measuring import NotHereError, Row, machine
from training import Precision

EPOCHS = 200
KEPT = ("id", "group", "split", "frame_count")


@dataclass(frozen=True)
class Setting:
    """What is run where: the released sizes on an accelerator, or a dry run."""

    device: torch.device
    dry: bool

    @property
    def size(self) -> tuple[int, int, int]:
        """Clips, frames and side of a step."""
        return (2, 4, 32) if self.dry else (32, 16, 112)

    @property
    def precision(self) -> Precision:
        """Of the library's step: what `auto` chooses on an accelerator."""
        return "bfloat16" if self.device.type == "cuda" else "float32"

    @property
    def threads(self) -> int:
        """That read batches."""
        return 1 if self.dry else max(1, min(12, (os.cpu_count() or 1) - 2))

    def machine(self) -> Row:
        """Versions, and the accelerator as the processor."""
        if self.device.type != "cuda":
            return machine()
        return machine() | {"processor": torch.cuda.get_device_name(self.device)}

    def wait(self) -> None:
        """Until all that was started is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def save(out: Path, row: Row) -> None:
    """Put a row into the file, in place of the one of its name."""
    rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    write_json(out, [each for each in rows if each["name"] != row["name"]] + [row])
    print(json.dumps({key: row[key] for key in row if key not in ("versions", "correct")}), file=sys.stderr, flush=True)


def ceiling(name: str, limit: float, measured: float, setting: Setting, **more: Any) -> Row:
    """How far below a limit a value is: a ratio of 1 and above holds it."""
    told = {"name": name, "ratio": limit / max(measured, 1e-12), "bar": 1, "limit": limit, "measured": measured}
    return told | more | setting.machine()


class PackedClips(ClipDataset):
    """Clips in memory, with a label each and a teacher's embeddings: what batches and evaluation read of a dataset."""

    fps = 4.0
    sample_rate_hz = 16_000
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        frames: list[np.ndarray],
        columns: dict[str, np.ndarray],
        labels: np.ndarray,
        classes: tuple[str, ...],
        teacher: np.ndarray,
    ) -> None:
        """`frames` uint8 (T, H, W, 3), `labels` int64 (N,) of `classes`, `teacher` (N, D), NaN where there is none."""
        self.folder = Path("packed clips")
        self._frames, self.classes = frames, classes
        self.columns = columns | {"has_video": np.ones(len(frames), bool)}
        self.labels = [(classes[label],) for label in labels]
        self._valid = np.isfinite(teacher).all(1)
        self._teacher_embedding = np.nan_to_num(teacher).astype(np.float32)

    def __len__(self) -> int:
        return len(self._frames)

    def frames(self, clip: int) -> np.ndarray:
        """uint8 (T, H, W, 3)."""
        return self._frames[clip]

    def features(self, name: str, *, tokens: bool = True) -> StoredFeatures:
        """The embeddings, whatever the teacher's name."""
        return StoredFeatures(self._teacher_embedding, None, None, self._valid, (), {"name": name})


def random_clips(count: int, frames: int, size: tuple[int, int], width: int) -> PackedClips:
    """Noise of two classes and embeddings of `width`, half of it in each of the splits train and test."""
    rng = np.random.default_rng(0)
    names = np.array([f"clip{i}" for i in range(count)])
    halves = np.array(["train", "test"])[np.arange(count) // 2 % 2]
    columns = {"id": names, "path": names, "group": names, "split": halves, "frame_count": np.full(count, frames)}
    video = [rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for _ in range(count)]
    return PackedClips(video, columns, np.arange(count) % 2, ("a", "b"), rng.random((count, width)))


def check_avif() -> None:
    """Raise NotHereError where Pillow is missing or reads no AVIF."""
    try:
        from PIL import features
    except ImportError:
        raise NotHereError("packed clips: expected Pillow 11.3 or newer, found none") from None
    if not features.check("avif"):
        raise NotHereError("packed clips: expected a Pillow with AVIF (11.3 or newer), found one without")


def encode(frames: np.ndarray, quality: int) -> bytes:
    """Frames uint8 (T, H, W, 3) as an AVIF sequence."""
    from PIL import Image

    first, *others = map(Image.fromarray, frames)
    buffer = io.BytesIO()
    first.save(buffer, "AVIF", save_all=True, append_images=others, quality=quality, speed=8, duration=250)
    return buffer.getvalue()


def decode(content: bytes) -> np.ndarray:
    """What `encode` made, as frames uint8 (T, H, W, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as images:
        found = []
        for number in range(getattr(images, "n_frames", 1)):
            images.seek(number)
            found.append(np.asarray(images.convert("RGB")))
    return np.stack(found)


def pack(dataset: ClipDataset, embeddings: Path, out: Path, quality: int, megabytes: float) -> dict[str, Any]:
    """Write the labeled clips with video of a dataset at 4 frames a second, and their embeddings, found by file name.

    Raises:
        SystemExit: another frame rate, no embedding of any clip, or a file of more than `megabytes`.
        NotHereError: no AVIF.
    """
    check_avif()
    if dataset.fps != PackedClips.fps:
        raise SystemExit(f"{dataset.folder}: expected 4 frames a second, found {dataset.fps}")
    clips = np.flatnonzero(dataset.columns["has_video"] & np.array([bool(row) for row in dataset.labels]))
    with np.load(embeddings) as table:
        row_of = {str(name): row for row, name in enumerate(table["name"])}
        stems = [PurePosixPath(str(dataset.columns["path"][clip])).stem for clip in clips]
        rows = np.array([row_of.get(stem, -1) for stem in stems])
        teacher = np.where((rows >= 0)[:, None], table["embedding"][rows], np.nan).astype(np.float32)
    if (rows < 0).all():
        raise SystemExit(f"{embeddings}: expected names such as {stems[0]!r}, found none of {len(clips)} clips")
    contents = [encode(np.asarray(dataset.frames(int(clip))[:]), quality) for clip in clips]
    kept: dict[str, Any] = {
        name: dataset.columns[name][clips].astype(np.int64 if "count" in name else str) for name in KEPT
    }
    with out.open("wb") as file:
        np.savez(
            file,
            images=np.frombuffer(b"".join(contents), np.uint8),
            ends=np.cumsum([len(content) for content in contents]),
            label=np.array([dataset.classes.index(dataset.labels[clip][0]) for clip in clips]),
            classes=np.array(dataset.classes),
            teacher=teacher,
            **kept,
        )
    size = out.stat().st_size / 1e6
    if size > megabytes:
        raise SystemExit(f"{out}: expected at most {megabytes:g} MB, found {size:.1f}: lower --quality")
    return {"clips": len(clips), "with_teacher": int((rows >= 0).sum()), "megabytes": round(size, 1)}


def read_pack(path: Path) -> PackedClips:
    """Decode a packed file into memory, on all cores.

    Raises:
        NotHereError: no AVIF.
        SystemExit: a clip has another number of frames than it was packed with.
    """
    check_avif()
    with np.load(path) as packed:
        arrays = {name: packed[name] for name in packed.files}
    images, ends = arrays["images"], arrays["ends"].tolist()
    parts = [images[first:end].tobytes() for first, end in zip([0, *ends], ends, strict=False)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        frames = list(pool.map(decode, parts))
    if [len(each) for each in frames] != arrays["frame_count"].tolist():
        raise SystemExit(f"{path}: expected as many frames as were packed, found others")
    columns = {name: arrays[name] for name in KEPT}
    return PackedClips(frames, columns, arrays["label"], tuple(arrays["classes"].tolist()), arrays["teacher"])


def train(
    clips: PackedClips, config: TrainConfig, device: torch.device, deadline: float
) -> tuple[StudentNetwork, dict[str, Any]]:
    """Train by a config as the library does, without validation, until the deadline: the student, and its times."""
    training = labeled_clips(clips, "train")
    needed = teacher_requirement(config.method)
    teacher = clips.features("cnn14") if needed else None
    batches = TrainingBatches(
        clips,
        training,
        encode_labels(clips, training, clips.classes),
        config.student.view,
        batch_size=config.batch_size,
        labeled_per_batch=None,
        use_unlabeled=uses_unlabeled(config.method),
        teacher=teacher,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    student = build_model(config.student.model, len(clips.classes), config.student.options)
    width = 0 if teacher is None else teacher.embedding.shape[1]
    context = MethodContext(len(clips.classes), width, len(training), config.batch_size, config.steps)
    method = build_method(config.method, student, context).to(device).train()
    optimizer = build_optimizer(config.optimizer, method)
    schedule = build_schedule(config.optimizer, optimizer, config.steps)

    def read(number: int) -> Batch:
        return batches[number].ready_for(device)

    waits: list[float] = []
    times: list[float] = []
    asked = time.monotonic()
    loader = prefetch(read, range(config.steps), config.workers)
    for batch in loader:
        came = time.monotonic()
        with autocast(config.precision, device):
            losses = method(batch.to(device))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):  # waits for the device, as the library's loop does
            raise SystemExit(f"{config.method.name}: expected a finite loss, found {float(total)} at step {len(times)}")
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # or the wait for a batch would hide behind the step
        now = time.monotonic()
        waits.append(came - asked)
        times.append(now - asked)
        asked = now
        if now > deadline:
            break
    loader.close()
    first = min(5, len(times) - 1)  # these start threads and kernels
    return method.student, {
        "steps": len(times),
        "of_steps": config.steps,
        "step_seconds": sum(times[first:]) / len(times[first:]),
        "waiting_share": sum(waits[first:]) / sum(times[first:]),
    }


def judge(clips: PackedClips, student: StudentNetwork, config: TrainConfig) -> dict[str, Any]:
    """Test metrics of the last student, and which test clips were right."""
    queries, gallery = (labeled_clips(clips, split) for split in ("test", "train"))
    labels, gallery_labels = (encode_labels(clips, rows, clips.classes).values for rows in (queries, gallery))
    found, others = (
        run_network(student, clips, rows, config.student.view, workers=config.workers) for rows in (queries, gallery)
    )
    retrieved = retrieval_metrics(
        queries=found.embedding, gallery=others.embedding, query_labels=labels, gallery_labels=gallery_labels
    )
    right = (found.probabilities.argmax(1) == labels).int().tolist()
    return {
        "top1_accuracy": top_k_accuracy(scores=found.probabilities, labels=labels, k=1),
        "mean_class_accuracy": mean_class_accuracy(scores=found.probabilities, labels=labels),
        "hit@1": retrieved.hit[1],
        "map": retrieved.map,
        "correct": "".join(map(str, right)),
    }


def recipe(name: str, setting: Setting) -> TrainConfig:
    """A recipe of the library; in a dry run on tiny windows."""
    config = replace(RECIPES[name], workers=setting.threads, precision=setting.precision)
    if not setting.dry:
        return config
    clips, frames, side = setting.size
    view = VideoInput(frames=frames, size=(side, side))
    return replace(config, batch_size=clips, student=replace(config.student, view=view))


def train_and_test(setting: Setting, clips: PackedClips, name: str, seed: int, deadline: float, out: Path) -> float:
    """One run and its rows: metrics, minutes and the share of loading; returns its seconds."""
    began = time.monotonic()
    config = replace(recipe(f"ucf51_{name}", setting), seed=seed)
    epochs = EPOCHS * len(labeled_clips(clips, "train")) / config.batch_size
    config = replace(config, steps=2 if setting.dry else round(epochs))
    student, told = train(clips, config, setting.device, deadline)
    complete = told["steps"] == told["of_steps"]
    run = {"name": f"ucf51_{name}_seed{seed}", "method": name, "seed": seed, "complete": complete}
    run |= told | judge(clips, student, config)
    spent = time.monotonic() - began
    save(out, run | {"seconds": round(spent, 1)} | setting.machine())
    whole = told["step_seconds"] * told["of_steps"] / 60
    save(out, ceiling(f"ucf51_minutes_{name}", 12, whole, setting, extrapolated=not complete))
    save(out, ceiling(f"ucf51_loading_{name}", 0.05, told["waiting_share"], setting))
    return spent


def run_recipe(setting: Setting, out: Path, packed: Path | None, minutes: float) -> None:
    """Both methods with one seed after the other. The first pair shares the time; others must fit into what is left.

    A run that is cut is tested as it is: its row says `complete: false`, and its learning rate never fell.
    """
    end = time.monotonic() + 60 * minutes
    clips = random_clips(8, 6, (40, 50), 512) if packed is None else read_pack(packed)
    longest, seed = 0.0, 0
    while seed == 0 or time.monotonic() + 2.1 * longest < end:
        for position, name in enumerate(("supervised", "mnf_csc")):
            left = end - time.monotonic()
            spent = train_and_test(setting, clips, name, seed, time.monotonic() + 0.95 * left / (2 - position), out)
            longest = max(longest, spent)
        seed += 1
        if setting.dry:
            return
