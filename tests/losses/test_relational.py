"""Relations between clips against loops over them, in closed form, and where there is no relation to speak of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avdistill.losses import correlation_congruence, ifd_loss, pkt_loss, rkd_angle_loss, rkd_distance_loss, sp_loss

LOSSES = [sp_loss, correlation_congruence, rkd_distance_loss, rkd_angle_loss, pkt_loss, ifd_loss]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def length(x):
    return math.sqrt(dot(x, x))


def cosine(x, y):
    return dot(x, y) / (length(x) * length(y)) if length(x) and length(y) else 0.0


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def shares(kernel):
    return [[k / sum(row) for k in row] for row in kernel]


def pairs(rows, function):
    return [[function(x, y) for y in rows] for x in rows]


def mean_over_pairs(function, *matrices):
    B = len(matrices[0])
    return sum(function(*(m[i][j] for m in matrices)) for i in range(B) for j in range(B)) / B**2


def literal_similarity(student, teacher):
    sides = []
    for rows in (student, teacher):
        gram = pairs(rows, dot)
        sides.append([[g / length(row) if length(row) else 0.0 for g in row] for row in gram])
    return mean_over_pairs(lambda s, t: (t - s) ** 2, *sides)


def literal_correlation(student, teacher, gamma=0.4, order=2):
    def kernel(x, y):
        return sum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine(x, y) ** p for p in range(order + 1)
        )

    return mean_over_pairs(lambda s, t: (t - s) ** 2, pairs(student, kernel), pairs(teacher, kernel))


def literal_distance(student, teacher):
    sides = []
    for rows in (student, teacher):
        distances = pairs(rows, lambda x, y: length(minus(x, y)))
        there = [d for row in distances for d in row if d > 0]
        mean = sum(there) / len(there) if there else 1.0
        sides.append([[d / mean for d in row] for row in distances])
    return mean_over_pairs(lambda s, t: huber(s - t), *sides)


def literal_angle(student, teacher):
    B, total = len(student), 0.0
    for i in range(B):
        for j in range(B):
            for k in range(B):
                s, t = (cosine(minus(x[i], x[j]), minus(x[k], x[j])) for x in (student, teacher))
                total += huber(s - t)
    return total / B**3


def literal_transfer(student, teacher, eps=1e-7):
    s, t = (shares(pairs(rows, lambda x, y: (cosine(x, y) + 1) / 2)) for rows in (student, teacher))
    return mean_over_pairs(lambda s, t: t * math.log((t + eps) / (s + eps)), s, t)


def literal_hybrid(student, teacher, eps=1e-7):
    total = 0.0
    for kernel in (lambda x, y: (cosine(x, y) + 1) / 2, lambda x, y: 1 / (1 + length(minus(x, y)))):
        s, t = (shares(pairs(rows, kernel)) for rows in (student, teacher))
        total += mean_over_pairs(lambda s, t: (t - s) * (math.log(t + eps) - math.log(s + eps)), s, t)
    return total


LITERAL = dict(
    zip(
        LOSSES,
        [literal_similarity, literal_correlation, literal_distance, literal_angle, literal_transfer, literal_hybrid],
        strict=True,
    )
)


def embeddings(seed, rows, width, scale=1.0):
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), scale=st.floats(0.1, 5))
def test_losses_equal_the_loops(loss, seed, rows, scale):
    student, teacher = embeddings(seed, rows, 3, scale), embeddings(seed + 1, rows, 4)
    value = loss(student=student, teacher=teacher)
    assert float(value) == pytest.approx(LITERAL[loss](student.tolist(), teacher.tolist()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_the_loops_where_rows_are_equal_or_zero(loss):
    student, teacher = embeddings(3, 6, 3), embeddings(4, 6, 4)
    student[1], student[2], student[3], teacher[4], teacher[5] = student[0], 0.0, 0.0, 0.0, teacher[0]
    value = loss(student=student, teacher=teacher)
    assert float(value) == pytest.approx(LITERAL[loss](student.tolist(), teacher.tolist()), rel=1e-9)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 0), (0.4, 1), (0.7, 3)])
def test_the_kernel_of_correlations_can_be_chosen(gamma, order):
    student, teacher = embeddings(5, 4, 3), embeddings(6, 4, 3)
    value = correlation_congruence(student=student, teacher=teacher, gamma=gamma, order=order)
    expected = literal_correlation(student.tolist(), teacher.tolist(), gamma, order)
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_series_tends_to_the_gaussian():
    student, teacher = embeddings(7, 5, 3), embeddings(8, 5, 3)
    units = [[[v / length(row) for v in row] for row in x.tolist()] for x in (student, teacher)]
    sides = [pairs(rows, lambda x, y: math.exp(-0.4 * length(minus(x, y)) ** 2)) for rows in units]
    value = correlation_congruence(student=student, teacher=teacher, gamma=0.4, order=15)
    assert float(value) == pytest.approx(mean_over_pairs(lambda s, t: (t - s) ** 2, *sides), rel=1e-9)


def test_closed_forms():
    """Two clips, orthogonal for the student, equal for the teacher."""
    student = torch.eye(2, dtype=torch.float64)
    teacher = torch.ones(2, 3, dtype=torch.float64)
    both = {"student": student, "teacher": teacher}
    # Rows (1, 0) against (1, 1) / sqrt 2.
    expected = ((1 - 1 / math.sqrt(2)) ** 2 + 0.5) / 2
    assert float(sp_loss(**both)) == pytest.approx(expected)
    # Off the diagonal cosine 0 against 1: the terms of order 0 are equal, those of order 1 and 2 are 0.8 and 0.32.
    assert float(correlation_congruence(**both)) == pytest.approx((1.12 * math.exp(-0.8)) ** 2 / 2)
    # The student's only distance is its mean, so 1; the teacher has none.
    assert float(rkd_distance_loss(**both)) == pytest.approx(0.5 * 0.5)
    # i = k, both unlike j: cosine 1 against 0, in two of eight triplets.
    assert float(rkd_angle_loss(**both)) == pytest.approx(0.5 * 2 / 8)
    # Shares (2/3, 1/3) against (1/2, 1/2).
    expected = (0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)) / 2
    assert float(pkt_loss(**both)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_turned_copy_of_the_teacher_is_perfect(loss):
    teacher = embeddings(9, 6, 4)
    turn = torch.linalg.qr(embeddings(10, 4, 4))[0]
    assert float(loss(student=teacher @ turn, teacher=teacher)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student=embeddings(11, 6, 4), teacher=teacher)) > 1e-6


@pytest.mark.parametrize("loss", [x for x in LOSSES if x is not ifd_loss])
def test_the_scale_of_the_student_does_not_matter(loss):
    student, teacher = embeddings(12, 5, 3), embeddings(13, 5, 4)
    values = [float(loss(student=scale * student, teacher=teacher)) for scale in (1.0, 7.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_differences(loss):
    student, teacher = embeddings(14, 4, 3).requires_grad_(), embeddings(15, 4, 5)
    assert torch.autograd.gradcheck(lambda x: loss(student=x, teacher=teacher), (student,))


@pytest.mark.parametrize("loss", [x for x in LOSSES if x is not correlation_congruence])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = embeddings(16, 4, 3).requires_grad_(), embeddings(17, 4, 3).requires_grad_()
    loss(student=student, teacher=teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def equal_rows(x):
    return x[:1].repeat(len(x), 1)


DEGENERATE = {
    "all rows equal": equal_rows,
    "two rows equal": lambda x: torch.cat([x[:-1], x[:1]]),
    "a row of zeros": lambda x: torch.cat([x[:-1], torch.zeros_like(x[:1])]),
    "only zeros": torch.zeros_like,
    "opposite rows": lambda x: torch.cat([x[:1], -x[:1]]),
    "one row": lambda x: x[:1],
    "nearly equal rows": lambda x: equal_rows(x) + 1e-7 * x,
    "tiny": lambda x: 1e-30 * x,
    "large": lambda x: 1e6 * x,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
def test_values_and_gradients_are_finite_whatever_the_embeddings(loss, side, change):
    student, teacher = embeddings(18, 5, 3).float(), embeddings(19, 5, 4).float()
    changed = [change(x) if side in (name, "both") else x for name, x in (("student", student), ("teacher", teacher))]
    rows = min(map(len, changed))
    student, teacher = (x[:rows].clone().requires_grad_() for x in changed)
    value = loss(student=student, teacher=teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_rows_do_not_blow_up_the_gradient(loss):
    student, teacher = embeddings(20, 5, 3).float(), embeddings(21, 5, 3).float()
    student[4] = 0
    student.requires_grad_()
    loss(student=student, teacher=teacher).backward()
    assert student.grad.abs().max() < 10


def test_equal_clips_have_no_gradient_of_their_distance():
    student = equal_rows(embeddings(22, 3, 4)).requires_grad_()
    rkd_distance_loss(student=student, teacher=embeddings(23, 3, 4)).backward()
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_one_clip_has_no_relations(loss):
    student = embeddings(24, 1, 3).requires_grad_()
    value = loss(student=student, teacher=embeddings(25, 1, 4))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-15)
    assert student.grad.abs().max() <= 1e-15


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_look_at_is_zero_with_a_graph(loss):
    student = torch.zeros(0, 3, requires_grad=True)
    value = loss(student=student, teacher=torch.zeros(0, 4))
    assert float(value.detach()) == 0
    value.backward()
    assert student.grad is not None


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_comes_near(loss):
    student, teacher = embeddings(26, 6, 8).float(), embeddings(27, 6, 8).float()
    expected = float(loss(student=student, teacher=teacher))
    low = student.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student=low, teacher=teacher)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=0.1)
    assert torch.isfinite(low.grad).all()
