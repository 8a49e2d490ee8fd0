"""Parity, speed and the paper's UCF51 recipe on an accelerator. Needs torch >= 2.9, numpy and safetensors, no more.

    python benchmarks/speed/accelerator.py parity --out accelerator.json
    python benchmarks/speed/accelerator.py steps --out accelerator.json [--minutes 4] [NAME ...]
    python benchmarks/speed/accelerator.py recipe --clips FILE.npz --out accelerator.json [--minutes 12]
    python benchmarks/speed/accelerator.py pack DATASET --embeddings FILE.npz --out FILE.npz     (needs the library)

`parity` compares the golden values of the released code, in float32 and in bfloat16. `steps` times training steps of
the released student, 32 clips of 16 x 112 x 112. `recipe` trains by the recipes ucf51_supervised and ucf51_mnf_csc, one
seed after the other as long as there is time, on clips that `pack` made of a dataset on another machine (Pillow with
AVIF decodes them). The library is not installed but found: PYTHONPATH=src. Every row is written when it is there, in
place of the row of that name in `--out`, so a run that is cut keeps what is done. `--dry-run` does everything on the
CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import baseline
from accelerator_recipe import Setting, ceiling, pack, random_clips, recipe, run_recipe, save, train
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.distributed import autocast
from avdistill.inputs import normalize_frames
from avdistill.methods.base import Method
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.models.r2plus1d import R2Plus1D
from avdistill.types import StudentFeatures
from measuring import NotHereError, Row, in_turn
from support import golden_rule as golden
from training import RELEASED, Precision, batch_of, literal, method_of, step_of

# Largest error over 1 + the largest value. bfloat16 has 8 bits (0.004): a student adds up the roundings of its layers;
# of a filter's input only the tokens are rounded. A dry run on a CPU is within 0.003.
LIMITS = {"float32": 2e-5, "bfloat16": 0.02}


@contextmanager
def ieee_float32() -> Any:
    """Convolutions and products in float32 proper; PyTorch's default is TF32 for convolutions."""
    switches: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


# --- parity


def parity(setting: Setting, out: Path) -> None:
    """The golden values in float32, by the tolerance of the test on the CPU, and in bfloat16."""
    device = str(setting.device)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        errors: dict[str, float] = {}

        def note(what: str, pairs: Any, errors: dict[str, float] = errors) -> None:
            for key, value, expected in pairs:
                wanted = torch.tensor(expected, dtype=torch.float64)
                error = (value.detach().double().cpu() - wanted).abs().max() / (1 + wanted.abs().max())
                errors[f"{what} {key}"] = float(error)

        with ieee_float32():
            for case in golden.GOLDEN["mnf_csc"]:
                for mode in ("eval", "train"):
                    results = golden.filter_results(case, mode, device, dtype)
                    note(f"filter {mode}", golden.compared(results, golden.filter_expected(case, mode)))
            for case in golden.GOLDEN["backbone"]:
                results = golden.student_results(case, device, dtype)
                note("student", golden.compared(results, golden.student_expected(case)))
        worst = max(errors, key=errors.__getitem__)
        values = len(errors)
        save(out, ceiling(f"parity_{name}", LIMITS[name], errors[worst], setting, worst=worst, values=values))


# --- steps


def repeated(step: Callable[[], object], times: int, setting: Setting) -> Callable[[], None]:
    """Several steps, and the wait for the last."""

    def steps() -> None:
        for _ in range(times):
            step()
        setting.wait()

    return steps


def our_step(
    config: MNFCSCConfig | SupervisedConfig,
    setting: Setting,
    precision: Precision | None = None,
    change: Callable[[Method], object] = lambda method: None,
) -> Callable[[], object]:
    """The training loop's step from a batch on the device; `change` is applied to the method before."""
    clips, frames, side = setting.size
    method = method_of(config, clips).to(setting.device)
    change(method)
    batch = batch_of(clips, frames, side).to(setting.device)
    return step_of(method, batch, precision=precision or setting.precision)


