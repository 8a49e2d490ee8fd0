"""`open_index` and `build_index`: the form of an index follows from where it is."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, DatasetError, SearchError
from avdistill.fsio import file_checksum
from avdistill.models.checkpoint import WEIGHTS, student_folder
from avdistill.progress import OnProgress
from avdistill.search.columns import Column, gather
from avdistill.search.exact import ExactIndex, write_exact
from avdistill.search.index import Index
from avdistill.search.lance import LanceIndex, write_lance
from avdistill.search.qdrant import QdrantIndex, write_qdrant
from avdistill.search.schema import Source, Space

Form = Literal["exact", "lance", "qdrant"]


def build_index(
    datasets: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    columns: Sequence[Column] = (),
    *,
    audits: Sequence[str | os.PathLike[str]] = (),
    joint: Sequence[Sequence[str]] = (),
    form: Form | None = None,
    on_progress: OnProgress | None = None,
) -> Index:
    """Index the clips of datasets with their teachers' features and other columns of vectors.

    An index of the same content that is there is left as it is, one of other content is replaced. A killed call goes
    on after the last batch that it finished.

    Args:
        datasets: their folders.
        out: a folder, `s3://bucket/name` (also gs:// and az://) or `http://host:port/collection`.
        columns: of vectors beyond the stored features; `student_column` makes that of a run.
        audits: folders that `avdistill audit` wrote, whose scores `where` may name then.
        joint: names of features that come from one joint encoder, whose vectors may be compared across modalities.
        form: None is "exact" in a folder, "lance" in a bucket and "qdrant" on a server.
        on_progress: in clips.

    Raises:
        SearchError: no vectors to index, features of one name from different teachers, an audit of another dataset,
            a package that is missing, or something else than an index at `out`.
        DatasetError: there is no dataset.
        TeacherError: a dataset's rate differs from a student's.
        ConfigError: a form that does not fit the place.
        OSError: it cannot be written.
    """
    form = form_of(out, form)
    content = gather(datasets, columns, audits=audits, joint=joint)
    with suppress(SearchError):
        current = _open(out, form)
        if current.description == content.description:
            return current
    if form == "lance":
        write_lance(content, os.fspath(out), on_progress)
    elif form == "qdrant":
        write_qdrant(content, os.fspath(out), on_progress)
    else:
        write_exact(content, Path(out), on_progress)
    return _open(out, form)


def open_index(location: str | os.PathLike[str]) -> Index:
    """An index for searching.

    Args:
        location: where `build_index` made it.

    Raises:
        SearchError: there is none, it is damaged, its package is missing, or it is stale: a dataset, its features, an
            audit or a student is no longer what it was made of. What is no longer there at all is not checked.
    """
    index = _open(location, form_of(location, None))
    check_fresh(index)
    return index


def form_of(location: str | os.PathLike[str], form: Form | None) -> Form:
    """The form of an index at a place. Raises ConfigError where the place cannot hold the form that is asked for."""
    text = os.fspath(location)
    scheme = text.partition("://")[0] if "://" in text else ""
    found: Form
    if scheme in ("http", "https"):
        found = "qdrant"
    elif scheme in ("s3", "gs", "az"):
        found = "lance"
    elif scheme:
        raise ConfigError(f"{text}: expected a folder, s3://, gs://, az:// or http(s)://, found {scheme}://")
    elif form is None:
        found = "lance" if (Path(text) / "description.lance").exists() else "exact"
    else:
        found = "exact" if form == "qdrant" else form
    if form not in (None, found):
        raise ConfigError(f"{text}: expected form {found!r} there, found {form!r}")
    return found


def _open(location: str | os.PathLike[str], form: Form) -> Index:
    if form == "exact":
        return ExactIndex(Path(location))
    return (LanceIndex if form == "lance" else QdrantIndex)(os.fspath(location))


def check_fresh(index: Index) -> None:
    """Raise SearchError where what the index was made of has changed since."""
    changed = next((text for text in map(_source_change, index.description.sources) if text), None)
    changed = changed or next((text for text in map(_space_change, index.description.spaces) if text), None)
    if changed:
        raise SearchError(f"{index.location}: stale: {changed}; run `avdistill index` again")


def _source_change(source: Source) -> str | None:
    if not Path(source.folder).is_dir():
        return None
    try:
        found = ClipDataset(source.folder)
    except DatasetError as error:
        return str(error)
    if found.checksum != source.checksum:
        return f"{source.folder}: expected checksum {source.checksum[:12]}, found {found.checksum[:12]}"
    for name, checksum in source.features.items():
        if name not in found.teachers or found.features_manifest(name)["files"]["embedding"] != checksum:
            return f"{source.folder}: features {name!r} have changed"
    for name, checksum in source.files.items():
        if Path(name).is_file() and file_checksum(Path(name)) != checksum:
            return f"{source.folder}: {name} has changed"
    return None


def _space_change(space: Space) -> str | None:
    weights, expected = student_folder(Path(space.model)) / WEIGHTS, space.provenance.get("weights_sha256")
    if not space.model or expected is None or not weights.is_file() or file_checksum(weights) == expected:
        return None
    return f"{space.model}: the student has changed"
