"""Real files whose audio and video set in at stated times."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from support.media_files import numbered_frames


def level(seconds: float, value: float, rate: int = 16000) -> np.ndarray:
    return np.full(round(seconds * rate), value, np.float32)


def write_runs(
    path: Path,
    runs: Sequence[tuple[float, np.ndarray]],
    *,
    rate: int = 16000,
    seconds: int = 12,
    fps: int = 10,
    chunk: int = 1024,
    video_from: int = 0,
    codec: str = "pcm_s16le",
    side_by_side: bool = False,
) -> Path:
    """A file with a video of so many seconds, and audio that sets in at each time of `runs`: (seconds, samples).

    They lie in the order of their times or, side by side, as what is recorded together does whatever the times say.
    """
    chunks = [
        (time + Fraction(start, rate), samples[start : start + chunk])
        for time, samples in runs
        for start in range(0, len(samples), chunk)
    ]
    images = ((video_from + Fraction(n, fps), image) for n, image in enumerate(numbered_frames(seconds * fps)))
    begins = {1: runs[0][0], 3: video_from} if side_by_side else {1: 0, 3: 0}  # by the dimensions of an item
    with av.open(str(path), "w", options={"max_interleave_delta": "1"} if side_by_side else {}) as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="mono", options={"flags": "+qscale"})
        for time, item in sorted([*chunks, *images], key=lambda item: item[0] - begins[item[1].ndim]):
            if item.ndim == 3:
                frame, stream = av.VideoFrame.from_ndarray(item, format="rgb24"), video
            else:
                pcm = codec == "pcm_s16le"
                samples = np.round(item * 32768).astype(np.int16) if pcm else item.astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples[None], format="s16" if pcm else "fltp", layout="mono")
                frame.sample_rate, stream = rate, audio
            frame.time_base = Fraction(1, fps if item.ndim == 3 else rate)
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def with_constant_rate(path: Path, seconds: int) -> Path:
    """A copy of an AVI file with MP3 of varying rate in a header for a constant one: its times are off by seconds."""
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(audio=0)]
    assert max(sizes[2:-2]) > 1.5 * min(sizes[2:-2])
    data = bytearray(path.read_bytes())
    header, mean = data.find(b"auds"), sum(sizes) // seconds
    form = data.find(b"strf", header) + 8
    struct.pack_into("<2I", data, header + 20, 1, mean)  # bytes a second, in samples of one byte
    struct.pack_into("<I", data, header + 44, 1)
    struct.pack_into("<IH", data, form + 8, mean, 1)
    copy = path.with_stem(f"{path.stem}_constant")
    copy.write_bytes(data)
    with av.open(str(copy)) as container:
        times = np.array([frame.time for frame in container.decode(audio=0)])
    assert np.abs(times - np.arange(len(times)) * 576 / 16000).max() > 1
    return copy
