"""`correspondence`: how well a clip's audio fits its video, from two frozen encoders, without training or labels.

Two predictions are fitted on other source videos: a linear alignment of the two embeddings (canonical correlation
analysis, Hotelling 1936, regularized as in Vinod 1976), and the audio that the most similar videos have, and the
reverse (kernel regression, Nadaraya and Watson 1964). The score is the rank of a clip's own audio among the audio of
other clips, and of its video among their videos. Dimensions: N clips, D features, P components, K canonical directions.

Of many clips both are fitted on a sample, and each clip is compared with a sample: time and memory are linear in N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from scipy.linalg import eigh

FOLDS = 5
COMPONENTS = 100
DIRECTIONS = 20
# Ridge of each covariance, in units of its mean variance.
RIDGE = 2.0
# Fewer clips than this cannot be aligned: a fold would hold a handful, its fit hardly more.
FEWEST_CLIPS = 20
# Similar clips that predict a clip's other modality; at most a quarter of those there are.
NEIGHBORS = 40
# Among so many they are looked for.
REFERENCES = 20_000
# A sample of so many is fitted on: the covariances of a million clips are no other.
FITTED = 60_000
# Clips times those that each is compared with, and of those at least so many: a share has a standard error below 0.012.
_COMPARISONS, _FEWEST_COMPARED = 2_000_000_000, 2_000
_ROWS_AT_A_TIME = 1024

#: audio and video of the same clips
Pair = tuple[np.ndarray, np.ndarray]


class Embeddings(Protocol):
    """Embeddings (N, D) in memory, or on the disk, of which rows are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Components:
    """Standardized principal components of one modality, whitened with a ridge.

    Attributes:
        mean, scale: (D,), of the standardization.
        matrix: (D, P).
        fitted: (N, P), the clips that they were fitted on.
    """

    mean: np.ndarray
    scale: np.ndarray
    matrix: np.ndarray
    fitted: np.ndarray

    @classmethod
    def fit(cls, embedding: np.ndarray) -> Self:
        """The components are uncorrelated: whitening divides each by the root of its variance plus the ridge."""
        values = _compressed(embedding)
        mean, scale = values.mean(0), values.std(0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        standard = (values - mean) / scale
        N, D = standard.shape
        last = [D - min(COMPONENTS, D, N - 1), D - 1]
        variances, axes = eigh(standard.T @ standard / N, subset_by_index=last)
        # Along a direction in which the fitted clips do not vary any other clip would be an outlier.
        axes = np.where(variances > 1e-9, axes, 0)
        matrix = axes / np.sqrt(variances.clip(min=0) + RIDGE * max(variances.mean(), 1e-12))
        return cls(mean, scale, matrix, standard @ matrix)

    def __call__(self, embedding: np.ndarray) -> np.ndarray:
        """(N, P) of embeddings (N, D)."""
        return np.concatenate(
            [
                ((_compressed(embedding[rows]) - self.mean) / self.scale) @ self.matrix
                for rows in _blocks(len(embedding))
            ]
        )


@dataclass(frozen=True)
class Alignment:
    """A linear alignment of audio and video embeddings.

    Attributes:
        audio, video: the components of each.
        directions: from each one's components to canonical variates, (P, K), times their correlations.
        correlations: float64 (K,), of the clips that it was fitted on, descending.
    """

    audio: Components
    video: Components
    directions: tuple[np.ndarray, np.ndarray]
    correlations: np.ndarray

    @classmethod
    def fit(cls, audio: np.ndarray, video: np.ndarray) -> Self:
        """Align pairs of rows: log1p of the magnitude, standardization, PCA, regularized CCA.

        Args:
            audio, video: (N, D) of the same clips; the two widths may differ.
        """
        a, b = Components.fit(audio), Components.fit(video)
        left, correlations, right = np.linalg.svd(a.fitted.T @ b.fitted / len(audio), full_matrices=False)
        correlations = correlations[:DIRECTIONS]
        return cls(a, b, (left[:, :DIRECTIONS] * correlations, right[:DIRECTIONS].T * correlations), correlations)

    def scores(self, audio: np.ndarray, video: np.ndarray, most: int = REFERENCES) -> np.ndarray:
        """float64 (n,): `rank_scores` of clips (n, D) by their canonical variates, and by similar clips; their mean.

        At most `most` clips are compared with each, and its similar clips are looked for among as many.
        """
        audio_of = Similar.of(self.video.fitted, self.audio.fitted, most)
        video_of = Similar.of(self.audio.fitted, self.video.fitted, most)

        def pairs(rows: slice | np.ndarray) -> list[Pair]:
            a, b = self.audio(audio[rows]), self.video(video[rows])
            linear = (a @ self.directions[0], b @ self.directions[1])
            return [_unit_pair(pair) for pair in (linear, (a, audio_of(b)), (video_of(a), b))]

        n = len(audio)
        compared = _sample(n, most)
        items, column, scores = pairs(compared), _columns(n, compared), np.empty(n)
        for rows in _blocks(n):
            queries = pairs(rows) if len(compared) < n else [(a[rows], b[rows]) for a, b in items]
            linear, by_video, by_audio = map(rank_scores, queries, items, [column[rows]] * len(items))
            scores[rows] = (linear + (by_video + by_audio) / 2) / 2
        return scores


@dataclass(frozen=True)
class Similar:
    """Predicts one modality of a clip from the clips that are similar in the other one.

    Attributes:
        keys: (P, M), the modality by which clips are similar, of M clips and of length 1.
        values: (M, Q), the other one, of length 1.
    """

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray, most: int) -> Self:
        """At most `most` of the clips whose modalities are keys (N, P) and values (N, Q)."""
        some = _sample(len(keys), most)
        return cls(_unit(keys[some]).T, _unit(values[some]))

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """(n, Q): mean of the values whose keys are nearest to each of the queries (n, P), by cosine.

        A neighbor counts as much as its cosine, one on the other side not at all.
        """
        count = min(NEIGHBORS, max(1, len(self.values) // 4))
        means = []
        for rows in _blocks(len(queries)):
            cosine = _unit(queries[rows]) @ self.keys
            nearest = np.argpartition(cosine, -count, axis=1)[:, -count:]
            weight = np.take_along_axis(cosine, nearest, axis=1).clip(min=0)
            total = np.maximum(weight.sum(1), 1e-12)[:, None]
            means.append(np.einsum("nk,nkq->nq", weight, self.values[nearest]) / total)
        return np.concatenate(means)


def correspondence(audio: Embeddings, video: Embeddings, groups: np.ndarray) -> np.ndarray:
    """How badly the audio of each clip fits its video: float64 (N,) in [0, 1], 0.5 by chance, HIGHER is WORSE.

    The mean of two shares: of the other clips' audio that fits the clip's video better than its own does, and of the
    other clips' videos that fit its audio better; equal fits count half. Fit is a cosine: of the aligned embeddings,
    and of one embedding with the mean of those that the `NEIGHBORS` clips have that are most similar in the other
    modality; the shares by each are averaged. Clips are compared within one of `FOLDS` parts, and both are fitted on
    the other parts; clips of one group are in one part. The first round is fitted on all of them, mismatched ones
    included. The second one, whose scores count, leaves out clips that the first scored above 1/2, or above the median
    where that is larger. Of more than `FITTED` clips the first round is of a sample, on which the second is fitted.

    Args:
        audio, video: (N, D) embeddings of the same N clips by any two encoders; the two widths may differ.
        groups: (N,) the source video that each clip is from.

    Raises:
        ValueError: fewer than `FEWEST_CLIPS` clips or 2 groups, lengths that differ, or values that are not finite.
    """
    N = len(groups)
    if N < FEWEST_CLIPS or len(np.unique(groups)) < 2:
        raise ValueError(
            f"expected at least {FEWEST_CLIPS} clips of 2 source videos, found {N} of {len(np.unique(groups))}"
        )
    for values in (audio, video):
        fits = len(values.shape) == 2 and values.shape[0] == N
        if not fits or not all(np.isfinite(values[rows]).all() for rows in _blocks(N)):
            raise ValueError(f"expected finite embeddings ({N}, D), found {values.shape}")
    parts, most = folds(groups), min(REFERENCES, max(_FEWEST_COMPARED, _COMPARISONS // N))
    sample = np.isin(np.arange(N), _sample(N, FITTED))
    scores, trusted = np.full(N, np.nan), sample.copy()
    # The second round is fitted without clips that the first finds suspicious; in trials a third lost 0.004 of AUROC.
    for scored in (sample, np.ones(N, bool)):
        for part in np.unique(parts):
            inside, fitted = (parts == part) & scored, (parts != part) & trusted
            scores[inside] = Alignment.fit(audio[fitted], video[fitted]).scores(audio[inside], video[inside], most)
        trusted = sample & (scores <= max(0.5, float(np.median(scores[scored]))) + 1e-9)
    return scores


def folds(groups: np.ndarray) -> np.ndarray:
    """int (N,): the part of each clip, of at most `FOLDS`. The largest group goes first, each into the smallest part.

    Of equally large groups the order is a fixed shuffle of their sorted names, so that it does not follow the classes.
    """
    names, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(names))
    filled = np.zeros(min(FOLDS, len(names)), int)
    part = np.zeros(len(names), int)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part[group] = filled.argmin()
        filled[part[group]] += sizes[group]
    return part[which]


def rank_scores(queries: Pair, items: Pair, column: np.ndarray) -> np.ndarray:
    """The score of clips (n,) among those that they are compared with, from aligned embeddings of length 1.

    Args:
        queries, items: audio and video of both, (n, K) and (M, K).
        column: (n,) which of the items each clip is itself, -1 for none: its own counts for neither.

    Returns:
        Shares in [0, 1]; 0.5 for a clip that is compared with no other.
    """
    own = (queries[0] * queries[1]).sum(1, keepdims=True)
    better = np.zeros(len(own))
    itself = np.flatnonzero(column >= 0)
    for query, other in ((queries[1], items[0]), (queries[0], items[1])):
        fit = query @ other.T
        fit[itself, column[itself]] = -np.inf
        better += _above(fit, own)
    others = len(items[0]) - (column >= 0)
    return np.where(others > 0, better / (2 * np.maximum(others, 1)), 0.5)


def _columns(count: int, compared: np.ndarray) -> np.ndarray:
    """int (count,): the place of each row in `compared`, -1 for a row that is not there."""
    column = np.full(count, -1)
    column[compared] = np.arange(len(compared))
    return column


def _sample(count: int, most: int) -> np.ndarray:
    """Ascending rows: all of `count`, or `most` of them, the same each time."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _blocks(count: int) -> Iterator[slice]:
    """So many rows, some at a time."""
    for start in range(0, count, _ROWS_AT_A_TIME):
        yield slice(start, min(start + _ROWS_AT_A_TIME, count))


def _above(fit: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(n,): in each row 1 for a fit above the clip's own, 1/2 for one that is equal but for rounding."""
    return 0.5 * sum(np.count_nonzero(fit > own + rounding, axis=1) for rounding in (-1e-12, 1e-12))


def _unit_pair(pair: Pair) -> Pair:
    return _unit(pair[0]), _unit(pair[1])


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _compressed(embedding: np.ndarray) -> np.ndarray:
    """Activations of a network have long tails: log(1 + |x|) with the sign of x, float64."""
    values = embedding.astype(np.float64)
    return np.sign(values) * np.log1p(np.abs(values))
