"""Methods as a whole: the one backward pass against the literal two, and what is missing."""

import pytest
import torch
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity, supervised_contrast
from avdistill.methods import METHODS
from avdistill.methods.base import student_features
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supcon import SupConConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.types import Batch
from support.method_cases import B, Float64, batch, built, student


def literal_two_passes(method, data):
    """The release's procedure: the filter's objective first, its student gradients thrown away; then the student's."""
    config = method.config
    features = student_features(method.student, data)
    out = method.filter(teacher=data.teacher.embedding, tokens=features.tokens, embedding=features.embedding)
    filter_objective = (
        F.cross_entropy(out.logits, data.labels)
        + gate_sparsity(method.filter, config.sparsity)
        + filter_triplet(student=features.embedding, teacher=out.teacher, filtered_teacher=out.embedding)
    )
    student_objective = F.cross_entropy(features.logits, data.labels) + contrastive_semantic_calibration(
        student=features.embedding,
        guided=out.guided,
        filtered_teacher=out.embedding,
        labels=data.labels,
        temperature=config.temperature,
        threshold=config.threshold,
    )
    filter_objective.backward(retain_graph=True)
    method.student.zero_grad()
    student_objective.backward()
    return filter_objective + student_objective


@pytest.mark.parametrize("sparsity", ["both", "last"])
@pytest.mark.parametrize("order", ["gate_attention", "attention_gate", "parallel"])
@pytest.mark.parametrize("temperature", ["pairwise", "sample", "fixed"])
def test_one_backward_pass_equals_the_literal_two(temperature, order, sparsity):
    config = MNFCSCConfig(temperature=temperature, order=order, sparsity=sparsity)
    ours, theirs = (built(config, student_network=Float64(student())).double() for _ in range(2))
    data = batch(torch.float64)
    total = sum(ours(data).values())
    total.backward()
    expected = literal_two_passes(theirs, data)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 1e-10, name
    for (name, p), (_, q) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert (p - q).abs().max() <= 1e-10, name
    assert {int(b) for n, b in ours.named_buffers() if n.endswith("num_batches_tracked")} == {1}


def test_the_plain_sum_would_be_another_method():
    """What `detach` is for: without it the filter's objective moves the student."""
    ours, summed = (built(MNFCSCConfig(), student_network=Float64(student())).double() for _ in range(2))
    data = batch(torch.float64)
    sum(ours(data).values()).backward()
    features = student_features(summed.student, data)
    out = summed.filter(teacher=data.teacher.embedding, tokens=features.tokens, embedding=features.embedding)
    (F.cross_entropy(out.logits, data.labels) + F.cross_entropy(features.logits, data.labels)).backward()
    weight = "network.stem.0.weight"
    ours_grad = dict(ours.student.named_parameters())[weight].grad
    summed_grad = dict(summed.student.named_parameters())[weight].grad
    assert (ours_grad - summed_grad).norm() > 0.1 * ours_grad.norm()


def test_calibration_can_be_kept_out_of_the_filter():
    on, off = (built(MNFCSCConfig(calibration_into_filter=flag)) for flag in (True, False))
    data = batch()
    for method in (on, off):
        losses = method(data)
        losses["calibration"].backward()
    assert all(p.grad is None for p in off.filter.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in on.filter.parameters())
    for p, q in zip(on.student.parameters(), off.student.parameters(), strict=True):
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("teacher_dim", [7, 16, 40])
def test_widths_are_free(teacher_dim):
    losses = built(MNFCSCConfig(), teacher_dim=teacher_dim)(batch(teacher_dim=teacher_dim))
    assert set(losses) == {"classification", "calibration", "filter_classification", "triplet", "sparsity"}
    sum(losses.values()).backward()


