"""Students on the Hugging Face hub: from `hf://org/name@revision` to a folder, and from a folder to a repository.

Of a repository only the files of a student are downloaded, and of these only JSON and safetensors are read. One that
holds anything else than weights as safetensors, texts, tables and images, such as a pickle or code, is refused whole.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from avdistill.errors import HubError
from avdistill.storage.copies import local_copy

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf://"
#: what a published student carries, so that `list_remote` finds it
TAG = "avdistill"
#: the files of a student that are downloaded
STUDENT_FILES = ("config.json", "model.safetensors", "preprocessing.json", "README.md")
# pathlib joins the two slashes of an address that went through it.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repository>[^/@\s]+/[^/@\s]+)(@(?P<revision>\S+))?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Everything else may hold code: pickles (.bin, .pt, .pkl, ...), Python files, notebooks, libraries, archives.
_TEXTS = (".csv", ".json", ".jsonl", ".md", ".txt", ".yaml", ".yml")
_MEDIA = (".flac", ".gif", ".jpeg", ".jpg", ".mp4", ".png", ".svg", ".wav", ".webm", ".webp")
_PLAIN_ENDINGS = frozenset({*_TEXTS, *_MEDIA, ".onnx", ".safetensors"})
_PLAIN_NAMES = frozenset({".gitattributes", ".gitignore", "LICENSE", "NOTICE"})
_SECONDS = 10.0


@dataclass(frozen=True)
class RemoteStudent:
    """A student on the hub.

    Attributes:
        address: `hf://org/name`.
        modality: "video" or "audio"; "" where the repository does not say.
        license: its identifier; "" likewise.
        modified: day of the last change, as 2026-11-28.
        downloads: in the last 30 days, as the hub counts them.
    """

    address: str
    modality: str
    license: str
    modified: str
    downloads: int


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address on the hub."""
    return os.fspath(path).startswith("hf:/")


def parse_address(address: str | os.PathLike[str]) -> tuple[str, str | None]:
    """(`org/name`, revision or None) of `hf://org/name@revision`. Raises HubError."""
    found = _ADDRESS.fullmatch(os.fspath(address))
    if found is None or not _REPOSITORY.fullmatch(found["repository"]):
        raise HubError(f"{os.fspath(address)}: expected hf://org/name or hf://org/name@revision")
    return found["repository"], found["revision"]


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a student: of an address on the hub its snapshot in the cache, of another URL its copy.

    The hub is asked which files the revision has. Where it does not answer, or `HF_HUB_OFFLINE=1` is set, the snapshot
    that was downloaded before is taken.

    Args:
        path: `hf://org/name`, `hf://org/name@revision` (a branch, tag or commit), another URL, or a folder.

    Raises:
        HubError: no such repository or revision, one that holds pickles or code, one without a student, a hub that does
            not answer where nothing is in the cache, or huggingface_hub is not installed.
    """
    if not is_remote(path):
        return local_copy(path)
    repository, revision = parse_address(path)
    address = HUB + repository + (f"@{revision}" if revision else "")
    api = _api(address)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    with _one_line(address):
        try:
            found = api.model_info(repository, revision=revision, timeout=_SECONDS)
            names, reached = [each.rfilename for each in found.siblings or ()], True
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (HTTPError, OSError) as error:  # offline by choice, no network, or the hub is down
            logging.getLogger(__name__).info("%s: the hub is not reached, trying the cache (%s)", address, error)
            names, reached = [], False
        _check_names(address, names)
        if reached and not {"config.json", "model.safetensors"} <= set(names):
            raise HubError(f"{address}: expected config.json and model.safetensors, found {_few(names)}")
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(STUDENT_FILES), local_files_only=not reached
            )
        )
    # Another program may have put more of the repository there.
    _check_names(address, [each.relative_to(folder).as_posix() for each in folder.rglob("*") if not each.is_dir()])
    return folder


def upload(
    folder: Path, repository: str, *, message: str, private: bool = False, revision: str | None = None
) -> tuple[str, str]:
    """Put the files of a folder into a repository, which is made if it is missing, as one commit.

    Args:
        folder: its files, not those of folders in it.
        repository: `org/name`.
        message: of the commit.
        private: a new repository is not public.
        revision: the branch, made if it is missing; None is the main one.

    Returns:
        The address `hf://org/name@commit`, and the commit's page.

    Raises:
        HubError: no `org/name`, files that `local_folder` would refuse, no right to write there, no network, or
            huggingface_hub is not installed.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise HubError(f"{repository}: expected org/name")
    address = HUB + repository
    files = sorted(each for each in folder.iterdir() if each.is_file())
    _check_names(str(folder), [file.name for file in files])
    api = _api(address)
    from huggingface_hub import CommitOperationAdd

    with _one_line(address):
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file)) for file in files]
        commit = api.create_commit(repository, additions, commit_message=message, revision=revision)
    return f"{address}@{commit.oid}", str(commit.commit_url)


def list_remote(author: str | None = None, search: str | None = None, limit: int = 100) -> list[RemoteStudent]:
    """Students on the hub, by the tag that `publish` gives them, most downloaded first.

    Args:
        author: an organization or user.
        search: a part of the name.
        limit: at most this many.

    Raises:
        HubError: the hub does not answer, or huggingface_hub is not installed.
    """
    api = _api(HUB)
    with _one_line(HUB):
        found = list(
            api.list_models(filter=TAG, author=author, search=search, sort="downloads", limit=limit, full=True)
        )
    students = []
    for each in found:
        tags = each.tags or []
        modality = next((tag.removesuffix("-classification") for tag in tags if tag.endswith("-classification")), "")
        license_ = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
        modified = "" if each.last_modified is None else each.last_modified.date().isoformat()
        students.append(RemoteStudent(HUB + each.id, modality, license_, modified, each.downloads or 0))
    return students


def _api(address: str) -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise HubError(f"{address}: huggingface_hub is not installed: install the extra 'huggingface'") from None
    return HfApi(library_name=TAG, library_version=version("avdistill"))


def _check_names(where: str, names: list[str]) -> None:
    """Raise HubError for files that may be pickles or code."""
    other = [name for name in map(PurePosixPath, names) if name.name not in _PLAIN_NAMES]
    refused = [str(name) for name in other if name.suffix.lower() not in _PLAIN_ENDINGS]
    if refused:
        raise HubError(
            f"{where}: refused: expected weights as safetensors, texts and images alone, found {_few(refused)}, "
            "which may be a pickle or code"
        )


def _few(names: list[str]) -> str:
    return (", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")) or "nothing"


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Errors of huggingface_hub as a HubError."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HubError:
        raise
    except RepositoryNotFoundError as error:
        raise HubError(f"{address}: no such repository, or no right to it (`hf auth login`)") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{address}: no such revision") from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{address}: the hub is not reached, and the cache does not hold it") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: an upload that failed
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            raise HubError(f"{address}: no right to write there (`hf auth login`)") from error
        text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise HubError(f"{address}: the hub is not reached or refuses: {text:.200}") from error
