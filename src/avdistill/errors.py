"""The exceptions of the library; every message is one line of the form "where: expected X, found Y"."""

from collections.abc import Sequence
from typing import Self


class AvdistillError(Exception):
    """The base of all errors that a user can mend; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(AvdistillError, ValueError):
    """A configuration or a call that cannot be used; the message names the key."""

    exit_code = 2


class AnnotationError(AvdistillError, ValueError):
    """A list of clips that cannot be used."""


class MediaError(AvdistillError):
    """A file that cannot give the requested clip."""


class UnreadableFileError(MediaError):
    """Not a media file, or one so damaged that nothing of it decodes."""


class NoStreamError(MediaError):
    """The file has neither video nor audio."""


class EmptySegmentError(MediaError):
    """The file holds nothing in the requested segment."""


class SpoolError(AvdistillError):
    """The spool file cannot be written; the media file is not at fault."""


class DatasetError(AvdistillError):
    """A dataset that is missing, incomplete, damaged or of another format."""


class DatasetBusyError(DatasetError):
    """Another process is making the dataset."""


class CheckpointError(AvdistillError):
    """Weights or a configuration of a trained network that are missing, damaged or of another network."""


class ExportError(CheckpointError):
    """A student that cannot be exported, or whose export gives other outputs."""


class HubError(CheckpointError):
    """A repository on the Hugging Face hub that is missing, refused or out of reach."""


class NoTokensError(AvdistillError, ValueError):
    """Tokens were requested from a network that has none."""


class NotFiniteError(AvdistillError, ValueError):
    """Outputs of a network that are infinite or NaN; `clips` are the ids of all clips with such outputs."""

    def __init__(self, message: str, clips: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.clips = list(clips)

    def __reduce__(self) -> tuple[type[Self], tuple[str, list[str]]]:
        """The arguments of `__init__`, so that the error crosses process borders."""
        return type(self), (str(self), self.clips)


class TeacherError(AvdistillError):
    """A teacher that cannot be used on a dataset."""


class RunError(AvdistillError):
    """A run folder that is missing, in the way or damaged, or a run that cannot continue."""


class StorageError(AvdistillError):
    """An object storage that does not answer or refuses, or a folder on it that is not whole."""


class SearchError(AvdistillError):
    """An index that is missing, damaged, stale or without the space, clip or package that a search needs."""

    exit_code = 2


class TrackingError(AvdistillError):
    """An experiment tracker that is not installed, or refuses."""


class ProcessLostError(AvdistillError):
    """Another process of the group has ended or does not answer."""


class TaskLostError(AvdistillError):
    """A task whose process or machine ended before the task did, each time that it was begun."""
