"""Reading of one annotated clip in a worker process, and its way from there into the dataset.

A worker writes a clip's arrays to spool files and sends only their shapes, so that no process holds a long clip.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.annotations import Annotation
from avdistill.errors import ConfigError, MediaError, SpoolError, UnreadableFileError
from avdistill.fsio import create_file
from avdistill.media import Clip, read_clip
from avdistill.media.decoder import check_reading


@dataclass(frozen=True)
class PrepareConfig:
    """How clips are stored in a dataset.

    Attributes:
        fps: frames per second; None takes every frame.
        short_side: length of the frames' shorter side in pixels.
        size: (height, width) in pixels, instead of `short_side`.
        region: (x, y, width, height) in pixels of the video as displayed, cropped before scaling.
        sample_rate_hz: of the mono audio.
        jpeg_quality: 1 to 100 stores frames as JPEG, many times smaller and slower to read; None stores raw pixels.
    """

    fps: float | None = 4.0
    short_side: int | None = 128
    size: tuple[int, int] | None = None
    region: tuple[int, int, int, int] | None = None
    sample_rate_hz: int = 16000
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError before anything is opened."""
        try:
            check_reading(self.fps, self.short_side, self.size, self.region, self.sample_rate_hz)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality must lie in 1 to 100, got {self.jpeg_quality}")


# A function (file, annotation, config) -> clip that raises MediaError or OSError for a clip that cannot be read. It
# belongs to a module, so that worker processes can import it.
Reader = Callable[[Path, Annotation, PrepareConfig], Clip]


def read_media(path: Path, annotation: Annotation, config: PrepareConfig, spool: Path | None = None) -> Clip:
    """The annotated segment of a media file; raises what `read_clip` raises."""
    options = {name: value for name, value in vars(config).items() if name != "jpeg_quality"}
    start, end = annotation.start_seconds, annotation.end_seconds
    return read_clip(path, start_seconds=start, end_seconds=end, spool=spool, **options)


@dataclass(frozen=True)
class Task:
    """A clip to read from `file`; `spool` is the path of its spool files, without suffix, and begins with "spool-"."""

    annotation: Annotation
    file: Path
    spool: Path

    @property
    def frames(self) -> Path:
        """Spool file of the frames."""
        return self.spool.with_suffix(".frames")

    @property
    def audio(self) -> Path:
        """Spool file of the audio."""
        return self.spool.with_suffix(".audio")


@dataclass(frozen=True)
class SpooledClip:
    """A clip whose arrays are in its task's spool files."""

    clip: Clip  # everything but the arrays
    frames_shape: tuple[int, ...] | None  # (T, H, W, 3) of the uint8 frames
    audio_shape: tuple[int, ...] | None  # (S,) of the float32 audio
    state: tuple[int, int]  # bytes and mtime_ns of the media file

    def open(self, task: Task) -> Clip:
        """The clip, its arrays mapped from the spool files."""
        frames = None if self.frames_shape is None else _map(task.frames, np.uint8, self.frames_shape)
        waveform = None if self.audio_shape is None else _map(task.audio, np.float32, self.audio_shape)
        return replace(self.clip, frames=frames, waveform=waveform)


def read_to_spool(read: Reader, config: PrepareConfig, task: Task) -> SpooledClip | MediaError:
    """Read a clip and write its arrays to the task's spool files; the error of an unreadable file is returned.

    Raises:
        SpoolError: the spool files cannot be written.
    """
    try:
        state = file_state(task.file)
        if read is read_media:
            clip = read_media(task.file, task.annotation, config, task.frames)
        else:
            clip = read(task.file, task.annotation, config)
        if not task.frames.exists():
            _write(task.frames, np.uint8, clip.frames)
        _write(task.audio, np.float32, clip.waveform)
    except MediaError as error:
        return error
    except FileNotFoundError:
        return UnreadableFileError(f"{task.file}: no such file")
    except OSError as error:
        return UnreadableFileError(f"{task.file}: {error.strerror or error}")
    except MemoryError:
        return MediaError(f"{task.file}: too large for memory; give segments (start_seconds, end_seconds)")
    except SpoolError:
        raise
    except Exception as error:
        if read is not read_media:  # a custom reader: its author wants to see the error
            raise
        # A file may trigger an error in this library: that costs one clip, not the run.
        return MediaError(f"{task.file}: unexpected {type(error).__name__}, please report it: {error}")
    frames, audio = (None if array is None else array.shape for array in (clip.frames, clip.waveform))
    return SpooledClip(replace(clip, frames=None, waveform=None), frames, audio, state)


def file_state(path: Path) -> tuple[int, int]:
    """Bytes and mtime_ns, by which a changed file is recognized. Raises OSError if there is no file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def remove_spools(folder: Path) -> None:
    """Remove the spool files that an interrupted run left in a folder."""
    for spool in folder.glob("spool-*"):
        spool.unlink()


def _write(spool: Path, dtype: Any, array: np.ndarray | None) -> None:
    if array is None:
        return
    try:
        with create_file(spool, "xb") as file:
            file.write(np.ascontiguousarray(array.astype(dtype, casting="same_kind", copy=False)).data)
    except OSError as error:
        raise SpoolError(f"{spool}: {error.strerror}") from error


def _map(spool: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.zeros(shape, dtype) if 0 in shape else np.memmap(spool, dtype, "r", shape=shape)
