"""The paper's losses against float64 double loops written from the equations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.losses.calibration import TEMPERATURE_FLOOR
from avdistill.models.noise_filter import NoiseFilter


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def naive_csc(v, s, a, labels, labeled, temperature, threshold):
    """The CSC of docs/methods/mnf_csc.md row by row; `labels` are sets."""
    losses = []
    for i in range(len(v)):
        columns = [j for j in range(len(v)) if j == i or labeled[j]]
        T = {
            j: max(
                TEMPERATURE_FLOOR,
                {"pairwise": cosine(v[i], a[j]) + threshold, "sample": 1 - cosine(v[i], a[i]), "fixed": threshold}[
                    temperature
                ],
            )
            for j in columns
        }
        scores = {j: cosine(v[i], s[j]) / T[j] for j in columns}
        total = math.log(sum(math.exp(x) for x in scores.values()))
        weights = {i: 1.0}
        for j in columns:
            if j != i and labeled[i] and labels[i] & labels[j]:
                weights[j] = len(labels[i] & labels[j]) / len(labels[i] | labels[j])
        losses.append(sum(w * (total - scores[j]) for j, w in weights.items()) / sum(weights.values()))
    return sum(losses) / len(losses)


def drawn(seed, B=7, D=5, signed=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, B, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (B,), generator=generator)
    return (x if signed else x.abs()), labels


@pytest.mark.parametrize("temperature", ["pairwise", "sample", "fixed"])
@given(seed=st.integers(0, 10**6), signed=st.booleans(), masked=st.booleans())
def test_csc_equals_the_double_loop(temperature, seed, signed, masked):
    (v, s, a), labels = drawn(seed, signed=signed)
    labeled = torch.arange(7) % 3 != seed % 3 if masked else torch.ones(7, dtype=torch.bool)
    value = contrastive_semantic_calibration(
        student=v,
        guided=s,
        filtered_teacher=a,
        labels=labels,
        labeled=labeled if masked else None,
        temperature=temperature,
        threshold=0.2,
    )
    expected = naive_csc(v, s, a, [{int(y)} for y in labels], labeled.tolist(), temperature, 0.2)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)


@given(seed=st.integers(0, 10**6))
def test_csc_with_several_labels_weighs_by_overlap(seed):
    (v, s, a), _ = drawn(seed)
    hot = torch.rand(7, 4, generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    value = contrastive_semantic_calibration(student=v, guided=s, filtered_teacher=a, labels=hot.double())
    sets = [{c for c in range(4) if row[c]} for row in hot]
    expected = naive_csc(v, s, a, sets, [True] * 7, "pairwise", 0.07)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)


def test_temperature_never_falls_to_the_floor_or_below():
    v = torch.eye(4, dtype=torch.float64).requires_grad_()
    for temperature in ("pairwise", "sample", "fixed"):
        value = contrastive_semantic_calibration(
            student=v,
            guided=v,
            filtered_teacher=-v if temperature == "pairwise" else v,
            labels=torch.arange(4),
            temperature=temperature,
            threshold=0.0,
        )
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, v)[0]).all()


def test_temperature_carries_no_gradient():
    (v, s, a), labels = drawn(4)
    a = a.requires_grad_()
    s = s.requires_grad_()
    value = contrastive_semantic_calibration(student=v, guided=s, filtered_teacher=a, labels=labels)
    value.backward()
    assert a.grad is None
    assert s.grad.abs().sum() > 0


def test_flatness_of_the_released_temperature():
    """A perfect match of 32 clips under the released temperature stays near log 32; a fixed one does not."""
    generator = torch.Generator().manual_seed(0)
    v = torch.rand(32, 512, generator=generator) ** 1.5
    arguments = {"student": v, "guided": v, "filtered_teacher": v, "labels": torch.arange(32)}
    released = float(contrastive_semantic_calibration(**arguments))
    fixed = float(contrastive_semantic_calibration(**arguments, temperature="fixed"))
    assert math.log(32) - 0.1 < released < math.log(32) + 0.01
    assert fixed < 1.0


def test_release_logarithm_differs_below_a_millionth_while_p_is_large():
    (v, s, a), labels = drawn(5)
    arguments = {"student": v, "guided": s, "filtered_teacher": a, "labels": labels}
    stable = contrastive_semantic_calibration(**arguments)
    released = contrastive_semantic_calibration(**arguments, log_epsilon=1e-10)
    assert 0 < float(stable - released) < 1e-6


def test_unknown_values_are_refused():
    (v, s, a), labels = drawn(6)
    with pytest.raises(ValueError, match="temperature"):
        contrastive_semantic_calibration(student=v, guided=s, filtered_teacher=a, labels=labels, temperature="warm")
    with pytest.raises(ValueError, match="layers"):
        gate_sparsity(NoiseFilter(8, 3), layers="first")


def test_empty_batch_is_zero_with_a_graph():
    empty = torch.zeros(0, 4, requires_grad=True)
    nothing = contrastive_semantic_calibration(
        student=empty, guided=empty, filtered_teacher=empty, labels=torch.zeros(0, dtype=torch.int64)
    )
    also = filter_triplet(student=empty, teacher=empty, filtered_teacher=empty)
    for value in (nothing, also):
        assert float(value.detach()) == 0
        assert value.requires_grad


@given(seed=st.integers(0, 10**6), margin=st.floats(0, 1))
def test_triplet_equals_the_loop(seed, margin):
    (v, a, f), _ = drawn(seed, signed=True)
    expected = sum(max(0.0, cosine(x, y) - cosine(x, z) + margin) for x, y, z in zip(v, a, f, strict=True)) / 7
    value = filter_triplet(student=v, teacher=a, filtered_teacher=f, margin=margin)
    assert float(value.detach()) == pytest.approx(expected, abs=1e-12)


def test_sparsity_counts_both_layers():
    noise_filter = NoiseFilter(8, 3)
    linear = [m for m in noise_filter.gate if isinstance(m, nn.Linear)]
    for layer, value in zip(linear, (0.5, -0.25), strict=True):
        nn.init.constant_(layer.weight, value)
    first, second = 0.001 * 0.5 * 16, 0.001 * 0.25 * 4  # rows of 2 D = 16 and of D / 2 = 4 weights
    assert float(gate_sparsity(noise_filter, layers="last").detach()) == pytest.approx(second)
    assert float(gate_sparsity(noise_filter).detach()) == pytest.approx(first + second)
