"""Near-duplicates of a dataset: clips of different source videos with the same video or the same audio.

Re-uploads are encoded again, scaled, brighter, louder or cut elsewhere. So small color images, and the energy of the
audio in bands, are compared as sequences: how they change over time, at the best shift of one clip against the other.
Of video, the images themselves must agree at that shift too: two cameras on one field see similar changes. Each clip is
compared with the few that are most alike on average. Neither mirrored video, nor another speed, nor audio mixed over
other audio is found, and clips that hardly change are compared with none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.progress import OnProgress, Progress

# Correlations of the same audio, and of the changes and the images themselves of the same video. Copies that were
# encoded again reach 0.93 and 0.98, other clips 0.85 and 0.78.
SAME_AUDIO = 0.9
SAME_CHANGES, SAME_IMAGES = 0.8, 0.9
# Clips that are compared with each clip, the most alike on average.
_CANDIDATES = 10
_IMAGES_PER_SECOND, _IMAGE = 8, (12, 16)
_USUAL_FPS = 25.0  # of a dataset with every frame of its videos
_BAND_HZ, _BANDS, _EDGES_HZ = 32.0, 32, (200.0, 4000.0)
# The fourth root of a power: a codec changes the quietest bands most, and a logarithm would show nothing else.
_COMPRESSION = 0.25
# Rows that two clips share at least, a second of audio; of a longer clip only the beginning is compared.
_FEWEST = {"video": 4, "audio": 32}
_LONGEST_SECONDS = 120
# Gray levels, and shares of the clip's loudest band: less change is noise.
_LEAST_CHANGE = {"video": 1.0, "audio": 0.01}
# Of the clip's usual change, in the part that two clips share.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Duplicate:
    """Two clips of different groups, as rows of the dataset, the smaller first, and what is the same."""

    clips: tuple[int, int]
    audio: bool
    video: bool

    @property
    def same(self) -> str:
        """In words: "audio", "video" or "audio and video"."""
        return " and ".join(name for name in ("audio", "video") if getattr(self, name))


def find_duplicates(dataset: ClipDataset, *, on_progress: OnProgress | None = None) -> list[Duplicate]:
    """All pairs of clips of different groups with the same audio or video; pairs of two splits come first.

    Args:
        dataset: all of it is read.
        on_progress: called after each clip, for each modality.
    """
    c = dataset.columns
    found: dict[tuple[int, int], set[str]] = {}
    modalities: tuple[Literal["audio", "video"], ...] = ("audio", "video")
    for done, modality in enumerate(modalities):
        sequences: dict[int, np.ndarray] = {}
        for clip in range(len(dataset)):
            if (sequence := _sequence(dataset, clip, modality)) is not None:
                sequences[clip] = sequence
            if on_progress is not None:
                on_progress(Progress(done * len(dataset) + clip + 1, 2 * len(dataset), modality))
        for pair in _candidates(sequences):
            if c["group"][pair[0]] != c["group"][pair[1]] and _is_same(sequences, pair, modality):
                found.setdefault(pair, set()).add(modality)
    pairs = [Duplicate(clips, "audio" in same, "video" in same) for clips, same in found.items()]
    return sorted(pairs, key=lambda pair: (c["split"][pair.clips[0]] == c["split"][pair.clips[1]], pair.clips))


def _sequence(dataset: ClipDataset, clip: int, modality: Literal["audio", "video"]) -> np.ndarray | None:
    """(T, D) of a clip, or None where there is nothing to compare."""
    c = dataset.columns
    if not c[f"has_{modality}"][clip] or (modality == "audio" and c["silent"][clip]):
        return None
    values = _bands(dataset.audio(clip), dataset.sample_rate_hz) if modality == "audio" else _images(dataset, clip)
    if len(values) < _FEWEST[modality] or values.std(0).mean() < _LEAST_CHANGE[modality]:
        return None
    return values


def _images(dataset: ClipDataset, clip: int) -> np.ndarray:
    """int16 (T, 576): small color images, each color without its mean, about eight a second."""
    frames, fps = dataset.frames(clip), dataset.fps or _USUAL_FPS
    chosen = range(0, min(len(frames), int(_LONGEST_SECONDS * fps)), max(1, round(fps / _IMAGES_PER_SECOND)))
    small = [_small(torch.from_numpy(np.array(frames[i]))) for i in chosen]
    return torch.stack(small).flatten(1).numpy()


def _small(frame: torch.Tensor) -> torch.Tensor:
    image = torch.nn.functional.interpolate(frame.permute(2, 0, 1)[None].float(), _IMAGE, mode="area")[0]
    return (image - image.mean((1, 2), keepdim=True)).round().short()


def _bands(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """float32 (T, 32): compressed energy in bands on a logarithmic scale, as a share of the largest, 32 a second."""
    hop = round(sample_rate_hz / _BAND_HZ)
    samples = torch.from_numpy(np.array(audio[: _LONGEST_SECONDS * sample_rate_hz])).float()
    if len(samples) < 2 * hop:
        return np.zeros((0, _BANDS), np.float32)
    window = torch.hann_window(2 * hop)
    power = torch.stft(samples, 2 * hop, hop, window=window, center=False, return_complex=True).abs().square()
    edges = np.geomspace(*_EDGES_HZ, _BANDS + 1) * 2 * hop / sample_rate_hz
    bins = torch.from_numpy(np.searchsorted(edges, np.arange(len(power)), side="right"))  # 0 and 33 lie outside
    energy = torch.zeros(_BANDS + 2, power.shape[1]).index_add_(0, bins, power)[1:-1].T ** _COMPRESSION
    return (energy / energy.max().clamp(min=1e-6)).numpy()


def _candidates(sequences: dict[int, np.ndarray]) -> Iterator[tuple[int, int]]:
    """Every pair of clips in which one is among the nearest of the other on average, once."""
    from sklearn.neighbors import NearestNeighbors

    if len(sequences) < 2:
        return
    clips = list(sequences)
    averages = np.stack([values.mean(0) for values in sequences.values()])
    averages /= np.maximum(np.linalg.norm(averages, axis=1, keepdims=True), 1e-9)  # louder, or of more contrast
    neighbors = NearestNeighbors(n_neighbors=min(_CANDIDATES + 1, len(clips))).fit(averages)
    nearest = neighbors.kneighbors(averages, return_distance=False)
    for i, j in sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest) for j in row.tolist() if i != j}):
        yield clips[i], clips[j]


def _is_same(sequences: dict[int, np.ndarray], pair: tuple[int, int], modality: Literal["audio", "video"]) -> bool:
    changes, images = correlations(sequences[pair[0]], sequences[pair[1]], _FEWEST[modality])
    if modality == "audio":
        return bool(changes.max(initial=-1.0) >= SAME_AUDIO)
    return bool(((changes >= SAME_CHANGES) & (images >= SAME_IMAGES)).any())


def correlations(a: np.ndarray, b: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """How two sequences correlate at every shift at which they overlap by half the shorter one.

    Args:
        a: (T, D).
        b: (U, D).
        fewest: rows that overlap at least.

    Returns:
        float64 (S,) for the shifts from the lowest on, at which row t of `a` lies beside row t - shift of `b`: the
        correlation of the changes, without the mean of each column over the overlap, and that of the sequences
        themselves. -1 where one hardly changes in the overlap.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    T, U = len(a), len(b)
    least = max(fewest, (min(T, U) + 1) // 2)
    shifts = np.arange(least - U, T - least + 1)
    first, last = np.maximum(0, shifts), np.minimum(T, U + shifts)
    n = last - first
    diagonals = np.subtract.outer(np.arange(T), np.arange(U)) + U - 1
    product = np.bincount(diagonals.ravel(), (a @ b.T).ravel(), T + U - 1)[shifts + U - 1]
    sum_a, energy_a, usual_a = _running(a, first, last)
    sum_b, energy_b, usual_b = _running(b, first - shifts, last - shifts)
    changes_a, changes_b = (energy_a - (sum_a**2).sum(1) / n, energy_b - (sum_b**2).sum(1) / n)
    enough = (changes_a > _LEAST_SHARE * usual_a * n) & (changes_b > _LEAST_SHARE * usual_b * n)
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = (product - (sum_a * sum_b).sum(1) / n) / np.sqrt(changes_a * changes_b)
        whole = product / np.sqrt(energy_a * energy_b)
    return np.where(enough, changes, -1.0), np.where(enough, whole, -1.0)


def _running(x: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of rows [first, last): sums (S, D) and energies (S,); and the variance of all rows, summed over the columns."""
    sums = np.concatenate([np.zeros((1, x.shape[1])), x.cumsum(0)])
    energies = np.concatenate([[0.0], (x * x).sum(1).cumsum()])
    return sums[last] - sums[first], energies[last] - energies[first], float(x.var(0).sum())


def duplicate_report(dataset: ClipDataset, pairs: Sequence[Duplicate]) -> dict[str, Any]:
    """`pairs` and those `across_splits` counted, and the first 20 as (clip and split, clip and split, what is same)."""
    c = dataset.columns
    rows = []
    for pair in pairs:
        clips = [{"clip": str(c["id"][clip]), "split": str(c["split"][clip])} for clip in pair.clips]
        rows.append((clips[0], clips[1], pair.same))
    across = sum(first["split"] != second["split"] for first, second, _ in rows)
    return {"pairs": len(rows), "across_splits": across, "examples": rows[:20]}
