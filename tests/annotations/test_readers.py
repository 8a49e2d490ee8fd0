import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import avdistill.annotations
from avdistill.annotations import Annotation, read_annotations
from avdistill.annotations.catalogs import UCF51_CLASSES, assign_ucf51
from avdistill.errors import AnnotationError

UCF51_NAMES = Path(__file__).parents[2] / "../shared/data/ucf51_sound/cnn14_embed512.npz"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_videos(root: Path, *paths: str) -> Path:
    for path in paths:
        write(root / path, b"")
    return root


def cat(clip_id: str, path: str, start: float = 0.0, end: float | None = None, **more: object) -> Annotation:
    return replace(Annotation(clip_id, path, ("cat",), "train", start, end), **more)  # type: ignore[arg-type]


TIMES = "path,label,start_seconds,end_seconds\n"
CSV_CASES = {
    "whole video": ("path,label\na/b.mp4,cat\n", [cat("a/b", "a/b.mp4")]),
    "segment": (TIMES + "a.mp4,cat,1.5,2\n", [cat("a@1.500-2.000", "a.mp4", 1.5, 2.0)]),
    "open segment": (TIMES + "a.mp4,cat,1,\n", [cat("a@1.000-end", "a.mp4", 1.0)]),
    "several labels": ("path,labels\na.mp4,cat|dog|cat\n", [cat("a", "a.mp4", labels=("cat", "dog"))]),
    "unlabeled": ("path,label\na.mp4,\n", [cat("a", "a.mp4", labels=())]),
    "byte order mark": ("\ufeffpath,label\na.mp4,cat\n", [cat("a", "a.mp4")]),
    "CR LF": ("path,label\r\n\r\na.mp4,cat\r\n , \r\n,\r\nb.mp4,cat\r\n\r\n", [cat("a", "a.mp4"), cat("b", "b.mp4")]),
    "quoted comma": ('path,label\n"a, b.mp4","cat, x"\n', [cat("a, b", "a, b.mp4", labels=("cat, x",))]),
    "quoted line break": ('path,label\n"a\nb.mp4",cat\n', [cat("a\nb", "a\nb.mp4")]),
    "spaces after commas": ("label, path, split\ncat, a b.mp4, test\n", [cat("a b", "a b.mp4", split="test")]),
    "unicode": ("path,label\nÜbung/日本.mp4,été\n", [cat("Übung/日本", "Übung/日本.mp4", labels=("été",))]),
    "line separator in a name": ("path,label\na\u2028b.mp4,cat\n", [cat("a\u2028b", "a\u2028b.mp4")]),
    "extra columns": ("t,path,label,\nhi ,a.mp4,cat,7\n", [cat("a", "a.mp4", extra=(("t", "hi "), ("", "7")))]),
    "path written loosely": ("path,label\n./a//b.mp4,cat\n", [cat("a/b", "a/b.mp4")]),
    "times as in Kinetics": (
        "path,label,time_start,time_end,clip_id\na.mp4,cat,1,2.5,7\n",
        [cat("7", "a.mp4", 1.0, 2.5)],
    ),
    "decomposed": ("path,label\ne\u0301/a.mp4,e\u0301\n", [cat("é/a", "é/a.mp4", labels=("é",))]),
    "derived id is given": ("id,path,label\na,x.mp4,cat\n,a.mp4,cat\n", [cat("a", "x.mp4"), cat("a.mp4", "a.mp4")]),
    "other suffix": ("path,label\na.mp4,cat\na.avi,cat\n", [cat("a.mp4", "a.mp4"), cat("a.avi", "a.avi")]),
    "equal to the millisecond": (
        TIMES + "a.mp4,cat,1,2.0001\na.mp4,cat,1,2.0002\n",
        [cat("a.mp4@1.0-2.0001", "a.mp4", 1.0, 2.0001), cat("a.mp4@1.0-2.0002", "a.mp4", 1.0, 2.0002)],
    ),
    "parts of one video in two splits": (
        "path,label,split,end_seconds,start_seconds\na.mp4,cat,train,2,\na.mp4,cat,test,,2\n",
        [cat("a@0.000-2.000", "a.mp4", 0.0, 2.0), cat("a@2.000-end", "a.mp4", 2.0, split="test")],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CSV_CASES.values(), ids=CSV_CASES)
def test_csv(tmp_path: Path, text: str, expected: list[Annotation]) -> None:
    assert read_annotations(write(tmp_path / "list.csv", text)) == expected


JSONL_CASES = {
    "list": ('"labels": ["cat", "a|b"]', cat("a", "a.mp4", labels=("cat", "a|b"))),
    "string": ('"label": "cat|dog"', cat("a", "a.mp4", labels=("cat", "dog"))),
    "null": ('"label": null', cat("a", "a.mp4", labels=())),
    "empty list": ('"labels": []', cat("a", "a.mp4", labels=())),
    "numbers": ('"label": 3, "id": 7, "end_seconds": "1.25"', cat("7", "a.mp4", 0.0, 1.25, labels=("3",))),
    "minus zero": ('"label": "cat", "start_seconds": -0.0, "end_seconds": 1', cat("a@0.000-1.000", "a.mp4", 0.0, 1.0)),
    "nulls": ('"label": "cat", "id": null, "split": null, "end_seconds": null', cat("a", "a.mp4")),
    "extra": ('"label": "cat", "é": {"k": [1, "ü"]}', cat("a", "a.mp4", extra=(("é", '{"k": [1, "ü"]}'),))),
}


@pytest.mark.parametrize(("line", "expected"), JSONL_CASES.values(), ids=JSONL_CASES)
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"], ids=["no end", "LF", "CR LF"])
def test_jsonl(tmp_path: Path, line: str, end: str, expected: Annotation) -> None:
    assert read_annotations(write(tmp_path / "list.jsonl", f'\ufeff\n{{"path": "a.mp4", {line}}}{end}')) == [expected]


@pytest.mark.parametrize(
    ("meant", "ways"),
    [("train", "train training TRAIN"), ("validation", "val Valid validation"), ("test", "test testing"), ("A1", "A1")],
)
def test_split_aliases(tmp_path: Path, meant: str, ways: str) -> None:
    rows = "".join(f"{number}.mp4,x,{way}\n" for number, way in enumerate(ways.split()))
    assert {clip.split for clip in read_annotations(write(tmp_path / "l.csv", "path,label,split\n" + rows))} == {meant}


HEAD = "path,label,split,start_seconds,end_seconds\n"
CSV_ERRORS = {
    "empty file": ("", ["at least one clip", "none"]),
    "header only": (HEAD, ["at least one clip"]),
    "no path": ("file,label\na.mp4,x\n", ["line 1", "'path'", "file, label"]),
    "no label": ("path,split\na.mp4,x\n", ["line 1", "'label' and 'labels'", "path, split"]),
    "label and labels": ("path,label,labels\na.mp4,x,y\n", ["line 1", "one of 'label' and 'labels'"]),
    "repeated column": ("path,label,label\na.mp4,x,y\n", ["line 1", "every column once"]),
    "semicolons": ("path;label\na.mp4;x\n", ["line 1", "path;label"]),
    "too many cells": ("path,label\n\na.mp4,x,y\n", ["line 3", "2 cells", "found 3"]),
    "too few cells": ("path,label\na.mp4\n", ["line 2", "2 cells", "found 1"]),
    "broken quotes": ('path,label\na.mp4,"x"y\n', ["line 2", "valid CSV"]),
    "open quote": ('path,label\na.mp4,"x\n', ["line 2", "valid CSV"]),
    "line after a quoted line break": ('path,label\n"a\nb.mp4",x\n..,x\n', ["line 4", "without '..'"]),
    "not UTF-8": (b"path,label\n\xe9.mp4,x\n", ["UTF-8", "0xe9"]),
    "UTF-16": ("path,label\n".encode("utf-16"), ["UTF-8"]),
    "start": ("path,label,start,end\na.mp4,x,1,2\n", ["line 1", "'start_seconds' in place of 'start'"]),
    "two starts": (HEAD[:-1] + ",time_start\na.mp4,x,,1,2,1\n", ["line 1", "one of 'start_seconds' and 'time_start'"]),
    "a URL": (HEAD + "https://a.org/b.mp4,x,,,\n", ["line 2", "found https://", "https://a.org/b.mp4"]),
    "a URL of a file": (HEAD + "file:///b/c.mp4,x,,,\n", ["line 2", "found file://", "no object storage"]),
    "the same in two forms": ("path,label\né.mp4,x\ne\u0301.mp4,x\n", ["line 3", "every clip once", "line 2"]),
    "empty path": (HEAD + ",x,,,\n", ["line 2", "path of a video", "''"]),
    "dot": (HEAD + ".,x,,,\n", ["line 2", "path of a video"]),
    "absolute": (HEAD + "/a.mp4,x,,,\n", ["line 2", "relative path", "'/a.mp4'"]),
    "drive": (HEAD + "C:/a.mp4,x,,,\n", ["line 2", "relative path"]),
    "parent": (HEAD + "a/../../b.mp4,x,,,\n", ["line 2", "relative path", "'..'"]),
    "parent, backslash": (HEAD + "..\\b.mp4,x,,,\n", ["line 2", "relative path"]),
    "backslash": (HEAD + "a\\b.mp4,x,,,\n", ["line 2", "'/' between folders"]),
    "space at the end": (HEAD + "a.mp4 ,x,,,\n", ["line 2", "no space at the end", "'a.mp4 '"]),
    "start = end": (HEAD + "a.mp4,x,,2,2\n", ["line 2", "start_seconds < end_seconds", "2.0 and 2.0"]),
    "start > end": (HEAD + "a.mp4,x,,3,2\n", ["line 2", "start_seconds < end_seconds"]),
    "zero length": (HEAD + "a.mp4,x,,,0\n", ["line 2", "start_seconds < end_seconds"]),
    "negative": (HEAD + "a.mp4,x,,-1,2\n", ["line 2", "start_seconds", "'-1'"]),
    "nan": (HEAD + "a.mp4,x,,nan,2\n", ["line 2", "start_seconds", "'nan'"]),
    "infinite": (HEAD + "a.mp4,x,,1,inf\n", ["line 2", "end_seconds", "'inf'"]),
    "beyond any clock": (HEAD + "a.mp4,x,,1e306,\n", ["line 2", "start_seconds below 1e+09 seconds", "'1e306'"]),
    "clock time": (HEAD + "a.mp4,x,,00:01,2\n", ["line 2", "start_seconds as a number of seconds", "'00:01'"]),
    "underscore": (HEAD + "a.mp4,x,,1_0,20\n", ["line 2", "start_seconds"]),
    "listed twice": (HEAD + "a.mp4,x,,,\nb.mp4,x,,,\n./a.mp4,y,train,0,\n", ["line 4", "line 2", "every clip once"]),
    "two splits": (HEAD + "a.mp4,x,train,,\na.mp4,x,val,,\n", ["line 3", "line 2", "leaks", "'validation'", "'train'"]),
    "overlap of splits": (HEAD + "a.mp4,x,train,0,9\na.mp4,x,train,1,2\na.mp4,x,test,8,12\n", ["line 4", "line 2"]),
    "segment of a whole": (HEAD + "a.mp4,x,test,5,6\na.mp4,x,train,,\n", ["line 3", "line 2", "leaks"]),
    "repeated id": ("path,label,id\na.mp4,x,7\nb.mp4,x,7\n", ["line 3", "line 2", "every id once", "'7'"]),
    "very long cell": ("path,label\na.mp4," + "x" * 140_000 + "\n", ["valid CSV", "field larger"]),
}
A_CLIP = '{"path": "a.mp4", "label": "x", '
JSONL_ERRORS = {
    "empty": ("\n\n", ["at least one clip"]),
    "not JSON": ('{"path": "a.mp4", "label": "x"}\n{"path": \n', ["line 2", "JSON"]),
    "array": ('["a.mp4", "x"]', ["line 1", "JSON object"]),
    "deep": ("[" * 100_000, ["line 1", "JSON"]),
    "no path": ('{"label": "x"}', ["line 1", "'path'"]),
    "no label": ('{"path": "a.mp4", "lable": "x"}', ["line 1", "'label'", "lable"]),
    "number as path": ('{"path": 3, "label": "x"}', ["line 1", "path of a video", "found 3"]),
    "null path": ('{"path": null, "label": "x"}', ["line 1", "path of a video", "None"]),
    "NUL": ('{"path": "a\\u0000.mp4", "label": "x"}', ["line 1", "path of a video"]),
    "true as label": ('{"path": "a.mp4", "label": true}', ["line 1", "label", "True"]),
    "object as label": ('{"path": "a.mp4", "labels": {"x": 1}}', ["line 1", "label", "{'x': 1}"]),
    "nested labels": ('{"path": "a.mp4", "labels": [["x"]]}', ["line 1", "label", "['x']"]),
    "fraction as split": (A_CLIP + '"split": 0.5}', ["line 1", "split", "0.5"]),
    "NaN": (A_CLIP + '"start_seconds": NaN}', ["line 1", "start_seconds", "nan"]),
    "true as time": (A_CLIP + '"end_seconds": true}', ["line 1", "end_seconds", "True"]),
    "huge time": (A_CLIP + '"end_seconds": 1' + "0" * 400 + "}", ["line 1", "end_seconds"]),
    "half a surrogate pair": ('{"path": "a.mp4", "label": "\\ud800"}', ["line 1", "valid text", "\\ud800"]),
    "line break in a value": ('{"path": "/a\\nb.mp4", "label": "x"}', ["line 1", "relative", "\\n"]),
}
LISTS = {f"csv: {name}": case for name, case in CSV_ERRORS.items()}
LISTS |= {f"jsonl: {name}": case for name, case in JSONL_ERRORS.items()}


def refusal(source: Path, format: str = "auto") -> str:  # noqa: A002
    """The message `source` is refused with, which must be one line that names it."""
    with pytest.raises(AnnotationError) as caught:
        read_annotations(source, format=format)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [part for part in (source.name, "expected ", "found ") if part not in message] == []
    return message


@pytest.mark.parametrize("name", LISTS)
def test_refused_lists(tmp_path: Path, name: str) -> None:
    content, parts = LISTS[name]
    message = refusal(write(tmp_path / f"list.{name.split(':')[0]}", content))
    assert [part for part in parts if part not in message] == []


def test_message_is_one_line_even_if_the_file_name_is_not(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"\A[^\n]*line 2[^\n]*\Z"):
        read_annotations(write(tmp_path / "a\nb.csv", "path,label\n/a.mp4,x\n"))


def test_folder_per_class(tmp_path: Path) -> None:
    make_videos(tmp_path, "dog/b.MP4", "cat x/part 1/a.webm", "cat x/notes.txt", ".hidden/c/a.mp4", "dog/._b.mp4")
    first = cat("cat x/part 1/a", "cat x/part 1/a.webm", labels=("cat x",))
    assert read_annotations(tmp_path) == [first, cat("dog/b", "dog/b.MP4", labels=("dog",))]


def test_folder_per_split_and_class(tmp_path: Path) -> None:
    first, second, third = (f"v_Archery_g0{number}_c01.avi" for number in (1, 2, 3))  # not UCF51 this deep
    clips = read_annotations(make_videos(tmp_path, f"Training/cat/{first}", f"val/cat/{second}", f"test/dog/x/{third}"))
    assert [(clip.split, *clip.labels) for clip in clips] == [("train", "cat"), ("test", "dog"), ("validation", "cat")]


def test_train_may_be_a_class(tmp_path: Path) -> None:
    clips = read_annotations(make_videos(tmp_path, "train/1.mp4", "ship/2.mp4"))
    assert [(clip.split, clip.labels) for clip in clips] == [("train", ("ship",)), ("train", ("train",))]


def test_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    make_videos(tmp_path / "elsewhere", "a.mp4")
    root = make_videos(tmp_path / "root", "dog/b.mp4")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "again").symlink_to(root)
    assert [clip.path for clip in read_annotations(root)] == ["cat/a.mp4", "dog/b.mp4"]


