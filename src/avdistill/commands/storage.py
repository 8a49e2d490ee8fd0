"""The verb of object storage: fetch."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, output, progress_bar
from avdistill.dataset.remote import DESCRIPTION, dataset_contents
from avdistill.errors import ConfigError, StorageError
from avdistill.storage.copies import MANIFEST, Describe, fetch, folder_contents, listed_contents
from avdistill.storage.url import Url, as_path


@dataclass(frozen=True)
class _Fetch(Printed):
    """Copy a dataset, a run or an index from an object storage; the same command resumes an interrupted copy."""

    url: tyro.conf.Positional[str]
    """Where it is: s3://, gs://, hf:// or what an installed fsspec package reads. Credentials are those of the
    environment."""
    out: Path
    """The folder to make. The folder of an earlier copy of the same dataset gets the features that it lacks."""


def fetch_folder(arguments: list[str]) -> None:
    """`avdistill fetch URL --out DIR`."""
    a = tyro.cli(_Fetch, args=arguments, prog="avdistill fetch")
    url, out = as_path(a.url), as_path(a.out)
    if not isinstance(url, Url):
        raise ConfigError(f"URL: expected s3://, gs://, hf:// or the like, found the path {url}")
    if isinstance(out, Url):
        raise ConfigError(f"--out: expected a folder of this machine, found {out}")
    kind, describe = kind_of(url)
    with progress_bar("fetch") as update:
        fetch(url, out, describe, on_progress=update)
    files = [file for file in out.rglob("*") if file.is_file()]
    report = {"url": str(url), "folder": str(out), "kind": kind, "files": len(files)}
    report["bytes"] = sum(file.stat().st_size for file in files)
    checked = "no checksums there" if describe is listed_contents else "checksums agree"
    output(report, [f"{kind} in {out}: {len(files)} files, {report['bytes']} bytes, {checked}"], a.json)


def kind_of(url: Url) -> tuple[str, Describe]:
    """What lies at a URL, and what names its files. Raises StorageError where nothing does."""
    if (url / DESCRIPTION).is_file():
        return "dataset", dataset_contents
    if (url / MANIFEST).is_file():
        return "folder", folder_contents
    if (url / "description.lance").is_dir():
        return "index", listed_contents  # LanceDB's files are named by their content
    raise StorageError(
        f"{url}: expected a dataset, a run or an index that is whole, found no {DESCRIPTION}, {MANIFEST} or "
        "description.lance there"
    )
