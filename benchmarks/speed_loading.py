"""Speed of loading: `results/performance/loading.json`.

    python benchmarks/speed_loading.py --work DIR [load_0_workers ...]

From the store to normalised batches of 16-frame clips, a random crop of 112 pixels, half of them mirrored, against the
literal procedure of `baseline.py`; and opening a store of 100,000 clips. `--work` keeps the made-up stores, some 9 GB.
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
from avdistill.data.dataset import TrainingBatches, clips_of_split, encode_labels
from avdistill.data.loading import read_ahead
from avdistill.data.store import Store
from avdistill.models.video import normalise_frames
from avdistill.training.memory import keep_freed_memory
from avdistill.types import PictureView
from made_stores import CLASSES, made_clip, made_store
from measuring import Row, against, measure, process_of, within

CLIPS, FRAMES, SHAPE, BATCH, EPOCHS = 400, 40, (128, 171), 32, 2
VIEW = PictureView(frames=16, size=(112, 112), resize=False)
OPEN = """
import json, sys, time
import torch
from measuring import peak_bytes, resident_bytes
bare = resident_bytes()
from speed_loading import batches_of
from avdistill.data.store import Store
began = time.perf_counter()
batch = batches_of(Store(sys.argv[1]))[0]
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - bare, "clips": len(batch.labels)}))
"""


def batches_of(store: Store) -> TrainingBatches:
    """The training batches of a made store, with nothing but pictures."""
    clips = clips_of_split(store, "train")
    return TrainingBatches(
        store,
        clips,
        encode_labels(store, clips, store.classes, False),
        VIEW if store.frames(0).shape[1] >= VIEW.size[0] else PictureView(frames=2, size=(8, 8), resize=False),
        batch_size=BATCH,
        labelled_per_batch=None,
        use_unlabelled=True,
        teacher=None,
        seed=0,
    )


def read_ours(folder: Path, workers: int) -> Callable[[], object]:
    """Every clip `EPOCHS` times, normalised. Threads, and the other side's processes, start anew for each call."""
    keep_freed_memory()  # as a training does
    store = Store(folder)

    def read() -> int:
        read, clips = batches_of(store).__getitem__, 0
        for batch in read_ahead(read, range(EPOCHS * len(store) // BATCH), workers):
            assert batch.frames is not None
            clips += len(normalise_frames(batch.frames))
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
    store = made_store(work / ("jpeg" if jpeg else "raw"), CLIPS, FRAMES, *SHAPE, jpeg_quality=95 if jpeg else None)
    own, literal = partial(read_ours, store.folder, workers), partial(read_theirs, literal_files(work), workers)
    with process_of(own) as first, process_of(literal) as second:
        return against(name, bar, first, second, clips=CLIPS, workers=workers)


def many(work: Path, clips: int) -> Store:
    """A store of many small clips."""
    return made_store(work / f"many-{clips}", clips, 4, 16, 16)


def open_100k(work: Path) -> Row:
    """Opening 100,000 clips and the first batch, at most 2 s and 300 MB over an interpreter with torch."""
    store = many(work, 100_000)
    told = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(store.folder)],
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