def test_folder_is_listed_in_the_same_order_everywhere(tmp_path: Path) -> None:
    paths = [f"{label}/{number}.mp4" for label in "ba" for number in (2, 10, 1)]
    assert [clip.path for clip in read_annotations(make_videos(tmp_path, *paths))] == sorted(paths)


@pytest.mark.parametrize(
    ("paths", "format", "parts"),
    [
        (["a.mp4", "cat/b.mp4"], "folder", ["a.mp4", "class/video"]),
        (["train/a.mp4", "test/b.mp4"], "folder", ["b.mp4", "split/class/video"]),
        (["train/cat/a.mp4", "cat/b.mp4"], "folder", ["only splits or only classes", "'train'", "'cat'"]),
        (["cat/notes.txt"], "folder", ["at least one clip"]),
        (["cat/a\\b.mp4"], "folder", ["'/' between folders"]),
        (["cat/\udce9.mp4"], "folder", ["path of a video", "\\udce9"]),
        (["cat/notes.txt"], "auto", ["none of them", "name the format: folder, csv, jsonl, ucf101, ucf51"]),
        (["a.mp4"], "auto", ["none of them"]),
        (["Archery/v_Archery_g01_c01.avi"], "auto", ["may be folder or ucf51"]),
        (["trainlist01.txt", "cat/a.mp4"], "auto", ["may be ucf101 or folder"]),
        (["Archery/v_Archery_g26_c01.avi"], "ucf51", ["v_Archery_g26_c01", "group 01 to 25"]),
        (["v_SoccerJuggling_g23_c01.avi"], "ucf51", ["at least one clip"]),
        (["trainlist01.txt"], "ucf101", ["testlist01.txt", "found trainlist01.txt"]),
        (["cat/a.mp4"], "ucf101", ["found no list"]),
        (["cat/a.mp4"], "csv", ["readable list file"]),
    ],
)
def test_refused_folders(tmp_path: Path, paths: list[str], format: str, parts: list[str]) -> None:  # noqa: A002
    message = refusal(make_videos(tmp_path / "videos", *paths), format)
    assert [part for part in parts if part not in message] == []


