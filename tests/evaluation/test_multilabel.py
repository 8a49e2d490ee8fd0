"""Tagging metrics against loops over pairs and thresholds, scipy's normal distribution, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn import metrics as sk

from avdistill.evaluation.multilabel import d_prime, tagging_means, tagging_table

NAMES = [f"tag_{c}" for c in range(6)]


def tags(seed: int = 0, clips: int = 50, rounded: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(clips, 6, generator=generator) < 0.3).float()
    scores = torch.randn(clips, 6, generator=generator) + labels
    return (scores.round() if rounded else scores), labels  # rounded: many ties


def loop_auc(scores: list[float], truth: list[float]) -> float:
    pairs = [
        (p, n) for p, t in zip(scores, truth, strict=True) if t for n, u in zip(scores, truth, strict=True) if not u
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def loop_average_precision(scores: list[float], truth: list[float]) -> float:
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        given = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        reached = sum(given) / sum(truth)
        total += (reached - recall) * sum(given) / len(given)
        recall = reached
    return total


@pytest.mark.parametrize("rounded", [False, True])
def test_each_class_equals_loops_and_sklearn(rounded: bool) -> None:
    scores, labels = tags(rounded=rounded)
    table = tagging_table(scores=scores, labels=labels, class_names=NAMES)
    assert [row["name"] for row in table] == NAMES
    for c, row in enumerate(table):
        own, truth = scores[:, c].tolist(), labels[:, c].tolist()
        assert row["clips"] == sum(truth)
        assert row["auc"] == pytest.approx(loop_auc(own, truth), abs=1e-12)
        assert row["average_precision"] == pytest.approx(loop_average_precision(own, truth), abs=1e-12)
        assert row["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(loop_auc(own, truth)), abs=1e-9)
    means = tagging_means(table)
    assert means["map"] == pytest.approx(sk.average_precision_score(labels, scores, average="macro"))
    assert means["auc"] == pytest.approx(sk.roc_auc_score(labels, scores, average="macro"))
    assert means["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(means["auc"]))
    assert (means["classes_counted"], means["classes_left_out"]) == (6, 0)


def test_classes_of_all_clips_or_none_are_left_out_and_counted() -> None:
    scores, labels = tags()
    labels[:, 1], labels[:, 4] = 0, 1
    table = tagging_table(scores=scores, labels=labels.bool(), class_names=NAMES)
    for c, clips in ((1, 0), (4, 50)):
        assert table[c] == {"name": NAMES[c], "clips": clips, "average_precision": None, "auc": None, "d_prime": None}
    means = tagging_means(table)
    kept = [0, 2, 3, 5]
    assert means["map"] == pytest.approx(sk.average_precision_score(labels[:, kept], scores[:, kept], average="macro"))
    assert (means["classes_counted"], means["classes_left_out"]) == (4, 2)
    nothing = tagging_means([table[1], table[4]])
    assert nothing == {"map": None, "auc": None, "d_prime": None, "classes_counted": 0, "classes_left_out": 2}


def test_a_class_without_error_has_no_d_prime_and_the_mean_still_does() -> None:
    labels = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]])
    table = tagging_table(
        scores=torch.tensor([[4.0, 4], [3, 3], [2, 2], [1, 1]]), labels=labels, class_names=["a", "b"]
    )
    assert (table[0]["average_precision"], table[0]["auc"], table[0]["d_prime"]) == (1, 1, None)
    assert table[1]["auc"] == 0.75
    assert tagging_means(table)["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(0.875))
    assert tagging_means(table[:1])["d_prime"] is None


def test_d_prime_equals_scipy() -> None:
    for auc in (0.001, 0.3, 0.5, 0.959, 0.9999):
        assert d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-9)
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    # By its meaning: unit normal scores whose means lie d' apart have that area under the curve.
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(np.r_[rng.normal(1.5, 1, 20000), rng.normal(0, 1, 20000)])[:, None]
    labels = torch.arange(40000)[:, None] < 20000
    assert tagging_table(scores=scores, labels=labels, class_names=["a"])[0]["d_prime"] == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "labels", "names", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), ["a", "b"], r"got \(3, 2\) and \(2, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0, 2), ["a", "b"], "not empty"),
        (torch.zeros(3), torch.zeros(3), ["a"], r"\(clips, classes\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2), ["a"], "2 classes but 1 class names"),
        (torch.full((3, 1), torch.nan), torch.zeros(3, 1), ["a"], "NaN or infinity"),
        (torch.zeros(3, 1), torch.full((3, 1), 2), ["a"], "labels must be 0 or 1"),
    ],
)
def test_what_is_refused(scores: torch.Tensor, labels: torch.Tensor, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tagging_table(scores=scores, labels=labels, class_names=names)
    with pytest.raises(ValueError, match="auc must lie"):
        d_prime(1.1)
