"""Preparation and embedding by an executor: each part of a list is a task, and is embedded while others are prepared.

The parts are ordinary datasets in `<dataset>.parts/`, on a file system that all machines share, and are joined at the
end. The same call after a kill goes on with the parts that are not finished.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from avdistill.annotations import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import PART_CLIPS
from avdistill.dataset.schema import TeacherEntry
from avdistill.errors import AvdistillError, TaskLostError
from avdistill.executors.executor import Executor, describe
from avdistill.fsio import follow_link, remove_tree
from avdistill.inputs import View
from avdistill.preparation.join import join
from avdistill.preparation.part_tasks import Limits, prepare_part, write_list
from avdistill.preparation.parts import Part, most_parts
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.progress import OnProgress, Progress
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed, has_input, provenance_on
from avdistill.teachers.joining import join_features
from avdistill.teachers.registry import load_teacher


@dataclass(frozen=True)
class Encoder:
    """A teacher by name, which the machine that embeds loads, and what it embeds as.

    Attributes:
        teacher: as for `load_teacher`.
        name: of the features.
        weights: as for `load_teacher`.
        view: of the input windows; None: the teacher's own.
        batch_size, windows, tokens, head_split: as for `embed`.
    """

    teacher: str
    name: str
    weights: Path | None = None
    view: View | None = None
    batch_size: int = 32
    windows: int | None = None
    tokens: bool = False
    head_split: str = "train"

    def load(self) -> Teacher:
        """The teacher. Raises TeacherError, CheckpointError."""
        teacher = load_teacher(self.teacher, weights=self.weights)
        return teacher if self.view is None else replace(teacher, view=self.view)

    def absolute(self) -> "Encoder":
        """The same for other machines: where the teacher is a folder, by its whole path."""
        teacher = str(Path(self.teacher).resolve()) if Path(self.teacher).exists() else self.teacher
        weights = self.weights.resolve() if self.weights is not None and self.weights.exists() else self.weights
        return replace(self, teacher=teacher, weights=weights)


def prepare_in_parts(
    annotations: list[Annotation],
    videos: Path,
    out: Path,
    config: PrepareConfig,
    *,
    executor: Executor,
    parts: int,
    encoders: Sequence[Encoder] = (),
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
) -> ClipDataset:
    """Prepare a dataset in parts, embed each part as soon as it is there, and join them.

    The dataset is that of `prepare`, with the same checksum.

    Args:
        annotations, videos, out, config: as for `prepare`; all machines see `videos` and the folder of `out`.
        executor: runs the parts.
        parts: how many; fewer where there are fewer source videos.
        encoders: the teachers that embed the parts.
        limits: of a part; None: those of `prepare`, with one worker.
        on_progress: called after each part, counting parts that are prepared or embedded.

    Raises:
        DatasetError, MediaError, ConfigError: as `prepare` and `join`.
        TeacherError: as `embed`, and where no part has a clip that a teacher can embed.
        TaskLostError: the machine of a part was lost again and again.
    """
    out, limits = follow_link(out).absolute(), limits or Limits()
    folder = out.with_name(f"{out.name}.parts")
    if out.exists() and not folder.exists():  # finished, or something else
        dataset = prepare(annotations, videos, out, config, **asdict(limits))
        for encoder in encoders:
            if encoder.name not in dataset.teachers:
                embed_in_parts(dataset, encoder, executor=executor, parts=parts, on_progress=on_progress)
        return ClipDataset(out)
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, min(parts, most_parts(annotations)))
    write_list(folder, annotations)
    targets = [folder / f"{number:05d}-of-{count:05d}" for number in range(1, count + 1)]
    first = [
        _Task((number, 0), prepare_part, (folder, (number + 1, count), target, videos.resolve(), config, limits))
        for number, target in enumerate(targets)
    ]
    _work_through(executor, first, _embeddings(encoders, targets), count * (1 + len(encoders)), on_progress)
    dataset = join(targets, out)
    for encoder in encoders:
        join_features(targets, dataset, [encoder.name], head_split=encoder.head_split)
    leftover = folder.with_name(f".{folder.name}.tmp")  # a part that is half removed would be prepared again
    folder.rename(leftover)
    remove_tree(leftover)
    return ClipDataset(out)


def _embeddings(encoders: Sequence[Encoder], targets: Sequence[Path]) -> Callable[[tuple[int, int]], list["_Task"]]:
    """The tasks that follow those of a part; `targets` are the parts' datasets."""
    absolute = [encoder.absolute() for encoder in encoders]

    def then(key: tuple[int, int]) -> list["_Task"]:
        """What follows a part's preparation: its embeddings, one after the other, as each needs a whole GPU."""
        number, done = key
        if done == len(absolute):
            return []
        return [_Task((number, done + 1), embed_part, (absolute[done], targets[number]), gpu=True)]

    return then


