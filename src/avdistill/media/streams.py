"""Which streams of a file are read: the container's default of each kind, or the first that can be decoded."""

from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition

from avdistill.errors import NoStreamError, UnreadableFileError
from avdistill.media.container import open_container
from avdistill.media.scaler import LARGEST_FRAME_PIXELS, check_pixels
from avdistill.media.video_stream import DECODE_ERRORS

_Stream = TypeVar("_Stream", av.VideoStream, av.AudioStream)
_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails  # cover art, previews


def choose_streams(
    path: Path, container: InputContainer, notes: list[str]
) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """The video and the audio stream to read; notes say what was left out.

    Raises:
        NoStreamError: there is neither video nor audio.
        UnreadableFileError: nothing can be decoded.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _NOT_VIDEO]
    audios = list(container.streams.audio)
    if not videos and not audios:
        raise NoStreamError(f"{path}: neither video nor audio")
    video, audio = _choose("video", videos, notes), _choose("audio", audios, notes)
    if video is None and audio is None:
        raise UnreadableFileError(f"{path}: the {'video' if videos else 'audio'} stream cannot be decoded")
    if video is not None:
        check_pixels(path, video.width, video.height)
        video.codec_context.options = {"max_pixels": str(LARGEST_FRAME_PIXELS)}  # a frame may still grow midway
    return video, audio


def _choose(kind: str, streams: list[_Stream], notes: list[str]) -> _Stream | None:
    # Without a codec context FFmpeg has no decoder for the file's codec, as after a damaged header.
    decodable = [stream for stream in streams if getattr(stream, "codec_context", None) is not None]
    if len(decodable) < len(streams):
        notes.append(f"{kind} stream cannot be decoded")
    if not decodable:
        return None
    chosen = next((stream for stream in decodable if stream.disposition & Disposition.default), decodable[0])
    if len(decodable) > 1:
        number = decodable.index(chosen)
        notes.append(f"{len(decodable)} {kind} streams, {f'default ({number + 1})' if number else 'first'} taken")
    return chosen


def has_video(path: Path) -> bool:
    """Whether a file is a video that FFmpeg opens: neither an image nor audio with a cover, nor anything else."""
    try:
        with open_container(path) as container:
            images = container.format.name.endswith("_pipe")
            return not images and any(not stream.disposition & _NOT_VIDEO for stream in container.streams.video)
    except (*DECODE_ERRORS, UnreadableFileError, OSError, MemoryError):
        return False
