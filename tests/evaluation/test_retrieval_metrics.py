"""Retrieval metrics against a float64 double loop written from their definition, scikit-learn or published values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from avdistill.evaluation.retrieval_metrics import retrieval_metrics
from avdistill.integrations.gewu_lab.metrics import reference_retrieval_metrics

UCF51_AUDIO = Path(__file__).resolve().parents[2].parent / "shared/data/ucf51_sound/cnn14_embed512.npz"


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


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_retrieval_metrics_equal_a_loop(block: int) -> None:
    data = random_retrieval(0)
    relevance = ranked_relevance(data)
    actual = retrieval_metrics(**data, ks=(1, 3, 10), block=block).to_dict()
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
        "queries_missing": 0,
        "gallery_missing": 0,
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
    actual = retrieval_metrics(**(data | labels), ks=(5,), block=7).to_dict()
    assert actual["map"] == pytest.approx(sum(precisions) / len(precisions))
    assert actual["hit@5"] == pytest.approx(found / 23)
    assert actual["queries_without_relevant"] == 23 - len(precisions) > 0
    reference = reference_retrieval_metrics(**(data | labels), top=41)
    assert reference["map@41"] == pytest.approx(actual["map"])  # all ranks looked at: the two agree


def test_one_label_as_multi_hot_changes_nothing() -> None:
    data = random_retrieval(5)
    hot = {name: torch.nn.functional.one_hot(data[name], 5) for name in ("query_labels", "gallery_labels")}
    assert retrieval_metrics(**(data | hot)) == retrieval_metrics(**data)
    assert reference_retrieval_metrics(**(data | hot)) == reference_retrieval_metrics(**data)


def test_map_equals_sklearn() -> None:
    data = random_retrieval(1)
    unit = {name: torch.nn.functional.normalize(data[name].double()) for name in ("queries", "gallery")}
    cosines = unit["queries"] @ unit["gallery"].T
    expected = [
        sk.average_precision_score((data["gallery_labels"] == label).numpy(), row.numpy())
        for row, label in zip(cosines, data["query_labels"], strict=True)
    ]
    assert retrieval_metrics(**data).map == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("top", [2, 10, 500])
@pytest.mark.parametrize("block", [4, 1024])
def test_reference_retrieval_metrics_equal_a_loop(top: int, block: int) -> None:
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
    actual = reference_retrieval_metrics(**data, top=top, block=block)
    assert actual[f"map@{top}"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)
    assert actual["queries_without_hit"] == 23 - len(precisions)
    assert top > 2 or len(precisions) < 23  # the data do have queries to skip


def test_a_query_with_nothing_to_find_counts_for_hits_and_not_for_map() -> None:
    actual = retrieval_metrics(
        queries=torch.eye(2),
        gallery=torch.eye(2),
        query_labels=torch.tensor([0, 9]),
        gallery_labels=torch.tensor([0, 1]),
        ks=(1, 20),
    ).to_dict()
    assert actual == {
        "hit@1": 0.5,
        "hit@20": 0.5,
        "map": 1.0,
        "map@R": 1.0,
        "queries": 2,
        "gallery": 2,
        "queries_without_relevant": 1,
        "queries_missing": 0,
        "gallery_missing": 0,
    }


def test_nothing_relevant_at_all_has_no_mean() -> None:
    data = random_retrieval(3)
    data["query_labels"] = data["query_labels"] + 100
    actual = retrieval_metrics(**data).to_dict()
    assert actual["hit@20"] == 0
    assert actual["map"] is None
    assert actual["map@R"] is None
    assert reference_retrieval_metrics(**data)["map@500"] is None


def test_reference_formula_hides_what_was_not_found() -> None:
    data = {
        "queries": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "gallery": torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]),
        "query_labels": torch.tensor([0, 1]),
        "gallery_labels": torch.tensor([0, 2, 2, 0]),
    }
    data["gallery_labels"][1] = 1
    assert reference_retrieval_metrics(**data, top=1) == {"map@1": 1.0, "queries_without_hit": 1}
    assert retrieval_metrics(**data).map == pytest.approx(((1 + 2 / 4) / 2 + 1 / 2) / 2)


@given(seed=st.integers(0, 10_000), queries=st.integers(1, 9), gallery=st.integers(1, 12), block=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_retrieval_metrics_are_ordered_fractions(seed: int, queries: int, gallery: int, block: int) -> None:
    data = random_retrieval(seed, queries, gallery, classes=3)
    actual = retrieval_metrics(**data, block=block).to_dict()
    assert actual == pytest.approx(retrieval_metrics(**data).to_dict(), abs=1e-12)
    assert 0 <= actual["hit@1"] <= actual["hit@5"] <= actual["hit@10"] <= actual["hit@20"] <= 1
    assert actual["hit@20"] == (queries - actual["queries_without_relevant"]) / queries  # 20 > gallery: all is seen
    if actual["queries_without_relevant"] < queries:
        assert 0 <= actual["map@R"] <= actual["map"] <= 1
        whole = reference_retrieval_metrics(**data, block=block)  # 500 > gallery: the formulas agree
        assert whole["map@500"] == pytest.approx(actual["map"], abs=1e-12)


def test_the_norm_of_an_embedding_does_not_matter() -> None:
    data = random_retrieval(5)
    expected = retrieval_metrics(**data)
    data["queries"] = data["queries"] * 2.0**-100  # its square is not a float32
    data["gallery"] = data["gallery"] * 2.0**100
    assert retrieval_metrics(**data) == expected


def ucf51_audio() -> dict[str, torch.Tensor]:
    if not UCF51_AUDIO.exists():
        pytest.skip(f"the UCF51 audio embeddings are not at {UCF51_AUDIO}")
    with np.load(UCF51_AUDIO) as file:
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
    data = ucf51_audio()
    actual = retrieval_metrics(**data, block=500).to_dict()
    expected = {"hit@1": 0.403, "hit@5": 0.598, "hit@10": 0.683, "hit@20": 0.774, "map": 0.216}
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert (actual["queries"], actual["gallery"], actual["queries_without_relevant"]) == (1944, 4892, 0)
    reference = reference_retrieval_metrics(**data)
    assert reference["map@500"] == pytest.approx(0.274, abs=1e-3)


@pytest.mark.parametrize("measure", [retrieval_metrics, reference_retrieval_metrics])
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
def test_bad_retrieval_is_refused(measure: Callable[..., object], change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**(random_retrieval(0) | change))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval_metrics(**random_retrieval(0), ks=()), "ks must"),
        (lambda: reference_retrieval_metrics(**random_retrieval(0), top=0), "top must be"),
    ],
)
def test_bad_options_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
