"""A store under a condition: some clips with another's sound, silent, shifted or drowned, fewer labels.

The result is a store like any other. Its pictures and sounds are links to the shards of the store it was made from,
which is not touched; a swapped sound is a changed pointer in the clip table. What was done to a clip stands in its
`extra` column, for scoring only: `sound` ("unrelated", "silent", "shifted", "drowned"; "kept" where nothing was done
and nothing is known), `sound_source` (the clip it came from) and `true_label` (of a clip whose label was taken away).
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

from avdistill.data.dataset import clips_of_splits
from avdistill.data.files import LOCK, file_checksum, lock_partial, put_in_place, reason, write_json
from avdistill.data.published import video_of
from avdistill.data.shards import SoundShards
from avdistill.data.store import CLIP_SCHEMA, Store, StoreError, partial_folder
from avdistill.decoding import ConfigError, encode

_CHANGES = ("unrelated", "silent", "shifted", "drowned")
# Came after stores were written: at 0 they are left out of the checksum, which so stays that of the older stores.
_COUNTS = ("labelled_videos", "labelled_per_class")
# What is written into the partial folder. A preparation has other files too, from its first moment on.
_OWN_FILE = re.compile(r"(frames|sound)-\d+\.(npy|jpeg)|clips\.parquet|store\.json(\.tmp)?")


@dataclass(frozen=True)
class Condition:
    """What is done to a store. Shares are of the clips of `split` that have a sound; a clip is changed in one way only.

    Attributes:
        unrelated: share that gets the sound of another clip with a different label. Where a label is not known, not
            even as `true_label`, the other clip is one of another video.
        silent: share that loses its sound.
        shifted: share whose sound is rotated by a quarter to three quarters of its length.
        drowned: share whose sound is mixed with that of another clip (chosen as for `unrelated`) at `snr_db`.
        snr_db: 10 log10(mean own^2 / mean other^2) of drowned clips.
        labels: share of the labelled clips that keep their labels, class by class, at least one of each class. Where
            clips have several labels, about this share of each class: a clip keeps all of its labels or none.
        labelled_videos: number of videos whose clips keep their labels, drawn among those with a labelled clip; the
            clips of all others lose theirs. A class may be left without any labelled clip, as where videos are labelled
            one by one. A smaller number is a subset of a larger one. 0 keeps all.
        labelled_per_class: number of labelled clips of each class that keep their labels; a class with fewer keeps all
            it has. Where clips have several labels it is at least this number, and more of the classes that come with
            rarer ones. A smaller number is a subset of a larger one. 0 keeps all.
        split: whose clips are changed; several splits are joined by "+", as in "train+teacher".
        seed: of all draws.
    """

    unrelated: float = 0.0
    silent: float = 0.0
    shifted: float = 0.0
    drowned: float = 0.0
    snr_db: float = 0.0
    labels: float = 1.0
    labelled_videos: int = 0
    labelled_per_class: int = 0
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for shares that no store can have, and for more than one way to take labels."""
        shares = [getattr(self, name) for name in _CHANGES]
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"condition: {', '.join(_CHANGES)} must be shares that sum to at most 1, got {shares}")
        if not 0 < self.labels <= 1:
            raise ConfigError(f"condition: labels must lie in (0, 1], got {self.labels}")
        if not isfinite(self.snr_db):
            raise ConfigError(f"condition: snr_db must be a finite number, got {self.snr_db}")
        for name in (*_COUNTS, "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"condition: {name} must be at least 0, got {getattr(self, name)}")
        if (self.labels != 1) + (self.labelled_videos != 0) + (self.labelled_per_class != 0) > 1:
            raise ConfigError(f"condition: only one of labels, {', '.join(_COUNTS)} can be given")

    @property
    def name(self) -> str:
        """What differs from the defaults, as `parse_condition` reads it; "clean" where nothing does."""
        changed = [
            f"{each.name}={getattr(self, each.name):{'g' if each.type == 'float' else ''}}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ",".join(changed) or "clean"


def parse_condition(text: str, split: str = "train") -> Condition:
    """A condition from "clean" or from pairs such as "unrelated=0.4,labels=0.25".

    Args:
        text: what is done.
        split: whose clips are changed where the text does not say it.

    Raises:
        ConfigError: an unknown name, or a value that is no number.
    """
    kinds = {each.name: each.type for each in fields(Condition)}
    values: dict[str, Any] = {"split": split}
    for pair in [] if text == "clean" else text.split(","):
        name, _, value = pair.partition("=")
        if name not in kinds or not value:
            raise ConfigError(f"condition {text!r}: expected 'clean' or NAME=VALUE pairs of {', '.join(kinds)}")
        try:
            values[name] = {"float": float, "int": int, "str": str}[str(kinds[name])](value)
        except ValueError:
            kind = "whole number" if kinds[name] == "int" else "number"
            raise ConfigError(f"condition {text!r}: {name} must be a {kind}, got {value!r}") from None
    return Condition(**values)


def apply_condition(store: Store, condition: Condition, out: Path) -> Store:
    """A new store at `out`: the given one under a condition, without its teachers (`teachers/carrying.py` brings them).

    Args:
        store: is not touched; must stay readable where the new one holds symbolic links (other disks).
        condition: what is done.
        out: the new store's folder; returned as it is where it already is exactly this.

    Raises:
        StoreError: `out` holds something else, another process or an interrupted `prepare` is at it, a split or a
            different label is missing, there are fewer labelled videos than asked for, or it cannot be written.
    """
    told = {name: value for name, value in encode(condition).items() if value or name not in _COUNTS}
    if _by_class(condition) and any(len(store.labels[i]) > 1 for i in clips_of_splits(store, condition.split)):
        # Older versions drew each combination of labels for itself: what they wrote must not pass for this.
        told["drawn"] = "each label"
    checksum = hashlib.sha256(json.dumps([store.checksum, told]).encode()).hexdigest()
    folder = partial_folder(out)
    try:
        lock = lock_partial(folder, out)
        if lock is None:
            found = Store(out)
            if found.checksum != checksum:
                raise StoreError(f"{out}: already there, and not this store under the condition {condition.name}")
            return found
        with lock:
            _clear(folder)
            _write(store, condition, folder, checksum)
            put_in_place(folder, out)
    except BlockingIOError:
        raise StoreError(f"{out}: another process is making this store") from None
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {reason(error)}") from error
    return Store(out)


def _clear(folder: Path) -> None:
    """Remove what an interrupted call has left. Anything else may be hours of a preparation, which stays."""
    left = sorted(file for file in folder.iterdir() if file.name != LOCK)
    for file in left:
        if not _OWN_FILE.fullmatch(file.name):
            raise StoreError(
                f"{folder}: {file.name} is in the way, perhaps of an interrupted `prepare`, which the same command "
                "finishes; or remove the folder, or name another"
            )
    for file in left:
        file.unlink()


def _write(store: Store, condition: Condition, folder: Path, checksum: str) -> None:
    rows = store.table.to_pylist()
    for row in rows:
        row["extra"] = dict(row["extra"] or ())
    clips = clips_of_splits(store, condition.split).tolist()
    with closing(SoundShards(folder, _next_shard(store))) as new:
        _change_sounds(store, condition, rows, clips, new)
    _take_labels(store, condition, [rows[i] for i in clips])
    for row in rows:
        row["extra"] = list(row["extra"].items())
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), folder / "clips.parquet")

    description = json.loads((store.folder / "store.json").read_text(encoding="utf-8"))
    kept = {name: digest for name, digest in description["files"].items() if name.startswith(("frames-", "sound-"))}
    for name in kept:
        _link(store.folder / name, folder / name)
    for file in folder.iterdir():
        if file.name not in (LOCK, *kept):
            kept[file.name] = file_checksum(file)
    made_from = {"store": str(store.folder.resolve()), "checksum": store.checksum, **asdict(condition)}
    write_json(
        folder / "store.json",
        {**description, "teachers": {}, "files": kept, "checksum": checksum, "condition": made_from},
    )