def test_refused_sources(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.csv")
    assert "No such file" in refusal(tmp_path / "absent")
    assert "ot a directory" in refusal(write(tmp_path / "file.csv", "path,label\n"), "folder")
    assert "name the format: folder, csv, jsonl, ucf101, ucf51" in refusal(write(tmp_path / "list.tsv", "path\tlabel"))
    with pytest.raises(AnnotationError, match=r"expected auto, folder, csv, jsonl, ucf101, ucf51, .*, found 'xml'"):
        read_annotations(tmp_path, format="xml")


@pytest.mark.parametrize("format", ["csv", "jsonl", "activitynet", "audioset"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, format: str) -> None:  # noqa: A002
    os.mkfifo(tmp_path / "list")
    with pytest.raises(AnnotationError, match=r"list: expected a readable list file or folder, found a pipe"):
        read_annotations(tmp_path / "list", format=format)


def test_ucf101_list(tmp_path: Path) -> None:
    first, second = "Archery/v_Archery_g08_c01", "HandstandPushups/v_HandStandPushups_g01_c02"
    source = write(tmp_path / "testlist03.txt", f"{first}.avi 3\r\n\r\n{second}.avi\r\n")
    clips = [(clip.path, *clip.labels, clip.split) for clip in read_annotations(source)]
    assert clips == [(f"{first}.avi", "Archery", "test"), (f"{second}.avi", "HandstandPushups", "test")]


@pytest.mark.parametrize(("folds", "chosen"), [(["01", "02"], "01"), (["02"], "02")])
def test_ucf101_fold_of_a_folder(tmp_path: Path, folds: list[str], chosen: str) -> None:
    write(tmp_path / "classInd.txt", "1 A\n")
    for fold in folds:
        write(tmp_path / f"trainlist{fold}.txt", f"A/train_{fold}.avi 1\n")
        write(tmp_path / f"testlist{fold}.txt", f"A/test_{fold}.avi\n")
    found = {clip.split: clip.path for clip in read_annotations(tmp_path)}
    assert found == {"train": f"A/train_{chosen}.avi", "test": f"A/test_{chosen}.avi"}


@pytest.mark.parametrize(
    ("line", "part"),
    [("v_A_g01_c01.avi 1", "Class/video.avi"), ("a/b/c.avi", "Class/video.avi"), ("/a/b.avi 1", "relative path")],
)
def test_refused_ucf101_lines(tmp_path: Path, line: str, part: str) -> None:
    message = refusal(write(tmp_path / "trainlist01.txt", f"A/a.avi 1\n{line}\n"))
    assert "line 2" in message
    assert part in message


def test_ucf101_lists_that_leak(tmp_path: Path) -> None:
    write(tmp_path / "trainlist01.txt", "A/a.avi 1\n")
    write(tmp_path / "testlist01.txt", "\nA/a.avi\n")
    assert re.search(r"testlist01\.txt, line 2: .*leaks.*trainlist01\.txt, line 1$", refusal(tmp_path))


def test_other_text_files_are_no_ucf101_list(tmp_path: Path) -> None:
    assert "trainlistNN.txt" in refusal(write(tmp_path / "list.txt", "A/a.avi 1\n"), "ucf101")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v_Archery_g01_c01", ("Archery", "test")),
        ("v_Archery_g07_c06", ("Archery", "test")),
        ("v_Archery_g08_c01", ("Archery", "train")),
        ("v_Archery_g25_c01", ("Archery", "train")),
        ("v_HandStandPushups_g07_c01", ("HandstandPushups", "test")),
        ("v_HandstandPushups_g08_c01", ("HandstandPushups", "train")),
        ("v_SoccerJuggling_g07_c01", None),
    ],
)
def test_ucf51_rule(name: str, expected: tuple[str, str] | None) -> None:
    assert assign_ucf51(name) == expected


