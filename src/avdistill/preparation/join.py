"""One dataset from the datasets of all parts: their shards under new numbers, and the checksum of one preparation."""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.remote import dataset_contents, to_storage
from avdistill.dataset.schema import CLIP_SCHEMA, DatasetDescription, read_description
from avdistill.dataset.staging import make_dataset
from avdistill.errors import ConfigError, DatasetError
from avdistill.fsio import file_checksum, replacing, write_json
from avdistill.preparation.records import (
    Skip,
    content_checksum,
    read_positions,
    read_skipped,
    read_sources,
    write_records,
)
from avdistill.preparation.single_layout import SingleLayout
from avdistill.progress import OnProgress
from avdistill.storage.copies import local_copy

_SHARD = re.compile(r"(frames|audio)-(\d+)(\.npy|\.jpeg)")
# Column of the clip table: the kind of its shards' names.
_KINDS = {"frame": "frames", "audio": "audio"}


@dataclass(eq=False)
class _Part:
    """A dataset of a part, opened."""

    dataset: ClipDataset
    description: DatasetDescription
    positions: np.ndarray  # in the whole list, of the clips, then of the skipped ones

    @property
    def folder(self) -> Path:
        """Of the dataset."""
        return self.dataset.folder

    def shards(self, kind: str) -> list[int]:
        """The numbers of its shards of a kind."""
        found = [_SHARD.fullmatch(name) for name in self.description.files]
        return sorted({int(name[2]) for name in found if name and name[1] == kind})


@to_storage
def join(
    parts: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> ClipDataset:
    """Make one dataset of the datasets that `prepare` made with `part`, in the order of the whole list.

    Its clips and checksum are those of a single preparation, whose settings it gets: `prepare` without `part` accepts
    it as its own. The parts' shards get hard links, so that the parts stay whole and no byte is copied; on another
    file system they are copied. Features of the parts are not joined.

    Args:
        parts: the folders of all parts, in any order; URLs are fetched.
        out: the dataset's folder; returned as it is if it already holds this dataset. A URL gets it when it is whole.
        on_progress: called after each file that is read for the checksum.

    Raises:
        ConfigError: a folder without a part, a part that is missing or given twice, parts of several preparations, or
            clips that are in several parts.
        DatasetBusyError: another process makes the dataset.
        DatasetError: a part is damaged, or `out` holds something else or cannot be written.
    """
    opened = _open_parts([local_copy(part, dataset_contents) for part in parts])
    skipped, states = _records(opened)
    settings = {key: value for key, value in opened[0].description.settings.items() if key != "part"}

    def is_joined(found: ClipDataset) -> bool:
        description = read_description(found.folder)
        return description.settings == settings and not description.corruption

    return make_dataset(
        out,
        "the dataset of these parts",
        is_joined,
        lambda folder: _write(opened, skipped, states, settings, folder, on_progress),
    )


def _open_parts(folders: list[Path]) -> list[_Part]:
    """All parts of one preparation, by number. Raises ConfigError for anything else."""
    parts: dict[int, _Part] = {}
    for folder in folders:
        try:
            description = read_description(folder)
        except DatasetError as error:
            raise ConfigError(str(error)) from error
        settings = description.settings
        if description.corruption or not _is_part(settings.get("part")):
            found = "a changed copy of a dataset" if description.corruption else "a dataset prepared in one go"
            raise ConfigError(f"{folder}: expected a part, made by `avdistill prepare --part`, found {found}")
        number, count = settings["part"]
        first = next(iter(parts.values()), None)
        if first is not None and (other := _difference(first.description.settings, settings)):
            raise ConfigError(f"{folder}: expected the list and settings of {first.folder}, found {other}")
        if number in parts:
            twice = f"found {number}/{count} in {parts[number].folder} as well"
            raise ConfigError(f"{folder}: expected each part once, {twice}")
        parts[number] = _Part(ClipDataset(folder), description, read_positions(folder))
    count = next(iter(parts.values())).description.settings["part"][1] if parts else 1
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in parts]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"join: expected all {count} parts, found none for {', '.join(missing[:3])}{more}")
    ordered = [parts[number] for number in sorted(parts)]
    for part in ordered:
        if len(part.positions) != part.description.clips + part.description.skipped:
            raise DatasetError(f"{part.folder}: part.npy: expected a position for each clip and each skipped one")
    _refuse_overlap(ordered)
    if not any(len(part.dataset) for part in ordered):
        raise ConfigError(
            f"join: expected clips, found none that could be read; see {ordered[0].folder / 'skipped.csv'}"
        )
    return ordered


def _is_part(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(each) is int for each in value)
        and (1 <= value[0] <= value[1])
    )


def _difference(first: dict[str, Any], other: dict[str, Any]) -> str:
    """What settings, but for the part's number, differ in; empty if in nothing."""
    known = {"annotations": "another list of clips", "reader": "another reader"}
    for key in sorted(first.keys() | other.keys()):
        one, two = first.get(key), other.get(key)
        if key == "part":
            one, two = one[1], two[1]  # type: ignore[index]  # both are parts
        if one != two:
            if key == "part":
                return f"a part of {two}, not of {one}"
            if isinstance(one, dict) and isinstance(two, dict):
                names = sorted(one.keys() | two.keys())
                return next(f"{n} {two.get(n)}, not {one.get(n)}" for n in names if one.get(n) != two.get(n))
            return known.get(key, f"another {key}")
    return ""


