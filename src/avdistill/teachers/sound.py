"""Teachers that hear, by name."""

from __future__ import annotations

from avdistill.teachers.base import TeacherKind

SOUND_TEACHERS: dict[str, TeacherKind] = {}
