"""Preparation: videos and annotations -> a dataset. Parallel, resumable, the same bytes for any number of workers.

While it runs, everything is in the staging folder `<dataset>.partial/` (see `journal`), which gets the dataset's name
when it is complete and synced to the disk.

A fault of one file (damage, a decoder that hangs or crashes, too much memory) costs that clip; a fault of the dataset's
disk stops the run and costs nothing.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from avdistill.annotations import Annotation
from avdistill.annotations.video_files import locate
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.remote import to_storage
from avdistill.dataset.schema import read_description, staging_dir
from avdistill.errors import ConfigError, DatasetBusyError, DatasetError, MediaError, SpoolError, StorageError
from avdistill.executors.process_pool import WorkerFailure, ordered_map
from avdistill.fsio import acquire_staging_dir, commit, error_message, follow_link
from avdistill.preparation.clip_reader import (
    CLIP_LIMIT_BYTES,
    MEMORY_BYTES,
    MEMORY_LIMIT_BYTES,
    TIME_LIMIT_SECONDS,
    PrepareConfig,
    ReadClip,
    Reader,
    Task,
    check_time_limit,
    read_encoded,
    read_media,
    remove_spools,
)
from avdistill.preparation.journal import Journal, remove_journal
from avdistill.preparation.parts import Part, share_of
from avdistill.preparation.records import NO_FILE, Skip, read_skipped, read_sources
from avdistill.progress import OnProgress, Progress
from avdistill.storage.url import Url, as_path, patience_seconds, states

__all__ = ["PrepareConfig", "Reader", "prepare", "read_media"]

_MOST_LISTED = 3
# Limits that a clip may be skipped for, by name: the reason with its value then, as `ordered_map` and `FrameBuffer`
# word it, and what a higher value may change.
_LIMITS = {
    "time limit": (re.compile(r": took longer than (\S+) s$"), "took too long then and may take longer now"),
    "clip limit": (
        re.compile(r": more than (\S+) GiB of \d+x\d+ frames; "),
        "were too large then and may be larger now",
    ),
}


@to_storage
def prepare(
    annotations: list[Annotation],
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: PrepareConfig,
    *,
    part: Part | None = None,
    read: Reader = read_media,
    workers: int = 2,
    strict: bool = False,
    time_limit_seconds: float | None = TIME_LIMIT_SECONDS,
    memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
    clip_limit_bytes: int | None = CLIP_LIMIT_BYTES,
    on_progress: OnProgress | None = None,
) -> ClipDataset:
    """Read every annotated clip into a new dataset at `out`, or finish an interrupted preparation.

    Args:
        annotations: the clips, in the order of the dataset's rows.
        videos: the folder that the annotations' paths are relative to; at a URL, files are decoded from there.
        out: the dataset's folder; returned as it is if it already holds exactly this dataset. At a URL the dataset is
            made in its local copy and uploaded when it is whole.
        part: (i, n) makes the i-th of n datasets, each of its share of the list, which `join` makes into one.
        read: reads a clip from its file; a function of a module, which worker processes import.
        workers: number of decoding processes, at least one, because a file may crash its decoder.
        strict: raise for the first file that cannot be read, now or earlier, instead of listing it in `skipped.csv`.
        time_limit_seconds: for one clip, after which it counts as unreadable; None: no limit.
        memory_limit_bytes: for reading one clip (enforced on Linux), beyond which it counts as unreadable. A long
            clip's audio is held in memory, its frames are not. None: no limit.
        clip_limit_bytes: for the decoded frames of one clip, which lie on the disk uncompressed while it is read if
            they are large, beyond which it counts as unreadable; None: no limit.
        on_progress: called after each clip.

    Raises:
        DatasetBusyError: another process prepares the dataset.
        DatasetError: `out` holds something else, it cannot be written, a file has changed
            since its clip was read or skipped, a clip was skipped for a lower limit, or no clip could be read.
        MediaError: with `strict`, the first unreadable file.
        ConfigError: a time limit of 0 or less, a reader that is defined in the running script, or no such part.
        StorageError: a storage does not answer; finished clips are kept.
    """
    check_time_limit(time_limit_seconds)
    gib = None if clip_limit_bytes is None else clip_limit_bytes / 2**30
    limits = {"time limit": time_limit_seconds, "clip limit": gib}
    if read.__module__ == "__main__":
        found = f"{read.__qualname__} is a script's"
        raise ConfigError(f"read: expected a function that worker processes can import, {found}")
    videos, out = as_path(videos), follow_link(out)
    settings = {"config": json.loads(json.dumps(asdict(config))), "annotations": _fingerprint(annotations)}
    if read is not read_media:
        settings["reader"] = f"{read.__module__}.{read.__qualname__}"
    positions = None
    if part is not None:
        settings["part"] = list(part)
        positions = share_of(annotations, part)
        annotations = [annotations[position] for position in positions]
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            return _existing(out, videos, settings, strict, limits)
        with lock, closing(Journal.open(folder, settings)) as journal:
            _refuse_changed(folder, journal.sources, videos, absent_too=True)
            _refuse_skipped(folder, journal.skipped, videos, strict, limits)
            # With the process id, because workers of a run that was just killed may still be writing.
            spool, left = str(folder / f"spool-{os.getpid()}-"), annotations[journal.finished :]
            tasks = [Task(a, locate(videos, a.path), Path(f"{spool}{i}")) for i, a in enumerate(left)]
            answers = ordered_map(
                partial(read_encoded, read, config, clip_limit_bytes, MEMORY_BYTES),
                tasks,
                workers=workers,
                time_limit_seconds=_with_patience(time_limit_seconds, tasks),
                memory_limit_bytes=memory_limit_bytes,
            )
            try:
                _fill(journal, tasks, answers, strict, on_progress)
            finally:
                answers.close()
                remove_spools(folder)
            if not journal.rows and part is None:  # of a part all may be unreadable, and the others need it
                # Most likely the wrong folder of videos: the failures must not be kept.
                shutil.rmtree(folder)
                first = journal.skipped[0].reason if journal.skipped else "the list is empty"
                raise DatasetError(f"no clip could be read; the first: {first}")
            journal.finish(settings, positions and _in_order(positions, annotations, journal.skipped))
            commit(folder, out)
            remove_journal(out)
    except BlockingIOError:
        raise DatasetBusyError(f"{out}: another process is preparing this dataset") from None
    except StorageError as error:
        raise StorageError(f"{error}; finished clips are kept; run the same command again") from error
    except (OSError, SpoolError) as error:  # of writing; unreadable files are results, not errors
        raise DatasetError(
            f"{out}: stopped: {error_message(error)}; finished clips are kept; fix this and run the same command again"
        ) from error
    return ClipDataset(out)


def _existing(
    out: Path, videos: Path, settings: dict[str, Any], strict: bool, limits: Mapping[str, float | None]
) -> ClipDataset:
    dataset = ClipDataset(out)
    description = read_description(out)
    if description.corruption:  # its settings are those of its source dataset
        raise DatasetError(
            f"{out}: a dataset under a corruption is here, not the one it was made from; name another folder"
        )
    if description.settings != settings:
        found = "a dataset made from another list or other settings"
        raise DatasetError(f"{out}: {found} is here; remove it or name another")
    _refuse_changed(out, read_sources(out), videos, absent_too=False)
    _refuse_skipped(out, read_skipped(out), videos, strict, limits)
    remove_journal(out)  # of a preparation that was killed right after the dataset got its name
    return dataset


def _refuse_changed(folder: Path, sources: dict[str, tuple[int, int]], videos: Path, *, absent_too: bool) -> None:
    """Raise DatasetError if videos have changed since they were read, with `absent_too` also if they are missing."""
    files = {path: locate(videos, path) for path in sources}
    now = states(files.values())
    accepted = () if absent_too else (None,)
    changed = [path for path, file in files.items() if now[file] not in (sources[path], *accepted)]
    if changed:
        raise DatasetError(
            f"{folder}: made from files that have changed{' or are gone' if absent_too else ''} since: "
            f"{_list_paths(changed)}; bring them back (date included), or remove the folder to prepare anew"
        )


def _refuse_skipped(
    folder: Path, skipped: list[Skip], videos: Path, strict: bool, limits: Mapping[str, float | None]
) -> None:
    """Raise DatasetError if a skipped clip may be readable now, with `strict` MediaError if any clip was skipped.

    It cannot be read after all, because its row belongs before rows that exist.
    """
    # An unreadable file may have been deleted.
    files = [locate(videos, skip.file) for skip in skipped]
    now = states(files)
    changed = [s.file for s, file in zip(skipped, files, strict=True) if now[file] not in (None, (s.bytes, s.mtime_ns))]
    if changed:
        raise DatasetError(
            f"{folder}: made without files that have changed or come since: {_list_paths(changed)}; put them "
            "back as they were (date included), or remove the folder to prepare anew"
        )
    for name, (reason, then) in _LIMITS.items():
        again = [skip.file for skip in skipped if _was_limited(skip, reason, limits[name])]
        if again:
            raise DatasetError(
                f"{folder}: made without clips that {then}: {_list_paths(again)}; "
                f"give the {name} it was made with, or remove the folder to prepare anew"
            )
    if strict and skipped:
        raise MediaError(f"{folder}: {len(skipped)} skipped when it was made; the first: {skipped[0].reason}")


def _was_limited(skip: Skip, reason: re.Pattern[str], now: float | None) -> bool:
    """Whether a clip was skipped for a lower limit than the one `now`."""
    then = reason.search(skip.reason)
    # Compared in the precision of the message.
    return then is not None and (now is None or float(f"{now:g}") > float(then[1]))


def _list_paths(paths: list[str]) -> str:
    """The first few paths, in one line."""
    paths = list(dict.fromkeys(paths))
    more = f" and {len(paths) - _MOST_LISTED} more" if len(paths) > _MOST_LISTED else ""
    return ", ".join(" ".join(path.split()) for path in paths[:_MOST_LISTED]) + more


def _with_patience(seconds: float | None, tasks: list[Task]) -> float | None:
    """The time limit of a clip; where a storage may have to be waited for, that is not the clip's time."""
    remote = any(isinstance(task.file, Url) for task in tasks)
    return seconds + patience_seconds() if remote and seconds is not None else seconds


