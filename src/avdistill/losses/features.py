"""Losses between features of student and teacher: embeddings, attention over positions, selectivity of channels.

Tokens of the two sides may have any number of positions and channels. To compare positions, both sides are taken to be
in time order, and the one with more positions is averaged to the other's number; beyond time they share nothing.
"""

from torch import Tensor
from torch.nn import functional as F

from avdistill.losses.empty import zero_if_empty

# Least variance of VID, as in the authors' code: the loss of a perfectly predicted channel would be minus infinity.
VARIANCE_FLOOR = 1e-5


@zero_if_empty("student")
def hint_regression(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over clips and channels of (student - teacher)^2 (Romero et al. 2015, equation 3, which sums and halves).

    Args:
        student: (B, D) embeddings after the regressor to the teacher's width.
        teacher: (B, D) embeddings; no gradient reaches them.
    """
    return F.mse_loss(student, teacher.detach())


@zero_if_empty("student")
def attention_transfer(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over clips and positions of (q_s - q_t)^2, q = a / |a| over positions (Zagoruyko and Komodakis 2017, eq. 2).

    a_k is the mean over channels of the squared activations at position k; of the side with more positions, a is
    averaged to the other's number of positions first.

    Args:
        student: (B, K, D) tokens, positions in time order.
        teacher: (B, K', D') tokens, positions in time order; no gradient reaches them.
    """
    K = min(student.shape[1], teacher.shape[1])
    q_student, q_teacher = (
        F.normalize(_averaged(tokens.square().mean(2, keepdim=True), K)[:, 0], dim=1)
        for tokens in (student, teacher.detach())
    )
    return F.mse_loss(q_student, q_teacher)


@zero_if_empty("student")
def neuron_selectivity(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over clips of the squared MMD between the selectivities of channels (Huang and Wang 2017, section 4).

    A channel's sample is its activations over the positions, of length 1; the kernel is k(x, y) = (x . y)^2, the
    polynomial one with d = 2 and c = 0:
    MMD^2 = mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j).

    Args:
        student: (B, K, D) tokens, positions in time order.
        teacher: (B, K', D') tokens, positions in time order; no gradient reaches them.
    """
    K = min(student.shape[1], teacher.shape[1])
    # sum_ij (x_i . y_j)^2 = <X'X, Y'Y>: K x K numbers a clip instead of channels x channels, and a difference that
    # cannot fall below 0 by rounding.
    gram_student, gram_teacher = (_gram(_averaged(tokens, K)) for tokens in (student, teacher.detach()))
    return (gram_student - gram_teacher).square().sum((1, 2)).mean()


def variational_information(*, mean: Tensor, raw_variance: Tensor, teacher: Tensor) -> Tensor:
    """Mean over clips and channels of -log q(teacher | student), constant left out (Ahn et al. 2019).

    q is a Gaussian about `mean` with a variance per channel, softplus(raw_variance) + 1e-5:
    ((teacher - mean)^2 / variance + log variance) / 2. Below 0 where the prediction is good.

    Args:
        mean: (B, D) the mean network's output for the student's embedding.
        raw_variance: (D,) one parameter per channel of the teacher.
        teacher: (B, D) embeddings; no gradient reaches them.

    Returns:
        A scalar; 0 with a graph to `mean` and `raw_variance` for an empty batch.
    """
    variance = F.softplus(raw_variance) + VARIANCE_FLOOR
    nll = 0.5 * ((teacher.detach() - mean).square() / variance + variance.log())
    return nll.sum() if len(mean) == 0 else nll.mean()


def _averaged(tokens: Tensor, K: int) -> Tensor:
    """(B, K', D) -> (B, D, K): neighbors averaged until K positions are left."""
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), K)


def _gram(channels: Tensor) -> Tensor:
    """(B, D, K) -> (B, K, K): mean over channels of the outer product of each one's activations, scaled to length 1."""
    unit = F.normalize(channels, dim=2)
    return unit.transpose(1, 2) @ unit / channels.shape[1]
