"""A clip of a dataset as bytes that every browser plays: WebM with VP8 and Opus, and JPEG for single images."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

# Opus knows five rates; FFmpeg resamples whatever comes to this one.
_OPUS_RATE_HZ = 48000


def encode_clip(
    frames: np.ndarray | None,
    fps: float | None,
    audio: np.ndarray | None,
    sample_rate_hz: int,
    *,
    short_side: int = 192,
) -> bytes:
    """A WebM file in memory; the same clip gives the same bytes.

    Args:
        frames: uint8 (T, H, W, 3) RGB, or None for audio alone. Images smaller than `short_side` are scaled up to it
            (bicubic), and every size is made even, as the codec wants it.
        fps: frames a second; not looked at without frames.
        audio: int16 (S,) mono, or None for a silent film.
        sample_rate_hz: of the audio.
        short_side: pixels that the shorter side has at least.

    Raises:
        ValueError: neither frames nor audio, or frames without a rate.
    """
    if frames is not None and not len(frames):
        frames = None
    if audio is not None and not len(audio):
        audio = None
    if frames is None and audio is None:
        raise ValueError("a clip needs frames or audio")
    if frames is not None and not fps:
        raise ValueError("frames need a rate")
    file = io.BytesIO()
    with av.open(file, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        # A container takes no stream once data has been written.
        video_stream = audio_stream = None
        if frames is not None:
            rate = Fraction(fps or 0).limit_denominator(1001)
            options = {"threads": "1", "deadline": "realtime", "cpu-used": "4", "crf": "12", "flags": "+bitexact"}
            video_stream = container.add_stream("libvpx", rate=rate, options=options)
            height, width = displayed_size(frames.shape[1], frames.shape[2], short_side)
            video_stream.height, video_stream.width, video_stream.pix_fmt, video_stream.bit_rate = (
                height,
                width,
                "yuv420p",
                1_500_000,
            )
        if audio is not None:
            audio_stream = container.add_stream("libopus", rate=_OPUS_RATE_HZ, options={"flags": "+bitexact"})
            audio_stream.layout, audio_stream.bit_rate = "mono", 48_000
        if video_stream is not None and frames is not None:
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = frame.reformat(video_stream.width, video_stream.height, "yuv420p", interpolation="BICUBIC")
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(video_stream.encode(frame))
            container.mux(video_stream.encode(None))
        if audio_stream is not None and audio is not None:
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio)[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = sample_rate_hz, 0, Fraction(1, sample_rate_hz)
            container.mux(audio_stream.encode(samples))
            container.mux(audio_stream.encode(None))
    return file.getvalue()


def encode_image(image: np.ndarray) -> bytes:
    """A JPEG file in memory of a uint8 (H, W, 3) RGB video_stream."""
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width, encoder.pix_fmt = image.shape[0], image.shape[1], "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.qmin = encoder.qmax = 3
    encoder.options = {"flags": "+bitexact"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    packets = encoder.encode(frame.reformat(format="yuvj420p", interpolation="BICUBIC"))
    return b"".join(bytes(packet) for packet in [*packets, *encoder.encode(None)])


def displayed_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width), both even, the shorter at least `short_side`; a larger video_stream changes by a pixel at
    most.
    """
    factor = max(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * factor / 2)), max(2, 2 * round(width * factor / 2))
