"""Lists of published data sets, in the layout of the official files; the entries marked so are copied from them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from avdistill.annotations import Annotation, read_annotations
from avdistill.annotations.readers import keep_labels
from avdistill.cli import main
from avdistill.errors import AnnotationError
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.list_files import make_videos, refusal, write
from support.media_files import write_video

Summary = tuple[str, tuple[str, ...], str, float, float | None]


def summaries(clips: list[Annotation]) -> list[Summary]:
    return [(clip.path, clip.labels, clip.split, clip.start_seconds, clip.end_seconds) for clip in clips]


# ActivityNet


def activitynet(**database: object) -> dict[str, object]:
    taxonomy = [{"parentName": "Root", "nodeName": "Sports", "nodeId": 1, "parentId": 0}]
    return {"version": "VERSION 1.3", "taxonomy": taxonomy, "database": database}


def upload(subset: str, *annotations: tuple[float, float, str]) -> dict[str, object]:
    return {
        "duration": 82.73,
        "subset": subset,
        "resolution": "320x240",
        "url": "https://www.youtube.com/watch?v=x",
        "annotations": [{"segment": [start, end], "label": label} for start, end, label in annotations],
    }


def test_activitynet(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", "train/v_-a_0.mkv", "b.webm", "v_B.mp4", ".v_gone.mp4", "v_b.txt")
    content = activitynet(
        **{
            "-a_0": upload("training", (6.5, 28.25, "Polishing shoes"), (30, 31, "Polishing shoes")),
            "b": upload("validation", (0.01, 90.5, "Drinking beer")),
            "B": upload("validation", (0, 1, "Drinking beer")),
            "gone": upload("training", (1, 2, "Surfing")),
            "hidden": upload("testing"),
        }
    )
    clips = read_annotations(write(tmp_path / "activity_net.v1-3.min.json", content), videos=videos)
    assert summaries(clips) == [
        ("train/v_-a_0.mkv", ("Polishing shoes",), "train", 6.5, 28.25),
        ("train/v_-a_0.mkv", ("Polishing shoes",), "train", 30.0, 31.0),
        ("b.webm", ("Drinking beer",), "validation", 0.01, 90.5),
        ("v_B.mp4", ("Drinking beer",), "validation", 0.0, 1.0),
        ("v_gone.mp4", ("Surfing",), "train", 1.0, 2.0),
        ("v_hidden.mp4", (), "test", 0.0, None),
    ]
    assert clips[0].clip_id == "train/v_-a_0@6.500-28.250"


def test_activitynet_segments_annotated_twice(tmp_path: Path) -> None:
    segments = ((1, 2, "Surfing"), (1, 2, "Surfing"), (1, 2, "Windsurfing"), (1.5, 3, "Sailing"))
    clips = read_annotations(write(tmp_path / "list.json", activitynet(a=upload("training", *segments))))
    assert summaries(clips) == [
        ("v_a.mp4", ("Surfing", "Windsurfing"), "train", 1.0, 2.0),
        ("v_a.mp4", ("Sailing",), "train", 1.5, 3.0),
    ]


def test_what_activitynet_cannot_give_is_listed_as_skipped(tmp_path: Path) -> None:
    """The official file has segments of length zero, segments beyond the end, and videos that are no longer there."""
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = np.zeros((20, 32, 32, 3), dtype=np.uint8)
    write_video(videos / "v_ZZVrH3Hv1fM.mp4", frames=frames, waveform=np.ones(32000) / 2)
    segments = [(0, 0, "Washing hands"), (0.73, 0.73, "Washing hands"), (0.2, 2.004, "Drying"), (70, 71, "Drying")]
    content = activitynet(ZZVrH3Hv1fM=upload("training", *segments), gone=upload("training", (1, 2, "Surfing")))
    clips = read_annotations(write(tmp_path / "list.json", content), videos=videos)
    assert len(clips) == 5
    dataset = prepare(clips, videos, tmp_path / "dataset", PrepareConfig(fps=5, short_side=32), workers=1)
    with (tmp_path / "dataset" / "skipped.csv").open(encoding="utf-8", newline="") as file:
        skipped = list(csv.DictReader(file))
    assert len(dataset) == 1
    assert {row["clip"].partition("@")[2]: "no frame" in row["reason"] for row in skipped} == {
        "0.000-0.000": True,
        "0.730-0.730": True,
        "70.000-71.000": True,
        "1.000-2.000": False,
    }
    assert ["no such file" in row["reason"] for row in skipped] == [False, False, False, True]


# VGGSound; the first three rows are official

VGGSOUND = """---g-f_I2yQ,1,people marching,test
--9O4XZOge4,30,"female speech, woman speaking",train
-2sE_O4zGO0,73,playing castanets,train
aBc,0,dog barking,train
abc,0,cat purring,train
"""


def test_vggsound(tmp_path: Path) -> None:
    names = ("test/---g-f_I2yQ_000001.mp4", "--9O4XZOge4_000030_000040.mkv", "-2sE_O4zGO0_73000_83000.mp4", "abc.webm")
    videos = make_videos(tmp_path / "videos", *names)
    assert summaries(read_annotations(write(tmp_path / "vggsound.csv", VGGSOUND), videos=videos)) == [
        ("test/---g-f_I2yQ_000001.mp4", ("people marching",), "test", 0.0, None),
        ("--9O4XZOge4_000030_000040.mkv", ("female speech, woman speaking",), "train", 0.0, None),
        ("-2sE_O4zGO0_73000_83000.mp4", ("playing castanets",), "train", 0.0, None),
        ("aBc_000000.mp4", ("dog barking",), "train", 0.0, None),
        ("abc.webm", ("cat purring",), "train", 0.0, 10.0),
    ]


def test_a_clip_goes_before_its_upload(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", "-2sE_O4zGO0.mp4", "-2sE_O4zGO0_000073.mp4", "--9O4XZOge4.mp4")
    clips = read_annotations(write(tmp_path / "vggsound.csv", VGGSOUND), videos=videos)
    assert [summary[0] for summary in summaries(clips)[1:3]] == ["--9O4XZOge4.mp4", "-2sE_O4zGO0_000073.mp4"]
    assert (clips[1].start_seconds, clips[1].end_seconds) == (30, 40)


def test_without_a_folder_of_videos_names_are_the_usual_ones(tmp_path: Path) -> None:
    clips = read_annotations(write(tmp_path / "vggsound.csv", VGGSOUND))
    assert [clip.path for clip in clips[:2]] == ["---g-f_I2yQ_000001.mp4", "--9O4XZOge4_000030.mp4"]
    assert [clip.clip_id for clip in clips[:2]] == ["---g-f_I2yQ_000001", "--9O4XZOge4_000030"]


def test_prepare_looks_into_its_folder_of_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos" / "train").mkdir(parents=True)
    frames = np.zeros((20, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "videos" / "train" / "abc_000000.mp4", frames=frames, waveform=np.ones(32000) / 2)
    source = write(tmp_path / "vggsound.csv", VGGSOUND)
    paths = ["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "dataset")]
    assert main(["prepare", str(source), *paths, "--short-side", "32", "--workers", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clips"], report["skipped"]) == (1, 4)


# Kinetics; headers as in the lists of Kinetics 400 (with is_cc), 600 and 700 ("validate") and of the test clips

KINETICS_400 = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,0wR5jVB-WPk,417,427,val,0
"tying knot (not on a tie)",-3B32lodo2M,59,69,train,1
"""
KINETICS_TEST = "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n"


