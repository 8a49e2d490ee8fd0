"""Soft labels and classification against loops."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from avdistill.losses import (
    dist_inter_loss,
    dist_intra_loss,
    dkd_loss,
    kd_loss,
    kendall_tau,
    masked_cross_entropy,
    non_target_divergence,
)
from support.literal import kl, softmax


@given(seed=st.integers(0, 10**6), T=st.floats(0.5, 10))
def test_soft_labels_equal_the_sum(seed, T):
    z = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    expected = 0.0
    for s_row, t_row in zip(z[0].tolist(), z[1].tolist(), strict=True):
        s, t = softmax(s_row, T), softmax(t_row, T)
        expected += T * T * sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) / 4
    value = kd_loss(student=z[0], teacher=z[1], temperature=T)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_teacher_gets_no_gradient():
    z = torch.randn(2, 3, 4, requires_grad=True)
    kd_loss(student=z[0], teacher=z[1]).backward()
    assert z.grad[0].abs().sum() > 0
    assert z.grad[1].abs().sum() == 0


def test_classification_looks_at_labeled_rows_only():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 1, 0])
    labeled = torch.tensor([True, False, True, False])
    value = masked_cross_entropy(logits=logits, labels=labels, labeled=labeled)
    rows = logits.detach().tolist()
    expected = -(math.log(softmax(rows[0])[2]) + math.log(softmax(rows[2])[1])) / 2
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert logits.grad[~labeled].abs().sum() == 0


def test_several_labels_are_binary_decisions():
    logits = torch.randn(2, 3, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    value = masked_cross_entropy(logits=logits, labels=labels, labeled=torch.tensor([True, False]))
    terms = []
    for x, y in zip(logits[0].tolist(), labels[0].tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        terms.append(-math.log(p) if y else -math.log(1 - p))
    assert float(value.detach()) == pytest.approx(sum(terms) / 3)


def test_nothing_to_look_at_is_zero_with_a_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    nobody = torch.zeros(2, dtype=torch.bool)
    for value in (
        masked_cross_entropy(logits=logits, labels=torch.zeros(2, dtype=torch.int64), labeled=nobody),
        kd_loss(student=logits[nobody], teacher=logits[nobody]),
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
    loss = kd_loss(student=student, teacher=teacher, temperature=T, multi_label=True)
    assert loss.item() == pytest.approx(T**2 * expected / 20, abs=1e-12)
    same = kd_loss(student=teacher, teacher=teacher, temperature=T, multi_label=True)
    assert same.item() == pytest.approx(0, abs=1e-12)


def without(row, c):
    return [x for k, x in enumerate(row) if k != c]


def naive_decoupled(student, teacher, targets, alpha, beta, T):
    """DKD clip by clip: the binary part and the softmax over the other classes."""
    total = 0.0
    for s_row, t_row, c in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        p_s, p_t = softmax(s_row, T)[c], softmax(t_row, T)[c]
        target_part = kl([p_t, 1 - p_t], [p_s, 1 - p_s])
        other_part = kl(softmax(without(t_row, c), T), softmax(without(s_row, c), T))
        total += T * T * (alpha * target_part + beta * other_part)
    return total / len(student)


def random_logits(seed, rows=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, dtype=torch.float64, generator=generator) * 2
    return student, teacher, torch.randint(0, classes, (rows,), generator=generator)


@given(seed=st.integers(0, 10**6), T=st.floats(0.5, 10), alpha=st.floats(0, 3), beta=st.floats(0, 10))
def test_decoupled_equals_the_loop(seed, T, alpha, beta):
    student, teacher, targets = random_logits(seed)
    value = dkd_loss(student=student, teacher=teacher, targets=targets, alpha=alpha, beta=beta, temperature=T)
    expected = naive_decoupled(student, teacher, targets, alpha, beta, T)
    assert float(value) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_decoupled_parts_make_up_the_soft_labels():
    """KL = target part + (1 - teacher's target probability) x other part, clip by clip (what DKD starts from)."""
    student, teacher, targets = random_logits(3)
    for i in range(len(student)):
        row = slice(i, i + 1)
        beta = 1 - softmax(teacher[i].tolist(), 4.0)[int(targets[i])]
        logits = {"student": student[row], "teacher": teacher[row]}
        whole = kd_loss(**logits, temperature=4.0)
        parts = dkd_loss(**logits, targets=targets[row], alpha=1.0, beta=beta, temperature=4.0)
        assert float(parts) == pytest.approx(float(whole), rel=1e-9)


@pytest.mark.parametrize("target_logit", ["removed", "zero"])
def test_non_target_divergence_equals_the_loop(target_logit):
    student, teacher, targets = random_logits(5)
    keep = torch.tensor([True, False, True, True])
    expected = 0.0
    for s_row, t_row, c, kept in zip(student.tolist(), teacher.tolist(), targets.tolist(), keep.tolist(), strict=True):
        if target_logit == "removed":
            s_row, t_row = without(s_row, c), without(t_row, c)
        else:
            s_row[c] = t_row[c] = 0.0
        expected += 4.0 * kl(softmax(t_row, 2.0), softmax(s_row, 2.0)) / 4 if kept else 0.0
    value = non_target_divergence(
        student=student, teacher=teacher, targets=targets, keep=keep, temperature=2.0, target_logit=target_logit
    )
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_the_target_logit_does_not_move_the_other_classes():
    student, teacher, targets = random_logits(6)
    moved = student.clone()
    moved[torch.arange(4), targets] += 3.0
    one, other = (non_target_divergence(student=s, teacher=teacher, targets=targets) for s in (student, moved))
    assert float(one) == pytest.approx(float(other), rel=1e-12)
    with pytest.raises(ValueError, match="target_logit"):
        non_target_divergence(student=student, teacher=teacher, targets=targets, target_logit="other")


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_decoupled_is_finite_where_probabilities_round_to_0_or_1(scale):
    generator = torch.Generator().manual_seed(0)
    student = (torch.randn(3, 4, generator=generator) * scale).requires_grad_()
    teacher = (torch.randn(3, 4, generator=generator) * scale).requires_grad_()
    value = dkd_loss(student=student, teacher=teacher, targets=torch.tensor([0, 1, 2]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None


def test_of_two_classes_one_is_the_target_and_the_other_says_nothing():
    student, teacher, targets = random_logits(7, classes=2)
    assert float(non_target_divergence(student=student, teacher=teacher, targets=targets)) == 0
    whole = kd_loss(student=student, teacher=teacher)
    assert float(dkd_loss(student=student, teacher=teacher, targets=targets)) == pytest.approx(float(whole))


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), classes=st.integers(2, 7), levels=st.integers(2, 50))
def test_rank_agreement_is_kendalls_tau(seed, rows, classes, levels):
    """Against SciPy (tau-b), with ties where there are few levels."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, levels, (2, rows, classes), generator=generator).double()
    found = kendall_tau(student=x, teacher=y)
    for i in range(rows):
        tied = len(set(x[i].tolist())) == 1 or len(set(y[i].tolist())) == 1
        expected = 0.0 if tied else scipy.stats.kendalltau(x[i].numpy(), y[i].numpy()).statistic
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)


def test_rank_agreement_counts_pairs():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], requires_grad=True)
    y = torch.tensor([[10.0, 20.0, 30.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    found = kendall_tau(student=x, teacher=y)
    assert not found.requires_grad
    assert found.tolist() == pytest.approx([1, -1, 1 / 3, 0])
    assert kendall_tau(student=x[:0], teacher=y[:0]).shape == (0,)


def pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    both = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    norm = math.sqrt(sum((a - mean_x) ** 2 for a in x)) * math.sqrt(sum((b - mean_y) ** 2 for b in y))
    return both / (norm + 1e-8)


@pytest.mark.parametrize("multi_label", [False, True])
@given(seed=st.integers(0, 10**6), T=st.floats(0.5, 8))
def test_correlations_equal_the_loop(multi_label, seed, T):
    student, teacher, _ = random_logits(seed)
    squash = (lambda row: [1 / (1 + math.exp(-z / T)) for z in row]) if multi_label else lambda row: softmax(row, T)
    p, q = [squash(row) for row in student.tolist()], [squash(row) for row in teacher.tolist()]
    inter = sum(1 - pearson(a, b) for a, b in zip(p, q, strict=True)) / 4
    intra = sum(1 - pearson([row[c] for row in p], [row[c] for row in q]) for c in range(5)) / 5
    given_logits = {"student": student, "teacher": teacher, "temperature": T, "multi_label": multi_label}
    assert float(dist_inter_loss(**given_logits)) == pytest.approx(T * T * inter, rel=1e-8, abs=1e-10)
    assert float(dist_intra_loss(**given_logits)) == pytest.approx(T * T * intra, rel=1e-8, abs=1e-10)


def test_correlations_of_the_same_and_of_opposites():
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    for divergence in (dist_inter_loss, dist_intra_loss):
        assert float(divergence(student=teacher, teacher=teacher)) == pytest.approx(0, abs=1e-6)
        assert float(divergence(student=-teacher, teacher=teacher)) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("divergence", [dist_inter_loss, dist_intra_loss])
@pytest.mark.parametrize("rows", [1, 11])
@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_what_does_not_vary_correlates_with_nothing(divergence, rows, flat):
    """Float32 and eleven: the mean of eleven elevenths is not quite an eleventh."""
    varied = torch.randn(rows, 11, generator=torch.Generator().manual_seed(1))
    constant = torch.full((rows, 11), 0.3)
    student = (varied if flat == "teacher" else constant).clone().requires_grad_()
    value = divergence(student=student, teacher=varied if flat == "student" else constant, temperature=2.0)
    value.backward()
    assert float(value.detach()) == 4.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_nothing_to_look_at_is_zero_with_a_graph_in_every_divergence():
    logits = torch.randn(2, 3, requires_grad=True)
    empty = {"student": logits[:0], "teacher": logits[:0]}
    targets = torch.zeros(0, dtype=torch.int64)
    for value in (
        dkd_loss(**empty, targets=targets),
        non_target_divergence(**empty, targets=targets),
        dist_inter_loss(**empty),
        dist_intra_loss(**empty),
    ):
        assert float(value.detach()) == 0
        value.backward()


def test_mixed_precision_logits_are_compared_in_float32():
    """As autocast leaves them: the student's in bfloat16, the stored teacher's in float32."""
    student, teacher, targets = random_logits(11)
    rounded, teacher = student.bfloat16(), teacher.float()
    for divergence, more in (
        (dkd_loss, {"targets": targets}),
        (non_target_divergence, {"targets": targets}),
        (dist_inter_loss, {}),
        (dist_intra_loss, {}),
    ):
        value = divergence(student=rounded, teacher=teacher, **more)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(
            float(divergence(student=rounded.double(), teacher=teacher.double(), **more)), rel=1e-4
        )
