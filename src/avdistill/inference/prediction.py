"""Labels of media files by a trained student, whole and with times; what runs the student is a subclass's."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avdistill.dataset.windows import check_windows
from avdistill.errors import NotFiniteError
from avdistill.inference.file_windows import Window, file_items, read_windows
from avdistill.inputs import StudentConfig
from avdistill.preparation.clip_reader import IsolatedReader, PrepareConfig
from avdistill.progress import OnProgress, Progress

Ranking = tuple[tuple[str, float], ...]
#: of a table of segments, `Prediction.rows`
SEGMENT_COLUMNS = ("file", "start_seconds", "end_seconds", "label", "probability")


@dataclass(frozen=True)
class Segment:
    """Neighboring windows of a file whose most probable label is the same.

    Attributes:
        start_seconds: of the first window, on the file's clock.
        end_seconds: of the last window. Where windows overlap, so do neighboring segments.
        label: the most probable label.
        probability: of `label`, mean over the windows.
        top: the most probable labels and their mean probabilities, best first.
    """

    start_seconds: float
    end_seconds: float
    label: str
    probability: float
    top: Ranking


@dataclass(frozen=True, eq=False)
class Prediction:
    """The output of a student for a file.

    Attributes:
        file: the file.
        classes: names of the columns of `probabilities`.
        probabilities: float32 (C,), mean over the windows of the softmax (of the sigmoid with several labels).
        embedding: float32 (D,), mean over the windows.
        top: the most probable labels of the whole file and their probabilities, best first.
        segments: labels with times.
        windows: number of windows.
        notes: irregularities of the file.
    """

    file: Path
    classes: tuple[str, ...]
    probabilities: np.ndarray
    embedding: np.ndarray
    top: Ranking
    segments: tuple[Segment, ...]
    windows: int
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The most probable label of the whole file."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Of `label`."""
        return self.top[0][1]

    def describe(self) -> dict[str, Any]:
        """Labels with times as one JSON-ready object."""
        return {
            "file": str(self.file),
            "label": self.label,
            "probability": self.probability,
            "top": _describe_ranking(self.top),
            "segments": [vars(segment) | {"top": _describe_ranking(segment.top)} for segment in self.segments],
            "windows": self.windows,
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, float, float, str, float]]:
        """The segments as rows of `SEGMENT_COLUMNS`."""
        file = str(self.file)
        return [(file, s.start_seconds, s.end_seconds, s.label, s.probability) for s in self.segments]

    def __str__(self) -> str:
        ranking = ", ".join(f"{label} {probability:.3f}" for label, probability in self.top)
        lines = [f"{self.file}: {ranking}"]
        lines += [
            f"  {s.start_seconds:9.2f} - {s.end_seconds:9.2f} s  {s.probability:.3f}  {s.label}" for s in self.segments
        ]
        return "\n".join(lines)


