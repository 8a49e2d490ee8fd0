"""Decoding of one media file: frames at a requested rate and mono audio, in one pass.

The clock of a file starts at its first decoded frame, or at its first audio sample if it has no video. The frame at
time t is the one that a player shows: *the last frame whose pts minus the first pts is at most t*; at `fps` frames per
second, frame k of a segment that starts at s is the one at s + k / fps. The last frame lasts for its duration, or until
the audio ends. A frame less than a tick of the file's clock late is in time, for times are rounded to ticks: a rate
that divides the file's own takes every frame exactly once.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from avdistill.errors import EmptySegmentError, MediaError, UnreadableFileError
from avdistill.media.audio_stream import AudioTrack
from avdistill.media.clock import ContinuousClock
from avdistill.media.container import open_container
from avdistill.media.scaler import Scaler, crop_of, pixel_aspect_of
from avdistill.media.streams import choose_streams
from avdistill.media.video_stream import (
    DECODE_ERRORS,
    EXHAUSTED,
    LARGEST_CLIP_BYTES,
    PADDING_SECONDS,
    FrameBuffer,
    VideoTrack,
    fraction,
)
from avdistill.storage.url import as_path

# Seeking decodes the first frame for its pts beforehand; below this, decoding from the start is as fast.
_SEEK_FROM_SECONDS = 5
# If audio and video begin further apart than this, their clocks are unrelated (one is that of the recorder, or has
# wrapped around after 26.5 h, as those of MPEG streams do).
_LARGEST_OFFSET_SECONDS = 3600
# Set for formats whose clock may begin again or jump: MPEG streams, Ogg.
_MAY_JUMP = 0x200  # AVFMT_TS_DISCONT


@dataclass(frozen=True)
class Clip:
    """A decoded segment of a media file.

    Attributes:
        frames: uint8 (T, H, W, 3) RGB, or None if the file has no video in the segment; read-only in a spool file.
        frame_times_seconds: float64 (T,), the time on the file's clock from which each frame is shown.
        fps: requested frames per second; None if every frame was taken.
        waveform: float32 (S,) mono in [-1, 1] from the segment's start on, or None if the file has no audio in the
            segment. Like the file's audio it may be shorter or longer than the video. Gaps are filled with silence, as
            is the time before the audio begins; gaps are noted.
        sample_rate_hz: of `waveform`.
        notes: irregularities of the file ("audio stream cannot be decoded", "2 video streams, first taken", ...).
    """

    frames: np.ndarray | None
    frame_times_seconds: np.ndarray
    fps: float | None
    waveform: np.ndarray | None
    sample_rate_hz: int
    notes: tuple[str, ...] = ()


def read_clip(
    path: str | os.PathLike[str],
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    fps: float | None = 4.0,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    sample_rate_hz: int = 16000,
    spool: str | os.PathLike[str] | None = None,
    memory_bytes: int = 0,
    limit_bytes: int | None = LARGEST_CLIP_BYTES,
    visit: Callable[[np.ndarray], None] | None = None,
) -> Clip:
    """Decode the segment [start_seconds, end_seconds) of a file, video and audio in one pass.

    Args:
        start_seconds: on the file's clock, which starts at its first frame.
        end_seconds: None means the end of the file.
        fps: frames per second to take; a rate above the file's own repeats frames. None takes every frame that is
            shown in the segment once.
        short_side: scale the shorter side to this many pixels and keep the aspect ratio.
        size: (height, width) to scale to instead. With neither, frames keep the size at which the file is displayed.
        region: (x, y, width, height) in pixels of the file as displayed, cropped before scaling.
        sample_rate_hz: of the waveform. Several channels are mixed down.
        spool, memory_bytes: a file to write the frames to as they are decoded, once they are more than these bytes;
            `Clip.frames` is then a read-only memory map of it. The caller removes it; on an error it is removed here.
        limit_bytes: that the frames may take, in memory or in the spool file: a small file may claim years of video.
            None: no limit. Of audio a clip may have 24 hours.
        visit: called with each frame, uint8 (H, W, 3) RGB, as it is decoded; `Clip.frames` then has none, and
            `frame_times_seconds` the times of those that were visited.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the arguments contradict each other.
        UnreadableFileError: nothing can be decoded, or a frame is implausibly large, or too long for `short_side`.
        NoStreamError: the file has neither video nor audio.
        EmptySegmentError: the file ends before `start_seconds`, or has neither a frame nor a sample in the segment.
        MediaError: more frames than `limit_bytes`, or more audio than a clip may have.
        MemoryError: decoding needs more memory or threads than available.
        SpoolError, StorageError: the spool file cannot be written; the file's storage does not answer.
    """
    path = as_path(path)
    if not 0 <= start_seconds < float("inf"):
        raise ValueError(f"start_seconds must be at least 0, got {start_seconds}")
    if end_seconds is not None and not start_seconds < end_seconds < float("inf"):
        raise ValueError(f"end_seconds must be greater than start_seconds ({start_seconds}), got {end_seconds}")
    check_reading(fps, short_side, size, region, sample_rate_hz)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    start, end = fraction(start_seconds), None if end_seconds is None else fraction(end_seconds)
    try:
        buffer = FrameBuffer(path, spool, limit_bytes, memory_bytes=memory_bytes, visit=visit)
        with buffer as frames, open_container(path) as container:
            return _decode(path, container, start, end, fps, Scaler(short_side, size, region), frames, sample_rate_hz)
    except EXHAUSTED as error:
        raise MemoryError(f"{path}: {_reason(error)}") from error
    except DECODE_ERRORS as error:
        raise UnreadableFileError(f"{path}: {_reason(error)}") from error


def check_reading(
    fps: float | None,
    short_side: int | None,
    size: tuple[int, int] | None,
    region: tuple[int, int, int, int] | None,
    sample_rate_hz: int,
) -> None:
    """Raise ValueError for impossible rates and sizes; see `read_clip`."""
    if fps is not None and not 0 < fps < 1000:
        raise ValueError(f"fps must lie between 0 and 1000, got {fps}")
    if short_side is not None and size is not None:
        raise ValueError("give short_side or size, not both")
    if min(1 if short_side is None else short_side, *(size or (1, 1))) < 1:
        raise ValueError(f"the video must keep at least one pixel, got short_side={short_side}, size={size}")
    if region is not None and (min(region[:2]) < 0 or min(region[2:]) < 1):
        raise ValueError(f"region is (x, y, width, height) in pixels, got {region}")
    if sample_rate_hz < 1:
        raise ValueError(f"sample_rate_hz must be at least 1 Hz, got {sample_rate_hz}")


def _decode(
    path: Path,
    container: InputContainer,
    start: Fraction,
    end: Fraction | None,
    fps: float | None,
    scale: Scaler,
    kept: FrameBuffer,
    sample_rate_hz: int,
) -> Clip:
    notes: list[str] = []
    video_stream, audio_stream = choose_streams(path, container, notes)
    avi = container.format.name == "avi"
    tracks: dict[int, VideoTrack | AudioTrack] = {}
    video = audio = None
    if video_stream is not None:
        scale.pixel_aspect, scale.crop = pixel_aspect_of(video_stream), crop_of(container, video_stream)
        tick = Fraction(video_stream.time_base or 1)
        video = tracks[video_stream.index] = VideoTrack(path, start, end, fps, scale, kept, tick, by_decoding_time=avi)
    if audio_stream is not None:
        own_clock = video_stream is not None and _has_own_clock(audio_stream, video_stream, notes)
        audio = tracks[audio_stream.index] = AudioTrack(path, sample_rate_hz, by_count=avi, own_clock=own_clock)

    leave_out = None
    if video and video_stream is not None and start >= _SEEK_FROM_SECONDS:
        leave_out = _seek(path, container, video, video_stream, tuple(tracks))
        # Its position is known only from the file's first sample on: a separate pass, cheap beside that of the video.
        if audio and audio_stream is not None and (audio.by_count or audio.own_clock):
            _read_audio(path, audio_stream.index, audio, video, end, notes)
            del tracks[audio_stream.index]
    _read(container, tracks, video, end, notes, leave_out)
    if audio and audio_stream is not None and audio.out_of_phase:
        notes.append("stereo out of phase, first channel taken")
        audio = AudioTrack(path, sample_rate_hz, by_count=avi, own_clock=audio.own_clock, first_channel=True)
        _read_audio(path, audio_stream.index, audio, video, end, notes)

    if video and video.origin is None:
        notes.append("video stream cannot be decoded")
    waveform = audio.cut(start, end, video.origin if video else None) if audio else None
    if video:
        video.finish(_audio_end(container, audio, video.origin) if audio else None)
    frames, times = video.result() if video else (None, np.zeros(0))
    for kind, track in (("video", video), ("audio", audio)):
        if track and track.errors:
            notes.append(f"{track.errors} damaged {kind} packets or frames")
    notes.extend(audio.notes if audio else ())
    if audio and waveform is None:
        # After a seek, a stream that has ended earlier gives nothing either.
        broken = audio.first is None and (audio.errors or start < _SEEK_FROM_SECONDS)
        notes.append("audio stream cannot be decoded" if broken else "no audio in this segment")
    if frames is None and waveform is None:
        raise _empty(path, video, audio, start, end)
    if video and video.jump:
        notes.append(video.jump)
    notes.extend(scale.notes)
    # Without repeats: a file that was read in two passes may break off in both.
    return Clip(frames, times, fps, waveform, sample_rate_hz, tuple(dict.fromkeys(notes)))


def _empty(
    path: Path, video: VideoTrack | None, audio: AudioTrack | None, start: Fraction, end: Fraction | None
) -> MediaError:
    """The error for a segment without a frame and a sample."""
    if video and video.origin is not None:
        return EmptySegmentError(f"{path}: no frame at {float(start):g} s; the video ends at {video.end_seconds:g} s")
    if video or audio is None or audio.first is None:
        return UnreadableFileError(f"{path}: the {'video' if video else 'audio'} stream cannot be decoded")
    until = "on" if end is None else f"to {float(end):g} s"
    return EmptySegmentError(f"{path}: no audio from {float(start):g} s {until}")


def _has_own_clock(audio: av.AudioStream, video: av.VideoStream, notes: list[str]) -> bool:
    """Whether the audio begins so far from the video that their clocks must be unrelated; adds a note."""
    if audio.start_time is None or video.start_time is None:
        return False
    late = audio.start_time * Fraction(audio.time_base or 1) - video.start_time * Fraction(video.time_base or 1)
    if abs(late) <= _LARGEST_OFFSET_SECONDS:
        return False
    which = "after" if late > 0 else "before"
    notes.append(f"audio times begin {float(abs(late)):.0f} s {which} the video's: taken to begin with it")
    return True


def _audio_end(container: InputContainer, audio: AudioTrack, origin: Fraction | None) -> Fraction | None:
    """The end of the audio on the clock, without what the codec fills its last packet up with."""
    end = audio.end(origin)
    if end is None or origin is None or audio.own_clock or container.duration is None or container.start_time is None:
        return end
    stated = Fraction(container.start_time + container.duration, av.time_base) - origin
    return stated if 0 < end - stated <= PADDING_SECONDS else end


def _seek(
    path: Path, container: InputContainer, video: VideoTrack, stream: av.VideoStream, streams: tuple[int, ...]
) -> tuple[av.VideoStream, int] | None:
    """Seek to a key frame before the start; in a file whose clock begins again, see `_read` for what to leave out."""
    status = path.stat()
    if not _may_jump(container) or not _joints(path, status.st_size, status.st_mtime_ns, streams):
        video.seek(container, stream)
        return None
    with open_container(path) as head:  # a second one, for the time of the file's first frame
        (head_stream,) = head.streams.get(stream.index)
        assert isinstance(head_stream, av.VideoStream)
        return stream, video.seek(head, head_stream)


def _may_jump(container: InputContainer) -> bool:
    return bool(int(container.format.flags) & _MAY_JUMP)


@lru_cache(maxsize=16)
def _joints(path: Path, size: int, mtime_ns: int, streams: tuple[int, ...]) -> int:
    """How often the clock of a file begins again; its packets are read, but not decoded."""
    with open_container(path) as container:
        clock = ContinuousClock([container.streams[index] for index in streams], may_jump=True)
        for packet in _packets(container, [container.streams[index] for index in streams], []):
            clock.place(packet)
    return clock.joints


def _read(
    container: InputContainer,
    tracks: dict[int, VideoTrack | AudioTrack],
    video: VideoTrack | None,
    end: Fraction | None,
    notes: list[str],
    leave_out: tuple[av.VideoStream, int] | None = None,
) -> None:
    """Decode streams, by index, into their tracks until all are done; the clock begins with `video`.

    `leave_out` are a stream and a time in its ticks: what precedes its last key frame until then is not decoded.
    """
    streams = [container.streams[index] for index in tracks]
    clock = ContinuousClock(streams, may_jump=_may_jump(container))
    packets = _placed(_packets(container, streams, notes), clock)
    for packet in packets if leave_out is None else _from_key_frame(packets, *leave_out):
        track = tracks[packet.stream.index]  # not `stream_index`, which is 0 for packets that flush
        if not track.done:
            _decode_packet(packet, track)
        if isinstance(track, AudioTrack) and end is not None and (video is None or video.origin is not None):
            reached = track.end(video.origin if video else None)
            track.done = reached is not None and reached >= end
        if track.done and all(track.done for track in tracks.values()):
            break
    if clock.joints:
        notes.append(clock.note)


def _read_audio(
    path: Path, index: int, audio: AudioTrack, video: VideoTrack | None, end: Fraction | None, notes: list[str]
) -> None:
    """Decode the audio alone, from the file's beginning on."""
    with open_container(path) as whole:
        _read(whole, {index: audio}, video, end, notes)


