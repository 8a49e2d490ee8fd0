"""What a page shows of a dataset's clip: an excerpt that a browser plays, single frames, the envelope of the audio."""

import math
from dataclasses import dataclass

import numpy as np

from avdistill.dataset.clip_dataset import SILENCE_PEAK, ClipDataset
from avdistill.dataset.shards import JpegFrames
from avdistill.media.encoder import encode_image, encode_webm

_WAVE_BINS = 240


@dataclass(frozen=True)
class Excerpt:
    """The part of a clip that is played.

    Attributes:
        kind: "video", with or without audio, or "audio".
        content: a WebM file.
        start_seconds: where it begins in the clip.
        seconds: how long it is.
        clip_seconds: how long the clip is.
    """

    kind: str
    content: bytes
    start_seconds: float
    seconds: float
    clip_seconds: float


def encode_excerpt(dataset: ClipDataset, clip: int, most_seconds: float) -> Excerpt | None:
    """The clip as a WebM file, of a longer one the middle; None where it has neither frames nor audio.

    Args:
        dataset: the dataset.
        clip: a row of it.
        most_seconds: length of the excerpt; its size does not grow with the length of the clip.
    """
    frames, audio = clip_items(dataset, clip)
    if frames is None and audio is None:  # a teacher's features may come from elsewhere
        return None
    rate_hz = dataset.sample_rate_hz
    fps = None if frames is None else frame_rate(dataset, clip, frames, audio)
    whole = max(0.0 if frames is None or not fps else len(frames) / fps, 0.0 if audio is None else len(audio) / rate_hz)
    start = max(0.0, (whole - most_seconds) / 2)
    content = encode_webm(
        _cut(frames, fps, start, most_seconds), fps, _cut(audio, rate_hz, start, most_seconds), rate_hz
    )
    return Excerpt("audio" if frames is None else "video", content, start, min(whole, most_seconds), whole)


def clip_items(dataset: ClipDataset, clip: int) -> tuple[np.ndarray | JpegFrames | None, np.ndarray | None]:
    """uint8 (T, H, W, 3) frames and int16 (S,) audio of a clip, None where it lacks them."""
    frames = dataset.frames(clip) if dataset.columns["has_video"][clip] else None
    audio = dataset.audio(clip) if dataset.columns["has_audio"][clip] else None
    return frames, audio


def frame_rate(dataset: ClipDataset, clip: int, frames: np.ndarray | JpegFrames, audio: np.ndarray | None) -> float:
    """Frames a second; where the dataset took every frame, those of the clip over its length, or its audio's."""
    if dataset.fps is not None:
        return dataset.fps
    length = float(dataset.columns["end_seconds"][clip] - dataset.columns["start_seconds"][clip])
    if length > 0:  # NaN where the clip ends with its file
        return len(frames) / length
    return 25.0 if audio is None else len(frames) * dataset.sample_rate_hz / len(audio)


def encode_frames(frames: np.ndarray | JpegFrames, places: list[int]) -> list[tuple[str, bytes]]:
    """Of each place the words "frame I of T" and a JPEG file."""
    return [(f"frame {i + 1} of {len(frames)}", encode_image(frames[i])) for i in places]


def waveform(audio: np.ndarray, sample_rate_hz: int) -> dict[str, object]:
    """The envelope of int16 (S,) audio for inline SVG: lowest and highest sample of each of some slices."""
    slices = np.array_split(audio, min(_WAVE_BINS, len(audio)))
    high, low = [max(0.0, s.max() / 32767) for s in slices], [min(0.0, s.min() / 32767) for s in slices]
    loudest = float(max(*high, *(-value for value in low)))
    level = f"peak {20 * math.log10(loudest):.0f} dBFS" if loudest > SILENCE_PEAK else "silent"
    scale = 19 / max(loudest, 0.05)  # quiet audio is drawn large, silence stays a line
    points = [(i, 20 - scale * v) for i, v in enumerate(high)] + [(i, 20 - scale * v) for i, v in enumerate(low)][::-1]
    return {
        "width": len(slices) - 1 or 1,
        "points": " ".join(f"{x},{y:.1f}" for x, y in points),
        "text": f"waveform, {len(audio) / sample_rate_hz:.1f} s, {level}",
    }


def _cut(items: np.ndarray | JpegFrames | None, rate: float | None, start: float, seconds: float) -> np.ndarray | None:
    """Frames or samples of so many seconds from `start` on."""
    if items is None or rate is None:
        return None
    return np.asarray(items[round(start * rate) : round((start + seconds) * rate)])