class FileStudent(ABC):
    """A trained student that takes media files.

    Attributes:
        config: classes, input and rates of the student.
        reading: how files are decoded for it.
    """

    config: StudentConfig
    reading: PrepareConfig

    def predict(
        self,
        file: str | os.PathLike[str],
        *,
        top: int = 5,
        windows: int | None = None,
        stride: int | None = None,
        batch_size: int = 32,
        reader: IsolatedReader | None = None,
        on_progress: OnProgress | None = None,
    ) -> Prediction:
        """Labels of a file, whole and with times, in memory that does not grow with its length.

        The file is decoded in a process of its own, with limits of time and memory.

        Args:
            file: any video or audio file that holds the student's modality.
            top: labels to name per segment and for the whole file.
            windows: this many, evenly spaced (the file is read twice); None slides over the whole file.
            stride: of the sliding windows in frames or samples; None is a window's length.
            batch_size: windows at a time.
            reader: an open one, whose process serves many files, or that has other limits; None: one for this file.
            on_progress: called after each batch, in windows; their number is not known beforehand.

        Raises:
            ConfigError: numbers that make no windows.
            FileNotFoundError: there is no such file.
            MediaError: it cannot be read within the limits, or lacks the student's modality.
            NotFiniteError: the student's output is infinite or NaN.
        """
        length = self.config.view.window_length(self.config.sample_rate_hz)
        check_windows(length, stride, top=top, windows=windows, batch_size=batch_size)
        with IsolatedReader() if reader is None else nullcontext(reader) as isolated:
            items = file_items(Path(file), self.config.view, self.reading, isolated.for_one_file())
            found = read_windows(items, windows=windows, stride=stride)
            return self._predict(Path(file), found, items.notes, top, batch_size, on_progress)

    def embed(
        self,
        file: str | os.PathLike[str],
        *,
        windows: int | None = None,
        stride: int | None = None,
        reader: IsolatedReader | None = None,
    ) -> np.ndarray:
        """float32 (D,), the file's mean embedding, before any normalization. Arguments and errors as `predict`."""
        return self.predict(file, windows=windows, stride=stride, reader=reader).embedding

    @abstractmethod
    def _run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) and probabilities (B, C), float32, of windows as a view's `evaluation_crop` gives them."""

    def _predict(
        self,
        file: Path,
        found: Iterable[Window],
        notes: list[str],
        top: int,
        batch_size: int,
        on_progress: OnProgress | None,
    ) -> Prediction:
        """The prediction of some windows; `notes` are complete when the windows have been taken."""
        timeline = _Timeline(self.config.classes, min(top, len(self.config.classes)))
        total: np.ndarray | float = 0.0
        windows = iter(found)
        while batch := list(itertools.islice(windows, batch_size)):
            embedding, probabilities = self._run(np.stack([window.items for window in batch]))
            if not (np.isfinite(embedding).all() and np.isfinite(probabilities).all()):
                first, last = batch[0].start_seconds, batch[-1].end_seconds
                raise NotFiniteError(f"{file}: the student's output between {first:g} and {last:g} s is not finite")
            total = total + embedding.sum(0, dtype=np.float64)
            for window, row in zip(batch, probabilities, strict=True):
                timeline.add(window, row)
            if on_progress is not None:
                on_progress(Progress(timeline.windows))
        mean = timeline.mean()
        return Prediction(
            file=file,
            classes=timeline.classes,
            probabilities=mean.astype(np.float32),
            embedding=np.asarray(total / timeline.windows, np.float32),
            top=_rank(mean, timeline.classes, timeline.top),
            segments=timeline.segments(),
            windows=timeline.windows,
            notes=tuple(notes),
        )


def reading_of(
    config: StudentConfig,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | Literal["whole"] | None = None,
) -> PrepareConfig:
    """How files are decoded for a student; what is None is as in its training dataset."""
    if short_side is None and size is None:
        short_side, size = config.short_side, config.size
    if short_side is None and size is None:
        short_side = config.view.short_side
    if region is None:
        region = config.region
    return PrepareConfig(
        fps=config.fps,
        short_side=short_side,
        size=size,
        region=None if region == "whole" else region,
        sample_rate_hz=config.sample_rate_hz,
    )


@dataclass
class _Stretch:
    """Neighboring windows with the same best label, while they are added up."""

    start_seconds: float
    end_seconds: float
    total: np.ndarray  # float64 (C,)
    windows: int = 1

    def segment(self, classes: tuple[str, ...], top: int) -> Segment:
        ranking = _rank(self.total / self.windows, classes, top)
        return Segment(self.start_seconds, self.end_seconds, *ranking[0], ranking)


class _Timeline:
    """The windows of a file so far, merged into stretches; only the last of them is still added up."""

    def __init__(self, classes: tuple[str, ...], top: int) -> None:
        self.classes, self.top, self.windows = classes, top, 0
        self._total = np.zeros(len(classes))
        self._finished: list[Segment] = []
        self._last: _Stretch | None = None
        self._label = -1

    def add(self, window: Window, probabilities: np.ndarray) -> None:
        self.windows += 1
        self._total += probabilities
        label = int(probabilities.argmax())
        if self._last is not None and label == self._label:
            self._last.end_seconds = window.end_seconds
            self._last.total += probabilities
            self._last.windows += 1
        else:
            if self._last is not None:
                self._finished.append(self._last.segment(self.classes, self.top))
            row = probabilities.astype(np.float64)
            self._last = _Stretch(window.start_seconds, window.end_seconds, row)
        self._label = label

    def segments(self) -> tuple[Segment, ...]:
        last = () if self._last is None else (self._last.segment(self.classes, self.top),)
        return (*self._finished, *last)

    def mean(self) -> np.ndarray:
        """float64 (C,), over all windows."""
        return self._total / self.windows


def _rank(probabilities: np.ndarray, classes: tuple[str, ...], top: int) -> Ranking:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((classes[i], float(probabilities[i])) for i in best)


def _describe_ranking(ranking: Ranking) -> list[dict[str, object]]:
    return [{"label": label, "probability": probability} for label, probability in ranking]
