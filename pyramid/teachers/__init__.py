"""Teachers of the word levels: one interface (base.py), one file a teacher; `semantic.py` chooses by config."""

from pyramid.teachers.base import Teacher, matching_pursuit, min_max
from pyramid.teachers.clip import ClipTeacher
from pyramid.teachers.text import TextTeacher

__all__ = ["ClipTeacher", "Teacher", "TextTeacher", "matching_pursuit", "min_max"]
