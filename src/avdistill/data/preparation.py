"""Videos and an annotation list -> a store. Parallel, resumable after a kill, the same bytes whatever the workers.

While it runs, everything lies in `<store>.partial/`: shards that grow, and a journal with a line per finished clip,
written after the clip's bytes. A resumed run cuts the shards back to what the journal vouches for and goes on. The
folder gets the store's name when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avdistill.data.annotations import Annotation
from avdistill.data.journal import Journal
from avdistill.data.media import Clip, EmptySegmentError, MediaError, check_reading, read_clip
from avdistill.data.store import Store, StoreError, partial_folder
from avdistill.decoding import ConfigError


@dataclass(frozen=True)
class PrepareConfig:
    """How clips are read into a store.

    Attributes:
        fps: frames a second; None takes every frame.
        short_side: pixels of the picture's shorter side.
        size: (height, width) instead of `short_side`.
        region: (x, y, width, height) of the displayed picture, cut out before scaling.
        sample_rate_hz: of the stored mono sound.
    """

    fps: float | None = 4.0
    short_side: int | None = 128
    size: tuple[int, int] | None = None
    region: tuple[int, int, int, int] | None = None
    sample_rate_hz: int = 16000

    def __post_init__(self) -> None:
        """Raise ConfigError before anything is opened."""
        try:
            check_reading(self.fps, self.short_side, self.size, self.region, self.sample_rate_hz)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def prepare(
    annotations: list[Annotation],
    videos: Path,
    out: Path,
    config: PrepareConfig,
    *,
    workers: int = 2,
    strict: bool = False,
    on_clip: Callable[[int, int], None] | None = None,
) -> Store:
    """Read every annotated clip into a new store at `out`, or finish one that was interrupted.

    Args:
        annotations: what to read; the order of the store's rows.
        videos: the folder the annotations' paths start from.
        out: the store's folder; returned as it is when it already holds exactly this.
        config: rates and sizes.
        workers: processes that decode.
        strict: raise on the first file that cannot be read instead of listing it in `skipped.csv`.
        on_clip: called with (finished, total) after each clip.

    Raises:
        StoreError: `out` holds something else, another process is preparing it, or no clip could be read.
        MediaError, FileNotFoundError: with `strict`, the first unreadable file.
    """
    settings = {"config": json.loads(json.dumps(asdict(config))), "annotations": _fingerprint(annotations)}
    if out.exists():
        return _existing(out, settings)
    partial = partial_folder(out)
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{out}: another process is preparing this store") from None
        journal = Journal.open(partial, settings)
        tasks = [(a, str(videos / a.path)) for a in annotations]
        try:
            _fill(journal, tasks, config, workers, strict, on_clip)
            if not journal.rows:
                # Most likely the wrong folder of videos: a journal full of failures must not outlive the mistake.
                shutil.rmtree(partial)
                first = journal.skipped[0]["reason"] if journal.skipped else "the list is empty"
                raise StoreError(f"no clip could be read; the first: {first}")
            journal.finish(settings)
        finally:
            journal.close()
        (partial / "lock").unlink()
    partial.rename(out)
    return Store(out)


def _existing(out: Path, settings: dict[str, Any]) -> Store:
    store = Store(out)
    made_with = json.loads((out / "store.json").read_text(encoding="utf-8")).get("settings")
    if made_with != settings:
        raise StoreError(f"{out}: a store made from another list or other settings is here; remove it or name another")
    return store


def _fingerprint(annotations: list[Annotation]) -> str:
    lines = (json.dumps(asdict(a), sort_keys=True, ensure_ascii=False) for a in annotations)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fill(
    journal: Journal,
    tasks: list[tuple[Annotation, str]],
    config: PrepareConfig,
    workers: int,
    strict: bool,
    on_clip: Callable[[int, int], None] | None,
) -> None:
    remaining = tasks[journal.finished :]
    for done, ((annotation, _), result) in enumerate(_decoded(remaining, config, workers), start=journal.finished + 1):
        if isinstance(result, Exception):
            if strict:
                raise result
            journal.skip(annotation, result)
        else:
            journal.add(annotation, result)
        if on_clip is not None:
            on_clip(done, len(tasks))


def _decoded(
    tasks: list[tuple[Annotation, str]], config: PrepareConfig, workers: int
) -> Iterator[tuple[tuple[Annotation, str], Clip | Exception]]:
    """Clips in the order of the tasks; few enough under way that memory stays bounded by the largest clips."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, _read(task, config)
        return
    # Spawned, not forked: the parent has threads (progress bar, torch), which a fork would freeze half-way.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        waiting: deque[tuple[tuple[Annotation, str], Future[Clip | Exception]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, pool.submit(_read, task, config)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(task: tuple[Annotation, str], config: PrepareConfig) -> Clip | Exception:
    annotation, file = task
    try:
        clip = read_clip(
            file,
            start_seconds=annotation.start_seconds,
            end_seconds=annotation.end_seconds,
            fps=config.fps,
            short_side=config.short_side,
            size=config.size,
            region=config.region,
            sample_rate=config.sample_rate_hz,
        )
    except (MediaError, OSError) as error:
        return error
    except MemoryError:
        return EmptySegmentError(f"{file}: too large for memory; give segments (start_seconds, end_seconds)")
    return clip
