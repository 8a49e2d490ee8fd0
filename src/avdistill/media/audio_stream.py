"""What is kept of a file's audio as it is decoded: mono at one rate, each sample at the time the file says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avdistill.errors import MediaError
from avdistill.media.video_stream import DECODE_ERRORS, EXHAUSTED, LONGEST_GAP_SECONDS

# How far a frame of audio may lie from the end of the audio before it and still follow it. More than rounded times are
# off (milliseconds; 35 ms in FFmpeg's own MPEG program streams), about what people notice between lips and voice.
_TOLERANCE_SECONDS = 0.05
# No clip is meant to be so long.
_LONGEST_SECONDS = 24 * 3600
_PUSHES_A_LOOK = 8


class _Mixer:
    """AudioTrack of one form -> mono at a rate. Channels are averaged by FFmpeg's weights, so that full scale stays
    full: PyAV's own resampler adds them up when it makes floats, 1.4 times for stereo and 3.4 times for 5.1.
    """

    def __init__(self, like: av.AudioFrame, sample_rate_hz: int) -> None:
        graph = self._graph = av.filter.Graph()  # kept: its parts do not keep it, and crash without it
        self._source = graph.add_abuffer(
            sample_rate=like.sample_rate, format=like.format, layout=like.layout, time_base=like.time_base
        )
        mixer = graph.add("aresample", f"{sample_rate_hz}:out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1.0")
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
class AudioTrack:
    """Takes decoded audio in order and keeps it as mono at one rate, each sample at the time the file says.

    Times are compared with those of all samples so far, not with the last frame's, so that small errors do not add up.
    A hole is filled with silence. Of audio that overlaps, what came first stays, as with frames of the video.

    Attributes:
        path: of the file, for messages.
        sample_rate_hz: of the audio that is kept, in Hz.
        by_count: the container counts samples and keeps no times (AVI): nothing can be missing, and what passes for
            times is off by seconds where MP3 of varying rate counts as one of constant rate.
        own_clock: its times have nothing to do with the video's; it is taken to begin with it, as players do.
        first: time of the first sample in the container's own seconds; None before there is one.
        done: nothing more is wanted.
        errors: damaged packets and frames.
        notes: what was odd about the part that was cut.
    """

    path: Path
    sample_rate_hz: int
    by_count: bool = False
    own_clock: bool = False
    first: Fraction | None = None
    done: bool = False
    errors: int = 0
    notes: list[str] = field(default_factory=list)
    _kept: bytearray = field(default_factory=bytearray)  # float32; grows in place, where a list would be joined
    _samples: int = 0
    _due: float = 0.0  # when the next frame should begin, after the frames taken so far
    _timed: bool = False  # whether a frame has told its time yet
    _holes: list[tuple[int, int]] = field(default_factory=list)  # first sample and the one after the last
    _to_drop: int = 0  # samples still to come out of the mixer that lie where there is audio already
    _dropped: int = 0
    _jump: str = ""
    _form: tuple[str, str, int] | None = None
    _mixer: _Mixer | None = None

    def add(self, frame: av.AudioFrame) -> None:
        """Take the next decoded frame."""
        time = frame.time
        if time is not None and self._timed and abs(time - self._due) > _TOLERANCE_SECONDS and not self.by_count:
            self._flush()  # nothing is smeared across a hole, and all samples before it are counted
            if not self._move(_exact_time(frame)):
                return
            self._due = time
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form or self._mixer is None:  # a stream may change its channels half-way
            self._flush()
            self._mixer = _Mixer(frame, self.sample_rate_hz)  # raises for a form that is damaged: tried again
            self._form = form
        if self.first is None:
            self.first = Fraction(0)
        if time is not None and not self._timed:
            self.first = _exact_time(frame) - Fraction(self._due)  # frames before it may have told no time
            self._due, self._timed = time, True
        self._due += frame.samples / frame.sample_rate
        for out in self._mixer(frame):
            self._keep(out)

    @property
    def from_the_beginning(self) -> bool:
        """Whether its place in the clip is only known by reading it from the file's first sample on."""
        return self.by_count or self.own_clock

    def reaches(self, end: Fraction, origin: Fraction | None) -> bool:
        """Whether the samples so far go up to `end` on the clock that begins at `origin`, see `cut`."""
        return self.first is not None and self._late(origin) + Fraction(self._samples, self.sample_rate_hz) >= end

    def cut(self, start: Fraction, end: Fraction | None, origin: Fraction | None) -> np.ndarray | None:
        """The waveform of [start, end); None when nothing of it lies there.

        The clock begins at `origin`, in the container's own seconds, or (None) at the first sample. Silence before the
        first sample or in a hole is part of the waveform where there is audio as well; alone it is nothing.
        """
        self._flush()
        if self._jump:
            self.notes.append(self._jump)
        if self.first is None or not self._samples:
            return None
        late = self._late(origin)
        begin = round((start - late) * self.sample_rate_hz)
        stop = self._samples if end is None else min(self._samples, round((end - late) * self.sample_rate_hz))
        silent = sum(max(0, min(stop, after) - max(begin, first)) for first, after in self._holes)
        if stop <= 0 or silent >= stop - begin:  # outside the file, shorter than a sample, or in a hole
            return None
        for samples, what in ((silent, "missing, filled with silence"), (self._dropped, "dropped, it overlaps")):
            if samples:
                self.notes.append(f"{samples / self.sample_rate_hz:.3g} s of audio {what}")
        waveform = np.frombuffer(self._kept, np.float32)
        for first in range(0, len(waveform), 2**20):  # in parts: what marks the odd ones takes memory as well
            np.nan_to_num(waveform[first : first + 2**20], copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        if begin < 0:  # what lies before the first sample is silent
            self._check_length(stop - begin)
            return np.concatenate([np.zeros(-begin, np.float32), waveform[:stop]])
        part = waveform[begin:stop]
        # A copy, so that a second of an hour does not hold on to the hour; but never an hour twice.
        return part.copy() if len(part) <= len(waveform) // 2 else part

    def _late(self, origin: Fraction | None) -> Fraction:
        """How many seconds after the clock the first sample begins; negative where it begins before."""
        return Fraction(0) if self.first is None or origin is None or self.own_clock else self.first - origin

    def _move(self, time: Fraction) -> bool:
        """Go on at `time`, with an empty mixer; False where it lies too far ahead to be believed."""
        assert self.first is not None
        ahead = round((time - self.first) * self.sample_rate_hz) - self._samples
        if ahead > LONGEST_GAP_SECONDS * self.sample_rate_hz:
            self._jump = self._jump or f"audio times jump by {ahead / self.sample_rate_hz:.0f} s"
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
        self._check_length(self._samples)

    def _check_length(self, samples: int) -> None:
        if samples > _LONGEST_SECONDS * self.sample_rate_hz:
            raise MediaError(f"{self.path}: more than {_LONGEST_SECONDS // 3600} h of audio; give segments")

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