def embed_in_parts(
    dataset: ClipDataset, encoder: Encoder, *, executor: Executor, parts: int, on_progress: OnProgress | None = None
) -> TeacherEntry:
    """Compute a teacher's features of a dataset in shares, as tasks: `embed` with each `part`.

    Args:
        dataset: on a file system that all machines share.
        encoder: the teacher.
        executor: runs the shares.
        parts: how many shares.
        on_progress: called after each share.

    Raises:
        TeacherError, DatasetError: as `embed`.
        TaskLostError: the machine of a share was lost again and again.
    """
    folder, encoder = dataset.folder.resolve(), encoder.absolute()
    part_clips = min(PART_CLIPS, math.ceil(len(dataset) / parts))
    count = min(parts, math.ceil(len(dataset) / part_clips))
    tasks = [
        _Task((number, 0), embed_share, (encoder, folder, (number + 1, count), part_clips), gpu=True)
        for number in range(count)
    ]
    _work_through(executor, tasks, lambda key: [], count, on_progress)
    dataset.reopen_features()
    return dataset.teachers[encoder.name]


@dataclass(frozen=True)
class _Task:
    key: tuple[int, int]  # number of the part from 0 on, and of the step
    function: Callable[..., object]
    arguments: tuple[Any, ...]
    gpu: bool = False


def _work_through(
    executor: Executor,
    tasks: list[_Task],
    then: Callable[[tuple[int, int]], list[_Task]],
    total: int,
    on_progress: OnProgress | None,
) -> None:
    """Run tasks and those that follow each. Raises what a task raised, and TaskLostError."""
    waiting, done = deque(tasks), 0
    while waiting or executor.running:
        while waiting and executor.free:
            task = waiting.popleft()
            executor.start(task.key, task.function, *task.arguments, gpu=task.gpu)
        for ended in executor.collect():
            if isinstance(ended.error, AvdistillError) and not isinstance(ended.error, TaskLostError):
                raise ended.error
            if ended.error is not None:
                number = ended.key[0] + 1  # type: ignore[index]  # as all keys here
                raise TaskLostError(f"part {number}: {describe(ended.error)}; the same command goes on")
            done += 1
            # Before the parts that are not begun: what is finished early need not be read again from a cold disk.
            waiting.extendleft(then(ended.key))  # type: ignore[arg-type]
            if on_progress is not None:
                on_progress(Progress(done, total, f"parts; {len(executor.running)} tasks"))


def embed_part(encoder: Encoder, folder: Path) -> None:
    """The task that embeds a part's clips, for `join_features`; nothing where none has the teacher's modality."""
    dataset, teacher = ClipDataset(folder), encoder.load()
    there = dataset.teachers.get(encoder.name)
    more = {} if encoder.windows is None else {"windows": encoder.windows}
    if (there is not None and there.provenance == provenance_on(dataset, teacher) | more) or not has_input(
        dataset, teacher
    ):
        return
    embed(dataset, teacher, encoder.name, batch_size=encoder.batch_size, windows=encoder.windows,
          tokens=encoder.tokens, head_split=None)  # fmt: skip


def embed_share(encoder: Encoder, folder: Path, part: Part, part_clips: int) -> None:
    """The task that embeds a share of a dataset, on whichever machine."""
    embed(ClipDataset(folder), encoder.load(), encoder.name, batch_size=encoder.batch_size, windows=encoder.windows,
          tokens=encoder.tokens, head_split=encoder.head_split, part=part, part_clips=part_clips)  # fmt: skip
