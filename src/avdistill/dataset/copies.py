"""A changed copy of a dataset: another clip table, and links to the shards of the source, which is not changed."""

import hashlib
import json
import os
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
from avdistill.dataset.schema import CLIP_SCHEMA, read_description
from avdistill.dataset.staging import make_dataset
from avdistill.fsio import LOCK, file_checksum, replacing, write_json

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
    return make_dataset(
        out,
        what,
        lambda found: found.checksum == checksum,
        lambda folder: _write(dataset, list(rows(folder)), folder, checksum, made_from),
    )


def rows_of(dataset: ClipDataset) -> list[Row]:
    """The clip table, `extra` as a dictionary."""
    return [row | {"extra": dict(row["extra"] or ())} for row in dataset.table.to_pylist()]


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
