"""Shots: files that are listed whole become a clip per shot, before they are prepared (`prepare --scenes`).

PySceneDetect's AdaptiveDetector finds the cuts: a frame differs from the one before by much more than its neighbors do,
so that a moving camera is no cut. It is given the frames of our own decoder, so that cuts are times on the clock that
clips are read by.

What was found is kept in a file beside the dataset, a line per video file, so that an interrupted call goes on and a
finished dataset is recognized without decoding everything again.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from avdistill.annotations import Annotation
from avdistill.annotations.video_files import locate
from avdistill.errors import ConfigError, DatasetError, MediaError
from avdistill.executors.process_pool import WorkerFailure, ordered_map
from avdistill.fsio import error_message, open_regular, regular_file, replacing
from avdistill.media import read_clip
from avdistill.preparation.clip_reader import MEMORY_LIMIT_BYTES, TIME_LIMIT_SECONDS, file_state
from avdistill.progress import OnProgress, Progress
from avdistill.storage.url import as_path

# Cuts are as visible in small frames; the audio is decoded with them and not used.
_SHORT_SIDE, _SAMPLE_RATE_HZ = 64, 1000
# A video of 10 frames per second that was encoded with 30 stands still between two frames and then jumps, which would
# be a cut each time. So frames that differ from the one before by less than this, of 255, are left out, at most as many
# in a row: a slide show does stand still.
_REPEATED, _MOST_REPEATS = 1.0, 6
# The detector counts frames; their times are ours.
_NOMINAL_FPS = 25.0


@dataclass(frozen=True)
class Shots:
    """What was found in a video file.

    Attributes:
        path: as in the annotations.
        state: bytes and mtime_ns of the file.
        cuts: times in seconds at which another shot begins, ascending, the file's beginning not among them.
        end: time of the last frame.
    """

    path: str
    state: tuple[int, int]
    cuts: tuple[float, ...]
    end: float


def cut_at_scenes(
    annotations: Sequence[Annotation],
    videos: str | os.PathLike[str],
    record: str | os.PathLike[str],
    *,
    scene_seconds: float = 2.0,
    workers: int = 2,
    time_limit_seconds: float | None = TIME_LIMIT_SECONDS,
    on_progress: OnProgress | None = None,
) -> list[Annotation]:
    """The annotations with each whole file of several shots replaced by its shots, which have its labels and group.

    Listed segments, and files that cannot be read, stay as they are; `prepare` reports the latter.

    Args:
        annotations: the clips.
        videos: the folder that their paths are relative to.
        record: the file that keeps what was found; new or of an earlier call.
        scene_seconds: a shot that is shorter stays with the next one, the last one with the one before it.
        workers: number of decoding processes.
        time_limit_seconds: for one file, as of `prepare`.
        on_progress: called after each file.

    Raises:
        ConfigError: PySceneDetect is not installed, or `scene_seconds` is not above 0.
        DatasetError: the record cannot be read or written.
    """
    if not 0 < scene_seconds < float("inf"):
        raise ConfigError(f"scene_seconds: expected above 0, found {scene_seconds:g}")
    if find_spec("scenedetect") is None:
        raise ConfigError("scenes: expected PySceneDetect, found none: pip install 'avdistill[scenes]'")
    videos, record = as_path(videos), Path(record)
    whole = dict.fromkeys(each.path for each in annotations if each.start_seconds == 0 and each.end_seconds is None)
    files = {path: file for path in whole if (file := locate(videos, path)).is_file()}
    try:
        known = {
            path: shots
            for path, shots in _recorded(record).items()
            if path in files and shots.state == file_state(files[path])
        }
        left = [path for path in files if path not in known]
        answers = ordered_map(
            partial(find_shots, videos),
            left,
            workers=workers,
            time_limit_seconds=time_limit_seconds,
            memory_limit_bytes=MEMORY_LIMIT_BYTES,
        )
        _record(record, known, answers, len(files), on_progress)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{record}: the shots cannot be recorded: {error_message(error)}") from error
    return [part for each in annotations for part in _parts(each, known.get(each.path), scene_seconds)]


def _record(
    record: Path,
    known: dict[str, Shots],
    answers: Iterable[Shots | MediaError | WorkerFailure],
    files: int,
    on_progress: OnProgress | None,
) -> None:
    """Add the answers to what is known, and to the record as they come."""
    with replacing(record) as anew:  # without the half line that a kill left
        anew.writelines(map(_line, known.values()))
    before = len(known)
    with open_regular(record, "a", encoding="utf-8") as lines:
        for number, answer in enumerate(answers, start=1):
            if isinstance(answer, Shots):
                known[answer.path] = answer
                lines.write(_line(answer))
                lines.flush()
            if on_progress is not None:
                on_progress(Progress(before + number, files))


def find_shots(videos: Path, path: str) -> Shots | MediaError:
    """The shots of a video file, every frame of which is looked at; the error of one that cannot be read is returned.

    Args:
        videos, path: the file.
    """
    import cv2
    from scenedetect import AdaptiveDetector, FrameTimecode

    cv2.setNumThreads(1)  # as many processes as cores look at files
    detector = AdaptiveDetector(min_scene_len=0)
    cuts: list[int] = []
    shown: list[int] = []  # the frames that the detector has been given
    frames = 0
    latest: np.ndarray | None = None

    def visit(frame: np.ndarray) -> None:
        nonlocal frames, latest
        number, frames = frames, frames + 1
        image = frame.astype(np.int16)
        repeats = latest is not None and np.abs(image - latest).mean() < _REPEATED
        if repeats and number - shown[-1] <= _MOST_REPEATS:
            return
        latest = image
        shown.append(number)
        time = FrameTimecode(len(shown) - 1, _NOMINAL_FPS)
        blue_first = np.ascontiguousarray(frame[..., ::-1])
        cuts.extend(shown[cut.frame_num] for cut in detector.process_frame(time, blue_first))

    file = locate(videos, path)
    try:
        state = file_state(file)
        times = read_clip(
            file, fps=None, short_side=_SHORT_SIDE, sample_rate_hz=_SAMPLE_RATE_HZ, visit=visit
        ).frame_times_seconds.tolist()
    except MediaError as error:
        return error
    except (OSError, MemoryError, ValueError, RuntimeError) as error:
        return MediaError(f"{file}: {error_message(error)}")
    return Shots(path, state, tuple(times[number] for number in cuts), times[-1] if times else 0.0)


def _recorded(record: Path) -> dict[str, Shots]:
    """What earlier calls found; the last line may be the half that a kill left."""
    if not record.exists():
        return {}
    lines = regular_file(record).read_text(encoding="utf-8").split("\n")
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            size, modified = map(int, row["state"])
            shots = Shots(str(row["path"]), (size, modified), tuple(map(float, row["cuts"])), float(row["end"]))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                continue
            raise ValueError(f"line {number}: not the shots of a file: {error!r:.80}") from error
        found[shots.path] = shots
    return found


def _line(shots: Shots) -> str:
    return json.dumps(vars(shots), ensure_ascii=False) + "\n"


def _parts(annotation: Annotation, shots: Shots | None, scene_seconds: float) -> list[Annotation]:
    if shots is None or annotation.start_seconds != 0 or annotation.end_seconds is not None:
        return [annotation]
    bounds = [0.0]
    for cut in shots.cuts:
        if cut - bounds[-1] >= scene_seconds and shots.end - cut >= scene_seconds:
            bounds.append(cut)
    if len(bounds) == 1:
        return [annotation]
    parts = []
    for start, end in pairwise([*bounds, None]):
        assert start is not None
        name = f"{annotation.clip_id}@{start:.3f}-{'end' if end is None else f'{end:.3f}'}"
        parts.append(replace(annotation, clip_id=name, start_seconds=start, end_seconds=end))
    return parts
