"""Lists of published datasets: UCF101, UCF51, ActivityNet, VGGSound, Kinetics, AudioSet, and the reference release's.

Only UCF101's lists contain paths. The files of the others are found by the names under which the datasets are usually
stored, see `VideoFiles` and docs/formats/annotations.md.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from avdistill.annotations.columns import check_columns
from avdistill.annotations.groups import UCF_NAME
from avdistill.annotations.schema import (
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
from avdistill.errors import AnnotationError

# fmt: off
# UCF101's class folders. The files of HandstandPushups, and the reference release's label, spell it HandStandPushups:
# names of UCF101 are compared without case.
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
# fmt: on
UCF_LIST = re.compile(r"(?P<split>train|test)list(?P<fold>\d+)\.txt", re.IGNORECASE)
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_UCF51_BY_FOLDED_NAME = {name.casefold(): name for name in UCF51_CLASSES}
_VGGSOUND_SECONDS = 10


def assign_ucf51(name: str) -> tuple[str, str] | None:
    """Label and UCF51 split of the UCF101 clip `v_Class_gNN_cMM` (no suffix), or None if its class has no audio.

    Groups 01 to 07 are "test", all others "train". A group consists of the clips of one video, so no video is in both.
    """
    match = UCF_NAME.fullmatch(name)
    if match is None:
        raise annotation_error("UCF51", "a name v_Class_gNN_cMM with group 01 to 25", truncate_repr(name))
    label = _UCF51_BY_FOLDED_NAME.get(match["label"].casefold())
    return None if label is None else (label, "test" if int(match["group"]) <= 7 else "train")


def _read_ucf51(source: Path, _: VideoFiles) -> Iterator[LocatedAnnotation]:
    """The UCF51 clips in a folder of UCF101 videos."""
    for path in find_videos(source).videos:
        where = format_path(source / path)
        try:
            assigned = assign_ucf51(path.stem)
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from None
        if assigned is not None:
            label, split = assigned
            yield where, Annotation("", parse_path(where, str(path)), (label,), split)


def _read_ucf101(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """An official list, or both lists of one fold in a folder. A missing file is looked up by its name."""
    if source.is_dir():
        for list_file in _choose_ucf_fold(source):
            yield from _read_ucf101(list_file, files)
        return
    name = UCF_LIST.fullmatch(source.name)
    if name is None:
        raise annotation_error(format_path(source), "a file named trainlistNN.txt or testlistNN.txt", repr(source.name))
    for where, line in numbered_lines(source):
        path = parse_path(where, re.sub(r"\s+\d+$", "", line.strip()))  # the class number is redundant
        label, _, video = path.partition("/")
        if not video or "/" in video:
            raise annotation_error(where, "Class/video.avi or Class/video.avi 1", truncate_repr(line))
        labels = parse_labels(where, [_UCF51_BY_FOLDED_NAME.get(label.casefold(), label)])
        if not files.holds(path):
            path = files.find(where, PurePosixPath(video).stem, labels) or path
        yield where, Annotation("", path, labels, name["split"].lower())


def _choose_ucf_fold(source: Path) -> list[Path]:
    """The training and the test list of fold 1, or of the only fold in the folder."""
    names = sorted(entry.name for entry in source.iterdir() if UCF_LIST.fullmatch(entry.name))
    folds = {re.sub(r"\D", "", name) for name in names}
    fold = folds.pop() if len(folds) == 1 else "01"
    lists = [name for name in names if name.lower() in (f"testlist{fold}.txt", f"trainlist{fold}.txt")]
    if len(lists) != 2:
        expected = "trainlist01.txt and testlist01.txt, or both lists of one other fold"
        raise annotation_error(format_path(source), expected, ", ".join(names) or "no list")
    return [source / name for name in reversed(lists)]


def _read_activitynet(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """ActivityNet's JSON: a clip for each annotated segment; a video without segments is one unlabeled clip."""
    for where, name, entry in _entries(source, _load_database(source)):
        split = parse_split(where, _required_name(where, "subset", entry))
        annotations = _required(where, "annotations", entry)
        if not isinstance(annotations, list):
            raise annotation_error(where, "a list as annotations", truncate_repr(annotations))
        segments: list[tuple[float, float | None, tuple[str, ...]]] = []
        for annotation in annotations:
            if not isinstance(annotation, dict):
                expected = "objects with 'segment' and 'label' as annotations"
                raise annotation_error(where, expected, truncate_repr(annotation))
            label = _required_name(where, "label", annotation)
            segments.append((*_parse_segment(where, _required(where, "segment", annotation)), (label,)))
        for start, end, labels in segments or [(0.0, None, ())]:
            path, *_ = files.locate(where, labels, [], [f"v_{name}", name], (start, end))
            yield where, Annotation("", path, labels, split, start, end)


