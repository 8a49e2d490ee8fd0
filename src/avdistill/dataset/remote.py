"""A dataset at a URL: which files it consists of, and functions that make one there."""

import errno
import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from avdistill.dataset.features import FOLDER, TABLE, read_descriptions
from avdistill.dataset.schema import read_description
from avdistill.storage.copies import Contents, working_copy
from avdistill.storage.url import Url, as_path

if TYPE_CHECKING:
    from avdistill.dataset.clip_dataset import ClipDataset

P = ParamSpec("P")
DESCRIPTION = "dataset.json"


def dataset_contents(folder: Path) -> Contents:
    """The files of a dataset, here or at a URL, by its own checksums: those of clips and of finished features.

    Raises:
        FileNotFoundError: there is no dataset.
        DatasetError: it is damaged.
    """
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / DESCRIPTION))
    description = read_description(folder)
    files = dict(description.files)
    manifests = {DESCRIPTION: (folder / DESCRIPTION).read_bytes()}
    for name, found in read_descriptions(folder, description.checksum, description.clips).items():
        for part in found.parts:
            files |= {f"{FOLDER}/{name}/{part.file_name(kind)}": digest for kind, digest in part.files.items()}
        manifests[f"{FOLDER}/{name}/{TABLE}"] = (folder / FOLDER / name / TABLE).read_bytes()
    return Contents(files, manifests)


def to_storage(make: "Callable[P, ClipDataset]") -> "Callable[P, ClipDataset]":
    """The function that makes a dataset, for which `out` may be a URL: it is made in a local copy and uploaded."""
    signature = inspect.signature(make)

    @wraps(make)
    def made(*arguments: P.args, **options: P.kwargs) -> "ClipDataset":
        bound = signature.bind(*arguments, **options)
        out = as_path(bound.arguments["out"])
        if not isinstance(out, Url):
            return make(*arguments, **options)
        with working_copy(out, dataset_contents) as copy:
            bound.arguments["out"] = copy
            dataset = make(*bound.args, **bound.kwargs)
        dataset.url = out
        return dataset

    return made
