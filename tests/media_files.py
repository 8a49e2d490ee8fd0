"""Real files and a small set of them, made by the tests that need them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avdistill.data.annotations import Annotation


def write_video(
    path: Path,
    *,
    frames: np.ndarray | None,
    fps: int = 10,
    waveform: np.ndarray | None = None,
    sample_rate: int = 16000,
    codecs: tuple[str, str] = ("mpeg4", "aac"),
    layout: str = "mono",
    sound_streams: int = 1,
    picture_streams: int = 1,
    first_pts: int = 0,
    title: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """A real file: uint8 frames (T, H, W, 3) or none, float waveform (S,) or none, in each of the channels.

    The clock of the first picture stream starts at `first_pts` frames; `options` are the container's.
    """
    with av.open(str(path), "w", options=options) as container:
        if title:
            container.metadata["title"] = title
        pictures = []
        for _ in range(picture_streams if frames is not None else 0):
            picture = container.add_stream(codecs[0], rate=fps)
            picture.height, picture.width = frames.shape[1:3]
            picture.pix_fmt = "yuv420p"
            picture.bit_rate = 4_000_000
            pictures.append(picture)
        sounds = []
        if waveform is not None:
            for _ in range(sound_streams):
                # Vorbis in FFmpeg's own encoder counts as experimental.
                sound = container.add_stream(codecs[1], rate=sample_rate, options={"strict": "experimental"})
                sound.layout = layout
                sounds.append(sound)
        for picture in pictures:
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = first_pts + number, Fraction(1, fps)
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        for sound in sounds:
            channels = sound.layout.nb_channels
            samples = np.tile(waveform.astype(np.float32), (channels, 1))
            for start in range(0, samples.shape[1], 1024):
                chunk = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Flat grey frames whose brightness tells their number (compression keeps it within a few levels)."""
    levels = (20 + 200 * np.arange(count) / max(1, count - 1)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def tone(seconds: float, hz: float, sample_rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)


# Which clip of the small store has what: name, class, split, labelled, sound.
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
    for name, label, split, labelled, sound in SMALL:
        frames = rng.integers(0, 120, (10, 32, 48, 3)).astype(np.uint8)
        frames[:, :, 16 * label : 16 * label + 16] += 100
        waveform = {
            "tone": tone(1.0, 300 * (label + 1)) + 0.01 * rng.standard_normal(16000),
            "zeros": np.zeros(16000),
            "none": None,
        }[sound]
        write_video(folder / f"{name}.mp4", frames=frames, waveform=waveform)
        labels = (f"class_{label}",) if labelled else ()
        annotations.append(Annotation(name, f"{name}.mp4", labels, split))
    return annotations


def sounding_videos(folder: Path) -> list[Annotation]:
    """Forty short files of three classes, all labelled and with sound: thirty for training, ten for testing."""
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
