"""A dataset with a known corruption: some clips with mismatched, dropped, time-shifted or noisy audio, fewer labels.

The result is an ordinary dataset. Its frames and audio are links to the shards of the source dataset, which is not
changed; mismatched audio is a changed pointer in the clip table. The truth stands in the column `extra`, for scoring
only: `audio` (a name of `AUDIO_CHANGES`, or "kept" for clips without a change and without earlier truth),
`audio_source` (the clip it came from) and `true_label` (of a clip whose label was removed).
"""

import hashlib
import json
import os
import re
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.config_io import encode
from avdistill.corruption.audio import corrupt_audio
from avdistill.corruption.labels import remove_labels
from avdistill.corruption.spec import Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import CLIP_SCHEMA, read_description, staging_dir
from avdistill.dataset.shards import AudioShards
from avdistill.dataset.splits import clips_of_splits
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

# The files that `corrupt` writes into the staging folder. `prepare` writes others there, from its start on.
_OWN_FILE = re.compile(r"(frames|audio)-\d+\.(npy|jpeg)|clips\.parquet|dataset\.json|\.[0-9a-f]{16}\.tmp")


def corrupt(dataset: ClipDataset, corruption: Corruption, out: str | os.PathLike[str]) -> ClipDataset:
    """Make a corrupted copy of a dataset, without its teacher features (see `teachers.transfer`).

    Args:
        dataset: the source. It is not changed; on another disk it must stay readable, for the copy links to it.
        out: the new dataset's folder; returned as it is if it already holds exactly this dataset.

    Raises:
        DatasetError: `out` holds something else, another process or an interrupted `prepare` uses it, a split or a
            different label is missing, there are fewer labeled videos than requested, or it cannot be written.
    """
    checksum = hashlib.sha256(json.dumps([dataset.checksum, encode(corruption)]).encode()).hexdigest()
    out = follow_link(out)
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            found = ClipDataset(out)
            if found.checksum != checksum:
                raise DatasetError(f"{out}: already there, and not this dataset under the corruption {corruption.name}")
            return found
        with lock:
            _clear(folder)
            _write(dataset, corruption, folder, checksum)
            commit(folder, out)
    except BlockingIOError:
        raise DatasetError(f"{out}: another process is making this dataset") from None
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written: {error_message(error)}") from error
    return ClipDataset(out)


def _clear(folder: Path) -> None:
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


def _write(dataset: ClipDataset, corruption: Corruption, folder: Path, checksum: str) -> None:
    rows = dataset.table.to_pylist()
    for row in rows:
        row["extra"] = dict(row["extra"] or ())
    clips = clips_of_splits(dataset, corruption.split).tolist()
    with closing(AudioShards(folder, _free_shard_number(dataset))) as new:
        corrupt_audio(dataset, corruption, rows, clips, new)
    remove_labels(dataset, corruption, [rows[i] for i in clips])
    for row in rows:
        row["extra"] = list(row["extra"].items())
    with replacing(folder / "clips.parquet", "xb") as table:
        pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), table)

    description = read_description(dataset.folder)
    kept = {name: digest for name, digest in description.files.items() if name.startswith(("frames-", "audio-"))}
    for name in kept:
        _link(dataset.folder / name, folder / name)
    for file in folder.iterdir():
        if file.name not in (LOCK, *kept):
            kept[file.name] = file_checksum(file)
    made_from = {"dataset": str(dataset.folder.resolve()), "checksum": dataset.checksum, **asdict(corruption)}
    made = replace(description, clips=len(rows), features={}, files=kept, checksum=checksum, corruption=made_from)
    write_json(folder / "dataset.json", encode(made))


def _free_shard_number(dataset: ClipDataset) -> int:
    # By file, not by the table: a shard that no clip uses any more is a link too, and writing to it would change the
    # dataset it came from.
    return max((int(file.stem.removeprefix("audio-")) for file in dataset.folder.glob("audio-*.npy")), default=-1) + 1


def _link(source: Path, target: Path) -> None:
    """A hard link, which stays valid if the source is removed; on another disk a symbolic one."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    target.symlink_to(source.resolve())