def _next_shard(store: Store) -> int:
    """The first number that is free."""
    # By file: one that no clip points into any more is a link too, and to write there is to write into another store.
    return max((int(file.stem.removeprefix("sound-")) for file in store.folder.glob("sound-*.npy")), default=-1) + 1


def _change_sounds(
    store: Store, condition: Condition, rows: list[dict[str, Any]], clips: Sequence[int], new: SoundShards
) -> None:
    """Change the rows in place; sound that no clip has yet goes to `new`."""
    # Links are followed to the table as it was: nobody gets a sound that was itself swapped in.
    own = [dict(row) for row in rows]
    eligible = [i for i in clips if rows[i]["has_sound"] and not rows[i]["silent"]]
    if not eligible and any(getattr(condition, change) for change in _CHANGES):
        raise StoreError(f"{store.folder}: no clip with sound in split {condition.split!r}")
    rng = np.random.default_rng([condition.seed, 4])
    order = [eligible[i] for i in rng.permutation(len(eligible))]
    donors = _Donors(own, eligible)
    first = 0
    for change in _CHANGES:
        count = round(getattr(condition, change) * len(order))
        for i in order[first : first + count]:
            row, extra = rows[i], rows[i]["extra"]
            extra.pop("snr_db", None)
            if change == "unrelated":
                donor = own[donors.draw(i, rng, store)]
                row |= {name: donor[name] for name in ("sound_shard", "sound_offset", "sound_count")}
                extra["sound_source"] = donor["id"]
            elif change == "silent":
                row |= {"has_sound": False, "sound_shard": 0, "sound_offset": 0, "sound_count": 0}
                extra["sound_source"] = "no_stream"
            else:
                sound = store.sound(i)
                extra["sound_source"] = row["id"]
                if change == "shifted":
                    sound = np.roll(sound, int(len(sound) * rng.uniform(0.25, 0.75)))
                else:
                    donor_row = donors.draw(i, rng, store)
                    sound = _drown(sound, store.sound(donor_row), condition.snr_db)
                    extra |= {"sound_source": own[donor_row]["id"], "snr_db": f"{condition.snr_db:g}"}
                row |= new.append(sound)
            extra["sound"] = change
        first += count
    for i in order:
        rows[i]["extra"].setdefault("sound", "kept")


