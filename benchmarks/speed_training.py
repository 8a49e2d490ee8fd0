"""Speed of a training step: `results/performance/training.json`.

    python benchmarks/speed_training.py [step_8x56 ...]

The released student with MNF + CSC, the same weights, the same batch, the same gradients (compared before anything is
timed), against the literal procedure of `baseline.py`; and a step of MNF + CSC against a supervised one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import baseline
from avdistill.methods import MNFCSCConfig, Sizes, SupervisedConfig, build_method
from avdistill.methods.base import Method
from avdistill.models import build_model
from avdistill.models.video import normalise_frames
from avdistill.training.config import OptimizerConfig
from avdistill.training.optim import build_optimizer, clip_gradients
from avdistill.types import Batch, Features
from measuring import Row, against, in_turn, measure, within

CLASSES, WIDTH = 51, 512
RECIPE = OptimizerConfig("adam", 3e-4, 5e-4)


def batch_of(clips: int, frames: int, side: int) -> Batch:
    """Random pictures with random non-negative teachers."""
    generator = torch.Generator().manual_seed(0)
    every = torch.ones(clips, dtype=torch.bool)
    return Batch(
        labels=torch.randint(CLASSES, (clips,), generator=generator),
        labelled=every,
        has_teacher=every,
        clip_ids=tuple(map(str, range(clips))),
        frames=torch.randint(256, (clips, frames, side, side, 3), dtype=torch.uint8, generator=generator),
        teacher=Features(embedding=torch.rand(clips, WIDTH, generator=generator)),
    )


def ours(config: MNFCSCConfig | SupervisedConfig, clips: int) -> Method:
    """A method with the released student."""
    torch.manual_seed(0)
    return build_method(config, build_model("released_r2plus1d", CLASSES), Sizes(CLASSES, WIDTH, 1000, clips, 1000))


def step_of(method: Method, batch: Batch) -> Callable[[], float]:
    """What the loop does in a step, from a batch in memory."""
    optimizer = build_optimizer(RECIPE, method)

    def step() -> float:
        losses = method(batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        clip_gradients(optimizer, None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total.detach())

    return step


def literal(method: Method) -> tuple[baseline.Student, baseline.Filter]:
    """The literal procedure's networks with the weights of ours."""
    student, noise_filter = baseline.Student(CLASSES, WIDTH), baseline.Filter(WIDTH, CLASSES)
    student.load_state_dict(method.student.state_dict())
    noise_filter.load_state_dict(method.filter.state_dict())  # type: ignore[union-attr]
    return student, noise_filter


def check_gradients(method: Method, student: baseline.Student, noise_filter: baseline.Filter, batch: Batch) -> float:
    """Largest difference of a gradient, over the largest gradient; raises where they are not the same."""
    assert batch.frames is not None
    assert batch.teacher is not None
    torch.stack(list(method(batch).values())).sum().backward()
    baseline.backward(student, noise_filter, normalise_frames(batch.frames), batch.teacher.embedding, batch.labels)
    theirs = {f"student.{k}": p.grad for k, p in student.named_parameters()}
    theirs |= {f"filter.{k}": p.grad for k, p in noise_filter.named_parameters()}
    largest = max(float(g.abs().max()) for g in theirs.values() if g is not None)
    worst = 0.0
    for name, p in method.named_parameters():
        expected = theirs[name]
        assert p.grad is not None, name
        assert expected is not None, name
        worst = max(worst, float((p.grad - expected).abs().max()) / largest)
        p.grad = None
    if worst > 1e-3:
        raise SystemExit(f"the gradients differ by {worst:.1e} of the largest: nothing to compare")
    for network in (student, noise_filter):
        network.zero_grad()
    return worst


def step(name: str, clips: int, frames: int, side: int) -> Row:
    """Our step against the literal one."""
    batch = batch_of(clips, frames, side)
    assert batch.frames is not None
    assert batch.teacher is not None
    method = ours(MNFCSCConfig(sparsity="last", log_epsilon=1e-10), clips)
    student, noise_filter = literal(method)
    worst = check_gradients(method, student, noise_filter, batch)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(student.parameters(), lr=3e-4, weight_decay=5e-4),
        torch.optim.Adam(noise_filter.parameters(), lr=6e-5, weight_decay=5e-4),
    ]
    raw, sound, labels = batch.frames, batch.teacher.embedding, batch.labels
    # The release's loader hands over normalised frames; ours does that in the step, which is counted here.
    frames_float = normalise_frames(raw)
    return against(
        name,
        1.9,
        step_of(method, batch),
        lambda: baseline.step(student, noise_filter, optimizers, frames_float, sound, labels),
        batch=clips,
        gradient_difference=worst,
    )


def overhead() -> Row:
    """A step of MNF + CSC over a supervised step, at most 1.03."""
    batch = batch_of(8, 8, 56)
    pairs = in_turn(
        step_of(ours(MNFCSCConfig(), 8), batch),
        step_of(ours(SupervisedConfig(), 8), batch),
        repeats=15,
    )
    return within("method_overhead", 1.03, [a / b for a, b in pairs])


MEASURES = {
    "step_8x56": lambda: step("step_8x56", 8, 8, 56),
    "step_16x112": lambda: step("step_16x112", 4, 16, 112),
    "method_overhead": overhead,
}


def main() -> None:
    """Those named, or all."""
    measure("training", MEASURES, sys.argv[1:])


if __name__ == "__main__":
    main()
