"""Speed of a training step: `results/performance/training.json`.

    python benchmarks/speed/training.py [step_8x56 ...]

The released student with MNF + CSC, the same weights, the same batch, the same gradients (compared before anything is
timed), against the literal procedure of `baseline.py`; and a step of MNF + CSC against a supervised one.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

import baseline
from avdistill.distributed import autocast
from avdistill.inputs import normalize_frames
from avdistill.methods import MethodContext, build_method
from avdistill.methods.base import Method
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.models.registry import build_model
from avdistill.training.config import OptimizerConfig
from avdistill.training.malloc import configure_malloc
from avdistill.training.optim import build_optimizer, clip_gradients
from avdistill.types import Batch, Features
from measuring import Row, against, in_turn, measure, process_of, within

CLASSES, WIDTH = 51, 512
RELEASED = MNFCSCConfig(sparsity="last", log_epsilon=1e-10)
RECIPE = OptimizerConfig("adam", 3e-4, 5e-4)
Precision = Literal["float32", "bfloat16"]


def batch_of(clips: int, frames: int, side: int) -> Batch:
    """Random images with random non-negative teachers."""
    generator = torch.Generator().manual_seed(0)
    every = torch.ones(clips, dtype=torch.bool)
    return Batch(
        labels=torch.randint(CLASSES, (clips,), generator=generator),
        labeled=every,
        has_teacher=every,
        clip_ids=tuple(map(str, range(clips))),
        frames=torch.randint(256, (clips, frames, side, side, 3), dtype=torch.uint8, generator=generator),
        teacher=Features(embedding=torch.rand(clips, WIDTH, generator=generator)),
    )


def method_of(config: MNFCSCConfig | SupervisedConfig, clips: int) -> Method:
    """A method with the released student."""
    torch.manual_seed(0)
    return build_method(
        config, build_model("r2plus1d_xia2023", CLASSES), MethodContext(CLASSES, WIDTH, 1000, clips, 1000)
    )


def step_of(
    method: Method, batch: Batch, recipe: OptimizerConfig = RECIPE, precision: Precision = "float32"
) -> Callable[[], float]:
    """What the loop does in a step, from a batch in memory; for a process of its own, whose memory it keeps."""
    configure_malloc()
    optimizer = build_optimizer(recipe, method)

    def step() -> float:
        with autocast(precision, batch.labels.device):
            losses = method(batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        clip_gradients(optimizer, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total.detach())

    return step


def ours(config: MNFCSCConfig | SupervisedConfig, clips: int, frames: int, side: int) -> Callable[[], float]:
    """Our step with the released student."""
    return step_of(method_of(config, clips), batch_of(clips, frames, side))


def theirs(clips: int, frames: int, side: int) -> Callable[[], float]:
    """The literal step, from normalized frames: the release's loader hands those over, ours bytes."""
    batch = batch_of(clips, frames, side)
    assert batch.frames is not None
    assert batch.teacher is not None
    student, noise_filter = literal(method_of(RELEASED, clips))
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(student.parameters(), lr=3e-4, weight_decay=5e-4),
        torch.optim.Adam(noise_filter.parameters(), lr=6e-5, weight_decay=5e-4),
    ]
    normalized, audio, labels = normalize_frames(batch.frames), batch.teacher.embedding, batch.labels
    return lambda: baseline.step(student, noise_filter, optimizers, normalized, audio, labels)


def literal(method: Method) -> tuple[baseline.Student, baseline.Filter]:
    """The literal procedure's networks with the weights of ours."""
    student, noise_filter = baseline.Student(CLASSES, WIDTH), baseline.Filter(WIDTH, CLASSES)
    student.load_state_dict(method.student.state_dict())
    noise_filter.load_state_dict(method.filter.state_dict())  # type: ignore[union-attr]
    return student, noise_filter


def check_gradients(clips: int, frames: int, side: int) -> float:
    """Largest difference of a gradient, over the largest gradient; raises where they are not the same.

    In float64: with BatchNorm, ReLU and random images, float32 rounds the gradients a hundredth apart.
    """
    batch = batch_of(clips, frames, side)
    assert batch.frames is not None
    assert batch.teacher is not None
    method = method_of(RELEASED, clips)
    student, noise_filter = literal(method)
    for network in (method, student, noise_filter):
        network.double()
    images, audio = normalize_frames(batch.frames).double(), batch.teacher.embedding.double()
    losses = method.losses(method.student(images), replace(batch, teacher=Features(embedding=audio)))
    torch.stack(list(losses.values())).sum().backward()
    baseline.backward(student, noise_filter, images, audio, batch.labels)
    expected = {f"student.{k}": p.grad for k, p in student.named_parameters()}
    expected |= {f"filter.{k}": p.grad for k, p in noise_filter.named_parameters()}
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    worst = 0.0
    for name, p in method.named_parameters():
        wanted = expected[name]
        assert p.grad is not None, name
        assert wanted is not None, name
        worst = max(worst, float((p.grad - wanted).abs().max()) / largest)
    if worst > 1e-9:
        raise SystemExit(f"the gradients differ by {worst:.1e} of the largest: nothing to compare")
    return worst


def step(name: str, bar: float, clips: int, frames: int, side: int) -> Row:
    """Our step against the literal one, each in a process of its own."""
    worst = check_gradients(clips, frames, side)
    own, literal_one = partial(ours, RELEASED, clips, frames, side), partial(theirs, clips, frames, side)
    with process_of(own) as first, process_of(literal_one) as second:
        return against(name, bar, first, second, batch=clips, gradient_difference=worst)


def both(*size: int) -> list[float]:
    """Ratios of a step of MNF + CSC to a supervised one, in this process: their memory lies alike."""
    filtered, plain = (ours(config, *size) for config in (MNFCSCConfig(), SupervisedConfig()))
    return [a / b for a, b in in_turn(filtered, plain, repeats=15)]


def overhead() -> Row:
    """A step of MNF + CSC over a supervised step, at most 1.03: at the release's size, and told at the small one too.

    The filter's work does not grow with the images: beside small ones it weighs more.
    """
    small = statistics.median(both(8, 8, 56))
    return within("method_overhead", 1.03, both(4, 16, 112), at_8x56=small)


MEASURES = {
    "step_8x56": lambda: step("step_8x56", 2.0, 8, 8, 56),
    "step_16x112": lambda: step("step_16x112", 2.8, 4, 16, 112),
    "method_overhead": overhead,
}


def main() -> None:
    """Those named, or all."""
    measure("training", MEASURES, sys.argv[1:])


if __name__ == "__main__":
    main()
