"""Losses between the relations of a batch's clips in the student's and in the teacher's embedding space.

None compares a student's embedding with a teacher's directly, so the two may have any widths.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.losses.empty import zero_if_empty

# A shorter vector has no direction.
SHORTEST = 1e-12


@zero_if_empty("student")
def sp_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019, section 3).

    G = F F', every row of G divided by its L2 norm; the loss is ||G_teacher - G_student||_F^2 / B^2.

    Args:
        student: (B, D) embeddings.
        teacher: (B, E) embeddings; no gradient reaches them.
    """
    teacher = teacher.detach()
    return (_unit(teacher @ teacher.T) - _unit(student @ student.T)).square().mean()


@zero_if_empty("student", "teacher")
def correlation_congruence(*, student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence (Peng et al., ICCV 2019): ||K_teacher - K_student||_F^2 / B^2.

    K is the Taylor series of the Gaussian kernel of unit vectors up to `order`:
    K_ij = exp(-2 gamma) sum_p (2 gamma)^p / p! (x_i . x_j)^p.

    Args:
        student: (B, D); taken to unit length here.
        teacher: (B, E); likewise. Detach it where nothing in front of it is trained.
        gamma: of the kernel exp(-gamma ||x_i - x_j||^2).
        order: P, the last power of the series.
    """
    return (_gaussian_series(teacher, gamma, order) - _gaussian_series(student, gamma, order)).square().mean()


def _gaussian_series(x: Tensor, gamma: float, order: int) -> Tensor:
    cosines = _cosines(x)
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


@zero_if_empty("student")
def rkd_distance_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """The distance-wise loss of RKD (Park et al., CVPR 2019, section 3.2.1).

    Huber (delta 1) of ||x_i - x_j|| / m on both sides, m the mean of the side's distances that are above 0, gradient
    through the student's included; the mean over all B^2 pairs, i = j among them, as published.

    Args:
        student: (B, D) embeddings.
        teacher: (B, E) embeddings; no gradient reaches them.

    Returns:
        A scalar; 0 with a graph for an empty batch. Equal embeddings give no gradient to their distance.
    """
    return F.smooth_l1_loss(_scaled_distances(student), _scaled_distances(teacher.detach()))


def _scaled_distances(x: Tensor) -> Tensor:
    distances = _distances(x)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))


@zero_if_empty("student")
def rkd_angle_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """The angle-wise loss of RKD (Park et al., CVPR 2019, section 3.2.2).

    Huber (delta 1) of cos(x_i - x_j, x_k - x_j), the mean over all B^3 triplets, those with equal members among them,
    as published. An angle with a side of length 0 has cosine 0. Needs memory for B^2 D numbers.

    Args:
        student: (B, D) embeddings.
        teacher: (B, E) embeddings; no gradient reaches them.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher.detach()))


def _angles(x: Tensor) -> Tensor:
    directions = _unit(x[None, :] - x[:, None])  # (B, B, D): from j to i
    return directions @ directions.transpose(1, 2)  # (B, B, B): at j, between i and k


@zero_if_empty("student")
def pkt_loss(*, student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, section 3, cosine kernel).

    K_ij = (cos(x_i, x_j) + 1) / 2, P = K over its row's sum (i = j included, as released); the loss is the mean over
    all B^2 entries of t log((t + eps) / (s + eps)). Times B it is the mean over rows of KL(teacher || student).

    Args:
        student: (B, D) embeddings or logits.
        teacher: (B, E); no gradient reaches it.
        eps: keeps the logarithms finite where two clips are opposite.
    """
    t, s = _by_row(_cosine_kernel(teacher.detach())), _by_row(_cosine_kernel(student))
    return (t * ((t + eps).log() - (s + eps).log())).mean()


@zero_if_empty("student")
def ifd_loss(*, student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """The divergence in the released code of information-flow distillation (Passalis et al., CVPR 2020).

    The sum over two kernels, (cos(x_i, x_j) + 1) / 2 and 1 / (1 + ||x_i - x_j||), of the mean over all B^2 entries of
    (t - s) (log(t + eps) - log(s + eps)), t and s the kernels over their rows' sums: a symmetric divergence.

    Args:
        student: (B, D) embeddings or logits.
        teacher: (B, E); no gradient reaches it.
        eps: keeps the logarithms finite; the release has none here.
    """
    pairs = [(_by_row(kernel(teacher.detach())), _by_row(kernel(student))) for kernel in (_cosine_kernel, _t_kernel)]
    return torch.stack([((t - s) * ((t + eps).log() - (s + eps).log())).mean() for t, s in pairs]).sum()


def _cosine_kernel(x: Tensor) -> Tensor:
    # Rounding may take the cosine of opposite vectors below -1.
    return ((_cosines(x) + 1) / 2).clamp(min=0)


def _t_kernel(x: Tensor) -> Tensor:
    return 1 / (1 + _distances(x))


def _by_row(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum(1, keepdim=True)


def _cosines(x: Tensor) -> Tensor:
    x = _unit(x)
    return x @ x.T


def _distances(x: Tensor) -> Tensor:
    """(B, B), by subtraction: by dot products, near clips would drown in rounding. At 0 the gradient is 0."""
    return torch.linalg.vector_norm(x[None, :] - x[:, None], dim=2)


def _unit(x: Tensor) -> Tensor:
    """Unit vectors along the last dimension; 0 stays 0, with a gradient that is not divided by a tiny norm."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > SHORTEST, norm, torch.ones_like(norm))
