"""What the tests of methods share: a small student, a batch with everything in it, a method built around them."""

from __future__ import annotations

import copy
from functools import cache

import torch

from avdistill.methods import Method, MethodConfig, MethodContext, build_method
from avdistill.models.registry import build_model
from avdistill.types import Batch, Features, Network

C, B, D, N = 4, 6, 16, 20  # classes, clips of the batch, width of student and teacher, training clips


def student() -> Network:
    """A student that sees, width D, 1-position-per-frame map of 4 tokens."""
    network, state = _first_student()
    torch.set_rng_state(state)
    return copy.deepcopy(network)


@cache  # copied far faster than built
def _first_student() -> tuple[Network, torch.Tensor]:
    """It, and the random state after it was built."""
    torch.manual_seed(0)
    return build_model("shifted_frames", C, {"width": 8, "embedding_dim": D}), torch.get_rng_state()


def batch(dtype=torch.float32, *, teacher_dim=D, has_teacher=None, labeled=None, rows=B, positions=5) -> Batch:
    """Random clips by rule; all labeled and all with a teacher unless said otherwise (lists of bool)."""
    generator = torch.Generator().manual_seed(1)
    yes = torch.ones(rows, dtype=torch.bool)
    frames = torch.randint(0, 256, (rows, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, C, (rows,), generator=generator)
    teacher = Features(
        embedding=torch.rand(rows, teacher_dim, generator=generator).to(dtype),
        logits=torch.randn(rows, C, generator=generator).to(dtype),
        tokens=torch.rand(rows, positions, teacher_dim, generator=generator).to(dtype),
    )
    return Batch(
        frames=frames,
        labels=labels,
        labeled=yes if labeled is None else torch.tensor(labeled),
        has_teacher=yes if has_teacher is None else torch.tensor(has_teacher),
        teacher=teacher,
        clip_ids=tuple(map(str, range(rows))),
        indices=torch.randperm(N, generator=generator)[:rows],
    )


def built(config: MethodConfig, *, student_network: Network | None = None, teacher_dim: int = D) -> Method:
    """The method with the weights of a fixed seed; it lives in float32 unless `.double()` is called on it."""
    torch.manual_seed(2)
    context = MethodContext(C, teacher_dim=teacher_dim, training_clips=N, batch_size=B, total_iterations=100)
    return build_method(config, student_network or student(), context)


def step(method, student_features, data):
    """The losses of a training iteration on given features of the student; the method's state moves after them."""
    losses = method.losses(student_features, data)
    if method.training:
        with torch.no_grad():
            method.update(student_features.detach(), data)
    return losses


class Float64(Network):
    """The student in float64 (frames are normalized in float32, as everywhere)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.double()
        self.modality, self.embedding_dim = network.modality, network.embedding_dim

    def forward(self, inputs: torch.Tensor) -> Features:
        return self.network(inputs.double())
