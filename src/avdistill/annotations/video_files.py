"""The media files of a folder: all of them, and by the names under which published datasets store their clips."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from avdistill.annotations.groups import UCF_NAME
from avdistill.annotations.schema import annotation_error, format_path, parse_path, truncate_repr

# fmt: off
VIDEO_SUFFIXES: tuple[str, ...] = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
                                   ".ogv", ".ts", ".webm", ".wmv")
AUDIO_SUFFIXES: tuple[str, ...] = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
# fmt: on


def find_videos(source: Path, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> list[PurePosixPath]:
    """Sorted paths of all videos below a folder, without hidden files; linked folders are followed."""
    return sorted(PurePosixPath(path.relative_to(source).as_posix()) for path in _walk(source, suffixes, ()))


def _walk(folder: Path, suffixes: tuple[str, ...], ancestors: tuple[Path, ...]) -> Iterator[Path]:
    resolved = folder.resolve()
    if resolved in ancestors:  # a link to a parent folder, whose videos are listed already
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, suffixes, (*ancestors, resolved))
        elif entry.suffix.lower() in suffixes:
            yield entry


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
        return PurePosixPath(path) in self._by_name.get(_folded(PurePosixPath(path).stem), [])

    @cached_property
    def _by_name(self) -> Mapping[str, list[PurePosixPath]]:
        if self._folder is None:
            return {}
        try:
            videos, audio_files = (find_videos(self._folder, kind) for kind in (VIDEO_SUFFIXES, AUDIO_SUFFIXES))
        except OSError as error:
            where = format_path(self._folder)
            raise annotation_error(where, "a readable folder of videos", str(error.strerror)) from error
        by_name: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
        for path in videos:
            by_name[_folded(path.stem)].append(path)
        with_video = set(by_name)
        for path in audio_files:  # of a dataset of audio alone; beside a video it is that one's audio track
            if _folded(path.stem) not in with_video:
                by_name[_folded(path.stem)].append(path)
        return by_name


def _folded(stem: str) -> str:
    """Case is ignored in names of UCF101 only; YouTube ids may differ in nothing else."""
    return stem.casefold() if UCF_NAME.fullmatch(stem) else stem


def _as_folder(label: str) -> str:
    return label.replace("_", " ").casefold()