def literal_step(setting: Setting, context: Callable[[], AbstractContextManager[object]]) -> Callable[[], object]:
    """The literal procedure in float32, from normalized frames on the device."""
    clips, frames, side = setting.size
    student, noise_filter = literal(method_of(RELEASED, clips))
    student.to(setting.device), noise_filter.to(setting.device)
    batch = batch_of(clips, frames, side).to(setting.device)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(student.parameters(), lr=3e-4, weight_decay=5e-4),
        torch.optim.Adam(noise_filter.parameters(), lr=6e-5, weight_decay=5e-4),
    ]
    assert batch.frames is not None
    assert batch.teacher is not None
    frames_in, audio, labels = normalize_frames(batch.frames), batch.teacher.embedding, batch.labels

    def step() -> None:
        with context():
            baseline.step(student, noise_filter, optimizers, frames_in, audio, labels)

    return step


def plain_step(setting: Setting, layout: torch.memory_format) -> Callable[[], object]:
    """The same layers as 3-D convolutions in a loop as one writes it: autocast, cross entropy, Adam."""
    clips, frames, side = setting.size
    student = literal(method_of(RELEASED, clips))[0].to(setting.device).to(memory_format=layout)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4, weight_decay=5e-4)
    batch = batch_of(clips, frames, side).to(setting.device)
    assert batch.frames is not None
    inputs = normalize_frames(batch.frames).contiguous(memory_format=layout)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(setting.precision, setting.device):
            loss = F.cross_entropy(student(inputs)[2], batch.labels)
        loss.backward()
        optimizer.step()

    return step


class ContiguousR2Plus1D(R2Plus1D):
    """The released student without the channels-last layout."""

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W)."""
        x = self.relu(self.bn1(self.conv1(inputs)))
        tokens = self.conv5(self.conv4(self.conv3(self.conv2(x)))).flatten(2).transpose(1, 2)
        return StudentFeatures(embedding=tokens.mean(1), logits=self.cls(tokens.mean(1)), tokens=tokens)


def contiguous(method: Method) -> None:
    """Leave out the channels-last layout."""
    method.student.__class__ = ContiguousR2Plus1D


@contextmanager
def autotuned() -> Any:
    """cuDNN tries its algorithms and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def pair(name: str, setting: Setting) -> tuple[float, Callable[[], object], Callable[[], object]]:
    """The bar of a row, our step and the other one. Ours is MNF + CSC as the library runs it, or supervised."""
    filtered, supervised = partial(our_step, RELEASED, setting), partial(our_step, SupervisedConfig(), setting)
    if name == "accelerator_step":
        return 4.0, filtered(), literal_step(setting, ieee_float32)
    if name == "accelerator_step_tf32":  # PyTorch's default; no bar was set for it
        return 1.0, filtered(), literal_step(setting, lambda: torch.enable_grad())
    if name == "accelerator_plain":
        return 1.0, supervised(), plain_step(setting, torch.contiguous_format)
    if name == "accelerator_plain_channels_last":
        return 1.0, supervised(), plain_step(setting, torch.channels_last_3d)
    # What the library does over what it might: 1 and above says that it is right.
    if name == "accelerator_bfloat16":
        return 1.0, filtered(), filtered("float32")
    if name == "accelerator_layout":
        return 1.0, filtered(), filtered(change=contiguous)
    if name == "accelerator_compile":
        backend = "eager" if setting.dry else "inductor"
        return 1.0, filtered(), filtered(change=lambda method: method.student.compile(backend=backend))
    assert name == "accelerator_autotune"
    return 1.0, filtered(), autotuned()(filtered())


PAIRS = (
    "accelerator_step",
    "accelerator_plain",
    "accelerator_plain_channels_last",
    "accelerator_step_tf32",
    "accelerator_layout",
    "accelerator_bfloat16",
    "accelerator_autotune",
    "accelerator_compile",
)


def timed(name: str, setting: Setting) -> Row:
    """A row of `PAIRS`: medians of five rounds of ten steps of each, in turn."""
    bar, ours, theirs = pair(name, setting)
    times, rounds = (1, 1) if setting.dry else (10, 5)
    both = in_turn(repeated(ours, times, setting), repeated(theirs, times, setting), rounds)
    row = {
        "name": name,
        "ratio": statistics.median(b / a for a, b in both),
        "bar": bar,
        "ours_seconds": statistics.median(a for a, _ in both) / times,
        "theirs_seconds": statistics.median(b for _, b in both) / times,
        "ratios": [round(b / a, 3) for a, b in both],
        "batch": setting.size[0],
    }
    return row | setting.machine()


