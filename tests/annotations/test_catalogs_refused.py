"""What the lists of published data sets are refused for: one line that names the place, and nothing else."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avdistill.annotations import read_annotations
from avdistill.errors import AnnotationError
from support.list_files import make_videos, refusal, write
from support.strategies import CHARACTERS

VGGSOUND = "---g-f_I2yQ,1,people marching,test\n"
KINETICS_TEST = "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n"
A_CLIP = {"segment": [1, 2], "label": "x"}


def video(**values: object) -> dict[str, object]:
    return {"n": {"subset": "training", "annotations": [A_CLIP]} | values}


def segment(value: object) -> dict[str, object]:
    return video(annotations=[{"segment": value, "label": "x"}])


ACTIVITYNET_ERRORS: dict[str, tuple[object, str]] = {
    "database is a list": ([], "object 'database'"),
    "empty": ({}, "at least one clip"),
    "entry is a list": ({"n": []}, "entry 'n': expected one JSON object"),
    "no subset": ({"n": {"annotations": []}}, "entry 'n': expected a value 'subset', found 'annotations'"),
    "empty subset": (video(subset=" "), "text as subset, found ' '"),
    "number as subset": (video(subset=0.5), "text as subset"),
    "no annotations": ({"n": {"subset": "testing"}}, "'annotations'"),
    "annotations null": (video(annotations=None), "a list as annotations"),
    "annotation is text": (video(annotations=["x"]), "objects with 'segment' and 'label'"),
    "no label": (video(annotations=[{"segment": [1, 2]}]), "'label'"),
    "no segment": (video(annotations=[{"label": "x"}]), "'segment'"),
    "true as label": (video(annotations=[A_CLIP | {"label": True}]), "label"),
    "null as label": (video(annotations=[A_CLIP | {"label": None}]), "text as label, found None"),
    "segment is a number": (segment(3), "[start, end] in seconds"),
    "segment is an object": (segment({"1": 2}), "[start, end] in seconds"),
    "one time": (segment([1]), "[start, end] in seconds"),
    "three times": (segment([1, 2, 3]), "[start, end] in seconds"),
    "null": (segment([1, None]), "[start, end] in seconds"),
    "NaN": (segment([1, math.nan]), "segment as a number of seconds"),
    "infinity": (segment([1, math.inf]), "segment as a number of seconds"),
    "true": (segment([0, True]), "segment as a number of seconds"),
    "negative": (segment([-1, 2]), "segment as a number of seconds"),
    "nested": (segment([[1], 2]), "segment as a number of seconds"),
    "ends before it begins": (segment([2, 1]), "[start, end] in seconds, found [2, 1]"),
    "slash": ({"a/b": video()["n"]}, "entry 'a/b': expected name without '/'"),
    "backslash": ({"a\\b": video()["n"]}, "without '/'"),
    "parent": ({"..": video()["n"]}, "'..'"),
    "NUL": ({"a\0": video()["n"]}, "NUL"),
    "no name": ({" ": video()["n"]}, "entry ' ': expected text as name"),
    "surrogate name": ({"\ud800": video()["n"]}, "valid text"),
    "surrogate label": (
        video(annotations=[A_CLIP | {"label": "\ud800"}]),
        "entry 'n': expected one JSON object of valid",
    ),
}


@pytest.mark.parametrize(("database", "part"), ACTIVITYNET_ERRORS.values(), ids=ACTIVITYNET_ERRORS)
def test_refused_activitynet(tmp_path: Path, database: object, part: str) -> None:
    message = refusal(write(tmp_path / "a.json", {"version": "VERSION 1.3", "taxonomy": [], "database": database}))
    assert part in message
    assert "a.json" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"labels": {"x": 0}, "database": {}}, "a list as 'labels'"),
        ({"labels": ["x"], "database": {"n": {"subset": "training"}}}, "entry 'n': expected a value 'label'"),
        ({"labels": ["x"], "database": {"n": {"label": "x"}}}, "entry 'n': expected a value 'subset'"),
        ({"labels": ["x"], "database": {"n": {"label": "y", "subset": "training"}}}, "'labels', found 'y'"),
        ({"labels": ["x"], "database": {"n": {"label": "x", "subset": "training", "segment": None}}}, "[start, end]"),
        ('{"labels": ["x"], "database": {"n": {"subset": "a", "subset": "b", "label": "x"}}}', "key 'subset' twice"),
        ('{"labels": ["x"], "database": {"n": {}, "n": {}}}', "key 'n' twice"),
        ('{"labels": ["x"], "database": ', "JSON"),
        ("", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_refused_release(tmp_path: Path, content: object, part: str) -> None:
    message = refusal(write(tmp_path / "a.json", content))
    assert part in message
    assert "a.json" in message


def test_a_video_in_two_splits_leaks(tmp_path: Path) -> None:
    clip = {"segment": [43.5, 46.7], "label": "Shaving"}
    database = {"v_a_0": clip | {"subset": "training"}, "v_a_1": clip | {"subset": "validation"}}
    source = write(tmp_path / "a.json", {"labels": ["Shaving"], "database": database})
    assert len(read_annotations(source)) == 2
    assert "leaks" in refusal(source, videos=make_videos(tmp_path / "videos", "v_a.mp4"))


ROWS: dict[str, tuple[str, str, str]] = {
    "vggsound: three cells": ("vggsound", "n,1,a label, train\nn,1,train\n", "line 2: expected YouTube id"),
    "vggsound: comma without quotes": ("vggsound", "n,1,male speech, man,train\n", "double quotes), found 5 cells"),
    "vggsound: half seconds": ("vggsound", "n,1.5,x,train\n", "line 1: expected start in whole seconds"),
    "vggsound: no start": ("vggsound", "n,,x,train\n", "start in whole seconds"),
    "vggsound: negative": ("vggsound", "n,-1,x,train\n", "start as a number of seconds"),
    "audioset: beyond any clock": ("audioset", 'n,1,1e306,"/m/01"\n', "end below 1e+09 seconds"),
    "vggsound: no split": ("vggsound", "n,1,x,\n", "text as split, found ''"),
    "vggsound: no id": ("vggsound", ",1,x,train\n", "text as id"),
    "vggsound: slash": ("vggsound", "a/b,1,x,train\n", "without '/'"),
    "vggsound: two splits": ("vggsound", "n,1,x,train\nn,1,x,test\n", "leaks"),
    "kinetics: no column": ("kinetics", "label,youtube_id,time_start,split\n", "expected a column 'time_end'"),
    "kinetics: column twice": ("kinetics", "label,label,youtube_id,time_start,time_end,split\n", "every column once"),
    "kinetics: start = end": ("kinetics", KINETICS_TEST.replace("27", "17"), "line 2: expected time_start < time_end"),
    "kinetics: nan": ("kinetics", KINETICS_TEST.replace("27", "nan"), "time_end as a number of seconds"),
    "kinetics: parent": ("kinetics", KINETICS_TEST.replace("--6bJUbfpnQ", ".."), "youtube_id without"),
    "kinetics: missing cell": ("kinetics", KINETICS_TEST.replace(",test", ""), "4 cells"),
    "kinetics: empty": ("kinetics", "", "at least one clip"),
}


@pytest.mark.parametrize(("format", "text", "part"), ROWS.values(), ids=ROWS)
def test_refused_rows(tmp_path: Path, format: str, text: str, part: str) -> None:  # noqa: A002
    assert part in refusal(write(tmp_path / "list.csv", text), format)


def test_jsonl_refuses_a_key_given_twice(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.jsonl", '{"path": "a.mp4", "label": "x", "label": "y"}'))
    assert "line 1" in message
    assert "key 'label' twice" in message


def test_a_folder_of_videos_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "vggsound.csv", VGGSOUND), videos=tmp_path / "absent")
    assert "absent: expected a readable folder of videos" in message


def test_a_found_file_with_a_name_that_cannot_be_stored(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", "a\\b/---g-f_I2yQ.mp4")
    message = refusal(write(tmp_path / "vggsound.csv", VGGSOUND), videos=videos)
    assert "line 1" in message
    assert "'/' between folders" in message


# Nothing but AnnotationError, whatever stands in the file

NAMES = ["a", "v_a_1", "v_a_2", "b_3", "a/b", "subset", "label", "segment", "annotations"]
KEYS = st.sampled_from(NAMES) | st.text(CHARACTERS, max_size=3)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["training", "x", "\ud800"])
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def mostly(valid: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.integers(0, 15).flatmap(lambda number: JSON if number == 7 else valid)


TIMES = mostly(st.lists(st.floats(0, 100) | st.integers(0, 3), min_size=2, max_size=2).map(sorted))
LABEL = mostly(st.sampled_from(["x", "y"]))
NAME = st.sampled_from(["a", "v_a_1", "v_a_2", "b_3"]) | KEYS
SUBSET = mostly(st.sampled_from(["training", "validation", "testing"]))
ANNOTATION = mostly(st.fixed_dictionaries({"segment": TIMES, "label": LABEL}))
UPLOAD = mostly(st.fixed_dictionaries({"subset": SUBSET, "annotations": mostly(st.lists(ANNOTATION, max_size=3))}))
NAMED = mostly(st.fixed_dictionaries({"subset": SUBSET, "label": LABEL}, optional={"segment": TIMES}))
CONTENT = mostly(
    st.fixed_dictionaries({"version": JSON, "database": mostly(st.dictionaries(NAME, UPLOAD, min_size=1, max_size=3))})
    | st.fixed_dictionaries(
        {
            "labels": mostly(st.just(["x", "y"])),
            "database": mostly(st.dictionaries(NAME, NAMED, min_size=1, max_size=3)),
        }
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, st.sampled_from(["auto", "activitynet", "gewu_lab"]))
def test_any_json_is_read_or_refused_in_one_line(tmp_path: Path, content: object, format: str) -> None:  # noqa: A002
    source = write(tmp_path / "a.json", json.dumps(content))
    videos = make_videos(tmp_path / "videos", "a.mp4", "v_a.mp4", "x/v_a_1.mp4", "y/v_a_1.mp4")
    clips, message = [], ""
    try:
        clips = read_annotations(source, format=format, videos=videos)
    except AnnotationError as error:
        message = str(error)
    assert len(message.splitlines()) == (0 if clips else 1)
    assert len({clip.clip_id for clip in clips}) == len(clips)
    assert all(clip.start_seconds < (clip.end_seconds or math.inf) for clip in clips)
    assert all(clip.path == str(Path(clip.path)) and ".." not in clip.path for clip in clips)


@pytest.mark.parametrize("name", [".", "a.", "..", "a/b"])
def test_an_id_that_would_lead_elsewhere_as_a_file_is_refused(tmp_path, name):
    database = {name: {"subset": "training", "annotations": []}}
    source = write(tmp_path / "a.json", json.dumps({"version": "1.3", "database": database}))
    with pytest.raises(AnnotationError, match="without '/'"):
        read_annotations(source, format="activitynet", videos=make_videos(tmp_path / "videos", "a.mp4"))
