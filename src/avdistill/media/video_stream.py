"""The video of a file: selection and storage of decoded frames; errors of both streams.

Frames are kept in memory or written to a spool file as they are decoded, so that an hour needs no more than a second.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from avdistill.errors import MediaError
from avdistill.media.scaler import Scaler
from avdistill.media.spool import Spool

# A longer time between two frames is a broken clock, not a slow slide show: filling it would invent the video.
_LONGEST_FRAME_SECONDS = 3600
# Audio may go on for so much longer than the video, because encoders fill up their last packet: no time of a frame.
PADDING_SECONDS = Fraction(1, 4)
# Where frames are so many ticks apart, their times are rounded ones (33, 67, 100 ms at 30 frames per second), and a
# frame less than a tick late is in time. A clock with fewer ticks counts frames.
_FINE_TICKS = 4
# Rates are rounded as well: 29.97 for 30000/1001.
_RATE_TOLERANCE = 1 + Fraction(1, 500_000)
# Reading begins a little before the segment, for the audio packet that crosses its start, and the packets its decoder
# needs to settle, come before a key frame at that time.
_LEAD_SECONDS = Fraction(1, 4)
# An hour at 25 frames per second whose shorter side has 128 pixels.
LARGEST_CLIP_BYTES = 8 * 2**30
# OverflowError: a time beyond the range of the file's clock.
DECODE_ERRORS = (av.error.FFmpegError, UnicodeDecodeError, ValueError, OverflowError)
# Lack of memory or threads, also an FFmpegError. It says nothing about the file, so it is raised again wherever
# DECODE_ERRORS are caught, or a clip would silently be cut short.
EXHAUSTED = (MemoryError, BlockingIOError)


class FrameBuffer:
    """The frames kept so far, in memory or in a spool file; a context manager that removes the file on an error.

    With `visit` none is kept: the function is called with each.
    """

    def __init__(
        self,
        path: Path,
        spool: str | os.PathLike[str] | None,
        limit_bytes: int | None = LARGEST_CLIP_BYTES,
        *,
        memory_bytes: int = 0,
        visit: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self._path, self._limit_bytes, self._visit = path, limit_bytes, visit
        self._spool = Spool(None if spool is None else Path(spool), memory_bytes)
        self.count = 0
        self.shape: tuple[int, ...] = ()  # of one frame, that of the first

    def __enter__(self) -> FrameBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._spool.close(remove=kind is not None)

    def add(self, image: np.ndarray) -> None:
        """Keep a uint8 (H, W, 3) frame. Raises MediaError beyond the limit, SpoolError where it cannot be written."""
        self.shape = self.shape or image.shape
        self.count += 1
        if self._visit is not None:
            self._visit(image)
            return
        if self._limit_bytes is not None and self.count * image.nbytes > self._limit_bytes:
            height, width, _ = image.shape
            limit = f"{self._limit_bytes / 2**30:g} GiB"
            raise MediaError(f"{self._path}: more than {limit} of {width}x{height} frames; give segments or allow more")
        self._spool.write(image)

    def result(self) -> np.ndarray:
        """uint8 (T, H, W, 3), T at least 1 where frames are kept; a memory map of the spool file if there is one."""
        if self._visit is not None:
            return np.zeros((0, *self.shape), np.uint8)
        found = self._spool.result(np.uint8, (self.count, *self.shape))
        return found if isinstance(found, np.ndarray) else found.mapped()


class VideoTrack:
    """Collects the requested ones of decoded frames, in order; its unit of time is the tick of the stream.

    A frame is shown from its time until the next one begins, so it is kept when that one arrives, or by `finish`.
    """

    def __init__(
        self,
        path: Path,
        start: Fraction,
        end: Fraction | None,
        fps: float | None,
        scale: Scaler,
        frames: FrameBuffer,
        tick: Fraction,
        *,
        by_decoding_time: bool = False,
    ) -> None:
        self._path, self._scale, self._frames = path, scale, frames
        self._by_decoding_time = by_decoding_time
        self._tick = tick  # seconds
        # In ticks, after the first frame; not whole numbers.
        self._start, self._end = start / tick, None if end is None else end / tick
        self._step = None if fps is None else 1 / (fraction(fps) * tick)
        self._times: list[float] = []
        self._shown: av.VideoFrame | None = None  # the latest frame
        self._shown_ticks = self._duration = 0  # its time, and how long it lasts if none follows
        self._shortest = max(1, round(Fraction(1, 25) / tick))  # time between two frames; at first a guess
        self._first = self._last = 0  # the first frame's time, the latest time so far
        self._wanted = (0, 0)  # the next time to keep the frame of, rounded down and up
        self._longest_gap = self._longest_wait = 0  # beyond both, after the last frame and at all, is a jump
        self._complete = False  # all requested frames are kept
        self.origin: Fraction | None = None  # the first frame's time in seconds
        self.end_seconds = 0.0  # when the last frame ends, see `finish`
        self.errors, self.jump = 0, ""

    @property
    def done(self) -> bool:
        """Whether no more frames are needed."""
        return self._complete or bool(self.jump)

    def seek(self, container: InputContainer, stream: av.VideoStream) -> int:
        """Seek to a key frame before the start, or to the beginning if the file's index is wrong.

        Returns the time it was asked for, in ticks.
        """
        target = start = 0
        try:
            self._begin(self._ticks(next(container.decode(stream))))
            target = self._first
            start = max(self._first, int(self._first + self._start - _LEAD_SECONDS / self._tick))
            container.seek(start, stream=stream)
            if self._ticks(next(container.decode(stream))) <= self._first + self._start:
                target = start
        except (*DECODE_ERRORS, StopIteration, EOFError):
            pass
        with suppress(*DECODE_ERRORS):
            container.seek(target, stream=stream)
        return start

    def add(self, frame: av.VideoFrame) -> None:
        """Add the next decoded frame, in display order; where times overlap, the first remains."""
        if self.done:
            return
        ticks = self._ticks(frame)
        if self.origin is None:
            self._begin(ticks)
        if ticks > self._last + self._longest_gap and ticks > self._longest_wait:
            self.jump = f"frame times jump by {float((ticks - self._last) * self._tick):.0f} s"
            return
        if ticks < self._last and self._step is not None:
            return
        self._keep_until(ticks)
        if self._shown is not None and ticks > self._last:
            self._shortest = min(self._shortest, ticks - self._last)
        self._duration = frame.duration or self._shortest
        self._shown, self._shown_ticks, self._last = frame, ticks, max(self._last, ticks)

    def fail(self) -> None:
        """Count a packet that does not decode, or whose frame is damaged."""
        self.errors += 1

    def finish(self, audio_end: Fraction | None) -> None:
        """Keep the last frame until it ends: after its duration, or with the audio (seconds after the first frame)."""
        if self._shown is None:
            return
        end = self._last - self._first + min(self._duration, self._longest_gap)
        until = end - 1 if self._duration >= _FINE_TICKS else end  # both of the times that it is made of are rounded
        if audio_end is not None and audio_end > end * self._tick + PADDING_SECONDS:
            until = end = math.ceil(audio_end / self._tick)
        self.end_seconds = float(end * self._tick)
        self._keep_until(self._first + until)

    def result(self) -> tuple[np.ndarray | None, np.ndarray]:
        """uint8 (T, H, W, 3), or None if no frame was kept, and the frames' times, float64 (T,)."""
        return self._frames.result() if self._frames.count else None, np.array(self._times, np.float64)

    def _ticks(self, frame: av.VideoFrame) -> int:
        # AVI stores decoding times only, and frames leave the decoder in their order; the presentation times that
        # FFmpeg makes up for it go back and forth if frames are reordered.
        ticks = frame.dts if self._by_decoding_time or frame.pts is None else frame.pts
        if ticks is None:
            return self._last + (frame.duration or self._shortest)
        return ticks

    def _begin(self, ticks: int) -> None:
        """Start the clock at the first frame."""
        self.origin = ticks * self._tick
        self._first = self._last = ticks
        self._longest_gap = math.floor(_LONGEST_FRAME_SECONDS / self._tick)
        self._longest_wait = ticks + math.floor(self._start + _LONGEST_FRAME_SECONDS / self._tick)
        self._want_next()

    def _want_next(self) -> None:
        """Set the time of the next frame to keep; without a rate every frame shown from the start on is kept once."""
        wanted = self._start + self._frames.count * (self._step or 0)
        self._complete = self._step is not None and self._end is not None and wanted >= self._end
        down, up = math.floor(wanted * _RATE_TOLERANCE), math.ceil(wanted)
        self._wanted = (self._first + down, self._first + max(down, up))

    def _keep_until(self, ticks: int) -> None:
        """Keep the frame that is shown until then, with a rate as often as it is requested."""
        if self._shown is None or self._complete:
            return
        time = self._shown_ticks - self._first
        if self._step is None and self._end is not None and time >= self._end:
            self._complete = True
            return
        fine = ticks - self._shown_ticks >= _FINE_TICKS
        image = None
        while not self._complete and ticks > self._wanted[fine]:
            image = self._scale(self._shown, self._path) if image is None else image
            self._frames.add(image)
            self._times.append(float(time * self._tick))
            self._want_next()
            if self._step is None:
                return


def fraction(value: float) -> Fraction:
    """Seconds or a rate as the decimal number that a person writes: 0.1 is a tenth, not the nearest binary number."""
    return Fraction(value).limit_denominator(1_000_000)
