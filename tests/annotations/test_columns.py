"""Columns that look like known ones: refused where the known one is missing, named where it is there."""

import logging
from pathlib import Path

import pytest

from avdistill.annotations import read_annotations
from avdistill.annotations.columns import look_alike
from avdistill.errors import AnnotationError
from support.list_files import write

LOOK_ALIKE = {
    "start_seconds": "start Start START begin onset start_time StartTime startTime start_sec start_s t_start start_ms "
    "start_frame segment_start video_start_time from begin_time Start_Seconds startseconds start-seconds time_start",
    "end_seconds": "end End stop offset end_time EndTime endTime end_sec t_end end_frame segment_end to until finish "
    "End_Seconds endseconds time_end",
    "split": "subset Subset set partition fold phase usage Split SPLIT splits data_split is_train isTest split_name",
    "label": "class Class classes className class_id category categories target tags Label LABEL label_name label_id",
    "path": "file filename fileName file_path filepath video video_path video_file video_name clip_path Path",
    "id": "ID Id clip_id ClipId",
}
OTHERS = "note camera t audio true_label snr_db audio_source is_cc youtube_id speaker restart trend weekend bookend "
OTHERS += "total token photo fps width height status axis gender kind_of_end tone hour é"


@pytest.mark.parametrize(("known", "names"), LOOK_ALIKE.items(), ids=LOOK_ALIKE)
def test_what_a_name_looks_like(known, names):
    assert {name: look_alike(name) for name in names.split()} == dict.fromkeys(names.split(), known)


def test_other_names_look_like_nothing():
    assert {name: look_alike(name) for name in OTHERS.split()} == dict.fromkeys(OTHERS.split())


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("column", ["start", "startTime", "stop", "subset", "fold", "is_train", "begin_frame", "Split"])
def test_a_column_that_would_be_lost_is_refused(tmp_path: Path, suffix, column):
    content = (
        f"path,label,{column}\na.mp4,x,1\n" if suffix == "csv" else f'{{"path": "a.mp4", "label": "x", "{column}": 1}}'
    )
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write(tmp_path / f"list.{suffix}", content))
    assert f"in place of {column!r}" in str(caught.value)
    assert "line 1" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("columns", "refused"),
    [("start_seconds,duration", True), ("start_seconds,end_seconds,duration", False), ("duration,camera", False)],
)
def test_a_duration_is_refused_where_it_would_give_the_end(tmp_path: Path, columns, refused):
    row = ",".join(str(number + 1) for number in range(len(columns.split(","))))
    path = write(tmp_path / "list.csv", f"path,label,{columns}\na.mp4,x,{row}\n")
    if refused:
        with pytest.raises(AnnotationError, match="'end_seconds' in place of 'duration'"):
            read_annotations(path)
    else:
        assert ("duration", row.split(",")[columns.split(",").index("duration")]) in read_annotations(path)[0].extra


def test_a_column_beside_the_known_one_is_named_once(tmp_path: Path, caplog):
    rows = "".join(f'{{"path": "{n}.mp4", "label": "x", "class_id": {n}, "note": ""}}\n' for n in range(5))
    with caplog.at_level(logging.WARNING, "avdistill"):
        clips = read_annotations(write(tmp_path / "list.jsonl", rows))
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "the column 'class_id' is not used, 'label' is there"
    ]
    assert ("class_id", "3") in clips[3].extra


def test_columns_of_kinetics(tmp_path: Path):
    head = "youtube_id,time_start,time_end,split"
    path = write(tmp_path / "test.csv", f"class,{head}\nwalking,0wR5jVB-WPk,417,427,test\n")
    with pytest.raises(AnnotationError, match="'label' in place of 'class'"):
        read_annotations(path)