class _Donors:
    """Whose sound a clip may get."""

    def __init__(self, rows: list[dict[str, Any]], eligible: list[int]) -> None:
        self.rows, self.eligible = rows, np.array(eligible)
        self.labels = {i: _known_labels(rows[i]) for i in eligible}

    def draw(self, clip: int, rng: np.random.Generator, store: Store) -> int:
        """A random clip with a different label (of another video, where one of the labels is not known)."""
        mine, video = self.labels[clip], video_of(self.rows[clip]["path"])
        for other in rng.permutation(self.eligible):
            theirs = self.labels[int(other)]
            if (mine.isdisjoint(theirs)) if mine and theirs else video_of(self.rows[other]["path"]) != video:
                return int(other)
        raise StoreError(f"{store.folder}: no clip has another label than {self.rows[clip]['id']}, whose sound to take")


def _known_labels(row: dict[str, Any]) -> set[str]:
    return set(row["labels"]) or {label for label in row["extra"].get("true_label", "").split("|") if label}


def _drown(own: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """int16 (S,): `own` plus `other` (repeated or cut) at the ratio; turned down whole where beyond full scale."""
    signal, noise = own.astype(np.float64), np.resize(other, len(own)).astype(np.float64)
    power = float(np.mean(noise**2))
    gain = np.sqrt(float(np.mean(signal**2)) / power * 10 ** (-snr_db / 10)) if power else 0.0
    mixed = signal + gain * noise
    return np.round(mixed * min(1.0, 32767 / max(1.0, float(np.abs(mixed).max())))).astype(np.int16)


def _by_class(condition: Condition) -> bool:
    return bool(condition.labelled_per_class) or condition.labels != 1


def _take_labels(store: Store, condition: Condition, rows: list[dict[str, Any]]) -> None:
    labelled = [row for row in rows if row["labels"]]
    if condition.labelled_videos:
        losing = _of_other_videos(store, condition, labelled)
    elif not _by_class(condition):
        losing = []
    elif any(len(row["labels"]) > 1 for row in labelled):
        losing = _beyond_each_label(condition, labelled)
    else:
        losing = _beyond_each_class(condition, labelled)
    for row in losing:
        row["extra"].setdefault("true_label", "|".join(row["labels"]))
        row["labels"] = []


def _of_other_videos(store: Store, condition: Condition, labelled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    videos = sorted({video_of(row["path"]) for row in labelled})
    if condition.labelled_videos > len(videos):
        raise StoreError(
            f"{store.folder}: {condition.labelled_videos} labelled videos asked for, split {condition.split!r} has "
            f"{len(videos)}"
        )
    drawn = np.random.default_rng([condition.seed, 6]).permutation(videos)[: condition.labelled_videos]
    kept = set(drawn.tolist())
    return [row for row in labelled if video_of(row["path"]) not in kept]


def _beyond_each_class(condition: Condition, labelled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where every clip has one label: a draw from each class."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in labelled:
        groups.setdefault(row["labels"][0], []).append(row)
    rng = np.random.default_rng([condition.seed, 5])
    losing: list[dict[str, Any]] = []
    for _, members in sorted(groups.items()):
        kept = condition.labelled_per_class or max(1, round(condition.labels * len(members)))
        losing.extend(members[i] for i in rng.permutation(len(members))[kept:])
    return losing


def _beyond_each_label(condition: Condition, labelled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where clips have several labels: each class is filled up in turn, the rarest first.

    The order is that of iterative stratification (Sechidis et al. 2011): the frequent classes get clips with the rare
    ones anyway, and what they still lack can be found without those. Of the clips of a class, those are taken first
    that make the fewest other classes larger than was asked for, in random order.
    """
    labels = [sorted(set(row["labels"])) for row in labelled]
    place = np.random.default_rng([condition.seed, 5]).permutation(len(labelled)).tolist()
    members: dict[str, list[int]] = {}
    for i, names in enumerate(labels):
        for name in names:
            members.setdefault(name, []).append(i)
    sizes = {name: len(clips) for name, clips in members.items()}
    kept: set[int] = set()
    counts = dict.fromkeys(members, 0)
    for wanted in _targets(condition, sizes):
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
    return [row for i, row in enumerate(labelled) if i not in kept]


def _targets(condition: Condition, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """How many clips each class is to be filled up to, one after the other."""
    if not condition.labelled_per_class:
        yield {name: max(1, round(condition.labels * size)) for name, size in sizes.items()}
    # A number is come to one by one: what it keeps is then among what a larger number keeps.
    for level in range(1, min(condition.labelled_per_class, max(sizes.values())) + 1):
        yield {name: min(level, size) for name, size in sizes.items()}


def _link(source: Path, target: Path) -> None:
    """A hard link, which outlives the other name; on another disk a symbolic one."""
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    target.symlink_to(source.resolve())