def _refuse_overlap(parts: list[_Part]) -> None:
    """Raise ConfigError unless each clip of the list is in one part."""
    positions = np.concatenate([part.positions for part in parts])
    if not np.array_equal(np.sort(positions), np.arange(len(positions))):
        raise ConfigError("join: expected each clip of the list in one part, found clips in several or in none")
    seen: dict[str, _Part] = {}
    for part in parts:
        for name in part.dataset.columns["id"]:
            if seen.setdefault(name, part) is not part:
                raise ConfigError(
                    f"{part.folder}: expected clips of its own, found {name!r:.80} of {seen[name].folder}"
                )


def _write(
    parts: list[_Part],
    skipped: list[Skip],
    states: dict[str, tuple[int, int]],
    settings: dict[str, Any],
    folder: Path,
    on_progress: OnProgress | None,
) -> None:
    """Everything but the rename."""
    first = {
        kind: np.cumsum([0] + [1 + max(part.shards(kind), default=-1) for part in parts]) for kind in _KINDS.values()
    }
    files = {}
    for number, part in enumerate(parts):
        for name, digest in part.description.files.items():
            if found := _SHARD.fullmatch(name):
                new = f"{found[1]}-{first[found[1]][number] + int(found[2]):05d}{found[3]}"
                _link_or_copy(part.folder / name, folder / new)
                files[new] = digest
    table, single = _tables(parts, first, on_progress)
    sources = {path: states[path] for path in table["path"].to_pylist()}
    with replacing(folder / "clips.parquet", "xb") as file:
        file.write(_parquet(table))
    write_records(folder, skipped, sources)
    files |= {name: file_checksum(folder / name) for name in ("clips.parquet", "skipped.csv", "sources.csv")}
    joined = replace(
        parts[0].description,
        classes=tuple(sorted({name for part in parts for name in part.description.classes})),
        clips=len(table),
        skipped=len(skipped),
        checksum=content_checksum(single),
        files=dict(sorted(files.items())),
        settings=settings,
    )
    write_json(folder / "dataset.json", encode(joined))


def _tables(
    parts: list[_Part], first: dict[str, np.ndarray], on_progress: OnProgress | None
) -> tuple[pa.Table, dict[str, str]]:
    """The joined clip table, and the SHA-256 of the files that one preparation would have written, by name.

    Args:
        parts: all of them.
        first: by kind of shard, the new number of each part's shard 0.
        on_progress: called after each file that is read.
    """
    counts = [part.description.clips for part in parts]
    order = np.argsort(np.concatenate([part.positions[:count] for part, count in zip(parts, counts, strict=True)]))
    part_of = np.repeat(np.arange(len(parts)), counts)[order]
    clip_of = np.concatenate([np.arange(count) for count in counts])[order]
    table = pa.concat_tables([part.dataset.table for part in parts]).take(pa.array(order)).combine_chunks()
    layout = SingleLayout(jpeg=parts[0].description.frame_encoding == "jpeg")
    places = [layout.add(parts[p].dataset, int(clip)) for p, clip in zip(part_of, clip_of, strict=True)]
    columns = np.array(places, np.int64).reshape(-1, 4).T
    names = ("frame_shard", "frame_offset", "audio_shard", "audio_offset")
    alone = _with_columns(table, dict(zip(names, columns, strict=True)))
    joined = {}
    for column, kind in _KINDS.items():
        shard = table[f"{column}_shard"].to_numpy()
        joined[f"{column}_shard"] = np.where(shard < 0, shard, shard + first[kind][part_of])
    digests = layout.digests(on_progress) | {"clips.parquet": hashlib.sha256(_parquet(alone)).hexdigest()}
    return _with_columns(table, joined), digests


def _with_columns(table: pa.Table, columns: dict[str, np.ndarray]) -> pa.Table:
    """The clip table with other integers in some columns."""
    for name, values in columns.items():
        index = CLIP_SCHEMA.get_field_index(name)
        table = table.set_column(index, CLIP_SCHEMA.field(name), pa.array(values, CLIP_SCHEMA.field(name).type))
    return table.cast(CLIP_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    """The content of `clips.parquet`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _records(parts: list[_Part]) -> tuple[list[Skip], dict[str, tuple[int, int]]]:
    """The skipped clips in the order of the whole list, and the state of each file that was read.

    Raises:
        ConfigError: the parts read a file in several states.
        DatasetError: a record is damaged.
    """
    skipped: list[tuple[int, Skip]] = []
    states: dict[str, tuple[int, int]] = {}
    for part in parts:
        left, records = part.positions[part.description.clips :].tolist(), read_skipped(part.folder)
        if len(records) != len(left):
            raise DatasetError(f"{part.folder}: skipped.csv: expected {len(left)} clips, found {len(records)}")
        skipped += zip(left, records, strict=True)
        for path, state in read_sources(part.folder).items():
            if states.setdefault(path, state) != state:
                raise ConfigError(f"{part.folder}: expected files unchanged between the parts, found another {path}")
        if lost := set(part.dataset.columns["path"]) - states.keys():
            raise DatasetError(f"{part.folder}: sources.csv: expected every file, found none for {min(lost)!r:.80}")
    skipped.sort(key=lambda pair: pair[0])
    return [skip for _, skip in skipped], states


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link: no byte is written. Where the file system has none, or is another one, a copy."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)
