"""`correspondence` against a plain loop, closed forms, and data whose correlation is known."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from avdistill.analysis.audit.correspondence import Alignment, correspondence, folds, rank_scores


def pairs(n=240, width=(130, 24), latent=6, noise=1.0, seed=0):
    """Embeddings (n, D) of two modalities that share `latent` numbers a clip, with the long tails of activations."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, latent))
    return [
        np.exp(
            0.5 * (shared @ rng.standard_normal((latent, D)) / math.sqrt(latent) + noise * rng.standard_normal((n, D)))
        )
        for D in width
    ]


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


# The oracle: the two covariances as one generalized eigenproblem, scikit-learn's PCA, and loops over clips


def canonical(audio, video):
    """Functions of one embedding each, and the correlations."""
    prepared = []
    for values in (audio, video):
        compressed = np.sign(values) * np.log1p(np.abs(values))
        mean, std = compressed.mean(0), compressed.std(0)
        pca = PCA(min(100, values.shape[1], len(values) - 1), svd_solver="full").fit((compressed - mean) / std)
        prepared.append((mean, std, pca, pca.transform((compressed - mean) / std)))
    x, y = prepared[0][3], prepared[1][3]
    n, p, q = len(x), x.shape[1], y.shape[1]
    between, within = np.zeros((p + q, p + q)), np.zeros((p + q, p + q))
    for i in range(n):
        between[:p, p:] += np.outer(x[i], y[i]) / n
        within[:p, :p] += np.outer(x[i], x[i]) / n
        within[p:, p:] += np.outer(y[i], y[i]) / n
    between[p:, :p] = between[:p, p:].T
    for part in (slice(0, p), slice(p, p + q)):
        block = within[part, part]
        block += 2 * block.trace() / len(block) * np.eye(len(block))
    values, vectors = eigh(between, within)
    values, vectors = values[::-1][:20], vectors[:, ::-1][:, :20]

    def project(embedding, which):
        mean, std, pca, _ = prepared[which]
        row = pca.transform(((np.sign(embedding) * np.log1p(np.abs(embedding)) - mean) / std)[None])[0]
        return values * (row @ vectors[[slice(0, p), slice(p, p + q)][which]])

    return project, values


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def looped(audio, video, groups, parts):
    first = one_round(audio, video, groups, parts, range(len(groups)))
    limit = max(0.5, sorted(first)[len(first) // 2])  # of an odd number of clips
    trusted = [i for i, score in enumerate(first) if score <= limit + 1e-9]
    return one_round(audio, video, groups, parts, trusted)


def one_round(audio, video, groups, parts, trusted):
    scores = {}
    for part in sorted(set(parts)):
        inside = [i for i in range(len(groups)) if parts[i] == part]
        outside = [i for i in range(len(groups)) if parts[i] != part]
        assert {groups[i] for i in inside}.isdisjoint(groups[i] for i in outside)
        fitted = [i for i in outside if i in trusted]
        project, _ = canonical(audio[fitted], video[fitted])
        a = {i: project(audio[i], 0) for i in inside}
        v = {i: project(video[i], 1) for i in inside}
        x, y = whitened(audio, fitted), whitened(video, fitted)
        from_video = {i: neighbors_mean(y[i], y[fitted], x[fitted]) for i in inside}
        from_audio = {i: neighbors_mean(x[i], x[fitted], y[fitted]) for i in inside}
        similar = [shares(x, from_video, inside), shares(from_audio, y, inside)]
        linear = shares(a, v, inside)
        for i in inside:
            scores[i] = (linear[i] + (similar[0][i] + similar[1][i]) / 2) / 2
    return [scores[i] for i in range(len(groups))]


def shares(a, v, inside):
    """Of the others' audio that fits a clip's video better than its own, and the reverse."""
    found = {}
    for i in inside:
        own = cosine(a[i], v[i])
        others = [j for j in inside if j != i]
        by_video = sum(cosine(a[j], v[i]) > own for j in others) / len(others)
        by_audio = sum(cosine(a[i], v[j]) > own for j in others) / len(others)
        found[i] = (by_video + by_audio) / 2
    return found


def whitened(values, fitted):
    """Principal components of the fitted clips, over the root of their variance and a ridge of two mean variances."""
    compressed = np.sign(values) * np.log1p(np.abs(values))
    mean, std = compressed[fitted].mean(0), compressed[fitted].std(0)
    standard = (compressed - mean) / std
    pca = PCA(min(100, values.shape[1], len(fitted) - 1), svd_solver="full").fit(standard[fitted])
    variances = pca.explained_variance_ * (len(fitted) - 1) / len(fitted)
    return pca.transform(standard) / np.sqrt(variances + 2 * variances.mean())


def neighbors_mean(query, keys, values):
    near = sorted(range(len(keys)), key=lambda j: -cosine(query, keys[j]))[: min(40, len(keys) // 4)]
    weights = [max(0.0, cosine(query, keys[j])) for j in near]
    return sum(w * values[j] / math.sqrt(sum(values[j] ** 2)) for w, j in zip(weights, near, strict=True)) / sum(
        weights
    )


def test_the_score_is_that_of_the_loops():
    audio, video = pairs(n=91)
    audio[:36] = np.roll(audio[:36], 1, axis=0)
    groups = np.array([f"video_{i // 2}" for i in range(91)])
    found = correspondence(audio, video, groups)
    assert found == pytest.approx(looped(audio, video, groups.tolist(), folds(groups).tolist()), abs=1e-12)


def test_any_encoders_negative_values_and_float32():
    audio, video = (values.astype(np.float32) - 1 for values in pairs(n=60, width=(7, 5)))
    groups = np.arange(60)
    audio[:, 3] = 2.0  # a dead channel tells nothing
    alive = np.delete(audio, 3, axis=1)
    assert correspondence(audio, video, groups) == pytest.approx(correspondence(alive, video, groups), abs=0.12)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_correlations_are_those_of_the_closed_form(rho):
    """Isotropic x, y = rho x + sqrt(1 - rho^2) e: every covariance is 1 plus a ridge of 2, so each is rho / 3."""
    rng = np.random.default_rng(1)
    x, e = rng.standard_normal((2, 200_000, 3))
    y = rho * x + math.sqrt(1 - rho**2) * e
    undo = [np.sign(values) * np.expm1(np.abs(values)) for values in (x, y)]  # the logarithm comes first
    assert Alignment.fit(*undo).correlations == pytest.approx([rho / 3] * 3, abs=0.005)


def test_mismatched_audio_is_found_where_the_two_are_correlated_and_only_there():
    groups = np.arange(400) // 2
    rng = np.random.default_rng(2)
    mismatched = np.zeros(400, bool)
    mismatched[rng.permutation(400)[:160]] = True
    auroc = []
    for noise in (0.3, 1.0, 30.0):
        audio, video = pairs(n=400, noise=noise, width=(40, 40))
        donors = np.roll(np.flatnonzero(mismatched), 7)
        audio[mismatched] = audio[donors]
        auroc.append(roc_auc_score(mismatched, correspondence(audio, video, groups)))
    assert auroc[0] > 0.95 > auroc[1] > 0.8
    assert auroc[2] == pytest.approx(0.5, abs=0.1)


def test_ranks_of_three_clips_by_hand():
    """The fit is the cosine: audio 0 and 1 lie at 0 and 90 degrees, audio 2 at 45; the videos at 0, 45 and 45."""
    half = math.sqrt(0.5)
    audio = np.array([[1.0, 0], [0, 5], [half, half]])
    video = np.array([[2.0, 0], [half, half], [1, 1]])
    # fits  a0  a1  a2         by video          by audio
    # v0    1   0   .7    clip 0: none of 2     none of 2
    # v1    .7  .7  1     clip 1: a0 ties, a2   v2 ties
    # v2    .7  .7  1     clip 2: none          v1 ties
    pair = (unit(audio), unit(video))
    assert rank_scores(pair, pair, np.arange(3)).tolist() == [0.0, (1.5 / 2 + 0.5 / 2) / 2, (0 + 0.5 / 2) / 2]


def test_of_many_clips_each_is_compared_with_a_sample():
    rng = np.random.default_rng(4)
    audio, video = rng.standard_normal((2, 60, 3))
    sample = np.sort(np.random.default_rng(0).permutation(60)[:25])
    column = np.where(np.isin(np.arange(60), sample), np.searchsorted(sample, np.arange(60)), -1)
    pair = (unit(audio), unit(video))
    found = rank_scores(pair, (pair[0][sample], pair[1][sample]), column)
    for i in range(60):
        own, others = cosine(audio[i], video[i]), [j for j in sample if j != i]
        better = [cosine(audio[j], video[i]) > own for j in others] + [cosine(audio[i], video[j]) > own for j in others]
        assert found[i] == pytest.approx(sum(better) / (2 * len(others)))
    assert len(others) in (24, 25)


def test_a_sample_of_many_clips_finds_what_all_of_them_find(monkeypatch):
    audio, video = pairs(n=1200, noise=0.7, width=(30, 20))
    audio[:400] = np.roll(audio[:400], 9, axis=0)
    groups, mismatched = np.arange(1200) // 2, np.arange(1200) < 400
    whole = correspondence(audio, video, groups)
    module = sys.modules["avdistill.analysis.audit.correspondence"]
    for name, value in (("FITTED", 600), ("_COMPARISONS", 1), ("_FEWEST_COMPARED", 120)):
        monkeypatch.setattr(module, name, value)
    some = correspondence(audio, video, groups)
    assert not np.array_equal(whole, some)
    assert np.isfinite(some).all()
    assert roc_auc_score(mismatched, some) > roc_auc_score(mismatched, whole) - 0.02
    assert np.corrcoef(whole, some)[0, 1] > 0.9


def test_embeddings_may_stay_on_the_disk():
    class Stored:
        """Gives rows when asked, and remembers how many at most."""

        def __init__(self, values):
            self.values, self.shape, self.most = values, values.shape, 0

        def __getitem__(self, rows):
            self.most = max(self.most, len(self.values[rows]))
            return self.values[rows]

    audio, video = pairs(n=200, width=(30, 20))
    groups, stored = np.arange(200) // 2, (Stored(audio), Stored(video))
    module = sys.modules["avdistill.analysis.audit.correspondence"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_AT_A_TIME", 50)
        found = correspondence(*stored, groups)
    assert found == pytest.approx(correspondence(audio, video, groups), abs=1e-9)
    assert all(each.most == 160 for each in stored)  # what one part is fitted on, never all


def test_the_same_audio_in_every_clip_tells_nothing():
    audio, video = pairs(n=50, width=(6, 6))
    audio[:] = audio[0]
    assert correspondence(audio, video, np.arange(50)) == pytest.approx(np.full(50, 0.5))


def test_clips_of_one_video_share_a_part_and_parts_are_even():
    groups = np.repeat(np.arange(40), [20, 10, 10, *[2] * 37])
    parts = folds(groups)
    assert all(len(set(parts[groups == group])) == 1 for group in range(40))
    assert max(np.bincount(parts)) - min(np.bincount(parts)) <= 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a, v, g: (a[:19], v[:19], g[:19]), "at least 20 clips of 2 source videos, found 19 of 19"),
        (lambda a, v, g: (a, v, g * 0), "found 30 of 1"),
        (lambda a, v, g: (a[:29], v, g), r"finite embeddings \(30, D\), found \(29, 4\)"),
        (lambda a, v, g: (a * np.nan, v, g), "finite embeddings"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, expected):
    audio, video = pairs(n=30, width=(4, 4))
    with pytest.raises(ValueError, match=expected):
        correspondence(*change(audio, video, np.arange(30)))
