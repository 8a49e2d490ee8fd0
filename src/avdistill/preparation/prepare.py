"""Videos and an annotation list -> a dataset. Parallel, resumable after a kill, the same bytes whatever the workers.

While it runs, everything lies in `<dataset>.partial/`: shards that grow, and a journal with a line per finished clip,
written after the clip's bytes. A resumed run cuts journal and shards back to the clips that both hold and goes on. The
folder gets the dataset's name when it is whole and on the disk.

What goes wrong with one file (damage, a decoder that hangs or crashes, too much memory) costs that clip; what goes
wrong with the dataset's disk stops the run and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from avdistill.annotations.readers import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import read_description, staging_dir
from avdistill.errors import ConfigError, DatasetError, MediaError, SpoolError
from avdistill.executors.process_pool import WorkerFailure, ordered_map
from avdistill.fsio import acquire_staging_dir, commit, error_message, follow_link
from avdistill.preparation.clip_reader import (
    PrepareConfig,
    Reader,
    Spooled,
    Task,
    file_state,
    read_media,
    read_to_spool,
    remove_spools,
)
from avdistill.preparation.journal import NO_FILE, Journal, Skip, read_skipped, read_sources, remove_journal
from avdistill.progress import OnProgress, Progress

__all__ = ["PrepareConfig", "Reader", "prepare", "read_media"]

_CHANGED_SHOWN = 3
# As `workers.ordered_map` says it.
_TOOK_LONGER = re.compile(r": took longer than (\S+) s$")


def prepare(
    annotations: list[Annotation],
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: PrepareConfig,
    *,
    read: Reader = read_media,
    workers: int = 2,
    strict: bool = False,
    time_limit_seconds: float | None = 1800,
    memory_limit_bytes: int | None = 4 * 2**30,
    on_progress: OnProgress | None = None,
) -> ClipDataset:
    """Read every annotated clip into a new dataset at `out`, or finish one that was interrupted.

    Args:
        annotations: what to read; the order of the dataset's rows.
        videos: the folder the annotations' paths start from.
        out: the dataset's folder; returned as it is when it already holds exactly this.
        config: rates and sizes.
        read: how a clip is read from its file; a function of a module (worker processes import it).
        workers: processes that decode, at least one: what a file does to its reader must not happen here.
        strict: raise on the first file that cannot be read, now or before, instead of listing it in `skipped.csv`.
        time_limit_seconds: of one clip, after which it counts as unreadable; None: no limit.
        memory_limit_bytes: of reading one clip (where the system counts it, as Linux does); beyond it the clip counts
            as unreadable. A long clip's frames are not held in memory, its audio is. None: no limit.
        on_progress: called after each clip.

    Raises:
        DatasetError: `out` holds something else, another process is preparing it, it cannot be written, a file has
            changed since its clip was read or skipped, a clip was skipped for a time it may take now, or no clip could
            be read.
        MediaError: with `strict`, the first unreadable file.
        ConfigError: a time limit of 0 or less, or a reader that is defined in the script that runs.
    """
    if time_limit_seconds is not None and not time_limit_seconds > 0:
        raise ConfigError(f"time_limit_seconds: expected more than 0, got {time_limit_seconds:g}")
    if read.__module__ == "__main__":
        raise ConfigError(
            f"read: expected a function that worker processes can import, {read.__qualname__} is a script's"
        )
    videos, out = Path(videos), follow_link(out)
    settings = {"config": json.loads(json.dumps(asdict(config))), "annotations": _fingerprint(annotations)}
    if read is not read_media:
        settings["reader"] = f"{read.__module__}.{read.__qualname__}"
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            return _existing(out, videos, settings, strict, time_limit_seconds)
        with lock, closing(Journal.open(folder, settings)) as journal:
            _refuse_changed(folder, journal.sources, videos, absent_too=True)
            _refuse_skipped(folder, journal.skipped, videos, strict, time_limit_seconds)
            tasks = _tasks(annotations[journal.finished :], videos, folder)
            answers = ordered_map(
                partial(read_to_spool, read, config),
                tasks,
                workers=workers,
                time_limit_seconds=time_limit_seconds,
                memory_limit_bytes=memory_limit_bytes,
            )
            try:
                _fill(journal, tasks, answers, strict, on_progress)
            finally:
                answers.close()
                remove_spools(folder)
            if not journal.rows:
                # Most likely the wrong folder of videos: a journal full of failures must not outlive the mistake.
                shutil.rmtree(folder)
                first = journal.skipped[0].reason if journal.skipped else "the list is empty"
                raise DatasetError(f"no clip could be read; the first: {first}")
            journal.finish(settings)
            commit(folder, out)
            remove_journal(out)
    except BlockingIOError:
        raise DatasetError(f"{out}: another process is preparing this dataset") from None
    except (OSError, SpoolError) as error:  # of writing: what cannot be read is an answer, not an error
        raise DatasetError(
            f"{out}: stopped: {error_message(error)}; finished clips are kept; fix this and run the same command again"
        ) from error
    return ClipDataset(out)


def _existing(
    out: Path, videos: Path, settings: dict[str, Any], strict: bool, time_limit_seconds: float | None
) -> ClipDataset:
    dataset = ClipDataset(out)
    description = read_description(out)
    if description.corruption:  # its settings are those of the dataset it was made from
        raise DatasetError(
            f"{out}: a dataset under a corruption is here, not the one it was made from; name another folder"
        )
    if description.settings != settings:
        raise DatasetError(
            f"{out}: a dataset made from another list or other settings is here; remove it or name another"
        )
    _refuse_changed(out, read_sources(out), videos, absent_too=False)
    _refuse_skipped(out, read_skipped(out), videos, strict, time_limit_seconds)
    remove_journal(out)  # of a preparation that was killed when the dataset had just got its name
    return dataset


def _refuse_changed(folder: Path, sources: dict[str, tuple[int, int]], videos: Path, *, absent_too: bool) -> None:
    """Raise DatasetError where videos are not those that were read; those of a finished dataset may be absent."""
    changed = []
    for path, state in sources.items():
        try:
            if file_state(videos / path) != state:
                changed.append(path)
        except OSError:
            changed += [path] if absent_too else []
    if changed:
        raise DatasetError(
            f"{folder}: made from files that have changed{' or are gone' if absent_too else ''} since: "
            f"{_shown(changed)}; bring them back (date included), or remove the folder to prepare anew"
        )


def _refuse_skipped(
    folder: Path, skipped: list[Skip], videos: Path, strict: bool, time_limit_seconds: float | None
) -> None:
    """Raise DatasetError where a clip that was skipped may be readable now, with `strict` MediaError where any was.

    It is not read after all: its place is before clips that are there.
    """
    recorded = [skip for skip in skipped if skip.bytes is not None]  # what an earlier version skipped stays so
    # A file that could not be read may be deleted.
    changed = [s.file for s in recorded if _state(videos / s.file) not in (NO_FILE, (s.bytes, s.mtime_ns))]
    if changed:
        raise DatasetError(
            f"{folder}: made without files that have changed or come since: {_shown(changed)}; put them back as they "
            "were (date included), or remove the folder to prepare anew"
        )
    slow = [skip.file for skip in recorded if _may_take_longer(skip, time_limit_seconds)]
    if slow:
        raise DatasetError(
            f"{folder}: made without clips that took too long then and may take longer now: {_shown(slow)}; give the "
            "time limit it was made with, or remove the folder to prepare anew"
        )
    if strict and skipped:
        raise MediaError(f"{folder}: {len(skipped)} skipped when it was made; the first: {skipped[0].reason}")


def _may_take_longer(skip: Skip, time_limit_seconds: float | None) -> bool:
    took = _TOOK_LONGER.search(skip.reason)
    # Compared as they are written.
    return took is not None and (time_limit_seconds is None or float(f"{time_limit_seconds:g}") > float(took[1]))


def _shown(paths: list[str]) -> str:
    """The first few of them, in one line."""
    paths = list(dict.fromkeys(paths))
    more = f" and {len(paths) - _CHANGED_SHOWN} more" if len(paths) > _CHANGED_SHOWN else ""
    return ", ".join(" ".join(path.split()) for path in paths[:_CHANGED_SHOWN]) + more


def _state(path: Path) -> tuple[int, int]:
    try:
        return file_state(path)
    except OSError:
        return NO_FILE


def _fingerprint(annotations: list[Annotation]) -> str:
    lines = (json.dumps(asdict(a), sort_keys=True, ensure_ascii=False) for a in annotations)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tasks(annotations: list[Annotation], videos: Path, folder: Path) -> list[Task]:
    # The process's number in the name: workers of a run that was just killed may still be writing their last.
    return [Task(a, videos / a.path, folder / f"spool-{os.getpid()}-{i}") for i, a in enumerate(annotations)]


def _fill(
    journal: Journal,
    tasks: list[Task],
    answers: Iterable[Spooled | MediaError | WorkerFailure],
    strict: bool,
    on_progress: OnProgress | None,
) -> None:
    before = journal.finished
    # Before any is opened: one that is mended while we read others must differ from what is noted of it.
    states = {task.file: _state(task.file) for task in tasks}
    for task, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, Spooled):
            journal.add(task.annotation, answer.open(task), answer.state)
        else:
            error = MediaError(f"{task.file}: {answer.reason}") if isinstance(answer, WorkerFailure) else answer
            if strict:
                raise error
            journal.skip(task.annotation, error, states[task.file])
        for spool in (task.frames, task.audio):
            spool.unlink(missing_ok=True)
        if on_progress is not None:
            on_progress(Progress(journal.finished, before + len(tasks)))
