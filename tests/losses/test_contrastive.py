"""Contrasts against double loops written from the equations, at the limits of float32, and with nothing to look at."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avdistill.losses import (
    ccl_nce,
    noise_contrastive_estimation,
    supervised_contrast,
    symmetric_info_nce,
    two_way_divergence,
)
from support.literal import softmax


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def literal_estimation(positive, negative, used, Z, N):
    total = 0.0
    for i, score in enumerate(positive):
        m = sum(used[i])
        if m == 0:
            continue
        P = math.exp(score) / Z
        total -= math.log(P / (P + m / N))
        for k, other in enumerate(negative[i]):
            if used[i][k]:
                total -= math.log((m / N) / (math.exp(other) / Z + m / N))
    return total / len(positive)


@given(seed=st.integers(0, 10**6), Z=st.floats(0.1, 1e4), N=st.integers(2, 1000))
def test_estimation_equals_the_loop(seed, Z, N):
    positive, negative = normal(4, seed=seed) * 5, normal(4, 6, seed=seed + 1) * 5
    used = normal(4, 6, seed=seed + 2) > 0
    used[0] = False
    expected = literal_estimation(positive.tolist(), negative.tolist(), used.tolist(), Z, N)
    value = noise_contrastive_estimation(
        positive=positive, negative=negative, used=used, normalizer=torch.tensor(Z, dtype=torch.float64), clips=N
    )
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_pair_as_likely_as_noise_costs_log_two_each():
    m, N, Z = 3, 12, 7.0
    score = torch.tensor([math.log(Z * m / N)], dtype=torch.float64)  # P = m / N, so h = 1 / 2
    value = noise_contrastive_estimation(
        positive=score,
        negative=score.expand(1, m),
        used=torch.ones(1, m, dtype=torch.bool),
        normalizer=torch.tensor(Z, dtype=torch.float64),
        clips=N,
    )
    assert float(value) == pytest.approx((1 + m) * math.log(2))


def test_an_anchor_without_negatives_teaches_nothing():
    positive, negative = normal(2).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    used = torch.tensor([[False] * 3, [True, False, True]])
    noise_contrastive_estimation(
        positive=positive, negative=negative, used=used, normalizer=torch.tensor(20.0), clips=10
    ).backward()
    assert positive.grad[0] == 0
    assert positive.grad[1] < 0
    assert negative.grad[~used].abs().sum() == 0
    assert (negative.grad[used] > 0).all()


def literal_info_nce(x, y, tau):
    total = 0.0
    for anchors, others in ((x, y), (y, x)):
        for i, anchor in enumerate(anchors):
            exps = [math.exp(cosine(anchor, other) / tau) for other in others]
            total -= math.log(exps[i] / sum(exps)) / len(anchors)
    return total


@given(seed=st.integers(0, 10**6), B=st.integers(1, 6), tau=st.floats(0.05, 2))
def test_info_nce_equals_the_loop(seed, B, tau):
    x, y = normal(B, 5, seed=seed), normal(B, 5, seed=seed + 1)
    value = symmetric_info_nce(student=x, teacher=y, temperature=tau)
    assert float(value) == pytest.approx(literal_info_nce(x.tolist(), y.tolist(), tau), rel=1e-9, abs=1e-12)


def test_info_nce_of_unrelated_directions_has_a_closed_form():
    x = torch.eye(4, dtype=torch.float64)
    value = symmetric_info_nce(student=3 * x, teacher=x, temperature=0.5)
    assert float(value) == pytest.approx(2 * math.log(1 + 3 * math.exp(-2)))


def overlap(a, b):
    if isinstance(a, int):
        return float(a == b)
    both = sum(x * y for x, y in zip(a, b, strict=True))
    either = sum(max(x, y) for x, y in zip(a, b, strict=True))
    return both / either if either else 0.0


def literal_class_contrast(x, y, labels, labeled, tau):
    """NCE(x, y), one direction."""
    B, total = len(x), 0.0
    for i in range(B):
        columns = [j for j in range(B) if labeled[j] or j == i]
        exps = {j: math.exp(cosine(x[i], y[j]) / tau) for j in columns}
        p = {j: e / sum(exps.values()) for j, e in exps.items()}
        attraction, share, repulsion, others = 0.0, 0.0, 0.0, 0
        for j in columns:
            both = labeled[i] and labeled[j]
            weight = 1.0 if j == i else overlap(labels[i], labels[j]) if both else 0.0
            attraction -= weight * math.log(p[j])
            share += weight
            if both and weight == 0:
                repulsion -= math.log(1 - p[j])
                others += 1
        total += attraction / share + (repulsion / others if others else 0.0)
    return total / B


@given(seed=st.integers(0, 10**6), several=st.booleans(), tau=st.floats(0.1, 2), share=st.floats(0, 1))
def test_class_contrast_equals_the_loop(seed, several, tau, share):
    x, y = normal(6, 5, seed=seed), normal(6, 5, seed=seed + 1)
    labels = (normal(6, 3, seed=seed + 2) > 0).double() if several else normal(6, seed=seed + 2).sign().long() + 1
    labeled = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < share
    lists = labels.tolist(), labeled.tolist(), tau
    expected = literal_class_contrast(x.tolist(), y.tolist(), *lists)
    expected += literal_class_contrast(y.tolist(), x.tolist(), *lists)
    value = ccl_nce(first=x, second=y, labels=labels, labeled=labeled, temperature=tau)
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_an_unlabeled_clip_is_nobodys_negative():
    x, y = normal(4, 5), normal(4, 5, seed=1).requires_grad_()
    labels, labeled = torch.tensor([0, 1, 0, 1]), torch.tensor([True, True, True, False])
    changed = torch.tensor([0, 1, 0, 0])
    first = ccl_nce(first=x, second=y, labels=labels, labeled=labeled)
    second = ccl_nce(first=x, second=y, labels=changed, labeled=labeled)
    assert float(first.detach()) == float(second.detach())
    without = ccl_nce(first=x[:3], second=y[:3], labels=labels[:3], labeled=labeled[:3])
    # The fourth row is an anchor of its own and changes nothing of the others' rows.
    own = [literal_class_contrast(*pair, labels.tolist(), labeled.tolist(), 0.5) for pair in pairs(x, y)]
    three = [literal_class_contrast(*pair, labels[:3].tolist(), [True] * 3, 0.5) for pair in pairs(x[:3], y[:3])]
    assert float(without.detach()) == pytest.approx(sum(three))
    anchor = 0.0
    for a, b in pairs(x, y):
        exps = [math.exp(cosine(a[3], b[j]) / 0.5) for j in range(4)]
        anchor -= math.log(exps[3] / sum(exps))
    assert 4 * sum(own) == pytest.approx(3 * sum(three) + anchor)


def pairs(x, y):
    x, y = x.detach().tolist(), y.detach().tolist()
    return (x, y), (y, x)


def test_a_negative_that_takes_all_the_probability_has_its_finite_cost():
    """p of the negative is 1 - exp(-200): log(1 - p) is -200, where float32 has p = 1."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    first, second = x.clone().requires_grad_(), x.flip(0).clone().requires_grad_()
    value = ccl_nce(
        first=first, second=second, labels=torch.tensor([0, 1]), labeled=torch.ones(2).bool(), temperature=0.01
    )
    assert float(value.detach()) == pytest.approx(2 * (200 + 200))
    value.backward()
    assert torch.isfinite(first.grad).all()


