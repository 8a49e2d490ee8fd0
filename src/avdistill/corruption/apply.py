"""A dataset under a corruption: some clips with another's audio, dropped, time_shifted or noisy, fewer labels.

The result is a dataset like any other. Its images and audio are links to the shards of the dataset it was made from,
which is not touched; a swapped audio is a changed pointer in the clip table. What was done to a clip stands in its
`extra` column, for scoring only: `audio` ("mismatched", "dropped", "time_shifted", "noisy"; "kept" where nothing was
done
and nothing is known), `audio_source` (the clip it came from) and `true_label` (of a clip whose label was taken away).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avdistill.annotations.catalogs import video_of
from avdistill.config_io import ConfigError, encode
from avdistill.dataset.batches import clips_of_splits
from avdistill.dataset.clip_dataset import CLIP_SCHEMA, ClipDataset, DatasetError, staging_dir
from avdistill.dataset.shards import AudioShards
from avdistill.fsio import LOCK, acquire_staging_dir, commit, file_checksum, reason, write_json

_CHANGES = ("mismatched", "dropped", "time_shifted", "noisy")
_COUNTS = ("labeled_videos", "labeled_per_class")
# What is written into the partial folder. A preparation has other files too, from its first moment on.
_OWN_FILE = re.compile(r"(frames|audio)-\d+\.(npy|jpeg)|clips\.parquet|dataset\.json(\.tmp)?")


@dataclass(frozen=True)
class Corruption:
    """What is done to a dataset. Shares are of the clips of `split` that have audio; a clip is changed in one way only.

    Attributes:
        mismatched: share that gets the audio of another clip with a different label. Where a label is not known, not
            even as `true_label`, the other clip is one of another video.
        dropped: share that loses its audio.
        time_shifted: share whose audio is rotated by a quarter to three quarters of its length.
        noisy: share whose audio is mixed with that of another clip (chosen as for `mismatched`) at `snr_db`.
        snr_db: 10 log10(mean own^2 / mean other^2) of noisy clips.
        label_fraction: share of the labeled clips that keep their labels, class by class, at least one of each
            class. Where
            clips have several labels, about this share of each class: a clip keeps all of its labels or none.
        labeled_videos: number of videos whose clips keep their labels, drawn among those with a labeled clip; the
            clips of all others lose theirs. A class may be left without any labeled clip, as where videos are labeled
            one by one. A smaller number is a subset of a larger one. 0 keeps all.
        labeled_per_class: number of labeled clips of each class that keep their labels; a class with fewer keeps all
            it has. Where clips have several labels it is at least this number, and more of the classes that come with
            rarer ones. A smaller number is a subset of a larger one. 0 keeps all.
        split: whose clips are changed; several splits are joined by "+", as in "train+teacher".
        seed: of all draws.
    """

    mismatched: float = 0.0
    dropped: float = 0.0
    time_shifted: float = 0.0
    noisy: float = 0.0
    snr_db: float = 0.0
    label_fraction: float = 1.0
    labeled_videos: int = 0
    labeled_per_class: int = 0
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for shares that no dataset can have, and for more than one way to take labels."""
        shares = [getattr(self, name) for name in _CHANGES]
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"corruption: {', '.join(_CHANGES)} must be shares that sum to at most 1, got {shares}")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"corruption: label_fraction must lie in (0, 1], got {self.label_fraction}")
        if not isfinite(self.snr_db):
            raise ConfigError(f"corruption: snr_db must be a finite number, got {self.snr_db}")
        for name in (*_COUNTS, "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"corruption: {name} must be at least 0, got {getattr(self, name)}")
        if (self.label_fraction != 1) + (self.labeled_videos != 0) + (self.labeled_per_class != 0) > 1:
            raise ConfigError(f"corruption: only one of label_fraction, {', '.join(_COUNTS)} can be given")

    @property
    def name(self) -> str:
        """What differs from the defaults, as `parse_corruption` reads it; "clean" where nothing does."""
        changed = [
            f"{each.name}={getattr(self, each.name):{'g' if each.type == 'float' else ''}}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ",".join(changed) or "clean"


def parse_corruption(text: str, split: str = "train") -> Corruption:
    """A corruption from "clean" or from pairs such as "mismatched=0.4,label_fraction=0.25".

    Args:
        text: what is done.
        split: whose clips are changed where the text does not say it.

    Raises:
        ConfigError: an unknown name, or a value that is no number.
    """
    kinds = {each.name: each.type for each in fields(Corruption)}
    values: dict[str, Any] = {"split": split}
    for pair in [] if text == "clean" else text.split(","):
        name, _, value = pair.partition("=")
        if name not in kinds or not value:
            raise ConfigError(f"corruption {text!r}: expected 'clean' or NAME=VALUE pairs of {', '.join(kinds)}")
        try:
            values[name] = {"float": float, "int": int, "str": str}[str(kinds[name])](value)
        except ValueError:
            kind = "whole number" if kinds[name] == "int" else "number"
            raise ConfigError(f"corruption {text!r}: {name} must be a {kind}, got {value!r}") from None
    return Corruption(**values)


def corrupt(dataset: ClipDataset, corruption: Corruption, out: Path) -> ClipDataset:
    """A new dataset at `out`: the given one under a corruption, without its teachers (`teachers/transfer.py` brings
    them).

    Args:
        dataset: is not touched; must stay readable where the new one holds symbolic links (other disks).
        corruption: what is done.
        out: the new dataset's folder; returned as it is where it already is exactly this.

    Raises:
        DatasetError: `out` holds something else, another process or an interrupted `prepare` is at it, a split or a
            different label is missing, there are fewer labeled videos than asked for, or it cannot be written.
    """
    checksum = hashlib.sha256(json.dumps([dataset.checksum, encode(corruption)]).encode()).hexdigest()
    folder = staging_dir(out)
    try:
        lock = acquire_staging_dir(folder, out)
        if lock is None:
            found = ClipDataset(out)
            if found.checksum != checksum:
                raise DatasetError(f"{out}: already there, and not this dataset under the corruption {corruption.name}")
            return found
        with lock:
            _clear(folder)
            _write(dataset, corruption, folder, checksum)
            commit(folder, out)
    except BlockingIOError:
        raise DatasetError(f"{out}: another process is making this dataset") from None
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written: {reason(error)}") from error
    return ClipDataset(out)


def _clear(folder: Path) -> None:
    """Remove what an interrupted call has left. Anything else may be hours of a preparation, which stays."""
    left = sorted(file for file in folder.iterdir() if file.name != LOCK)
    for file in left:
        if not _OWN_FILE.fullmatch(file.name):
            raise DatasetError(
                f"{folder}: {file.name} is in the way, perhaps of an interrupted `prepare`, which the same command "
                "finishes; or remove the folder, or name another"
            )
    for file in left:
        file.unlink()


def _write(dataset: ClipDataset, corruption: Corruption, folder: Path, checksum: str) -> None:
    rows = dataset.table.to_pylist()
    for row in rows:
        row["extra"] = dict(row["extra"] or ())
    clips = clips_of_splits(dataset, corruption.split).tolist()
    with closing(AudioShards(folder, _next_shard(dataset))) as new:
        _change_audio(dataset, corruption, rows, clips, new)
    _take_labels(dataset, corruption, [rows[i] for i in clips])
    for row in rows:
        row["extra"] = list(row["extra"].items())
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), folder / "clips.parquet")

    description = json.loads((dataset.folder / "dataset.json").read_text(encoding="utf-8"))
    kept = {name: digest for name, digest in description["files"].items() if name.startswith(("frames-", "audio-"))}
    for name in kept:
        _link(dataset.folder / name, folder / name)
    for file in folder.iterdir():
        if file.name not in (LOCK, *kept):
            kept[file.name] = file_checksum(file)
    made_from = {"dataset": str(dataset.folder.resolve()), "checksum": dataset.checksum, **asdict(corruption)}
    write_json(
        folder / "dataset.json",
        {**description, "teachers": {}, "files": kept, "checksum": checksum, "corruption": made_from},
    )


