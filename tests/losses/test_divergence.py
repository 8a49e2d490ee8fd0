"""Soft labels and classification against loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avdistill.losses import classification, soft_label_divergence


def softmax(row, T=1.0):
    exps = [math.exp(x / T) for x in row]
    return [e / sum(exps) for e in exps]


@given(seed=st.integers(0, 10**6), T=st.floats(0.5, 10))
def test_soft_labels_equal_the_sum(seed, T):
    z = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    expected = 0.0
    for s_row, t_row in zip(z[0].tolist(), z[1].tolist(), strict=True):
        s, t = softmax(s_row, T), softmax(t_row, T)
        expected += T * T * sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) / 4
    value = soft_label_divergence(student=z[0], teacher=z[1], temperature=T)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_teacher_gets_no_gradient():
    z = torch.randn(2, 3, 4, requires_grad=True)
    soft_label_divergence(student=z[0], teacher=z[1]).backward()
    assert z.grad[0].abs().sum() > 0
    assert z.grad[1].abs().sum() == 0


def test_classification_looks_at_labelled_rows_only():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 1, 0])
    labelled = torch.tensor([True, False, True, False])
    value = classification(logits=logits, labels=labels, labelled=labelled)
    rows = logits.detach().tolist()
    expected = -(math.log(softmax(rows[0])[2]) + math.log(softmax(rows[2])[1])) / 2
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert logits.grad[~labelled].abs().sum() == 0


def test_several_labels_are_binary_decisions():
    logits = torch.randn(2, 3, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    value = classification(logits=logits, labels=labels, labelled=torch.tensor([True, False]))
    terms = []
    for x, y in zip(logits[0].tolist(), labels[0].tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        terms.append(-math.log(p) if y else -math.log(1 - p))
    assert float(value.detach()) == pytest.approx(sum(terms) / 3)


def test_nothing_to_look_at_is_zero_with_a_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    nobody = torch.zeros(2, dtype=torch.bool)
    for value in (
        classification(logits=logits, labels=torch.zeros(2, dtype=torch.int64), labelled=nobody),
        soft_label_divergence(student=logits[nobody], teacher=logits[nobody]),
    ):
        assert float(value.detach()) == 0
        value.backward()


def test_soft_labels_of_several_classes_equal_a_naive_loop():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    T = 2.5
    expected = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        q, p = 1 / (1 + math.exp(-s / T)), 1 / (1 + math.exp(-t / T))
        expected += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    loss = soft_label_divergence(student=student, teacher=teacher, temperature=T, several_labels=True)
    assert loss.item() == pytest.approx(T**2 * expected / 20, abs=1e-12)
    same = soft_label_divergence(student=teacher, teacher=teacher, temperature=T, several_labels=True)
    assert same.item() == pytest.approx(0, abs=1e-12)