LABELS = [torch.tensor([0, 0, 1, 2]), torch.tensor([[1.0, 0], [1, 1], [0, 0], [0, 1]])]


@pytest.mark.parametrize("labels", LABELS, ids=["one", "several"])
@pytest.mark.parametrize("labeled", [[True] * 4, [True, False] * 2, [False] * 4])
@pytest.mark.parametrize("values", ["equal", "zero", "opposite", "huge"])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_degenerate_embeddings_have_finite_values_and_gradients(labels, labeled, values, rows):
    x = normal(4, 3, dtype=torch.float32)
    first = {"equal": x[:1].repeat(4, 1), "zero": x * 0, "opposite": x, "huge": x * 1e15}[values][
        :rows
    ].requires_grad_()
    second = {"equal": x[:1].repeat(4, 1), "zero": x * 0, "opposite": -x, "huge": x * 1e15}[values][:rows]
    second = second.clone().requires_grad_()
    terms = [
        ccl_nce(
            first=first, second=second, labels=labels[:rows], labeled=torch.tensor(labeled[:rows]), temperature=0.01
        ),
        symmetric_info_nce(student=first, teacher=second),
    ]
    if values != "huge":
        terms.append(two_way_divergence(first=first, second=second))
    total = sum(terms)
    assert torch.isfinite(total)
    total.backward()
    assert torch.isfinite(first.grad).all()
    assert torch.isfinite(second.grad).all()


@given(seed=st.integers(0, 10**6))
def test_two_way_divergence_equals_the_sum(seed):
    z = normal(2, 4, 5, seed=seed) * 3
    expected = 0.0
    for first, second in zip(z[0].tolist(), z[1].tolist(), strict=True):
        p, q = softmax(first), softmax(second)
        for a, b in zip(p, q, strict=True):
            expected += 0.5 * (a * math.log(a / b) + b * math.log(b / a)) / 4
    assert float(two_way_divergence(first=z[0], second=z[1])) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 10**6))
