"""The files of a dataset that describe how it was made: `skipped.csv`, `sources.csv` and, of a part, `part.npy`."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.errors import DatasetError
from avdistill.fsio import error_message, load_array, regular_file, replacing, write_array

_SOURCES, _SKIPPED, _PART = "sources.csv", "skipped.csv", "part.npy"
# Not part of the dataset's checksum, which covers its content.
_RECORDS = (_SKIPPED, _SOURCES, _PART)
# The state of a missing file.
NO_FILE = (0, 0)


@dataclass(frozen=True)
class Skip:
    """A clip that could not be read: a line of `skipped.csv`."""

    clip: str  # its id
    file: str
    reason: str  # in one line
    bytes: int  # with `mtime_ns` the state of the file before it was read, `NO_FILE` if there was none
    mtime_ns: int


def content_checksum(files: dict[str, str]) -> str:
    """The checksum of a dataset, from the SHA-256 of its files by name."""
    content = {name: digest for name, digest in files.items() if name not in _RECORDS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_records(folder: Path, skipped: list[Skip], sources: dict[str, tuple[int, int]]) -> None:
    """Write `skipped.csv` and `sources.csv`."""
    names = [each.name for each in fields(Skip)]
    _write_csv(folder / _SKIPPED, names, [list(astuple(skip)) for skip in skipped])
    rows = [[path, *state] for path, state in sources.items()]
    _write_csv(folder / _SOURCES, ["path", "bytes", "mtime_ns"], rows)


def write_positions(folder: Path, positions: Sequence[int]) -> None:
    """Write `part.npy`: where in the whole list the clips of a part are, then the skipped ones."""
    write_array(folder / _PART, np.array(positions, np.int64))


def read_positions(dataset: Path) -> np.ndarray:
    """int64 (clips + skipped,), what `write_positions` wrote. Raises DatasetError for none or a damaged one."""
    path = dataset / _PART
    try:
        positions = load_array(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: missing or damaged: {error_message(error):.160}") from error
    if positions.dtype != np.int64 or positions.ndim != 1:
        raise DatasetError(f"{path}: expected int64 positions, found {positions.dtype} {positions.shape}")
    return positions


def read_sources(dataset: Path) -> dict[str, tuple[int, int]]:
    """Path -> (bytes, mtime_ns) of the files a dataset was made from."""
    return {row["path"]: _state(row) for row in _read_csv(dataset / _SOURCES, ("path",))}


def read_skipped(dataset: Path) -> list[Skip]:
    """The clips that are not in a dataset because they could not be read."""
    rows = _read_csv(dataset / _SKIPPED, ("clip", "file", "reason"))
    return [Skip(row["clip"], row["file"], row["reason"], *_state(row)) for row in rows]


def _state(row: dict[str, str]) -> tuple[int, int]:
    return int(row["bytes"]), int(row["mtime_ns"])


def _read_csv(path: Path, texts: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of one of our CSV files. Raises DatasetError unless each has `texts` and the state of a file."""
    try:
        with regular_file(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            _state(row)
            if not all(row[name] and "\0" not in row[name] for name in texts):
                raise ValueError("a cell is empty")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DatasetError(f"{path}: missing or damaged: {error_message(error):.160}") from error
    return rows


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with replacing(path, newline="") as file:
        csv.writer(file).writerows([header, *rows])
