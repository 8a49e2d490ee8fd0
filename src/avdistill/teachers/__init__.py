"""Frozen networks whose features go into a store, by name or from a run folder."""

from __future__ import annotations

from pathlib import Path

from avdistill.teachers.base import Teacher, TeacherError, TeacherKind, embed, load_run
from avdistill.teachers.sound import SOUND_TEACHERS

__all__ = ["TEACHERS", "Teacher", "TeacherError", "TeacherKind", "embed", "load_teacher"]

TEACHERS: dict[str, TeacherKind] = {**SOUND_TEACHERS}


def load_teacher(name: str | Path, *, weights: Path | None = None) -> Teacher:
    """A teacher: a name of `TEACHERS`, or the run folder of a trained one.

    Args:
        name: of `TEACHERS`, or a run folder.
        weights: file or folder of a named teacher's weights; None: found by itself.

    Raises:
        TeacherError: weights for a run folder, or a named teacher's weights that are not there.
        WeightsError: no such run, or weights that do not fit.
    """
    if str(name) in TEACHERS:
        return TEACHERS[str(name)].load(weights)
    if weights is not None:
        raise TeacherError(f"{name}: --weights is for teachers by name ({', '.join(sorted(TEACHERS))})")
    return load_run(name)