def _next_shard(dataset: ClipDataset) -> int:
    """The first number that is free."""
    # By file: one that no clip points into any more is a link too, and to write there is to write into another dataset.
    return max((int(file.stem.removeprefix("audio-")) for file in dataset.folder.glob("audio-*.npy")), default=-1) + 1


def _change_audio(
    dataset: ClipDataset, corruption: Corruption, rows: list[dict[str, Any]], clips: Sequence[int], new: AudioShards
) -> None:
    """Change the rows in place; audio that no clip has yet goes to `new`."""
    # Links are followed to the table as it was: nobody gets audio that was itself swapped in.
    own = [dict(row) for row in rows]
    eligible = [i for i in clips if rows[i]["has_audio"] and not rows[i]["silent"]]
    if not eligible and any(getattr(corruption, change) for change in _CHANGES):
        raise DatasetError(f"{dataset.folder}: no clip with audio in split {corruption.split!r}")
    rng = np.random.default_rng([corruption.seed, 4])
    order = [eligible[i] for i in rng.permutation(len(eligible))]
    donors = _Donors(own, eligible)
    first = 0
    for change in _CHANGES:
        count = round(getattr(corruption, change) * len(order))
        for i in order[first : first + count]:
            row, extra = rows[i], rows[i]["extra"]
            extra.pop("snr_db", None)
            if change == "mismatched":
                donor = own[donors.draw(i, rng, dataset)]
                row |= {name: donor[name] for name in ("audio_shard", "audio_offset", "audio_count")}
                extra["audio_source"] = donor["id"]
            elif change == "dropped":
                row |= {"has_audio": False, "audio_shard": 0, "audio_offset": 0, "audio_count": 0}
                extra["audio_source"] = "no_stream"
            else:
                audio = dataset.audio(i)
                extra["audio_source"] = row["id"]
                if change == "time_shifted":
                    audio = np.roll(audio, int(len(audio) * rng.uniform(0.25, 0.75)))
                else:
                    donor_row = donors.draw(i, rng, dataset)
                    audio = _drown(audio, dataset.audio(donor_row), corruption.snr_db)
                    extra |= {"audio_source": own[donor_row]["id"], "snr_db": f"{corruption.snr_db:g}"}
                row |= new.append(audio)
            extra["audio"] = change
        first += count
    for i in order:
        rows[i]["extra"].setdefault("audio", "kept")


