"""Intervals, paired differences and ranks against slow loops and closed forms."""

import tracemalloc

import numpy as np
import pytest

from avdistill.evaluation import statistics
from avdistill.evaluation.statistics import interval, mean_ranks, paired_difference


def looped(correct, groups, samples, seed):
    """The bootstrap as its definition says it: draw seeds, draw videos, take the mean over what was drawn."""
    rng = np.random.default_rng(seed)
    videos = sorted(set(groups))
    means = []
    for _ in range(samples):
        rows = rng.integers(len(correct), size=len(correct))
        drawn = rng.integers(len(videos), size=len(videos))
        values = [correct[r][i] for r in rows for v in drawn for i in range(len(groups)) if groups[i] == videos[v]]
        means.append(np.mean(values))
    return np.quantile(means, [0.025, 0.975])


def test_intervals_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    correct = (rng.random((3, 24)) < 0.6).astype(float)
    groups = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 4, 3, 2])
    found = interval(correct, groups, samples=4000)
    low, high = looped(correct, groups, 1500, 1)
    assert found.mean == pytest.approx(correct.mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_many_clips_are_drawn_in_little_memory(monkeypatch):
    """Of 50,000 clips all draws at once took 6 GB."""
    correct, groups = np.arange(50_000)[None] % 2, np.arange(50_000)
    tracemalloc.start()
    found = interval(correct, groups, samples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20
    # The mean of n fair coins has a standard deviation of 0.5 / sqrt(n).
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(50_000), rel=0.4)
    small = correct[:, :200], groups[:200]
    monkeypatch.setattr(statistics, "_BLOCK_DRAWS", 2**40)
    at_once = interval(*small)
    monkeypatch.setattr(statistics, "_BLOCK_DRAWS", 999)
    assert interval(*small) == at_once


def test_clips_of_one_video_are_not_independent():
    correct = np.repeat(np.random.default_rng(0).random(20) < 0.5, 10)[None].astype(float)
    own, shared = interval(correct, np.arange(200)), interval(correct, np.repeat(np.arange(20), 10))
    assert shared.high - shared.low > 2 * (own.high - own.low)


def test_seeds_that_differ_widen_the_interval():
    same, differing = np.full((4, 300), 0.5), np.repeat([[0.2], [0.4], [0.6], [0.8]], 300, axis=1)
    assert interval(same, np.arange(300)).high == interval(same, np.arange(300)).low == 0.5
    found = interval(differing, np.arange(300))
    assert found.low == pytest.approx(0.3, abs=0.05)
    assert found.high == pytest.approx(0.7, abs=0.05)


def test_pairing_sees_a_small_gain_that_is_always_there():
    rng = np.random.default_rng(0)
    baseline = (rng.random((3, 400)) < 0.5).astype(float)
    method = baseline.copy()
    method[:, :12] = 1  # never worse, better on a few
    gain = paired_difference(method, baseline, np.arange(400))
    assert gain.mean == pytest.approx((method - baseline).mean())
    assert gain.low > 0
    assert interval(method, np.arange(400)).low < interval(baseline, np.arange(400)).high
    none = paired_difference(baseline, baseline, np.arange(400))
    assert (none.mean, none.low, none.high) == (0, 0, 0)


def test_mean_ranks_by_hand():
    ranks = mean_ranks({"a": [0.9, 0.2, 0.5], "b": [0.5, 0.4, 0.5], "c": [0.1, 0.6, 0.4]})
    assert ranks == {"a": (1 + 3 + 1.5) / 3, "b": (2 + 2 + 1.5) / 3, "c": (3 + 1 + 3) / 3}


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="group per clip"):
        interval(np.zeros((2, 3)), np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        interval(np.full((1, 2), np.nan), np.zeros(2))
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(np.zeros((2, 3)), np.zeros((1, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="every method"):
        mean_ranks({"a": [1.0], "b": [1.0, 2.0]})
