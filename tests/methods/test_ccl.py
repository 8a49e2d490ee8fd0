"""CCL: the one backward pass against the literal two, and its terms against loops over single clips."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from avdistill.methods.base import student_features
from avdistill.methods.ccl import CCLConfig
from support.method_cases import B, D, Float64, batch, built, student


def literal_nce(x, y, labels, tau):
    """One direction, pair by pair, every row labeled."""
    total = 0.0
    for i in range(len(x)):
        scores = [F.cosine_similarity(x[i], y[j], dim=0) / tau for j in range(len(y))]
        whole = sum(s.exp() for s in scores)
        same = [j for j in range(len(y)) if labels[j] == labels[i]]
        others = [j for j in range(len(y)) if labels[j] != labels[i]]
        total = total - sum((scores[j].exp() / whole).log() for j in same) / len(same)
        if others:
            total = total - sum((1 - scores[j].exp() / whole).log() for j in others) / len(others)
    return total / len(x)


def literal_divergence(first, second):
    total = 0.0
    for i in range(len(first)):
        p, q = first[i].softmax(0), second[i].softmax(0)
        for c in range(len(p)):
            total = total + 0.5 * (p[c] * (p[c] / q[c]).log() + q[c] * (q[c] / p[c]).log())
    return total / len(first)


def literal_terms(method, data):
    """Both objectives on one live graph, as the release builds them: (student's, head's)."""
    tau, features = method.config.temperature, student_features(method.student, data)
    rows = data.has_teacher.nonzero()[:, 0]
    t, labels = data.teacher.embedding[rows], data.labels[rows].tolist()
    v = features.embedding[rows]
    if not isinstance(method.projection, torch.nn.Identity):
        v = v @ method.projection.weight.T + method.projection.bias
    unit = [x / x.norm(dim=1, keepdim=True) for x in (t, v)]
    c = t + torch.cat(unit, dim=1) @ method.head.residual.weight.T + method.head.residual.bias
    p_c = c @ method.head.classifier.weight.T + method.head.classifier.bias

    def symmetric(x, y):
        return literal_nce(x, y, labels, tau) + literal_nce(y, x, labels, tau)

    shared = symmetric(v, c) + literal_divergence(features.logits[rows], p_c)
    return (
        F.cross_entropy(features.logits, data.labels) + shared + symmetric(v, t),
        F.cross_entropy(p_c, data.labels[rows]) + shared + symmetric(c, t),
    )


def literal_two_passes(method, data, head_keeps_both):
    """The release's procedure: the head's objective, its student gradients thrown away; then the student's."""
    of_student, of_head = literal_terms(method, data)
    of_head.backward(retain_graph=True)
    method.student.zero_grad()
    method.projection.zero_grad()
    own = {name: p.grad.clone() for name, p in method.head.named_parameters()}
    of_student.backward()
    if not head_keeps_both:
        for name, p in method.head.named_parameters():
            p.grad = own[name]
    return of_student + of_head


@pytest.mark.parametrize("has_teacher", [[True] * B, [True, False, True, True, False, True]])
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("teacher_dim", [D, 7])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_one_backward_pass_equals_the_literal_two(temperature, teacher_dim, released, has_teacher):
    config = CCLConfig(temperature=temperature, released_head_gradients=released)
    ours, theirs = (
        built(config, student_network=Float64(student()), teacher_dim=teacher_dim).double() for _ in range(2)
    )
    data = batch(torch.float64, teacher_dim=teacher_dim, has_teacher=has_teacher)
    total = sum(ours(data).values())
    total.backward()
    expected = literal_two_passes(theirs, data, released)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 1e-10, name


def test_the_two_ways_to_train_the_head_differ_in_the_head_only():
    on, off = (
        built(CCLConfig(released_head_gradients=flag), student_network=Float64(student())).double()
        for flag in (True, False)
    )
    for method in (on, off):
        sum(method(batch(torch.float64)).values()).backward()
    for (name, p), (_, q) in zip(on.named_parameters(), off.named_parameters(), strict=True):
        if p.grad is not None:
            differs = float((p.grad - q.grad).abs().max()) > 1e-6 * float(p.grad.abs().max())
            assert differs == name.startswith("head."), name


def test_the_plain_sum_would_be_another_method():
    """What `detach` is for: without it the head's objective moves the student."""
    ours, summed = (built(CCLConfig(), student_network=Float64(student())).double() for _ in range(2))
    data = batch(torch.float64)
    sum(ours(data).values()).backward()
    sum(literal_terms(summed, data)).backward()
    weight = "network.stem.0.weight"
    a, b = (dict(m.student.named_parameters())[weight].grad for m in (ours, summed))
    assert (a - b).norm() > 0.1 * a.norm()


def test_weight_scales_everything_but_the_classifications():
    one, half = (built(CCLConfig(weight=w))(batch()) for w in (1.0, 0.5))
    assert set(one) == {
        f"{prefix}{term}" for prefix in ("", "head_") for term in ("classification", "contrast", "divergence")
    }
    for name, value in one.items():
        scale = 1.0 if name.endswith("classification") else 0.5
        assert float(half[name].detach()) == pytest.approx(scale * float(value.detach())), name


def test_unlabeled_clips_are_anchors_and_nobodys_negatives():
    labeled = [True] * 4 + [False] * 2
    data = batch(torch.float64, labeled=labeled)
    named = replace(data, labels=torch.where(data.labeled, data.labels, (data.labels + 1) % 4))
    method = built(CCLConfig(), student_network=Float64(student())).double()
    first, second = method(data), method(named)
    assert {k: float(v.detach()) for k, v in first.items()} == {k: float(v.detach()) for k, v in second.items()}
    method.zero_grad()
    features = student_features(method.student, data)
    embedding = features.embedding.detach().requires_grad_()
    method.losses(replace(features, embedding=embedding), data)["contrast"].backward()
    assert (embedding.grad[4:].abs().sum(1) > 0).all()


def test_several_labels():
    labels = (torch.arange(B)[:, None] % torch.tensor([2, 3, 4, 5]) == 0).double()
    method = built(CCLConfig(), student_network=Float64(student())).double()
    data = replace(batch(torch.float64), labels=labels)
    losses = method(data)
    features = student_features(method.student, data)
    composed = method.head(data.teacher.embedding, features.embedding)
    expected = 0.0
    for a, b in zip(features.logits.flatten().tolist(), composed.logits.flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
        for x, y in ((p, q), (1 - p, 1 - q)):
            expected += 0.5 * (x * math.log(x / y) + y * math.log(y / x))
    assert float(losses["divergence"].detach()) == pytest.approx(expected / labels.numel(), rel=1e-6)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_zero_and_equal_embeddings_are_finite(rows):
    method = built(CCLConfig(temperature=0.1))
    data = batch(rows=rows)
    features = student_features(method.student, data)
    for values in (torch.zeros(rows, D), torch.ones(rows, D)):
        seen = replace(features, embedding=values.clone().requires_grad_(), logits=features.logits.detach())
        same = replace(data, teacher=replace(data.teacher, embedding=values.clone()))
        losses = method.losses(seen, same)
        assert all(torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()
        assert torch.isfinite(seen.embedding.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in method.head.parameters())


def test_groups_name_the_layer_between_widths_where_there_is_one():
    assert [g["name"] for g in built(CCLConfig()).parameter_groups()] == ["student", "head"]
    method = built(CCLConfig(), teacher_dim=7)
    assert [g["name"] for g in method.parameter_groups()] == ["student", "head", "projection"]
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())