@pytest.mark.parametrize("name", ["", "Archery_g01_c01", "v_Archery_g00_c01", "v_Archery_g01_c01.avi"])
def test_ucf51_rule_refuses_other_names(name: str) -> None:
    with pytest.raises(AnnotationError, match="v_Class_gNN_cMM"):
        assign_ucf51(name)


def test_ucf51_flat_folder(tmp_path: Path) -> None:
    make_videos(tmp_path, "v_Typing_g07_c01.avi", "v_Typing_g08_c01.avi", "v_SoccerJuggling_g01_c01.avi")
    found = [(clip.clip_id, *clip.labels, clip.split) for clip in read_annotations(tmp_path)]
    assert found == [("v_Typing_g07_c01", "Typing", "test"), ("v_Typing_g08_c01", "Typing", "train")]


def test_ucf51_class_folders(tmp_path: Path) -> None:
    make_videos(tmp_path, "HandstandPushups/v_HandStandPushups_g07_c01.avi", "Biking/v_Biking_g01_c01.avi")
    (clip,) = read_annotations(tmp_path, format="ucf51")
    assert (clip.path[-14:], clip.labels, clip.split) == ("ps_g07_c01.avi", ("HandstandPushups",), "test")


def test_ucf51_against_the_clips_of_the_paper() -> None:
    if not UCF51_NAMES.is_file():
        pytest.skip("development data (names of the UCF51 clips) is kept outside the repository and is not here")
    numpy = pytest.importorskip("numpy")
    with numpy.load(UCF51_NAMES) as clips:
        names, labels, splits = (clips[key].tolist() for key in ("name", "label", "split"))
    assert sorted(set(labels)) == list(UCF51_CLASSES)
    assigned = [assign_ucf51(name) for name in names]
    published = {"training": "train", "validation": "test"}
    assert assigned == [(label, published[split]) for label, split in zip(labels, splits, strict=True)]
    assert Counter(split for _, split in filter(None, assigned)) == {"train": 4892, "test": 1944}


