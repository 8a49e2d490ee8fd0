"""Each figure against a float64 double loop written from its definition, scikit-learn or a closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from avdistill.evaluation import metrics

UCF51_SOUND = Path(__file__).resolve().parents[2].parent / "shared/data/ucf51_sound/cnn14_embed512.npz"


def random_scores(seed: int, clips: int = 60, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    scores = torch.randn(clips, classes, generator=generator)
    return scores + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


def random_retrieval(seed: int, queries: int = 23, gallery: int = 41, classes: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 6, generator=generator)
    query_labels = torch.randint(classes, (queries,), generator=generator)
    gallery_labels = torch.randint(classes, (gallery,), generator=generator)
    return {
        "queries": centers[query_labels] + 2 * torch.randn(queries, 6, generator=generator),
        "gallery": centers[gallery_labels] + 2 * torch.randn(gallery, 6, generator=generator),
        "query_labels": query_labels,
        "gallery_labels": gallery_labels,
    }


def ranked_relevance(data: dict[str, torch.Tensor]) -> list[list[bool]]:
    """For each query: is the gallery item at each rank relevant? Pair by pair, with Python's own sort."""
    table = []
    for query, label in zip(data["queries"].double().tolist(), data["query_labels"].tolist(), strict=True):
        cosines = []
        for item in data["gallery"].double().tolist():
            dot = sum(a * b for a, b in zip(query, item, strict=True))
            cosines.append(dot / (math.hypot(*query) * math.hypot(*item)))
        order = sorted(range(len(cosines)), key=lambda i, cosines=cosines: (-cosines[i], i))
        table.append([int(data["gallery_labels"][i]) == label for i in order])
    return table


# ClassificationResult


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_accuracy_equals_sklearn(k: int) -> None:
    scores, labels = random_scores(0)
    expected = sk.top_k_accuracy_score(labels, scores, k=k, labels=range(7)) if k < 7 else 1.0
    assert metrics.top_k_accuracy(scores=scores, labels=labels, k=k) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_rank_in_class_order() -> None:
    scores = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert [metrics.top_k_accuracy(scores=scores, labels=labels, k=k) for k in (1, 2, 3, 9)] == [0.25, 0.5, 0.75, 1.0]
    assert metrics.confusion_matrix(scores=scores, labels=labels)[:, 0].tolist() == [1, 1, 1, 1]


def test_masked_classes_are_scores_too() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, 2.0], [-torch.inf, 3.0, -torch.inf]])
    assert metrics.top_k_accuracy(scores=scores, labels=torch.tensor([2, 0]), k=1) == 0.5


@given(seed=st.integers(0, 10_000), clips=st.integers(1, 20), classes=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_top_k_accuracy_grows_with_k_to_one(seed: int, clips: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(3, (clips, classes), generator=generator).float()  # many ties
    labels = torch.randint(classes, (clips,), generator=generator)
    curve = [metrics.top_k_accuracy(scores=scores, labels=labels, k=k) for k in range(1, classes + 1)]
    matrix = metrics.confusion_matrix(scores=scores, labels=labels)
    assert curve == sorted(curve)
    assert curve[-1] == 1.0
    assert curve[0] == pytest.approx(float(matrix.trace()) / clips)
    assert int(matrix.sum()) == clips


def test_confusion_and_mean_class_accuracy_equal_sklearn() -> None:
    scores, labels = random_scores(1)
    predicted = scores.argmax(dim=1)
    matrix = metrics.confusion_matrix(scores=scores, labels=labels)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == sk.confusion_matrix(labels, predicted, labels=range(7)).tolist()
    assert metrics.mean_class_accuracy(scores=scores, labels=labels) == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted), abs=1e-12
    )


def test_mean_class_accuracy_leaves_out_classes_without_clips() -> None:
    scores = torch.eye(4)[[0, 0, 1, 3]]  # class 2 never occurs
    assert metrics.mean_class_accuracy(scores=scores, labels=torch.tensor([0, 0, 1, 1])) == 0.75


def test_per_class_table() -> None:
    predicted = torch.tensor([0, 1, 1, 2, 1, 1])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    rows = metrics.per_class_table(scores=torch.eye(4)[predicted], labels=labels, class_names=["a", "b", "c", "d"])
    assert rows == [
        {"name": "a", "clips": 4, "recall": 0.25, "precision": 1.0, "most_confused_with": "b"},
        {"name": "b", "clips": 2, "recall": 1.0, "precision": 0.5, "most_confused_with": None},
        {"name": "c", "clips": 0, "recall": None, "precision": 0.0, "most_confused_with": None},
        {"name": "d", "clips": 0, "recall": None, "precision": None, "most_confused_with": None},
    ]


