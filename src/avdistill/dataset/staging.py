"""A dataset that is made in a folder beside its own, which gets its name when it is whole."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import DatasetBusyError, DatasetError
from avdistill.fsio import LOCK, acquire_staging_dir, commit, error_message, follow_link

# What `fill` writes into the staging folder. `prepare` writes other files there, from its start on.
_OWN_FILE = re.compile(
    r"(frames|audio)-\d+\.(npy|jpeg)|clips\.parquet|(skipped|sources)\.csv|dataset\.json|\.[0-9a-f]{16}\.tmp"
)


def make_dataset(
    out: str | os.PathLike[str], what: str, is_it: Callable[[ClipDataset], bool], fill: Callable[[Path], None]
) -> ClipDataset:
    """The dataset at `out`, made by `fill` unless it is there already; after a kill the next call begins anew.

    Args:
        out: the dataset's folder.
        what: the dataset in messages.
        is_it: whether a dataset that is there is this one, which is then returned as it is.
        fill: writes all files of the dataset into the folder that it is given.

    Raises:
        DatasetBusyError: another process makes it.
        DatasetError: `out` holds something else, an interrupted `prepare` uses it, or it cannot be written.
    """
    out = follow_link(out)
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            found = ClipDataset(out)
            if not is_it(found):
                raise DatasetError(f"{out}: already there, and not {what}")
            return found
        with lock:
            _clear(folder)
            fill(folder)
            commit(folder, out)
    except BlockingIOError:
        raise DatasetBusyError(f"{out}: another process is making this dataset") from None
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
