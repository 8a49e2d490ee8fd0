"""Near-duplicates of a dataset: clips of different source videos with the same audio or the same moving frames.

Re-uploads are encoded again, scaled, louder or cut elsewhere. So what is compared is how a coarse fingerprint changes
over time, at the best shift of one clip against the other. Only clips that are alike on average are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.progress import OnProgress, Progress

# Two fingerprints with at least this correlation are of the same recording.
SAME = 0.9
# Clips that are compared with each clip, the most alike on average.
_CANDIDATES = 10
_AUDIO_HZ = 20.0
_BANDS = 16
_GRID = 8
# A shorter overlap, or one that hardly changes, is no evidence.
_FEWEST = {"audio": 20, "video": 4}
_LEAST_CHANGE = {"audio": 0.5, "video": 1.0}
_NOISE_FLOOR = 1e-3


@dataclass(frozen=True)
class Duplicate:
    """Two clips, as rows of the dataset, that share their audio, their video or both, and their correlations."""

    clips: tuple[int, int]
    audio: float | None
    video: float | None


@dataclass(frozen=True)
class _Fingerprint:
    clip: int
    changes: np.ndarray  # (T, D), each column without its mean
    average: np.ndarray  # (D,)


def find_duplicates(dataset: ClipDataset, *, on_progress: OnProgress | None = None) -> list[Duplicate]:
    """All pairs of clips of different groups with the same audio or frames; pairs of two splits come first.

    Silent clips have no audio to share, still ones no video.
    """
    found: dict[tuple[int, int], dict[str, float]] = {}
    c = dataset.columns
    modalities: tuple[Literal["audio", "video"], ...] = ("audio", "video")
    for done, modality in enumerate(modalities):
        prints = []
        for clip in range(len(dataset)):
            if (one := _fingerprint(dataset, clip, modality)) is not None:
                prints.append(one)
            if on_progress is not None:
                on_progress(Progress(done * len(dataset) + clip + 1, 2 * len(dataset), modality))
        for a, b in _candidates(prints):
            if c["group"][a.clip] != c["group"][b.clip]:
                same = correlation(a.changes, b.changes, _FEWEST[modality])
                if same >= SAME:
                    found.setdefault((a.clip, b.clip), {})[modality] = same
    pairs = [Duplicate(clips, same.get("audio"), same.get("video")) for clips, same in found.items()]
    return sorted(pairs, key=lambda pair: (c["split"][pair.clips[0]] == c["split"][pair.clips[1]], pair.clips))


def _fingerprint(dataset: ClipDataset, clip: int, modality: Literal["audio", "video"]) -> _Fingerprint | None:
    c = dataset.columns
    if not c[f"has_{modality}"][clip] or (modality == "audio" and c["silent"][clip]):
        return None
    values = _bands(dataset.audio(clip), dataset.sample_rate_hz) if modality == "audio" else _cells(dataset, clip)
    average = values.mean(0)
    changes = values - average
    if len(values) < _FEWEST[modality] or changes.std() < _LEAST_CHANGE[modality]:
        return None
    return _Fingerprint(clip, changes, average - average.mean())


def _bands(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """(T, 16): logarithm of the energy in bands of equal width on a logarithmic scale, 20 times a second."""
    size = int(sample_rate_hz / _AUDIO_HZ)
    count = len(audio) // size
    slices = np.asarray(audio[: count * size], np.float32).reshape(count, size) / 32767 * np.hanning(size)
    power = np.abs(np.fft.rfft(slices, axis=1)) ** 2
    edges = np.unique(np.geomspace(2, power.shape[1], _BANDS + 1).astype(int))
    energy = np.add.reduceat(power, edges[:-1], axis=1)
    # Below 60 dB under the loudest moment there is what a codec leaves.
    return np.log(energy + _NOISE_FLOOR**2 * energy.max() + 1e-12)


def _cells(dataset: ClipDataset, clip: int) -> np.ndarray:
    """(T, 64): the mean gray level of each cell of an 8 x 8 grid, frame by frame."""
    images = torch.from_numpy(np.array(dataset.frames(clip))).float().mean(3)
    return torch.nn.functional.adaptive_avg_pool2d(images[:, None], _GRID).flatten(1).double().numpy()


def _candidates(prints: list[_Fingerprint]) -> Iterator[tuple[_Fingerprint, _Fingerprint]]:
    """Every pair in which one is among the nearest of the other by its average, once."""
    from sklearn.neighbors import NearestNeighbors

    if len(prints) < 2:
        return
    averages = np.stack([each.average for each in prints])
    neighbors = NearestNeighbors(n_neighbors=min(_CANDIDATES + 1, len(prints))).fit(averages)
    nearest = neighbors.kneighbors(averages, return_distance=False)
    for i, j in sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest) for j in row.tolist() if i != j}):
        yield prints[i], prints[j]


def correlation(a: np.ndarray, b: np.ndarray, fewest: int) -> float:
    """The largest correlation of two sequences (T, D), (U, D) over all shifts that overlap by half the shorter one.

    Args:
        a, b: columns without their mean.
        fewest: frames that overlap at least.
    """
    T, U = len(a), len(b)
    least = max(fewest, (min(T, U) + 1) // 2)
    size = 1 << (T + U - 1).bit_length()
    # products[s] = sum over t of a[t + s] . b[t], for all shifts at once; the norms are those of the overlap.
    products = np.fft.irfft((np.fft.rfft(a, size, axis=0) * np.fft.rfft(b, size, axis=0).conj()).sum(1), size)
    energy_a, energy_b = (np.concatenate([[0.0], np.cumsum((x * x).sum(1))]) for x in (a, b))
    best = -1.0
    for shift in range(least - U, T - least + 1):
        first, last = max(0, shift), min(T, U + shift)
        norm = (energy_a[last] - energy_a[first]) * (energy_b[last - shift] - energy_b[first - shift])
        if norm > 0:
            best = max(best, float(products[shift % size] / np.sqrt(norm)))
    return best


def duplicate_report(dataset: ClipDataset, pairs: Sequence[Duplicate]) -> dict[str, Any]:
    """`pairs` and those `across_splits` counted, and the first 20 as (clip and split, clip and split, what is same)."""
    c = dataset.columns
    rows = []
    for pair in pairs:
        clips = [{"clip": str(c["id"][clip]), "split": str(c["split"][clip])} for clip in pair.clips]
        same = [name for name, value in (("audio", pair.audio), ("video", pair.video)) if value is not None]
        rows.append((clips[0], clips[1], " and ".join(same)))
    across = sum(first["split"] != second["split"] for first, second, _ in rows)
    return {"pairs": len(rows), "across_splits": across, "examples": rows[:20]}
