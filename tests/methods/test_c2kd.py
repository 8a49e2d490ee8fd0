"""C2KD against a literal procedure: proxies, both directions and the selection, clip by clip in float64."""

import math

import pytest
import scipy.stats
import torch

from avdistill.errors import ConfigError
from avdistill.methods import MethodContext, build_method
from avdistill.methods.base import student_features
from avdistill.methods.c2kd import C2KDConfig
from avdistill.methods.dkd import DKDConfig
from avdistill.types import Batch
from support.literal import kl, softmax
from support.method_cases import B, C, Float64, batch, built, student

LABELED = [True, False, True, True, False, True]
HAS_TEACHER = [True, True, True, False, True, True]
TERMS = {"classification", "teacher_classification", "student_proxy", "teacher_proxy", "to_student", "to_teacher"}


def linear(rows, layer):
    weight = layer.weight.tolist()
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    return [
        [sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
        for row in rows
    ]


def literal_proxy(rows, proxy):
    """Linear, BatchNorm with the batch's statistics, leaky ReLU 0.1, linear."""
    mixed, scale, shift = linear(rows, proxy.mix), proxy.norm.weight.tolist(), proxy.norm.bias.tolist()
    for d in range(len(mixed[0])):
        column = [row[d] for row in mixed]
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        for row in mixed:
            x = (row[d] - mean) / math.sqrt(variance + 1e-5) * scale[d] + shift[d]
            row[d] = x if x > 0 else 0.1 * x
    return linear(mixed, proxy.classifier)


def literal(method, data):
    """Every term of the release's objective from loops; the teacher's network is the classifier on its embedding."""
    config = method.config
    features = student_features(method.student, data)
    rows = [i for i in range(B) if HAS_TEACHER[i]]
    z_s = [features.logits[i].tolist() for i in rows]
    a = [data.teacher.embedding[i].tolist() for i in rows]
    z_t = linear(a, method.teacher_classifier)
    proxy_s = literal_proxy([features.embedding[i].tolist() for i in rows], method.student_proxy)
    proxy_t = literal_proxy(a, method.teacher_proxy)
    n = len(rows)
    expected = dict.fromkeys(TERMS, 0.0)
    labeled = [i for i in range(B) if LABELED[i]]
    expected["classification"] = sum(
        -math.log(softmax(features.logits[i].tolist())[int(data.labels[i])]) for i in labeled
    ) / len(labeled)
    taught = [k for k, i in enumerate(rows) if LABELED[i]]
    kept = 0
    for k, i in enumerate(rows):
        if LABELED[i]:
            expected["teacher_classification"] -= math.log(softmax(z_t[k])[int(data.labels[i])]) / len(taught)
        for name, own, proxy in (("student_proxy", z_s, proxy_s), ("teacher_proxy", z_t, proxy_t)):
            p, q = softmax(own[k]), softmax(proxy[k])
            expected[name] += config.proxy_weight * (kl(p, q) + kl(q, p)) / n
        if not scipy.stats.kendalltau(proxy_t[k], proxy_s[k]).statistic > config.threshold:
            continue
        kept += 1
        target = int(data.labels[i]) if LABELED[i] else z_t[k].index(max(z_t[k]))
        exchanged = []
        for z in (proxy_s[k], proxy_t[k]):
            if config.target_logit == "zero":
                exchanged.append(softmax([0.0 if c == target else x for c, x in enumerate(z)]))
            else:
                exchanged.append(softmax([x for c, x in enumerate(z) if c != target]))
        expected["to_student"] += config.weight * kl(exchanged[1], exchanged[0]) / n
        expected["to_teacher"] += config.weight * kl(exchanged[0], exchanged[1]) / n
    return expected, kept


@pytest.mark.parametrize("target_logit", ["removed", "zero"])
@pytest.mark.parametrize(("threshold", "kept"), [(-1.1, {5}), (0.0, {1, 2, 3, 4}), (1.1, {0})])
def test_every_term_equals_the_literal_procedure(target_logit, threshold, kept):
    config = C2KDConfig(threshold=threshold, proxy_weight=0.7, weight=2.0, target_logit=target_logit)
    method = built(config, student_network=Float64(student())).double()
    data = batch(torch.float64, labeled=LABELED, has_teacher=HAS_TEACHER)
    expected, found = literal(method, data)
    assert found in kept
    losses = {name: value.item() for name, value in method(data).items()}
    assert losses == pytest.approx(expected, rel=1e-8, abs=1e-12)


def moved(method, losses, name):
    """Which modules a term alone gives a gradient to."""
    method.zero_grad()
    losses[name].backward(retain_graph=True)
    parts = ("student", "teacher_classifier", "teacher_proxy", "student_proxy")
    return {
        part
        for part in parts
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in getattr(method, part).parameters())
    }


def test_each_term_moves_what_the_page_says():
    method = built(C2KDConfig(threshold=-2.0))
    losses = method(batch())
    assert set(losses) == TERMS
    assert moved(method, losses, "classification") == {"student"}
    assert moved(method, losses, "teacher_classification") == {"teacher_classifier"}
    assert moved(method, losses, "student_proxy") == {"student", "student_proxy"}
    assert moved(method, losses, "teacher_proxy") == {"teacher_classifier", "teacher_proxy"}
    assert moved(method, losses, "to_student") == {"student", "student_proxy"}
    assert moved(method, losses, "to_teacher") == {"teacher_proxy"}


def test_the_selection_closes_and_opens():
    data = batch()
    shut, open_ = (built(C2KDConfig(threshold=t))(data) for t in (1.0, -2.0))
    for name in ("to_student", "to_teacher"):
        assert shut[name].item() == 0
        assert open_[name].item() > 0


def test_a_single_clip_with_a_teacher_uses_the_running_statistics():
    method = built(C2KDConfig())
    with torch.no_grad():
        method.teacher_proxy.norm.running_mean.fill_(0.3)
    before = {name: b.clone() for name, b in method.named_buffers() if not name.startswith("student.")}
    data = batch(has_teacher=[True] + [False] * 5)
    losses = method(data)
    after = dict(method.named_buffers())
    assert all(torch.equal(b, after[name]) for name, b in before.items())
    proxy = method.teacher_proxy.eval()(data.teacher.embedding[:1])
    assert torch.equal(proxy, method.teacher_proxy.train()(data.teacher.embedding[:1]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("teacher_dim", [7, 40])
def test_the_teacher_may_have_any_width(teacher_dim):
    sum(built(C2KDConfig(), teacher_dim=teacher_dim)(batch(teacher_dim=teacher_dim)).values()).backward()


def test_embeddings_without_a_difference_are_no_trouble():
    """All clips alike, and a teacher that says 0: BatchNorm has no variance, the ranks are tied."""
    data = batch()
    same = Batch(
        **{
            **vars(data),
            "frames": data.frames[:1].repeat(B, 1, 1, 1, 1),
            "teacher": data.teacher.map(lambda values: values * 0),
        }
    )
    method = built(C2KDConfig(threshold=-2.0))
    losses = method(same)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_several_labels_are_refused():
    data = batch()
    with pytest.raises(ValueError, match=r"c2kd.*one label"):
        built(C2KDConfig())(Batch(**{**vars(data), "labels": torch.zeros(B, C)}))


@pytest.mark.parametrize("config", [C2KDConfig(), DKDConfig()])
def test_one_class_is_refused(config):
    with pytest.raises(ConfigError, match="two classes or more"):
        build_method(config, student(), MethodContext(num_classes=1, teacher_dim=4, training_clips=4))
