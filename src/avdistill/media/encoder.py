"""Encoding: clips as WebM for browsers (VP8, Opus), single images as JPEG, and synthetic clips as MP4 or AVI files."""

import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

# The highest of Opus's five rates; FFmpeg resamples to it.
_OPUS_RATE_HZ = 48000
# What a page shows is no larger, and no longer, which VP8 could not store.
_MOST_PIXELS, _LONGEST_SIDE, _SHORT_SIDE = 640 * 480, 8192, 192


def encode_webm(frames: np.ndarray | None, fps: float | None, audio: np.ndarray | None, sample_rate_hz: int) -> bytes:
    """Encode a clip as a WebM file in memory; the same clip gives the same bytes.

    Args:
        frames: uint8 (T, H, W, 3) RGB, or None for audio alone. Frames with a shorter side below 192 pixels are scaled
            up to that (bicubic), large ones down (`displayed_size`); sizes are made even, as the codec requires.
        fps: frames per second; ignored without frames.
        audio: int16 (S,) mono, or None for video alone.
        sample_rate_hz: of the audio.

    Raises:
        ValueError: neither frames nor audio, or frames without a rate.
    """
    frames, audio = (None if array is None or not len(array) else array for array in (frames, audio))
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
            # A speed above 0 is a bound to one that libvpx chooses by the clock: other bytes on a busy machine.
            options = {"threads": "1", "deadline": "realtime", "cpu-used": "-4", "crf": "12", "flags": "+bitexact"}
            video_stream = container.add_stream("libvpx", rate=rate, options=options)
            height, width = displayed_size(frames.shape[1], frames.shape[2], _SHORT_SIDE)
            video_stream.height, video_stream.width = height, width
            video_stream.pix_fmt, video_stream.bit_rate = "yuv420p", 1_500_000
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
            _write_audio(container, audio_stream, np.ascontiguousarray(audio), "s16", sample_rate_hz)
    return file.getvalue()


def encode_image(image: np.ndarray) -> bytes:
    """Encode a uint8 (H, W, 3) RGB image as a JPEG file in memory; a large one is scaled down (`displayed_size`)."""
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    height, width, _ = image.shape
    if height * width > _MOST_PIXELS:
        height, width = displayed_size(height, width, 1)
    encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.qmin = encoder.qmax = 3
    encoder.options = {"flags": "+bitexact"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    packets = encoder.encode(frame.reformat(width, height, "yuvj420p", interpolation="BICUBIC"))
    return b"".join(bytes(packet) for packet in [*packets, *encoder.encode(None)])


def displayed_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width), both even: the shorter at least `short_side` if that makes at most 640 x 480 pixels.

    An image of more pixels is scaled down to so many, any other changes by at most a pixel.
    """
    factor = max(1.0, short_side / min(height, width))
    factor = min(factor, math.sqrt(_MOST_PIXELS / (height * width)), _LONGEST_SIDE / max(height, width))
    return max(2, 2 * round(height * factor / 2)), max(2, 2 * round(width * factor / 2))


def write_clip(
    path: Path, container_format: str, frames: np.ndarray, fps: int, waveform: np.ndarray | None, sample_rate_hz: int
) -> None:
    """Write a media file with the fast variants of the format's usual encoders.

    Args:
        container_format: "mp4" (H.264 and AAC) or "avi" (MPEG-4 and MP3).
        frames: uint8 (T, H, W, 3) RGB, H and W even.
        waveform: float32 (S,) mono in [-1, 1], or None for no audio stream.
        sample_rate_hz: of the waveform.
    """
    with av.open(str(path), "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        if container_format == "mp4":
            options = {"threads": "1", "preset": "ultrafast", "crf": "23"}
            video_stream = container.add_stream("libx264", rate=fps, options=options)
        else:
            options = {"threads": "1", "qmin": "4", "qmax": "4"}
            video_stream = container.add_stream("mpeg4", rate=fps, options=options)
        video_stream.height, video_stream.width, video_stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        audio_stream = None  # added before any data is written
        if waveform is not None:
            if container_format == "mp4":
                options = {"threads": "1", "aac_coder": "fast"}
                audio_stream = container.add_stream("aac", rate=sample_rate_hz, options=options)
            else:
                options = {"compression_level": "9"}
                audio_stream = container.add_stream("libmp3lame", rate=sample_rate_hz, options=options)
            audio_stream.layout, audio_stream.format, audio_stream.bit_rate = "mono", "fltp", 64000
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = number, Fraction(1, fps)
            container.mux(video_stream.encode(image))
        container.mux(video_stream.encode(None))
        if audio_stream is not None and waveform is not None:
            _write_audio(container, audio_stream, waveform, "fltp", sample_rate_hz)


def _write_audio(
    container: OutputContainer, stream: av.AudioStream, samples: np.ndarray, sample_format: str, sample_rate_hz: int
) -> None:
    """Encode all samples (S,) and end the stream."""
    frame = av.AudioFrame.from_ndarray(samples[None], format=sample_format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate_hz, 0, Fraction(1, sample_rate_hz)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