def _read_vggsound(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """vggsound.csv: YouTube id, start in whole seconds, label, split; clips of ten seconds."""
    for where, cells in csv_rows(source):
        if len(cells) != 4:
            expected = "YouTube id, start, label, split (a comma inside a label needs double quotes)"
            raise annotation_error(where, expected, f"{len(cells)} cells")
        row = dict(zip(("id", "start", "label", "split"), cells, strict=True))
        name, labels = _parse_file_name(where, "id", row), parse_labels(where, [row["label"]])
        start = _parse_whole_seconds(where, "start", row)
        end = start + _VGGSOUND_SECONDS
        cut = (f"{name}_{start:06d}", f"{name}_{start:06d}_{end:06d}", f"{name}_{start * 1000}_{end * 1000}")
        path, begin, stop = files.locate(where, labels, cut, [name], (float(start), float(end)))
        split = parse_split(where, _required_name(where, "split", row))
        yield where, Annotation("", path, labels, split, begin, stop)


def _read_kinetics(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """A list of Kinetics 400, 600 or 700; lists of test clips have no column `label`."""
    for where, row in csv_table(source, _check_kinetics_header):
        name, labels = _parse_file_name(where, "youtube_id", row), parse_labels(where, [row.get("label")])
        start = _parse_whole_seconds(where, "time_start", row)
        end = _parse_whole_seconds(where, "time_end", row)
        if start >= end:
            raise annotation_error(where, "time_start < time_end", f"{start} and {end}")
        cut = [f"{name}_{start:06d}_{end:06d}"]
        path, begin, stop = files.locate(where, labels, cut, [name], (float(start), float(end)))
        split = parse_split(where, _required_name(where, "split", row))
        extra = parse_extra(row, KINETICS_COLUMNS)
        yield where, Annotation("", path, labels, split, begin, stop, extra)


def _check_kinetics_header(where: str, header: list[str]) -> None:
    for column in KINETICS_COLUMNS[1:]:
        if column not in header:
            raise annotation_error(where, f"a column {column!r}", truncate_repr(", ".join(header)))
    check_columns(where, header, (*KINETICS_COLUMNS, "path"), set())


def _read_audioset(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """AudioSet's segments: YouTube id, start, end, labels; the split follows from the list's name.

    A folder stands for its `balanced_train_segments.csv` and `eval_segments.csv`. Labels are the display names if
    `class_labels_indices.csv` is beside the list, otherwise the identifiers (`/m/068hy`).
    """
    if source.is_dir():
        for name in ("balanced_train", "eval"):
            yield from _read_audioset(source / f"{name}_segments.csv", files)
        return
    split = "test" if source.name.startswith("eval") else "train"
    names = _audioset_names(source.with_name("class_labels_indices.csv"))
    for where, cells in csv_rows(source):
        if cells[0].lstrip().startswith("#"):  # three lines of counts and column names
            continue
        if len(cells) != 4:
            raise annotation_error(where, "YTID, start_seconds, end_seconds, positive_labels", f"{len(cells)} cells")
        row = dict(zip(("id", "start", "end", "labels"), cells, strict=True))
        name = _parse_file_name(where, "id", row)
        start, end = (parse_seconds(where, key, row[key]) for key in ("start", "end"))
        if start is None or end is None or start >= end:
            raise annotation_error(where, "start_seconds < end_seconds", truncate_repr(cells))
        labels = parse_labels(where, [names.get(item.strip(), item) for item in row["labels"].split(",")])
        times = (f"{round(start * 1000)}_{round(end * 1000)}", f"{round(start):06d}", f"{round(start)}_{round(end)}")
        cut = [*(f"{name}_{time}" for time in times), f"Y{name}"]
        path, begin, stop = files.locate(where, labels, cut, [name], (start, end))
        yield where, Annotation("", path, labels, split, begin, stop)


def _audioset_names(table: Path) -> dict[str, str]:
    """Display names by identifier, from `class_labels_indices.csv`; empty if there is no such file."""
    if not table.is_file():
        return {}
    rows = [cells for _, cells in csv_rows(table)]
    if rows[:1] != [["index", "mid", "display_name"]] or any(len(cells) != 3 for cells in rows):
        raise annotation_error(format_path(table), "the columns index, mid, display_name", truncate_repr(rows[:1]))
    return {mid: name for _, mid, name in rows[1:]}


def _read_gewu_lab(source: Path, files: VideoFiles) -> Iterator[LocatedAnnotation]:
    """annotation.json of the reference implementation: a clip for each name, which is its id."""
    content = _load_database(source)
    classes = content.get("labels")
    if not isinstance(classes, list):
        raise annotation_error(format_path(source), "a list as 'labels'", truncate_repr(classes))
    for where, name, entry in _entries(source, content):
        label = _required_name(where, "label", entry)
        if label not in classes:
            raise annotation_error(where, "a label that is in 'labels'", truncate_repr(label))
        upload = re.sub(r"_[0-9]+$", "", name)
        segment = _parse_segment(where, entry["segment"]) if "segment" in entry else None
        whole = [upload, upload.removeprefix("v_")] if segment and upload != name else []
        suffix = ".mp4"
        if UCF_NAME.fullmatch(name):
            label, suffix = _UCF51_BY_FOLDED_NAME.get(label.casefold(), label), ".avi"
        path, begin, stop = files.locate(where, (label,), [name], whole, segment or (0.0, None), suffix)
        split = parse_split(where, _required_name(where, "subset", entry))
        yield where, Annotation(name, path, (label,), split, begin, stop)


def _load_database(source: Path) -> dict[str, object]:
    content = parse_json(format_path(source), read_text(source))
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        raise annotation_error(format_path(source), "one JSON object with an object 'database'", truncate_repr(content))
    return content


def _entries(source: Path, content: Mapping[str, object]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(where, name, values) of every entry of the database."""
    database = content["database"]
    assert isinstance(database, dict)
    for name, entry in database.items():
        where = f"{format_path(source)}, entry {truncate_repr(name)}"
        if not isinstance(entry, dict) or SURROGATE.search(json.dumps([name, entry], ensure_ascii=False)):
            raise annotation_error(where, "one JSON object of valid text", truncate_repr(entry))
        yield where, _parse_file_name(where, "name", {"name": name}), entry


def _required(where: str, key: str, values: Mapping[str, object]) -> object:
    if key not in values:
        raise annotation_error(where, f"a value {key!r}", truncate_repr(", ".join(values)))
    return values[key]


def _required_name(where: str, key: str, values: Mapping[str, object]) -> str:
    name = parse_name(where, key, _required(where, key, values))
    if not name:
        raise annotation_error(where, f"text as {key}", truncate_repr(values[key]))
    return name


def _parse_file_name(where: str, key: str, values: Mapping[str, object]) -> str:
    """An id that is part of a file name, so it must not lead into another folder."""
    name = _required_name(where, key, values)
    if re.search(r"[/\\\0]|\.\.|\.$", name):  # "." followed by a suffix begins with ".."
        raise annotation_error(where, f"{key} without '/', '\\', '..', NUL and a dot at the end", truncate_repr(name))
    return name


def _parse_whole_seconds(where: str, key: str, values: Mapping[str, object]) -> int:
    seconds = parse_seconds(where, key, values[key])
    if seconds is None or not seconds.is_integer():  # file names contain whole seconds only
        raise annotation_error(where, f"{key} in whole seconds", truncate_repr(values[key]))
    return int(seconds)


def _parse_segment(where: str, value: object) -> tuple[float, float]:
    times = [parse_seconds(where, "segment", item) for item in value] if isinstance(value, list) else []
    if len(times) != 2 or times[0] is None or times[1] is None or times[0] > times[1]:
        raise annotation_error(where, "a segment [start, end] in seconds", truncate_repr(value))
    # ActivityNet has segments of length zero, such as [0, 0], which no clip may have. They get the smallest length
    # instead: it contains no frame, so the preparation lists the clip as skipped.
    return times[0], max(times[1], math.nextafter(times[0], math.inf))


def merge_repeats(listed: list[LocatedAnnotation]) -> list[LocatedAnnotation]:
    """One clip per segment of a file: many segments are annotated twice, often with different labels."""
    merged: dict[tuple[str, float, float | None, str], LocatedAnnotation] = {}
    for where, clip in listed:
        key = (clip.path, clip.start_seconds, clip.end_seconds, clip.split)
        first_where, first = merged.setdefault(key, (where, clip))
        labels = tuple(dict.fromkeys((*first.labels, *clip.labels)))
        merged[key] = (first_where, replace(first, labels=labels))
    return list(merged.values())


CATALOG_READERS: dict[str, Callable[[Path, VideoFiles], Iterator[LocatedAnnotation]]] = {
    "ucf101": _read_ucf101, "ucf51": _read_ucf51, "activitynet": _read_activitynet, "vggsound": _read_vggsound,
    "kinetics": _read_kinetics, "audioset": _read_audioset, "gewu_lab": _read_gewu_lab,
}  # fmt: skip
# Of these, segments that are listed several times become one clip.
REPEATING = ("activitynet", "vggsound", "kinetics", "audioset", "gewu_lab")