def test_two_way_divergence_of_several_labels_equals_the_sum(seed):
    z = normal(2, 4, 5, seed=seed) * 3
    expected = 0.0
    for first, second in zip(z[0].flatten().tolist(), z[1].flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-first)), 1 / (1 + math.exp(-second))
        for a, b in ((p, q), (1 - p, 1 - q)):
            expected += 0.5 * (a * math.log(a / b) + b * math.log(b / a)) / 20
    value = two_way_divergence(first=z[0], second=z[1], multi_label=True)
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_two_way_divergence_of_certain_predictions_is_finite():
    first = torch.tensor([[200.0, -200.0]], requires_grad=True)
    second = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    value = two_way_divergence(first=first, second=second)
    assert float(value.detach()) == pytest.approx(400)
    value.backward()
    assert torch.isfinite(first.grad).all()
    assert torch.isfinite(second.grad).all()


def test_gradients_reach_both_sides():
    x, y = normal(4, 5).requires_grad_(), normal(4, 5, seed=1).requires_grad_()
    everyone = torch.ones(4, dtype=torch.bool)
    for value in (
        symmetric_info_nce(student=x, teacher=y),
        ccl_nce(first=x, second=y, labels=torch.tensor([0, 1, 0, 1]), labeled=everyone),
        two_way_divergence(first=x, second=y),
    ):
        x.grad = y.grad = None
        value.backward()
        assert x.grad.abs().sum() > 0
        assert y.grad.abs().sum() > 0


def test_nothing_to_look_at_is_zero_with_a_graph():
    x, y = normal(0, 5).requires_grad_(), normal(0, 5).requires_grad_()
    nobody = torch.zeros(0, dtype=torch.bool)
    for value in (
        symmetric_info_nce(student=x, teacher=y),
        ccl_nce(first=x, second=y, labels=torch.zeros(0, dtype=torch.int64), labeled=nobody),
        two_way_divergence(first=x, second=y),
        noise_contrastive_estimation(
            positive=x.sum(1),
            negative=y,
            used=torch.zeros(0, 5, dtype=torch.bool),
            normalizer=torch.tensor(1.0),
            clips=3,
        ),
    ):
        assert float(value.detach()) == 0
        value.backward()


def literal_supervised_contrast(z, overlap, tau):
    per_anchor = []
    for i, anchor in enumerate(z):
        others = [j for j in range(len(z)) if j != i]
        p = dict(zip(others, softmax([cosine(anchor, z[j]) / tau for j in others]), strict=True))
        weight = sum(overlap(i, j) for j in others)
        if weight:
            per_anchor.append(-sum(overlap(i, j) * math.log(p[j]) for j in others) / weight)
    return sum(per_anchor) / max(1, len(per_anchor))


@given(seed=st.integers(0, 10**6), rows=st.integers(2, 8), tau=st.floats(0.05, 2))
def test_supervised_contrast_equals_the_loop(seed, rows, tau):
    z = normal(rows, 5, seed=seed)
    labels = torch.randint(0, 3, (rows,), generator=torch.Generator().manual_seed(seed))
    value = supervised_contrast(embedding=z, labels=labels, temperature=tau)
    expected = literal_supervised_contrast(z.tolist(), lambda i, j: float(labels[i] == labels[j]), tau)
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    several = (torch.rand(rows, 4, generator=torch.Generator().manual_seed(seed)) > 0.5).double()
    sets = [{c for c in range(4) if row[c]} for row in several.tolist()]
    value = supervised_contrast(embedding=z, labels=several, temperature=tau)
    expected = literal_supervised_contrast(
        z.tolist(), lambda i, j: len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j])), tau
    )
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2]])
def test_supervised_contrast_without_two_clips_of_a_class_is_zero(labels):
    z = normal(len(labels), 5).requires_grad_()
    value = supervised_contrast(embedding=z, labels=torch.tensor(labels, dtype=torch.int64))
    value.backward()
    assert float(value.detach()) == 0
    assert z.grad.abs().sum() == 0


def test_supervised_contrast_draws_a_class_together():
    z = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]], dtype=torch.float64)
    together, apart = (
        supervised_contrast(embedding=z, labels=torch.tensor(each)) for each in ([0, 0, 1, 1], [0, 1, 0, 1])
    )
    assert float(together) < 0.01 < 10 < float(apart)