def _fingerprint(annotations: list[Annotation]) -> str:
    lines = (json.dumps(asdict(a), sort_keys=True, ensure_ascii=False) for a in annotations)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _in_order(positions: list[int], annotations: list[Annotation], skipped: list[Skip]) -> list[int]:
    """The positions of the clips that were read, then of the skipped ones."""
    names = {skip.clip for skip in skipped}
    pairs = list(zip(positions, annotations, strict=True))
    return [p for kept in (False, True) for p, a in pairs if (a.clip_id in names) == kept]


def _fill(
    journal: Journal,
    tasks: list[Task],
    answers: Iterable[ReadClip | MediaError | WorkerFailure],
    strict: bool,
    on_progress: OnProgress | None,
) -> None:
    before = journal.finished
    # Taken before any is opened, so that a file replaced during the run differs from its record.
    before_reading = states(task.file for task in tasks)
    for task, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, ReadClip):
            journal.add(task.annotation, answer.clip, answer.state)
        else:
            error = MediaError(f"{task.file}: {answer.reason}") if isinstance(answer, WorkerFailure) else answer
            if strict:
                raise error
            journal.skip(task.annotation, error, before_reading[task.file] or NO_FILE)
        task.remove_spools()
        if on_progress is not None:
            on_progress(Progress(journal.finished, before + len(tasks)))
