"""Which clips there are, what they show and which split they belong to: every list format becomes `Annotation` rows.

Five sources are read: a folder per class, CSV, JSON lines, the official UCF101 lists, and a folder of UCF101 videos
reduced to the 51 classes with sound. docs/formats/annotations.md has an example of each. No video is opened here.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

# fmt: off
# As UCF101 spells its class folders; the files of HandstandPushups say v_HandStandPushups_*: compare without case.
UCF51_CLASSES: tuple[str, ...] = (
    "ApplyEyeMakeup", "ApplyLipstick", "Archery", "BabyCrawling", "BalanceBeam", "BandMarching", "BasketballDunk",
    "BlowDryHair", "BlowingCandles", "BodyWeightSquats", "Bowling", "BoxingPunchingBag", "BoxingSpeedBag",
    "BrushingTeeth", "CliffDiving", "CricketBowling", "CricketShot", "CuttingInKitchen", "FieldHockeyPenalty",
    "FloorGymnastics", "FrisbeeCatch", "FrontCrawl", "Haircut", "HammerThrow", "Hammering", "HandstandPushups",
    "HandstandWalking", "HeadMassage", "IceDancing", "Knitting", "LongJump", "MoppingFloor", "ParallelBars",
    "PlayingCello", "PlayingDaf", "PlayingDhol", "PlayingFlute", "PlayingSitar", "Rafting", "ShavingBeard", "Shotput",
    "SkyDiving", "SoccerPenalty", "StillRings", "SumoWrestling", "Surfing", "TableTennisShot", "Typing", "UnevenBars",
    "WallPushups", "WritingOnBoard",
)
VIDEO_SUFFIXES: tuple[str, ...] = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
                                   ".ogv", ".ts", ".webm", ".wmv")
_SPLIT_ALIASES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}
_KNOWN_KEYS = ("path", "label", "labels", "split", "start_seconds", "end_seconds", "id")
# fmt: on
_UCF51_BY_FOLDED_NAME = {name.casefold(): name for name in UCF51_CLASSES}
_UCF_NAME = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>0[1-9]|1\d|2[0-5])_c\d{2}")
_UCF_LIST = re.compile(r"(?P<split>train|test)list(?P<fold>\d+)\.txt", re.IGNORECASE)
# From JSON's "\ud800" or a file name in another encoding: text that can be neither printed nor stored.
_SURROGATE = re.compile("[\ud800-\udfff]")


class AnnotationError(ValueError):
    """A list of clips that cannot be used; the message is one line: where, what was expected, what was found."""


@dataclass(frozen=True)
class Annotation:
    """One clip: a whole video or the half-open segment [start, end) of it.

    Attributes:
        clip_id: unique in its list; the path without suffix (and `@start-end`) where the list gives no `id`.
        path: relative to the folder of videos, POSIX separators.
        labels: names of the classes; empty for an unlabelled clip.
        split: a free name; "train", "validation" and "test" are the usual ones.
        start_seconds: where the clip begins in its video.
        end_seconds: where it ends, or None for the end of the video.
        extra: the other columns of the list, kept as they stand; never used for training.
    """

    clip_id: str
    path: str
    labels: tuple[str, ...]
    split: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    extra: tuple[tuple[str, str], ...] = ()


# A clip and the place a message about it points at. Until `_name_clips`, the id is the list's own, or empty.
_Listed = tuple[str, Annotation]


def read_annotations(source: Path, *, format: str = "auto") -> list[Annotation]:  # noqa: A002 (the word users expect)
    """Read the list of clips at `source`, in the order of the list (folders: sorted by path).

    Args:
        source: a list file or a folder, see docs/formats/annotations.md.
        format: "folder", "csv", "jsonl", "ucf101", "ucf51", or "auto" to tell from the suffix or the folder's content.

    Raises:
        AnnotationError: for anything that cannot be read, is not well formed, is listed twice or leaks between splits.
    """
    if format != "auto" and format not in _READERS:
        raise _error("annotation format", f"auto, {', '.join(_READERS)}", repr(format))
    source = Path(source)
    try:
        listed = _READERS[_recognise(source) if format == "auto" else format](source)
    except OSError as error:
        raise _error(_shown(source), "a readable list file or folder", str(error.strerror)) from error
    if not listed:
        raise _error(_shown(source), "at least one clip", "none")
    _refuse_repeats(listed)
    return _name_clips(listed)


def assign_ucf51(name: str) -> tuple[str, str] | None:
    """Label and UCF51 split of the UCF101 clip `v_Class_gNN_cMM` (no suffix); None if its class has no sound.

    Groups 01 to 07 are "test", all others "train". A group holds the clips cut from one video, so no video is in both.
    """
    match = _UCF_NAME.fullmatch(name)
    if match is None:
        raise _error("UCF51", "a name v_Class_gNN_cMM with group 01 to 25", _clipped(name))
    label = _UCF51_BY_FOLDED_NAME.get(match["label"].casefold())
    return None if label is None else (label, "test" if int(match["group"]) <= 7 else "train")


def _recognise(source: Path) -> str:
    if source.is_file():
        by_suffix = {".csv": ["csv"], ".jsonl": ["jsonl"]}.get(source.suffix.lower(), [])
        possible = ["ucf101"] if _UCF_LIST.fullmatch(source.name) else by_suffix
    else:
        possible = ["ucf101"] if any(_UCF_LIST.fullmatch(entry.name) for entry in source.iterdir()) else []
        paths = _find_videos(source)
        if any(len(path.parts) > 1 for path in paths):
            possible.append("folder")
        if paths and all(len(path.parts) <= 2 and _UCF_NAME.fullmatch(path.stem) for path in paths):
            possible.append("ucf51")
    if len(possible) != 1:
        expected = "a .csv, a .jsonl, class folders of videos or UCF101 lists"
        found = f"what may be {' or '.join(possible)}" if possible else "none of them"
        raise _error(_shown(source), expected, f"{found}; name the format: {', '.join(_READERS)}")
    return possible[0]


def _read_csv(source: Path) -> list[_Listed]:
    # Spaces after a comma are layout; a quoted cell keeps its own.
    reader = csv.reader(io.StringIO(_read_text(source), newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    listed = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{_shown(source)}, line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                _check_keys(where, header)
            elif len(cells) != len(header):
                expected = f"{len(header)} cells as in the header (a comma inside a value needs double quotes)"
                raise _error(where, expected, str(len(cells)))
            else:
                listed.append(_parse_row(where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise _error(f"{_shown(source)}, line {line}", "valid CSV", str(error)) from error
    return listed


def _read_jsonl(source: Path) -> list[_Listed]:
    listed = []
    for where, line in _numbered_lines(source):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _error(where, "one JSON object", f"invalid JSON ({error})") from error
        if not isinstance(values, dict) or _SURROGATE.search(json.dumps(values, ensure_ascii=False)):
            raise _error(where, "one JSON object of valid text", _clipped(values))
        _check_keys(where, list(values))
        listed.append(_parse_row(where, values))
    return listed


def _check_keys(where: str, keys: list[str]) -> None:
    found = _clipped(", ".join(keys))
    if len(set(keys)) < len(keys):
        raise _error(where, "every column once", found)
    if "path" not in keys:
        raise _error(where, "'path' among the columns", found)
    if ("label" in keys) == ("labels" in keys):
        raise _error(where, "one of 'label' and 'labels' among the columns", found)


def _parse_row(where: str, values: Mapping[str, object]) -> _Listed:
    """One row of a CSV or JSON list: an empty cell and null both mean that the value is not given."""
    start = _parse_seconds(where, "start_seconds", values) or 0.0  # -0.0 as well
    end = _parse_seconds(where, "end_seconds", values)
    if end is not None and start >= end:
        raise _error(where, "start_seconds < end_seconds", f"{start!r} and {end!r}")
    split = _parse_name(where, "split", values.get("split")) or "train"
    return where, Annotation(
        clip_id=_parse_name(where, "id", values.get("id")),
        path=_parse_path(where, values["path"]),
        labels=_parse_labels(where, values["labels"] if "labels" in values else values["label"]),
        split=_SPLIT_ALIASES.get(split.casefold(), split),
        start_seconds=start,
        end_seconds=end,
        extra=tuple(
            (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for key, value in values.items()
            if key not in _KNOWN_KEYS
        ),
    )


def _parse_name(where: str, key: str, value: object) -> str:
    """A label, split or id without the space around it; a whole number is a name as well."""
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _error(where, f"text as {key}", _clipped(value))
    return str(value).strip()


def _parse_labels(where: str, value: object) -> tuple[str, ...]:
    """A string holds labels separated by `|`; the items of a list are taken whole. Repeated labels count once."""
    items = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [value]
    labels = dict.fromkeys(_parse_name(where, "label", item) for item in items)
    labels.pop("", None)  # "a||b", and the empty cell of an unlabelled clip
    return tuple(labels)


def _parse_seconds(where: str, key: str, values: Mapping[str, object]) -> float | None:
    value = values.get(key)
    if value is None or not str(value).strip():
        return None
    try:  # Python would take True for 1 and 1_000 for 1000; nobody who writes a list means it
        seconds = float(str(value).replace("_", "?"))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise _error(where, f"{key} as a number of seconds, 0 or more", _clipped(value))
    return seconds


def _parse_path(where: str, value: object) -> str:
    text = value if isinstance(value, str) else ""
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).is_absolute() or ".." in re.split(r"[/\\]", text):
        raise _error(where, "a relative path without '..', inside the folder of videos", _clipped(value))
    if not path.name or text != text.rstrip() or _SURROGATE.search(text) or "\\" in text or "\0" in text:
        raise _error(where, "the path of a video, '/' between folders and no space at the end", _clipped(value))
    return str(path)


def _read_folder(source: Path) -> list[_Listed]:
    paths = _find_videos(source)
    by_split = _has_split_folders(source, paths)
    listed = []
    for path in paths:
        where = _shown(source / path)
        folders = list(path.parts[:-1])
        split = _SPLIT_ALIASES[folders.pop(0).casefold()] if by_split and folders else "train"
        if not folders:
            raise _error(where, "split/class/video" if by_split else "class/video", "a video outside any class folder")
        listed.append((where, Annotation("", _parse_path(where, str(path)), _parse_labels(where, folders[:1]), split)))
    return listed


def _has_split_folders(source: Path, paths: list[PurePosixPath]) -> bool:
    """Whether the top folders are splits. A class may be called "train" as well: beside cars and ships it is one."""
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    splits = {name for name in tops if name.casefold() in _SPLIT_ALIASES}
    if splits and splits != tops and any(path.parts[0] in splits and len(path.parts) > 2 for path in paths):
        raise _error(_shown(source), "only splits or only classes as top folders", _clipped(sorted(tops)))
    return bool(splits) and splits == tops


def _read_ucf51(source: Path) -> list[_Listed]:
    listed = []
    for path in _find_videos(source):
        where = _shown(source / path)
        try:
            assigned = assign_ucf51(path.stem)
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from None
        if assigned is not None:
            label, split = assigned
            listed.append((where, Annotation("", _parse_path(where, str(path)), (label,), split)))
    return listed


def _read_ucf101(source: Path) -> list[_Listed]:
    if source.is_dir():
        return [clip for list_file in _choose_ucf_fold(source) for clip in _read_ucf101(list_file)]
    name = _UCF_LIST.fullmatch(source.name)
    if name is None:
        raise _error(_shown(source), "a file named trainlistNN.txt or testlistNN.txt", repr(source.name))
    listed = []
    for where, line in _numbered_lines(source):
        path = _parse_path(where, re.sub(r"\s+\d+$", "", line.strip()))  # the class number repeats the folder
        label, _, video = path.partition("/")
        if not video or "/" in video:
            raise _error(where, "Class/video.avi or Class/video.avi 1", _clipped(line))
        listed.append((where, Annotation("", path, _parse_labels(where, [label]), name["split"].lower())))
    return listed


def _choose_ucf_fold(source: Path) -> list[Path]:
    """The training and the test list of fold 1, or of the only fold that the folder holds."""
    names = sorted(entry.name for entry in source.iterdir() if _UCF_LIST.fullmatch(entry.name))
    folds = {re.sub(r"\D", "", name) for name in names}
    fold = folds.pop() if len(folds) == 1 else "01"
    lists = [name for name in names if name.lower() in (f"testlist{fold}.txt", f"trainlist{fold}.txt")]
    if len(lists) != 2:
        expected = "trainlist01.txt and testlist01.txt, or both lists of one other fold"
        raise _error(_shown(source), expected, ", ".join(names) or "no list")
    return [source / name for name in reversed(lists)]


def _find_videos(source: Path) -> list[PurePosixPath]:
    """Paths of all videos below a folder, sorted; hidden files are left out, linked folders are followed."""
    return sorted(PurePosixPath(path.relative_to(source).as_posix()) for path in _walk(source, ()))


def _walk(folder: Path, ancestors: tuple[Path, ...]) -> Iterator[Path]:
    resolved = folder.resolve()
    if resolved in ancestors:  # a link back to a folder above: its videos are listed already
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*ancestors, resolved))
        elif entry.suffix.lower() in VIDEO_SUFFIXES:
            yield entry


def _refuse_repeats(listed: list[_Listed]) -> None:
    """No clip twice, and no second of a video in two splits."""
    by_path: defaultdict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for where, clip in listed:
        end = math.inf if clip.end_seconds is None else clip.end_seconds
        by_path[clip.path].append((clip.start_seconds, end, clip.split, where))
    for path, segments in by_path.items():
        clips: dict[tuple[float, float], str] = {}
        latest: dict[str, tuple[float, str]] = {}  # of each split, the segment that reaches furthest so far
        for start, end, split, where in sorted(segments, key=lambda segment: segment[:2]):
            for other, (other_end, other_where) in latest.items():
                if other != split and start < other_end:
                    found = f"{_clipped(path)} in {split!r} here and in {other!r} at {other_where}"
                    raise _error(where, "every clip in one split (else one leaks into the other)", found)
            if (start, end) in clips:
                raise _error(where, "every clip once", f"{_clipped(path)} already at {clips[start, end]}")
            clips[start, end] = where
            latest[split] = max(latest.get(split, (end, where)), (end, where), key=lambda reach: reach[0])


def _name_clips(listed: list[_Listed]) -> list[Annotation]:
    """Give every clip its id: the list's own, else one from the path, in full where the short form is taken."""
    places: dict[str, str] = {}
    for where, clip in listed:
        if clip.clip_id and places.setdefault(clip.clip_id, where) != where:
            raise _error(where, "every id once", f"{_clipped(clip.clip_id)} already at {places[clip.clip_id]}")
    uses = Counter([clip.clip_id or _derive_id(clip, exact=False) for _, clip in listed])
    named = []
    for where, clip in listed:
        name = clip.clip_id
        if not name:
            # a.mp4 beside a.avi: neither takes "a", whatever their order.
            name = stem = _derive_id(clip, exact=uses[_derive_id(clip, exact=False)] > 1)
            number = 2
            while name in places:
                name, number = f"{stem}#{number}", number + 1
            places[name] = where
        named.append(replace(clip, clip_id=name))
    return named