def test_per_class_table_equals_sklearn() -> None:
    scores, labels = random_scores(2)
    rows = metrics.per_class_table(scores=scores, labels=labels, class_names=list("abcdefg"))
    precision, recall, _, clips = sk.precision_recall_fscore_support(labels, scores.argmax(dim=1), labels=range(7))
    assert [row["precision"] for row in rows] == pytest.approx(precision.tolist())
    assert [row["recall"] for row in rows] == pytest.approx(recall.tolist())
    assert [row["clips"] for row in rows] == clips.tolist()


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_expected_calibration_error_equals_a_loop(bins: int) -> None:
    scores, labels = random_scores(3, clips=200)
    probabilities = scores.double().softmax(dim=1)
    expected = 0.0
    for m in range(1, bins + 1):
        inside = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            if (m - 1) / bins < max(row) <= m / bins:
                inside.append((float(row.index(max(row)) == label), max(row)))
        if inside:
            accuracy, confidence = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            expected += len(inside) / 200 * abs(accuracy - confidence)
    actual = metrics.expected_calibration_error(probabilities=probabilities, labels=labels, bins=bins)
    assert actual == pytest.approx(expected, abs=1e-12)


def test_expected_calibration_error_puts_an_edge_into_the_lower_bin() -> None:
    # 0.6 = 9/15 belongs to (8/15, 9/15] with 0.55, and 0.61 to the next one.
    top = torch.tensor([0.6, 0.55, 0.61], dtype=torch.float64)
    probabilities = torch.stack([top, 1 - top], dim=1)
    actual = metrics.expected_calibration_error(probabilities=probabilities, labels=torch.tensor([0, 1, 0]))
    assert actual == pytest.approx((abs(1 - 0.6 - 0.55) + 1 - 0.61) / 3, abs=1e-12)


@given(seed=st.integers(0, 10_000), clips=st.integers(1, 20), classes=st.integers(1, 6), half=st.booleans())
@settings(max_examples=30, deadline=None)
def test_expected_calibration_error_is_a_fraction(seed: int, clips: int, classes: int, half: bool) -> None:
    scores, labels = random_scores(seed, clips, classes)
    probabilities = scores.softmax(dim=1).to(torch.bfloat16 if half else torch.float32)
    one_bin = metrics.expected_calibration_error(probabilities=probabilities, labels=labels, bins=1)
    assert 0 <= one_bin <= metrics.expected_calibration_error(probabilities=probabilities, labels=labels) + 1e-12
    assert metrics.expected_calibration_error(probabilities=probabilities, labels=labels) <= 1


def test_bootstrap_interval_equals_the_normal_approximation() -> None:
    correct = torch.arange(2000) % 10 < 3  # 0.3
    low, high = metrics.bootstrap_interval(values=correct, samples=2000)
    half_width = 1.96 * math.sqrt(0.3 * 0.7 / 2000)
    assert (low, high) == (pytest.approx(0.3 - half_width, abs=2e-3), pytest.approx(0.3 + half_width, abs=2e-3))


def test_bootstrap_interval_is_repeatable_and_leaves_the_random_state_alone() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = metrics.bootstrap_interval(values=values, samples=200)
    assert metrics.bootstrap_interval(values=values, samples=200) == first
    assert metrics.bootstrap_interval(values=values, samples=200, seed=1) != first
    assert torch.equal(torch.get_rng_state(), state)


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=12), level=st.floats(0.5, 0.98))
@settings(max_examples=30, deadline=None)
def test_bootstrap_interval_is_ordered_and_nested(values: list[float], level: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    low, high = metrics.bootstrap_interval(values=tensor, samples=40, level=level)
    wider_low, wider_high = metrics.bootstrap_interval(values=tensor, samples=40, level=0.99)
    assert min(values) - 1e-9 <= wider_low <= low <= high <= wider_high <= max(values) + 1e-9


def test_release_top_k_layout() -> None:
    probabilities = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.25, 0.25, 0.25, 0.25]])
    names = ["v_a_g01_c01", "v_b_g01_c01"]
    result = metrics.release_top_k(probabilities=probabilities, names=names, class_names=list("wxyz"), k=3)
    assert json.loads(json.dumps(result)) == {
        "results": {
            "v_a_g01_c01": [
                {"label": "x", "score": 0.5},
                {"label": "z", "score": 0.25},
                {"label": "w", "score": 0.125},
            ],
            "v_b_g01_c01": [
                {"label": "w", "score": 0.25},
                {"label": "x", "score": 0.25},
                {"label": "y", "score": 0.25},
            ],
        }
    }
    full = metrics.release_top_k(probabilities=probabilities, names=names, class_names=list("wxyz"))
    assert [len(entries) for entries in full["results"].values()] == [4, 4]


