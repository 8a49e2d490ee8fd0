"""The audio of a file: decoded frames in, a mono waveform out, each sample at its time in the file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avdistill.errors import MediaError
from avdistill.media.video_stream import DECODE_ERRORS, EXHAUSTED

# A frame that begins this close to the end of the audio before it follows it directly. The tolerance is larger than
# rounding errors of times (milliseconds; 35 ms in MPEG program streams by FFmpeg), and about what people notice between
# lips and voice.
_TOLERANCE_SECONDS = 0.05
# A longer gap is a broken clock.
_LONGEST_GAP_SECONDS = 60
_LONGEST_SECONDS = 24 * 3600
_PUSHES_PER_PULL = 8
# So many packets that do not decode before the first or after the last sample are tags or parts of one: no damage.
_STRAY_PACKETS = 2
# Stereo is out of phase if its mix is so much weaker than an audible channel; compared now and then.
_AUDIBLE, _CANCELED = 0.001, 0.01
_FRAMES_PER_COMPARISON = 8


class _Mixer:
    """Converts audio of one format to mono at a sample rate.

    Channels are averaged with FFmpeg's weights, so that full scale stays full scale: PyAV's own resampler adds them up
    when it makes floats, 1.4 times for stereo and 3.4 times for 5.1. Where FFmpeg has no weights, all are averaged. Of
    ambisonics the first channel is taken, which is that of all directions; with `first_channel`, of any format.
    """

    def __init__(self, like: av.AudioFrame, sample_rate_hz: int, *, first_channel: bool = False) -> None:
        first_channel = first_channel or like.layout.name.startswith("ambisonic")
        try:
            self._build(like, sample_rate_hz, "c0" if first_channel else None)
        except EXHAUSTED:
            raise
        except DECODE_ERRORS:
            count = like.layout.nb_channels
            self._build(like, sample_rate_hz, "+".join(f"{1 / count}*c{channel}" for channel in range(count)))
        self._pushed = 0

    def _build(self, like: av.AudioFrame, sample_rate_hz: int, channels: str | None) -> None:
        graph = self._graph = av.filter.Graph()  # kept alive here: its filters do not hold it, and crash without it
        self._source = graph.add_abuffer(
            sample_rate=like.sample_rate, format=like.format, layout=like.layout, time_base=like.time_base
        )
        mixer = graph.add("aresample", f"{sample_rate_hz}:out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1.0")
        # Large frames, pulled now and then: Python is slow at pulling a thousand small ones.
        parts = graph.add("asetnsamples", "n=16384:p=0")
        self._sink = graph.add("abuffersink")
        chosen = [] if channels is None else [graph.add("pan", f"mono|c0={channels}")]
        graph.link_nodes(self._source, *chosen, mixer, parts, self._sink).configure()

    def __call__(self, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
        """Push a frame and yield converted ones, if it is time to pull; None flushes."""
        self._source.push(frame)
        self._pushed += 1
        while frame is None or self._pushed % _PUSHES_PER_PULL == 0:
            try:
                out = self._sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):  # needs more input; is at its end
                return
            assert isinstance(out, av.AudioFrame)
            yield out


@dataclass
class AudioTrack:
    """Collects decoded audio frames, in order, as mono samples at one rate, each at its time in the file.

    Times are compared with those of all samples so far, not of the last frame, so that small errors do not add up. A
    gap is filled with silence. Where audio overlaps, the first remains, as with video frames.

    Attributes:
        by_count: the container counts samples and stores no times (AVI): nothing can be missing, and the times made up
            for it are off by seconds for MP3 of variable rate declared as constant.
        first_channel: the first channel is taken instead of a mix of all.
        own_clock: its times are unrelated to the video's; it is taken to begin with the video, as players do.
        first: time of the first sample in the container's seconds; None before there is one.
        errors: number of damaged packets and frames.
        notes: irregularities of the part that was cut.
    """

    path: Path
    sample_rate_hz: int
    by_count: bool = False
    own_clock: bool = False
    first_channel: bool = False
    first: Fraction | None = None
    done: bool = False  # no more frames are needed
    errors: int = 0
    notes: list[str] = field(default_factory=list)
    _kept: bytearray = field(default_factory=bytearray)  # float32; grows in place, unlike a list to be joined
    _samples: int = 0
    _due: float = 0.0  # when the next frame should begin
    _timed: bool = False  # whether any frame had a time
    _gaps: list[tuple[int, int]] = field(default_factory=list)  # first sample and the one after the last
    _to_drop: int = 0  # samples still in the mixer that overlap earlier audio
    _dropped: int = 0
    _jump_note: str = ""
    _format: tuple[str, str, int] | None = None
    _mixer: _Mixer | None = None
    _failed: int = 0  # packets since the last frame
    _frames: int = 0
    _energies: np.ndarray = field(default_factory=lambda: np.zeros(2))  # of the louder channel and of the mix

    def add(self, frame: av.AudioFrame) -> None:
        """Add the next decoded frame."""
        self._count_failed(stray=self.first is None)
        time = frame.time
        if time is not None and self._timed and abs(time - self._due) > _TOLERANCE_SECONDS and not self.by_count:
            self._flush()  # the filter must not smear across the gap, and all samples before it must be counted
            if not self._jump_to(_exact_time(frame)):
                return
            self._due = time
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format or self._mixer is None:  # a stream may change its channels midway
            self._flush()
            # Raises for a damaged format; the next frame tries again.
            self._mixer = _Mixer(frame, self.sample_rate_hz, first_channel=self.first_channel)
            self._format = frame_format
        if self.first is None:
            self.first = Fraction(0)
        if time is not None and not self._timed:
            self.first = _exact_time(frame) - Fraction(self._due)  # earlier frames may have had no time
            self._due, self._timed = time, True
        self._due += frame.samples / frame.sample_rate
        if self._frames % _FRAMES_PER_COMPARISON == 0 and not self.first_channel:
            self._compare_channels(frame)
        self._frames += 1
        for out in self._mixer(frame):
            self._keep(out)

    @property
    def out_of_phase(self) -> bool:
        """Whether the two channels of stereo cancel each other, so that their mix is silent although they are not."""
        channel, mix = self._energies
        return channel > _AUDIBLE**2 * max(1, self._frames // _FRAMES_PER_COMPARISON) and mix < _CANCELED**2 * channel

    def _compare_channels(self, frame: av.AudioFrame) -> None:
        if frame.layout.nb_channels != 2:
            return
        samples = frame.to_ndarray()
        pairs = samples if frame.format.is_planar else samples.reshape(-1, 2).T
        if pairs.dtype == np.uint8:
            pairs = pairs / 128 - 1
        elif pairs.dtype.kind == "i":
            pairs = pairs / 2 ** (8 * pairs.dtype.itemsize - 1)
        pairs = np.nan_to_num(pairs[:, ::4].astype(np.float32), posinf=1.0, neginf=-1.0)
        energies = (pairs**2).mean(1).max(), (pairs.mean(0) ** 2).mean()
        self._energies += np.minimum(energies, 1)

    def fail(self) -> None:
        """Count a packet that does not decode, or whose frame is damaged."""
        self._failed += 1

    def end(self, origin: Fraction | None) -> Fraction | None:
        """The end of the samples so far on the clock that begins at `origin`, see `cut`; None before the first."""
        if self.first is None or not self._samples:
            return None
        return self._delay(origin) + Fraction(self._samples, self.sample_rate_hz)

    def cut(self, start: Fraction, end: Fraction | None, origin: Fraction | None) -> np.ndarray | None:
        """The waveform of [start, end), or None if there is no audio in it.

        The clock begins at `origin`, in the container's seconds, or (None) at the first sample. Silence before the
        first sample or in a gap is part of the waveform only if the segment has audio as well.
        """
        self._flush()
        self._count_failed(stray=self.first is not None)
        if self._jump_note:
            self.notes.append(self._jump_note)
        if self.first is None or not self._samples:
            return None
        delay = self._delay(origin)
        begin = round((start - delay) * self.sample_rate_hz)
        stop = self._samples if end is None else min(self._samples, round((end - delay) * self.sample_rate_hz))
        silent = sum(max(0, min(stop, after) - max(begin, first)) for first, after in self._gaps)
        if stop <= 0 or silent >= stop - begin:  # outside the file, shorter than a sample, or in a gap
            return None
        for samples, what in ((silent, "missing, filled with silence"), (self._dropped, "dropped, it overlaps")):
            if samples:
                self.notes.append(f"{samples / self.sample_rate_hz:.3g} s of audio {what}")
        waveform = np.frombuffer(self._kept, np.float32)
        for first in range(0, len(waveform), 2**20):  # in parts, for the mask takes memory as well
            np.nan_to_num(waveform[first : first + 2**20], copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        if begin < 0:  # silence before the first sample
            self._check_length(stop - begin)
            return np.concatenate([np.zeros(-begin, np.float32), waveform[:stop]])
        part = waveform[begin:stop]
        # A copy, so that a second does not keep a whole hour in memory; but never an hour twice.
        return part.copy() if len(part) <= len(waveform) // 2 else part

    def _count_failed(self, *, stray: bool) -> None:
        if not stray or self._failed > _STRAY_PACKETS:
            self.errors += self._failed
        self._failed = 0

    def _delay(self, origin: Fraction | None) -> Fraction:
        """Seconds from the start of the clock to the first sample; negative if it comes earlier."""
        return Fraction(0) if self.first is None or origin is None or self.own_clock else self.first - origin

    def _jump_to(self, time: Fraction) -> bool:
        """Continue at `time`, with an empty mixer; False if it lies implausibly far ahead."""
        assert self.first is not None
        ahead = round((time - self.first) * self.sample_rate_hz) - self._samples
        if ahead > _LONGEST_GAP_SECONDS * self.sample_rate_hz:
            self._jump_note = self._jump_note or f"audio times jump by {ahead / self.sample_rate_hz:.0f} s"
            return False
        self._to_drop = max(0, -ahead)
        if ahead > 0:
            self._gaps.append((self._samples, self._samples + ahead))
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
    """The time of a frame that has one, exactly, in the container's seconds."""
    assert frame.pts is not None
    return frame.pts * Fraction(frame.time_base or 1)
