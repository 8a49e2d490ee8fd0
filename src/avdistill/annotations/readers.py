"""Reading of annotations: a folder per class, CSV, JSON lines, and lists of published datasets (`catalogs`).

docs/formats/annotations.md has an example of each format. No video is opened here.
"""

import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from avdistill.annotations.catalogs import CATALOG_READERS, KINETICS_COLUMNS, REPEATING, UCF_LIST, merge_repeats
from avdistill.annotations.columns import check_columns
from avdistill.annotations.groups import UCF_NAME
from avdistill.annotations.schema import (
    NO_FILE,
    SPLIT_ALIASES,
    SURROGATE,
    Annotation,
    LocatedAnnotation,
    annotation_error,
    csv_rows,
    csv_table,
    format_path,
    numbered_lines,
    parse_extra,
    parse_json,
    parse_labels,
    parse_name,
    parse_path,
    parse_seconds,
    parse_split,
    read_text,
    truncate_repr,
)
from avdistill.annotations.video_files import VideoFiles, find_videos
from avdistill.storage.url import as_path

_KNOWN_KEYS = ("path", "label", "labels", "split", "start_seconds", "end_seconds", "id", "group")
# Names of published lists and of our own results that mean the same.
_OTHER_NAMES = {"time_start": "start_seconds", "time_end": "end_seconds", "clip_id": "id"}


def read_annotations(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    format: str = "auto",  # noqa: A002 (the word users expect)
    videos: str | os.PathLike[str] | None = None,
) -> list[Annotation]:
    """Read the list of clips at `path`, in the order of the list (folders: sorted by path).

    Args:
        path: a list file or a folder, see docs/formats/annotations.md; or several, read as one list. Any may be a URL.
        format: "folder", "csv", "jsonl", "ucf101", "ucf51", "activitynet", "vggsound", "kinetics", "audioset",
            "gewu_lab", or "auto" to recognize it by the suffix, the first line or the folder's content.
        videos: the folder of videos, in which the files of published datasets are looked up by name; a file that is
            not found gets the usual name. The other formats contain paths.

    Raises:
        AnnotationError: a list cannot be read or is malformed, or a clip is listed twice or in two splits.
        ConfigError, StorageError: a URL that is not read, or a storage that does not answer.
    """
    if format != "auto" and format not in _READERS:
        raise annotation_error("annotation format", f"auto, {', '.join(_READERS)}", repr(format))
    files = VideoFiles(None if videos is None else as_path(videos))
    listed: list[LocatedAnnotation] = []
    for each in [path] if isinstance(path, str | os.PathLike) else path:
        listed += _read_list(as_path(each), format, files)
    _refuse_repeats(listed)
    return _name_clips(listed)


def _read_list(source: Path, list_format: str, files: VideoFiles) -> list[LocatedAnnotation]:
    try:
        list_format = _recognize(source) if list_format == "auto" else list_format
        listed = list(_READERS[list_format](source, files))
    except OSError as error:
        found = error.strerror or NO_FILE
        raise annotation_error(format_path(source), "a readable list file or folder", found) from error
    if not listed:
        raise annotation_error(format_path(source), "at least one clip", "none")
    return merge_repeats(listed) if list_format in REPEATING else listed


def keep_labels(annotations: list[Annotation], labels: Path) -> list[Annotation]:
    """Keep the labels that the file `labels` names, one per line, and the clips that have one of them.

    Raises:
        AnnotationError: the file cannot be read, or no clip has one of its labels.
    """
    try:
        wanted = [parse_name(where, "label", line) for where, line in numbered_lines(as_path(labels))]
    except OSError as error:
        where = format_path(labels)
        raise annotation_error(where, "a readable file with a label a line", error.strerror or NO_FILE) from error
    occurring = {label for a in annotations for label in a.labels}
    for label in wanted:
        if label not in occurring:
            raise annotation_error(format_path(labels), "labels that occur in the list of clips", truncate_repr(label))
    kept = [replace(a, labels=tuple(label for label in a.labels if label in wanted)) for a in annotations]
    return [a for a in kept if a.labels]


