"""Where a step's and a clip's time goes, and what the machine could do: `results/performance/profile.json`.

    python benchmarks/speed/profiling.py --work DIR

The released student with MNF + CSC at the release's size, by operator: for convolutions and products in operations a
second, beside a product of two 4096 x 4096 matrices; for what only moves numbers in bytes a second, beside a copy in
memory. A prepared clip, by what is done with it. Then what was tried and is not used: the compiled student, and
torchcodec instead of PyAV (needs the package, and FFmpeg's libraries from the system). `--work` is that of
`preparation.py`.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from avdistill.fsio import write_json
from avdistill.media import read_clip
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.training.malloc import configure_malloc
from measuring import RESULTS, NotHereError, in_turn, machine, process_of, seconds
from preparation import decode, video
from training import batch_of, method_of, step_of

CLIPS, FRAMES, SIDE = 4, 16, 112
#: operators that only move numbers -> how often one of the size of its first argument is read or written
MOVES = {
    "aten::native_batch_norm": 3,
    "aten::native_batch_norm_backward": 5,
    "aten::threshold_backward": 3,
    "aten::clamp_min_": 2,
    "aten::copy_": 2,
    "aten::add": 3,
}


def machine_limits() -> dict[str, float]:
    """GFLOP/s of a large product and GB/s of a large copy, medians of seven."""
    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    source, target = torch.randn(2**26), torch.empty(2**26)
    a @ b, target.copy_(source)
    product = statistics.median(seconds(lambda: a @ b) for _ in range(7))
    copy = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(7))
    return {"gflops": 2 * 4096**3 / product / 1e9, "gigabytes_per_second": 2 * source.nbytes / copy / 1e9}


def step_costs() -> dict[str, Any]:
    """Of a step: the mean of three, after three that do not count."""
    batch = batch_of(CLIPS, FRAMES, SIDE)
    method = method_of(MNFCSCConfig(), CLIPS)
    step = step_of(method, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    step(), step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as told:
        step(), step(), step()
    times: dict[str, float] = defaultdict(float)
    moved: dict[str, float] = defaultdict(float)
    for event in told.key_averages(group_by_input_shape=True):
        times[event.key] += event.self_cpu_time_total / 1e6 / 3
        shape = event.input_shapes[0] if event.input_shapes else []
        moved[event.key] += 4 * MOVES.get(event.key, 0) * event.count / 3 * math.prod(shape)
    whole = sum(times.values())
    operations = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    counted = {
        "aten::mkldnn_convolution": operations.get("aten.convolution", 0),
        "aten::convolution_backward": operations.get("aten.convolution_backward", 0),
    }
    rows = []
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:8]:
        row: dict[str, Any] = {"operator": name.removeprefix("aten::"), "seconds": spent, "share": spent / whole}
        if counted.get(name):
            row["gflops"] = counted[name] / spent / 1e9
        if moved[name]:
            row["gigabytes_per_second"] = moved[name] / spent / 1e9
        rows.append(row)
    return {"clips": CLIPS, "frames": FRAMES, "side": SIDE, "seconds": whole, "operators": rows}


def moving_alone() -> dict[str, float]:
    """GB/s of BatchNorm and ReLU backward without a profiler, whose own allocations scatter the memory of a step."""
    configure_malloc()
    x = torch.randn(64, 144, 28, 28).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)
    metrics = {}
    for name, output in (
        ("native_batch_norm_backward", torch.nn.BatchNorm2d(144)(x)),
        ("threshold_backward", torch.relu(x)),
    ):
        backward = partial(torch.autograd.grad, output, x, gradient, retain_graph=True)
        backward()
        spent = statistics.median(seconds(backward) for _ in range(15))
        metrics[name] = MOVES[f"aten::{name}"] * x.nbytes / spent / 1e9
    return metrics


def clip_costs(path: Path) -> dict[str, Any]:
    """Of one file, by the calls into PyAV, whose own time a profiler of Python hardly stretches."""
    reading = partial(read_clip, path, fps=4, short_side=128, spool=path.with_suffix(".frames"))
    reading()
    profiler = cProfile.Profile()
    profiler.runcall(reading)
    parts = {
        "decode": "decoding",
        "reformat": "scaling, to RGB",
        "push": "audio to mono at 16 kHz",
        "_packets": "reading",
    }
    parts |= {"pull": parts["push"], "write": "writing the frames"}
    spent: dict[str, float] = defaultdict(float)
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (_, _, name), (_, _, own, _, _) in stats.items():
        word = next((w for w in parts if name == w or name.startswith(f"<method '{w}'")), None)
        spent[parts[word] if word else "Python around it"] += own
    whole = sum(spent.values())
    rows = [{"part": k, "seconds": v, "share": v / whole} for k, v in sorted(spent.items(), key=lambda x: -x[1])]
    decoded = 500 * 640 * 360 * 1.5 / spent["decoding"] / 1e9
    return {"seconds": whole, "parts": rows, "decoded_gigabytes_per_second": decoded}


def student_step(compiled: bool) -> Callable[[], float]:
    """A supervised step, the student compiled or not."""
    method = method_of(SupervisedConfig(), 8)
    if compiled:
        method.student.compile()
    step = step_of(method, batch_of(8, 8, 56))
    step()
    return step


def compiled() -> dict[str, float]:
    """The compiled student's step over the plain one's, and how long compiling takes."""
    began = time.perf_counter()
    with process_of(partial(student_step, True)) as fast, process_of(partial(student_step, False)) as plain:
        taken = time.perf_counter() - began
        return {"times": statistics.median(a / b for a, b in in_turn(fast, plain)), "seconds_until_ready": taken}


def torchcodec(path: Path) -> dict[str, Any]:
    """Its decoding of every frame to RGB, and to every sixth, over PyAV's decoding of draw_image and audio."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:  # RuntimeError: no FFmpeg libraries
        raise NotHereError(f"torchcodec: {str(error).splitlines()[0]}") from None

    def every() -> None:
        for _ in VideoDecoder(path, num_ffmpeg_threads=1):
            pass

    def quarter_seconds() -> None:
        VideoDecoder(path, num_ffmpeg_threads=1).get_frames_played_at([i / 4 for i in range(79)])

    def ours() -> None:
        read_clip(path, fps=4)

    metrics = {
        "every_frame": in_turn(every, lambda: decode(path)),
        "at_4_fps_full_size": in_turn(quarter_seconds, ours),
    }
    return {name: statistics.median(a / b for a, b in pairs) for name, pairs in metrics.items()}


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description="what costs time, and what the machine could do")
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    path = video(a.work / "video.mp4")
    # The step first: what others have allocated would be in its way.
    told: dict[str, Any] = {"step": step_costs(), "clip": clip_costs(path), "limits": machine_limits()}
    told["moving_alone"] = moving_alone()
    told["compiled"] = compiled()
    try:
        told["torchcodec"] = torchcodec(path)
    except NotHereError as error:
        print(f"not measured: {error}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "profile.json", told | machine())


if __name__ == "__main__":
    main()
