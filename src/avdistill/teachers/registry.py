"""The table of teachers by name, and `load_teacher`."""

from __future__ import annotations

from pathlib import Path

from avdistill.errors import TeacherError
from avdistill.models.checkpoint import WEIGHTS, load_student, student_folder
from avdistill.teachers.audio import AUDIO_TEACHERS
from avdistill.teachers.base import Teacher, TeacherSpec, weights_provenance
from avdistill.teachers.huggingface import HUGGINGFACE, load_huggingface
from avdistill.teachers.precomputed import PRECOMPUTED
from avdistill.teachers.video import TORCHVISION, VIDEO_TEACHERS, load_torchvision

TEACHERS: dict[str, TeacherSpec] = {**AUDIO_TEACHERS, **VIDEO_TEACHERS}
# What may stand where a name stands: how it is written, and what it is.
ANY_ENCODER = {
    f"{HUGGINGFACE}<hub id or folder>": "audio, images or video; pip install -e '.[huggingface]'",
    f"{TORCHVISION}<network>": "images or video; weights in torchvision's cache, --weights download or FILE",
    f"{PRECOMPUTED}<folder or .npz>": "embeddings that you have, joined by clip id (`embed` only)",
    "<run folder>": "a network trained by `avdistill train` or `teacher train`",
}


def load_teacher(name: str | Path, *, weights: Path | None = None) -> Teacher:
    """A teacher: a name of `TEACHERS`, any encoder, or the run folder of a trained one.

    Args:
        name: of `TEACHERS`; `huggingface:<hub id or folder>`; `torchvision:<network>`; or a run folder.
        weights: file or folder of a named teacher's weights, or of a torchvision network's; None: found by itself.

    Raises:
        TeacherError: weights for another teacher than those, a named teacher's weights that are not there, or an
            encoder that cannot be used.
        CheckpointError: no such run, or weights that do not fit.
    """
    wanted = str(name)
    if wanted in TEACHERS:
        return TEACHERS[wanted].load(weights)
    if wanted.startswith(TORCHVISION):
        return load_torchvision(wanted.removeprefix(TORCHVISION), weights)
    if weights is not None:
        named = ", ".join(sorted(TEACHERS))
        raise TeacherError(f"{name}: --weights is for teachers by name ({named}, {TORCHVISION}<network>)")
    if wanted.startswith(HUGGINGFACE):
        return load_huggingface(wanted.removeprefix(HUGGINGFACE))
    if wanted.startswith(PRECOMPUTED):
        raise TeacherError(f"{name}: not a network but its embeddings; `avdistill embed` puts them into a dataset")
    if not Path(name).exists():
        known = ", ".join([*sorted(TEACHERS), *ANY_ENCODER])
        raise TeacherError(f"{name}: no teacher of that name and no such folder; expected one of {known}")
    return load_run(name)


def load_run(run: str | Path) -> Teacher:
    """A teacher from a run folder: an ordinary supervised run's best student.

    Raises:
        CheckpointError: there is no trained network.
    """
    folder = Path(run)
    network, description = load_student(folder)
    weights = student_folder(folder) / WEIGHTS
    return Teacher(
        network=network,
        view=description.view,
        classes=description.classes,
        multi_label=description.multi_label,
        fps=description.fps,
        sample_rate_hz=description.sample_rate_hz,
        provenance=weights_provenance(f"{description.model} of run {folder.name}", weights),
    )
