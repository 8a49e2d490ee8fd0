"""SP, CC, RKD, PKT and IFD as methods: weights, masks, widths, schedules."""

import math

import pytest
import torch

from avdistill.losses import correlation_congruence, ifd_loss
from avdistill.methods import METHODS
from avdistill.methods.base import student_features
from avdistill.methods.cc import CCConfig
from avdistill.methods.information_flow import IFDConfig
from avdistill.methods.pkt import PKTConfig
from avdistill.methods.rkd import RKDConfig
from avdistill.methods.sp import SPConfig
from avdistill.types import Batch
from support.method_cases import Float64, batch, built, student

CONFIGS = [SPConfig(), CCConfig(), CCConfig(embedding_dim=0), RKDConfig(), PKTConfig(), IFDConfig()]
TERMS = {
    "sp": {"similarity"},
    "cc": {"correlation"},
    "rkd": {"distance", "angle"},
    "pkt": {"transfer"},
    "ifd": {"embedding_flow", "logits_flow"},
}


def in_float64(config):
    return built(config, student_network=Float64(student())).double()


def metrics(losses):
    return {name: float(value.detach()) for name, value in losses.items()}


def kl_of_neighbors(student_rows, teacher_rows):
    """Mean over clips of KL(teacher || student) between their choices of a neighbor, written out."""

    def shares(rows):
        kernel = []
        for x in rows:
            row = []
            for y in rows:
                dot = sum(a * b for a, b in zip(x, y, strict=True))
                row.append((dot / (math.hypot(*x) * math.hypot(*y)) + 1) / 2)
            kernel.append(row)
        return [[k / sum(row) for k in row] for row in kernel]

    total = 0.0
    for s, t in zip(shares(student_rows), shares(teacher_rows), strict=True):
        total += sum(b * math.log((b + 1e-7) / (a + 1e-7)) for a, b in zip(s, t, strict=True))
    return total / len(student_rows)


def test_published_defaults():
    assert SPConfig().weight == 3000
    assert (CCConfig().weight, CCConfig().gamma, CCConfig().order, CCConfig().embedding_dim) == (0.02, 0.4, 2, 128)
    assert (RKDConfig().weight, RKDConfig().distance_weight, RKDConfig().angle_weight) == (1, 25, 50)
    assert PKTConfig().weight == 30000
    assert (IFDConfig().weight, IFDConfig().initial_weight, IFDConfig().decay) == (1, 100, 0.7)


@pytest.mark.parametrize("name", TERMS)
def test_a_tuner_tries_the_default_too(name):
    config = METHODS[name].config_class()
    for field, values in METHODS[name].tuning.items():
        assert getattr(config, field) in values
        assert len(set(values)) >= 2


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("has_teacher", [[True] * 6, [True] + [False] * 5, [False] * 6])
def test_terms_are_the_same_in_every_batch(config, has_teacher):
    losses = built(config)(batch(has_teacher=has_teacher))
    assert set(losses) == TERMS[config.name] | {"classification"}
    if sum(has_teacher) < 2:  # one clip alone has no relations
        assert all(value == pytest.approx(0, abs=1e-5) for k, value in metrics(losses).items() if k != "classification")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_unlabeled_clips_count_and_clips_without_a_teacher_do_not(config):
    has_teacher = [True, True, True, True, False, False]
    data = batch(torch.float64, has_teacher=has_teacher)
    unlabeled = batch(torch.float64, has_teacher=has_teacher, labeled=[True, False] * 3)
    terms = TERMS[config.name]
    first = metrics(in_float64(config).eval()(data))
    second = metrics(in_float64(config).eval()(unlabeled))
    assert {k: first[k] for k in terms} == {k: second[k] for k in terms}
    assert first["classification"] != second["classification"]

    alone = data.map(lambda values: values[:4])
    third = metrics(in_float64(config).eval()(alone))
    assert [third[k] for k in sorted(terms)] == pytest.approx([first[k] for k in sorted(terms)], rel=1e-9)
    assert all(first[k] > 0 for k in terms)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("teacher_dim", [5, 16, 40])