def _derive_id(clip: Annotation, *, exact: bool) -> str:
    path = clip.path if exact else str(PurePosixPath(clip.path).with_suffix(""))
    if clip.start_seconds == 0 and clip.end_seconds is None:
        return path
    times = (clip.start_seconds, clip.end_seconds)
    return f"{path}@{'-'.join('end' if t is None else str(t) if exact else f'{t:.3f}' for t in times)}"


def _read_text(source: Path) -> str:
    try:
        return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(_shown(source), "UTF-8 text", f"byte 0x{error.object[error.start]:02x}") from error


def _numbered_lines(source: Path) -> Iterator[tuple[str, str]]:
    # Not str.splitlines(): it also splits at U+2028 and its like, which may stand inside a name.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(source)), start=1):
        if line.strip():
            yield f"{_shown(source)}, line {number}", line


def _error(where: str, expected: str, found: str) -> AnnotationError:
    return AnnotationError(f"{where}: expected {expected}, found {found}")


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))


def _clipped(value: object) -> str:
    return f"{value!r:.120}"


_READERS: dict[str, Callable[[Path], list[_Listed]]] = {
    "folder": _read_folder, "csv": _read_csv, "jsonl": _read_jsonl, "ucf101": _read_ucf101, "ucf51": _read_ucf51,
}  # fmt: skip
