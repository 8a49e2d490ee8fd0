"""Mismatched, dropped, time-shifted and noisy audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avdistill.corruption.spec import _CHANGES, Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.shards import AudioShards
from avdistill.errors import DatasetError


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
        mine, video = self.labels[clip], self.rows[clip]["group"]
        for other in rng.permutation(self.eligible):
            theirs = self.labels[int(other)]
            if (mine.isdisjoint(theirs)) if mine and theirs else self.rows[other]["group"] != video:
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
