"""Reading of one annotated clip in a worker process, and its way from there into the dataset.

A worker encodes a clip as its dataset stores it, and sends it. A long clip is written to spool files instead, so that
no process holds it. `IsolatedReader` reads in a worker process what goes into no dataset.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from avdistill.annotations import Annotation
from avdistill.errors import ConfigError, MediaError, SpoolError, StorageError, UnreadableFileError
from avdistill.executors.process_pool import Isolated, WorkerFailure
from avdistill.media import Clip, read_clip
from avdistill.media.decoder import check_reading
from avdistill.media.video_stream import LARGEST_CLIP_BYTES
from avdistill.preparation.encoding import SPOOL_SUFFIXES, EncodedClip, encode_clip

TIME_LIMIT_SECONDS = 1800.0
MEMORY_LIMIT_BYTES = 4 * 2**30
CLIP_LIMIT_BYTES = LARGEST_CLIP_BYTES
# Frames, and audio, that a worker sends; larger ones take the way over a spool file, which writes them twice.
MEMORY_BYTES = 64 * 2**20

_T = TypeVar("_T")


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


def read_media(
    path: Path,
    annotation: Annotation,
    config: PrepareConfig,
    *,
    spool: Path | None = None,
    memory_bytes: int = 0,
    limit_bytes: int | None = CLIP_LIMIT_BYTES,
) -> Clip:
    """The annotated segment of a media file; raises what `read_clip` raises."""
    options = {name: value for name, value in vars(config).items() if name != "jpeg_quality"}
    start, end = annotation.start_seconds, annotation.end_seconds
    return read_clip(
        path,
        start_seconds=start,
        end_seconds=end,
        spool=spool,
        memory_bytes=memory_bytes,
        limit_bytes=limit_bytes,
        **options,
    )


@dataclass(frozen=True)
class Task:
    """A clip to read from `file`; `spool` is the path of its spool files, without suffix, and begins with "spool-"."""

    annotation: Annotation
    file: Path
    spool: Path

    def remove_spools(self) -> None:
        """Remove its spool files."""
        for suffix in SPOOL_SUFFIXES:
            self.spool.with_suffix(suffix).unlink(missing_ok=True)


@dataclass(frozen=True)
class ReadClip:
    """A clip as its dataset stores it, and the state of its file."""

    clip: EncodedClip
    state: tuple[int, int]  # bytes and mtime_ns of the media file


def read_encoded(
    read: Reader, config: PrepareConfig, limit_bytes: int | None, memory_bytes: int, task: Task
) -> ReadClip | MediaError:
    """Read a clip and encode it; the error of an unreadable file is returned.

    Args:
        read: `read_media` keeps to `limit_bytes`, a custom reader to its memory.
        config: how the clip is stored.
        limit_bytes: see `read_clip`.
        memory_bytes: of frames and of audio, beyond which the task's spool files take them.
        task: the clip.

    Raises:
        SpoolError: the spool files cannot be written.
        StorageError: the storage that the file is on does not answer.
    """

    def encoded() -> ReadClip:
        state = file_state(task.file)
        if read is read_media:
            clip = read_media(
                task.file,
                task.annotation,
                config,
                spool=task.spool.with_suffix(".frames"),
                memory_bytes=memory_bytes,
                limit_bytes=limit_bytes,
            )
        else:
            clip = read(task.file, task.annotation, config)
        stored = encode_clip(clip, config.jpeg_quality, spool=task.spool, memory_bytes=memory_bytes)
        return ReadClip(stored, state)

    return _or_error(encoded, task.file, read)


def _or_error(call: Callable[[], _T], file: Path, read: Reader) -> _T | MediaError:
    """What `call` returns, or why `file` cannot be read; another error than the file's own is raised."""
    try:
        return call()
    except MediaError as error:
        return error
    except FileNotFoundError:
        return UnreadableFileError(f"{file}: no such file")
    except OSError as error:
        return UnreadableFileError(f"{file}: {error.strerror or error}")
    except MemoryError:
        return _too_large(file)
    except (SpoolError, StorageError):
        raise
    except Exception as error:
        if read is not read_media:  # a custom reader: its author wants to see the error
            raise
        # A file may trigger an error in this library: that costs one clip, not the run.
        return MediaError(f"{file}: unexpected {type(error).__name__}, please report it: {error}")


def _too_large(file: Path) -> MediaError:
    return MediaError(f"{file}: too large for memory; give segments (start_seconds, end_seconds)")


class IsolatedReader:
    """Reads media files in a worker process, as `prepare` does; a context manager that keeps the process for the next.

    A file that crashes the decoder, hangs it or needs too much memory costs that file.
    """

    def __init__(
        self,
        read: Reader = read_media,
        *,
        time_limit_seconds: float | None = TIME_LIMIT_SECONDS,
        memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
    ) -> None:
        """A reader whose process starts with the first file.

        Args:
            read: a function of a module, which the worker process imports.
            time_limit_seconds: for all that is read of one file; None: no limit.
            memory_limit_bytes: for the process (enforced on Linux); None: no limit.

        Raises:
            ConfigError: a time limit of 0 or less.
        """
        check_time_limit(time_limit_seconds)
        self._limit = time_limit_seconds
        self._process: Isolated[_Request, Clip | MediaError] = Isolated(
            partial(_read_for_caller, read), memory_limit_bytes=memory_limit_bytes
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def for_one_file(self) -> Reader:
        """A `Reader` whose calls share the time limit. Raises what `read_media` raises, and MediaError at a limit."""
        took = 0.0

        def read(path: Path, annotation: Annotation, config: PrepareConfig) -> Clip:
            nonlocal took
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            self._process.start()
            began = time.monotonic()
            left = None if self._limit is None else max(0.001, self._limit - took)
            try:
                answer = self._process((path, annotation, config), left)
            except MemoryError:  # of the answer
                answer = _too_large(path)
            took += time.monotonic() - began
            if isinstance(answer, WorkerFailure):
                late = answer.reason.startswith("took longer")
                answer = MediaError(f"{path}: {f'took longer than {self._limit:g} s' if late else answer.reason}")
            if isinstance(answer, MediaError):
                raise answer
            return answer

        return read


_Request = tuple[Path, Annotation, PrepareConfig]


def _read_for_caller(read: Reader, request: _Request) -> Clip | MediaError:
    return _or_error(lambda: read(*request), request[0], read)


def check_time_limit(seconds: float | None) -> None:
    """Raise ConfigError for a time limit of 0 or less."""
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"time_limit_seconds: expected more than 0, got {seconds:g}")


def file_state(path: Path) -> tuple[int, int]:
    """Bytes and mtime_ns, by which a changed file is recognized. Raises OSError if there is no file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def remove_spools(folder: Path) -> None:
    """Remove the spool files that an interrupted run left in a folder."""
    for spool in folder.glob("spool-*"):
        spool.unlink()
