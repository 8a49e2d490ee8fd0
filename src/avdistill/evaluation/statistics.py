"""Statistics of methods evaluated on the same clips with the same seeds: intervals, paired differences, ranks.

`correct` is bool or 0/1 (S, N): S seeds, N clips in the same order for every method. Clips of one video are not
independent, so the bootstrap draws videos (`groups`), and it draws seeds: an interval covers both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SAMPLES = 5000
# A draw is of one video for one sample: so many in memory at a time, and of very many videos fewer samples.
_BLOCK_DRAWS, _MOST_DRAWS, _LEAST_SAMPLES = 2**22, 10**8, 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% percentile bootstrap interval (Efron 1979)."""

    mean: float
    low: float
    high: float


def interval(correct: np.ndarray, groups: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """Mean over seeds and clips of (S, N) values, with an interval over seeds and videos.

    Args:
        correct: (S, N) numbers, such as 0 and 1, or differences of those.
        groups: (N,) which video each clip is from.
        samples: how often seeds and videos are drawn with replacement; of more than 20,000 videos less often, at least
            1000 times.
        seed: of the draws: two calls with the same shapes draw the same.

    Raises:
        ValueError: no seed or clip, lengths that differ, or NaN.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 2 or not values.size or values.shape[1] != len(groups):
        raise ValueError(f"expected (seeds, clips) and a group per clip, got {values.shape} and {len(groups)}")
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity")
    _, which = np.unique(groups, return_inverse=True)
    sizes = np.bincount(which).astype(np.float64)  # (G,) clips of each video
    sums = np.stack([np.bincount(which, weights=row) for row in values])  # (S, G)
    S, G = sums.shape
    samples = min(samples, max(_LEAST_SAMPLES, _MOST_DRAWS // G))
    drawn = _draws_in_memory if samples * G <= _BLOCK_DRAWS else _draws
    means = np.concatenate(
        [((seeds @ sums) * videos).sum(1) / (S * (videos @ sizes)) for seeds, videos in drawn(S, G, samples, seed)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def _draws(S: int, G: int, samples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How often each seed (n, S) and each video (n, G) is drawn, n samples at a time."""
    rng = np.random.default_rng([seed, 6])
    seeds = rng.multinomial(S, np.full(S, 1 / S), size=samples)
    step = max(1, _BLOCK_DRAWS // G)
    for first in range(0, samples, step):
        part = seeds[first : first + step]
        yield part, rng.multinomial(G, np.full(G, 1 / G), size=len(part))  # as if all were drawn at once


@lru_cache(maxsize=2)
def _draws_in_memory(*sizes: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The same in one block, kept: a table has many intervals over the same clips, and drawing takes longest."""
    return tuple(_draws(*sizes))


def paired_difference(method: np.ndarray, baseline: np.ndarray, groups: np.ndarray) -> Estimate:
    """How much better a method is than the baseline on the same seeds and clips: mean of the differences.

    Pairing takes out what clips and seeds have in common: the interval is narrower than two intervals would suggest.
    """
    if method.shape != baseline.shape:
        raise ValueError(f"expected the same seeds and clips, got {method.shape} and {baseline.shape}")
    difference = np.asarray(method, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return interval(difference, groups)


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean rank of each method over the contests, each a corruption and a seed; 1 is best.

    Equal scores share their mean rank.

    Args:
        scores: method -> a value per contest, higher is better, contests in the same order.
    """
    from scipy.stats import rankdata  # slow to import, of no use to `evaluate`

    lengths = {len(values) for values in scores.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError("every method needs a value of every contest, and at least one")
    ranks = rankdata(-np.array(list(scores.values()), dtype=np.float64), axis=0)  # (methods, contests)
    return dict(zip(scores, ranks.mean(1).tolist(), strict=True))
