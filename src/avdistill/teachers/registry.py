"""The table of teachers by name, and `load_teacher`."""

import os
from pathlib import Path

from avdistill.errors import TeacherError
from avdistill.models.checkpoint import WEIGHTS, load_student, student_folder
from avdistill.models.hub import HUB, is_remote, local_folder
from avdistill.models.timm_frames import TIMM
from avdistill.teachers.audio import AUDIO_TEACHERS
from avdistill.teachers.base import Teacher, TeacherSpec, weights_provenance
from avdistill.teachers.huggingface import HUGGINGFACE, load_huggingface
from avdistill.teachers.precomputed import PRECOMPUTED
from avdistill.teachers.video import TORCHVISION, VIDEO_TEACHERS, load_timm, load_torchvision

TEACHERS: dict[str, TeacherSpec] = {**AUDIO_TEACHERS, **VIDEO_TEACHERS}
# What else `load_teacher` and `embed` accept: form, and meaning.
ANY_ENCODER = {
    f"{HUGGINGFACE}<hub id or folder>": "audio, images or video; pip install -e '.[huggingface]'",
    f"{TORCHVISION}<network>": "images or video; weights in torchvision's cache, --weights download or FILE",
    f"{TIMM}<network>": "images; pip install timm; --weights download (Hugging Face hub) or FILE",
    f"{PRECOMPUTED}<folder or .npz>": "your own embeddings, joined by clip id (`embed` only)",
    "<run folder>": "a network trained by `avdistill train` or `teacher train`",
    f"{HUB}org/name@revision": "one of these on the Hugging Face hub",
}


def load_teacher(name: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None) -> Teacher:
    """Load a teacher.

    Args:
        name: a key of `TEACHERS`, `huggingface:<hub id or folder>`, `torchvision:<network>`, `timm:<network>`,
            a run folder, or a student on the hub, `hf://org/name@revision`.
        weights: file or folder of weights, for keys of `TEACHERS`, `torchvision:` and `timm:`; None means the
            installed or cached ones.

    Raises:
        TeacherError: unknown name, weights that are missing or given for another kind of teacher, or an encoder that
            cannot be used.
        CheckpointError: a run without a trained network, weights that do not fit, or a repository that is refused.
    """
    requested, file = os.fspath(name), None if weights is None else Path(weights)
    if requested in TEACHERS:
        return TEACHERS[requested].load(file)
    if requested.startswith(TORCHVISION):
        return load_torchvision(requested.removeprefix(TORCHVISION), file)
    if requested.startswith(TIMM):
        return load_timm(requested.removeprefix(TIMM), file)
    if weights is not None:
        named = ", ".join(sorted(TEACHERS))
        raise TeacherError(f"{name}: --weights: expected with {named}, {TORCHVISION}<network> or {TIMM}<network> only")
    if requested.startswith(HUGGINGFACE):
        return load_huggingface(requested.removeprefix(HUGGINGFACE))
    if requested.startswith(PRECOMPUTED):
        raise TeacherError(f"{name}: expected a network, found embeddings; `avdistill embed` stores them in a dataset")
    folder = local_folder(name)
    if not folder.exists():
        known = ", ".join([*sorted(TEACHERS), *ANY_ENCODER])
        raise TeacherError(f"{name}: expected a run folder or one of {known}, found neither")
    network, description = load_student(folder)
    weights_file = student_folder(folder) / WEIGHTS
    source = requested if is_remote(name) else f"run {folder.name}"
    return Teacher(
        network=network,
        view=description.view,
        classes=description.classes,
        multi_label=description.multi_label,
        fps=description.fps,
        sample_rate_hz=description.sample_rate_hz,
        provenance=weights_provenance(f"{description.model} of {source}", weights_file),
    )