# RetrievalResult


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_retrieval_metrics_equal_a_loop(block: int) -> None:
    data = random_retrieval(0)
    relevance = ranked_relevance(data)
    actual = metrics.retrieval_metrics(**data, ks=(1, 3, 10), block=block)
    precisions, at_r = [], []
    for row in relevance:
        total = sum(row)
        precision = [sum(row[: rank + 1]) / (rank + 1) if row[rank] else 0.0 for rank in range(len(row))]
        precisions.append(sum(precision) / total)
        at_r.append(sum(precision[:total]) / total)
    assert actual == {
        **{f"hit@{k}": pytest.approx(sum(any(row[:k]) for row in relevance) / 23) for k in (1, 3, 10)},
        "map": pytest.approx(sum(precisions) / 23, abs=1e-12),
        "map@R": pytest.approx(sum(at_r) / 23, abs=1e-12),
        "queries": 23,
        "gallery": 41,
        "queries_without_relevant": 0,
    }


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_with_several_labels_sharing_one_is_enough(kind: torch.dtype) -> None:
    data = random_retrieval(3)
    generator = torch.Generator().manual_seed(4)
    hot = {name: torch.rand(len(data[name]), 6, generator=generator) < 0.25 for name in ("queries", "gallery")}
    cosines = (
        torch.nn.functional.normalize(data["queries"].double())
        @ torch.nn.functional.normalize(data["gallery"].double()).T
    )
    sets = {name: [set(row.nonzero().flatten().tolist()) for row in rows] for name, rows in hot.items()}
    precisions, found = [], 0
    for query, row in zip(sets["queries"], cosines.tolist(), strict=True):
        ranked = [bool(query & sets["gallery"][i]) for i in sorted(range(41), key=lambda i, row=row: -row[i])]
        found += any(ranked[:5])
        ranks = [rank for rank, relevant in enumerate(ranked, start=1) if relevant]
        if ranks:
            precisions.append(sum(n / rank for n, rank in enumerate(ranks, start=1)) / len(ranks))
    labels = {"query_labels": hot["queries"].to(kind), "gallery_labels": hot["gallery"].to(kind)}
    actual = metrics.retrieval_metrics(**(data | labels), ks=(5,), block=7)
    assert actual["map"] == pytest.approx(sum(precisions) / len(precisions))
    assert actual["hit@5"] == pytest.approx(found / 23)
    assert actual["queries_without_relevant"] == 23 - len(precisions) > 0
    release = metrics.release_retrieval_metrics(**(data | labels), top=41)
    assert release["release.map@41"] == pytest.approx(actual["map"])  # all ranks looked at: the two agree


def test_one_label_as_multi_hot_changes_nothing() -> None:
    data = random_retrieval(5)
    hot = {name: torch.nn.functional.one_hot(data[name], 5) for name in ("query_labels", "gallery_labels")}
    assert metrics.retrieval_metrics(**(data | hot)) == metrics.retrieval_metrics(**data)
    assert metrics.release_retrieval_metrics(**(data | hot)) == metrics.release_retrieval_metrics(**data)


def test_map_equals_sklearn() -> None:
    data = random_retrieval(1)
    unit = {name: torch.nn.functional.normalize(data[name].double()) for name in ("queries", "gallery")}
    cosines = unit["queries"] @ unit["gallery"].T
    expected = [
        sk.average_precision_score((data["gallery_labels"] == label).numpy(), row.numpy())
        for row, label in zip(cosines, data["query_labels"], strict=True)
    ]
    assert metrics.retrieval_metrics(**data)["map"] == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("top", [2, 10, 500])
@pytest.mark.parametrize("block", [4, 1024])
def test_release_retrieval_metrics_equal_a_loop(top: int, block: int) -> None:
    data = random_retrieval(2)
    precisions = []
    for row in ranked_relevance(data):
        hits, running = 0, 0.0
        for rank, relevant in enumerate(row[:top], start=1):
            if relevant:
                hits += 1
                running += hits / rank
        if hits:
            precisions.append(running / hits)
    actual = metrics.release_retrieval_metrics(**data, top=top, block=block)
    assert actual[f"release.map@{top}"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)
    assert actual["release.queries_without_hit"] == 23 - len(precisions)
    assert top > 2 or len(precisions) < 23  # the data do have queries to skip