def test_kinetics(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", "abseiling/0wR5jVB-WPk_000417_000427.mp4", "-3B32lodo2M.mkv")
    clips = read_annotations(write(tmp_path / "kinetics-400_val.csv", KINETICS_400), videos=videos)
    assert summaries(clips) == [
        ("abseiling/0wR5jVB-WPk_000417_000427.mp4", ("abseiling",), "validation", 0.0, None),
        ("-3B32lodo2M.mkv", ("tying knot (not on a tie)",), "train", 59.0, 69.0),
    ]
    assert [clip.extra for clip in clips] == [(("is_cc", "0"),), (("is_cc", "1"),)]


def test_kinetics_test_clips_are_unlabeled(tmp_path: Path) -> None:
    clips = read_annotations(write(tmp_path / "kinetics-400_test.csv", KINETICS_TEST))
    assert summaries(clips) == [("--6bJUbfpnQ_000017_000027.mp4", (), "test", 0.0, None)]


def test_kinetics_700_says_validate(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end,split\ntestifying,---QUuC4vJs,84,94,validate\n"
    assert read_annotations(write(tmp_path / "validate.csv", text))[0].split == "validation"


TWO_CLASSES = """label,youtube_id,time_start,time_end,split
cutting apple,xn,64,74,val
peeling apples,xn,64,74,val
"""


def test_one_upload_in_two_classes(tmp_path: Path) -> None:
    """The file in the folder of the label is meant; without one it is a clip with both labels."""
    source = write(tmp_path / "list.csv", TWO_CLASSES)
    folders = ("cutting_apple", "peeling apples", "other")
    paths = [f"{folder}/xn_000064_000074.mp4" for folder in folders]
    clips = read_annotations(source, videos=make_videos(tmp_path / "videos", *paths))
    assert [(clip.path, clip.labels) for clip in clips] == [
        (paths[0], ("cutting apple",)),
        (paths[1], ("peeling apples",)),
    ]
    (clip,) = read_annotations(source)
    assert (clip.path, clip.labels) == ("xn_000064_000074.mp4", ("cutting apple", "peeling apples"))


@pytest.mark.parametrize(
    "paths",
    [
        ("a/xn_000064_000074.mp4", "b/xn_000064_000074.mp4"),
        ("xn_000064_000074.mp4", "xn_000064_000074.webm"),
        ("cutting apple/xn_000064_000074.mp4", "cutting apple/xn_000064_000074.avi"),
    ],
)
def test_two_files_of_one_name(tmp_path: Path, paths: tuple[str, ...]) -> None:
    videos = make_videos(tmp_path / "videos", *paths)
    message = refusal(write(tmp_path / "list.csv", TWO_CLASSES), videos=videos)
    assert "list.csv, line 2" in message
    assert "one file called 'xn_000064_000074'" in message
    assert [path for path in paths if path not in message] == []
    other = write(tmp_path / "other.csv", TWO_CLASSES.replace("xn", "asked"))
    assert len(read_annotations(other, videos=videos)) == 1  # nobody asked for the file with two namesakes


# The release's annotation.json; names, labels and the repeated segment are official

SHAVING = {"subset": "training", "segment": [43.52260782, 46.705295549999995], "label": "Shaving"}
RELEASE = {
    "labels": ["Shaving", "Elliptical trainer", "IceDancing", "HandStandPushups"],
    "database": {
        "v_bWquUXC2Te8_1": SHAVING,
        "v_bWquUXC2Te8_0": SHAVING,
        "v_ibjvKk93__g_0": {"subset": "validation", "segment": [0, 9], "label": "Elliptical trainer"},
        "v_IceDancing_g04_c02": {"subset": "validation", "label": "IceDancing"},
        "v_HandStandPushups_g17_c04": {"subset": "training", "label": "HandStandPushups"},
    },
}


def test_release_of_cut_files(tmp_path: Path) -> None:
    folder = "HandstandPushups/v_HandstandPushups_g17_c04.avi"
    videos = make_videos(tmp_path / "videos", "v_bWquUXC2Te8_0.mp4", "v_bWquUXC2Te8_1.mp4", folder)
    clips = read_annotations(write(tmp_path / "annotation.json", RELEASE), videos=videos)
    assert summaries(clips) == [
        ("v_bWquUXC2Te8_1.mp4", ("Shaving",), "train", 0.0, None),
        ("v_bWquUXC2Te8_0.mp4", ("Shaving",), "train", 0.0, None),
        ("v_ibjvKk93__g_0.mp4", ("Elliptical trainer",), "validation", 0.0, None),
        ("v_IceDancing_g04_c02.avi", ("IceDancing",), "validation", 0.0, None),
        (folder, ("HandstandPushups",), "train", 0.0, None),
    ]
    assert [clip.clip_id for clip in clips] == list(RELEASE["database"])


@pytest.mark.parametrize("prefix", ["v_", ""])
def test_release_of_uploads(tmp_path: Path, prefix: str) -> None:
    videos = make_videos(tmp_path / "videos", f"{prefix}bWquUXC2Te8.mp4", f"{prefix}ibjvKk93__g.mp4")
    clips = read_annotations(write(tmp_path / "annotation.json", RELEASE), videos=videos)
    assert [clip.clip_id for clip in clips[:2]] == ["v_bWquUXC2Te8_1", "v_ibjvKk93__g_0"]  # the repeat only once
    assert summaries(clips)[:2] == [
        (f"{prefix}bWquUXC2Te8.mp4", ("Shaving",), "train", 43.52260782, 46.705295549999995),
        (f"{prefix}ibjvKk93__g.mp4", ("Elliptical trainer",), "validation", 0.0, 9.0),
    ]


# UCF101 spells one class in two ways


@pytest.mark.parametrize(
    "stored",
    [
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "UCF-101/HandStandPushups/v_HandstandPushups_g01_c01.mp4",
        "v_HandStandPushups_g01_c01.avi",
    ],
)
@pytest.mark.parametrize("listed", ["HandstandPushups", "HandStandPushups"])
def test_handstand_pushups(tmp_path: Path, stored: str, listed: str) -> None:
    videos = make_videos(tmp_path / "videos", stored)
    source = write(tmp_path / "testlist01.txt", f"{listed}/v_HandStandPushups_g01_c01.avi\n")
    expected = [(stored, ("HandstandPushups",), "test", 0.0, None)]
    assert summaries(read_annotations(source, videos=videos)) == expected
    if stored.count("/") < 2:
        assert summaries(read_annotations(videos, format="ucf51", videos=videos)) == expected
    name = "v_HandStandPushups_g01_c01"
    content = {"labels": [listed], "database": {name: {"subset": "validation", "label": listed}}}
    (clip,) = read_annotations(write(tmp_path / "annotation.json", content), videos=videos)
    assert clip == Annotation(name, stored, ("HandstandPushups",), "validation")


def test_ucf101_keeps_its_own_path_where_it_holds_a_file_or_none_does(tmp_path: Path) -> None:
    source = write(tmp_path / "trainlist01.txt", "Archery/v_Archery_g08_c01.avi 3\nBiking/v_Biking_g08_c01.avi 11\n")
    videos = make_videos(tmp_path / "videos", "Archery/v_Archery_g08_c01.avi", "old/Archery/v_Archery_g08_c01.avi")
    listed = [clip.path for clip in read_annotations(source)]
    assert listed == ["Archery/v_Archery_g08_c01.avi", "Biking/v_Biking_g08_c01.avi"]
    assert [clip.path for clip in read_annotations(source, videos=videos)] == listed


# Recognition


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", {"labels": ["x"], "database": {"n": {"subset": "training", "label": "x"}}}, "n.mp4"),
        ("a.JSON", {"version": "VERSION 1.3", "database": {"n": upload("testing")}}, "v_n.mp4"),
        ("a.json", {"taxonomy": [], "database": {"n": upload("testing")}}, "v_n.mp4"),
        ("a.csv", "\ufeff\nn,7,label,train\n", "n_000007.mp4"),
        ("a.csv", "time_end,youtube_id,split,time_start,label\n17,n,train,7,x\n", "n_000007_000017.mp4"),
        ("a.csv", "path,label,youtube_id,time_start,time_end,split\nx.mp4,x,n,1,2,train\n", "x.mp4"),
        ("a.csv", "path,label,note,test\nx.mp4,x,,\n", "x.mp4"),
    ],
)
def test_recognized(tmp_path: Path, name: str, content: object, expected: str) -> None:
    assert [clip.path for clip in read_annotations(write(tmp_path / name, content))] == [expected]