# Any list survives being written and read

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="|"), min_size=1, max_size=8).filter(
    lambda text: (
        text == unicodedata.normalize("NFC", text.strip())
        and text.casefold() not in ("training", "val", "valid", "testing")
    )
)
FOLDERS = NAMES.filter(lambda text: not set("/\\:") & set(text) and text not in (".", ".."))
SECONDS = st.floats(0, 1e6, allow_nan=False)


@st.composite
def clips_of_a_list(draw: st.DrawFn) -> list[Annotation]:
    columns = draw(st.lists(NAMES.map("extra {}".format), max_size=2, unique=True))
    clips = []
    for number in range(draw(st.integers(1, 6))):
        times = sorted(draw(st.lists(SECONDS, min_size=2, max_size=2, unique=True)))
        clips.append(
            Annotation(
                clip_id=f"{number} {draw(NAMES)}",
                path=f"{'/'.join(draw(st.lists(FOLDERS, min_size=1, max_size=3)))}.mp4",
                labels=tuple(draw(st.lists(NAMES, max_size=3, unique=True))),
                split="one",
                start_seconds=abs(times[0]),
                end_seconds=draw(st.sampled_from([None, times[1]])),
                extra=tuple((column, draw(st.sampled_from(["", ' v, "x" ', "ü\nz"]))) for column in columns),
            )
        )
    segments = {(clip.path, clip.start_seconds, clip.end_seconds): clip for clip in clips}
    return list(segments.values())