def seconds_a_step(step: Callable[[], object], setting: Setting) -> float:
    """Median of five rounds of ten."""
    times, rounds = (1, 1) if setting.dry else (10, 5)
    run = repeated(step, times, setting)
    return statistics.median(a for a, _ in in_turn(run, lambda: None, rounds)) / times


def throughput(setting: Setting) -> Row:
    """TFLOP/s of a step of MNF + CSC, over that of a large product; no bar was set."""
    step = our_step(RELEASED, setting)
    with FlopCounterMode(display=False) as counter:
        step()
    spent = seconds_a_step(step, setting)
    side = 64 if setting.dry else 8192
    a = torch.randn(side, side, device=setting.device, dtype=torch.bfloat16)
    product = 2 * side**3 / seconds_a_step(lambda: a @ a, setting) / 1e12
    achieved = counter.get_total_flops() / spent / 1e12
    values = {"ratio": achieved / product, "bar": None, "ours_seconds": spent, "limit": product}
    return {"name": "accelerator_tflops"} | values | {"tflops": achieved, "product_tflops": product} | setting.machine()


def loading(setting: Setting) -> Row:
    """Share of a step that waits for clips from memory, cropped and scaled by the reading threads: at most 0.05."""
    clips, _, side = setting.size
    noise = random_clips(4 * clips, 28, (side + 16, side + 58), 512)
    config = replace(recipe("ucf51_mnf_csc", setting), steps=2 if setting.dry else 60, batch_size=clips)
    _, told = train(noise, config, setting.device, time.monotonic() + 60)
    return ceiling("accelerator_loading", 0.05, told["waiting_share"], setting, step_seconds=told["step_seconds"])


def steps(setting: Setting, out: Path, minutes: float, names: list[str]) -> None:
    """Those rows that are named, or all, until the time is over."""
    measures: dict[str, Callable[[], Row]] = {name: partial(timed, name, setting) for name in PAIRS}
    measures |= {"accelerator_tflops": lambda: throughput(setting), "accelerator_loading": lambda: loading(setting)}
    end = time.monotonic() + 60 * minutes
    for name in names or ["accelerator_step", "accelerator_tflops", "accelerator_loading", *PAIRS[1:]]:
        if time.monotonic() > end:
            print(f"{name} not measured: {minutes:g} minutes are over", file=sys.stderr, flush=True)
            continue
        save(out, measures[name]())
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """One of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("parity", "steps", "recipe"):
        part = parts.add_parser(name)
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes and two steps")
        if name != "parity":
            part.add_argument("--minutes", type=float, default={"steps": 4.0, "recipe": 12.0}[name])
        if name == "steps":
            part.add_argument("names", nargs="*", metavar="NAME", help="rows; all by default")
        if name == "recipe":
            part.add_argument("--clips", type=Path, help="what `pack` made; without it a dry run takes noise")
    packing = parts.add_parser("pack")
    packing.add_argument("dataset", type=Path)
    packing.add_argument("--embeddings", type=Path, required=True, help="an .npz with `name` and `embedding`")
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--quality", type=int, default=45, help="of AVIF")
    packing.add_argument("--megabytes", type=float, default=60.0, help="the most that the file may hold")
    a = parser.parse_args()
    if a.part == "pack":
        return print(json.dumps(pack(ClipDataset(a.dataset), a.embeddings, a.out, a.quality, a.megabytes)))
    if not a.dry_run and not torch.cuda.is_available():
        raise SystemExit("accelerator.py: expected a CUDA device, found none; --dry-run runs on the CPU")
    setting = Setting(torch.device("cpu" if a.dry_run else "cuda"), a.dry_run)
    if a.part == "parity":
        return parity(setting, a.out)
    if a.part == "steps":
        return steps(setting, a.out, a.minutes, a.names)
    if a.clips is None and not a.dry_run:
        raise SystemExit("accelerator.py: recipe: expected --clips FILE.npz, which `pack` makes")
    return run_recipe(setting, a.out, a.clips, a.minutes)


if __name__ == "__main__":
    try:
        main()
    except NotHereError as error:
        raise SystemExit(f"accelerator.py: {error}") from None
