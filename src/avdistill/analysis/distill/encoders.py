"""The frozen networks of `distill`: the teacher, and an encoder of the other modality for the audit."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avdistill.analysis.distill.config import TRAIN, Bar, DistillConfig
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import TeacherError
from avdistill.executors.executor import Executor
from avdistill.inputs import VideoInput
from avdistill.progress import Progress
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.teachers.launch import Encoder, embed_in_parts
from avdistill.teachers.precomputed import PRECOMPUTED, embed_precomputed
from avdistill.teachers.registry import TEACHERS, load_teacher
from avdistill.training import train_to_end
from avdistill.training.recipes import RECIPES

#: also the student to begin with
PRETRAINED = "efficientnet_lite0"
# Best first: CNN14 is the paper's teacher.
_INSTALLED = {"audio": ("cnn14", "yamnet"), "video": (PRETRAINED,)}
# Of an image network, for two cores: evenly spaced frames of a clip, made small. Of other video networks: windows.
_FRAMES, _FRAME_SIZE = 5, (128, 128)
_WINDOWS = 3
_log = logging.getLogger(__name__)


def installed_teacher(modality: Literal["audio", "video"]) -> str | None:
    """The best pretrained network of a modality whose weights are here; nothing is downloaded."""
    return next((name for name in _INSTALLED[modality] if TEACHERS[name].available()), None)


def check_teacher(config: DistillConfig, labeled: bool) -> str | None:
    """The name of the teacher, or None for one that is trained on the labeled clips. Raises TeacherError."""
    name = config.teacher or installed_teacher(config.teacher_modality)
    if name is None and (config.teacher_modality == "video" or not labeled):
        why = "" if config.teacher_modality == "video" else ", as no video has a label to train one with"
        raise TeacherError(
            f"expected a pretrained {config.teacher_modality} network{why}, found none installed; name one with "
            "--teacher (docs/teachers.md)"
        )
    return name


def embed_all(
    config: DistillConfig,
    dataset: ClipDataset,
    teacher: str | None,
    bar: Bar,
    executor: Executor | None = None,
    parts: int = 1,
) -> ClipDataset:
    """The dataset with the teachers' features, and with those of an installed encoder of the other modality.

    The features have the name of their modality, those of further teachers the teachers' names.

    Args:
        config, bar: as for `distill`.
        dataset: gets the features.
        teacher: name of the teacher; None: one is trained.
        executor, parts: as for `distill`.

    Raises:
        TeacherError: the teacher cannot be loaded, or is of the student's modality.
        DatasetError: embeddings from a file do not fit (`embed_precomputed`).
    """
    for name, own in config.teachers.items():
        asked = own or teacher
        if name in dataset.teachers:
            continue
        if asked and asked.startswith(PRECOMPUTED):
            file = Path(asked.removeprefix(PRECOMPUTED))
            embed_precomputed(dataset, file, name, config.teacher_modality, head_split=TRAIN)
            continue
        source = asked or str(_train_own(config.out / "teacher", dataset, bar))
        network = load_teacher(source)
        if network.view.modality != config.teacher_modality:
            raise TeacherError(
                f"{asked}: expected a teacher of {config.teacher_modality} for a student of "
                f"{config.student_modality}, found one of {network.view.modality}"
            )
        _embed(dataset, source, network, bar, name, executor, parts)
    other = installed_teacher(config.student_modality)
    if other is not None and config.student_modality not in dataset.teachers:
        _embed(dataset, other, load_teacher(other), bar, config.student_modality, executor, parts)
    return ClipDataset(dataset.folder)


def _embed(
    dataset: ClipDataset, teacher: str, network: Teacher, bar: Bar, name: str, executor: Executor | None, parts: int
) -> None:
    windows = None
    if isinstance(network.view, VideoInput):
        windows = _WINDOWS
        if teacher in _INSTALLED["video"]:
            windows = _FRAMES
            network = replace(network, view=replace(network.view, frames=1, size=_FRAME_SIZE))
    with bar(f"embed ({Path(teacher).name})") as update:
        if executor is None:
            embed(dataset, network, name, windows=windows, head_split=TRAIN, on_progress=update)
            return
        encoder = Encoder(teacher, name, view=network.view, windows=windows, head_split=TRAIN)
        embed_in_parts(dataset, encoder, executor=executor, parts=parts, on_progress=update)


def _train_own(run: Path, dataset: ClipDataset, bar: Bar) -> Path:
    _log.info("no pretrained audio network is installed: one is trained on the labeled clips, which is much weaker")
    config = replace(RECIPES["demo_teacher"], dataset=dataset.folder, out=run, train_split=TRAIN, save_every=50)
    with bar("train teacher") as update:
        return train_to_end(config, on_step=lambda step, losses: update(Progress(step, config.steps)))
