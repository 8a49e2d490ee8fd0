"""Mismatched, dropped, time-shifted and noisy audio."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from avdistill.corruption.spec import AUDIO_CHANGES, Corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.shards import AudioShards
from avdistill.errors import DatasetError
from avdistill.synthetic.audio import scale_to_snr

_DRAWS = 8


def corrupt_audio(
    dataset: ClipDataset, corruption: Corruption, rows: list[dict[str, Any]], clips: Sequence[int], new: AudioShards
) -> None:
    """Change the audio of a share of the clips; draws depend on the seed and the rows alone.

    Args:
        rows: of the whole clip table, changed in place: where the audio lies, and the truth in `extra`.
        clips: numbers of the rows that may be changed.
        new: receives audio that no clip of the dataset has, that of time-shifted and noisy clips.

    Raises:
        DatasetError: no clip has audio, or no other clip has a different label.
    """
    source_rows = [dict(row) for row in rows]  # donors are looked up in the table before any change
    eligible = [i for i in clips if rows[i]["has_audio"] and not rows[i]["silent"]]
    if not eligible and any(getattr(corruption, change) for change in AUDIO_CHANGES):
        raise DatasetError(f"{dataset.folder}: no clip with audio in split {corruption.split!r}")
    rng = np.random.default_rng([corruption.seed, 4])
    order = [eligible[i] for i in rng.permutation(len(eligible))]
    donors = _Donors(source_rows, eligible)
    first = 0
    for change in AUDIO_CHANGES:
        count = round(getattr(corruption, change) * len(order))
        for i in order[first : first + count]:
            row, extra = rows[i], rows[i]["extra"]
            extra.pop("snr_db", None)
            if change == "mismatched":
                donor = source_rows[donors.draw(i, rng, dataset)]
                row |= {name: donor[name] for name in ("audio_shard", "audio_offset", "audio_count")}
                extra["audio_source"] = donor["id"]
            elif change == "dropped":
                row |= {"has_audio": False, "audio_shard": 0, "audio_offset": 0, "audio_count": 0}
                extra["audio_source"] = "no_stream"
            elif change == "time_shifted":
                audio = dataset.audio(i)
                row |= new.append(np.roll(audio, int(len(audio) * rng.uniform(0.25, 0.75))))
                extra["audio_source"] = row["id"]
            else:
                donor_number = donors.draw(i, rng, dataset)
                row |= new.append(_mix(dataset.audio(i), dataset.audio(donor_number), corruption.snr_db))
                extra |= {"audio_source": source_rows[donor_number]["id"], "snr_db": f"{corruption.snr_db:g}"}
            extra["audio"] = change
        first += count
    for i in order:
        rows[i]["extra"].setdefault("audio", "kept")


class _Donors:
    """The clips whose audio another clip may get."""

    def __init__(self, rows: list[dict[str, Any]], eligible: list[int]) -> None:
        self.rows, self.eligible = rows, np.array(eligible)
        self.labels = {i: _known_labels(rows[i]) for i in eligible}

    def draw(self, clip: int, rng: np.random.Generator, dataset: ClipDataset) -> int:
        """A random clip with a different label, or of another source video if one of the labels is unknown."""
        # Almost always one of the first draws fits; all clips in random order, for one that few fit, are as random.
        for other in itertools.chain(rng.choice(self.eligible, _DRAWS), _permuted(self.eligible, rng)):
            if self._fits(clip, int(other)):
                return int(other)
        raise DatasetError(
            f"{dataset.folder}: no clip has another label than {self.rows[clip]['id']}, whose audio to take"
        )

    def _fits(self, clip: int, other: int) -> bool:
        labels, others = self.labels[clip], self.labels[other]
        if labels and others:
            return labels.isdisjoint(others)
        return bool(self.rows[other]["group"] != self.rows[clip]["group"])


def _permuted(clips: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """All of them in random order, drawn when the first is asked for."""
    yield from rng.permutation(clips).tolist()


def _known_labels(row: dict[str, Any]) -> set[str]:
    return set(row["labels"]) or {label for label in row["extra"].get("true_label", "").split("|") if label}


def _mix(own: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """int16 (S,): `own` plus `other` (repeated or cut to its length) at the ratio, scaled down if beyond full scale."""
    signal, noise = own.astype(np.float64), np.resize(other, len(own)).astype(np.float64)
    mixed = signal + scale_to_snr(signal, noise, snr_db)
    return np.round(mixed * min(1.0, 32767 / max(1.0, float(np.abs(mixed).max())))).astype(np.int16)
