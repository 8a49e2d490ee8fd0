"""Frozen networks whose features go into a store."""

from avdistill.teachers.base import Teacher, TeacherError, embed, load_teacher

__all__ = ["Teacher", "TeacherError", "embed", "load_teacher"]
