"""The lists of published data sets: UCF101, UCF51, ActivityNet, VGGSound, Kinetics, AudioSet, and the release's own.

None of them but UCF101 says where the files are: they are looked up by the names under which the data sets are usually
stored, see `VideoFiles` and docs/formats/annotations.md.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from avdistill.annotations.schema import (
    AUDIO_SUFFIXES,
    SURROGATE,
    Annotation,
    LocatedAnnotation,
    annotation_error,
    csv_rows,
    csv_table,
    find_videos,
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
from avdistill.errors import AnnotationError

# fmt: off
# As UCF101 spells its class folders; the files of HandstandPushups, and the release's label, say HandStandPushups:
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
UCF_NAME = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>0[1-9]|1\d|2[0-5])_c\d{2}")
UCF_LIST = re.compile(r"(?P<split>train|test)list(?P<fold>\d+)\.txt", re.IGNORECASE)
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_UCF51_BY_FOLDED_NAME = {name.casefold(): name for name in UCF51_CLASSES}
_VGGSOUND_SECONDS = 10

# A name without suffix under which a clip may be stored, and which part of that file is the clip.
_Stored = tuple[str, float, float | None]


class VideoFiles:
    """The files of a folder of videos by their names without suffix; with no folder, nothing is ever found."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def locate(
        self, where: str, stored: list[_Stored], labels: tuple[str, ...], suffix: str = ".mp4"
    ) -> tuple[str, float, float | None]:
        """(path, start, end) of the first name that there is a file of; with none, of the first name and `suffix`.

        Raises:
            AnnotationError: two files have the name, and not just one lies in a folder called like the label.
        """
        for stem, start, end in stored:
            path = self.find(where, stem, labels)
            if path is not None:
                return path, start, end
        stem, start, end = stored[0]
        return parse_path(where, stem + suffix), start, end

    def find(self, where: str, stem: str, labels: tuple[str, ...]) -> str | None:
        """The one file called `stem`, whatever its folder and suffix; the errors of `locate`."""
        paths = self._by_name.get(_folded(stem), [])
        if len(paths) > 1:  # Kinetics: one upload may be in two classes, and its files in two class folders
            classes = {_as_folder(label) for label in labels}
            in_class = [path for path in paths if _as_folder(path.parent.name) in classes]
            if len(in_class) != 1:
                found = " and ".join(truncate_repr(str(path)) for path in (in_class or paths)[:2])
                raise annotation_error(where, f"one file called {truncate_repr(stem)}", found)
            paths = in_class
        return parse_path(where, str(paths[0])) if paths else None

    def holds(self, path: str) -> bool:
        """Whether there is a file at this very path."""
        return PurePosixPath(path) in self._by_name.get(_folded(PurePosixPath(path).stem), [])

    @cached_property
    def _by_name(self) -> Mapping[str, list[PurePosixPath]]:
        if self._folder is None:
            return {}
        try:
            videos = find_videos(self._folder)
            audio_files = find_videos(self._folder, AUDIO_SUFFIXES)
        except OSError as error:
            raise annotation_error(
                format_path(self._folder), "a readable folder of videos", str(error.strerror)
            ) from error
        by_name: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
        for path in videos:
            by_name[_folded(path.stem)].append(path)
        seen = set(by_name)
        for path in audio_files:  # of a data set that is only heard; beside its video it is that one's audio track
            if _folded(path.stem) not in seen:
                by_name[_folded(path.stem)].append(path)
        return by_name


def _folded(stem: str) -> str:
    """Names of UCF101 are compared without case; ids of YouTube may differ in nothing else."""
    return stem.casefold() if UCF_NAME.fullmatch(stem) else stem


def _as_folder(label: str) -> str:
    return label.replace("_", " ").casefold()


def assign_ucf51(name: str) -> tuple[str, str] | None:
    """Label and UCF51 split of the UCF101 clip `v_Class_gNN_cMM` (no suffix); None if its class has no audio.

    Groups 01 to 07 are "test", all others "train". A group holds the clips cut from one video, so no video is in both.
    """
    match = UCF_NAME.fullmatch(name)
    if match is None:
        raise annotation_error("UCF51", "a name v_Class_gNN_cMM with group 01 to 25", truncate_repr(name))
    label = _UCF51_BY_FOLDED_NAME.get(match["label"].casefold())
    return None if label is None else (label, "test" if int(match["group"]) <= 7 else "train")


def read_ucf51(source: Path, _: VideoFiles) -> list[LocatedAnnotation]:
    """The UCF51 clips of a folder of UCF101 videos."""
    listed = []
    for path in find_videos(source):
        where = format_path(source / path)
        try:
            assigned = assign_ucf51(path.stem)
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from None
        if assigned is not None:
            label, split = assigned
            listed.append((where, Annotation("", parse_path(where, str(path)), (label,), split)))
    return listed