def as_columns(clip: Annotation) -> dict[str, object]:
    times = {"start_seconds": clip.start_seconds, "end_seconds": clip.end_seconds}
    return {"id": clip.clip_id, "path": clip.path, "split": clip.split} | times | dict(clip.extra)


round_trip = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@round_trip
@given(clips_of_a_list(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip(tmp_path: Path, clips: list[Annotation], mark: bool, end: str) -> None:
    text = io.StringIO(newline="")
    rows = [as_columns(clip) | {"labels": "|".join(clip.labels)} for clip in clips]
    writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    source = write(tmp_path / "list.csv", text.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    assert read_annotations(source) == clips


@round_trip
@given(clips_of_a_list(), st.booleans())
def test_jsonl_round_trip(tmp_path: Path, clips: list[Annotation], ascii_only: bool) -> None:
    rows = [as_columns(clip) | {"labels": list(clip.labels)} for clip in clips]
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert read_annotations(write(tmp_path / "list.jsonl", text)) == clips


@round_trip
@given(st.sets(st.sampled_from(["a", "a.mp4", "a.avi", "a.mp4.mp4", "a.mp4.avi", "b.mp4", "b"]), min_size=1))
def test_derived_ids_are_unique(tmp_path: Path, paths: set[str]) -> None:
    clips = read_annotations(write(tmp_path / "l.csv", "path,label\n" + "".join(f"{path},x\n" for path in paths)))
    assert len({clip.clip_id for clip in clips}) == len(paths)


def test_paths_may_be_text(tmp_path: Path) -> None:
    file = write(tmp_path / "list.csv", "path,label\na.mp4,x\n")
    assert read_annotations(str(file)) == read_annotations([str(file)]) == read_annotations(file, videos=str(tmp_path))
    assert avdistill.annotations.read_annotations is read_annotations


def test_reading_lists_does_not_load_torch() -> None:
    code = "import sys, avdistill.annotations.readers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
