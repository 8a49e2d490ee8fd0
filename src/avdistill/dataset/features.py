"""A teacher's features in a dataset's folder (`docs/formats/dataset.md`): parts of rows, written, replaced and mapped.

`features/<name>/features.json` lists the parts; their files have their SHA-256 in their names, so that new ones lie
beside those that a reader has open, until one rename makes them the features.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avdistill.config_io import decode, encode, read_json
from avdistill.dataset.schema import TeacherEntry, check_entry, is_teacher_name
from avdistill.errors import ConfigError, DatasetError
from avdistill.fsio import (
    error_message,
    file_checksum,
    open_lock,
    own_folder,
    remove_tree,
    sync_folder,
    write_array,
    write_json,
)

FORMAT_VERSION = 1
FOLDER, TABLE = "features", "features.json"
#: of a part: what a killed `embed` loses at most, and what it holds in memory
PART_CLIPS = 8192
_KINDS = ("valid", "embedding", "logits", "tokens")
_DIGITS = 16


@dataclass(frozen=True)
class Part:
    """Consecutive clips of a dataset.

    Attributes:
        first: row of the first clip.
        clips: how many.
        files: SHA-256 of the files `valid`, `embedding`, `logits`, `tokens`; empty where no clip has features.
    """

    first: int
    clips: int
    files: dict[str, str]

    def file_name(self, kind: str) -> str:
        """Of one of `files`."""
        return f"part-{self.first:08d}-{self.files[kind][:_DIGITS]}.{kind}.npy"


@dataclass(frozen=True)
class FeaturesDescription:
    """The content of `features.json`.

    Attributes:
        version: `FORMAT_VERSION`.
        dataset: checksum of the dataset's clips.
        clips: N, of the dataset.
        entry: what the features are.
        parts: in the order of the clips, all of them.
    """

    version: int
    dataset: str
    clips: int
    entry: TeacherEntry
    parts: tuple[Part, ...]

    def digest(self, kind: str) -> str | None:
        """SHA-256 over that of every file of a kind; None where there is none."""
        files = [part.files.get(kind, "") for part in self.parts]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest() if any(files) else None


def read_descriptions(folder: Path, dataset: str, clips: int) -> dict[str, FeaturesDescription]:
    """What `features/*/features.json` of a dataset's folder say, by name.

    Args:
        folder: of the dataset.
        dataset: its checksum.
        clips: how many it has.

    Raises:
        DatasetError: one is damaged, or is of another dataset.
    """
    try:
        folders = [each for each in sorted((folder / FOLDER).iterdir()) if (each / TABLE).exists()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DatasetError(f"{folder}: {error_message(error)}") from error
    return {each.name: _read(each, dataset, clips) for each in folders if is_teacher_name(each.name)}


def _read(folder: Path, dataset: str, clips: int) -> FeaturesDescription:
    where = f"{FOLDER}/{folder.name}/{TABLE}"
    try:
        found = decode(FeaturesDescription, read_json(folder / TABLE), where)
        if found.version != FORMAT_VERSION:
            raise ConfigError(f"{where}: expected format {FORMAT_VERSION}, found {found.version}; embed it again")
        check_entry(where, folder.name, found.entry)
        _check_parts(where, found)
    except ConfigError as error:
        raise DatasetError(f"{folder.parent.parent}: {error}") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder.parent.parent}: {where} is damaged: {error_message(error)}") from error
    if (found.dataset, found.clips) != (dataset, clips):
        raise DatasetError(f"{folder.parent.parent}: {where}: expected features of these clips, found others'")
    return found


def _check_parts(where: str, found: FeaturesDescription) -> None:
    """Raise ConfigError unless the parts are those of the clips, each with the files that the entry asks for."""
    wanted = {"valid", "embedding"} | ({"logits"} if found.entry.classes else set())
    wanted |= {"tokens"} if found.entry.num_tokens else set()
    end = 0
    for part in found.parts:
        if part.first != end or part.clips < 1:
            raise ConfigError(f"{where}.parts: expected one from clip {end} on, found {part.first} and {part.clips}")
        if part.files and set(part.files) != wanted:
            raise ConfigError(f"{where}.parts: expected {sorted(wanted)}, found {sorted(part.files)!r:.80}")
        for digest in part.files.values():
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ConfigError(f"{where}.parts: expected a SHA-256, found {digest!r:.80}")
        end += part.clips
    if end != found.clips:
        raise ConfigError(f"{where}.parts: expected {found.clips} clips, found {end}")


def staging_folder(folder: Path, name: str, job: Mapping[str, object]) -> Path:
    """The folder for the parts of features that are being computed; the first part makes it.

    Args:
        folder: of the dataset.
        name: of the features.
        job: JSON-ready, all that the parts depend on: the same job finds its finished parts, another one none.

    Raises:
        DatasetError: the name is not usable as that of a folder, or a link has its place.
    """
    if not is_teacher_name(name):
        raise DatasetError(f"teacher name {name!r}: use letters, digits, '_' and '.'")
    key = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    try:
        return own_folder(folder, f"{FOLDER}/.{name}-{key}")
    except OSError as error:
        raise DatasetError(f"{folder}: teacher {name!r} cannot be written: {error_message(error)}") from error


def write_part(staging: Path, first: int, clips: int, arrays: Mapping[str, np.ndarray]) -> Part:
    """Write a part and record it; after that no kill and no power cut loses it. Raises OSError.

    Args:
        staging: see `staging_folder`.
        first, clips: which clips.
        arrays: by kind, a row per clip; `valid` is bool, the others are float32. None at all where no clip has
            features.
    """
    staging.mkdir(parents=True, exist_ok=True)
    part = Part(first, clips, {kind: _write_array(staging, first, kind, rows) for kind, rows in arrays.items()})
    write_json(staging / f"part-{first:08d}.json", encode(part))
    return part


def _write_array(staging: Path, first: int, kind: str, rows: np.ndarray) -> str:
    temporary = staging / f"part-{first:08d}.{kind}.tmp"
    write_array(temporary, np.ascontiguousarray(rows, bool if kind == "valid" else np.float32))
    digest = file_checksum(temporary)
    temporary.replace(staging / Part(first, len(rows), {kind: digest}).file_name(kind))
    return digest


def with_array(staging: Path, part: Part, kind: str, rows: np.ndarray) -> Part:
    """The part with one more array, which is written but not recorded. Raises OSError."""
    return replace(part, files=part.files | {kind: _write_array(staging, part.first, kind, rows)})


def part_file(folder: Path, staging: Path | None, part: Part, kind: str) -> Path:
    """Where a file of a part lies: in the staging folder, or in that of the features once it was moved there."""
    name = part.file_name(kind)
    return staging / name if staging is not None and (staging / name).exists() else folder / name


def finished_parts(staging: Path) -> dict[int, Part]:
    """The parts that were recorded, by their first clip; a record that is damaged counts as none."""
    found = {}
    for file in sorted(staging.glob("part-*.json")):
        try:
            part = decode(Part, read_json(file), file.name)
        except (OSError, ValueError, ConfigError):
            continue
        found[part.first] = part
    return found


def commit_features(folder: Path, staging: Path, description: FeaturesDescription) -> None:
    """Make the parts of a staging folder the features; old ones of the name are replaced. The caller has the lock.

    A kill in between leaves the old features or the new ones; the same call again finishes it. Readers keep the files
    that they have open.

    Args:
        folder: of the dataset, locked (`fsio.open_lock`).
        staging: see `staging_folder`; it is removed.
        description: becomes `features.json`.

    Raises:
        OSError: the folder cannot be written.
    """
    target = own_folder(folder, f"{FOLDER}/{description.entry.name}")
    target.mkdir(exist_ok=True)
    files = [part.file_name(kind) for part in description.parts for kind in part.files]
    # Without those that an earlier call moved and was killed, and those that are the same as before.
    moved = [file for file in files if (staging / file).exists() and not (target / file).exists()]
    try:
        for file in moved:
            (staging / file).replace(target / file)
        sync_folder(target)  # the names of the arrays before the one that vouches for them
        write_json(target / TABLE, encode(description))
    except OSError:
        for file in moved:
            if (target / file).exists():
                (target / file).replace(staging / file)
        raise
    for each in target.iterdir():
        if each.name not in (*files, TABLE):
            remove_tree(each)
    remove_tree(staging)


def write_features(
    folder: Path, dataset: str, entry: TeacherEntry, arrays: Mapping[str, np.ndarray]
) -> FeaturesDescription:
    """Write or replace the features of a teacher that are in memory; returns what `features.json` holds.

    Args:
        folder: of the dataset.
        dataset: its checksum.
        entry: what the features are.
        arrays: by kind (`write_part`), a row for each clip.

    Raises:
        DatasetError: the name is not usable, or the folder cannot be written; the old features then stay.
    """
    clips = len(arrays["valid"])
    staging = staging_folder(folder, entry.name, {"in memory": True})
    try:
        with open_lock(folder, wait=True):
            parts = []
            for first in range(0, clips, PART_CLIPS):
                rows = {kind: array[first : first + PART_CLIPS] for kind, array in arrays.items()}
                count = len(rows["valid"])
                parts.append(write_part(staging, first, count, rows if rows["valid"].any() else {}))
            description = FeaturesDescription(FORMAT_VERSION, dataset, clips, entry, tuple(parts))
            commit_features(folder, staging, description)
    except OSError as error:
        remove_tree(staging)
        raise DatasetError(f"{folder}: teacher {entry.name!r} cannot be written: {error_message(error)}") from error
    return description
