"""Real files and a small set of them, made by the tests that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avdistill.annotations import Annotation


def write_video(
    path: Path,
    *,
    frames: np.ndarray | None,
    fps: int = 10,
    waveform: np.ndarray | None = None,
    sample_rate: int = 16000,
    codecs: tuple[str, str] = ("mpeg4", "aac"),
    layout: str = "mono",
    audio_streams: int = 1,
    video_streams: int = 1,
    first_pts: int = 0,
    title: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """A real file: uint8 frames (T, H, W, 3) or none, float waveform (S,) or none, in each of the channels.

    The clock of the first video stream starts at `first_pts` frames; `options` are the container's.
    """
    with av.open(str(path), "w", options=options) as container:
        if title:
            container.metadata["title"] = title
        images = []
        for _ in range(video_streams if frames is not None else 0):
            video = container.add_stream(codecs[0], rate=fps)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.bit_rate = 4_000_000
            images.append(video)
        audio_outputs = []
        if waveform is not None:
            for _ in range(audio_streams):
                # Vorbis in FFmpeg's own encoder counts as experimental.
                audio = container.add_stream(codecs[1], rate=sample_rate, options={"strict": "experimental"})
                audio.layout = layout
                audio_outputs.append(audio)
        for video in images:
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = first_pts + number, Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for audio in audio_outputs:
            channels = audio.layout.nb_channels
            samples = np.tile(waveform.astype(np.float32), (channels, 1))
            for start in range(0, samples.shape[1], 1024):
                chunk = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def write_timed(
    path: Path,
    seconds: Sequence[Fraction | float],
    *,
    frames: np.ndarray | None = None,
    tick: Fraction = Fraction(1, 1000),
    codec: str = "mpeg4",
    prepare_stream: Callable[[av.VideoStream], object] = lambda stream: None,
) -> Path:
    """A video whose frames begin at these times, rounded to ticks; numbered frames unless others are given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=round(1 / tick))
        images = numbered_frames(len(seconds)) if frames is None else frames
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        prepare_stream(stream)
        for time, image in zip(seconds, images, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Flat grey frames whose brightness tells their number (compression keeps it within a few levels)."""
    levels = (20 + 200 * np.arange(count) / max(1, count - 1)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def tone(seconds: float, hz: float, sample_rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)


# Which clip of the small dataset has what: name, class, split, labeled, audio.
SMALL = [
    *[(f"train_{i}", i % 3, "train", i < 9, "tone" if i % 4 else "none") for i in range(18)],
    *[(f"silent_{i}", i % 3, "train", False, "zeros") for i in range(2)],
    *[(f"teacher_{i}", i % 3, "teacher", True, "tone") for i in range(9)],
    *[(f"test_{i}", i % 3, "test", True, "tone" if i else "none") for i in range(6)],
]


def small_videos(folder: Path) -> list[Annotation]:
    """Real files of three classes: a bright side that tells the class, a tone that does too."""
    rng = np.random.default_rng(0)
    annotations = []
    for name, label, split, labeled, audio in SMALL:
        frames = rng.integers(0, 120, (10, 32, 48, 3)).astype(np.uint8)
        frames[:, :, 16 * label : 16 * label + 16] += 100
        waveform = {
            "tone": tone(1.0, 300 * (label + 1)) + 0.01 * rng.standard_normal(16000),
            "zeros": np.zeros(16000),
            "none": None,
        }[audio]
        write_video(folder / f"{name}.mp4", frames=frames, waveform=waveform)
        labels = (f"class_{label}",) if labeled else ()
        annotations.append(Annotation(name, f"{name}.mp4", labels, split))
    return annotations


def audible_videos(folder: Path) -> list[Annotation]:
    """Forty short files of three classes, all labeled and with audio: thirty for training, ten for testing."""
    rng = np.random.default_rng(3)
    annotations = []
    for i in range(40):
        label = i % 3
        frames = rng.integers(0, 120, (6, 24, 32, 3)).astype(np.uint8)
        frames[:, :, 10 * label : 10 * label + 10] += 100
        waveform = tone(0.6, 300 * (label + 1) + 5 * i) + 0.02 * rng.standard_normal(9600)
        write_video(folder / f"{i}.mp4", frames=frames, waveform=waveform)
        split = "train" if i < 30 else "test"
        annotations.append(Annotation(f"clip{i}", f"{i}.mp4", (f"class_{label}",), split))
    return annotations
