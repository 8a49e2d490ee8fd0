"""Features held to features, against loops over clips, positions and channels written from the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avdistill.losses import attention_transfer, hint_regression, neuron_selectivity, variational_information


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def averaged(values, count):
    """Position k of `count` is the mean of those from floor(k n / count) to before ceil((k + 1) n / count)."""
    n = len(values)
    result = []
    for k in range(count):
        first, end = k * n // count, -(-(k + 1) * n // count)
        result.append(sum(values[first:end]) / (end - first))
    return result


def unit(values):
    length = math.sqrt(sum(x * x for x in values))
    return [x / length for x in values]


def naive_attention(student, teacher):
    """student, teacher: lists [clip][position][channel]."""
    total, terms = 0.0, 0
    for s, t in zip(student, teacher, strict=True):
        count = min(len(s), len(t))
        maps = []
        for side in (s, t):
            a = [sum(x * x for x in position) / len(position) for position in side]
            maps.append(unit(averaged(a, count)))
        for k in range(count):
            total += (maps[0][k] - maps[1][k]) ** 2
            terms += 1
    return total / terms


def naive_selectivity(student, teacher):
    def samples(side, count):
        channels = range(len(side[0]))
        return [unit(averaged([position[c] for position in side], count)) for c in channels]

    def kernel(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True)) ** 2

    def mean_kernel(xs, ys):
        total = 0.0
        for x in xs:
            for y in ys:
                total += kernel(x, y)
        return total / (len(xs) * len(ys))

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        count = min(len(s), len(t))
        xs, ys = samples(s, count), samples(t, count)
        total += mean_kernel(xs, xs) + mean_kernel(ys, ys) - 2 * mean_kernel(xs, ys)
    return total / len(student)


MAPS = [(attention_transfer, naive_attention), (neuron_selectivity, naive_selectivity)]
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 7), st.integers(1, 5))


@pytest.mark.parametrize(("loss", "naive"), MAPS)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), sizes=SIZES)
def test_losses_of_maps_equal_the_loops(loss, naive, seed, sizes):
    K_student, D_student, K_teacher, D_teacher = sizes
    student, teacher = randn(3, K_student, D_student, seed=seed), randn(3, K_teacher, D_teacher, seed=seed + 1)
    expected = naive(student.tolist(), teacher.tolist())
    assert float(loss(student=student, teacher=teacher)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_hints_equal_the_loop():
    student, teacher = randn(3, 4), randn(3, 4, seed=1)
    expected = 0.0
    for i in range(3):
        for c in range(4):
            expected += (float(student[i, c]) - float(teacher[i, c])) ** 2 / 12
    assert float(hint_regression(student=student, teacher=teacher)) == pytest.approx(expected, abs=1e-12)


def test_information_is_the_density_of_a_gaussian():
    """exp(-loss) is the density over (2 pi)^(-1/2), by the formula of a normal density with its standard deviation."""
    mean, teacher, raw = randn(3, 4), randn(3, 4, seed=1), 3 * randn(4, seed=2)
    expected = 0.0
    for i in range(3):
        for c in range(4):
            deviation = math.sqrt(math.log(1 + math.exp(float(raw[c]))) + 1e-5)
            distance = (float(teacher[i, c]) - float(mean[i, c])) / deviation
            density = math.exp(-distance * distance / 2) / (deviation * math.sqrt(2 * math.pi))
            expected -= math.log(density * math.sqrt(2 * math.pi)) / 12
    value = variational_information(mean=mean, raw_variance=raw, teacher=teacher)
    assert float(value) == pytest.approx(expected, abs=1e-12)


def test_the_best_variance_is_the_mean_squared_error():
    mean, teacher = randn(50, 1), 3 * randn(50, 1, seed=1)
    error = float((teacher - mean).square().mean())
    raw = torch.tensor([math.log(math.expm1(error - 1e-5))], dtype=torch.float64, requires_grad=True)
    variational_information(mean=mean, raw_variance=raw, teacher=teacher).backward()
    assert float(raw.grad.abs()) < 1e-12


def test_attention_by_hand():
    """(1, 4) and (4, 3) squared: 1, 16 against 16, 9 of lengths sqrt(257) and sqrt(337)."""
    student = torch.tensor([[[1.0], [4.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[-4.0], [3.0]]], dtype=torch.float64)
    expected = ((1 / 257**0.5 - 16 / 337**0.5) ** 2 + (16 / 257**0.5 - 9 / 337**0.5) ** 2) / 2
    assert float(attention_transfer(student=student, teacher=teacher)) == pytest.approx(expected, abs=1e-12)
    # Positions 0, 1 and 2, 3 of the longer one make the same two; this has to be before lengths are taken.
    long = torch.tensor([[[0.0], [2**0.5], [16.0], [16.0]]], dtype=torch.float64)
    expected = ((1 / 65537**0.5 - 16 / 337**0.5) ** 2 + (256 / 65537**0.5 - 9 / 337**0.5) ** 2) / 2
    assert float(attention_transfer(student=long, teacher=teacher)) == pytest.approx(expected, abs=1e-12)


def test_selectivity_by_hand():
    """Channels at right angles: kernels 1 with themselves and 0 with the others."""
    teacher = torch.eye(2, dtype=torch.float64)[None]  # each channel selects a position of its own
    one = torch.tensor([[[3.0], [0.0]]], dtype=torch.float64)  # one channel, which selects the first
    assert float(neuron_selectivity(student=teacher.flip(2) * 7, teacher=teacher)) == pytest.approx(0, abs=1e-12)
    # 1 (student) + 2 of 4 (teacher) - 2 x 1 of 2 (between).
    assert float(neuron_selectivity(student=one, teacher=teacher)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("loss", [attention_transfer, neuron_selectivity])
def test_a_map_costs_nothing_against_itself_at_another_scale(loss):
    tokens = randn(2, 5, 3)
    assert float(loss(student=3 * tokens, teacher=tokens)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student=tokens[:, :, :1], teacher=tokens)) > 1e-3


CASES = {
    "hint": lambda s, t: hint_regression(student=s[:, 0], teacher=t[:, 0]),
    "attention": lambda s, t: attention_transfer(student=s, teacher=t),
    "selectivity": lambda s, t: neuron_selectivity(student=s, teacher=t),
    "information": lambda s, t: variational_information(mean=s[:, 0], raw_variance=s.sum((0, 1)), teacher=t[:, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_differences(name):
    student, teacher = randn(2, 3, 4).requires_grad_(), randn(2, 5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: CASES[name](s, teacher), (student,))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("student_scale", [0.0, 1e-30, 1e-9, 1.0, 1e6])
@pytest.mark.parametrize("teacher_scale", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_values_and_gradients_are_finite(name, student_scale, teacher_scale, rows):
    student = (student_scale * randn(rows, 4, 5, dtype=torch.float32)).requires_grad_()
    teacher = teacher_scale * randn(rows, 6, 5, seed=1, dtype=torch.float32)
    value = CASES[name](student, teacher)
    value.backward()
    assert torch.isfinite(value.detach())
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_equal_features_have_no_gradient_that_is_not_a_number(name):
    student = randn(2, 4, 5, dtype=torch.float32).requires_grad_()
    CASES[name](student, student.detach().clone()).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_the_teacher_gets_no_gradient(name):
    student, teacher = randn(2, 4, 5).requires_grad_(), randn(2, 4, 5, seed=1).requires_grad_()
    CASES[name](student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_look_at_is_zero_with_a_graph(name):
    student = torch.zeros(0, 4, 5, requires_grad=True)
    value = CASES[name](student, torch.zeros(0, 3, 5))
    assert float(value.detach()) == 0
    value.backward()
    raw = torch.zeros(5, requires_grad=True)
    empty = torch.zeros(0, 5)
    variational_information(mean=empty, raw_variance=raw, teacher=empty).backward()
    assert raw.grad.tolist() == [0.0] * 5
