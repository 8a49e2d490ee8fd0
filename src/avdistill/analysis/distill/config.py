"""What `distill` is asked for."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avdistill.dataset.teacher_mean import JOINT, teacher_names
from avdistill.errors import ConfigError
from avdistill.progress import OnProgress
from avdistill.teachers.precomputed import PRECOMPUTED

Bar = Callable[[str], AbstractContextManager[OnProgress]]
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class DistillConfig:
    """What `distill` does.

    Attributes:
        videos: the folder of videos.
        out: the folder for everything.
        labels: a list with a label for some of the videos (`list_videos`); None takes class folders, if there are any.
        teacher: a name, a run folder, `precomputed:` and a file of embeddings, several of these joined by "+", or None:
            the best that is installed, else an audio network that is trained on the labeled clips.
        student_modality: of the student; the teacher has the other one.
        decisions: a file of decisions about clips, as an earlier call's audit wrote it.
        time_budget_seconds: for all; decides the steps and seeds of the training runs. None takes the most.
        fps, short_side: of the stored frames.
        test_fraction: of the labeled groups of each class, for the test; without labels, of all groups. Of no use
            where the list names test clips.
        workers: processes at a time; a training run takes one core.
        seed: of the choice of test clips.
    """

    videos: Path
    out: Path
    labels: Path | None = None
    teacher: str | None = None
    student_modality: Literal["video", "audio"] = "video"
    decisions: Path | None = None
    time_budget_seconds: float | None = None
    fps: float = 4.0
    short_side: int = 64
    test_fraction: float = 0.3
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for an impossible value."""
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction: expected above 0 and below 1, found {self.test_fraction:g}")
        if self.time_budget_seconds is not None and self.time_budget_seconds <= 0:
            raise ConfigError(f"time_budget: expected above 0, found {self.time_budget_seconds:g} s")
        if self.workers < 1:
            raise ConfigError(f"workers: expected at least 1, found {self.workers}")
        if self.seed < 0:
            raise ConfigError(f"seed: must not be negative, got {self.seed}")

    @property
    def teachers(self) -> dict[str, str | None]:
        """The teachers by the name of their features: the first by its modality, the others by their own names."""
        asked: list[str | None] = [self.teacher]
        if self.teacher is not None and not Path(self.teacher.removeprefix(PRECOMPUTED)).exists():
            asked = [*teacher_names(self.teacher)]
        names = [self.teacher_modality, *(re.sub(r"[^\w.]", "_", Path(each).name) for each in asked[1:] if each)]
        return dict(zip(names, asked, strict=False))

    @property
    def features(self) -> str:
        """The name of the features that the students learn from."""
        return JOINT.join(self.teachers)

    @property
    def teacher_modality(self) -> Literal["video", "audio"]:
        """The student's is the other one."""
        return "audio" if self.student_modality == "video" else "video"
