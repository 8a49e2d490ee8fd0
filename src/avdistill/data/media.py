"""Reading one video file: frames at a stated rate and mono sound, in one pass. The only place that knows FFmpeg.

The clock of a file starts at its first decoded frame (at its first sound sample where it has no picture). The frame
shown at time t is *the first frame whose pts minus the first pts is at least t*; at `fps` frames a second the k-th
frame of a segment that starts at s is the one shown at s + k / fps. Times are compared as fractions, so a rate that
divides the file's own takes every frame exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer

# Seeking costs a second look for the first pts; below this decoding from the start is as fast.
_SEEK_FROM_SECONDS = 5
# A longer hole between two frames is a broken clock, not a slow slide show: filling it would invent the video.
_LONGEST_GAP_SECONDS = 60
_LARGEST_FRAME_PIXELS = 64 * 2**20
_DECODE_ERRORS = (av.error.FFmpegError, UnicodeDecodeError, ValueError)


class MediaError(Exception):
    """A file that cannot give the clip asked for; the message names the file and the reason in one line."""


class UnreadableFileError(MediaError):
    """Not a media file, or one so damaged that nothing of it decodes."""


class NoStreamError(MediaError):
    """The file has neither picture nor sound."""


class EmptySegmentError(MediaError):
    """The segment asked for lies outside the file."""


@dataclass(frozen=True)
class Clip:
    """What `read_clip` returns.

    Attributes:
        frames: uint8 (T, H, W, 3) RGB, or None where the file has no picture.
        frame_times_seconds: float64 (T,), the time of each frame on the file's clock.
        fps: frames a second that were asked for; None where every frame was taken.
        waveform: float32 (S,) mono in [-1, 1] from the segment's start on, or None where the file has no sound there.
            It may be shorter or longer than the picture, as in the file.
        sample_rate_hz: of `waveform`.
        notes: what was odd about the file ("sound stream cannot be decoded", "2 video streams, first taken", ...).
    """

    frames: np.ndarray | None
    frame_times_seconds: np.ndarray
    fps: float | None
    waveform: np.ndarray | None
    sample_rate_hz: int
    notes: tuple[str, ...] = ()


def read_clip(
    path: str | Path,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    fps: float | None = 4.0,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    sample_rate: int = 16000,
) -> Clip:
    """Decode the segment [start_seconds, end_seconds) of a file, picture and sound in one pass.

    Args:
        path: the file.
        start_seconds: on the file's clock (see the module's first lines).
        end_seconds: None means the end of the file.
        fps: frames a second to take; a rate above the file's own repeats frames. None takes every frame once.
        short_side: scale so that the shorter side has this many pixels, the shape kept.
        size: (height, width) to scale to instead, the shape not kept. Neither: the size of the file.
        region: (x, y, width, height) in pixels of the file as displayed, cut out before scaling.
        sample_rate: of the waveform, in Hz. Several channels are mixed down.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the arguments contradict each other.
        UnreadableFileError: nothing decodes.
        NoStreamError: neither picture nor sound in the file.
        EmptySegmentError: the file ends before `start_seconds`.
    """
    path = Path(path)
    _check_segment(start_seconds, end_seconds)
    check_reading(fps, short_side, size, region, sample_rate)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    scale = _Scaler(short_side=short_side, size=size, region=region)
    start = _fraction(start_seconds)
    end = None if end_seconds is None else _fraction(end_seconds)
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            return _decode(path, container, start, end, fps, scale, sample_rate)
    except _DECODE_ERRORS as error:
        raise UnreadableFileError(f"{path}: {_reason(error)}") from error


def _check_segment(start_seconds: float, end_seconds: float | None) -> None:
    if not 0 <= start_seconds < float("inf"):
        raise ValueError(f"start_seconds must be at least 0, got {start_seconds}")
    if end_seconds is not None and not start_seconds < end_seconds < float("inf"):
        raise ValueError(f"end_seconds must be greater than start_seconds ({start_seconds}), got {end_seconds}")


def check_reading(
    fps: float | None,
    short_side: int | None,
    size: tuple[int, int] | None,
    region: tuple[int, int, int, int] | None,
    sample_rate: int,
) -> None:
    """Raise ValueError for rates and sizes that no file can be read at; see `read_clip`."""
    if fps is not None and not 0 < fps < 1000:
        raise ValueError(f"fps must lie between 0 and 1000, got {fps}")
    if short_side is not None and size is not None:
        raise ValueError("give short_side or size, not both")
    if min(1 if short_side is None else short_side, *(size or (1, 1))) < 1:
        raise ValueError(f"the picture must keep at least one pixel, got short_side={short_side}, size={size}")
    if region is not None and (min(region[:2]) < 0 or min(region[2:]) < 1):
        raise ValueError(f"region is (x, y, width, height) in pixels, got {region}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz, got {sample_rate}")


def _decode(
    path: Path,
    container: InputContainer,
    start: Fraction,
    end: Fraction | None,
    fps: float | None,
    scale: _Scaler,
    sample_rate: int,
) -> Clip:
    notes: list[str] = []
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    sounds = list(container.streams.audio)
    if not pictures and not sounds:
        raise NoStreamError(f"{path}: neither picture nor sound")
    for kind, streams in (("video", pictures), ("sound", sounds)):
        if len(streams) > 1:
            notes.append(f"{len(streams)} {kind} streams, first taken")
    picture = _Picture(path, start, end, fps, scale) if pictures else None
    sound = _Sound(sample_rate) if sounds else None
    if picture and start >= _SEEK_FROM_SECONDS:
        picture.seek(container, pictures[0])

    for packet in _packets(container, [*pictures[:1], *sounds[:1]], notes):
        track: _Picture | _Sound | None = picture if packet.stream.type == "video" else sound
        if track is not None and not track.done:
            with _counting_errors(track):
                for frame in packet.decode():
                    track.errors += frame.is_corrupt
                    track.add(frame)  # type: ignore[arg-type]  # a stream decodes to frames of its own kind
        if sound and end is not None:
            origin = picture.origin if picture else sound.first
            sound.done = origin is not None and sound.reaches(origin + end)
        if all(t is None or t.done for t in (picture, sound)):
            break

    if picture and picture.origin is None:
        raise UnreadableFileError(f"{path}: the video stream cannot be decoded")
    frames, times = picture.result() if picture else (None, np.zeros(0))
    origin = picture.origin if picture and picture.origin is not None else None
    waveform = sound.cut(start, end, origin) if sound else None
    for kind, track in (("video", picture), ("sound", sound)):
        if track and track.errors:
            notes.append(f"{track.errors} damaged {kind} packets or frames")
    if sound and waveform is None:
        notes.append("sound stream cannot be decoded" if sound.first is None else "no sound in this segment")
    if frames is None and waveform is None:
        if sound and sound.first is None:
            raise UnreadableFileError(f"{path}: the sound stream cannot be decoded")
        raise EmptySegmentError(f"{path}: the file ends before {float(start):g} s")
    if picture and picture.jump:
        notes.append(picture.jump)
    return Clip(frames, times, fps, waveform, sample_rate, tuple(notes))


def _packets(container: InputContainer, streams: list[av.stream.Stream], notes: list[str]) -> Iterator[av.Packet]:
    """Packets of the streams; a container that breaks off ends the iteration with a note, then flushes the decoders."""
    try:
        yield from container.demux(*streams)
    except _DECODE_ERRORS as error:
        notes.append(f"file breaks off: {_reason(error)}")
        for stream in streams:
            packet = av.Packet()
            packet.stream = stream
            yield packet


class _counting_errors(suppress):  # noqa: N801  (used like `suppress`)
    """One damaged packet must not lose the clip: its decoding error is counted on the track."""

    def __init__(self, track: _Picture | _Sound) -> None:
        super().__init__(*_DECODE_ERRORS)
        self._track = track

    def __exit__(self, kind, error, traceback) -> bool:  # type: ignore[no-untyped-def]
        suppressed = bool(super().__exit__(kind, error, traceback))
        self._track.errors += suppressed
        return suppressed


@dataclass
class _Scaler:
    short_side: int | None
    size: tuple[int, int] | None
    region: tuple[int, int, int, int] | None

    def __call__(self, frame: av.VideoFrame, path: Path) -> np.ndarray:
        """A decoded frame -> uint8 (H, W, 3) as displayed: turned upright, cut, scaled."""
        if frame.width * frame.height > _LARGEST_FRAME_PIXELS:
            raise UnreadableFileError(f"{path}: a frame of {frame.width}x{frame.height} pixels")
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
        # Bilinear in swscale widens its kernel when shrinking, so it does not alias.
        return frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.short_side is None:
            return height, width
        factor = self.short_side / min(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))


class _Picture:
    """Takes decoded frames in order and keeps those the rule names."""

    def __init__(self, path: Path, start: Fraction, end: Fraction | None, fps: float | None, scale: _Scaler) -> None:
        self._path, self._scale = path, scale
        self._start, self._end = start, end
        self._step = None if fps is None else 1 / _fraction(fps)
        self._frames: list[np.ndarray] = []
        self._times: list[float] = []
        self._last = Fraction(0)
        self.origin: Fraction | None = None
        self.done, self.errors, self.jump = False, 0, ""

    def seek(self, container: InputContainer, stream: av.VideoStream) -> None:
        """Jump to the key frame before the start; back to the beginning where the file's index cannot be trusted."""
        try:
            first = next(container.decode(stream))
            self.origin = self._pts(first)
            tick = Fraction(stream.time_base or 1)
            container.seek(int((self.origin + self._start) / tick), stream=stream)
            landed = self._pts(next(container.decode(stream))) - self.origin
            target = self._start if landed <= self._start else Fraction(0)
        except (*_DECODE_ERRORS, StopIteration, EOFError):
            target = Fraction(0)
        offset = 0 if self.origin is None else int((self.origin + target) / Fraction(stream.time_base or 1))
        with suppress(*_DECODE_ERRORS):
            container.seek(offset, stream=stream)

    def add(self, frame: av.VideoFrame) -> None:
        pts = self._pts(frame)
        if self.origin is None:
            self.origin = pts
        time = pts - self.origin
        if time - max(self._last, self._start) > _LONGEST_GAP_SECONDS:
            self.jump, self.done = f"frame times jump by {float(time - self._last):.0f} s", True
            return
        self._last = max(self._last, time)
        image: np.ndarray | None = None
        while not self.done:
            # Without a rate every frame from the start on is taken once.
            wanted = self._start + len(self._frames) * self._step if self._step else self._start
            if self._end is not None and (wanted if self._step else time) >= self._end:
                self.done = True
            elif time < wanted:
                break
            else:
                image = self._scale(frame, self._path) if image is None else image
                if self._frames and image.shape != self._frames[0].shape:
                    self._scale = _Scaler(None, self._frames[0].shape[:2], self._scale.region)
                    image = self._scale(frame, self._path)
                self._frames.append(image)
                self._times.append(float(time))
                if self._step is None:
                    break

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._frames:
            raise EmptySegmentError(
                f"{self._path}: no frame at or after {float(self._start):g} s; the last is at {float(self._last):g} s"
            )
        return np.stack(self._frames), np.array(self._times)

    def _pts(self, frame: av.VideoFrame) -> Fraction:
        # AVI keeps decoding times only; in a stream without reordering they are the presentation times.
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None or frame.time_base is None:
            return (self.origin or Fraction(0)) + self._last + Fraction(1, 25)
        return pts * Fraction(frame.time_base)


