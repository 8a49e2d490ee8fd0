"""A changed copy of a dataset: another clip table, and links to the shards of the source, which is not changed."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.remote import to_storage
from avdistill.dataset.schema import CLIP_SCHEMA, read_description, staging_dir
from avdistill.errors import DatasetError
from avdistill.fsio import (
    LOCK,
    acquire_staging_dir,
    commit,
    error_message,
    file_checksum,
    follow_link,
    replacing,
    write_json,
)

# The files that a copy or `join` writes into the staging folder. `prepare` writes others there, from its start on.
_OWN_FILE = re.compile(
    r"(frames|audio)-\d+\.(npy|jpeg)|clips\.parquet|(skipped|sources)\.csv|dataset\.json|\.[0-9a-f]{16}\.tmp"
)

Row = dict[str, Any]


@to_storage
def linked_copy(
    dataset: ClipDataset,
    out: str | os.PathLike[str],
    made_from: dict[str, Any],
    what: str,
    rows: Callable[[Path], Sequence[Row]],
) -> ClipDataset:
    """Make a copy with other rows in its clip table, without teacher features (see `teachers.transfer`).

    Args:
        dataset: the source; on another disk it must stay readable, for the copy links to its shards.
        out: the new dataset's folder; returned as it is if it already holds exactly this copy. A URL gets it when it
            is whole.
        made_from: JSON-ready, all that the copy depends on besides the source; becomes the field `corruption` of
            `dataset.json`.
        what: the copy in messages.
        rows: makes the rows of the clip table; may write new shards into the folder that it is given.

    Raises:
        DatasetError: `out` holds something else, another process or an interrupted `prepare` uses it, or it cannot be
            written.
    """
    checksum = hashlib.sha256(json.dumps([dataset.checksum, made_from]).encode()).hexdigest()
    out = follow_link(out)
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            found = ClipDataset(out)
            if found.checksum != checksum:
                raise DatasetError(f"{out}: already there, and not {what}")
            return found
        with lock:
            clear_staging_dir(folder)
            _write(dataset, list(rows(folder)), folder, checksum, made_from)
            commit(folder, out)
    except BlockingIOError:
        raise DatasetError(f"{out}: another process is making this dataset") from None
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written: {error_message(error)}") from error
    return ClipDataset(out)


def rows_of(dataset: ClipDataset) -> list[Row]:
    """The clip table, `extra` as a dictionary."""
    return [row | {"extra": dict(row["extra"] or ())} for row in dataset.table.to_pylist()]


def clear_staging_dir(folder: Path) -> None:
    """Remove the files of an interrupted call; refuse any others, which may be hours of a preparation."""
    left = sorted(file for file in folder.iterdir() if file.name != LOCK)
    for file in left:
        if not _OWN_FILE.fullmatch(file.name):
            raise DatasetError(
                f"{folder}: {file.name} is in the way, perhaps of an interrupted `prepare`, which the same command "
                "finishes; or remove the folder, or name another"
            )
    for file in left:
        file.unlink()


def _write(dataset: ClipDataset, rows: list[Row], folder: Path, checksum: str, made_from: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([row | {"extra": list(row["extra"].items())} for row in rows], schema=CLIP_SCHEMA)
    with replacing(folder / "clips.parquet", "xb") as file:
        pq.write_table(table, file)
    description = read_description(dataset.folder)
    files = {name: digest for name, digest in description.files.items() if name.startswith(("frames-", "audio-"))}
    for name in files:
        _link(dataset.folder / name, folder / name)
    for entry in folder.iterdir():
        if entry.name not in (LOCK, *files):
            files[entry.name] = file_checksum(entry)
    made = replace(
        description,
        classes=tuple(sorted({name for row in rows for name in row["labels"]} | set(description.classes))),
        clips=len(rows),
        files=files,
        checksum=checksum,
        corruption={"dataset": str(dataset.folder.resolve()), "checksum": dataset.checksum, **made_from},
    )
    write_json(folder / "dataset.json", encode(made))


def _link(source: Path, target: Path) -> None:
    """A hard link, which stays valid if the source is removed; on another disk a symbolic one."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    target.symlink_to(source.resolve())