@pytest.mark.parametrize("content", [{"database": {}}, {"version": "1.3"}, ["database", "labels"], 3, None])
def test_other_json_is_not_recognized(tmp_path: Path, content: object) -> None:
    message = refusal(write(tmp_path / "a.json", content))
    assert "none of them; name the format: folder, csv, jsonl, ucf101, ucf51, activitynet, vggsound" in message


def test_audioset(tmp_path):
    head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, ...\n"
    rows = '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/0bt9lr"\n-0_y_aaaaaa, 30.000, 40.000, "/m/068hy"\n'
    (tmp_path / "eval_segments.csv").write_text(head + rows)
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "Y--4gqARaEJE.mp4").touch()
    (videos / "-0_y_aaaaaa.webm").touch()
    first, second = read_annotations(tmp_path / "eval_segments.csv", videos=videos)  # recognized by its first line
    assert (first.path, first.labels, first.split) == ("Y--4gqARaEJE.mp4", ("/m/068hy", "/m/0bt9lr"), "test")
    assert (first.start_seconds, first.end_seconds) == (0.0, None)
    assert (second.path, second.start_seconds, second.end_seconds) == ("-0_y_aaaaaa.webm", 30.0, 40.0)

    (tmp_path / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/068hy,"Domestic animals, pets"\n')
    (tmp_path / "balanced_train_segments.csv").write_text(head + rows.replace("-0_y", "-1_y").replace("--4g", "--5g"))
    listed = read_annotations(tmp_path, format="audioset", videos=videos)
    assert [a.split for a in listed] == ["train", "train", "test", "test"]
    assert listed[3].labels == ("Domestic animals, pets",)
    assert listed[2].labels == ("Domestic animals, pets", "/m/0bt9lr")
    (tmp_path / "class_labels_indices.csv").write_text("mid,name\n")
    with pytest.raises(AnnotationError, match="index, mid, display_name"):
        read_annotations(tmp_path, format="audioset", videos=videos)


def test_clips_that_are_only_heard_are_found_and_a_audio_track_beside_its_video_is_not(tmp_path):
    rows = '--4gqARaEJE, 0.000, 10.000, "/m/068hy"\n-0_y_aaaaaa, 30.000, 40.000, "/m/068hy"\n'
    (tmp_path / "eval_segments.csv").write_text("# Segments\n# num\n# YTID, start_seconds, ...\n" + rows)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("--4gqARaEJE.flac", "-0_y_aaaaaa.mp4", "-0_y_aaaaaa.wav"):
        (videos / name).touch()
    listed = read_annotations(tmp_path / "eval_segments.csv", format="audioset", videos=videos)
    assert [a.path for a in listed] == ["--4gqARaEJE.flac", "-0_y_aaaaaa.mp4"]


def test_several_lists_are_one_and_labels_choose(tmp_path):
    (tmp_path / "a.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,train\n")
    (tmp_path / "b.csv").write_text("path,labels,split\nc.mp4,x|z,test\n")
    (tmp_path / "wanted.txt").write_text("x\n")
    both = read_annotations([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert [a.clip_id for a in both] == ["a", "b", "c"]
    assert [(a.clip_id, a.labels) for a in keep_labels(both, tmp_path / "wanted.txt")] == [("a", ("x",)), ("c", ("x",))]
    (tmp_path / "b.csv").write_text("path,labels,split\na.mp4,x,test\n")
    with pytest.raises(AnnotationError, match="every clip in one split"):
        read_annotations([tmp_path / "a.csv", tmp_path / "b.csv"])
    (tmp_path / "wanted.txt").write_text("x\nq\n")
    with pytest.raises(AnnotationError, match="'q'"):
        keep_labels(both, tmp_path / "wanted.txt")
    with pytest.raises(AnnotationError, match="a readable file"):
        keep_labels(both, tmp_path / "absent.txt")