def _placed(packets: Iterable[av.Packet], clock: ContinuousClock) -> Iterator[av.Packet]:
    for packet in packets:
        clock.place(packet)
        yield packet


def _from_key_frame(packets: Iterator[av.Packet], stream: av.VideoStream, before: int) -> Iterator[av.Packet]:
    """The packets from the stream's last key frame at `before` (in its ticks) or earlier on."""
    held: list[av.Packet] = []
    for packet in packets:
        if packet.stream.index == stream.index and packet.pts is not None:
            if packet.pts > before:
                held.append(packet)
                break
            if packet.is_keyframe:
                held.clear()
        held.append(packet)
    yield from held
    yield from packets


def _packets(container: InputContainer, streams: list[av.stream.Stream], notes: list[str]) -> Iterator[av.Packet]:
    """Packets of the streams; a broken container ends the iteration with a note and flushes the decoders."""
    try:
        yield from container.demux(*streams)
    except EXHAUSTED:
        raise
    except DECODE_ERRORS as error:
        notes.append(f"file breaks off: {_reason(error)}")
        for stream in streams:
            packet = av.Packet()
            packet.stream = stream
            packet.time_base = Fraction(stream.time_base or 1)  # without it the last frames lose their times
            yield packet


def _decode_packet(packet: av.Packet, track: VideoTrack | AudioTrack) -> None:
    """Decode a packet. A damaged one must not lose the clip: it is counted. Lack of memory is not damage.

    No context manager here: it runs for every packet and would take a hundredth of the decoding time.
    """
    try:
        for frame in packet.decode():
            track.add(frame)  # type: ignore[arg-type]  # a stream decodes to frames of its own kind
            if frame.is_corrupt:
                track.fail()
    except EXHAUSTED:
        raise
    except DECODE_ERRORS:
        track.fail()


def _reason(error: Exception) -> str:
    """What an error says, in a line, without FFmpeg's number and the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