def test_a_query_with_nothing_to_find_counts_for_hits_and_not_for_map() -> None:
    actual = metrics.retrieval_metrics(
        queries=torch.eye(2),
        gallery=torch.eye(2),
        query_labels=torch.tensor([0, 9]),
        gallery_labels=torch.tensor([0, 1]),
        ks=(1, 20),
    )
    assert actual == {
        "hit@1": 0.5,
        "hit@20": 0.5,
        "map": 1.0,
        "map@R": 1.0,
        "queries": 2,
        "gallery": 2,
        "queries_without_relevant": 1,
    }


def test_nothing_relevant_at_all_is_nan() -> None:
    data = random_retrieval(3)
    data["query_labels"] = data["query_labels"] + 100
    actual = metrics.retrieval_metrics(**data)
    assert actual["hit@20"] == 0
    assert math.isnan(actual["map"])
    assert math.isnan(actual["map@R"])
    assert math.isnan(metrics.release_retrieval_metrics(**data)["release.map@500"])


def test_release_formula_hides_what_was_not_found() -> None:
    data = {
        "queries": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "gallery": torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]),
        "query_labels": torch.tensor([0, 1]),
        "gallery_labels": torch.tensor([0, 2, 2, 0]),
    }
    data["gallery_labels"][1] = 1
    assert metrics.release_retrieval_metrics(**data, top=1) == {
        "release.map@1": 1.0,
        "release.queries_without_hit": 1,
    }
    assert metrics.retrieval_metrics(**data)["map"] == pytest.approx(((1 + 2 / 4) / 2 + 1 / 2) / 2)