class _Donors:
    """Whose audio a clip may get."""

    def __init__(self, rows: list[dict[str, Any]], eligible: list[int]) -> None:
        self.rows, self.eligible = rows, np.array(eligible)
        self.labels = {i: _known_labels(rows[i]) for i in eligible}

    def draw(self, clip: int, rng: np.random.Generator, dataset: ClipDataset) -> int:
        """A random clip with a different label (of another video, where one of the labels is not known)."""
        mine, video = self.labels[clip], video_of(self.rows[clip]["path"])
        for other in rng.permutation(self.eligible):
            theirs = self.labels[int(other)]
            if (mine.isdisjoint(theirs)) if mine and theirs else video_of(self.rows[other]["path"]) != video:
                return int(other)
        raise DatasetError(
            f"{dataset.folder}: no clip has another label than {self.rows[clip]['id']}, whose audio to take"
        )


def _known_labels(row: dict[str, Any]) -> set[str]:
    return set(row["labels"]) or {label for label in row["extra"].get("true_label", "").split("|") if label}


def _drown(own: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """int16 (S,): `own` plus `other` (repeated or cut) at the ratio; turned down whole where beyond full scale."""
    signal, noise = own.astype(np.float64), np.resize(other, len(own)).astype(np.float64)
    power = float(np.mean(noise**2))
    gain = np.sqrt(float(np.mean(signal**2)) / power * 10 ** (-snr_db / 10)) if power else 0.0
    mixed = signal + gain * noise
    return np.round(mixed * min(1.0, 32767 / max(1.0, float(np.abs(mixed).max())))).astype(np.int16)


def _by_class(corruption: Corruption) -> bool:
    return bool(corruption.labeled_per_class) or corruption.label_fraction != 1


def _take_labels(dataset: ClipDataset, corruption: Corruption, rows: list[dict[str, Any]]) -> None:
    labeled = [row for row in rows if row["labels"]]
    if corruption.labeled_videos:
        losing = _of_other_videos(dataset, corruption, labeled)
    elif not _by_class(corruption):
        losing = []
    elif any(len(row["labels"]) > 1 for row in labeled):
        losing = _beyond_each_label(corruption, labeled)
    else:
        losing = _beyond_each_class(corruption, labeled)
    for row in losing:
        row["extra"].setdefault("true_label", "|".join(row["labels"]))
        row["labels"] = []


def _of_other_videos(
    dataset: ClipDataset, corruption: Corruption, labeled: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    videos = sorted({video_of(row["path"]) for row in labeled})
    if corruption.labeled_videos > len(videos):
        raise DatasetError(
            f"{dataset.folder}: {corruption.labeled_videos} labeled videos asked for, split {corruption.split!r} has "
            f"{len(videos)}"
        )
    drawn = np.random.default_rng([corruption.seed, 6]).permutation(videos)[: corruption.labeled_videos]
    kept = set(drawn.tolist())
    return [row for row in labeled if video_of(row["path"]) not in kept]


def _beyond_each_class(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where every clip has one label: a draw from each class."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in labeled:
        groups.setdefault(row["labels"][0], []).append(row)
    rng = np.random.default_rng([corruption.seed, 5])
    losing: list[dict[str, Any]] = []
    for _, members in sorted(groups.items()):
        kept = corruption.labeled_per_class or max(1, round(corruption.label_fraction * len(members)))
        losing.extend(members[i] for i in rng.permutation(len(members))[kept:])
    return losing


def _beyond_each_label(corruption: Corruption, labeled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where clips have several labels: each class is filled up in turn, the rarest first.

    The order is that of iterative stratification (Sechidis et al. 2011): the frequent classes get clips with the rare
    ones anyway, and what they still lack can be found without those. Of the clips of a class, those are taken first
    that make the fewest other classes larger than was asked for, in random order.
    """
    labels = [sorted(set(row["labels"])) for row in labeled]
    place = np.random.default_rng([corruption.seed, 5]).permutation(len(labeled)).tolist()
    members: dict[str, list[int]] = {}
    for i, names in enumerate(labels):
        for name in names:
            members.setdefault(name, []).append(i)
    sizes = {name: len(clips) for name, clips in members.items()}
    kept: set[int] = set()
    counts = dict.fromkeys(members, 0)
    for wanted in _targets(corruption, sizes):
        for name in sorted((name for name in sizes if counts[name] < wanted[name]), key=lambda n: (sizes[n], n)):
            waiting = [(0, place[i], i) for i in members[name] if i not in kept]
            heapq.heapify(waiting)
            while counts[name] < wanted[name]:
                known, rank, i = heapq.heappop(waiting)
                full = sum(counts[other] >= wanted[other] for other in labels[i])
                if full > known:  # classes only become full: a number that is out of date was too small
                    heapq.heappush(waiting, (full, rank, i))
                    continue
                kept.add(i)
                for other in labels[i]:
                    counts[other] += 1
    return [row for i, row in enumerate(labeled) if i not in kept]


def _targets(corruption: Corruption, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """How many clips each class is to be filled up to, one after the other."""
    if not corruption.labeled_per_class:
        yield {name: max(1, round(corruption.label_fraction * size)) for name, size in sizes.items()}
    # A number is come to one by one: what it keeps is then among what a larger number keeps.
    for level in range(1, min(corruption.labeled_per_class, max(sizes.values())) + 1):
        yield {name: min(level, size) for name, size in sizes.items()}


def _link(source: Path, target: Path) -> None:
    """A hard link, which outlives the other name; on another disk a symbolic one."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    target.symlink_to(source.resolve())
