"""Speed of loading: `results/performance/loading.json`.

    python benchmarks/speed/loading.py --work DIR [load_0_workers ...]

From the dataset to normalized batches of 16-frame clips, a random crop of 112 pixels, half of them mirrored, against
the
literal procedure of `baseline.py`; and opening a dataset of 100,000 clips. `--work` keeps the made-up datasets, some
9 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader, RandomSampler

import baseline
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.executors.prefetch import prefetch
from avdistill.inputs import VideoInput, normalize_frames
from avdistill.training.malloc import configure_malloc
from measuring import Row, against, measure, process_of, within
from synthetic_datasets import CLASSES, made_clip, synthetic_dataset

CLIPS, FRAMES, SHAPE, BATCH, EPOCHS = 400, 40, (128, 171), 32, 2
VIEW = VideoInput(frames=16, size=(112, 112), resize=False)
OPEN = """
import json, sys, time
import torch
from measuring import peak_bytes, resident_bytes
bare = resident_bytes()
from loading import batches_of
from avdistill.dataset.clip_dataset import ClipDataset
began = time.perf_counter()
batch = batches_of(ClipDataset(sys.argv[1]))[0]
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - bare, "clips": len(batch.labels)}))
"""


def batches_of(dataset: ClipDataset) -> TrainingBatches:
    """The training batches of a made dataset, with nothing but images."""
    clips = clips_of_split(dataset, "train")
    return TrainingBatches(
        dataset,
        clips,
        encode_labels(dataset, clips, dataset.classes, False),
        VIEW if dataset.frames(0).shape[1] >= VIEW.size[0] else VideoInput(frames=2, size=(8, 8), resize=False),
        batch_size=BATCH,
        labeled_per_batch=None,
        use_unlabeled=True,
        teacher=None,
        seed=0,
    )


def read_ours(folder: Path, workers: int) -> Callable[[], object]:
    """Every clip `EPOCHS` times, normalized. Threads, and the other side's processes, start anew for each call."""
    configure_malloc()  # as a training does
    dataset = ClipDataset(folder)

    def read() -> int:
        read, clips = batches_of(dataset).__getitem__, 0
        for batch in prefetch(read, range(EPOCHS * len(dataset) // BATCH), workers):
            assert batch.frames is not None
            clips += len(normalize_frames(batch.frames))
        return clips

    return read


def read_theirs(files: list[Path], workers: int) -> Callable[[], object]:
    """The same. The lengths are looked up once, outside: reading is compared here, not opening."""
    data = baseline.Clips(files, [i % CLASSES for i in range(len(files))])

    def read() -> int:
        drawn = RandomSampler(data, num_samples=EPOCHS * len(data))
        return sum(len(frames) for frames, _ in DataLoader(data, BATCH, sampler=drawn, num_workers=workers))

    return read


def literal_files(work: Path) -> list[Path]:
    """The made clips as the literal procedure keeps them."""
    (folder := work / "hdf5").mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:04d}.hdf5" for i in range(CLIPS)]
    for i, path in enumerate(files):
        if not path.is_file():
            baseline.write_clip(path, made_clip(i % 50, FRAMES, *SHAPE))
    return files


def load(name: str, bar: float, work: Path, workers: int, jpeg: bool = False) -> Row:
    """Ours against theirs, each in a process of its own."""
    dataset = synthetic_dataset(
        work / ("jpeg" if jpeg else "raw"), CLIPS, FRAMES, *SHAPE, jpeg_quality=95 if jpeg else None
    )
    own, literal = partial(read_ours, dataset.folder, workers), partial(read_theirs, literal_files(work), workers)
    with process_of(own) as first, process_of(literal) as second:
        return against(name, bar, first, second, clips=CLIPS, workers=workers)


def many(work: Path, clips: int) -> ClipDataset:
    """A dataset of many small clips."""
    return synthetic_dataset(work / f"many-{clips}", clips, 4, 16, 16)


def open_100k(work: Path) -> Row:
    """Opening 100,000 clips and the first batch, at most 2 s and 300 MB over an interpreter with torch."""
    dataset = many(work, 100_000)
    told = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(dataset.folder)],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
        told.append(json.loads(done.stdout))
    seconds, size = (statistics.median(each[key] for each in told) for key in ("seconds", "bytes"))
    worst = [max(each["seconds"] / 2, each["bytes"] / 300e6) for each in told]
    limits = {"limits": {"seconds": 2, "bytes": 300e6}, "seconds": seconds, "bytes": size}
    return within("open_100k", 1.0, worst, **limits)


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser(description="speed of loading: results/performance/loading.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    a = parser.parse_args()
    a.work = a.work.resolve()
    measures: dict[str, Callable[[], Row]] = {
        "load_0_workers": lambda: load("load_0_workers", 10, a.work, 0),
        "load_2_workers": lambda: load("load_2_workers", 6, a.work, 2),
        "load_jpeg": lambda: load("load_jpeg", 3, a.work, 0, jpeg=True),
        "open_100k": lambda: open_100k(a.work),
    }
    measure("loading", measures, a.names)


if __name__ == "__main__":
    main()
