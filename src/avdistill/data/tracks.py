"""What a file's two tracks give: of the decoded frames those that the rule of `media.py` names, and the mono sound.

Frames are kept in memory or, so that an hour needs no more of it than a second, written to a spool file as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

# A longer hole between two frames is a broken clock, not a slow slide show: filling it would invent the video.
_LONGEST_GAP_SECONDS = 60
# How far a frame of sound may lie from the end of the sound before it and still follow it. More than rounded times are
# off (milliseconds; 35 ms in FFmpeg's own MPEG program streams), about what people notice between lips and voice.
_SOUND_TOLERANCE_SECONDS = 0.05
# What a file may claim before it counts as broken: no camera makes such frames, no clip is meant to be so long.
LARGEST_FRAME_PIXELS = 64 * 2**20
_LARGEST_CLIP_BYTES = 64 * 2**30
_LONGEST_SOUND_SECONDS = 24 * 3600
_PUSHES_A_LOOK = 8
# OverflowError: a time that no clock of the file can tell.
DECODE_ERRORS = (av.error.FFmpegError, UnicodeDecodeError, ValueError, OverflowError)
# Among them are these two, no memory and no thread: they say nothing of the file and must be let through
# wherever those are caught, or a clip would be short for want of memory.
EXHAUSTED = (MemoryError, BlockingIOError)


class MediaError(Exception):
    """A file that cannot give the clip asked for; the message names the file and the reason in one line."""


class UnreadableFileError(MediaError):
    """Not a media file, or one so damaged that nothing of it decodes."""


class NoStreamError(MediaError):
    """The file has neither picture nor sound."""


class EmptySegmentError(MediaError):
    """Nothing of the file lies in the segment asked for."""


class SpoolError(Exception):
    """The spool file cannot be written; nothing is wrong with the file that is read."""


class Frames:
    """Frames kept so far, in memory or in a spool file; used as a context, which on an error removes the file."""

    def __init__(self, path: Path, spool: Path | None) -> None:
        self._path, self._spool = path, spool
        self._file: IO[bytes] | None = None
        self._kept: list[np.ndarray] = []
        self.count = 0
        self.shape: tuple[int, ...] = ()  # of one frame, that of the first

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what was left to write was not asked for
                self._file.close()
        if kind is not None and self._spool is not None:
            self._spool.unlink(missing_ok=True)

    def add(self, image: np.ndarray) -> None:
        """Keep a uint8 (H, W, 3) frame."""
        self.shape = self.shape or image.shape
        self.count += 1
        if self.count * image.nbytes > _LARGEST_CLIP_BYTES:
            raise MediaError(f"{self._path}: more than {_LARGEST_CLIP_BYTES // 2**30} GiB of frames; give segments")
        if self._spool is None:
            self._kept.append(image)
            return
        try:
            self._file = self._file or self._spool.open("wb")
            self._file.write(np.ascontiguousarray(image).data)
        except OSError as error:
            raise SpoolError(f"{self._spool}: {error.strerror}") from error

    def result(self) -> np.ndarray:
        """uint8 (T, H, W, 3), T at least 1; a read-only memory map where there is a spool file."""
        if self._spool is None:
            return np.stack(self._kept)
        assert self._file is not None, "no frame was kept"
        try:
            self._file.close()
        except OSError as error:
            raise SpoolError(f"{self._spool}: {error.strerror}") from error
        return np.memmap(self._spool, np.uint8, "r", shape=(self.count, *self.shape))


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise UnreadableFileError for a frame larger than any camera's."""
    if width * height > LARGEST_FRAME_PIXELS:
        raise UnreadableFileError(f"{path}: a frame of {width}x{height} pixels")


@dataclass(frozen=True)
class Scaler:
    """How a picture is cut and scaled; see `media.read_clip`."""

    short_side: int | None
    size: tuple[int, int] | None
    region: tuple[int, int, int, int] | None

    def __call__(self, frame: av.VideoFrame, path: Path) -> np.ndarray:
        """A decoded frame -> uint8 (H, W, 3) as displayed: turned upright, cut, scaled."""
        check_pixels(path, frame.width, frame.height)
        if self.region is not None or frame.rotation:
            image = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
            if self.region is not None:
                x, y, width, height = self.region
                if x + width > image.shape[1] or y + height > image.shape[0]:
                    raise EmptySegmentError(
                        f"{path}: region {self.region} reaches beyond the picture of {image.shape[1]}x{image.shape[0]}"
                    )
                image = image[y : y + height, x : x + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image, dtype=np.uint8), format="rgb24")
        height, width = self._target(frame.height, frame.width)
        check_pixels(path, width, height)  # a strip of 1 x 65535 pixels, its short side scaled up
        # Bilinear in swscale widens its kernel when shrinking, so it does not alias.
        return self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR"
        ).to_ndarray()

    @cached_property
    def _reformatter(self) -> VideoReformatter:
        """One for all frames: a frame's own would set itself up anew for each of them."""
        return VideoReformatter()

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.short_side is None:
            return height, width
        factor = self.short_side / min(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))


