"""A dataset at a URL: its files, parts of features from several machines, and functions that make one there."""

import errno
import inspect
import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from avdistill.config_io import decode, parse_json
from avdistill.dataset.features import FOLDER, TABLE, Part, finished_parts, read_descriptions
from avdistill.dataset.schema import read_description
from avdistill.errors import StorageError
from avdistill.fsio import replacing
from avdistill.storage.copies import Contents, fetch_files, working_copy
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


class SharedParts:
    """Parts of features that calls on several machines compute, exchanged at the dataset's URL while some are missing.

    They are in the same folder there as here (`features.staging_folder`): files first, then the record of the part.
    Without a URL nothing is exchanged.
    """

    def __init__(self, url: Url | None, folder: Path, staging: Path) -> None:
        """Args: url, folder: of the dataset, and its copy here; staging: in the copy."""
        self._url, self._staging = url and url / staging.relative_to(folder).as_posix(), staging

    def fetch(self, firsts: Iterable[int], *, all_or_none: bool = False) -> None:
        """Fetch those of these parts, by their first clips, that are there and not here."""
        if self._url is None:
            return
        names = set(self._url.files(recursive=False))
        lacking = {first: _record(first) for first in firsts if first not in finished_parts(self._staging)}
        if all_or_none and not names.issuperset(lacking.values()):
            return
        for record in sorted(names.intersection(lacking.values())):
            content = (self._url / record).read_bytes()
            try:
                part = decode(Part, parse_json(content.decode()), record)
            except ValueError as error:
                raise StorageError(f"{self._url / record}: damaged: {error}") from error
            self._staging.mkdir(parents=True, exist_ok=True)
            fetch_files(self._url, self._staging, {part.file_name(k): digest for k, digest in part.files.items()})
            with replacing(self._staging / record, "xb") as file:
                file.write(content)

    def upload(self) -> None:
        """Upload the parts that are here and not there."""
        if self._url is None:
            return
        names = set(self._url.files(recursive=False))
        for first, part in finished_parts(self._staging).items():
            if _record(first) not in names:
                for name in [*(part.file_name(kind) for kind in part.files), _record(first)]:
                    (self._url / name).put(self._staging / name)

    def delete(self) -> None:
        """Delete them there, when the features are there."""
        if self._url is not None:
            self._url.delete_folder()


def _record(first: int) -> str:
    return f"part-{first:08d}.json"


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