CONFIGS = [
    *(method.config_class() for method in METHODS.values()),
    MNFCSCConfig(unlabeled="pseudo_label"),
    MNFCSCConfig(gate="open", attention="mean"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("has_teacher", [[True] * 6, [True, False] * 3, [True] + [False] * 5, [False] * 6])
@pytest.mark.parametrize("labeled", [[True] * 6, [True, True, False] * 2, [False] * 6])
def test_whatever_is_missing_every_term_is_finite_and_every_parameter_in_the_graph(config, has_teacher, labeled):
    method = built(config)
    losses = method(batch(has_teacher=has_teacher, labeled=labeled))
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    # Every process of a distributed run must see every parameter of a helper, whatever its batch lacks.
    helpers = [(n, p) for n, p in method.named_parameters() if not n.startswith("student.") and p.requires_grad]
    assert [n for n, p in helpers if p.grad is None] == []


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_a_missing_teacher_would_say_changes_nothing(config):
    has_teacher = [True, False, True, True, False, True]
    data = batch(has_teacher=has_teacher)
    other = data.teacher.map(lambda values: values.clone())
    for values in (other.embedding, other.logits, other.tokens):
        values[~data.has_teacher] = 1e6
    changed = Batch(**{**vars(data), "teacher": other})
    first, second = built(config)(data), built(config)(changed)
    assert {k: float(v.detach()) for k, v in first.items()} == {k: float(v.detach()) for k, v in second.items()}


def test_unlabeled_clips_teach_through_the_teacher_only():
    labeled = [True] * 3 + [False] * 3
    for config, moves in ((SupervisedConfig(), False), (KDConfig(), True), (MNFCSCConfig(), True)):
        data = batch(labeled=labeled)
        frames = data.frames.clone()
        frames[3:] = 255 - frames[3:]
        method = built(config).eval()  # BatchNorm would let the rows see one another
        first = method(data)
        second = method(Batch(**{**vars(data), "frames": frames}))
        assert float(first["classification"].detach()) == pytest.approx(float(second["classification"].detach()))
        others = [float(sum(v.detach() for k, v in x.items() if k != "classification")) for x in (first, second)]
        assert (others[0] != others[1]) == moves


def test_supcon_contrasts_the_labeled_clips():
    data = batch(labeled=[True, True, False] * 2)
    method = built(SupConConfig(weight=0.5, temperature=0.2)).eval()
    losses = method(data)
    rows = data.labeled.nonzero()[:, 0]
    embedding = student_features(method.student, data).embedding[rows]
    expected = supervised_contrast(embedding=embedding, labels=data.labels[rows], temperature=0.2)
    assert set(losses) == {"classification", "contrast"}
    assert float(losses["contrast"].detach()) == pytest.approx(0.5 * float(expected.detach()))
    assert float(expected.detach()) > 0


def test_pseudo_labels_are_the_teachers():
    data = batch(labeled=[True] * 3 + [False] * 3)
    named = Batch(
        **{
            **vars(data),
            "labels": torch.where(data.labeled, data.labels, data.teacher.logits.argmax(1)),
            "labeled": torch.ones(B, dtype=torch.bool),
        }
    )
    pseudo = built(MNFCSCConfig(unlabeled="pseudo_label"))(data)["calibration"]
    assert float(pseudo.detach()) == pytest.approx(float(built(MNFCSCConfig())(named)["calibration"].detach()))


def test_groups_hold_every_parameter_once():
    for each in METHODS.values():
        method = built(each.config_class())
        grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in method.parameters())
    assert built(MNFCSCConfig()).parameter_groups()[1]["lr_scale"] == 0.2


def test_a_teacher_is_needed():
    with pytest.raises(ValueError, match="mnf_csc"):
        built(MNFCSCConfig(), teacher_dim=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_losses_are_of_full_precision_under_autocast(name, monkeypatch):
    """Only the student runs in bfloat16: the losses are those of its features, no more rounded than those."""
    config = METHODS[name].config_class()
    method, data = built(config).eval(), batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = student_features(method.student, data)
        assert seen.logits.dtype == torch.bfloat16
        found = method(data)
    monkeypatch.setattr("avdistill.methods.base.student_features", lambda *_: seen.map(lambda x: x.float()))
    with torch.no_grad():
        expected = method(data)
    assert set(found) == set(expected)
    for term, value in expected.items():
        assert found[term].dtype == torch.float32
        assert float(found[term]) == float(value), term
