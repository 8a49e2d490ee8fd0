"""Whether a dataset has the rates that a network was trained at."""

from __future__ import annotations

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import TeacherError
from avdistill.inputs import VideoInput, View


def check_rates(dataset: ClipDataset, view: View, fps: float | None, sample_rate_hz: int, who: str) -> None:
    """Raise TeacherError where a network would see or hear the dataset at another speed than it was trained at."""
    if isinstance(view, VideoInput):
        if fps != dataset.fps:
            raise TeacherError(f"{who} was trained at {fps} frames a second, {dataset.folder} holds {dataset.fps}")
    elif sample_rate_hz != dataset.sample_rate_hz:
        raise TeacherError(
            f"{who} was trained on audio at {sample_rate_hz} Hz, {dataset.folder} holds {dataset.sample_rate_hz}"
        )