@given(seed=st.integers(0, 10_000), queries=st.integers(1, 9), gallery=st.integers(1, 12), block=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_retrieval_metrics_are_ordered_fractions(seed: int, queries: int, gallery: int, block: int) -> None:
    data = random_retrieval(seed, queries, gallery, classes=3)
    actual = metrics.retrieval_metrics(**data, block=block)
    assert actual == pytest.approx(metrics.retrieval_metrics(**data), abs=1e-12, nan_ok=True)
    assert 0 <= actual["hit@1"] <= actual["hit@5"] <= actual["hit@10"] <= actual["hit@20"] <= 1
    assert actual["hit@20"] == (queries - actual["queries_without_relevant"]) / queries  # 20 > gallery: all is seen
    if actual["queries_without_relevant"] < queries:
        assert 0 <= actual["map@R"] <= actual["map"] <= 1
        whole = metrics.release_retrieval_metrics(**data, block=block)  # 500 > gallery: the formulas agree
        assert whole["release.map@500"] == pytest.approx(actual["map"], abs=1e-12)


def test_the_norm_of_an_embedding_does_not_matter() -> None:
    data = random_retrieval(5)
    expected = metrics.retrieval_metrics(**data)
    data["queries"] = data["queries"] * 2.0**-100  # its square is not a float32
    data["gallery"] = data["gallery"] * 2.0**100
    assert metrics.retrieval_metrics(**data) == expected


def ucf51_sound() -> dict[str, torch.Tensor]:
    if not UCF51_SOUND.exists():
        pytest.skip(f"the UCF51 audio embeddings are not at {UCF51_SOUND}")
    with np.load(UCF51_SOUND) as file:
        embedding = torch.from_numpy(file["embedding"])
        labels = torch.from_numpy(np.unique(file["label"], return_inverse=True)[1]).long()
        training = torch.from_numpy(file["split"] == "training")
    return {
        "queries": embedding[~training],
        "gallery": embedding[training],
        "query_labels": labels[~training],
        "gallery_labels": labels[training],
    }


def test_published_metrics_of_ucf51_audio() -> None:
    data = ucf51_sound()
    actual = metrics.retrieval_metrics(**data, block=500)
    expected = {"hit@1": 0.403, "hit@5": 0.598, "hit@10": 0.683, "hit@20": 0.774, "map": 0.216}
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert (actual["queries"], actual["gallery"], actual["queries_without_relevant"]) == (1944, 4892, 0)
    release = metrics.release_retrieval_metrics(**data)
    assert release["release.map@500"] == pytest.approx(0.274, abs=1e-3)


# What is refused

ONE = torch.tensor([[0.5, 0.5]])
SCORED: list[Callable[..., object]] = [
    lambda scores, labels: metrics.top_k_accuracy(scores=scores, labels=labels, k=1),
    lambda scores, labels: metrics.mean_class_accuracy(scores=scores, labels=labels),
    lambda scores, labels: metrics.confusion_matrix(scores=scores, labels=labels),
    lambda scores, labels: metrics.per_class_table(scores=scores, labels=labels, class_names=["a", "b"]),
    lambda scores, labels: metrics.expected_calibration_error(probabilities=scores, labels=labels),
]


@pytest.mark.parametrize("figure", SCORED)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "not empty"),
        (torch.zeros(2), torch.tensor([0, 1]), r"\(rows, columns\)"),
        (ONE, torch.tensor([0, 1]), r"int64 \(1,\), not torch.int64 \(2,\)"),
        (ONE, torch.tensor([0.0]), "not torch.float32"),
        (ONE, torch.tensor([2]), "2 classes"),
        (ONE, torch.tensor([-1]), "labels go from -1"),
        (torch.tensor([[0.5, 0.5], [torch.nan, 1.0]]), torch.tensor([0, 1]), "NaN, first in row 1"),
    ],
)
def test_bad_scores_are_refused(
    figure: Callable[..., object], scores: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    assert figure(ONE, torch.tensor([0])) is not None
    with pytest.raises(ValueError, match=message):
        figure(scores, labels)


@pytest.mark.parametrize("figure", [metrics.retrieval_metrics, metrics.release_retrieval_metrics])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(0, 6), "query_labels": torch.zeros(0, dtype=torch.int64)}, "queries must be"),
        ({"gallery": torch.zeros(0, 6), "gallery_labels": torch.zeros(0, dtype=torch.int64)}, "gallery must be"),
        ({"queries": torch.zeros(23, 5)}, "5 channels, the gallery has 6"),
        ({"query_labels": torch.zeros(22, dtype=torch.int64)}, "query_labels must be"),
        ({"gallery_labels": torch.zeros(23, dtype=torch.int64)}, "gallery_labels must be"),
        ({"gallery_labels": torch.zeros(41, 3)}, "gallery_labels must be"),
        ({"query_labels": torch.zeros(23, 3), "gallery_labels": torch.zeros(41, 4)}, r"not \(23, 3\) and \(41, 4\)"),
        ({"gallery": torch.full((41, 6), torch.nan)}, "gallery hold NaN"),
        ({"queries": torch.full((23, 6), torch.inf)}, "queries hold infinite"),
        ({"block": 0}, "block must be"),
    ],
)
def test_bad_retrieval_is_refused(figure: Callable[..., object], change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figure(**(random_retrieval(0) | change))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.top_k_accuracy(scores=ONE, labels=torch.tensor([0]), k=0), "k must be"),
        (lambda: metrics.per_class_table(scores=ONE, labels=torch.tensor([0]), class_names=["a"]), "1 class names"),
        (lambda: metrics.expected_calibration_error(probabilities=2 * ONE, labels=torch.tensor([0])), "logits"),
        (lambda: metrics.expected_calibration_error(probabilities=ONE, labels=torch.tensor([0]), bins=0), "bins"),
        (lambda: metrics.bootstrap_interval(values=torch.zeros(0)), r"not \(0,\)"),
        (lambda: metrics.bootstrap_interval(values=torch.tensor([torch.nan])), "NaN"),
        (lambda: metrics.bootstrap_interval(values=torch.ones(2), level=1.0), "level"),
        (lambda: metrics.bootstrap_interval(values=torch.ones(2), samples=0), "samples"),
        (lambda: metrics.release_top_k(probabilities=ONE, names=["a", "b"], class_names=["x", "y"]), "2 names"),
        (lambda: metrics.release_top_k(probabilities=ONE, names=["a"], class_names=["x"]), "1 class names"),
        (lambda: metrics.release_top_k(probabilities=ONE, names=["a"], class_names=["x", "y"], k=0), "k must be"),
        (
            lambda: metrics.release_top_k(probabilities=ONE[[0, 0]], names=["a", "a"], class_names=["x", "y"]),
            "same name",
        ),
        (lambda: metrics.retrieval_metrics(**random_retrieval(0), ks=()), "ks must"),
        (lambda: metrics.release_retrieval_metrics(**random_retrieval(0), top=0), "top must be"),
    ],
)
def test_bad_options_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