def _recognize(source: Path) -> str:
    possible = _recognize_file(source) if source.is_file() else _recognize_folder(source)
    if len(possible) != 1:
        expected = "a .csv, .jsonl or known .json, class folders of videos or UCF101 lists"
        found = f"what may be {' or '.join(possible)}" if possible else "none of them"
        raise annotation_error(format_path(source), expected, f"{found}; name the format: {', '.join(_READERS)}")
    return possible[0]


def _recognize_file(source: Path) -> list[str]:
    suffix = source.suffix.lower()
    if UCF_LIST.fullmatch(source.name):
        return ["ucf101"]
    if suffix == ".jsonl":
        return ["jsonl"]
    if suffix == ".csv":
        _, cells = next(csv_rows(source), ("", []))
        cells = [cell.strip() for cell in cells]
        if cells[:1] and cells[0].startswith("# Segments csv"):
            return ["audioset"]
        if "path" not in cells and set(KINETICS_COLUMNS[1:]) <= set(cells):
            return ["kinetics"]
        return ["vggsound" if "path" not in cells and len(cells) == 4 and cells[3] in ("train", "test") else "csv"]
    content = parse_json(format_path(source), read_text(source)) if suffix == ".json" else None
    if not isinstance(content, dict) or "database" not in content:
        return []
    if "labels" in content:
        return ["gewu_lab"]
    return ["activitynet"] if "version" in content or "taxonomy" in content else []


def _recognize_folder(source: Path) -> list[str]:
    possible = ["ucf101"] if any(UCF_LIST.fullmatch(entry.name) for entry in source.iterdir()) else []
    possible += ["audioset"] if (source / "balanced_train_segments.csv").is_file() else []
    paths = find_videos(source).videos
    if any(len(path.parts) > 1 for path in paths):
        possible.append("folder")
    if paths and all(len(path.parts) <= 2 and UCF_NAME.fullmatch(path.stem) for path in paths):
        possible.append("ucf51")
    return possible


def _read_csv(source: Path, _: VideoFiles) -> Iterator[LocatedAnnotation]:
    said: set[str] = set()
    return (_parse_row(where, row) for where, row in csv_table(source, partial(_check_keys, said=said)))


def _read_jsonl(source: Path, _: VideoFiles) -> Iterator[LocatedAnnotation]:
    said: set[str] = set()
    for where, line in numbered_lines(source):
        values = parse_json(where, line)
        if not isinstance(values, dict) or SURROGATE.search(json.dumps(values, ensure_ascii=False)):
            raise annotation_error(where, "one JSON object of valid text", truncate_repr(values))
        _check_keys(where, list(values), said)
        yield _parse_row(where, values)


def _check_keys(where: str, keys: list[str], said: set[str]) -> None:
    found = truncate_repr(", ".join(keys))
    if "path" not in keys:
        raise annotation_error(where, "'path' among the columns", found)
    if ("label" in keys) == ("labels" in keys):
        raise annotation_error(where, "one of 'label' and 'labels' among the columns", found)
    for other, name in _OTHER_NAMES.items():
        if other in keys and name in keys:
            raise annotation_error(where, f"one of {name!r} and {other!r} among the columns", found)
    check_columns(where, keys, (*_KNOWN_KEYS, *_OTHER_NAMES), said)


def _parse_row(where: str, values: Mapping[str, object]) -> LocatedAnnotation:
    """One row of a CSV or JSON list; an empty cell and null both mean that the value is not given."""
    values = {_OTHER_NAMES.get(key, key): value for key, value in values.items()}
    start = parse_seconds(where, "start_seconds", values.get("start_seconds")) or 0.0
    end = parse_seconds(where, "end_seconds", values.get("end_seconds"))
    if end is not None and start >= end:
        raise annotation_error(where, "start_seconds < end_seconds", f"{start!r} and {end!r}")
    return where, Annotation(
        clip_id=parse_name(where, "id", values.get("id")),
        path=parse_path(where, values["path"]),
        labels=parse_labels(where, values["labels"] if "labels" in values else values["label"]),
        split=parse_split(where, values.get("split")) or "train",
        start_seconds=start,
        end_seconds=end,
        extra=parse_extra(values, _KNOWN_KEYS),
        group=parse_name(where, "group", values.get("group")),
    )


