"""Each metric against a float64 double loop written from its definition, scikit-learn or a closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from avdistill.evaluation import metrics


def random_scores(seed: int, clips: int = 60, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    scores = torch.randn(clips, classes, generator=generator)
    return scores + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.top_k_accuracy(scores=ONE, labels=torch.tensor([0]), k=0), "k must be"),
        (lambda: metrics.per_class_table(scores=ONE, labels=torch.tensor([0]), class_names=["a"]), "1 class names"),
        (lambda: metrics.expected_calibration_error(probabilities=2 * ONE, labels=torch.tensor([0])), "logits"),
        (lambda: metrics.expected_calibration_error(probabilities=ONE, labels=torch.tensor([0]), bins=0), "bins"),
    ],
)
def test_bad_options_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