@dataclass
class _Sound:
    sample_rate: int
    first: Fraction | None = None
    done: bool = False
    errors: int = 0
    _chunks: list[np.ndarray] = field(default_factory=list)
    _samples: int = 0
    _form: tuple[str, str, int] | None = None
    _resampler: AudioResampler | None = None

    def add(self, frame: av.AudioFrame) -> None:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:  # a stream may change its channels half-way
            self._flush()
            self._form = form
            self._resampler = AudioResampler(format="flt", layout="mono", rate=self.sample_rate)
        if self.first is None:
            self.first = Fraction(0) if frame.pts is None else frame.pts * Fraction(frame.time_base or 1)
        assert self._resampler is not None
        for out in self._resampler.resample(frame):
            self._keep(out)

    def reaches(self, time: Fraction) -> bool:
        """Whether the samples so far go up to `time` (in the container's own seconds)."""
        return self.first is not None and self.first + Fraction(self._samples, self.sample_rate) >= time

    def cut(self, start: Fraction, end: Fraction | None, origin: Fraction | None) -> np.ndarray | None:
        """The waveform of [start, end) on the clock that begins at `origin`; None when nothing of it lies there."""
        self._flush()
        if self.first is None or not self._samples:
            return None
        waveform = np.concatenate(self._chunks)
        late = self.first - (self.first if origin is None else origin)
        if abs(late) > _LONGEST_GAP_SECONDS + start:  # a broken clock: play it from the beginning, as players do
            late = Fraction(0)
        begin = round((start - late) * self.sample_rate)
        stop = None if end is None else round((end - late) * self.sample_rate)
        if begin >= len(waveform) or (stop is not None and stop <= 0):
            return None
        lead = np.zeros(max(0, -begin), dtype=np.float32)  # sound that sets in later than the picture
        return np.concatenate([lead, waveform[max(0, begin) : stop]])

    def _keep(self, frame: av.AudioFrame) -> None:
        samples = frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
        self._chunks.append(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0))
        self._samples += len(samples)

    def _flush(self) -> None:
        if self._resampler is not None:
            with suppress(*_DECODE_ERRORS):
                for out in self._resampler.resample(None):
                    self._keep(out)
            self._resampler = None


def _fraction(value: float) -> Fraction:
    # Decimal seconds and rates as people write them: 0.1 is a tenth, not the nearest binary number; 29.97 stays itself.
    return Fraction(value).limit_denominator(1_000_000)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.replace("[Errno ", "[")