def _read_folder(source: Path, _: VideoFiles) -> Iterator[LocatedAnnotation]:
    files = find_videos(source)
    paths = files.videos
    if files.left_out:
        logging.getLogger(__name__).warning("%s: %s", format_path(source), files.describe_left_out())
    by_split = _has_split_folders(source, paths)
    for path in paths:
        where = format_path(source / path)
        folders = list(path.parts[:-1])
        split = SPLIT_ALIASES[folders.pop(0).casefold()] if by_split and folders else "train"
        if not folders:
            expected = "split/class/video" if by_split else "class/video"
            raise annotation_error(where, expected, "a video outside any class folder")
        yield where, Annotation("", parse_path(where, str(path)), parse_labels(where, folders[:1]), split)


def _has_split_folders(source: Path, paths: list[PurePosixPath]) -> bool:
    """Whether the top folders are splits. A class may be called "train" as well, beside others such as "car"."""
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    splits = {name for name in tops if name.casefold() in SPLIT_ALIASES}
    if splits and splits != tops and any(path.parts[0] in splits and len(path.parts) > 2 for path in paths):
        expected = "only splits or only classes as top folders"
        raise annotation_error(format_path(source), expected, truncate_repr(sorted(tops)))
    return bool(splits) and splits == tops


def _refuse_repeats(listed: list[LocatedAnnotation]) -> None:
    """Raise if a clip is listed twice, or a part of a video is in two splits."""
    by_path: defaultdict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for where, clip in listed:
        end = math.inf if clip.end_seconds is None else clip.end_seconds
        by_path[clip.path].append((clip.start_seconds, end, clip.split, where))
    for path, segments in by_path.items():
        clips: dict[tuple[float, float], str] = {}
        latest: dict[str, tuple[float, str]] = {}  # by split, the segment with the latest end so far
        for start, end, split, where in sorted(segments, key=lambda segment: segment[:2]):
            for other, (other_end, other_where) in latest.items():
                if other != split and start < other_end:
                    found = f"{truncate_repr(path)} in {split!r} here and in {other!r} at {other_where}"
                    raise annotation_error(where, "every clip in one split (else one leaks into the other)", found)
            if (start, end) in clips:
                found = f"{truncate_repr(path)} already at {clips[start, end]}"
                raise annotation_error(where, "every clip once", found)
            clips[start, end] = where
            latest[split] = max(latest.get(split, (end, where)), (end, where), key=lambda reach: reach[0])


def _name_clips(listed: list[LocatedAnnotation]) -> list[Annotation]:
    """Give every clip an id: that of the list, or one made from the path, in full if the short form is ambiguous."""
    places: dict[str, str] = {}
    for where, clip in listed:
        if clip.clip_id and places.setdefault(clip.clip_id, where) != where:
            found = f"{truncate_repr(clip.clip_id)} already at {places[clip.clip_id]}"
            raise annotation_error(where, "every id once", found)
    uses = Counter([clip.clip_id or _derive_id(clip, exact=False) for _, clip in listed])
    named = []
    for where, clip in listed:
        name = clip.clip_id
        if not name:
            # Beside a.avi, a.mp4 does not get the id "a", in whatever order.
            name = stem = _derive_id(clip, exact=uses[_derive_id(clip, exact=False)] > 1)
            number = 2
            while name in places:
                name, number = f"{stem}#{number}", number + 1
            places[name] = where
        named.append(replace(clip, clip_id=name))
    return named


def _derive_id(clip: Annotation, *, exact: bool) -> str:
    path = clip.path if exact else clip.path.removesuffix(PurePosixPath(clip.path).suffix)
    if clip.start_seconds == 0 and clip.end_seconds is None:
        return path
    times = (clip.start_seconds, clip.end_seconds)
    return f"{path}@{'-'.join('end' if t is None else str(t) if exact else f'{t:.3f}' for t in times)}"


_READERS: dict[str, Callable[[Path, VideoFiles], Iterator[LocatedAnnotation]]] = {
    "folder": _read_folder, "csv": _read_csv, "jsonl": _read_jsonl, **CATALOG_READERS
}  # fmt: skip
