"""The media files of a folder: all of them, and by the names under which published datasets store their clips."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from avdistill.annotations.groups import UCF_NAME
from avdistill.annotations.schema import annotation_error, format_path, parse_path, truncate_repr
from avdistill.storage.url import Url, as_path

# fmt: off
# What needs no look at the content. Files with any other suffix, or none, are opened to see whether they are videos.
VIDEO_SUFFIXES: tuple[str, ...] = (".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts",
                                   ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
                                   ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv")
AUDIO_SUFFIXES: tuple[str, ...] = (".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".dts", ".eac3", ".flac",
                                   ".m4a", ".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma", ".wv")
_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_OTHER_SUFFIXES = (".ass", ".csv", ".db", ".description", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".npy",
                   ".npz", ".part", ".pdf", ".srt", ".tmp", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml", ".ytdl",
                   ".zip")
# fmt: on
_MOST_NAMED = 3
_UNKNOWN = "unknown"
# For one file whose content is looked at.
_OPENING_SECONDS, _OPENING_BYTES = 60.0, 2**30


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder, without hidden ones, sorted by path; linked folders are followed.

    Attributes:
        videos: the videos.
        left_out: the other files, and why each is not among the videos.
    """

    videos: list[PurePosixPath]
    left_out: dict[PurePosixPath, str]

    def describe_left_out(self) -> str:
        """The files that were left out by reason, with the first few names, in one line; empty if there are none."""
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for path, reason in self.left_out.items():
            by_reason[reason].append(format_path(Path(path)))
        parts = []
        for reason, paths in by_reason.items():
            more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
            parts.append(f"{reason}: {', '.join(paths[:_MOST_NAMED])}{more}")
        return f"{len(self.left_out)} files left out ({'; '.join(parts)})" if parts else ""


def find_videos(source: Path) -> FolderFiles:
    """All videos below a folder, whatever their suffix."""
    paths = _list_files(source)
    reasons = {path: _reason_by_suffix(source / path) for path in paths}
    reasons |= _reasons_by_content(source, [path for path in paths if reasons[path] == _UNKNOWN])
    return FolderFiles([p for p in paths if reasons[p] is None], {p: why for p, why in reasons.items() if why})


def locate(folder: Path, path: str) -> Path:
    """The file at a relative path whose name may be written in another Unicode normal form on the disk.

    If there is none, or the folder is on a storage, the path as it is given. A URL is itself.
    """
    if isinstance(folder, Url) or "://" in path:
        return as_path(path) if "://" in path else folder / path
    place = folder
    for part in PurePosixPath(path).parts:
        forms = [part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]
        found = next((form for form in dict.fromkeys(forms) if os.path.lexists(place / form)), None)
        if found is None:
            return folder / path
        place /= found
    return place


def _list_files(source: Path) -> list[PurePosixPath]:
    if isinstance(source, Url):
        paths = map(PurePosixPath, source.files())
        return sorted(path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(PurePosixPath(path.relative_to(source).as_posix()) for path in _walk(source, ()))


def _walk(folder: Path, ancestors: tuple[Path, ...]) -> Iterator[Path]:
    resolved = folder.resolve()
    if resolved in ancestors:  # a link to a parent folder, whose videos are listed already
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*ancestors, resolved))
        elif entry.is_file() or entry.is_symlink():
            yield entry


def _reason_by_suffix(path: Path) -> str | None:
    """Why a file is not a video, None for one, or `_UNKNOWN` where its content must be looked at."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return None
    if suffix in AUDIO_SUFFIXES:
        return "audio alone"
    if suffix in _IMAGE_SUFFIXES:
        return "images"
    if suffix in _OTHER_SUFFIXES:
        return "no video"
    return _UNKNOWN if path.is_file() else "no file"


def _reasons_by_content(folder: Path, paths: list[PurePosixPath]) -> dict[PurePosixPath, str | None]:
    """Likewise of files that are opened, in a process of their own: one may crash or hang FFmpeg."""
    if not paths:
        return {}
    from avdistill.executors.process_pool import ordered_map  # only here, so that other lists are read without FFmpeg
    from avdistill.media.streams import has_video

    files = [folder / path for path in paths]
    answers = ordered_map(
        has_video, files, workers=1, time_limit_seconds=_OPENING_SECONDS, memory_limit_bytes=_OPENING_BYTES
    )
    return {path: None if answer is True else "no video" for path, answer in zip(paths, answers, strict=True)}


class VideoFiles:
    """The media files of a folder by their names without suffix; without a folder, none is found."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def locate(
        self,
        where: str,
        labels: tuple[str, ...],
        cut: Sequence[str],
        whole: Sequence[str] = (),
        segment: tuple[float, float | None] = (0.0, None),
        suffix: str = ".mp4",
    ) -> tuple[str, float, float | None]:
        """(path, start, end) of the first name with a file; if there is none, of the first name and `suffix`.

        Names, without suffix, are those of files that hold the clip alone (`cut`), then its `segment` among others.

        Raises:
            AnnotationError: several files have the name, and not exactly one is in a folder named like the label.
        """
        stored = [(stem, 0.0, None) for stem in cut] + [(stem, *segment) for stem in whole]
        for stem, start, end in stored:
            path = self.find(where, stem, labels)
            if path is not None:
                return path, start, end
        return parse_path(where, stored[0][0] + suffix), *stored[0][1:]

    def find(self, where: str, stem: str, labels: tuple[str, ...]) -> str | None:
        """The file called `stem` in any folder and with any suffix, or None; raises as `locate`."""
        paths = self._by_name.get(_folded(stem), [])
        if len(paths) > 1:  # Kinetics: one video may be in two classes, and so in two class folders
            classes = {_as_folder(label) for label in labels}
            in_class = [path for path in paths if _as_folder(path.parent.name) in classes]
            if len(in_class) != 1:
                found = " and ".join(truncate_repr(str(path)) for path in (in_class or paths)[:2])
                raise annotation_error(where, f"one file called {truncate_repr(stem)}", found)
            paths = in_class
        return parse_path(where, str(paths[0])) if paths else None

    def holds(self, path: str) -> bool:
        """Whether there is a file at this path."""
        named = self._by_name.get(_folded(PurePosixPath(path).stem), [])
        return path in (unicodedata.normalize("NFC", str(file)) for file in named)

    @cached_property
    def _by_name(self) -> Mapping[str, list[PurePosixPath]]:
        if self._folder is None:
            return {}
        try:
            files = _list_files(self._folder)
        except OSError as error:
            where = format_path(self._folder)
            raise annotation_error(where, "a readable folder of videos", str(error.strerror)) from error
        by_name: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
        # Videos; then audio, of a dataset of audio alone: beside a video it is that one's audio track; then what may
        # be either.
        known = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES, *_IMAGE_SUFFIXES, *_OTHER_SUFFIXES)
        for belongs in (VIDEO_SUFFIXES.__contains__, AUDIO_SUFFIXES.__contains__, lambda suffix: suffix not in known):
            before = set(by_name)
            for path in files:
                if belongs(path.suffix.lower()) and _folded(path.stem) not in before:
                    by_name[_folded(path.stem)].append(path)
        return by_name


def _folded(stem: str) -> str:
    """Case is ignored in names of UCF101 only; YouTube ids may differ in nothing else."""
    stem = unicodedata.normalize("NFC", stem)
    return stem.casefold() if UCF_NAME.fullmatch(stem) else stem


def _as_folder(label: str) -> str:
    return unicodedata.normalize("NFC", label).replace("_", " ").casefold()
