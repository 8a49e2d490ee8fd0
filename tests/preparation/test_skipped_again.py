"""What was skipped does not stay so in silence: whoever asks again may have mended it."""

import csv
import os
import shutil

import pytest

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.schema import staging_dir
from avdistill.errors import DatasetError, MediaError
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.faulty_readers import read_or_fail

CONFIG = PrepareConfig(fps=10, short_side=32)
RECORDED = ("bytes", "mtime_ns")


class Killed(BaseException):
    pass


@pytest.fixture(params=["finished", "interrupted"])
def begun(request, small_set, tmp_path):
    """Videos, clips and dataset of a preparation in which `bad` was damaged and `late` was not there."""
    videos, out = tmp_path / "videos", tmp_path / "dataset"
    videos.mkdir()
    for a in small_set[1][:6]:
        shutil.copy2(small_set[0] / a.path, videos)
    (videos / "bad.mp4").write_bytes(b"x" * 100)
    clips = [Annotation(name, f"{name}.mp4", (), "train") for name in ("bad", "late")]
    clips = [small_set[1][0], *clips, *small_set[1][1:6]]

    def on_progress(progress):
        if progress.done == 6 and request.param == "interrupted":
            raise Killed

    if request.param == "interrupted":
        with pytest.raises(Killed):
            prepare(clips, videos, out, CONFIG, on_progress=on_progress)
        return videos, clips, out, staging_dir(out)
    prepare(clips, videos, out, CONFIG)
    return videos, clips, out, out


def skipped(dataset):
    with (dataset / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def refused(error, videos, clips, out, **options):
    """The one line that says why not."""
    with pytest.raises(error) as raised:
        prepare(clips, videos, out, CONFIG, **options)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_where_nothing_has_changed_it_goes_on(begun):
    videos, clips, out, _ = begun
    state = (videos / "bad.mp4").stat()
    assert len(prepare(clips, videos, out, CONFIG)) == 6
    rows = skipped(out)
    assert {name: tuple(row[key] for key in RECORDED) for name, row in rows.items()} == {
        "bad": (str(state.st_size), str(state.st_mtime_ns)),
        "late": ("0", "0"),
    }
    (videos / "bad.mp4").unlink()  # nobody keeps a file that is of no use
    assert len(prepare(clips, videos, out, CONFIG)) == 6


@pytest.mark.parametrize("name", ["bad", "late"])
def test_a_file_that_is_good_now_is_named(begun, name):
    videos, clips, out, folder = begun
    good = videos / clips[0].path
    shutil.copy2(good, videos / f"{name}.mp4")
    message = refused(DatasetError, videos, clips, out)
    assert message.startswith(f"{folder}: made without files that have changed or come since: {name}.mp4; ")
    assert name in refused(DatasetError, videos, clips, out, strict=True)
    shutil.rmtree(folder)  # as the line says
    dataset = prepare(clips, videos, out, CONFIG)
    assert name in dataset.columns["id"]


def test_a_file_that_comes_while_others_are_read(small_set, tmp_path):
    """Its clip was skipped before it came."""
    folder, annotations = small_set
    videos = tmp_path / "videos"
    videos.mkdir()
    for a in annotations[:3]:
        shutil.copy2(folder / a.path, videos)
    clips = [Annotation("late", "late.mp4", (), "train"), *annotations[:3]]

    def on_progress(progress):
        shutil.copy2(folder / annotations[0].path, videos / "late.mp4")

    dataset = prepare(clips, videos, tmp_path / "dataset", CONFIG, on_progress=on_progress)
    assert "late" not in dataset.columns["id"]
    assert "late.mp4" in refused(DatasetError, videos, clips, tmp_path / "dataset")


def test_strict_holds_for_what_was_skipped_before(begun):
    videos, clips, out, _ = begun
    message = refused(MediaError, videos, clips, out, strict=True)
    assert "2 skipped" in message
    assert "Invalid data" in message
    assert len(prepare(clips, videos, out, CONFIG)) == 6


def test_a_higher_time_limit(small_set, tmp_path):
    folder, annotations = small_set
    clips = [annotations[0], Annotation("hangs", annotations[1].path, (), "train"), annotations[2]]
    given = {"read": read_or_fail, "time_limit_seconds": 1.2345678}
    prepare(clips, folder, tmp_path / "dataset", CONFIG, **given)
    for limit in (1.2345678, 1):
        assert len(prepare(clips, folder, tmp_path / "dataset", CONFIG, **given | {"time_limit_seconds": limit})) == 2
    for limit in (2, None):
        message = refused(DatasetError, folder, clips, tmp_path / "dataset", **given | {"time_limit_seconds": limit})
        assert f"took too long then and may take longer now: {annotations[1].path}; " in message


def test_the_verb_says_it_in_one_line(small_set, tmp_path, capsys):
    folder, annotations = small_set
    (tmp_path / "list.csv").write_text(f"id,path,label,split\na,{annotations[0].path},x,train\nb,b.mp4,x,train\n")
    (tmp_path / "videos").mkdir()
    shutil.copy2(folder / annotations[0].path, tmp_path / "videos")
    command = ["prepare", str(tmp_path / "list.csv"), "--videos", str(tmp_path / "videos")]
    command += ["--out", str(tmp_path / "dataset"), "--workers", "1"]
    assert main(command) == 0
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--strict"]) == 1
    assert "b.mp4: no such file" in capsys.readouterr().err
    os.link(folder / annotations[1].path, tmp_path / "videos" / "b.mp4")
    assert main(command) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("avdistill:"))
    assert "b.mp4" in line


def test_a_dataset_under_a_corruption_is_not_the_one_that_was_prepared(small_set, tmp_path):
    """It has the list and the settings of the dataset it was made from."""
    folder, annotations = small_set
    dataset = prepare(annotations, folder, tmp_path / "dataset", CONFIG)
    corrupt(dataset, Corruption(label_fraction=0.3), tmp_path / "made")
    assert "under a corruption" in refused(DatasetError, folder, annotations, tmp_path / "made")
    assert len(prepare(annotations, folder, tmp_path / "dataset", CONFIG)) == len(dataset)
