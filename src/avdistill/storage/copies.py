"""Copies of folders between an object storage and this machine, in parallel, checked by SHA-256, and resumable.

A folder is described by manifests that name its files. They are written last, so that a folder on a storage is whole
or not there. Work on a folder at a URL is done in its copy in the cache folder (`working_copy`): it is fetched when it
is opened, and uploaded when it is finished. A call that ends before its upload leaves a mark, and the next one that
works there uploads it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from avdistill.errors import AvdistillError, StorageError
from avdistill.fsio import (
    LOCK,
    acquire_staging_dir,
    as_json,
    commit,
    error_message,
    file_checksum,
    is_vacant,
    open_lock,
    remove_tree,
    replacing,
)
from avdistill.progress import OnProgress, Progress
from avdistill.storage.filesystems import endpoint
from avdistill.storage.url import Url, as_path, cache_folder

MANIFEST = "files.json"
_THREADS = 8
_READ_BYTES = 2**20
# Of a folder that is being replaced (`run_dir.replace_folder`), and of file systems.
_PASSING = (".tmp", ".old")


@dataclass(frozen=True)
class Contents:
    """What a folder holds by its manifests.

    Attributes:
        files: SHA-256 by name; empty for a file of which none is recorded.
        manifests: the content of the files that name the others, by name, in the order in which they are written.
    """

    files: Mapping[str, str]
    manifests: Mapping[str, bytes] = field(default_factory=dict)


# Of a folder here or at a URL. Raises FileNotFoundError where there is none.
Describe = Callable[[Path], Contents]


def folder_contents(folder: Path) -> Contents:
    """Of a run, an index or results: at a URL as `files.json` there has it, here of the files there are."""
    if isinstance(folder, Url):
        text = (folder / MANIFEST).read_bytes()
        try:
            files = json.loads(text)["files"]
            if not all(isinstance(each, str) for pair in files.items() for each in pair):
                raise ValueError("expected names and SHA-256")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StorageError(f"{folder / MANIFEST}: damaged: {error_message(error):.120}") from error
        return Contents(files, {MANIFEST: text})
    if is_vacant(folder):
        raise FileNotFoundError(f"{folder}: nothing here")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if name.name not in (LOCK, MANIFEST) and not any(map(_is_passing, name.parts))]
    files = {name.as_posix(): file_checksum(folder / name) for name in kept}
    return Contents(files, {MANIFEST: as_json({"files": files}).encode()})


def listed_contents(folder: Path) -> Contents:
    """Of a folder at a URL that nothing describes: the files that are listed there."""
    files = folder.files() if isinstance(folder, Url) else {}
    if not files:
        raise FileNotFoundError(f"{folder}: nothing there")
    return Contents(dict.fromkeys(files, ""))


def fetch(
    url: Url, out: Path, describe: Describe, *, replace: bool = False, on_progress: OnProgress | None = None
) -> Path:
    """Copy a folder from a storage; an interrupted call goes on after its last whole file.

    Args:
        url: of the folder.
        out: the folder to make. One whose first manifest is the same gets what it lacks.
        describe: which files belong to the folder.
        replace: another folder at `out` is replaced.
        on_progress: in files.

    Returns:
        `out`.

    Raises:
        StorageError: nothing is there, it is not whole, it does not answer, or `out` is another folder.
        OSError: `out` cannot be written.
    """
    there = _described(url, describe)
    for name in [*there.files, *there.manifests]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise StorageError(f"{url}: expected names of files below it, found {name!r:.80}")
    if not is_vacant(out):
        try:
            here = describe(out)
        except (AvdistillError, OSError):
            here = Contents({})
        if here.manifests and _first(here) == _first(there):
            _add(url, out, here, there, on_progress)
            return out
        if not replace:
            raise StorageError(f"{out}: expected a new folder or the one of {url}, found another; name a new one")
        remove_tree(out)  # of what is open in it the system keeps the bytes
    staging = out.with_name(f"{out.name}.fetch")
    try:
        lock = acquire_staging_dir(staging, out)
    except BlockingIOError:
        raise StorageError(f"{out}: another process is fetching it") from None
    if lock is None:
        return fetch(url, out, describe, replace=replace, on_progress=on_progress)
    with lock:
        fetch_files(url, staging, there.files, on_progress)
        for name, content in there.manifests.items():
            _write(staging / name, content)
        commit(staging, out)
        (out / LOCK).unlink(missing_ok=True)
    return out


def upload(folder: Path, url: Url, describe: Describe) -> None:
    """Copy a folder to a storage: what differs there from what its manifests say here, and these last.

    Raises:
        StorageError: the storage does not answer or refuses.
    """
    here = _described(folder, describe)
    try:
        there = describe(url)
    except FileNotFoundError:
        there = Contents({})
    changed = [name for name, digest in here.files.items() if there.files.get(name) != digest]
    sent = _Sent(_mark(folder), url)
    left = [name for name in changed if not sent.has(name, here.files[name])]

    def put(name: str) -> None:
        (url / name).put(folder / name)
        sent.add(name, here.files[name])

    with closing(sent), ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(put, left))
    for name, content in here.manifests.items():
        if there.manifests.get(name) != content:
            (url / name).put(content)


def local_copy(place: str | os.PathLike[str], describe: Describe = folder_contents) -> Path:
    """A folder on this machine for reading: the place itself, or of a URL its copy, as the storage has it now.

    Raises:
        StorageError: nothing is there, it is not whole, or the storage does not answer.
        ConfigError: a URL that is not read.
    """
    url = as_path(place)
    if not isinstance(url, Url):
        return url
    copy = copy_of(url)
    with _locked(copy):
        if _is_ahead(copy):
            logging.getLogger(__name__).info("%s: work here is not uploaded yet; reading it here", url)
            return copy
        return fetch(url, copy, describe, replace=True)


@contextmanager
def working_copy(place: str | os.PathLike[str], describe: Describe = folder_contents) -> Iterator[Path]:
    """A folder on this machine to make or change: the place itself, or of a URL its copy, uploaded at the end.

    It is uploaded after an error as well: a run that was stopped has saved its state.

    Raises:
        StorageError: the storage does not answer; what was made stays here, and the next call uploads it.
        ConfigError: a URL that is not written.
    """
    url = as_path(place)
    if not isinstance(url, Url):
        yield url
        return
    copy = copy_of(url)
    with _locked(copy):
        if not _is_ahead(copy):
            try:
                fetch(url, copy, describe, replace=True)
            except StorageError:
                if _is_there(url, describe):
                    raise
                if not _mark(copy).exists():
                    remove_tree(copy)  # what was there once
            _mark(copy).write_bytes(b"")
    try:
        yield copy
    finally:
        # Of the processes that torchrun starts the first one has written.
        if os.environ.get("RANK", "0") == "0" and not is_vacant(copy):
            upload(copy, url, describe)
            _mark(copy).unlink(missing_ok=True)


def copy_of(url: Url) -> Path:
    """Where the copy of a folder at a URL is, under its own name."""
    key = hashlib.sha256(f"{endpoint()} {url}".encode()).hexdigest()[:16]
    return cache_folder() / key / (url.name or "root")


def _described(folder: Path, describe: Describe) -> Contents:
    try:
        return describe(folder)
    except FileNotFoundError as error:
        where = error.filename or folder
        raise StorageError(f"{folder}: expected a whole folder there, found none ({where} is missing)") from error


def _is_there(url: Url, describe: Describe) -> bool:
    try:
        describe(url)
    except FileNotFoundError:
        return False
    return True


def _first(contents: Contents) -> bytes | None:
    return next(iter(contents.manifests.values()), None)


def _add(url: Url, out: Path, here: Contents, there: Contents, on_progress: OnProgress | None) -> None:
    """Fetch what a folder lacks, then the manifests that name it."""
    lacking = {name: digest for name, digest in there.files.items() if here.files.get(name) != digest}
    fetch_files(url, out, lacking, on_progress)
    for name, content in there.manifests.items():
        if here.manifests.get(name) != content:
            _write(out / name, content)


def fetch_files(url: Url, out: Path, wanted: Mapping[str, str], on_progress: OnProgress | None = None) -> None:
    """Fetch files, SHA-256 by name, each of which gets its name when it is whole. Raises StorageError and OSError."""

    def get(name: str) -> None:
        target, digest = out / name, wanted[name]
        if target.is_file() and (not digest or file_checksum(target) == digest):
            return  # of an interrupted call
        target.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with replacing(target, "xb") as file, (url / name).open("rb") as source:
            while block := source.read(_READ_BYTES):
                found.update(block)
                file.write(block)
            if digest and found.hexdigest() != digest:
                was = found.hexdigest()[:12]
                raise StorageError(f"{url / name}: expected SHA-256 {digest[:12]}, found {was}: damaged or replaced")

    with ThreadPoolExecutor(_THREADS) as threads:
        results = threads.map(get, wanted)
        try:
            for done, _ in enumerate(results, 1):
                if on_progress is not None:
                    on_progress(Progress(done, len(wanted)))
        except FileNotFoundError as error:
            raise StorageError(f"{url}: not whole: {error.filename} is missing") from error
        finally:
            threads.shutdown(cancel_futures=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "xb") as file:
        file.write(content)


def _mark(copy: Path) -> Path:
    """The file beside a copy that is there while it holds work that is not uploaded."""
    return copy.with_name(f"{copy.name}.unsent")


def _is_ahead(copy: Path) -> bool:
    return _mark(copy).exists() and not is_vacant(copy)


class _Sent:
    """The files that were uploaded while a mark was there: a line each, of digest and name."""

    def __init__(self, mark: Path, url: Url) -> None:
        self._known: set[str] = set()
        self._file = None
        if mark.exists():
            with suppress(UnicodeDecodeError):
                self._known = set(mark.read_text(encoding="utf-8").splitlines())
            self._file = mark.open("a", encoding="utf-8")
        self._there = url.files() if self._known else {}

    def has(self, name: str, digest: str) -> bool:
        """Whether the file with this content was uploaded."""
        return name in self._there and f"{digest} {name}" in self._known

    def add(self, name: str, digest: str) -> None:
        """Record it."""
        if self._file is not None:
            self._file.write(f"{digest} {name}\n")
            self._file.flush()

    def close(self) -> None:
        """Close the record."""
        if self._file is not None:
            self._file.close()


@contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Alone among the processes of this machine that fetch the copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(copy.parent, wait=True):
        yield


def _is_passing(name: str) -> bool:
    return name.startswith(".") or name.endswith(_PASSING)