def scale_picture(
    image: np.ndarray,
    path: Path,
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """A picture that was decoded elsewhere, cut and scaled as `read_clip` does; uint8 (H, W, 3) in and out.

    Raises:
        EmptySegmentError: the region reaches beyond the picture; names `path`.
        UnreadableFileError: the picture is larger than any frame we take.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return Scaler(short_side=short_side, size=size, region=region)(frame, path)


class Picture:
    """Takes decoded frames in order and keeps those the rule names; it counts time in ticks of the stream."""

    def __init__(
        self,
        path: Path,
        start: Fraction,
        end: Fraction | None,
        fps: float | None,
        scale: Scaler,
        frames: Frames,
        tick: Fraction,
        *,
        by_decoding_time: bool = False,
    ) -> None:
        self._path, self._scale, self._frames = path, scale, frames
        self._by_decoding_time = by_decoding_time
        self._tick = tick  # seconds
        self._start, self._end = start, end  # these and the step in seconds after the first frame
        self._step = None if fps is None else 1 / fraction(fps)
        self._times: list[float] = []
        self._first = self._last = 0  # the first frame's time, the latest so far
        self._wanted = 0  # the next frame to keep is the first that is not earlier
        self._longest_gap = self._longest_wait = 0  # beyond both, after the last frame and at all, is a jump
        self.origin: Fraction | None = None  # the first frame's time in seconds
        self.done, self.errors, self.jump = False, 0, ""

    def seek(self, container: InputContainer, stream: av.VideoStream) -> None:
        """Jump to the key frame before the start; back to the beginning where the file's index cannot be trusted."""
        target = 0
        try:
            self._begin(self._ticks(next(container.decode(stream))))
            target = self._first
            start = int(self._first + self._start / self._tick)
            container.seek(start, stream=stream)
            if self._ticks(next(container.decode(stream))) <= self._first + self._start / self._tick:
                target = start
        except (*DECODE_ERRORS, StopIteration, EOFError):
            pass
        with suppress(*DECODE_ERRORS):
            container.seek(target, stream=stream)

    def add(self, frame: av.VideoFrame) -> None:
        """Take the next decoded frame, in the order of display."""
        ticks = self._ticks(frame)
        if self.origin is None:
            self._begin(ticks)
        if ticks > self._last + self._longest_gap and ticks > self._longest_wait:
            jump = float((ticks - self._last) * self._tick)
            self.jump, self.done = f"frame times jump by {jump:.0f} s", True
            return
        if ticks > self._last:
            self._last = ticks
        if ticks >= self._wanted:
            self._keep(frame, ticks)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (T, H, W, 3) and the frames' times, float64 (T,). Raises EmptySegmentError where no frame was kept."""
        if not self._frames.count:
            last = float((self._last - self._first) * self._tick)
            raise EmptySegmentError(
                f"{self._path}: no frame at or after {float(self._start):g} s; the last is at {last:g} s"
            )
        return self._frames.result(), np.array(self._times)

    def _ticks(self, frame: av.VideoFrame) -> int:
        # AVI keeps decoding times only, which the frames leave the decoder in the order of; the presentation times that
        # FFmpeg makes up for it go back and forth where frames are reordered.
        ticks = frame.dts if self._by_decoding_time else frame.pts
        if ticks is None:
            ticks = frame.dts
        if ticks is None:
            return self._last + (frame.duration or max(1, round(Fraction(1, 25) / self._tick)))
        return ticks

    def _begin(self, ticks: int) -> None:
        """Start the clock at the first frame."""
        self.origin = ticks * self._tick
        self._first = self._last = ticks
        self._longest_gap = math.floor(_LONGEST_GAP_SECONDS / self._tick)
        self._longest_wait = ticks + math.floor((self._start + _LONGEST_GAP_SECONDS) / self._tick)
        self._want_next()

    def _want_next(self) -> None:
        """Without a rate every frame from the start on is wanted once, with one what the rule names up to the end."""
        wanted = self._start + self._frames.count * (self._step or 0)
        self._wanted = self._first + math.ceil(wanted / self._tick)
        self.done = self._step is not None and self._end is not None and wanted >= self._end

    def _keep(self, frame: av.VideoFrame, ticks: int) -> None:
        """Keep a frame, with a rate as often as that names it."""
        time = (ticks - self._first) * self._tick
        if self._step is None and self._end is not None and time >= self._end:
            self.done = True
            return
        image: np.ndarray | None = None
        while not self.done and ticks >= self._wanted:
            image = self._scaled(frame) if image is None else image
            self._frames.add(image)
            self._times.append(float(time))
            self._want_next()
            if self._step is None:
                return

    def _scaled(self, frame: av.VideoFrame) -> np.ndarray:
        """The picture in the size of the first, also where the file changes its own."""
        image = self._scale(frame, self._path)
        if self._frames.count and image.shape != self._frames.shape:
            height, width, _ = self._frames.shape
            self._scale = Scaler(None, (height, width), self._scale.region)
            image = self._scale(frame, self._path)
        return image


class _Mixer:
    """Sound of one form -> mono at a rate. Channels are averaged by FFmpeg's weights, so that full scale stays full:
    PyAV's own resampler adds them up when it makes floats, 1.4 times for stereo and 3.4 times for 5.1.
    """

    def __init__(self, like: av.AudioFrame, sample_rate: int) -> None:
        graph = self._graph = av.filter.Graph()  # kept: its parts do not keep it, and crash without it
        self._source = graph.add_abuffer(
            sample_rate=like.sample_rate, format=like.format, layout=like.layout, time_base=like.time_base
        )
        mixer = graph.add("aresample", f"{sample_rate}:out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1.0")
        # In large parts, asked for now and then: Python is slow at taking out a thousand small ones.
        parts = graph.add("asetnsamples", "n=16384:p=0")
        self._sink = graph.add("abuffersink")
        self._source.link_to(mixer)
        mixer.link_to(parts)
        parts.link_to(self._sink)
        graph.configure()
        self._pushed = 0

    def __call__(self, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
        """What has come out after `frame`, if it is asked; None flushes."""
        self._source.push(frame)
        self._pushed += 1
        while frame is None or self._pushed % _PUSHES_A_LOOK == 0:
            try:
                out = self._sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):  # wants more; has given all
                return
            assert isinstance(out, av.AudioFrame)
            yield out


@dataclass
class Sound:
    """Takes decoded sound in order and keeps it as mono at one rate, each sample at the time the file says.

    Times are compared with those of all samples so far, not with the last frame's, so that small errors do not add up.
    A hole is filled with silence. Of sound that overlaps, what came first stays, as with frames of the picture.

    Attributes:
        path: of the file, for messages.
        sample_rate: of the sound that is kept, in Hz.
        by_count: the container counts samples and keeps no times (AVI): nothing can be missing, and what passes for
            times is off by seconds where MP3 of varying rate counts as one of constant rate.
        first: time of the first sample in the container's own seconds; None before there is one.
        done: nothing more is wanted.
        errors: damaged packets and frames.
        notes: what was odd about the part that was cut.
    """

    path: Path
    sample_rate: int
    by_count: bool = False
    first: Fraction | None = None
    done: bool = False
    errors: int = 0
    notes: list[str] = field(default_factory=list)
    _kept: bytearray = field(default_factory=bytearray)  # float32; grows in place, where a list would be joined
    _samples: int = 0
    _due: float = 0.0  # when the next frame should begin, after the frames taken so far
    _timed: bool = False  # whether a frame has told its time yet
    _holes: list[tuple[int, int]] = field(default_factory=list)  # first sample and the one after the last
    _to_drop: int = 0  # samples still to come out of the mixer that lie where there is sound already
    _dropped: int = 0
    _jump: str = ""
    _form: tuple[str, str, int] | None = None
    _mixer: _Mixer | None = None

    def add(self, frame: av.AudioFrame) -> None:
        """Take the next decoded frame."""
        time = frame.time
        if time is not None and self._timed and abs(time - self._due) > _SOUND_TOLERANCE_SECONDS and not self.by_count:
            self._flush()  # nothing is smeared across a hole, and all samples before it are counted
            if not self._move(_exact_time(frame)):
                return
            self._due = time
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form or self._mixer is None:  # a stream may change its channels half-way
            self._flush()
            self._mixer = _Mixer(frame, self.sample_rate)  # raises for a form that is damaged: tried again
            self._form = form
        if self.first is None:
            self.first = Fraction(0)
        if time is not None and not self._timed:
            self.first = _exact_time(frame) - Fraction(self._due)  # frames before it may have told no time
            self._due, self._timed = time, True
        self._due += frame.samples / frame.sample_rate
        for out in self._mixer(frame):
            self._keep(out)

    def reaches(self, time: Fraction) -> bool:
        """Whether the samples so far go up to `time` (in the container's own seconds)."""
        return self.first is not None and self.first + Fraction(self._samples, self.sample_rate) >= time

    def cut(self, start: Fraction, end: Fraction | None, origin: Fraction | None) -> np.ndarray | None:
        """The waveform of [start, end) on the clock that begins at `origin`; None when nothing of it lies there.

        Silence that was filled in is part of it where there is sound as well; alone it is nothing.
        """
        self._flush()
        if self._jump:
            self.notes.append(self._jump)
        if self.first is None or not self._samples:
            return None
        late = self.first - (self.first if origin is None else origin)
        if abs(late) > _LONGEST_GAP_SECONDS + start:  # a broken clock: play it from the beginning, as players do
            late = Fraction(0)
        begin = round((start - late) * self.sample_rate)
        stop = self._samples if end is None else min(self._samples, round((end - late) * self.sample_rate))
        silent = sum(max(0, min(stop, after) - max(begin, first)) for first, after in self._holes)
        if stop <= 0 or silent >= stop - begin:  # outside the file, shorter than a sample, or in a hole
            return None
        for samples, what in ((silent, "missing, filled with silence"), (self._dropped, "dropped, it overlaps")):
            if samples:
                self.notes.append(f"{samples / self.sample_rate:.3g} s of sound {what}")
        waveform = np.frombuffer(self._kept, np.float32)
        for first in range(0, len(waveform), 2**20):  # in parts: what marks the odd ones takes memory as well
            np.nan_to_num(waveform[first : first + 2**20], copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        if begin < 0:  # what lies before the first sample is silent
            return np.concatenate([np.zeros(-begin, np.float32), waveform[:stop]])
        part = waveform[begin:stop]
        # A copy, so that a second of an hour does not hold on to the hour; but never an hour twice.
        return part.copy() if len(part) <= len(waveform) // 2 else part

    def _move(self, time: Fraction) -> bool:
        """Go on at `time`, with an empty mixer; False where it lies too far ahead to be believed."""
        assert self.first is not None
        ahead = round((time - self.first) * self.sample_rate) - self._samples
        if ahead > _LONGEST_GAP_SECONDS * self.sample_rate:
            self._jump = self._jump or f"sound times jump by {ahead / self.sample_rate:.0f} s"
            return False
        self._to_drop = max(0, -ahead)
        if ahead > 0:
            self._holes.append((self._samples, self._samples + ahead))
            self._append(np.zeros(ahead, np.float32))
        return True

    def _keep(self, frame: av.AudioFrame) -> None:
        samples = frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
        dropped = min(self._to_drop, len(samples))
        self._to_drop -= dropped
        self._dropped += dropped
        self._append(samples[dropped:])

    def _append(self, samples: np.ndarray) -> None:
        self._kept += samples.data
        self._samples += len(samples)
        if self._samples > _LONGEST_SOUND_SECONDS * self.sample_rate:
            raise MediaError(f"{self.path}: more than {_LONGEST_SOUND_SECONDS // 3600} h of sound; give segments")

    def _flush(self) -> None:
        if self._mixer is not None:
            try:
                for out in self._mixer(None):
                    self._keep(out)
            except EXHAUSTED:
                raise
            except DECODE_ERRORS:
                pass
            self._mixer = None


def _exact_time(frame: av.AudioFrame) -> Fraction:
    """When a frame that tells its time begins, exactly, in the container's own seconds."""
    assert frame.pts is not None
    return frame.pts * Fraction(frame.time_base or 1)


def fraction(value: float) -> Fraction:
    """Seconds or a rate as the exact number that is meant."""
    # Decimal seconds and rates as people write them: 0.1 is a tenth, not the nearest binary number; 29.97 stays itself.
    return Fraction(value).limit_denominator(1_000_000)