def read_ucf101(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """One official list, or both lists of a fold of a folder. A path that holds no file gives way to one that does."""
    if source.is_dir():
        return [clip for list_file in _choose_ucf_fold(source) for clip in read_ucf101(list_file, files)]
    name = UCF_LIST.fullmatch(source.name)
    if name is None:
        raise annotation_error(format_path(source), "a file named trainlistNN.txt or testlistNN.txt", repr(source.name))
    listed = []
    for where, line in numbered_lines(source):
        path = parse_path(where, re.sub(r"\s+\d+$", "", line.strip()))  # the class number repeats the folder
        label, _, video = path.partition("/")
        if not video or "/" in video:
            raise annotation_error(where, "Class/video.avi or Class/video.avi 1", truncate_repr(line))
        labels = parse_labels(where, [_UCF51_BY_FOLDED_NAME.get(label.casefold(), label)])
        if not files.holds(path):
            path = files.find(where, PurePosixPath(video).stem, labels) or path
        listed.append((where, Annotation("", path, labels, name["split"].lower())))
    return listed


def _choose_ucf_fold(source: Path) -> list[Path]:
    """The training and the test list of fold 1, or of the only fold that the folder holds."""
    names = sorted(entry.name for entry in source.iterdir() if UCF_LIST.fullmatch(entry.name))
    folds = {re.sub(r"\D", "", name) for name in names}
    fold = folds.pop() if len(folds) == 1 else "01"
    lists = [name for name in names if name.lower() in (f"testlist{fold}.txt", f"trainlist{fold}.txt")]
    if len(lists) != 2:
        expected = "trainlist01.txt and testlist01.txt, or both lists of one other fold"
        raise annotation_error(format_path(source), expected, ", ".join(names) or "no list")
    return [source / name for name in reversed(lists)]


def read_activitynet(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """ActivityNet's JSON: a clip for every annotated segment; a video without any is one clip without a label."""
    listed = []
    for where, name, entry in _entries(source, _load_database(source)):
        split = parse_split(where, _required_name(where, "subset", entry))
        annotations = _required(where, "annotations", entry)
        if not isinstance(annotations, list):
            raise annotation_error(where, "a list as annotations", truncate_repr(annotations))
        segments: list[tuple[float, float | None, tuple[str, ...]]] = []
        for annotation in annotations:
            if not isinstance(annotation, dict):
                raise annotation_error(
                    where, "objects with 'segment' and 'label' as annotations", truncate_repr(annotation)
                )
            label = _required_name(where, "label", annotation)
            segments.append((*_parse_segment(where, _required(where, "segment", annotation)), (label,)))
        for start, end, labels in segments or [(0.0, None, ())]:
            path, *_ = files.locate(where, [(f"v_{name}", start, end), (name, start, end)], labels)
            listed.append((where, Annotation("", path, labels, split, start, end)))
    return _merge_repeats(listed)


def read_vggsound(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """vggsound.csv: YouTube id, start in whole seconds, label, split; a clip lasts ten seconds."""
    listed = []
    for where, cells in csv_rows(source):
        if len(cells) != 4:
            expected = "YouTube id, start, label, split (a comma inside a label needs double quotes)"
            raise annotation_error(where, expected, f"{len(cells)} cells")
        row = dict(zip(("id", "start", "label", "split"), cells, strict=True))
        name, labels = _parse_file_name(where, "id", row), parse_labels(where, [row["label"]])
        start = _parse_whole_seconds(where, "start", row)
        end = start + _VGGSOUND_SECONDS
        stored: list[_Stored] = [
            (f"{name}_{start:06d}", 0.0, None),
            (f"{name}_{start:06d}_{end:06d}", 0.0, None),
            (f"{name}_{start * 1000}_{end * 1000}", 0.0, None),
            (name, float(start), float(end)),
        ]
        path, begin, stop = files.locate(where, stored, labels)
        split = parse_split(where, _required_name(where, "split", row))
        listed.append((where, Annotation("", path, labels, split, begin, stop)))
    return _merge_repeats(listed)


def read_kinetics(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """A list of Kinetics 400, 600 or 700; the lists of test clips have no column `label`."""
    listed = []
    for where, row in csv_table(source, _check_kinetics_header):
        name, labels = _parse_file_name(where, "youtube_id", row), parse_labels(where, [row.get("label")])
        start = _parse_whole_seconds(where, "time_start", row)
        end = _parse_whole_seconds(where, "time_end", row)
        if start >= end:
            raise annotation_error(where, "time_start < time_end", f"{start} and {end}")
        stored: list[_Stored] = [(f"{name}_{start:06d}_{end:06d}", 0.0, None), (name, float(start), float(end))]
        path, begin, stop = files.locate(where, stored, labels)
        split = parse_split(where, _required_name(where, "split", row))
        extra = parse_extra(row, KINETICS_COLUMNS)
        listed.append((where, Annotation("", path, labels, split, begin, stop, extra)))
    return _merge_repeats(listed)


def _check_kinetics_header(where: str, header: list[str]) -> None:
    missing = [column for column in KINETICS_COLUMNS[1:] if column not in header]
    if missing:
        raise annotation_error(where, f"a column {missing[0]!r}", truncate_repr(", ".join(header)))


def read_audioset(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """AudioSet's segments: YouTube id, start, end, labels; the name of the list tells the split.

    A folder gives `balanced_train_segments.csv` and `eval_segments.csv`. Labels are the display names where
    `class_labels_indices.csv` lies beside the list, else the identifiers (`/m/068hy`).
    """
    if source.is_dir():
        parts = [source / f"{name}_segments.csv" for name in ("balanced_train", "eval")]
        return [clip for part in parts for clip in read_audioset(part, files)]
    split = "test" if source.name.startswith("eval") else "train"
    names = _audioset_names(source.with_name("class_labels_indices.csv"))
    listed = []
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
        stored: list[_Stored] = [
            (f"{name}_{round(start * 1000)}_{round(end * 1000)}", 0.0, None),
            (f"{name}_{round(start):06d}", 0.0, None),
            (f"{name}_{round(start)}_{round(end)}", 0.0, None),
            (f"Y{name}", 0.0, None),
            (name, start, end),
        ]
        path, begin, stop = files.locate(where, stored, labels)
        listed.append((where, Annotation("", path, labels, split, begin, stop)))
    return _merge_repeats(listed)


def _audioset_names(table: Path) -> dict[str, str]:
    """Display names by identifier, from `class_labels_indices.csv` (index, mid, display_name); empty without it."""
    if not table.is_file():
        return {}
    rows = [cells for _, cells in csv_rows(table)]
    if rows[:1] != [["index", "mid", "display_name"]] or any(len(cells) != 3 for cells in rows):
        raise annotation_error(format_path(table), "the columns index, mid, display_name", truncate_repr(rows[:1]))
    return {mid: name for _, mid, name in rows[1:]}


def read_gewu_lab(source: Path, files: VideoFiles) -> list[LocatedAnnotation]:
    """annotation.json of the released implementation: a clip for every name, and the name is its id."""
    content = _load_database(source)
    classes = content.get("labels")
    if not isinstance(classes, list):
        raise annotation_error(format_path(source), "a list as 'labels'", truncate_repr(classes))
    listed = []
    for where, name, entry in _entries(source, content):
        label = _required_name(where, "label", entry)
        if label not in classes:
            raise annotation_error(where, "a label that stands in 'labels'", truncate_repr(label))
        stored: list[_Stored] = [(name, 0.0, None)]
        if "segment" in entry:
            start, end = _parse_segment(where, entry["segment"])
            upload = re.sub(r"_[0-9]+$", "", name)
            stored += [(upload, start, end), (upload.removeprefix("v_"), start, end)] if upload != name else []
        suffix = ".mp4"
        if UCF_NAME.fullmatch(name):
            label, suffix = _UCF51_BY_FOLDED_NAME.get(label.casefold(), label), ".avi"
        path, begin, stop = files.locate(where, stored, (label,), suffix)
        split = parse_split(where, _required_name(where, "subset", entry))
        listed.append((where, Annotation(name, path, (label,), split, begin, stop)))
    return _merge_repeats(listed)


def _load_database(source: Path) -> dict[str, object]:
    content = parse_json(format_path(source), read_text(source))
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        raise annotation_error(format_path(source), "one JSON object with an object 'database'", truncate_repr(content))
    return content


def _entries(source: Path, content: Mapping[str, object]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(place, name, values) of every entry of the database."""
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
    """An id that stands in the name of a file, so it must not lead into another folder."""
    name = _required_name(where, key, values)
    if re.search(r"[/\\\0]|\.\.|\.$", name):  # "." and its suffix are ".." again
        raise annotation_error(where, f"{key} without '/', '\\', '..', NUL and a dot at the end", truncate_repr(name))
    return name


def _parse_whole_seconds(where: str, key: str, values: Mapping[str, object]) -> int:
    seconds = parse_seconds(where, key, values[key])
    if seconds is None or not seconds.is_integer():  # the names of the files have room for whole seconds only
        raise annotation_error(where, f"{key} in whole seconds", truncate_repr(values[key]))
    return int(seconds)


def _parse_segment(where: str, value: object) -> tuple[float, float]:
    times = [parse_seconds(where, "segment", item) for item in value] if isinstance(value, list) else []
    if len(times) != 2 or times[0] is None or times[1] is None or times[0] > times[1]:
        raise annotation_error(where, "a segment [start, end] in seconds", truncate_repr(value))
    # ActivityNet has segments of length zero, such as [0, 0]. No clip may have this length, so the shortest there is
    # stands for it: no frame lies in it, and the preparation lists the clip among those it skipped.
    return times[0], max(times[1], math.nextafter(times[0], math.inf))


def _merge_repeats(listed: list[LocatedAnnotation]) -> list[LocatedAnnotation]:
    """One clip of each segment of a file: segments annotated twice, often with different labels, are the rule."""
    merged: dict[tuple[str, float, float | None, str], LocatedAnnotation] = {}
    for where, clip in listed:
        key = (clip.path, clip.start_seconds, clip.end_seconds, clip.split)
        first_where, first = merged.setdefault(key, (where, clip))
        labels = tuple(dict.fromkeys((*first.labels, *clip.labels)))
        merged[key] = (first_where, replace(first, labels=labels))
    return list(merged.values())
