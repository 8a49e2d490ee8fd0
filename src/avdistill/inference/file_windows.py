"""The windows of a media file, as `evaluate` cuts them from a dataset, read segment by segment in bounded memory."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avdistill.annotations import Annotation
from avdistill.dataset.windows import spaced_starts, take_window
from avdistill.errors import EmptySegmentError, MediaError, NoStreamError, UnreadableFileError
from avdistill.inputs import View
from avdistill.media import Clip
from avdistill.media.scaler import fit_frames
from avdistill.preparation.clip_reader import PrepareConfig, Reader, read_media

# Seconds in memory at a time. Every segment costs a seek and the frames since the last key frame; of audio ten times
# as much fits into the same memory.
_VIDEO_SEGMENT_SECONDS = 30
_AUDIO_SEGMENT_SECONDS = 300
# A small file may claim years.
_LONGEST_HOURS = 24


@dataclass(frozen=True)
class Window:
    """One input of the network.

    Attributes:
        start_seconds: on the file's clock.
        end_seconds: the time of the first frame or sample after the window, or the end of the file.
        items: uint8 (T, H, W, 3) frames or float32 (S,) audio, of the view's size.
    """

    start_seconds: float
    end_seconds: float
    items: np.ndarray


class FileItems(ABC):
    """The frames (uint8, as in a dataset) or the audio (int16) of a file, in consecutive segments; see `file_items`.

    Attributes:
        read: reads a segment.
        notes: irregularities of the segments read so far, see `Clip.notes`.
    """

    def __init__(self, path: Path, view: View, config: PrepareConfig, read: Reader) -> None:
        self.path, self.view, self.config, self.read = path, view, config, read
        self.notes: list[str] = []
        self._times: list[float] = []  # of every frame so far, where there is no rate

    @abstractmethod
    def segments(self) -> Iterator[np.ndarray]:
        """uint8 (T, H, W, 3) or int16 (S,), never empty.

        Raises:
            FileNotFoundError: there is no such file.
            MediaError: nothing of it can be read, it lacks the modality of the view, or it is longer than a day.
        """

    def seconds(self, index: int) -> float:
        """The time of an item that was read, or of the end."""
        rate = getattr(self.config, self.view.rate)
        if rate is not None:
            return float(index / rate)
        if index < len(self._times):
            return self._times[index]
        step = self._times[-1] - self._times[-2] if len(self._times) > 1 else 1 / 25
        return self._times[-1] + step

    def _read(self, config: PrepareConfig, start: float, end: float | None) -> Clip | None:
        """The segment, or None where there is neither video nor audio in it."""
        if start >= 3600 * _LONGEST_HOURS:
            raise MediaError(f"{self.path}: longer than {_LONGEST_HOURS:.3g} h")
        try:
            clip = self.read(self.path, Annotation(self.path.stem, str(self.path), (), "", start, end), config)
        except (EmptySegmentError, UnreadableFileError) as error:
            if start == 0:
                raise
            if isinstance(error, UnreadableFileError):
                self.notes.append(f"cannot be read from {start:g} s on")
            return None
        self.notes.extend(note for note in clip.notes if note not in self.notes)
        return clip


class FileFrames(FileItems):
    """The frames of a file."""

    def segments(self) -> Iterator[np.ndarray]:
        """uint8 (T, H, W, 3)."""
        config, fps, size = self.config, self.config.fps, None
        expected = None if fps is None else max(1, round(fps * _VIDEO_SEGMENT_SECONDS))
        # A whole number of frames, so that a segment's first frame is the next of the whole file.
        step_seconds = _VIDEO_SEGMENT_SECONDS if fps is None or expected is None else expected / fps
        for number in itertools.count():
            start = number * step_seconds
            clip = self._read(config, start, start + step_seconds)
            if clip is None or clip.frames is None:
                if number == 0:  # a video that is there has a frame in the first segment: the clock begins with it
                    raise NoStreamError(f"{self.path}: no video, which this student takes")
                return
            frames, times = clip.frames, clip.frame_times_seconds
            size = size or (frames.shape[1], frames.shape[2])
            if frames.shape[1:3] != size:  # the file changes it between two segments
                frames = fit_frames(frames, size)
            if expected is None:
                if number:  # the frame that is still shown at the start belongs to an earlier segment
                    frames, times = frames[times >= start], times[times >= start]
                self._times.extend(times.tolist())
            if len(frames):
                yield frames
            if expected is not None and len(frames) < expected:
                return


class FileAudio(FileItems):
    """The audio of a file."""

    def segments(self) -> Iterator[np.ndarray]:
        """int16 (S,)."""
        # The video comes along unasked: one pixel a second of it.
        config = replace(self.config, fps=1.0, short_side=None, size=(1, 1), region=None)
        expected = _AUDIO_SEGMENT_SECONDS * config.sample_rate_hz
        found = False
        for number in itertools.count():
            start = float(number * _AUDIO_SEGMENT_SECONDS)
            clip = self._read(config, start, start + _AUDIO_SEGMENT_SECONDS)
            if clip is None and not found:  # the video is over, and so is the file, or the audio sets in later still
                clip = self._read(config, start, None)
            if clip is not None and clip.waveform is not None:
                found = True
                yield _as_stored(clip.waveform)
                if len(clip.waveform) != expected:
                    return
            elif found:  # it has ended: after a hole of such a length there is no audio for `read_clip`
                return
            elif clip is not None and "no audio in this segment" in clip.notes:  # it sets in later
                yield np.zeros(expected, np.int16)
            else:
                raise NoStreamError(f"{self.path}: no audio, which this student takes")


def file_items(path: Path, view: View, config: PrepareConfig, read: Reader = read_media) -> FileItems:
    """What a view takes of a file, by a `Reader` of segments."""
    return {"frames": FileFrames, "audio": FileAudio}[view.reader](path, view, config, read)


def read_windows(items: FileItems, *, windows: int | None = None, stride: int | None = None) -> Iterator[Window]:
    """The windows that `EvaluationWindows` takes from the same frames or audio, one at a time, in order.

    Args:
        items: a file.
        windows: this many, evenly spaced, for which the file is read twice; None slides over the whole file.
        stride: of the sliding windows in frames or samples; None is the window's length.

    Raises:
        FileNotFoundError: there is no such file.
        MediaError: nothing of it can be read, it lacks the modality of the view, or it is longer than a day.
    """
    view, rate = items.view, items.config.sample_rate_hz
    length = view.window_length(rate)
    starts: Iterator[int] = itertools.count(0, stride or length)
    if windows is not None:
        starts = iter(spaced_starts(_count(items), length, windows))

    start = next(starts)
    offset, buffer = 0, np.zeros(0)  # the items from number `offset` on
    for segment in items.segments():
        try:
            view.check_fits(segment.shape)
        except ValueError as error:
            raise MediaError(f"{items.path}: {error}") from error
        buffer = np.concatenate([buffer, segment]) if len(buffer) else segment
        while offset + len(buffer) > start + length:  # more follows: this window is whole and not the last
            window = view.evaluation_crop(take_window(buffer, start - offset, length))
            yield Window(items.seconds(start), items.seconds(start + length), window)
            following = next(starts, None)
            if following is None:
                return
            start = following
        # A window's length before the next start is kept, for a last window that is moved back.
        keep = min(max(offset, start - length), offset + len(buffer))
        offset, buffer = keep, buffer[keep - offset :]
    count = offset + len(buffer)
    if view.aligned:
        start = max(0, count - length)  # see `sliding_starts`
    end = min(start + length, count)
    window = view.evaluation_crop(take_window(buffer, start - offset, length))
    yield Window(items.seconds(start), items.seconds(end), window)


def _count(items: FileItems) -> int:
    """How many frames or samples the file has; frames are scaled to a pixel, which costs least."""
    tiny = replace(items.config, short_side=None, size=(1, 1))
    return sum(map(len, file_items(items.path, items.view, tiny, items.read).segments()))


def _as_stored(waveform: np.ndarray) -> np.ndarray:
    return np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16)