def test_widths_are_free(config, teacher_dim):
    method = built(config, teacher_dim=teacher_dim)
    sum(method(batch(teacher_dim=teacher_dim)).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("first", "second", "factor"),
    [
        (SPConfig(), SPConfig(weight=30.0), 0.01),
        (CCConfig(), CCConfig(weight=2.0), 100.0),
        (RKDConfig(), RKDConfig(distance_weight=2.5, angle_weight=5.0), 0.1),
        (RKDConfig(), RKDConfig(weight=0.3), 0.3),
        (PKTConfig(), PKTConfig(weight=300.0), 0.01),
        (IFDConfig(), IFDConfig(weight=2.0), 2.0),
    ],
    ids=str,
)
def test_weights_scale_the_terms(first, second, factor):
    data = batch(torch.float64)
    one, other = metrics(in_float64(first)(data)), metrics(in_float64(second)(data))
    for term in TERMS[first.name]:
        assert other[term] == pytest.approx(factor * one[term], rel=1e-9)
    assert other["classification"] == pytest.approx(one["classification"])


def test_pkt_is_the_divergence_over_the_batch():
    """The mean over all pairs, as published: the mean of the clips' divergences over their number."""
    method, data = in_float64(PKTConfig()).eval(), batch(torch.float64)
    seen = student_features(method.student, data).embedding.tolist()
    expected = 30000 * kl_of_neighbors(seen, data.teacher.embedding.tolist()) / 6
    assert metrics(method(data))["transfer"] == pytest.approx(expected, rel=1e-9)


def test_cc_without_layers_compares_the_embeddings():
    config = CCConfig(embedding_dim=0)
    method, data = in_float64(config).eval(), batch(torch.float64)
    seen = student_features(method.student, data).embedding
    expected = 0.02 * correlation_congruence(student=seen, teacher=data.teacher.embedding)
    assert metrics(method(data))["correlation"] == pytest.approx(float(expected.detach()), rel=1e-9)
    assert [group["name"] for group in method.parameter_groups()] == ["student"]


def test_cc_trains_its_layers_and_through_one_of_them_the_student():
    method = built(CCConfig())
    method(batch())["correlation"].backward()
    assert [group["name"] for group in method.parameter_groups()] == ["student", "linear"]
    assert method.linear["student"].weight.shape == (128, 16)
    assert all(p.grad.abs().sum() > 0 for p in method.linear.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())


def test_ifd_decays_the_embedding_by_the_epoch():
    """Batches of 6 out of 20 clips: pass 4 begins the second epoch, pass 7 the third, pass 10 the fourth."""
    method, data = in_float64(IFDConfig()), batch(torch.float64)
    features = student_features(method.student.eval(), data)
    embedding = kl_of_neighbors(features.embedding.tolist(), data.teacher.embedding.tolist())
    logits = kl_of_neighbors(features.logits.tolist(), data.teacher.logits.tolist())
    for epoch in [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]:
        losses = metrics(method(data))  # BatchNorm rests, the counter does not
        assert losses["embedding_flow"] == pytest.approx(100 * 0.7**epoch * embedding, rel=1e-9)
        assert losses["logits_flow"] == pytest.approx(logits, rel=1e-9)


def test_ifd_does_not_count_evaluation_and_resumes_where_it_was():
    first = built(IFDConfig())
    first.eval()(batch())
    assert int(first.counter.iterations) == 0
    first.train()
    for _ in range(5):
        first(batch())
    again = built(IFDConfig())
    again.load_state_dict(first.state_dict())
    assert metrics(again(batch())) == metrics(first(batch()))
    assert int(again.counter.iterations) == 6


def test_ifd_can_use_the_divergence_of_the_release():
    method, data = in_float64(IFDConfig(divergence="hybrid")).eval(), batch(torch.float64)
    features = student_features(method.student, data)
    expected = 6 * ifd_loss(student=features.logits, teacher=data.teacher.logits)
    assert metrics(method(data))["logits_flow"] == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("config", [*CONFIGS, IFDConfig(divergence="hybrid")], ids=str)
def test_clips_may_have_several_labels(config):
    data = batch()
    labels = torch.zeros(6, 4)
    labels[torch.arange(6), data.labels] = 1
    labels[0] = 1
    losses = built(config)(Batch(**{**vars(data), "labels": labels}))
    sum(losses.values()).backward()
    assert all(math.isfinite(value) for value in metrics(losses).values())
